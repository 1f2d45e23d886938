"""Gauges: one representative of all weights that are the same function up to trivial symmetries.

"Manifold hypernetwork", section 5, for any network that can be traced. Without a gauge the diversity of weights grows
for free, along directions in which the function does not change:

* scale: where the trace leaves units a positive scale, as behind ReLU, before a batch normalisation or along a residual
  stream, a unit's incoming weights and bias may be divided by s > 0 if whatever reads it is multiplied by s.
  Representative: what makes the unit has root mean square 1 (equation 2); in a residual stream, the scales and offsets
  of all norms that write into it.
* bias before a batch normalisation: does nothing. Representative: 0.
* softmax shift: the same constant on all logits. Representative: last bias and every column of the last weights have
  mean 0 over classes (equation 3).
* sign: of units of odd activations (tanh), and of weights before a batch normalisation with its scale. Finite.
  Representative: the incoming weight of largest magnitude is positive.
* order: hidden units may be renumbered. Finite, too, so that it adds no dimension.

Axes: m network, p parameter, n unit of a group, v values of a unit, k class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import LayoutError
from weightspace.networks import Classifier, Layout
from weightspace.networks.layout import RUNNING
from weightspace.symmetry import (
    PermutationGroup,
    Place,
    ScaleGroup,
    Symmetry,
    apply_scales,
    gather_index,
    random_permutations,
    symmetry_of,
    unit_view,
    weight_matching,
)

Order = Literal["none", "sort", "align"]
OUTPUT = "output of the network"
"""Why a trace freezes the axes that count classes."""
_LEAST = 1e-8  # mean square that smaller ones count as, for units whose weights are all zero

State = dict[str, Tensor]


@lru_cache(maxsize=64)
def symmetry_of_network(network: Classifier) -> Symmetry:
    """The traced symmetry of a classifier; the trace takes about a second and is done once.

    >>> from weightspace.networks import MLP
    >>> [group.size for group in symmetry_of_network(MLP()).scales]
    [14]
    """
    return symmetry_of(network.build(), torch.zeros(1, *network.image_shape))


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Which symmetries are fixed.

    >>> from weightspace.networks import MLP
    >>> rows = torch.randn(3, 1060)
    >>> gauge = Gauge.of(MLP())
    >>> torch.allclose(gauge.fixed(rows), gauge.fixed(gauge.equivalents(rows, torch.Generator())), atol=1e-4)
    False
    >>> gauge = Gauge.of(MLP(), order="sort")  # random equivalents are renumbered, too
    >>> torch.allclose(gauge.fixed(rows), gauge.fixed(gauge.equivalents(rows, torch.Generator())), atol=1e-4)
    True
    """

    symmetry: Symmetry
    scales: tuple["_Unit", ...]
    """Positive scales, in an order in which none changes what an earlier one was measured on."""
    signs: tuple["_Unit", ...]
    centred: tuple[tuple[Place, Place], ...]
    """Biases before a batch normalisation, and the running means that take them in."""
    classes: tuple[Place, ...]
    """Axes of the last layer that count classes."""
    scale: bool
    shift: bool
    sign: bool
    order: Order

    @classmethod
    def of(
        cls,
        network: Classifier,
        *,
        scale: bool = True,
        shift: bool = True,
        sign: bool = False,
        order: Order = "none",
    ) -> "Gauge":
        """The gauge of a network, see `of_symmetry`.

        Raises:
            LayoutError: The network cannot be traced.
        """
        return cls.of_symmetry(symmetry_of_network(network), scale=scale, shift=shift, sign=sign, order=order)

    @classmethod
    def of_symmetry(
        cls,
        symmetry: Symmetry,
        *,
        scale: bool = True,
        shift: bool = True,
        sign: bool = False,
        order: Order = "none",
    ) -> "Gauge":
        """The gauge of any module with logits as its output.

        Args:
            symmetry: From `symmetry_of(module, example_input)`.
            scale: Fix the scale of units that have one, and biases that a norm takes away.
            shift: Fix the mean over classes.
            sign: Make the largest incoming weight of units with a free sign positive; the sign counts as constant for
                gradients.
            order: `sort` orders units by the sum of their absolute incoming weights, `align` by weight matching to the
                first row; in both the order counts as constant for gradients.

        Raises:
            LayoutError: Scales depend on each other in a circle.

        >>> from torch import nn
        >>> module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> gauge = Gauge.of_symmetry(symmetry_of(module, torch.zeros(1, 2)))
        >>> gauge.fixed(torch.randn(5, 27))[:, -3:].sum(1).abs().max() < 1e-6
        tensor(True)
        """
        positive = [group for group in symmetry.scales if group.kind == "positive"]
        signs = [group for group in symmetry.scales if group.kind == "sign"]
        layout, centred = symmetry.layout, _centred(symmetry.layout, positive, signs)
        silent = [bias for bias, _ in centred]
        return cls(
            symmetry=symmetry,
            scales=_in_order([_Unit(group, _makers(layout, group, positive, silent)) for group in positive]),
            signs=_in_order([_Unit(group, _makers(layout, group, [], silent)[:1]) for group in signs]),
            centred=centred,
            classes=_class_axes(symmetry),
            scale=scale,
            shift=shift,
            sign=sign,
            order=order,
        )

    @property
    def layout(self) -> Layout:
        """Layout of the rows."""
        return self.symmetry.layout

    @property
    def groups(self) -> tuple[PermutationGroup, ...]:
        """Units that may be renumbered."""
        return self.symmetry.groups

    def fixed(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """The representatives: the same functions, up to the epsilon of batch normalisation."""
        state = self.layout.unflatten(rows)
        if self.scale:
            for bias, mean in self.centred:
                state |= {
                    bias.tensor: torch.zeros_like(state[bias.tensor]),
                    mean.tensor: state[mean.tensor] - state[bias.tensor].repeat_interleave(mean.block, dim=1),
                }
            for unit in self.scales:
                state |= unit.scaled(state, self.layout, 1 / _size(unit.values(state)))
        if self.sign:
            for unit in self.signs:
                state |= unit.scaled(state, self.layout, _sign(unit.values(state)))
        if self.shift:
            for place in self.classes:
                tensor = state[place.tensor]
                state[place.tensor] = tensor - tensor.mean(place.axis + 1, keepdim=True)
        rows = self._flat(state)
        return rows if self.order == "none" or not self.groups else rows.gather(1, self._order(rows.detach()))

    def equivalents(self, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Float[Tensor, "m p"]:
        """The same functions with other weights: random scales, shifts and orders; signs if the gauge fixes them.

        Scales are log-normal with a deviation of 1/2, shifts normal, signs fair coins.
        """
        layout, m = self.layout, len(rows)
        groups = [unit.group for unit in self.scales]
        factors = [(torch.randn(m, group.size, generator=generator) / 2).exp() for group in groups]
        if self.sign:
            groups += [unit.group for unit in self.signs]
            factors += [2.0 * torch.randint(2, (m, u.group.size), generator=generator) - 1 for u in self.signs]
        state = layout.unflatten(apply_scales(rows, layout, groups, factors))
        for bias, mean in self.centred:
            moved = torch.randn(state[bias.tensor].shape, generator=generator)
            state[bias.tensor] = state[bias.tensor] + moved
            state[mean.tensor] = state[mean.tensor] + moved.repeat_interleave(mean.block, dim=1)
        for place in self.classes:
            shape = list(state[place.tensor].shape)
            shape[place.axis + 1] = 1
            state[place.tensor] = state[place.tensor] + torch.randn(shape, generator=generator)
        rows = self._flat(state)
        if not self.groups:
            return rows
        permutations = random_permutations(self.groups, m, generator)
        return rows.gather(1, gather_index(layout, self.groups, permutations))

    def parameters(self) -> Int64[Tensor, " _"]:
        """Positions in a row of everything but running statistics, which follow from weights and data."""
        kept = [place for spec, place in zip(self.layout.tensors, self.layout.slices.values(), strict=True)
                if spec.role not in RUNNING]  # fmt: skip
        return torch.cat([torch.arange(place.start, place.stop) for place in kept])

    def _order(self, rows: Float[Tensor, "m p"]) -> Int64[Tensor, "m p"]:
        if self.order == "align":
            orders = torch.Generator().manual_seed(0)  # in which groups are visited; one hidden layer has one order
            permutations = weight_matching(rows, rows[0], self.layout, self.groups, generator=orders)
        else:  # a sum does not change with the order of the inputs, so that all groups are sorted at once
            permutations = []
            for group in self.groups:
                made = unit_view(rows, self.layout, group, _made(self.layout, group.places)[0])
                permutations.append(made.abs().sum((1, 2, 4)).argsort(1))
        return gather_index(self.layout, self.groups, permutations)

    def _flat(self, state: State) -> Float[Tensor, "m p"]:
        return torch.cat([state[spec.name].flatten(1) for spec in self.layout.tensors], dim=1)


@dataclass(frozen=True)
class _Unit:
    """A group of scales, and the places by whose values its representative is chosen."""

    group: ScaleGroup
    makers: tuple[Place, ...]

    def values(self, state: State) -> Float[Tensor, "m n v"]:
        """Everything at the makers, by unit."""
        return torch.cat([_by_unit(state[place.tensor], place, self.group.size) for place in self.makers], dim=2)

    def scaled(self, state: State, layout: Layout, factors: Float[Tensor, "m n"]) -> State:
        """All tensors of the group with every unit multiplied by the power of its factor that belongs there."""
        changed: State = {}
        for place, exponent in zip(self.group.places, self.group.exponents, strict=True):
            tensor = changed.get(place.tensor, state[place.tensor])
            changed[place.tensor] = tensor * _along(factors**exponent, place, layout.by_name[place.tensor].shape)
        return changed


def _by_unit(tensor: Tensor, place: Place, size: int) -> Float[Tensor, "m n v"]:
    """The values at a place, by unit."""
    axis = tensor.movedim(place.axis + 1, 1)[..., None].flatten(2)
    if axis.shape[1] == size:
        return axis
    units = axis.narrow(1, place.start, place.repeats * size * place.block)
    return units.unflatten(1, (place.repeats, size, place.block)).movedim(2, 1).flatten(2)


def _along(factors: Float[Tensor, "m n"], place: Place, shape: tuple[int, ...]) -> Tensor:
    """A factor for each index of an axis, shaped to multiply a tensor; 1 outside the place."""
    length = shape[place.axis]
    if length != factors.shape[1]:
        factors = factors.repeat_interleave(place.block, dim=1).repeat(1, place.repeats)
        behind = length - place.start - factors.shape[1]
        factors = torch.nn.functional.pad(factors, (place.start, behind), value=1.0)
    return factors[(slice(None), *[None] * place.axis, ..., *[None] * (len(shape) - place.axis - 1))]


def _size(values: Float[Tensor, "m n v"]) -> Float[Tensor, "m n"]:
    """Root mean square of the values of each unit."""
    return values.square().mean(2).clamp(min=_LEAST).sqrt()


def _sign(values: Float[Tensor, "m n v"]) -> Float[Tensor, "m n"]:
    """Sign of the value of each unit with the largest magnitude; 1 for units of zeros."""
    largest = values.detach().gather(2, values.abs().argmax(2, keepdim=True))[..., 0]
    return torch.where(largest < 0, -1.0, 1.0).to(values.dtype)


def _made(layout: Layout, places: Sequence[Place]) -> list[Place]:
    """Places at which weights make units: output axes of matrices, or all places where there is none."""
    matrices = [p for p in places if layout.by_name[p.tensor].input_axis is not None]
    return [p for p in matrices if p.axis == layout.by_name[p.tensor].output_axis] or list(places)


def _makers(
    layout: Layout, group: ScaleGroup, positive: Sequence[ScaleGroup], silent: Sequence[Place]
) -> tuple[Place, ...]:
    """Weights and biases that a scale multiplies, of all layers that read no scaled units, else of the first layer.

    A chain has one layer. Norms of a residual stream count together, so that no single one can be made tiny to blow up
    the others.
    """
    powers = zip(group.places, group.exponents, strict=True)
    made = [p for p, power in powers
            if power > 0 and p not in silent and layout.by_name[p.tensor].role in ("weight", "bias")]  # fmt: skip
    layers: dict[str, list[Place]] = {}
    for place in made:
        layers.setdefault(layout.by_name[place.tensor].layer_name, []).append(place)
    reading = {layout.by_name[p.tensor].layer_name
               for other in positive for p, power in zip(other.places, other.exponents, strict=True)
               if power < 0}  # fmt: skip
    first = next(iter(layers.values()), [])
    free = [place for layer, places in layers.items() if layer not in reading for place in places]
    return tuple(free or first)


def _in_order(units: Sequence[_Unit]) -> tuple[_Unit, ...]:
    """Units after those whose scale changes their makers; units without weights that make them are left out."""
    units = [unit for unit in units if unit.makers]
    scaled: dict[str, list[tuple[int, Place]]] = {}
    for number, unit in enumerate(units):
        for place in unit.group.places:
            scaled.setdefault(place.tensor, []).append((number, place))
    before: Mapping[int, set[int]] = {
        number: {other for maker in unit.makers for other, place in scaled[maker.tensor]
                 if other != number and _meet(maker, unit.group.size, place, units[other].group.size)}
        for number, unit in enumerate(units)
    }  # fmt: skip
    try:
        return tuple(units[number] for number in TopologicalSorter(before).static_order())
    except CycleError as error:
        names = sorted({units[number].group.name for number in error.args[1]})
        raise LayoutError(
            f"the scales of {', '.join(map(repr, names))} depend on each other in a circle, so that none of them can "
            "be fixed first; leave scales free"
        ) from error


def _meet(first: Place, first_size: int, second: Place, second_size: int) -> bool:
    """Whether two places of a tensor have values in common; stretches of one axis behind each other have none."""
    ends = [p.start + p.repeats * size * p.block for p, size in ((first, first_size), (second, second_size))]
    return first.axis != second.axis or (first.start < ends[1] and second.start < ends[0])


def _centred(
    layout: Layout, positive: Sequence[ScaleGroup], signs: Sequence[ScaleGroup]
) -> tuple[tuple[Place, Place], ...]:
    """Biases whose only effect is on the mean that a batch normalisation takes away.

    Between bias and norm the values have a positive scale and a sign, so that nothing bends them, and a single layer
    and a single norm are there.
    """
    odd = [{(place.tensor, place.axis) for place in group.places} for group in signs]
    found = []
    for group in positive:
        of = {role: [p for p in group.places if layout.by_name[p.tensor].role == role]
              for role in ("weight", "bias", "running_mean")}  # fmt: skip
        if group.exact or any(len(places) != 1 for places in of.values()):
            continue
        bias, mean = of["bias"][0], of["running_mean"][0]
        if any({(bias.tensor, bias.axis), (mean.tensor, mean.axis)} <= places for places in odd):
            found.append((bias, replace(mean, block=max(1, mean.block // bias.block))))
    return tuple(found)


def _class_axes(symmetry: Symmetry) -> tuple[Place, ...]:
    """Axes of a last linear layer that count classes; none behind a norm, where constants do not pass."""
    places = [p for frozen in symmetry.frozen if OUTPUT in frozen.reason for p in frozen.places]
    kinds = {symmetry.layout.by_name[p.tensor].layer for p in places}
    outputs = [p for p in places if symmetry.layout.by_name[p.tensor].output_axis == p.axis]
    return tuple(outputs) if kinds <= {"linear", "conv"} else ()
