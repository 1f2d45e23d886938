"""Ensembles of networks, and how good probabilities are ("Evaluating generators", section 6).

An ensemble is a zoo whose networks answer together: samples of a generator, a selection of a zoo, or a zoo on disk.
Members go by in blocks and leave sums behind, so that memory does not grow with their number.

Axes: m network, r network or ensemble, n image, k class, b bin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from weightspace import networks
from weightspace.errors import ConfigError, unknown_name
from weightspace.evaluation.calibration import best_temperature, predictive_entropy, tempered
from weightspace.evaluation.probabilities import population_probabilities
from weightspace.networks import Layout, Network
from weightspace.networks.population import as_classifier
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

BINS = 15
"""Equal-width bins of the highest probability in the calibration error."""
MEMBERS = (1, 2, 5, 10, 20, 50)
RESAMPLES = 20
BOOTSTRAPS = 2000
Rule = Literal["mean", "vote", "confident"]
_AT_ONCE = 2**22  # probabilities of a block: they are read several times while they are in the cache
_LEAST_MEMBERS = 32  # of a block, below which images are split instead


def scores(probabilities: Float[Tensor, "r n k"], labels: Int64[Tensor, " n"]) -> dict[str, Float[Tensor, " r"]]:
    """How good predicted probabilities are.

    Args:
        probabilities: Of each class; they sum to 1.
        labels: True classes.

    Returns:
        accuracy (share); nll, the mean negative log-likelihood in nats (probabilities below 1e-38 count as that);
        brier, the mean of Σ_k (p_k - y_k)²; ece, Σ_b (n_b / n) |acc_b - conf_b| over 15 bins (a, b] of the highest
        probability.

    >>> {name: value.item() for name, value in scores(torch.full((1, 2, 2), 0.5), torch.tensor([0, 1])).items()}
    {'accuracy': 0.5, 'nll': 0.693..., 'brier': 0.5, 'ece': 0.0}
    """
    confidence, predicted = probabilities.max(2)
    right = (predicted == labels).float()
    true = probabilities.gather(2, labels.expand(len(probabilities), -1)[..., None])[..., 0]
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gaps = torch.zeros(len(probabilities), BINS).scatter_add_(1, bins, right - confidence)
    return {
        "accuracy": right.mean(1),
        "nll": -true.clamp(min=torch.finfo(true.dtype).tiny).log().mean(1),
        "brier": (probabilities.square().sum(2) - 2 * true + 1).mean(1),
        "ece": gaps.abs().sum(1) / len(labels),
    }


def ensemble_curve(
    probabilities: Float[Tensor, "m n k"],
    labels: Int64[Tensor, " n"],
    *,
    generator: torch.Generator,
    members: Sequence[int] = MEMBERS,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """Scores of mean-softmax ensembles of more and more members, from probabilities in memory.

    Args:
        probabilities: Of the networks to choose members from.
        labels: True classes.
        generator: Chooses the members.
        members: Sizes of the ensembles; those above the number of networks are left out.
        resamples: Ensembles of distinct members that are averaged at each size; a size of 1 takes every network once,
            and one of all networks is a single ensemble.

    Returns:
        A row a size: members, accuracy, nll, brier, ece.

    Raises:
        ConfigError: There is no network, or a size or the number of resamples is below 1.

    >>> networks = torch.rand(3, 8, 4).softmax(2)
    >>> ensemble_curve(networks, torch.arange(8) % 4, generator=torch.Generator())["members"].to_list()
    [1, 2]
    """
    flat = probabilities.flatten(1)
    mixtures = {
        size: scores((shares @ flat).unflatten(1, probabilities.shape[1:]), labels)
        for size, shares in _member_shares(len(probabilities), members, resamples, generator).items()
    }
    return _curve(mixtures, scores(probabilities, labels) if 1 in members else None)


@dataclass(frozen=True, kw_only=True)
class Combined:
    """What the members of an ensemble say about some images."""

    members: int
    mean: Float[Tensor, "n k"]
    """Mean of the members' probabilities."""
    votes: Int64[Tensor, "n k"]
    """Members whose most probable class it is."""
    confident: Float[Tensor, "n k"]
    """Probabilities of the member with the highest one, for each image."""

    @property
    def disagreement(self) -> float:
        """Share of images on which two members differ, over all pairs; zero for a single member."""
        agreeing = (self.votes * (self.votes - 1)).sum(1).double().mean()
        pairs = self.members * (self.members - 1)
        return 1 - float(agreeing) / pairs if pairs else 0.0

    def right(self, labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Share of the members that are right about each image."""
        return self.votes.gather(1, labels[:, None])[:, 0].float() / self.members


@dataclass(frozen=True)
class Ensemble:
    """Networks that answer together.

    >>> from weightspace.networks import MLP
    >>> ensemble = Ensemble.of_rows(torch.randn(50, 1060), MLP())
    >>> ensemble.predict(torch.randn(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    zoo: Zoo
    """Its members."""
    temperature: float = 1.0
    """Of the mean of probabilities, see `calibrated`."""

    def __post_init__(self):
        if not len(self.zoo):
            raise ConfigError(f"an ensemble needs at least 1 network, and {self.zoo!r} has none")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "m p"], network: Network) -> "Ensemble":
        """An ensemble of weights that belong to no zoo.

        Raises:
            ZooError: The rows do not fit the network.
        """
        table = pl.DataFrame({"model": [f"member-{i}" for i in range(len(rows))], "step": [0] * len(rows)})
        header = {"name": "ensemble", "network": networks.to_json(network)}
        return cls(Zoo.in_memory(rows, Layout.of(network.build()), table, header))

    def __len__(self) -> int:
        """Number of members."""
        return len(self.zoo)

    def combine(self, images: Float[Tensor, "n c h w"]) -> Combined:
        """Sums over all members, whatever their number.

        Raises:
            DatasetError: The images have another shape than the networks'.
        """
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        done = None
        for place, _, probabilities in self._blocks(images):
            n, k = probabilities.shape[1:]
            if place != done:
                parts.append(
                    (torch.zeros(n, k), torch.zeros(n * k, dtype=torch.int64), torch.zeros(n, k), torch.zeros(n))
                )
                done = place
            mean, votes, confident, highest = parts[-1]
            mean += probabilities.sum(0) / len(self)
            confidence, predicted = probabilities.max(2)
            votes += (predicted + k * torch.arange(n)).flatten().bincount(minlength=n * k)
            block_highest, member = confidence.max(0)
            better = block_highest > highest
            confident[better] = probabilities[member[better], better.nonzero()[:, 0]]
            torch.maximum(highest, block_highest, out=highest)
        mean, votes, confident, _ = (torch.cat(part) for part in zip(*parts, strict=True))
        return Combined(members=len(self), mean=mean, votes=votes.reshape(mean.shape), confident=confident)

    def predict(self, images: Float[Tensor, "n c h w"], rule: Rule = "mean") -> Float[Tensor, "n k"]:
        """Probabilities of each class.

        Args:
            rule: `mean` of the members' probabilities (at the ensemble's temperature); `vote`: shares of members whose
                most probable class it is; `confident`: of the member that is surest about the image.

        Raises:
            DatasetError: The images have another shape than the networks'.
            UnknownName: There is no such rule.
        """
        return self._by_rule(self.combine(images), rule)

    def calibrated(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> "Ensemble":
        """The ensemble at the temperature with the highest likelihood of some labels, which must not be test labels."""
        mean = self.combine(images).mean
        return replace(self, temperature=best_temperature(mean, labels))

    def selected(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], members: int = 20) -> "Ensemble":
        """A small ensemble: the member that improves the mean's NLL most, one after the other (Caruana et al., 2004).

        Args:
            images: Validation images: the labels choose the members.
            labels: Their classes.
            members: Most that are chosen; fewer when no further one improves.

        Returns:
            An ensemble of distinct members, in the order of their choice.

        Raises:
            ConfigError: `members` is below 1.
        """
        if members < 1:
            raise ConfigError(f"a selection needs at least 1 member, got {members}")
        true = torch.empty(len(self), len(labels))  # all that the likelihood of a mean needs of a member
        for place, block, probabilities in self._blocks(images):
            index = labels[place].expand(len(probabilities), -1)[..., None]
            true[block, place] = probabilities.gather(2, index)[..., 0]
        chosen: list[int] = []
        total, best = torch.zeros(len(labels)), torch.tensor(-torch.inf)
        while len(chosen) < min(members, len(self)):
            mean = (total + true) / (len(chosen) + 1)
            likelihood = mean.clamp(min=torch.finfo(mean.dtype).tiny).log().mean(1)
            likelihood[chosen] = -torch.inf
            if likelihood.max() <= best:
                break
            best, chosen = likelihood.max(), [*chosen, int(likelihood.argmax())]
            total += true[chosen[-1]]
        return Ensemble(self.zoo.take(chosen))

    def curve(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        *,
        generator: torch.Generator,
        members: Sequence[int] = MEMBERS,
        resamples: int = RESAMPLES,
    ) -> pl.DataFrame:
        """Scores of ensembles of more and more members, as `ensemble_curve`, without keeping their probabilities."""
        shares = _member_shares(len(self), members, resamples, generator)
        stacked = torch.cat([torch.zeros(0, len(self)), *shares.values()])
        mixed: Tensor | None = None
        for place, block, probabilities in self._blocks(images):
            if mixed is None:
                mixed = torch.zeros(len(stacked), len(labels), probabilities.shape[2])
            mixed[:, place] += torch.einsum("rm,mnk->rnk", stacked[:, block], probabilities)
        assert mixed is not None, "an ensemble has members"
        parts = mixed.split([len(part) for part in shares.values()])
        mixtures = {size: scores(part, labels) for size, part in zip(shares, parts, strict=True)}
        return _curve(mixtures, self.member_scores(images, labels) if 1 in members else None)

    def member_scores(
        self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
    ) -> dict[str, Float[Tensor, " m"]]:
        """Scores of every member alone, see `scores`."""
        blocks = [scores(population_probabilities(self.zoo.take(block), images), labels)
                  for block in torch.arange(len(self)).split(self._size(images))]  # fmt: skip
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def evaluate(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> pl.DataFrame:
        """A row for the mean of single members and one for each rule: accuracy, nll, brier, ece.

        The NLL of votes is left out: classes without a vote have probability zero.
        """
        combined = self.combine(images)
        rows = [{"rule": "single"} | {name: float(v.mean()) for name, v in self.member_scores(images, labels).items()}]
        for rule in get_args(Rule):
            found = scores(self._by_rule(combined, rule)[None], labels)
            rows.append({"rule": rule} | {name: float(value) for name, value in found.items()})
        return pl.DataFrame(rows).with_columns(
            nll=pl.when(pl.col("rule") != "vote").then("nll"), members=pl.lit(len(self))
        )

    def outlier_auroc(self, images: Float[Tensor, "n c h w"], outliers: Float[Tensor, "o c h w"]) -> float:
        """How well the entropy of the mean tells images of another kind from the known kind: area under the ROC curve.

        0.5 is chance, 1 a perfect separation.
        """
        uncertain = [predictive_entropy(self.predict(some)) for some in (images, outliers)]
        known = np.repeat([0, 1], [len(images), len(outliers)])
        return float(roc_auc_score(known, torch.cat(uncertain).numpy()))

    def _by_rule(self, combined: Combined, rule: str) -> Float[Tensor, "n k"]:
        if rule == "mean":
            return tempered(combined.mean, self.temperature)
        if rule == "vote":
            return combined.votes / combined.members
        if rule == "confident":
            return combined.confident
        raise unknown_name("rule", rule, get_args(Rule))

    def _size(self, images: Tensor) -> int:
        """Members of a block."""
        return max(_LEAST_MEMBERS, _AT_ONCE // max(1, len(images) * self._classes(images)))

    def _classes(self, images: Tensor) -> int:
        network, _ = next(by_activation(self.zoo))
        return as_classifier(network, images).classes

    def _blocks(self, images: Tensor) -> Iterator[tuple[slice, slice, Float[Tensor, "m n k"]]]:
        """Probabilities of some members on some images, and which these are; all members of an image in a row."""
        n = max(1, _AT_ONCE // (_LEAST_MEMBERS * self._classes(images)))
        for first in range(0, len(images), n):
            some, size = images[first : first + n], self._size(images[first : first + n])
            for member in range(0, len(self), size):
                last = min(member + size, len(self))
                probabilities = population_probabilities(self.zoo.take(range(member, last)), some)
                yield slice(first, first + len(some)), slice(member, last), probabilities


def paired_bootstrap(
    first: Float[Tensor, " n"], second: Float[Tensor, " n"], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two measurements of the same images, with a 95 % interval over images.

    Args:
        first: For example whether an ensemble is right.
        second: For example the share of its members that are.
        seed: Of the 2000 resamples.

    Returns:
        Difference, lower and upper end.

    >>> paired_bootstrap(torch.ones(50), torch.ones(50))
    (0.0, 0.0, 0.0)
    """
    difference = (first.double() - second.double()).numpy()
    found = stats.bootstrap(
        (difference,), np.mean, n_resamples=BOOTSTRAPS, method="percentile", random_state=np.random.default_rng(seed)
    )
    return float(difference.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def _member_shares(
    count: int, members: Sequence[int], resamples: int, generator: torch.Generator
) -> dict[int, Float[Tensor, "r m"]]:
    """For each size above 1, the share of every network in some random ensembles of that size."""
    if not count or resamples < 1 or any(size < 1 for size in members):
        raise ConfigError(
            f"an ensemble needs at least 1 network, member and resample, got {count} networks, {resamples} resamples "
            f"and {list(members)} members"
        )
    shares = {}
    for size in sorted({size for size in members if 1 < size <= count}):
        if size == count:
            chosen = torch.arange(count)[None]
        else:
            chosen = torch.rand(resamples, count, generator=generator).topk(size, dim=1).indices
        shares[size] = torch.zeros(len(chosen), count).scatter_(1, chosen, 1 / size)
    return shares


def _curve(mixtures: dict[int, dict[str, Tensor]], single: dict[str, Tensor] | None) -> pl.DataFrame:
    found = ({1: single} if single else {}) | mixtures
    return pl.DataFrame(
        [{"members": size} | {name: float(value.mean()) for name, value in of.items()} for size, of in found.items()]
    )
