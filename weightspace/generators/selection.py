"""Samplers that look at what they draw: SANE's subsampled and bootstrapped draws (Schürholt et al., 2024, algorithm 3).

Both judge networks on validation images, never on test images, and say how many were drawn for those that were kept.
Networks with batch normalisation get running statistics of training images before they are judged.

Axes: n network kept, m network drawn, t token, z latent.
"""

from copy import copy
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError
from weightspace.generators.batch_norm import conditioned
from weightspace.generators.latent_sampler import LatentSampler
from weightspace.zoo import Zoo, behaviour

JUDGED = "metric.validation_accuracy"
"""Column of what networks were chosen by."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How much is drawn for each network that is kept.

    >>> SelectionConfig(candidates=5).rounds
    1
    """

    candidates: int = 5
    """Networks drawn in a round for each one that is kept; 5 is published."""
    rounds: int = 1
    """1 is subsampling. In each further round draws resemble the best of all rounds before (bootstrapping)."""

    def __post_init__(self):
        if self.candidates < 1 or self.rounds < 1:
            raise ConfigError(
                f"candidates and rounds of a selection must be at least 1, got {self.candidates} and {self.rounds}"
            )


class Selected:
    """The best of many draws on validation images, in one round or in several that learn from each other."""

    def __init__(self, sampler: LatentSampler, data: Dataset, config: SelectionConfig = SelectionConfig()):
        self.sampler, self.data, self.config = sampler, data, config
        self.history = pl.DataFrame()
        """Of the last `sample`, a row a round: round, drawn, and of the kept ones best and mean validation accuracy."""

    def fit(self, prompts: Zoo, seed: int = 0) -> "Selected":
        """Fit the sampler to prompts."""
        self.sampler.fit(prompts, seed)
        return self

    def sample(self, n: int, seed: int = 0) -> Zoo:
        """Draw networks and keep the best.

        The published bootstrap returns the first networks of its last round. Here the best of all rounds are kept, so
        that another round never makes the best worse.

        Returns:
            `n` networks in memory, best first, with `metric.validation_accuracy` and the `config.round` of each; the
            header tells how many were drawn.

        Raises:
            ConfigError: n is below 1, or the sampler was not fitted.
        """
        generator = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (self.config.rounds,), generator=generator).tolist()
        count = self.config.candidates * n
        sampler, kept, latents, history = copy(self.sampler), None, None, []
        for number, own in enumerate(seeds):
            if kept is not None and latents is not None:
                anchors = self._anchors(kept)
                sampler.condition(latents[anchors], kept.take(anchors), own)
            drawn, table = sampler.draw(count, own)
            made = sampler.networks(drawn, table.with_columns(**{"config.round": number}))
            made = self._judged(conditioned(made, self.data, seed))
            kept, latents = _best(kept, latents, made, drawn, n)
            judged = kept.table[JUDGED]
            history.append({"round": number, "drawn": count, "best": judged.max(), "mean": judged.mean()})
        assert kept is not None, "a selection has a round"
        self.history = pl.DataFrame(history)
        selection = {"candidates": count * self.config.rounds, "kept": n, "by": "validation accuracy"}
        name = f"{self.sampler.label}, {'best of draws' if self.config.rounds == 1 else 'bootstrapped'}"
        table = kept.table.drop("layout", "shard", "row")
        return Zoo.in_memory(kept.weights(), kept.layout, table, kept.header | {"name": name, "selection": selection})

    def _anchors(self, kept: Zoo) -> Int64[Tensor, " k"]:
        """Kept networks of activations that have enough of them to be drawn from."""
        places = [place for _, place in behaviour.by_activation(kept)]
        enough = [place for place in places if len(place) >= max(2, self.sampler.least)]
        return torch.cat(enough or places).sort().values

    def _judged(self, made: Zoo) -> Zoo:
        loss, accuracy = behaviour.metrics(made, self.data.validation_images, self.data.validation_labels)
        return made.with_columns(**{JUDGED: accuracy, "metric.validation_loss": loss})


def _best(
    kept: Zoo | None, latents: Float[Tensor, "k t z"] | None, made: Zoo, drawn: Float[Tensor, "m t z"], n: int
) -> tuple[Zoo, Float[Tensor, "n t z"]]:
    """The best of what was kept and what was drawn, best first, under new names."""
    weights, table = made.weights(), made.table
    if kept is not None and latents is not None:
        weights, drawn = torch.cat([kept.weights(), weights]), torch.cat([latents, drawn])
        table = pl.concat([kept.table, table], how="diagonal")
    order = table.select(pl.arg_sort_by(JUDGED, "metric.validation_loss", descending=[True, False])).to_series()[:n]
    chosen = table.drop("layout", "shard", "row")[order].with_columns(
        pl.Series("model", [f"generated-{i:04d}" for i in range(len(order))])
    )
    places = order.to_list()
    return Zoo.in_memory(weights[places], made.layout, chosen, made.header), drawn[places]
