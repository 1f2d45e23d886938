"""What happens to weights before an encoder sees them: alignment to a reference and per-layer standardisation.

Fitted on training networks only, stored with the encoder, apart from its learned weights.

Axes: m network, p parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError, ZooError
from weightspace.networks import Layout
from weightspace.symmetry import align_runs, mean_reference
from weightspace.views.architecture import architecture_of
from weightspace.views.standardise import SharedScale, Standardisation
from weightspace.zoo import Zoo

Scale = Literal["layer", "fan_in", "global"]
REFERENCE_NETWORKS = 64  # the best training networks whose aligned mean is the reference


@dataclass(frozen=True)
class Preparation:
    """Align, then standardise; and back to the units of the weights."""

    layout: Layout
    reference: Float[Tensor, " p"] | None
    """Mean of aligned training networks, in the units of the weights; `None` leaves networks in their own order."""
    scale: Standardisation
    shared: SharedScale | None = None
    """Where the scale is one for all layouts: that scale."""

    @classmethod
    def fit(cls, train: Zoo, seed: int = 0, *, align: bool = True) -> "Preparation":
        """Reference and statistics of a training zoo.

        Args:
            seed: Order of the groups in alignment.
            align: Align to `training_reference`; otherwise weights are only standardised.

        Raises:
            LayoutError: The zoo mixes layouts, or as in `architecture_of`.
            ZooError: A checkpoint has NaN weights, or there is none.
        """
        return prepared([[train]], seed=seed, align=align)[0]

    def aligned(self, zoo: Zoo) -> Float[Tensor, "m p"]:
        """Rows aligned to the reference: every run by the permutation of its last checkpoint in the zoo.

        Raises:
            LayoutError: The zoo has another layout.
        """
        if zoo.layout != self.layout:
            raise other_layout(zoo.layout, self.layout)
        return zoo.weights() if self.reference is None else aligned_rows(zoo, self.reference)

    def apply(self, zoo: Zoo) -> Float[Tensor, "m p"]:
        """Aligned, standardised rows."""
        zoo.require_finite("encoding")
        return self.scale.apply(self.aligned(zoo))

    def invert(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Standardised rows in the units of the weights; they stay aligned."""
        return self.scale.invert(rows)


def other_layout(layout: Layout, fitted: Layout) -> LayoutError:
    """The error for networks of another layout than an encoder was fitted on."""
    return LayoutError(
        f"the zoo has {layout.parameters} parameters in layout {layout.digest}, the encoder was fitted on "
        f"{fitted.parameters} in {fitted.digest}; choose a zoo of the same architecture"
    )


def of_one_layout(zoos: Zoo | Sequence[Zoo]) -> list[list[Zoo]]:
    """The checkpoints by layout: for each layout the parts of all zoos that have it, in order of appearance.

    >>> table = pl.DataFrame({"model": ["a"], "step": [0]})
    >>> layouts = [Layout.of(torch.nn.Linear(1, n)) for n in (1, 2)]
    >>> small, large = (Zoo.in_memory(torch.ones(1, x.parameters), x, table, {}) for x in layouts)
    >>> [[zoo.layout.parameters for zoo in zoos] for zoos in of_one_layout([small, large, small])]
    [[2, 2], [4]]
    """
    found: dict[str, list[Zoo]] = {}
    for zoo in [zoos] if isinstance(zoos, Zoo) else zoos:
        digests = zoo.table["layout"].unique(maintain_order=True).to_list()
        for digest in digests:
            part = zoo if len(digests) == 1 else zoo.where(pl.col("layout") == digest)
            found.setdefault(digest, []).append(part)
    return list(found.values())


def prepared(
    train: Sequence[Sequence[Zoo]], scale: Scale = "layer", seed: int = 0, *, align: bool = True
) -> list[Preparation]:
    """A preparation for each layout of the training zoos; the reference of a layout is that of its first zoo.

    Args:
        train: Zoos by layout, as `of_one_layout` gives them.
        scale: `layer`: mean and deviation of each layer, which exist for one layout only. `fan_in` and `global` are one
            `SharedScale` for all layouts, those never seen too.
        seed: Order of the groups in alignment.
        align: Align to `training_reference`.

    Raises:
        ConfigError: Several layouts are to be scaled by layer.
        LayoutError: Zoos that should have one layout differ, or as in `architecture_of`.
        ZooError: A checkpoint has NaN weights, or there is none.
    """
    if scale == "layer" and len(train) > 1:
        raise ConfigError(
            f"the zoos have {len(train)} layouts, and statistics of layers exist for one alone: take scale 'fan_in' or "
            "'global'"
        )
    if not any(len(zoo) for zoos in train for zoo in zoos):
        raise ZooError("an encoder is fitted on networks with finite weights, and this selection of a zoo has none")
    references, populations = [], []
    for zoos in train:
        for zoo in zoos:
            zoo.require_finite("fitting an encoder")
            if zoo.layout != zoos[0].layout:
                raise other_layout(zoo.layout, zoos[0].layout)
        reference = training_reference(zoos[0], seed) if align else None
        rows = torch.cat([zoo.weights() if reference is None else aligned_rows(zoo, reference) for zoo in zoos])
        references.append(reference)
        populations.append((rows, zoos[0].layout))
    if scale == "layer":
        [(rows, layout)] = populations
        return [Preparation(layout, references[0], Standardisation.fit(rows, layout))]
    shared = SharedScale.fit(scale, populations)
    return [
        Preparation(layout, reference, shared.of(layout), shared)
        for reference, (_, layout) in zip(references, populations, strict=True)
    ]


def training_reference(train: Zoo, seed: int = 0) -> Float[Tensor, " p"]:
    """The mean of the best trained networks, aligned to the best of them, by validation accuracy where the zoo has it.

    Args:
        train: Training runs only.
        seed: Order of the groups.

    Raises:
        LayoutError: As in `architecture_of`.

    >>> import polars as pl
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9], "metric.validation_accuracy": [0.5, 0.9]})
    >>> zoo = Zoo.in_memory(torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 6.0, 3.0]]), layout, table, {})
    >>> training_reference(zoo)
    tensor([3., 1., 5., 3.])
    """
    final, by = train.last(), "metric.validation_accuracy"
    if by in final.table.columns:
        final = final.best(min(1.0, REFERENCE_NETWORKS / len(final)), by)
        order = final.table[by].arg_sort(descending=True).to_list()
        final = final.take(order)
    rows = final.weights()[:REFERENCE_NETWORKS]
    groups = architecture_of(train.header, train.layout).groups
    return mean_reference(rows, rows[0], train.layout, groups, torch.Generator().manual_seed(seed))


def aligned_rows(zoo: Zoo, reference: Float[Tensor, " p"]) -> Float[Tensor, "m p"]:
    """Weights of a zoo aligned to a reference, every run by the permutation of its last checkpoint in the zoo.

    >>> import polars as pl
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> table = pl.DataFrame({"model": ["a"], "step": [9]})
    >>> zoo = Zoo.in_memory(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), layout, table, {})
    >>> aligned_rows(zoo, torch.tensor([2.0, 1.0, 4.0, 3.0]))
    tensor([[2., 1., 4., 3.]])
    """
    table = zoo.table.with_row_index("position").sort("step", maintain_order=True)
    last = torch.zeros(len(zoo), dtype=torch.bool)
    last[table.unique("model", keep="last")["position"].to_list()] = True
    models = torch.tensor(zoo.table["model"].rank("dense").to_list())
    generator, groups = torch.Generator().manual_seed(0), architecture_of(zoo.header, zoo.layout).groups
    return align_runs(zoo.weights(), reference, zoo.layout, groups, models, last, generator)
