"""Probabilities of networks and of their ensembles: accuracy, NLL, Brier, ECE ("Evaluating generators", section 6).

Members of an ensemble are averaged after the softmax.

Axes: m network, r network or ensemble, n image, k class, b bin.
"""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError

BINS = 15
"""Equal-width bins of the highest probability in the calibration error."""
MEMBERS = (1, 2, 5, 10, 20, 50)
RESAMPLES = 20


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
    """Scores of mean-softmax ensembles of more and more members.

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
    count = len(probabilities)
    if not count or resamples < 1 or any(size < 1 for size in members):
        raise ConfigError(
            f"an ensemble needs at least 1 network, member and resample, got {count} networks, {resamples} resamples "
            f"and {list(members)} members"
        )
    rows = []
    for size in sorted({size for size in members if size <= count}):
        if size == 1:
            chosen = torch.arange(count)[:, None]
        elif size == count:
            chosen = torch.arange(count)[None]
        else:
            chosen = torch.rand(resamples, count, generator=generator).topk(size, dim=1).indices
        shares = torch.zeros(len(chosen), count).scatter_(1, chosen, 1 / size)
        mean = (shares @ probabilities.flatten(1)).unflatten(1, probabilities.shape[1:])
        rows.append({"members": size} | {name: float(value.mean()) for name, value in scores(mean, labels).items()})
    return pl.DataFrame(rows)
