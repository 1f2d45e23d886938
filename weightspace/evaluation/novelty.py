"""Are generated networks new, or copies and averages of the training networks? ("Evaluating generators", sections 3-4,
6 and 10.)

Distances are L2 on rows that are aligned already. Rows can be given in several frames, that is with their hidden units
in several orders, of which the nearest counts: every frame bounds the distance over all orders from above, and weight
matching alone can put two almost equal networks into different orders. Behaviour is compared by wrong predictions.
Every measure has its meaning only beside that of held-out networks. Checkpoints of one run are near each other for a
trivial reason, so that comparisons within the training zoo leave out those of the same run.

Axes: f frame, m network, q reference network, p parameter, n image, r run, k class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError

Runs = tuple[Int64[Tensor, " m"], Int64[Tensor, " q"]]
"""Numbers of the runs that networks and reference networks belong to."""

_BLOCK_VALUES = 2**24  # entries of a distance matrix at a time: 64 MB


def nearest(
    rows: Float[Tensor, "*f m p"], reference: Float[Tensor, "*f q p"], exclude: Runs | None = None
) -> tuple[Float[Tensor, " m"], Int64[Tensor, " m"]]:
    """Distance to the nearest reference network, d(g) of equation 2, and which one it is.

    Args:
        rows: Aligned networks `[m, p]`, or `[f, m, p]` in several frames.
        reference: Networks aligned to the same reference, in the same frames.
        exclude: Leave out reference networks of the same run: run numbers of both.

    Returns:
        Euclidean distances, infinite where no reference network is left, and positions in `reference`.

    Raises:
        ConfigError: There is no reference network.

    >>> nearest(torch.zeros(1, 4), torch.tensor([[3.0] * 4, [1.0] * 4]))
    (tensor([2.]), tensor([1]))
    """
    if not reference.shape[-2]:
        raise ConfigError("the distance to the nearest network needs at least one reference network, got none")
    rows, reference = rows.reshape(-1, *rows.shape[-2:]), reference.reshape(-1, *reference.shape[-2:])
    distances, places = torch.empty(rows.shape[1]), torch.empty(rows.shape[1], dtype=torch.int64)
    for block in torch.arange(rows.shape[1]).split(max(1, _BLOCK_VALUES // reference.shape[:2].numel())):
        # differences, not products: an exact copy must have distance 0, which |a|² + |b|² - 2ab misses by 1e-3
        pairs = torch.cdist(rows[:, block], reference, compute_mode="donot_use_mm_for_euclid_dist").amin(0)
        if exclude is not None:
            pairs[exclude[0][block][:, None] == exclude[1]] = inf
        distances[block], places[block] = pairs.min(dim=1)
    return distances, places


def usual_distance(rows: Float[Tensor, "*f m p"], runs: Int64[Tensor, " m"]) -> float:
    """τ of equation 2: the median distance of a network to the nearest one of another run.

    Raises:
        ConfigError: There is a single run.

    >>> usual_distance(torch.tensor([[0.0], [1.0], [1.5], [5.0]]), torch.tensor([0, 1, 1, 2]))  # of 1, 1, 1.5, 3.5
    1.25
    """
    if len(runs.unique()) < 2:
        raise ConfigError("the usual distance between training networks needs at least 2 runs, got 1")
    distances, _ = nearest(rows, rows, (runs, runs))
    return float(distances.double().quantile(0.5))


def copying_statistic(generated: Float[Tensor, " m"], heldout: Float[Tensor, " q"]) -> float:
    """Z_U of equation 3 (Meehan et al. 2020): far below 0 if generated networks lie nearer to T than held-out ones.

    Args:
        generated: Distances of the generated networks to the nearest training network.
        heldout: The same of held-out networks.

    Returns:
        Mann-Whitney's U, ties counted half, in standard deviations; between ±√(3mq / (m + q + 1)).

    Raises:
        ConfigError: One of them is empty.

    >>> copying_statistic(torch.zeros(200), torch.ones(200))  # all nearer: the lowest value possible
    -17.29...
    """
    m, q = len(generated), len(heldout)
    if not m or not q:
        raise ConfigError(f"the copying statistic needs generated and held-out networks, got {m} and {q}")
    ordered = heldout.sort().values
    below, up_to = (torch.searchsorted(ordered, generated, right=right).sum().item() for right in (False, True))
    u = (below + up_to) / 2
    return (u - m * q / 2) / sqrt(m * q * (m + q + 1) / 12)


def error_iou(wrong: Bool[Tensor, "m n"], reference: Bool[Tensor, "q n"]) -> Float[Tensor, "m q"]:
    """Images that both networks get wrong, of those that either does; 1 if neither makes a mistake (equation 1).

    >>> error_iou(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False], [False, False, True]]))
    tensor([[0.5000, 0.0000]])
    """
    both = wrong.float() @ reference.float().T
    either = wrong.sum(1)[:, None] + reference.sum(1) - both
    return torch.where(either > 0, both / either, 1.0)


def max_iou(
    wrong: Bool[Tensor, "m n"], reference: Bool[Tensor, "q n"], exclude: Runs | None = None
) -> Float[Tensor, " m"]:
    """Highest error IoU with any reference network, equation 1; -1 where none is left.

    Args:
        wrong: Which images each network gets wrong.
        reference: The same for the reference networks.
        exclude: Leave out reference networks of the same run: run numbers of both.

    >>> max_iou(torch.tensor([[True, True]]), torch.tensor([[True, False], [True, True]]))
    tensor([1.])
    """
    iou = error_iou(wrong, reference)
    if exclude is not None:
        iou[exclude[0][:, None] == exclude[1]] = -1.0
    return iou.amax(1)


def pair_iou(wrong: Bool[Tensor, "m n"], runs: Int64[Tensor, " m"]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the error IoU over all pairs of networks of different runs; `None` without any.

    >>> pair_iou(torch.tensor([[True, False], [True, True], [True, True]]), torch.tensor([0, 1, 2]))
    (0.666..., 0.288...)
    """
    pairs = (runs[:, None] != runs).triu(diagonal=1)
    values = error_iou(wrong, wrong)[pairs].double()
    return float(values.mean()) if len(values) else None, float(values.std()) if len(values) > 1 else None


def mean_disagreement(predictions: Int64[Tensor, "m n"], runs: Int64[Tensor, " m"]) -> float:
    """Share of images on which two networks of different runs differ, on average over all such pairs.

    Raises:
        ConfigError: There is a single run.

    >>> mean_disagreement(torch.tensor([[0, 0], [0, 1], [0, 1]]), torch.tensor([0, 1, 1]))
    0.5
    """
    names, run = runs.unique(return_inverse=True)
    if len(names) < 2:
        raise ConfigError("the mean disagreement of training networks needs at least 2 runs, got 1")
    members = run.bincount()
    pairs = len(runs) ** 2 - int(members.square().sum())
    # votes of each run for each class; ordered pairs that agree are C² over all, less c² within each run
    votes = torch.zeros(len(names), predictions.shape[1], int(predictions.max()) + 1, dtype=torch.float64)
    votes.index_put_((run[:, None], torch.arange(predictions.shape[1]), predictions), votes.new_ones(()), True)
    agree = votes.sum(0).square().sum() - votes.square().sum()
    return 1 - float(agree) / (pairs * predictions.shape[1])


def spread_ratio(rows: Float[Tensor, "m p"], training: Float[Tensor, "q p"]) -> float | None:
    """Median over parameters of the networks' standard deviation, in that of the training networks; below .5: collapse.

    Parameters that are the same in all training networks are left out; `None` for a single network.

    >>> spread_ratio(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    0.5
    """
    if len(rows) < 2 or len(training) < 2:
        return None
    scale = training.std(0)
    ratios = (rows.std(0) / scale)[scale > 0]
    return float(ratios.double().quantile(0.5)) if len(ratios) else None


def novel_and_performant(
    ratio: Float[Tensor, " m"], accuracy: Float[Tensor, " m"], *, least_accuracy: float, least_ratio: float
) -> float:
    """Share of networks with d / τ above `least_ratio` and at least the accuracy α (section 4).

    Args:
        ratio: Distance to the nearest training network in usual distances, d / τ.
        accuracy: Share of test images that each network gets right.
        least_accuracy: α, fixed from held-out networks.
        least_ratio: c.

    >>> novel_and_performant(torch.tensor([0.2, 1.1]), torch.tensor([0.9, 0.9]), least_accuracy=0.8, least_ratio=1.0)
    0.5
    """
    return float(((accuracy >= least_accuracy) & (ratio > least_ratio)).double().mean())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a verdict is derived from, of one source of networks."""

    accuracy: float
    """Mean."""
    distance_ratio: float
    """Median d / τ."""
    z_u: float
    max_iou: float
    """Median."""
    pair_iou: float | None
    sd_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the measures of a source are compared with."""

    least_accuracy: float
    """Low quantile of the accuracies of held-out networks, α."""
    high_max_iou: float
    """High quantile of the maxIoU of held-out networks."""
    pair_iou: float | None
    """Mean error IoU of two training networks."""
    pair_iou_std: float | None
    noise: Sequence[tuple[float, float]]
    """Mean accuracy and median d / τ of each noise level."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Thresholds of the red flags of section 10; conventions, not laws."""

    copy_distance: float = 0.3
    """A median d / τ below this is a replica."""
    copy_z: float = -5.0
    """So is a Z_U below this, together with a median maxIoU above that of most held-out networks."""
    iou_quantile: float = 0.95
    """Quantile of the maxIoU of held-out networks for that."""
    least_spread: float = 0.5
    """A spread ratio below this is like averages."""
    iou_deviations: float = 2.0
    """So is a mean pair IoU above that of training networks by so many of its standard deviations over pairs."""
    accuracy_quantile: float = 0.05
    """Quantile of held-out accuracies that is α: a lower mean is inaccurate."""

    def __post_init__(self):
        for name in ("iou_quantile", "accuracy_quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")

    def flags(self, found: Measured, against: Reference) -> str:
        """Red flags of a source, joined by commas, or "no red flag found" (which does not say "novel").

        >>> fine = Measured(accuracy=0.9, distance_ratio=1.0, z_u=0.0, max_iou=0.5, pair_iou=0.4, sd_ratio=1.0)
        >>> zoo = Reference(least_accuracy=0.8, high_max_iou=0.7, pair_iou=0.4, pair_iou_std=0.1, noise=[(0.95, 1.1)])
        >>> Verdicts().flags(fine, zoo)
        'below noise curve'
        """
        copied = found.z_u < self.copy_z and found.max_iou > against.high_max_iou
        alike = False
        if found.pair_iou is not None and against.pair_iou is not None:
            margin = self.iou_deviations * (against.pair_iou_std or 0.0)
            alike = found.pair_iou > against.pair_iou + margin
        flags = {
            "replica": found.distance_ratio < self.copy_distance or copied,
            "average-like": (found.sd_ratio is not None and found.sd_ratio < self.least_spread) or alike,
            "below noise curve": any(a > found.accuracy and d > found.distance_ratio for a, d in against.noise),
            "inaccurate": found.accuracy < against.least_accuracy,
        }
        return ", ".join(name for name, raised in flags.items() if raised) or "no red flag found"
