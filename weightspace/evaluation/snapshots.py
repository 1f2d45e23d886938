"""Ensembles from one training run: snapshots (Huang et al., 2017) and SWAG (Maddox et al., 2019).

References for ensembles of generated networks ("Evaluating generators", section 6): they train as well, but a single
run gives many members. All runs of a zoo go on side by side.

Axes: m run, s sample, k kept deviation, p parameter.
"""

from dataclasses import dataclass, field

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError
from weightspace.generators.batch_norm import conditioned
from weightspace.networks import streams
from weightspace.zoo import Zoo, behaviour

RANK = 20
"""Deviations of SWAG, as published."""
_DIAGONAL, _LOW_RANK = 2, 3  # streams of random numbers beside those that training takes


def snapshots(
    starts: Zoo,
    data: Dataset,
    *,
    cycles: int,
    epochs_per_cycle: int,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Zoo:
    """Train runs with a learning rate that falls to 0 again and again, and keep each at every minimum.

    SGD with α(t) = α0 / 2 · (cos(π mod(t - 1, ⌈T/M⌉) / ⌈T/M⌉) + 1) at step t of T in M cycles (equation 2); a step of
    α0 leaves the minimum. Momentum stays through the restarts.

    Args:
        starts: Where the runs begin, random initialisations or trained networks, one checkpoint a model.
        cycles: M, snapshots of each run.
        learning_rate: α0; larger than in usual training, 0.1 to 0.2 in the paper.
        seed: Of the batches, the same for equal positions in any zoo.

    Returns:
        A zoo in memory with a row for each cycle and run: `step` is the epoch at its end, so that the snapshots of a
        run are the checkpoints of its model. Running statistics of batch normalisation are those of training.

    Raises:
        ZooError: There are no starts, or several checkpoints of one model.
        ConfigError: There is no cycle or no epoch in it, or the batch is larger than the data.
        DatasetError: The images have another shape than those the zoo was trained on.

    >>> from weightspace import datasets
    >>> from weightspace.networks import MLP, Layout, to_json
    >>> layout, table = Layout.of(MLP().build()), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> start = Zoo.in_memory(torch.randn(1, layout.parameters), layout, table, {"network": to_json(MLP())})
    >>> digits = datasets.load("digits", train_limit=64)
    >>> snapshots(start, digits, cycles=2, epochs_per_cycle=3, learning_rate=0.1).table["step"].to_list()
    [3, 6]
    """
    if cycles < 1 or epochs_per_cycle < 1:
        raise ConfigError(f"snapshots need a cycle of an epoch at least, got {cycles} cycles of {epochs_per_cycle}")
    minima = [epochs_per_cycle * (cycle + 1) for cycle in range(cycles)]
    stages = list(
        behaviour.training_stages(
            starts, data, epochs=minima[-1], checkpoints=minima, learning_rate=learning_rate, batch_size=batch_size,
            optimiser="sgd", schedule="cosine", cycles=cycles, momentum=momentum, weight_decay=weight_decay, seed=seed,
            label="training snapshots",
        )
    )  # fmt: skip
    runs = starts.table.select("model", pl.col("^config\\..*$"))
    table = pl.concat([runs.with_columns(step=pl.lit(int(epoch), pl.Int64)) for epoch, _ in stages])
    return Zoo.in_memory(torch.cat([rows for _, rows in stages]), starts.layout, table, starts.header)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What SWAG keeps of the epochs of each run (algorithm 1): no more memory for more epochs.

    >>> epochs = torch.tensor([[[1.0]], [[3.0]], [[8.0]]])
    >>> seen = Trajectory()
    >>> for rows in epochs:
    ...     seen = seen.after(rows, rank=2)
    >>> seen.mean.item(), round(seen.variance.item(), 3), seen.deviations.flatten().tolist()
    (4.0, 8.667, [1.0, 4.0])
    """

    epochs: int = 0
    """How many went into the means."""
    mean: Float[Tensor, "m p"] = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """θ̄, the weights of stochastic weight averaging, in double precision: variances are small differences."""
    square: Float[Tensor, "m p"] = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """Mean of θ²."""
    deviations: Float[Tensor, "k m p"] = field(default_factory=lambda: torch.zeros(0))
    """D: the last epochs, each less the mean up to it."""

    @property
    def variance(self) -> Float[Tensor, "m p"]:
        """Σ_diag = mean(θ²) - θ̄², at least 0."""
        return (self.square - self.mean.square()).clamp(min=0)

    def after(self, rows: Float[Tensor, "m p"], *, rank: int = RANK) -> "Trajectory":
        """With one more epoch of all runs.

        Args:
            rank: K, deviations to keep.
        """
        new = rows.double()
        mean = (self.epochs * self.mean + new) / (self.epochs + 1)
        square = (self.epochs * self.square + new.square()) / (self.epochs + 1)
        kept = torch.cat([self.deviations, (new - mean)[None]])[-rank:] if self.epochs else (new - mean)[None]
        return Trajectory(epochs=self.epochs + 1, mean=mean, square=square, deviations=kept)

    def sample(self, samples: int, seeds: Int64[Tensor, " m"]) -> Float[Tensor, "s m p"]:
        """θ = θ̄ + Σ_diag^{1/2} z₁ / √2 + D z₂ / √(2 (K - 1)) of each run (equation 1), K the deviations that there are.

        Args:
            seeds: Of each run's random numbers.

        Raises:
            ConfigError: There are fewer than two epochs.
        """
        if self.epochs < 2 or len(self.deviations) < 2:
            raise ConfigError(f"SWAG needs at least 2 epochs and a rank of 2, got {self.epochs} epochs")
        m, p = self.mean.shape
        rank = len(self.deviations)
        z1 = streams.normal(seeds, _DIAGONAL, samples * p).double().view(m, samples, p)
        z2 = streams.normal(seeds, _LOW_RANK, samples * rank).double().view(m, samples, rank)
        diagonal = self.variance.sqrt()[:, None] * z1 / 2**0.5
        low_rank = torch.einsum("msk,kmp->msp", z2, self.deviations) / (2 * (rank - 1)) ** 0.5
        return (self.mean[:, None] + diagonal + low_rank).transpose(0, 1).float()


def swag(
    starts: Zoo,
    data: Dataset,
    *,
    samples: int,
    epochs: int,
    learning_rate: float,
    burn_in: int = 0,
    rank: int = RANK,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Zoo:
    """Draw networks from a Gaussian along the path of SGD with a constant learning rate, for each run.

    Its mean and covariance are those of the weights after each epoch (`Trajectory`). Batch normalisation gets the
    running statistics of training images, as neither averages nor samples have any of their own.

    Args:
        starts: Where the runs begin, one checkpoint a model; trained networks, or random ones with a burn-in.
        samples: Networks to draw from each run.
        epochs: Epochs that count, one look at each.
        burn_in: Epochs before those, with the same learning rate.
        rank: K, the last deviations that make the low-rank part of the covariance.
        seed: Of the batches and of the draws.

    Returns:
        A zoo in memory, the first sample of all runs before the second: samples of a run are the checkpoints of its
        model, so that a split keeps them together, and `step` is the number of the sample.

    Raises:
        ZooError: There are no starts, or several checkpoints of one model.
        ConfigError: There is no sample, fewer than two epochs or deviations, or the batch is larger than the data.
        DatasetError: The images have another shape than those the zoo was trained on.

    >>> from weightspace import datasets
    >>> from weightspace.networks import MLP, Layout, to_json
    >>> layout, table = Layout.of(MLP().build()), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> start = Zoo.in_memory(torch.randn(1, layout.parameters), layout, table, {"network": to_json(MLP())})
    >>> swag(start, datasets.load("digits", train_limit=64), samples=2, epochs=3, learning_rate=0.01).table.height
    2
    """
    if samples < 1 or epochs < 2 or rank < 2 or burn_in < 0:
        raise ConfigError(
            f"SWAG needs a sample, 2 epochs after a burn-in of at least 0 and a rank of 2, got {samples} samples, "
            f"{epochs} epochs after {burn_in} and a rank of {rank}"
        )
    total, seen = burn_in + epochs, Trajectory()
    for _, rows in behaviour.training_stages(
        starts, data, epochs=total, checkpoints=range(burn_in + 1, total + 1), learning_rate=learning_rate,
        batch_size=batch_size, optimiser="sgd", momentum=momentum, weight_decay=weight_decay, seed=seed,
        label="training for SWAG",
    ):  # fmt: skip
        seen = seen.after(rows, rank=rank)
    drawn = seen.sample(samples, torch.arange(len(starts)) + (seed << 32))
    runs = starts.table.select("model", pl.col("^config\\..*$"))
    table = pl.concat([runs.with_columns(step=pl.lit(number, pl.Int64)) for number in range(samples)])
    return conditioned(Zoo.in_memory(drawn.flatten(0, 1), starts.layout, table, starts.header), data, seed)
