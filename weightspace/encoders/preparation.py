"""What happens to weights before an encoder sees them: alignment to a reference and per-layer standardisation.

Fitted on training networks only, stored with the encoder, apart from its learned weights.

Axes: m network, p parameter.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import LayoutError, ZooError
from weightspace.networks import Layout
from weightspace.symmetry import align_runs, mean_reference
from weightspace.views.architecture import architecture_of
from weightspace.views.standardise import Standardisation
from weightspace.zoo import Zoo

REFERENCE_NETWORKS = 64  # the best training networks whose aligned mean is the reference


@dataclass(frozen=True)
class Preparation:
    """Align, then standardise; and back to the units of the weights."""

    layout: Layout
    reference: Float[Tensor, " p"] | None
    """Mean of aligned training networks, in the units of the weights; `None` leaves networks in their own order."""
    scale: Standardisation

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
        if not len(train):
            raise ZooError("an encoder is fitted on networks with finite weights, and this selection of a zoo has none")
        train.require_finite("fitting an encoder")
        reference = training_reference(train, seed) if align else None
        rows = train.weights() if reference is None else aligned_rows(train, reference)
        return cls(train.layout, reference, Standardisation.fit(rows, train.layout))

    def aligned(self, zoo: Zoo) -> Float[Tensor, "m p"]:
        """Rows aligned to the reference: every run by the permutation of its last checkpoint in the zoo.

        Raises:
            LayoutError: The zoo has another layout.
        """
        if zoo.layout != self.layout:
            raise LayoutError(
                f"the zoo has {zoo.layout.parameters} parameters in layout {zoo.layout.digest}, the encoder was fitted "
                f"on {self.layout.parameters} in {self.layout.digest}; choose a zoo of the same architecture"
            )
        return zoo.weights() if self.reference is None else aligned_rows(zoo, self.reference)

    def apply(self, zoo: Zoo) -> Float[Tensor, "m p"]:
        """Aligned, standardised rows."""
        zoo.require_finite("encoding")
        return self.scale.apply(self.aligned(zoo))

    def invert(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Standardised rows in the units of the weights; they stay aligned."""
        return self.scale.invert(rows)


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
