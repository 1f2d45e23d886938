"""Permutation groups: which axes of which tensors are reordered together without changing the function.

The table of Git Re-Basin (Ainsworth et al., 2023): hidden units of a layer may be renumbered if the layer's output
axis, the norm vectors behind it and the next layer's input axis follow. Input and output of the network stay fixed.

Convention: permuted unit `i` is old unit `permutation[i]`, so `new = old[permutation]` along every place of the group.

All groups of a network commute: each renumbers one digit of an axis' index and leaves the others alone. So a network's
symmetries are a direct product, and permutations of different groups can be drawn, stored and applied in any order.

Axes: m network, p parameter, n unit of a group, o values before the axis of a place, r repeats of all units along the
axis, i values of one unit behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout, TensorSpec


@dataclass(frozen=True)
class Place:
    """One axis of one tensor that counts the units of a group.

    Repeat `r` of unit `u` owns the indices `start + (r * size + u) * block` up to `block` further, where `size` is that
    of the group.

    >>> Place("fc.weight", 1, block=49)  # behind a flatten each channel owns 49 consecutive values
    Place(tensor='fc.weight', axis=1, block=49, start=0, repeats=1)
    """

    tensor: str
    """Name of the tensor in the layout."""
    axis: int
    """Axis of that tensor."""
    block: int = 1
    """Consecutive indices that a unit owns; over 1 after a flatten, or where a unit is an attention head."""
    start: int = 0
    """First index; over 0 behind a concatenation, or in a tensor that stacks several maps (attention, LSTM)."""
    repeats: int = 1
    """How often all units follow each other; over 1 where units are the fast digit, as the channels last of images."""


@dataclass(frozen=True)
class PermutationGroup:
    """Units that may be renumbered, and all places that must follow.

    >>> PermutationGroup("0", 16, (Place("0.weight", 0), Place("0.bias", 0), Place("2.weight", 1))).size
    16
    """

    name: str
    """Name of the layer that makes the units."""
    size: int
    """Number of units."""
    places: tuple[Place, ...]
    """Every axis that counts these units."""


def chain_groups(layout: Layout) -> tuple[PermutationGroup, ...]:
    """Groups of a plain chain of linear and convolutional layers, inferred from kinds, shapes and their order.

    Each layer but the last makes one group: its output axis and bias, all vectors of the norms behind it (running
    statistics too) and the next layer's input axis. Between a convolution and a linear layer (or a norm of the
    flattened values) each channel owns a contiguous block. A layout does not show what happens between the layers:
    layers applied in another order than they are stored in, a skip connection between equal widths, a layer used twice
    and a group norm with several groups cannot be seen, and such networks are not chains.

    Args:
        layout: Tensors in the order in which the network applies them.
    Returns:
        One group a hidden layer, in layout order; none for a network of one layer.
    Raises:
        LayoutError: Widths do not chain, or a layer is neither linear, convolution nor norm.

    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3)))
    >>> [(place.tensor, place.axis, place.block) for place in chain_groups(layout)[0].places]
    [('0.weight', 0, 1), ('0.bias', 0, 1), ('2.weight', 1, 4)]
    """
    groups: list[PermutationGroup] = []
    source: TensorSpec | None = None  # weight of the layer whose output units are being followed
    size, block, places = 0, 1, list[Place]()
    for spec in layout.tensors:
        dense = spec.layer in ("linear", "conv")
        matrix = dense and spec.role == "weight"
        output, axis = spec.output_axis, spec.input_axis if matrix else spec.output_axis
        # Reparametrised weights have other names; a bias whose weight is tied stands behind another layer's weight.
        renamed = spec.name.rpartition(".")[2] != spec.role
        stray = dense and not matrix and (source is None or spec.layer_name != source.layer_name)
        if output is None or axis is None or spec.layer == "other" or renamed or stray:
            raise LayoutError(
                f"{spec.name!r} belongs to no plain linear, convolution or norm layer with its own weight, so the "
                "groups of this network cannot be inferred from its layout; write them as PermutationGroup"
            )
        if source is not None:
            block = _block(source, size, block, spec, axis)
            places.append(Place(spec.name, axis, block))
        if matrix:
            if source is not None:
                groups.append(PermutationGroup(source.layer_name, size, tuple(places)))
            source, size, block = spec, spec.shape[output], 1
            places = [Place(spec.name, output)]
    return tuple(groups)


def _block(source: TensorSpec, size: int, block: int, spec: TensorSpec, axis: int) -> int:
    """Indices along `axis` of `spec` that each of the `size` units of `source` owns."""
    length = spec.shape[axis]
    if length == size * block:
        return block
    flattens = source.layer == "conv" and block == 1 and spec.layer != "conv"
    if flattens and length % size == 0:
        return length // size
    raise LayoutError(
        f"{spec.name!r} counts {length} units on axis {axis} but follows {source.name!r}, which makes {size}, so this "
        "network is not a plain chain; write its groups as PermutationGroup"
    )


def layer_of(layout: Layout, places: Sequence[Place]) -> str:
    """Name of the layer that makes the units: the first that has them as outputs.

    >>> layer_of(Layout.of(torch.nn.Linear(3, 2)), [Place("weight", 0)])
    'weight'
    """
    kinds = [(place, layout.by_name[place.tensor]) for place in places]
    # Other kinds of layers do not say which axis is their output; embeddings and recurrent cells come first as makers.
    makers = [p for p, s in kinds if s.layer == "other" or (s.layer != "norm" and s.output_axis == p.axis)]
    first = (makers or places)[0]
    spec = layout.by_name[first.tensor]
    layer = spec.layer_name or spec.name
    within = " within" * (first.repeats > 1)
    return f"{layer}{within}" + f" from {first.start}" * (first.start > 0)


def unit_view(rows: Shaped[Tensor, "m p"], layout: Layout, group: PermutationGroup, place: Place) -> Tensor:
    """The values at one place of a group, by unit: a view `[m, o, r, n, i]` of the rows, nothing is copied.

    Args:
        rows: Anything in layout order: weights, or positions.
        place: One of the group's places.
    Returns:
        `[m, o, r, n, i]`; a block lies directly before the axes behind it, so it is part of `i`.

    >>> layout = Layout.of(torch.nn.Linear(3, 2))
    >>> group = PermutationGroup("input", 3, (Place("weight", 1),))
    >>> unit_view(torch.zeros(5, 8), layout, group, group.places[0]).shape
    torch.Size([5, 2, 1, 3, 1])
    """
    shape = layout.by_name[place.tensor].shape
    axis = rows[:, layout.slices[place.tensor]].unflatten(1, (-1, shape[place.axis], prod(shape[place.axis + 1 :])))
    units = axis.narrow(2, place.start, place.repeats * group.size * place.block)
    return units.unflatten(2, (place.repeats, group.size, place.block)).flatten(4)


def gather_index(
    layout: Layout, groups: Sequence[PermutationGroup], permutations: Sequence[Int64[Tensor, "m _"]]
) -> Int64[Tensor, "m p"]:
    """Positions that permute rows: `rows.gather(1, index)` are the permuted rows.

    Args:
        layout: Layout of the rows.
        groups: At least one group.
        permutations: For each group one permutation a network; int64 `[m, n]`, n the group's size.
    Returns:
        int64 `[m, p]` on the permutations' device.
    Raises:
        LayoutError: The permutations do not fit the groups.

    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)))
    >>> gather_index(layout, chain_groups(layout), [torch.tensor([[1, 0]])])
    tensor([[1, 0, 3, 2, 5, 4, 6]])
    """
    found = [tuple(permutation.shape) for permutation in permutations]
    count = found[0][0] if found else 0
    wanted = [(count, group.size) for group in groups]
    if not wanted or found != wanted:
        raise LayoutError(f"permutations of shapes {found} do not fit groups of sizes {[g.size for g in groups]}")
    device = permutations[0].device
    index = torch.arange(layout.parameters, device=device).repeat(count, 1)
    for group, permutation in zip(groups, permutations, strict=True):
        shift = permutation - torch.arange(group.size, device=device)
        for place in group.places:
            units = unit_view(index, layout, group, place)
            # Groups commute, so a position is its start plus one displacement for each group that moves it.
            units += (shift * units.shape[-1])[:, None, None, :, None]
    return index


def random_permutations(
    groups: Sequence[PermutationGroup], count: int, generator: torch.Generator
) -> list[Int64[Tensor, "m _"]]:
    """Independent uniform permutations of every group for `count` networks.

    Args:
        count: Number of networks.
        generator: Source of randomness; the permutations lie on its device.
    Returns:
        For each group int64 `[count, n]`.

    >>> group = PermutationGroup("0", 3, ())
    >>> random_permutations([group], 2, torch.Generator().manual_seed(0))[0].sort(1).values
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    return [torch.rand(count, group.size, generator=generator, device=generator.device).argsort(1) for group in groups]
