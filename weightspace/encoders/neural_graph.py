"""Neural graphs: a network as its own computation graph, read by a graph neural network or a transformer.

Source: Kofinas et al. (2024), "Graph Neural Networks for Learning Equivariant Representations of Neural Networks";
"Encoders of network weights", section 7. Nodes are units with their biases, edges the weights between them; `ng-gnn`
passes messages by principal neighbourhood aggregation (Corso et al., 2020), `ng-t` attends over all pairs of nodes.

Axes: m network, p parameter, t target node, s source node, n node of a set, u node of all, d width of nodes, c width of
edges, h head, a width of a head, e value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.graph_parts import (
    EdgeVectors,
    FourierFeatures,
    GraphSizes,
    NodeCodes,
    OutputReadout,
    ValueEmbedding,
    output_nodes,
)
from weightspace.encoders.weight_encoder import (
    PredictorTraining,
    ScalarScale,
    TensorScale,
    WeightEncoder,
    perceptron,
    weight_scale,
)
from weightspace.errors import ConfigError
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.graph import ParameterGraph

_LEAST_VARIANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class NGGNNConfig:
    """Sizes of the graph neural network."""

    width: int = 32
    """Of nodes and edges."""
    layers: int = 4
    """Rounds of messages."""
    dropout: float = 0.0
    frequencies: int = 32
    """Random directions of the Fourier features."""
    spread: float = 0.1
    """Deviation of the frequencies, for weights of deviation one."""
    kernel: int | None = None
    """Side of the largest kernel; that of the training networks when missing."""
    by_tensor: bool = False
    """Standardise each tensor on its own; only networks of one layout can then be read."""

    def __post_init__(self):
        if min(self.width, self.layers, self.frequencies) < 1:
            raise ConfigError(f"all sizes of an NG-GNN must be at least 1, got {self}")

    @classmethod
    def published(cls) -> "NGGNNConfig":
        """The size for the Small CNN Zoo in the paper's released configurations."""
        return cls(width=256, frequencies=128)


@dataclass(frozen=True, kw_only=True)
class NGTConfig:
    """Sizes of the transformer."""

    width: int = 32
    """Of nodes."""
    edge_width: int = 16
    """Of edges, and of pairs of nodes without an edge."""
    layers: int = 3
    heads: int = 4
    """They divide the width."""
    dropout: float = 0.0
    frequencies: int = 32
    """Random directions of the Fourier features."""
    spread: float = 0.1
    """Deviation of the frequencies, for weights of deviation one."""
    kernel: int | None = None
    """Side of the largest kernel; that of the training networks when missing."""
    by_tensor: bool = False
    """Standardise each tensor on its own; only networks of one layout can then be read."""

    def __post_init__(self):
        if min(self.width, self.edge_width, self.layers, self.heads, self.frequencies) < 1:
            raise ConfigError(f"all sizes of an NG-T must be at least 1, got {self}")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}")

    @classmethod
    def published(cls) -> "NGTConfig":
        """The size for the CNN Wild Park in the paper's released configurations."""
        return cls(dropout=0.2, frequencies=128)


class _NeuralGraph(nn.Module):
    """States of nodes and edges before any message."""

    def __init__(
        self,
        sizes: GraphSizes,
        scale: ScalarScale | TensorScale,
        width: int,
        edge_width: int,
        frequencies: int,
        spread: float,
    ):
        super().__init__()
        self.sizes = sizes
        self.scale = scale
        self.vectors = EdgeVectors(sizes)
        self.waves = FourierFeatures(sizes.edge_values, frequencies, spread)
        self.edge = nn.Linear(self.waves.size, edge_width)
        self.value = ValueEmbedding(sizes, width, frequencies, spread)
        self.code = NodeCodes(sizes, width)

    def forward(
        self, networks: Networks, graph: ParameterGraph
    ) -> tuple[list[Float[Tensor, "m _ d"]], list[Float[Tensor, "m _ _ c"]]]:
        rows = self.scale.rows(networks)
        nodes = self.code(networks, graph)
        for values in graph.values:
            nodes[values.nodes] = nodes[values.nodes] + self.value(rows, values)
        return nodes, [self.edge(self.waves(self.vectors(rows, edges))) for edges in graph.edges]


# --- the graph neural network ------------------------------------------------------------------------------------


class _Aggregation(nn.Module):
    """One round of messages: those into a node are summarised by mean, smallest, largest and deviation.

    Each summary counts once as it is and once scaled by the logarithm of the number of messages.
    """

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.film = nn.Linear(width, 2 * width)
        self.target = nn.Linear(width, width)
        self.source = nn.Linear(width, width, bias=False)
        self.update = nn.Linear(9 * width, width)
        self.last = last
        if not last:
            self.edge = nn.Linear(width, width)
            self.edge_target = nn.Linear(width, width, bias=False)
            self.edge_source = nn.Linear(width, width, bias=False)
            self.edge_out = nn.Linear(width, width)

    def forward(
        self, graph: ParameterGraph, nodes: list[Tensor], edges: list[Tensor], mean_degree: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        targets, sources = [self.target(x)[:, :, None] for x in nodes], [self.source(x)[:, None] for x in nodes]
        incoming: dict[int, list[Tensor]] = {}
        for ends, edge in zip(graph.edges, edges, strict=True):
            scale, shift = self.film(edge).chunk(2, dim=-1)
            message = torch.addcmul(shift, scale, targets[ends.target] + sources[ends.source])
            incoming.setdefault(ends.target, []).append(message)
        updated = []
        for number, state in enumerate(nodes):
            summary = state.new_zeros(*state.shape[:-1], 8 * state.shape[-1])
            if number in incoming:
                messages = torch.cat(incoming[number], dim=2) if len(incoming[number]) > 1 else incoming[number][0]
                mean = messages.mean(2)
                # of the differences, not of the squares: those lose all digits where messages are alike
                variance = (messages - mean[:, :, None]).square().mean(2)
                parts = [mean, messages.amin(2), messages.amax(2), (variance + _LEAST_VARIANCE).sqrt()]
                summary = torch.cat(parts, dim=-1)
                summary = torch.cat([summary, summary * (log(messages.shape[2] + 1) / mean_degree)], dim=-1)
            updated.append(self.update(torch.cat([state, summary], dim=-1)))
        if self.last:
            return updated, edges
        targets, sources = [self.edge_target(x) for x in nodes], [self.edge_source(x) for x in nodes]
        changed = [
            self.edge_out(
                nn.functional.silu(self.edge(edge) + targets[ends.target][:, :, None] + sources[ends.source][:, None])
            ) for ends, edge in zip(graph.edges, edges, strict=True)
        ]  # fmt: skip
        return updated, changed


class NGGNN(WeightEncoder):
    """Messages along the weights of a network, from the side that is read to the side that is made.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NGGNN(NGGNNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "ng-gnn"
    Config = NGGNNConfig
    mean_degree: Tensor

    def __init__(self, config: NGGNNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        sizes = GraphSizes.of(architectures, config.kernel)
        scale = weight_scale(config.by_tensor, architectures)
        width = config.width
        self.start = _NeuralGraph(sizes, scale, width, width, config.frequencies, config.spread)
        self.rounds = nn.ModuleList(_Aggregation(width, i + 1 == config.layers) for i in range(config.layers))
        self.norms = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Dropout(config.dropout)) for _ in range(config.layers - 1)
        )
        degrees = [_log_degrees(architecture.graph) for architecture in architectures]
        self.register_buffer("mean_degree", torch.tensor(sum(map(sum, degrees)) / sum(map(len, degrees))))
        self.readout = OutputReadout(sizes, width, width)
        self.head = nn.Linear(width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the scale of all weights."""
        self.start.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings from the states of the outputs."""
        graph = self.start.sizes.graph(networks.architecture)
        nodes, edges = self.start(networks, graph)
        for number, messages in enumerate(self.rounds):
            if number:
                nodes = [self.norms[number - 1](state) for state in nodes]
            nodes, edges = messages(graph, nodes, edges, self.mean_degree)
        return self.readout(nodes[output_nodes(graph)])


def _log_degrees(graph: ParameterGraph) -> list[float]:
    """log(1 + number of edges into it) of every node."""
    degree = [0] * len(graph.nodes)
    for edges in graph.edges:
        degree[edges.target] += graph.nodes[edges.source].size
    return [log(count + 1) for count, nodes in zip(degree, graph.nodes, strict=True) for _ in range(nodes.size)]


# --- the transformer ---------------------------------------------------------------------------------------------


class _RelationalBlock(nn.Module):
    """Attention between all nodes of a network in which edges take part in queries, keys and values."""

    def __init__(self, config: NGTConfig, last: bool):
        super().__init__()
        width, edge_width = config.width, config.edge_width
        self.heads = config.heads
        self.from_nodes = nn.Linear(width, 3 * width)
        self.from_edges = nn.Linear(edge_width, 4 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(config.dropout))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(perceptron(width, 2 * width, width, activation=nn.GELU), nn.Dropout(config.dropout))
        self.mlp_norm = nn.LayerNorm(width)
        self.last = last
        if not last:
            self.pair = nn.Linear(2 * edge_width, edge_width)
            self.target = nn.Linear(width, edge_width, bias=False)
            self.source = nn.Linear(width, edge_width, bias=False)
            self.pair_out = nn.Sequential(nn.GELU(), nn.Linear(edge_width, edge_width))
            self.pair_norm = nn.LayerNorm(edge_width)
            self.edge_mlp = perceptron(edge_width, 2 * edge_width, edge_width, activation=nn.GELU)
            self.edge_norm = nn.LayerNorm(edge_width)

    def forward(
        self, nodes: Float[Tensor, "m u d"], edges: Float[Tensor, "m u u c"]
    ) -> tuple[Float[Tensor, "m u d"], Float[Tensor, "m u u c"]]:
        width = nodes.shape[-1]
        query, key, value = self.from_nodes(nodes).chunk(3, dim=-1)
        edge_query, edge_key, factor, term = self.from_edges(edges).chunk(4, dim=-1)  # m u u d
        product = (query[:, :, None] + edge_query) * (key[:, None] + edge_key)
        scores = product.unflatten(-1, (self.heads, -1)).sum(-1) / width**0.5  # m u u h
        attention = scores.softmax(2).unsqueeze(-1)
        values = torch.addcmul(term, value[:, None], factor).unflatten(-1, (self.heads, -1))  # m u u h a
        nodes = self.norm(nodes + self.out((attention * values).sum(2).flatten(-2)))
        nodes = self.mlp_norm(nodes + self.mlp(nodes))
        if self.last:
            return nodes, edges
        pair = self.pair(torch.cat([edges, edges.transpose(1, 2)], dim=-1))
        pair = pair + self.target(nodes)[:, :, None] + self.source(nodes)[:, None]
        edges = self.pair_norm(edges + self.pair_out(pair))
        return nodes, self.edge_norm(edges + self.edge_mlp(edges))


class NGT(WeightEncoder):
    """A transformer over the units of a network; memory grows with the square of their number.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NGT(NGTConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "ng-t"
    Config = NGTConfig
    optimisation = PredictorTraining(learning_rate=1e-3)

    def __init__(self, config: NGTConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        sizes = GraphSizes.of(architectures, config.kernel)
        scale = weight_scale(config.by_tensor, architectures)
        self.start = _NeuralGraph(sizes, scale, config.width, config.edge_width, config.frequencies, config.spread)
        self.no_edge = nn.Parameter(torch.zeros(config.edge_width))
        self.blocks = nn.ModuleList(_RelationalBlock(config, i + 1 == config.layers) for i in range(config.layers))
        self.readout = OutputReadout(sizes, config.width, config.width)
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the scale of all weights."""
        self.start.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings from the states of the outputs."""
        graph = self.start.sizes.graph(networks.architecture)
        by_set, by_edges = self.start(networks, graph)
        nodes = torch.cat(by_set, dim=1)
        count = nodes.shape[1]
        ends = list(accumulate(some.size for some in graph.nodes))
        places = [torch.arange(end - some.size, end) for some, end in zip(graph.nodes, ends, strict=True)]
        pairs = [(places[some.target][:, None] * count + places[some.source]).flatten() for some in graph.edges]
        given = torch.cat([some.flatten(1, 2) for some in by_edges], dim=1)
        edges = self.no_edge.expand(len(nodes), count * count, -1)
        edges = edges.index_add(1, torch.cat(pairs).to(given.device), given).unflatten(1, (count, count))
        for block in self.blocks:
            nodes, edges = block(nodes, edges)
        return self.readout(nodes[:, places[output_nodes(graph)]])
