"""Weights as tensors whose axes count units: what NFN, DWSNets and universal neural functionals read.

An axis counts one set of nodes of `views.graph`: hidden units, which may be renumbered, or inputs or outputs of the
network, which are fixed. Positions of a kernel and places of a flattened channel are values of one weight.

Axes: m network, t unit that is made, s unit that is read, n unit, f value of an edge or unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import LayoutError
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.graph import ParameterGraph


@dataclass(frozen=True, eq=False)
class UnitTensor:
    """Where a tensor's values are in a row, by unit."""

    axes: tuple[int, ...]
    """Number of the set of nodes that each axis counts."""
    fixed: tuple[bool, ...]
    """Whether an axis counts inputs or outputs, which cannot be renumbered."""
    index: Tensor
    """int64, `[*axes, f]`; no values (f = 0) where a network lacks the tensor."""

    @property
    def orbits(self) -> tuple[int, ...]:
        """Shape of what renumbering cannot move: fixed axes and values."""
        sizes = zip(self.fixed, self.index.shape[:-1], strict=True)
        return (*(size if fixed else 1 for fixed, size in sizes), self.index.shape[-1])

    @property
    def folded(self) -> "UnitTensor":
        """The same with fixed axes as values: only axes that can be renumbered are left."""
        hidden = [axis for axis, fixed in enumerate(self.fixed) if not fixed]
        moved = self.index.movedim(hidden, list(range(len(hidden))))
        axes = tuple(self.axes[axis] for axis in hidden)
        return UnitTensor(axes, (False,) * len(hidden), moved.flatten(len(hidden)))


def graph_tensors(graph: ParameterGraph) -> list[UnitTensor]:
    """All tensors of a network: weights `[t, s, f]` in layout order, then values of units `[n, f]`.

    >>> from weightspace.networks import MLP
    >>> from weightspace.views.architecture import Architecture
    >>> [(some.axes, some.fixed) for some in graph_tensors(Architecture.of(MLP()).graph)]
    [((1, 0), (False, True)), ((2, 1), (True, False)), ((1,), (False,)), ((2,), (True,))]
    """
    fixed = [nodes.kind != "hidden" for nodes in graph.nodes]
    parts: list[tuple[tuple[int, ...], Tensor]]
    parts = [((edges.target, edges.source), edges.index) for edges in graph.edges]
    parts += [((values.nodes,), values.index) for values in graph.values]
    return [UnitTensor(axes, tuple(fixed[axis] for axis in axes), index) for axes, index in parts]


def chain_tensors(graph: ParameterGraph, method: str) -> list[UnitTensor]:
    """Weights `[t, s, f]` of a plain chain's layers in order, then their biases `[n, 1]`.

    Args:
        method: Who reads them, for the error.

    Raises:
        LayoutError: The network is no plain chain, or has no hidden layer.

    >>> from weightspace.networks import CNN
    >>> from weightspace.views.architecture import Architecture
    >>> [tuple(some.index.shape) for some in chain_tensors(Architecture.of(CNN()).graph, "nfn-hnp")]
    [(8, 1, 9), (8, 8, 9), (10, 8, 4), (8, 1), (8, 1), (10, 1)]
    """
    layers = graph.chain
    if len(layers) < 2:
        raise LayoutError(f"the encoder {method} needs networks with a hidden layer, this one has {len(layers)} layer")
    last = len(layers)
    tensors = [
        UnitTensor((level, level - 1), (level == last, level == 1), layer.weight.index)
        for level, layer in enumerate(layers, 1)
    ]
    for level, layer in enumerate(layers, 1):
        missing = torch.zeros(len(layer.weight.index), 0, dtype=torch.int64)
        index = missing if layer.bias is None else layer.bias.index
        tensors.append(UnitTensor((level,), (level == last,), index))
    return tensors


def structure(tensors: Sequence[UnitTensor]) -> tuple:
    """What networks must have in common to be read alike: which tensors share units, their values, inputs and outputs.

    >>> structure([UnitTensor((1, 0), (False, True), torch.zeros(5, 3, 9))])
    (((1, 0), (1, 3, 9)),)
    """
    return tuple((tensor.axes, tensor.orbits) for tensor in tensors)


def tensors_like(wanted: tuple, architecture: Architecture, method: str) -> list[UnitTensor]:
    """All tensors of a network, as `graph_tensors`, if they have the wanted structure.

    Args:
        wanted: What `structure` found.
        method: Who reads them, for the error.

    Raises:
        LayoutError: They have another structure.
    """
    tensors = graph_tensors(architecture.graph)
    if structure(tensors) != wanted:
        raise LayoutError(
            f"the encoder {method} was made for networks of {len(wanted)} tensors connected in one way, and layout "
            f"{architecture.layout.digest} has {len(tensors)} tensors, or other connections, kernels, inputs or "
            "outputs; take an encoder of sets or graphs"
        )
    return tensors


class OrbitScale(nn.Module):
    """Standardises weights by mean and deviation, over training networks, of all weights they could change place with.

    Statistics of each coordinate, as published for NFN-NP, treat hidden units of one layer differently and so break the
    invariance that the layers have. Averaged over renumberings they are these.

    >>> from weightspace.networks import MLP
    >>> from weightspace.views.architecture import Architecture
    >>> some = Networks.of(3 * torch.randn(50, 1060) + 1, Architecture.of(MLP()))
    >>> tensors = graph_tensors(some.architecture.graph)
    >>> scale = OrbitScale(tensors)
    >>> scale.prepare([(some, tensors)])
    >>> [tuple(x.shape) for x in scale(some, tensors)]
    [(50, 14, 64, 1), (50, 10, 14, 1), (50, 14, 1), (50, 10, 1)]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tensors: Sequence[UnitTensor]):
        super().__init__()
        self.shapes = [tensor.orbits for tensor in tensors]
        size = sum(map(prod, self.shapes))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def prepare(self, training: Sequence[tuple[Networks, Sequence[UnitTensor]]]) -> None:
        """Keep the statistics of these networks."""
        means, deviations = [], []
        for number in range(len(self.shapes)):
            values = [_orbits(some.rows.double(), tensors[number]) for some, tensors in training]
            every = torch.cat(values)  # [members, prod(shape)]
            mean = every.mean(0)
            std = (every - mean).square().mean(0).sqrt()
            means.append(mean)
            deviations.append(torch.where(std > 1e-8, std, 1.0))
        self.mean.copy_(torch.cat(means))
        self.std.copy_(torch.cat(deviations))

    def forward(self, networks: Networks, tensors: Sequence[UnitTensor]) -> list[Float[Tensor, "m ..."]]:
        """Standardised tensors of networks of one architecture; a tensor that they lack is zero, with one value."""
        sizes = [prod(shape) for shape in self.shapes]
        statistics = zip(self.shapes, self.mean.split(sizes), self.std.split(sizes), tensors, strict=True)
        found = []
        for shape, mean, std, tensor in statistics:
            if not tensor.index.numel():
                found.append(networks.rows.new_zeros(len(networks), *tensor.index.shape[:-1], 1))
                continue
            values = networks.rows[:, tensor.index.to(networks.rows.device)]
            found.append((values - mean.view(shape)) / std.view(shape))
        return found


class Codes(nn.Module):
    """Learned codes that tell inputs and outputs of the networks apart, added to the channels of their weights.

    >>> codes = Codes([UnitTensor((1, 0), (False, True), torch.zeros(5, 3, 9))], [8])
    >>> codes.values[0].shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, tensors: Sequence[UnitTensor], channels: Sequence[int]):
        super().__init__()
        self.places = [number for number, tensor in enumerate(tensors) if any(tensor.fixed)]
        self.values = nn.ParameterList([
            nn.Parameter(torch.randn(*tensors[number].orbits[:-1], channels[number])) for number in self.places
        ])  # fmt: skip

    def forward(self, tensors: Sequence[Float[Tensor, "m ..."]]) -> list[Float[Tensor, "m ..."]]:
        """Tensors with their codes."""
        coded = list(tensors)
        for number, code in zip(self.places, self.values, strict=True):
            coded[number] = coded[number] + code
        return coded


class OutputPool(nn.Module):
    """Means over units; outputs of the networks are kept apart.

    Inputs, which may be thousands, are not: their codes tell them apart before the mean.
    """

    def __init__(self, tensors: Sequence[UnitTensor], graph: ParameterGraph):
        super().__init__()
        outputs = {number for number, nodes in enumerate(graph.nodes) if nodes.kind == "output"}
        self.lost = [tuple(1 + i for i, axis in enumerate(some.axes) if axis not in outputs) for some in tensors]
        self.size = sum(
            prod(size for i, size in enumerate(some.index.shape[:-1], 1) if i not in lost)
            for some, lost in zip(tensors, self.lost, strict=True)
        )
        """Numbers for each channel."""

    def forward(self, tensors: Sequence[Float[Tensor, "m ..."]]) -> Float[Tensor, "m d"]:
        """All means side by side."""
        means = [some.mean(lost) if lost else some for some, lost in zip(tensors, self.lost, strict=True)]
        return torch.cat([mean.flatten(1) for mean in means], dim=1)


def _orbits(rows: Float[Tensor, "m p"], tensor: UnitTensor) -> Float[Tensor, "n o"]:
    """Values by orbit: a row for each network and hidden unit or pair of them."""
    values = rows[:, tensor.index]
    hidden = [1 + axis for axis, fixed in enumerate(tensor.fixed) if not fixed]
    moved = values.movedim(hidden, list(range(1, 1 + len(hidden))))
    return moved.reshape(-1, prod(tensor.orbits)) if values.numel() else values.new_zeros(len(rows), 0)
