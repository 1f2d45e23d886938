"""Linear maps between sets of tensors that commute with renumbering: all of them, found from the axes alone.

Zhou et al., "Universal Neural Functionals" (2024), Algorithm 1. An axis carries the number of the set of units that it
counts. A map from one tensor to another is a partition of all axes of both, each block of one set of units: axes of one
block share an index; input axes that repeat are taken on the diagonal; what only the input has is averaged; what only
the output has is broadcast, and on the diagonal where it repeats.

The same maps, sorted by what they share: an input is reduced to what lies on the shared units (`reductions`), and an
output made from it (`embeddings`). Whatever lies on the same units is joined, so that one matrix product is computed
for all pairs of tensors that share these units, not one for each of the maps.

Axes: m network, c channel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Axes = tuple[int, ...]
"""For each axis of a tensor the number of the set of units that it counts."""
Reduce = Literal["mean", "max"]


@dataclass(frozen=True)
class Shared:
    """One side of a map: which axes of a tensor have one index, and which of these indices both sides share."""

    blocks: tuple[tuple[int, ...], ...]
    """Axes of each index."""
    shared: tuple[int, ...]
    """Numbers of the shared blocks, in the order in which the other side has them."""

    def reduced(self, x: Float[Tensor, "m *axes c"], reduce: Reduce) -> Float[Tensor, "m *shared c"]:
        """Diagonals of repeated axes, then the mean or maximum over what is not shared."""
        if any(len(block) > 1 for block in self.blocks):
            letter = {axis: "abdefgh"[number] for number, block in enumerate(self.blocks) for axis in block}
            inside = "".join(letter[axis] for axis in range(len(letter)))
            x = torch.einsum(f"m{inside}c->m{''.join(dict.fromkeys(letter[block[0]] for block in self.blocks))}c", x)
        lost = [1 + number for number in range(len(self.blocks)) if number not in self.shared]
        if lost:
            # the gradient of a sum is a view, that of a mean a new tensor of the size of the input
            share = 1 / prod(x.shape[axis] for axis in lost)
            x = x.sum(lost) * share if reduce == "mean" else x.amax(lost)
        left = sorted(self.shared)
        if list(self.shared) == left:
            return x
        return x.permute(0, *(1 + left.index(number) for number in self.shared), len(left) + 1)

    def embedded(self, y: Float[Tensor, "m *shared c"], shape: Sequence[int]) -> Float[Tensor, "m *axes c"]:
        """An output of these axes, with axes of length one where it is broadcast."""
        first = [self.blocks[number][0] for number in self.shared]
        order = sorted(range(len(first)), key=first.__getitem__)
        y = y.permute(0, *(1 + number for number in order), len(first) + 1)
        for axis in range(len(shape)):
            if axis not in first:
                y = y.unsqueeze(1 + axis)
        for block in self.blocks:
            for axis in block[1:]:
                diagonal = torch.eye(shape[axis], dtype=y.dtype, device=y.device)
                y = y * diagonal.view(*(shape[a] if a in (block[0], axis) else 1 for a in range(len(shape))), 1)
        return y


def _partitions(axes: Axes) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All ways to let axes that count the same units share an index."""

    def extend(blocks: tuple[tuple[int, ...], ...], axis: int) -> Iterator[tuple[tuple[int, ...], ...]]:
        if axis == len(axes):
            yield blocks
            return
        yield from extend((*blocks, (axis,)), axis + 1)
        for number, block in enumerate(blocks):
            if axes[block[0]] == axes[axis]:
                yield from extend((*blocks[:number], (*block, axis), *blocks[number + 1 :]), axis + 1)

    yield from extend((), 0)


def _sides(axes: Axes) -> Iterator[tuple[Axes, Shared]]:
    """Each choice of indices and of which of them are shared, with the units on which these lie, highest first."""
    for blocks in _partitions(axes):
        units = [axes[block[0]] for block in blocks]
        for choice in product((False, True), repeat=len(blocks)):
            chosen = [number for number in range(len(blocks)) if choice[number]]
            order = sorted(chosen, key=lambda number: -units[number])
            yield tuple(units[number] for number in order), Shared(blocks, tuple(order))


def embeddings(axes: Axes) -> list[tuple[Axes, Shared]]:
    """How an output can be made, with the units that each needs.

    >>> [units for units, _ in embeddings((1, 0))]
    [(), (0,), (1,), (1, 0)]
    """
    return list(_sides(axes))


def reductions(axes: Axes) -> list[tuple[Axes, Shared]]:
    """How an input can be reduced, with the units on which the result lies; in each order where units repeat.

    >>> len(reductions((1, 0))), len(reductions((1, 1)))
    (4, 7)
    """
    found = []
    for units, side in _sides(axes):
        numbers = {block: units[i] for i, block in enumerate(side.shared)}
        orders = [order for order in permutations(side.shared) if tuple(numbers[i] for i in order) == units]
        found += [(units, Shared(side.blocks, order)) for order in orders]
    return found


def basis_size(output: Axes, input: Axes) -> int:
    """Number of independent maps from one tensor to another.

    >>> basis_size((1, 1), (1, 1))  # recurrent weights to themselves: the partitions of four axes
    15
    """
    made = [units for units, _ in embeddings(output)]
    return sum(made.count(units) for units, _ in reductions(input))


class EquivariantLinear(nn.Module):
    """A linear map from tensors to tensors of the same axes that commutes with every renumbering; any sizes.

    With the maximum in place of the mean it is not linear, but commutes as well.

    >>> layer = EquivariantLinear([(1, 0), (1,)], [1, 1], [8, 8])
    >>> [tuple(x.shape) for x in layer([torch.zeros(2, 5, 3, 1), torch.zeros(2, 5, 1)])]
    [(2, 5, 3, 8), (2, 5, 8)]
    """

    def __init__(self, axes: Sequence[Axes], inputs: Sequence[int], outputs: Sequence[int], reduce: Reduce = "mean"):
        super().__init__()
        self.reduce: Reduce = reduce
        self.reductions = [reductions(some) for some in axes]
        self.embeddings = [embeddings(some) for some in axes]
        every = {units for some in self.embeddings for units, _ in some}
        self.units = sorted(every, key=lambda units: (len(units), units))
        self.widths = {u: [inputs[q] for q, some in enumerate(self.reductions) for v, _ in some if v == u]
                       for u in self.units}  # fmt: skip
        self.makes = {u: [(p, outputs[p]) for p, some in enumerate(self.embeddings) for v, _ in some if v == u]
                      for u in self.units}  # fmt: skip
        self.weights = nn.ParameterList([
            nn.Parameter(torch.empty(sum(width for _, width in self.makes[u]), sum(self.widths[u])))
            for u in self.units
        ])  # fmt: skip
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in outputs])
        self._initialise()

    def _initialise(self) -> None:
        """Variance one over all summands of an output, as published."""
        summands: dict[int, int] = {}
        for output, weight in self.maps():
            summands[output] = summands.get(output, 0) + weight.shape[1]
        with torch.no_grad():
            for output, weight in self.maps():
                weight.normal_(0, summands[output] ** -0.5)

    def maps(self) -> Iterator[tuple[int, Tensor]]:
        """Number of the output, and weights `[c, c]` of each independent map: views of the parameters."""
        for units, weight in zip(self.units, self.weights, strict=True):
            made = weight.split([width for _, width in self.makes[units]])
            for (output, _), rows in zip(self.makes[units], made, strict=True):
                for part in rows.split(self.widths[units], dim=1):
                    yield output, part

    def forward(self, tensors: Sequence[Float[Tensor, "m ..."]]) -> list[Float[Tensor, "m ..."]]:
        """Outputs in the order of the axes."""
        found: dict[Axes, list[Tensor]] = {units: [] for units in self.units}
        for x, ways in zip(tensors, self.reductions, strict=True):
            for units, side in ways:
                found[units].append(side.reduced(x, self.reduce))
        made = {}
        for units, weight in zip(self.units, self.weights, strict=True):
            joined = found[units][0] if len(found[units]) == 1 else torch.cat(found[units], dim=-1)
            together = nn.functional.linear(joined, weight)
            made[units] = iter(together.split([width for _, width in self.makes[units]], dim=-1))
        outputs = []
        for x, ways, bias in zip(tensors, self.embeddings, self.biases, strict=True):
            # the small ones first: what is broadcast is added once to the large one
            parts = [side.embedded(next(made[units]), x.shape[1:-1]) for units, side in ways]
            total = bias
            for part in sorted(parts, key=Tensor.numel):
                total = total + part
            outputs.append(total.expand(len(x), *x.shape[1:-1], total.shape[-1]))
        return outputs
