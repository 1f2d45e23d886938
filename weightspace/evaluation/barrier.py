"""Loss barriers: what happens on the straight line between two networks ("Evaluating generators", section 8).

    B = max over λ of L((1-λ) a + λ b) - (1-λ) L(a) - λ L(b)

A barrier near zero says that two networks lie in one basin (Frankle et al., 2020), which two trainings reach after
their hidden units are aligned, if they are wide enough (Ainsworth et al., 2023). All points of the line are evaluated
as one population.

Axes: p parameter, n image, l point of the line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError
from weightspace.networks import Network
from weightspace.networks.layout import Layout
from weightspace.networks.population import population_metrics
from weightspace.symmetry import (
    PermutationGroup,
    activation_matching,
    align,
    permuted,
    repaired,
)

MATCHING_IMAGES = 1000
"""Training images on which activations are compared and repaired; the published least."""


@dataclass(frozen=True)
class Barrier:
    """Loss and accuracy along a line, and the barrier between its ends."""

    shares: Float[Tensor, " l"]
    """How far along the line each point is; the first is 0, the last 1."""
    loss: Float[Tensor, " l"]
    """Mean cross-entropy in nats."""
    accuracy: Float[Tensor, " l"]

    @property
    def height(self) -> float:
        """The largest loss above the line between the losses of the ends; never below zero, its value at the ends."""
        return float((self.loss - torch.lerp(self.loss[0], self.loss[-1], self.shares)).max())

    @property
    def accuracy_height(self) -> float:
        """The same for the error: the largest accuracy below the line between the ends."""
        return float((torch.lerp(self.accuracy[0], self.accuracy[-1], self.shares) - self.accuracy).max())


def barrier(
    network: Network,
    first: Float[Tensor, " p"],
    second: Float[Tensor, " p"],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    points: int = 25,
    repair: Float[Tensor, "r c h w"] | None = None,
    groups: Sequence[PermutationGroup] = (),
) -> Barrier:
    """Loss and accuracy of the networks between two others.

    Args:
        first: A network.
        second: Another, aligned to the first or not.
        images: Where loss and accuracy are measured.
        labels: Their classes.
        points: Networks on the line, both ends included.
        repair: Training images on which the statistics of activations between the ends are mended by REPAIR; the ends
            stay as they are.
        groups: Hidden units, for REPAIR.
    Raises:
        ConfigError: There are fewer than three points.
        DatasetError: The images have another shape than the network's.
        LayoutError: REPAIR finds a hidden layer without bias and batch norm.

    >>> from weightspace.networks import MLP
    >>> row, images = torch.randn(1060), torch.zeros(5, 1, 8, 8)
    >>> barrier(MLP(), row, row, images, torch.arange(5)).height
    0.0
    """
    if points < 3:
        raise ConfigError(f"a barrier needs at least 3 points, both ends included, got {points}")
    shares = torch.linspace(0, 1, points)
    rows = torch.lerp(first, second, shares[:, None])
    if repair is not None:
        ends = torch.stack([first, second])
        rows[1:-1] = repaired(network.build(), rows[1:-1], ends, shares[1:-1], groups, repair)
    loss, accuracy = population_metrics(network, rows, images, labels)
    return Barrier(shares, loss, accuracy)


def alignments(
    network: Network,
    first: Float[Tensor, " p"],
    second: Float[Tensor, " p"],
    groups: Sequence[PermutationGroup],
    data: Dataset,
    *,
    seed: int = 0,
) -> dict[str, Float[Tensor, " p"]]:
    """The second network as it is, and aligned to the first by weights and by activations on training images.

    Args:
        groups: Groups of the network.
        seed: Order of the groups in weight matching.

    >>> from weightspace import datasets
    >>> from weightspace.networks import MLP
    >>> from weightspace.symmetry import chain_groups
    >>> network, rows = MLP(), torch.randn(2, 1060)
    >>> groups = chain_groups(Layout.of(network.build()))
    >>> list(alignments(network, *rows, groups, datasets.load("digits")))
    ['none', 'weight matching', 'activation matching']
    """
    module = network.build()
    layout, row = Layout.of(module), second[None]
    images = data.train_images[:MATCHING_IMAGES]
    found = activation_matching(module, row, first, groups, images, measure="correlation")
    return {
        "none": second,
        "weight matching": align(row, first, layout, groups, torch.Generator().manual_seed(seed))[0],
        "activation matching": permuted(row, layout, groups, found)[0],
    }


def compare_barriers(
    network: Network,
    first: Float[Tensor, " p"],
    seconds: Mapping[str, Float[Tensor, " p"]],
    groups: Sequence[PermutationGroup],
    data: Dataset,
    *,
    points: int = 25,
    repair: bool = True,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Barriers between a network and several versions of another, with and without REPAIR, on training and test images.

    Args:
        seconds: The other network, by the name of its alignment.
        groups: Groups of the network.
        data: Images; as many training images are used as there are test images.
        points: Networks on the line.
        repair: Measure with REPAIR too.
    Returns:
        A row an alignment, REPAIR and part of the data: barrier in loss (nats) and in accuracy, lowest accuracy; and a
        row a point beside it: share, loss, accuracy.
    Raises:
        ConfigError: There are fewer than three points.
        LayoutError: REPAIR finds a hidden layer without bias and batch norm.
    """
    parts = {
        "train": (data.train_images[: len(data.test_images)], data.train_labels[: len(data.test_images)]),
        "test": (data.test_images, data.test_labels),
    }
    summary, curves = [], []
    for name, second in seconds.items():
        for mended in (False, True) if repair else (False,):
            given = data.train_images[:MATCHING_IMAGES] if mended else None
            for part, (images, labels) in parts.items():
                found = barrier(network, first, second, images, labels, points=points, repair=given, groups=groups)
                key = {"alignment": name, "repair": mended, "images": part}
                numbers = {"barrier": found.height, "accuracy_barrier": found.accuracy_height}
                summary.append(key | numbers | {"lowest_accuracy": float(found.accuracy.min())})
                curve = {"share": found.shares, "loss": found.loss, "accuracy": found.accuracy}
                curves.append(pl.DataFrame({n: v.double().numpy() for n, v in curve.items()}).select(
                    *(pl.lit(value).alias(column) for column, value in key.items()), pl.all()
                ))  # fmt: skip
    return pl.DataFrame(summary), pl.concat(curves)
