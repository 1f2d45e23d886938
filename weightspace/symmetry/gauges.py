"""Scale gauge and canonical form: one representative of all networks that are the same function.

Where the nonlinearity is positively homogeneous (ReLU, leaky ReLU), a unit's incoming values may be multiplied by c > 0
and its outgoing ones divided by c. The balanced gauge gives both sides equal norms, which is the representative with
the smallest norm of all weights. Behind it, permutations are compared on equal terms. Units sorted by their norm are a
canonical order: with it, no reference and no alignment is needed, but networks that differ a little may be sorted
differently.

Axes: m network, p parameter, n unit of a group.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup, Place, unit_view
from weightspace.symmetry.matching import permuted

HOMOGENEOUS = ("relu", "leaky_relu")
"""Activations f with f(c x) = c f(x) for every c > 0."""
MAX_SWEEPS, LEAST_CHANGE = 1000, 1e-10


def balanced(
    rows: Float[Tensor, "m p"], layout: Layout, groups: Sequence[PermutationGroup], *, activation: str
) -> Float[Tensor, "m p"]:
    """Networks with equal norms before and behind every hidden unit; their functions are unchanged.

    Incoming are a unit's weights and bias, or, where a norm follows the layer, the norm's scale and shift; what lies
    before a norm is left as it is. Units of neighbouring layers share weights, so groups are balanced in turns until
    nothing changes: the total norm is a convex function of the logarithms of all scales, and every turn lowers it. A
    unit with nothing on one side keeps its scale.

    Args:
        rows: Networks.
        layout: Layout of the rows.
        groups: Groups of the layout, of a network in which `activation` stands behind each.
        activation: Name of that activation.
    Returns:
        Rows in the dtype of `rows`.
    Raises:
        ConfigError: The activation is not positively homogeneous.
        LayoutError: A group has no values on one side, or two axes of one tensor.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2))))
    >>> balanced(torch.tensor([[1.0, 4.0]]), layout, chain_groups(layout), activation="relu")
    tensor([[2., 2.]])
    """
    if activation not in HOMOGENEOUS:
        raise ConfigError(
            f"units behind {activation!r} cannot be rescaled: f(c x) = c f(x) holds for {' and '.join(HOMOGENEOUS)}"
        )
    current = rows.to(torch.float64, copy=True)
    sides = [_sides(layout, group) for group in groups]
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for group, (before, behind) in zip(groups, sides, strict=True):
            incoming, outgoing = (_squares(current, layout, group, places).sqrt() for places in (before, behind))
            scale = (outgoing / incoming).sqrt()
            scale = torch.where((incoming > 0) & (outgoing > 0) & scale.isfinite(), scale, 1.0)
            for places, factor in ((before, scale), (behind, 1 / scale)):
                for place in places:
                    unit_view(current, layout, group, place).mul_(factor[:, None, None, :, None])
            largest = max(largest, float((scale - 1).abs().amax())) if scale.numel() else largest
        if largest < LEAST_CHANGE:
            break
    return current.to(rows.dtype)


def canonical_form(
    rows: Float[Tensor, "m p"], layout: Layout, groups: Sequence[PermutationGroup], *, activation: str | None = None
) -> Float[Tensor, "m p"]:
    """Networks with their hidden units sorted by norm, the largest first; their functions are unchanged.

    The norm of a unit is that of all weights and biases before and behind it, which no permutation of other groups
    changes.

    Args:
        rows: Networks.
        layout: Layout of the rows.
        groups: Groups of the layout.
        activation: Balance the scales first, as in `balanced`; for activations that are not homogeneous leave it out.
    Returns:
        Rows in the dtype of `rows`.
    Raises:
        ConfigError: The activation is not positively homogeneous.
        LayoutError: As in `balanced`.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> canonical_form(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), layout, chain_groups(layout))
    tensor([[2., 1., 4., 3.]])
    """
    if activation is not None:
        rows = balanced(rows, layout, groups, activation=activation)
    orders = []
    for group in groups:
        # Squares are summed in an order that depends on other groups; what differs by rounding only is a tie.
        places = [place for place in group.places if layout.by_name[place.tensor].role in ("weight", "bias")]
        norms = _squares(rows.double(), layout, group, places).sqrt()
        orders.append(norms.argsort(dim=1, descending=True, stable=True))
    return permuted(rows, layout, groups, orders)


def _sides(layout: Layout, group: PermutationGroup) -> tuple[list[Place], list[Place]]:
    """Places whose values a unit's scale multiplies, and places whose values it divides."""
    specs = {place: layout.by_name[place.tensor] for place in group.places}
    if len({place.tensor for place in specs}) < len(specs):
        raise LayoutError(f"group {group.name!r} has two axes of one tensor, so its units have no scale of their own")
    behind = [place for place, spec in specs.items() if place.axis == spec.input_axis]
    norms = [place for place, spec in specs.items() if spec.layer == "norm" and spec.role in ("weight", "bias")]
    if norms:  # of several norms in a row the last one decides
        last = layout.by_name[norms[-1].tensor].layer_name
        before = [place for place in norms if specs[place].layer_name == last]
    else:
        before = [place for place, spec in specs.items() if place.axis == spec.output_axis]
    if not before or not behind:
        raise LayoutError(f"the units of group {group.name!r} have no weights before or behind them to balance")
    return before, behind


def _squares(
    rows: Float64[Tensor, "m p"], layout: Layout, group: PermutationGroup, places: Sequence[Place]
) -> Float64[Tensor, "m n"]:
    """Sum of the squares of what each unit owns at some places."""
    return torch.stack([unit_view(rows, layout, group, place).square().sum((1, 2, 4)) for place in places]).sum(0)
