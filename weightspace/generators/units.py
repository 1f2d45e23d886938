"""What a hypernetwork makes together: units with all that belongs to them, in the layout of any traced network.

A unit is a neuron or a filter: its incoming weights, its bias, and scale and offset of the batch normalisation behind
it. Units that may be renumbered are alike, so that one weight generator can make them all; classes, embeddings and
norms without a layer of their own are made as a whole.

Axes: n unit, v values of a unit, p parameter.
"""

from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Int64
from torch import Tensor

from weightspace.generators.gauge import OUTPUT
from weightspace.networks import TensorSpec
from weightspace.networks.layout import RUNNING
from weightspace.symmetry import PermutationGroup, Place, ScaleGroup, Symmetry, unit_view


@dataclass(frozen=True)
class UnitLayer:
    """The units of one layer."""

    name: str
    """Tensor of their incoming weights."""
    places: Int64[Tensor, "n v"]
    """Where in a row each value of each unit is."""
    alike: bool
    """Whether the units may be renumbered."""
    variance: float
    """Of the incoming weights at the start: 2 / fan in for hidden units, 1 / fan in for classes."""


def unit_layers(symmetry: Symmetry) -> tuple[UnitLayer, ...]:
    """The units of a network, layer by layer in layout order; together they own every value but running statistics.

    >>> from weightspace.generators.gauge import symmetry_of_network
    >>> from weightspace.networks import CNN
    >>> [(layer.name, *layer.places.shape) for layer in unit_layers(symmetry_of_network(CNN(batch_norm=True)))]
    [('conv1.weight', 8, 12), ('conv2.weight', 8, 75), ('fc1.weight', 10, 33)]
    """
    layout = symmetry.layout
    position = torch.arange(layout.parameters)[None]
    free = {(place.tensor, place.axis) for group in symmetry.groups for place in group.places}
    classes = {place.tensor for frozen in symmetry.frozen if OUTPUT in frozen.reason for place in frozen.places}
    layers, taken = list[UnitLayer](), set[str]()
    for spec in layout.tensors:
        if spec.layer not in ("linear", "conv") or spec.role != "weight" or spec.output_axis is None:
            continue
        n = spec.shape[spec.output_axis]
        places = [Place(spec.name, spec.output_axis)]
        places += [Place(s.name, 0) for s in layout.tensors if s.layer_name == spec.layer_name and s.role == "bias"]
        places += [place for place in _norm_behind(symmetry, spec) if place.tensor not in taken]
        taken |= {place.tensor for place in places}
        group = PermutationGroup(spec.name, n, tuple(places))
        owned = [unit_view(position, layout, group, place).movedim(3, 1).flatten(1).unflatten(1, (n, -1))[0]
                 for place in places]  # fmt: skip
        gain = 1 if spec.name in classes else 2
        alike = (spec.name, spec.output_axis) in free
        layers.append(UnitLayer(spec.name, torch.cat(owned, dim=1), alike, gain * n / spec.size))
    for spec in layout.tensors:
        if spec.name not in taken and spec.role not in RUNNING:
            whole = position[0, layout.slices[spec.name]][None]
            layers.append(UnitLayer(spec.name, whole, False, 1 / prod(spec.shape[1:])))
    return tuple(sorted(layers, key=lambda layer: int(layer.places.min())))


def _norm_behind(symmetry: Symmetry, spec: TensorSpec) -> list[Place]:
    """Scale and offset of the batch normalisation that undoes the scale of a layer's units, if one does."""
    by_name = symmetry.layout.by_name
    for group in symmetry.scales:
        if group.kind == "positive" and _makes(group, spec):
            for mean in (place for place in group.places if by_name[place.tensor].role == "running_mean"):
                norm = by_name[mean.tensor].layer_name
                own = [s.name for s in symmetry.layout.tensors if s.layer_name == norm and s.role not in RUNNING]
                return [replace(mean, tensor=name) for name in own]
    return []


def _makes(group: ScaleGroup, spec: TensorSpec) -> bool:
    """Whether a group is that of the outputs of a weight."""
    powers = zip(group.places, group.exponents, strict=True)
    return any(p.tensor == spec.name and p.axis == spec.output_axis and power > 0 for p, power in powers)
