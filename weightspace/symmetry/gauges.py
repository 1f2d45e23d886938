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
from weightspace.symmetry.groups import PermutationGroup, Place, chain_groups, unit_view
from weightspace.symmetry.matching import permuted
from weightspace.symmetry.scales import ScaleGroup

HOMOGENEOUS = ("relu", "leaky_relu")
"""Activations f with f(c x) = c f(x) for every c > 0."""
MAX_SWEEPS, LEAST_CHANGE = 1000, 1e-10


def chain_scales(layout: Layout, *, activation: str) -> tuple[ScaleGroup, ...]:
    """Scales of the hidden units of a plain chain, from its layout and the activation behind every hidden layer.

    A unit's scale multiplies its incoming weights and bias, or, where a norm follows the layer, the norm's scale and
    shift, and divides its outgoing weights. `symmetry_of` finds the scales of any network by tracing it.

    Args:
        layout: Layout of a chain, as for `chain_groups`.
        activation: Name of the activation.
    Raises:
        ConfigError: The activation is not positively homogeneous.
        LayoutError: The layout is not that of a plain chain.

    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 4, bias=False), torch.nn.Linear(4, 1, bias=False)))
    >>> chain_scales(layout, activation="relu")[0].exponents
    (1.0, -1.0)
    """
    if activation not in HOMOGENEOUS:
        raise ConfigError(
            f"units behind {activation!r} cannot be rescaled: f(c x) = c f(x) holds for {' and '.join(HOMOGENEOUS)}"
        )
    scales = []
    for group in chain_groups(layout):
        specs = {place: layout.by_name[place.tensor] for place in group.places}
        behind = [place for place, spec in specs.items() if place.axis == spec.input_axis]
        norms = [place for place, spec in specs.items() if spec.layer == "norm" and spec.role in ("weight", "bias")]
        last = layout.by_name[norms[-1].tensor].layer_name if norms else group.name  # of several norms the last decides
        before = [p for p, s in specs.items() if p not in behind and s.layer_name == last and "running" not in s.role]
        exponents = (1.0,) * len(before) + (-1.0,) * len(behind)
        scales.append(ScaleGroup(group.name, group.size, "positive", (*before, *behind), exponents))
    return tuple(scales)


def balanced(rows: Float[Tensor, "m p"], layout: Layout, scales: Sequence[ScaleGroup]) -> Float[Tensor, "m p"]:
    """Networks in which what a unit's scale multiplies and what it divides have equal norms; same functions.

    Units of neighbouring layers share weights, so groups are balanced in turns until nothing changes: the total norm is
    a convex function of the logarithms of all scales, and every turn lowers it. A unit with nothing on one side keeps
    its scale.

    Args:
        rows: Networks.
        layout: Layout of the rows.
        scales: From `symmetry_of` or `chain_scales`. Signs, and scales that are exact only up to the constant of a
            batch norm, are left as they are.
    Returns:
        Rows in the dtype of `rows`.
    Raises:
        LayoutError: A scale has another power than 1 or -1 in a tensor, or it only multiplies or only divides.

    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2))))
    >>> balanced(torch.tensor([[1.0, 4.0]]), layout, chain_scales(layout, activation="relu"))
    tensor([[2., 2.]])
    """
    current = rows.to(torch.float64, copy=True)
    sides = [(_units(group), *_sides(group)) for group in scales if group.kind == "positive" and group.exact]
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for units, before, behind in sides:
            incoming, outgoing = (_squares(current, layout, units, places).sqrt() for places in (before, behind))
            scale = (outgoing / incoming).sqrt()
            scale = torch.where((incoming > 0) & (outgoing > 0) & scale.isfinite(), scale, 1.0)
            for places, factor in ((before, scale), (behind, 1 / scale)):
                for place in places:
                    unit_view(current, layout, units, place).mul_(factor[:, None, None, :, None])
            largest = max(largest, float((scale - 1).abs().amax())) if scale.numel() else largest
        if largest < LEAST_CHANGE:
            break
    return current.to(rows.dtype)


def canonical_form(
    rows: Float[Tensor, "m p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    scales: Sequence[ScaleGroup] = (),
) -> Float[Tensor, "m p"]:
    """Networks with their hidden units sorted by norm, the largest first; their functions are unchanged.

    The norm of a unit is that of all weights and biases before and behind it, which no permutation of other groups
    changes.

    Args:
        rows: Networks.
        layout: Layout of the rows.
        groups: Groups of the layout.
        scales: Balanced first, as in `balanced`.
    Returns:
        Rows in the dtype of `rows`.
    Raises:
        LayoutError: As in `balanced`.

    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> canonical_form(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), layout, chain_groups(layout))
    tensor([[2., 1., 4., 3.]])
    """
    rows = balanced(rows, layout, scales)
    orders = []
    for group in groups:
        # Squares are summed in an order that depends on other groups; what differs by rounding only is a tie.
        places = [place for place in group.places if layout.by_name[place.tensor].role in ("weight", "bias")]
        norms = _squares(rows.double(), layout, group, places).sqrt()
        orders.append(norms.argsort(dim=1, descending=True, stable=True))
    return permuted(rows, layout, groups, orders)


def _units(scale: ScaleGroup) -> PermutationGroup:
    """The units of a scale, as `unit_view` wants them."""
    return PermutationGroup(scale.name, scale.size, scale.places)


def _sides(scale: ScaleGroup) -> tuple[list[Place], list[Place]]:
    """Places that a scale multiplies, and places that it divides."""
    powers = dict(zip(scale.places, scale.exponents, strict=True))
    if set(powers.values()) != {1.0, -1.0}:
        raise LayoutError(
            f"the scales of {scale.name!r} have powers {sorted(set(powers.values()))} in its tensors; only 1 and -1 "
            "can be balanced: leave this group out"
        )
    return [place for place, power in powers.items() if power > 0], [p for p, power in powers.items() if power < 0]


def _squares(
    rows: Float64[Tensor, "m p"], layout: Layout, group: PermutationGroup, places: Sequence[Place]
) -> Float64[Tensor, "m n"]:
    """Sum of the squares of what each unit owns at some places."""
    return torch.stack([unit_view(rows, layout, group, place).square().sum((1, 2, 4)) for place in places]).sum(0)
