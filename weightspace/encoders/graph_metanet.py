"""Graph metanets: every parameter of a network is an edge of its own, that of a kernel and that of a bias, too.

Source: Lim et al. (2024), "Graph Metanetworks for Processing Diverse Neural Architectures"; "Encoders of network
weights", section 8. A kernel is as many parallel edges as it has values. Every bias, scale, shift or running statistic
of a layer has one node beside its units, with an edge to each of them. With MLPs of one hidden layer, on normalised
states, in each block:

    edge   e_ij = e_ij + MLP[x_j, x_i, e_ij]
    node   x_i  = x_i + MLP[x_i, mean of MLP[x_j, e_ij] over all edges into i]

Axes: m network, p parameter, t target node, s source node, n node of a set, f parallel edge, d model width, e value of
an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.graph_parts import ROLES, node_activations
from weightspace.encoders.weight_encoder import ScalarScale, WeightEncoder
from weightspace.errors import ConfigError, LayoutError
from weightspace.views.architecture import UNKNOWN_ACTIVATION, Architecture, Networks
from weightspace.views.graph import ParameterGraph

NODE_TYPES = ("input", "hidden", "output", *ROLES)
EDGE_TYPES = ("linear", "places", "kernel", "volume", *ROLES)
"""Weights by the number of axes of their kernel, and values of nodes by their role."""
_NONE = -1.0  # order of hidden nodes and coordinates where there is no kernel, as published


@dataclass(frozen=True, kw_only=True)
class GMNConfig:
    """Sizes of a graph metanet."""

    width: int = 32
    """Of nodes and edges."""
    layers: int = 3
    """Blocks; the last one changes edges only."""

    def __post_init__(self):
        if min(self.width, self.layers) < 1:
            raise ConfigError(f"all sizes of a graph metanet must be at least 1, got {self}")


def graph_size(graph: ParameterGraph) -> tuple[int, int]:
    """Number of nodes and of edges of the parameter graph.

    >>> from weightspace.networks import MLP
    >>> graph_size(Architecture.of(MLP()).graph)
    (90, 1060)
    """
    edges = sum(some.index.numel() for some in graph.edges) + sum(some.index.numel() for some in graph.values)
    return sum(nodes.size for nodes in graph.nodes) + len(graph.values), edges


class _Sine(nn.Module):
    """A number as sines of a learned linear map of it."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(1, width)

    def forward(self, numbers: Float[Tensor, "*some"]) -> Float[Tensor, "*some d"]:
        return self.linear(numbers[..., None]).sin()


class _Start(nn.Module):
    """States of nodes and edges: a sum of linear maps of features, which is one of the features side by side."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Sequential(_Sine(width), nn.Linear(width, width))
        self.edge_level, self.node_level, self.order = (
            nn.Sequential(_Sine(width), nn.Linear(width, width, bias=False)) for _ in range(3)
        )
        self.coordinates = nn.ModuleList(
            nn.Sequential(_Sine(width), nn.Linear(width, width, bias=False)) for _ in range(3)
        )
        self.edge_type = nn.Embedding(len(EDGE_TYPES), width)
        self.node_type = nn.Embedding(len(NODE_TYPES), width)
        self.activation = nn.Embedding(UNKNOWN_ACTIVATION + 1, width)

    def edges(self, rows: Tensor, index: Tensor, kind: str, level: int, kernel: tuple[int, ...]) -> Tensor:
        """States of parallel edges; `index` with their axis last."""
        places = _coordinates(kernel, index.shape[-1]).to(rows)
        known = self.edge_level(rows.new_tensor(float(level))) + self.edge_type.weight[EDGE_TYPES.index(kind)]
        for coordinate, embed in zip(places, self.coordinates, strict=True):
            known = known + embed(coordinate)
        return self.weight(rows[:, index]) + known

    def nodes(self, size: int, kind: str, level: int, like: Tensor) -> Float[Tensor, "n d"]:
        """States of nodes that all networks share."""
        order = torch.arange(size) if kind in ("input", "output") else torch.full((size,), _NONE)
        known = self.node_level(like.new_tensor(float(level))) + self.node_type.weight[NODE_TYPES.index(kind)]
        return self.order(order.to(like)) + known


@lru_cache(maxsize=256)
def _coordinates(kernel: tuple[int, ...], count: int) -> Float[Tensor, "3 f"]:
    axes = torch.meshgrid(*(torch.arange(size) for size in kernel), indexing="ij") if kernel else ()
    given = [axis.flatten().float() for axis in axes] or [torch.arange(count).float()] * (count > 1)
    return torch.stack([*given, *[torch.full((count,), _NONE)] * (3 - len(given))])


class _Block(nn.Module):
    """One round: edges read their ends, then nodes the mean of what enters them."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.node_norm, self.edge_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.edge_own, self.edge_source, self.edge_target = (nn.Linear(width, width, bias=i == 0) for i in range(3))
        self.edge_out = nn.Linear(width, width)
        self.last = last
        if not last:
            self.message_norm = nn.LayerNorm(width)
            self.message_own, self.message_source = (nn.Linear(width, width, bias=i == 0) for i in range(2))
            self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
            self.message_out = nn.Linear(width, width)

    def forward(
        self, nodes: list[Tensor], edges: list[Tensor], ends: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        normed = [self.node_norm(state) for state in nodes]
        sources, targets = [self.edge_source(x) for x in normed], [self.edge_target(x) for x in normed]
        changed = []
        for edge, (source, target) in zip(edges, ends, strict=True):
            inner = self.edge_own(self.edge_norm(edge)) + sources[source][:, None, :, None]
            changed.append(edge + self.edge_out(F.silu(inner + targets[target][:, :, None, None])))
        if self.last:
            return nodes, changed
        sources = [self.message_source(x) for x in normed]
        totals, counts = [torch.zeros_like(state) for state in nodes], [0] * len(nodes)
        for edge, (source, target) in zip(changed, ends, strict=True):
            message = F.silu(self.message_own(self.message_norm(edge)) + sources[source][:, None, :, None])
            totals[target] = totals[target] + message.sum((2, 3))
            counts[target] += message.shape[2] * message.shape[3]
        updated = []
        for state, norm, total, count in zip(nodes, normed, totals, counts, strict=True):
            mean = self.message_out(total / max(count, 1))  # of linear maps: the linear map of the mean
            updated.append(state + self.node(torch.cat([norm, mean], dim=-1)))
        return updated, changed


class GMN(WeightEncoder):
    """A graph neural network on the parameter graph; reads kernels of any size, and is the slower for it.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> GMN(GMNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "gmn"
    Config = GMNConfig

    def __init__(self, config: GMNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        width = config.width
        for architecture in architectures:
            _checked(architecture)
        self.scale = ScalarScale()
        self.start = _Start(width)
        self.blocks = nn.ModuleList(_Block(width, i + 1 == config.layers) for i in range(config.layers))
        self.pooled = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        self.readout = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the scale of all weights."""
        self.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings from the mean over all edges, that is over all parameters."""
        graph = _checked(networks.architecture)
        rows, count = self.scale(networks.rows), len(networks)
        nodes, edges, ends = [], [], []
        for some, activation in zip(graph.nodes, node_activations(networks), strict=True):
            state = self.start.nodes(some.size, some.kind, some.level, rows).expand(count, -1, -1)
            nodes.append(state + self.start.activation(activation)[:, None] if some.kind == "hidden" else state)
        for weights in graph.edges:
            kind = EDGE_TYPES[len(weights.kernel)]
            edges.append(self.start.edges(rows, weights.index, kind, weights.level, weights.kernel))
            ends.append((weights.source, weights.target))
        for values in graph.values:
            ends.append((len(nodes), values.nodes))
            nodes.append(self.start.nodes(1, values.role, values.level, rows).expand(count, -1, -1))
            edges.append(self.start.edges(rows, values.index[:, None], values.role, values.level, ()))
        for block in self.blocks:
            nodes, edges = block(nodes, edges, ends)
        total = sum(self.pooled(edge).sum((1, 2, 3)) for edge in edges)
        return self.readout(total / networks.architecture.layout.parameters)


def _checked(architecture: Architecture) -> ParameterGraph:
    for edges in architecture.graph.edges:
        if len(edges.kernel) > 3:
            raise LayoutError(
                f"{edges.tensor!r} has kernels of shape {edges.kernel}; graph metanets read kernels of at most 3 axes"
            )
    return architecture.graph
