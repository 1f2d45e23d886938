"""What encoders of graphs share: weights as vectors of one length, codes of positions and activations, and outputs.

"Encoders of network weights", sections 7 to 11. A kernel is padded, centred, to the largest one among the training
networks; a single weight of a linear layer lies at its centre. Places of a flattened channel, and maps that lie in one
tensor, go through a learned projection, which is interpolated, so that any number of places can be read.

Axes: m network, p parameter, t target node, s source node, n node, f value of an edge or of a node, k value of a
vector, d model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import WildPark
from weightspace.views.architecture import UNKNOWN_ACTIVATION, Architecture, Networks, activation_number
from weightspace.views.graph import EdgeSet, NodeValues, ParameterGraph

ROLES = ("bias", "scale", "shift", "running_mean", "running_var", "other")
"""What values of nodes are."""
PLACES = 64
"""Places of a flattened channel with a learned projection of their own; between these it is interpolated."""
MOST_PLACE_VALUES = 16
"""Values that all places of one flattened channel are projected to, at most (or those of the largest kernel)."""


@dataclass(frozen=True)
class GraphSizes:
    """What an encoder has room for: the largest of each size among the training networks."""

    side: int
    """Of the square that kernels are padded to."""
    places: int
    """Of a flattened channel, or maps that lie in one tensor; 0 where no network has such."""
    edge_values: int
    """Length of an edge's vector."""
    node_values: int
    """Length of the vector of a bias or another value of a node."""
    inputs: int
    """Nodes with a code of their own."""
    outputs: int
    """Nodes with a code of their own, which are read in the end."""
    levels: int
    """Layers with a code of their own."""

    @classmethod
    def of(cls, architectures: Sequence[Architecture], kernel: int | None = None) -> "GraphSizes":
        """Sizes for training networks.

        Args:
            kernel: Side of the largest kernel that will ever be read; that of the training networks when missing.

        Raises:
            ConfigError: The kernel is smaller than that of a training network.
            LayoutError: A network has no outputs.

        >>> from weightspace.networks import CNN
        >>> GraphSizes.of([Architecture.of(CNN())])
        GraphSizes(side=3, places=4, edge_values=9, node_values=1, inputs=1, outputs=10, levels=3)
        """
        graphs = [architecture.graph for architecture in architectures]
        kernels = [edges.kernel for graph in graphs for edges in graph.edges]
        side = max((max(sides) for sides in kernels if len(sides) == 2), default=1)
        if kernel is not None and kernel < side:
            raise ConfigError(f"kernel must be at least {side}, the largest of the training networks, got {kernel}")
        side = kernel or side
        places = max((sides[0] for sides in kernels if len(sides) == 1), default=0)
        of_nodes = max((values.index.shape[1] for graph in graphs for values in graph.values), default=1)
        nodes = [nodes for graph in graphs for nodes in graph.nodes]
        inputs, outputs = (max((n.size for n in nodes if n.kind == kind), default=0) for kind in ("input", "output"))
        for graph in graphs:
            output_nodes(graph)
        return cls(
            side, places, max(side**2, min(places, MOST_PLACE_VALUES)), min(of_nodes, MOST_PLACE_VALUES), inputs,
            outputs, max(graph.levels for graph in graphs),
        )  # fmt: skip

    def graph(self, architecture: Architecture) -> ParameterGraph:
        """The graph of networks, if there is room for it.

        Raises:
            LayoutError: It has more inputs or outputs, larger kernels, or values at nodes or edges of a kind that the
                training networks have not.
        """
        graph = architecture.graph
        if self.node_values == 1 and any(values.index.shape[1] > 1 for values in graph.values):
            raise LayoutError("the network has several values of one kind at a node, which no training network has")
        for nodes in graph.nodes:
            room = {"input": self.inputs, "output": self.outputs}.get(nodes.kind, nodes.size)
            if nodes.size > room:
                raise LayoutError(
                    f"the network has {nodes.size} {nodes.kind}s and the encoder was made for {room}; train it on "
                    "networks with as many"
                )
        for edges in graph.edges:
            if len(edges.kernel) > 2:
                raise LayoutError(
                    f"{edges.tensor!r} has kernels of shape {edges.kernel}; encoders of graphs read kernels of two axes"
                )
            if len(edges.kernel) == 1 and not self.places:
                raise LayoutError(
                    f"{edges.tensor!r} reads {edges.kernel[0]} places of each channel, which no training network has; "
                    "train the encoder on some that do"
                )
            if len(edges.kernel) == 2 and max(edges.kernel) > self.side:
                raise LayoutError(
                    f"{edges.tensor!r} has kernels of shape {edges.kernel}, the encoder was made for at most "
                    f"{self.side} x {self.side}; set `kernel` in its configuration and train it again"
                )
        return graph


def output_nodes(graph: ParameterGraph) -> int:
    """Number of the set of the network's outputs: the last layer's.

    Raises:
        LayoutError: There are none, as all units of the last layer may be renumbered.

    >>> from weightspace.networks import MLP
    >>> output_nodes(Architecture.of(MLP()).graph)
    2
    """
    made = [edges for edges in graph.edges if graph.nodes[edges.target].kind == "output"]
    if not made:
        raise LayoutError("the network has no layer whose units are its outputs, so this encoder has nothing to read")
    return max(made, key=lambda edges: edges.level).target


def node_activations(networks: Networks) -> list[Int64[Tensor, " m"]]:
    """For each set of nodes the number of its activation in each network; that of inputs and outputs means nothing.

    Where layers of a Wild Park write to the same units, it is the activation of the first of them.

    >>> from weightspace.networks import WildPark
    >>> park = Architecture.of(WildPark(activations=("relu", "tanh")))
    >>> [int(number) for number in node_activations(Networks.of(torch.zeros(1, park.layout.parameters), park))]
    [0, 0, 1, 1]
    """
    network, nodes = networks.architecture.network, networks.architecture.graph.nodes
    if not isinstance(network, WildPark):
        return [networks.activations] * len(nodes)
    layers = [activation_number(name) for name in network.activations]
    return [torch.full_like(networks.activations, layers[min(max(some.level, 1), len(layers)) - 1]) for some in nodes]


class EdgeVectors(nn.Module):
    """Weights of edges as vectors of one length, linear in the weights."""

    places: nn.Parameter | None

    def __init__(self, sizes: GraphSizes):
        super().__init__()
        self.side, self.length = sizes.side, sizes.edge_values
        self.places = nn.Parameter(torch.randn(PLACES, sizes.edge_values)) if sizes.places else None

    def forward(self, rows: Float[Tensor, "m p"], edges: EdgeSet) -> Float[Tensor, "m t s k"]:
        """Vectors of the edges of one set."""
        values = rows[:, edges.index]
        if len(edges.kernel) == 1 and self.places is not None:
            return values @ _projection(self.places, edges.kernel[0])
        if self.length == 1:
            return values
        kernel = edges.kernel if len(edges.kernel) == 2 else (1, 1)
        centred = _centred(kernel, self.side).to(values.device)
        return values.new_zeros(*values.shape[:-1], self.length).index_copy(-1, centred, values)


class NodeVectors(nn.Module):
    """Biases and other values of nodes as vectors of one length, linear in the values."""

    places: nn.Parameter | None

    def __init__(self, sizes: GraphSizes):
        super().__init__()
        self.length = sizes.node_values
        self.places = nn.Parameter(torch.randn(PLACES, self.length)) if self.length > 1 else None

    def forward(self, rows: Float[Tensor, "m p"], values: NodeValues) -> Float[Tensor, "m n k"]:
        """Vectors of the nodes of one set."""
        found = rows[:, values.index]
        if found.shape[-1] == 1 or self.places is None:
            return F.pad(found, (0, self.length - 1))
        return found @ _projection(self.places, found.shape[-1])


def _projection(table: Float[Tensor, "places k"], count: int) -> Float[Tensor, "f k"]:
    """A learned projection of `count` places that keeps the size of what it projects."""
    shown = F.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T
    return shown / count**0.5


@lru_cache(maxsize=64)
def _centred(kernel: tuple[int, int], side: int) -> Int64[Tensor, " f"]:
    """Where the values of a kernel lie in the padded square."""
    rows, columns = (torch.arange(size) + (side - size) // 2 for size in kernel)
    return (rows[:, None] * side + columns).flatten()


class FourierFeatures(nn.Module):
    """Sines and cosines of random directions of a vector (Tancik et al., 2020), and the vector itself.

    >>> FourierFeatures(9, 32, 0.1)(torch.zeros(2, 9)).shape
    torch.Size([2, 73])
    """

    directions: Tensor

    def __init__(self, inputs: int, count: int, spread: float):
        super().__init__()
        self.size = inputs + 2 * count
        self.register_buffer("directions", 2 * torch.pi * spread * torch.randn(inputs, count))

    def forward(self, vectors: Float[Tensor, "*some k"]) -> Float[Tensor, "*some f"]:
        """Features of vectors."""
        phases = vectors @ self.directions
        return torch.cat([vectors, phases.sin(), phases.cos()], dim=-1)


class NodeCodes(nn.Module):
    """What is known of nodes without weights, as learned codes.

    One code for each input and each output, one for all nodes of a hidden layer, and one for the activation of these.

    Layers behind the deepest one of the training networks share its code.
    """

    def __init__(self, sizes: GraphSizes, width: int):
        super().__init__()
        self.levels = sizes.levels
        self.input = nn.Parameter(torch.randn(sizes.inputs, width))
        self.output = nn.Parameter(torch.randn(sizes.outputs, width))
        self.hidden = nn.Parameter(torch.randn(sizes.levels + 1, width))
        self.activation = nn.Embedding(UNKNOWN_ACTIVATION + 1, width)

    def forward(self, networks: Networks, graph: ParameterGraph) -> list[Float[Tensor, "m _ d"]]:
        """Codes of each set of nodes."""
        codes = []
        for nodes, activation in zip(graph.nodes, node_activations(networks), strict=True):
            if nodes.kind == "hidden":
                code = self.hidden[min(nodes.level, self.levels)] + self.activation(activation)[:, None]
            else:
                code = (self.input if nodes.kind == "input" else self.output)[None, : nodes.size]
            codes.append(code.expand(len(networks), nodes.size, -1))
        return codes


class ValueEmbedding(nn.Module):
    """Embeddings of biases, values of norms and other values that belong to nodes, told apart by their role."""

    def __init__(self, sizes: GraphSizes, width: int, frequencies: int, spread: float):
        super().__init__()
        self.vectors = NodeVectors(sizes)
        self.waves = FourierFeatures(sizes.node_values, frequencies, spread)
        self.role = nn.Parameter(torch.randn(len(ROLES), width))
        self.inner = nn.Linear(self.waves.size, width)
        self.outer = nn.Linear(width, width)

    def forward(self, rows: Float[Tensor, "m p"], values: NodeValues) -> Float[Tensor, "m n d"]:
        """Embeddings of one tensor's values."""
        inner = self.inner(self.waves(self.vectors(rows, values)))
        return self.outer(F.silu(inner + self.role[ROLES.index(values.role)]))


class OutputReadout(nn.Module):
    """The states of a network's outputs, side by side, through two layers; fewer outputs than usual leave zeros."""

    def __init__(self, sizes: GraphSizes, width: int, hidden: int):
        super().__init__()
        self.outputs = sizes.outputs
        self.layers = nn.Sequential(
            nn.Linear(sizes.outputs * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )

    def forward(self, states: Float[Tensor, "m n d"]) -> Float[Tensor, "m e"]:
        """Embeddings."""
        return self.layers(F.pad(states, (0, 0, 0, self.outputs - states.shape[1])).flatten(1))
