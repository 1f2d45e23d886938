"""Networks as graphs: a node a unit, edges that carry the weights between units, and vectors that belong to units.

What the graph encoders have in common ("Encoders of network weights", sections 4 to 9). Nodes are the units of the
permutation groups, so that renumbering units renumbers nodes, in residual networks and in attention, too: units that
must be renumbered together, as all layers that write into one residual stream, are one node. Inputs and outputs of a
network are nodes that tell themselves apart. Everything is an index into rows: `rows[:, edges.index]`.

Axes: t target node, s source node, f value of an edge or of a node (positions of a kernel, places of a flattened
channel), n node of a set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout, TensorSpec
from weightspace.symmetry.groups import PermutationGroup

NodeKind = Literal["input", "hidden", "output"]
Key = tuple  # what names a set of nodes: its permutation groups, or a layer and its side


@dataclass(frozen=True)
class NodeSet:
    """Units that are renumbered together, or inputs or outputs, each of which is its own."""

    kind: NodeKind
    size: int
    level: int
    """Number of the first layer that makes these units, 1 for the first; 0 for inputs."""


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Weights from every node of one set to every node of another: one tensor, or a part of it."""

    tensor: str
    """Name in the layout."""
    source: int
    """Number of the set of nodes that are read."""
    target: int
    """Number of the set of nodes that are made."""
    kernel: tuple[int, ...]
    """Axes of the values of an edge: height and width of a kernel; one axis for places of a flattened channel and for
    maps that are stored in one tensor; empty for one weight."""
    level: int
    """Number of the layer, 1 for the first."""
    index: Int64[Tensor, "t s f"]
    """Where the values are in a row."""


@dataclass(frozen=True, eq=False)
class NodeValues:
    """Values of units themselves: biases, scales of norms, running statistics."""

    tensor: str
    """Name in the layout."""
    nodes: int
    """Number of the set."""
    role: str
    """`bias`, or of a norm `scale`, `shift`, `running_mean`, `running_var`, or `other`."""
    level: int
    """Number of the layer, 1 for the first."""
    index: Int64[Tensor, "n f"]
    """Where the values are in a row."""


@dataclass(frozen=True)
class ChainLayer:
    """A layer of a plain chain: the weights between one set of nodes and the next, and the biases of these."""

    weight: EdgeSet
    bias: NodeValues | None


@dataclass(frozen=True)
class ParameterGraph:
    """Sets of nodes, edges between them and values of nodes; every parameter is in exactly one place.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)))
    >>> graph = ParameterGraph.of(layout, chain_groups(layout))
    >>> [(nodes.kind, nodes.size) for nodes in graph.nodes], graph.edges[1].index.shape
    ([('input', 3), ('hidden', 5), ('output', 2)], torch.Size([2, 5, 1]))
    """

    nodes: tuple[NodeSet, ...]
    """Sets in order of their level."""
    edges: tuple[EdgeSet, ...]
    """In layout order, which is taken for the order in which the network applies them."""
    values: tuple[NodeValues, ...]
    """In layout order."""

    @classmethod
    def of(cls, layout: Layout, groups: Sequence[PermutationGroup]) -> "ParameterGraph":
        """The graph of networks of a layout with known permutation groups.

        Raises:
            LayoutError: A tensor has more than two axes that count units.
        """
        return _Builder(layout, groups).graph()

    @property
    def levels(self) -> int:
        """Number of layers with weights."""
        return max((edges.level for edges in self.edges), default=0)

    @cached_property
    def chain(self) -> tuple[ChainLayer, ...]:
        """The layers, if each reads what the one before it makes and nothing else.

        Raises:
            LayoutError: The network branches, or has values besides weights and biases.
        """
        biases = {values.nodes: values for values in self.values}
        plain = len(self.edges) == len(self.nodes) - 1 and len(biases) == len(self.values)
        plain &= all(edges.source == i and edges.target == i + 1 for i, edges in enumerate(self.edges))
        plain &= all(values.role == "bias" for values in self.values)
        if not plain:
            raise LayoutError(
                "this encoder reads plain chains of linear and convolutional layers, and this network has branches, "
                "norms or other tensors; take an encoder of graphs or sets, for example dng or sne"
            )
        return tuple(ChainLayer(edges, biases.get(edges.target)) for edges in self.edges)


class _Builder:
    """Names the node of every index of every axis, then cuts tensors into parts between two sets of nodes."""

    def __init__(self, layout: Layout, groups: Sequence[PermutationGroup]):
        self.layout, self.groups = layout, groups
        self.sets: dict[Key, list] = {}  # key: [kind, size, level]
        # for every axis of every tensor the unit of each group at each index, -1 where the group does not count
        self.units: dict[tuple[str, int], dict[int, np.ndarray]] = {}
        for number, group in enumerate(groups):
            for place in group.places:
                length = layout.by_name[place.tensor].shape[place.axis]
                count = self.units.setdefault((place.tensor, place.axis), {}).setdefault(number, np.full(length, -1))
                units = np.tile(np.repeat(np.arange(group.size), place.block), place.repeats)
                count[place.start : place.start + len(units)] = units

    def graph(self) -> ParameterGraph:
        edges: list[tuple] = []
        values: list[tuple] = []
        level, owners = 0, set[str]()
        for spec in self.layout.tensors:
            axes = self._unit_axes(spec)
            if len(axes) == 2 and spec.layer_name not in owners:
                level, owners = level + 1, owners | {spec.layer_name}
            if len(axes) == 2:
                edges += self._edges(spec, axes, level)
            else:
                values += self._values(spec, axes, max(level, 1))
        order = sorted(self.sets, key=lambda key: (self.sets[key][2], list(self.sets).index(key)))
        number = {key: i for i, key in enumerate(order)}
        return ParameterGraph(
            tuple(NodeSet(*self.sets[key]) for key in order),
            tuple(EdgeSet(name, number[source], number[target], *rest) for name, source, target, *rest in edges),
            tuple(NodeValues(name, number[key], *rest) for name, key, *rest in values),
        )

    def _unit_axes(self, spec: TensorSpec) -> list[int]:
        """Axes that count units: of makers first, then of readers."""
        named = [axis for axis in (spec.output_axis, spec.input_axis) if axis is not None]
        if not named:
            named = [axis for axis in range(len(spec.shape)) if (spec.name, axis) in self.units]
            named = named or ([0] if spec.shape else [])
        others = [a for a in range(len(spec.shape)) if (spec.name, a) in self.units and a not in named]
        if len(named) + len(others) > 2:
            raise LayoutError(f"{spec.name!r} of shape {spec.shape} has more than two axes that count units")
        return named + others

    def _parts(self, spec: TensorSpec, axis: int, side: NodeKind, level: int) -> list[tuple[Key, np.ndarray]]:
        """Sets of nodes along an axis, and for each `[node, repeat]` the indices that a node owns."""
        length = spec.shape[axis]
        counts = self.units.get((spec.name, axis), {})
        here = [tuple(g for g, units in counts.items() if units[i] >= 0) for i in range(length)]
        parts = []
        for groups in dict.fromkeys(here):
            indices = np.array([i for i in range(length) if here[i] == groups])
            if groups:
                key: Key = ("groups", *groups)
                size = prod(self.groups[g].size for g in groups)
                node = np.zeros(len(indices), dtype=np.int64)
                for g in groups:
                    node = node * self.groups[g].size + counts[g][indices]
                kind: NodeKind = "hidden"
            else:
                key, size, kind = (spec.layer_name, side, len(indices)), len(indices), side
                node = np.arange(size)
            order = np.argsort(node, kind="stable")
            owned = [list(indices[list(at)]) for _, at in groupby(order, key=lambda i: node[i])]
            if len({len(some) for some in owned}) != 1 or len(owned) != size:
                raise LayoutError(f"units own different numbers of indices on axis {axis} of {spec.name!r}")
            known = self.sets.setdefault(key, [kind, size, level if side == "output" else level - 1])
            if side == "output":
                known[2] = min(known[2], level) if known[2] else level
            parts.append((key, np.array(owned)))
        return parts

    def _positions(self, spec: TensorSpec) -> np.ndarray:
        place = self.layout.slices[spec.name]
        return np.arange(place.start, place.stop).reshape(spec.shape)

    def _edges(self, spec: TensorSpec, axes: list[int], level: int) -> list[tuple]:
        positions = np.moveaxis(self._positions(spec), axes, (0, 1))
        found = []
        for target, makes in self._parts(spec, axes[0], "output", level):
            for source, reads in self._parts(spec, axes[1], "input", level):
                cut = positions[makes[:, :, None, None], reads[None, None]]  # target, repeat, source, repeat, kernel
                cut = np.moveaxis(cut, 1, 2)
                kernel = tuple(size for size in cut.shape[2:4] if size > 1) + cut.shape[4:]
                index = torch.from_numpy(cut.reshape(*cut.shape[:2], -1).copy())
                found.append((spec.name, source, target, kernel, level, index))
        return found

    def _values(self, spec: TensorSpec, axes: list[int], level: int) -> list[tuple]:
        positions = self._positions(spec)
        if not axes:
            positions, axes, spec_axis = positions.reshape(1, -1), [0], None
        else:
            positions, spec_axis = np.moveaxis(positions, axes[0], 0), axes[0]
        norm = {"weight": "scale", "bias": "shift"}.get(spec.role, spec.role)
        role = norm if spec.layer == "norm" else ("bias" if spec.role == "bias" else "other")
        if spec_axis is None:
            key: Key = (spec.name, "single")
            self.sets.setdefault(key, ["output", 1, level])
            return [(spec.name, key, role, level, torch.from_numpy(positions.copy()))]
        return [
            (spec.name, key, role, level, torch.from_numpy(positions[owned].reshape(len(owned), -1).copy()))
            for key, owned in self._parts(spec, spec_axis, "output", level)
        ]
