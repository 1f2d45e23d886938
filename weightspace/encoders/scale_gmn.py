"""ScaleGMN: messages along the weights that know what else leaves a network unchanged: scales and signs of its units.

Source: Kalogeropoulos et al. (2024), "Scale Equivariant Graph Metanetworks"; "Encoders of network weights", section 9.
Units of ReLU may be scaled, those of tanh and sine negated. A hidden node's state x_i carries the factor a_i of its
unit, an edge e_ij the factor a_i / a_j of its weight. With inv(x) a network that no such factor changes (of x / |x| for
scales, of the sum over x and -x for signs), and A, C and Γ linear without bias:

    E(x)     = (Γ x) * inv(x)                  carries the factor of x
    message    m_ij = E((A e_ij) * (C x_j))    carries a_i
    state      x_i  = x_i + E([x_i, sum_j m_ij])
    edge       e_ij = (Γ e_ij) * inv(x_i, x_j)

`scale-gmn-b` also passes messages back. A weight's inverse, which the published backward messages need to carry a_j,
grows without bound; here what goes back is without any factor, B_j = sum_i inv([m_ij, x_i]), and enters inv in E.

Axes: m network, p parameter, t target node, s source node, n node of a set, d model width, e value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.graph_parts import (
    ROLES,
    EdgeVectors,
    GraphSizes,
    NodeCodes,
    NodeVectors,
    OutputReadout,
    output_nodes,
)
from weightspace.encoders.weight_encoder import WeightEncoder, weight_scale
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, SIREN, PooledCNN, WildPark
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.networks.population import with_activation
from weightspace.symmetry import ScaleGroup, scale_factors, symmetry_of
from weightspace.symmetry.gauges import HOMOGENEOUS
from weightspace.views.architecture import UNKNOWN_ACTIVATION, Architecture, Networks
from weightspace.views.graph import ParameterGraph

Kind = Literal["positive", "sign", "none"]
"""What the units of a set may be multiplied by."""
_LEAST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class ScaleGMNConfig:
    """Sizes of a ScaleGMN."""

    width: int = 32
    """Of nodes and edges."""
    layers: int = 4
    """Rounds of messages."""
    readout: Literal["outputs", "graph"] = "graph"
    """Whether embeddings are made of the states of outputs alone, or of all nodes."""
    kernel: int | None = None
    """Side of the largest kernel; that of the training networks when missing."""
    by_tensor: bool = False
    """Standardise each tensor on its own; only networks of one layout can then be read."""

    def __post_init__(self):
        if min(self.width, self.layers) < 1:
            raise ConfigError(f"all sizes of a ScaleGMN must be at least 1, got {self}")
        if self.readout not in ("outputs", "graph"):
            raise ConfigError(f"readout of a ScaleGMN is outputs or graph, got {self.readout!r}")

    @classmethod
    def published(cls) -> "ScaleGMNConfig":
        """The size for networks of ReLU on CIFAR-10 in the paper's released configurations."""
        return cls(width=128, readout="outputs")


# --- which units have which symmetry -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """What units of one set may be multiplied by, in each network of a batch."""

    positive: Bool[Tensor, " m"]
    sign: Bool[Tensor, " m"]

    def canonical(self, x: Float[Tensor, "m *rest d"]) -> Float[Tensor, "m *rest d"]:
        """States without their scale."""
        if not self.positive.any():
            return x
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # no small constant beside the norm: it would leave a trace of the scale
        scaled = x / torch.where(norm > _LEAST_NORM, norm, 1.0)
        return scaled if self.positive.all() else torch.where(_over(self.positive, x), scaled, x)


def _over(mask: Bool[Tensor, " m"], like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))


def node_factors(networks: Networks) -> list[Factors]:
    """For each set of nodes what its units may be multiplied by.

    >>> some = Networks.of(torch.zeros(2, 1060), Architecture.of(MLP(activation="tanh")))
    >>> [factors.sign.tolist() for factors in node_factors(some)]
    [[False, False], [True, True], [False, False]]
    """
    numbers = networks.activations
    kinds = {number: node_kinds(networks.architecture, number) for number in numbers.unique().tolist()}
    factors = []
    for i in range(len(networks.architecture.graph.nodes)):
        masks = [
            torch.stack([numbers == number for number in kinds if kinds[number][i] == kind] or [numbers < 0]).any(0)
            for kind in ("positive", "sign")
        ]
        factors.append(Factors(*masks))
    return factors


@lru_cache(maxsize=512)
def node_kinds(architecture: Architecture, activation: int) -> tuple[Kind, ...]:
    """For each set of nodes what its units may be multiplied by where that activation stands in the network.

    Known by construction for plain chains and the Wild Park, traced for other networks. A unit behind a norm can be
    scaled only together with the norm and not with its incoming weights, which no factor of a node describes; neither
    can units whose layers differ in their activations.

    Args:
        activation: Number of the activation, as in `Networks`.

    >>> node_kinds(Architecture.of(CNN()), 0)
    ('none', 'positive', 'positive', 'none')
    """
    network, graph = architecture.network, architecture.graph
    name = list(ACTIVATIONS)[activation] if activation < UNKNOWN_ACTIVATION else ""
    layers: list[Kind]
    if isinstance(network, SIREN):
        layers = ["sign"] * graph.levels
    elif isinstance(network, WildPark):
        layers = [_kind(name) for name in network.activations]
    elif isinstance(network, MLP | PooledCNN) or (isinstance(network, CNN) and not network.batch_norm):
        layers = [_kind(name)] * graph.levels
        if isinstance(network, CNN) and max(network.pools) > 1 and _kind(name) == "sign":
            # the largest of negated values is not the largest negated
            layers = [*["none"] * len(network.channels), *["sign"] * graph.levels]  # type: ignore[list-item]
    elif network is None:
        layers = [_kind(name) if _is_chain(graph) else "none"] * graph.levels
    else:
        return _traced(architecture, name)
    writers: list[set[Kind]] = [set() for _ in graph.nodes]
    for edges in graph.edges:
        writers[edges.target].add(layers[edges.level - 1] if edges.level <= len(layers) else "none")
    for kinds, nodes in zip(writers, graph.nodes, strict=True):
        if len(kinds) != 1 or nodes.kind != "hidden":
            kinds.clear()
    return tuple(kinds.pop() if kinds else "none" for kinds in writers)


def _kind(activation: str) -> Kind:
    return "positive" if activation in HOMOGENEOUS else ("sign" if activation == "tanh" else "none")


def _is_chain(graph: ParameterGraph) -> bool:
    try:
        return bool(graph.chain)
    except LayoutError:
        return False


def _traced(architecture: Architecture, activation: str) -> tuple[Kind, ...]:
    """Kinds of nodes whose factor is one of the scale groups that a trace finds."""
    network, graph = architecture.network, architecture.graph
    kinds: list[Kind] = ["none" for _ in graph.nodes]
    if network is None or not activation:
        return tuple(kinds)
    with torch.random.fork_rng(devices=[]):
        module = with_activation(network, activation).build()
    groups = symmetry_of(module, torch.zeros(2, *network.image_shape)).scales  # type: ignore[union-attr]
    for number, nodes in enumerate(graph.nodes):
        if nodes.kind != "hidden":
            continue
        scale = torch.exp(torch.randn(nodes.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        for group in groups:
            if group.exact and group.size == nodes.size and _is_factor(architecture, number, group, scale):
                kinds[number] = group.kind
    return tuple(kinds)


def _is_factor(architecture: Architecture, number: int, group: ScaleGroup, scale: Float[Tensor, " n"]) -> bool:
    """Whether the group multiplies what enters these nodes, divides what leaves them, and nothing else."""
    graph = architecture.graph
    inverse = scale if group.kind == "sign" else 1 / scale  # a sign is its own inverse, and noted so
    wanted = torch.ones(architecture.layout.parameters, dtype=torch.float64)
    for edges in graph.edges:
        if edges.target == number:
            wanted[edges.index] *= scale[:, None, None]
        if edges.source == number:
            wanted[edges.index] *= inverse[:, None]
    for values in graph.values:
        if values.nodes == number:
            wanted[values.index] *= scale[:, None]
    found = scale_factors(architecture.layout, [replace(group, kind="positive")], [scale[None]])[0]
    return torch.allclose(found, wanted)


# --- the network -------------------------------------------------------------------------------------------------


class _Invariant(nn.Module):
    """A network of one hidden layer that the factors of its argument do not change; `beside` has no factor."""

    def __init__(self, inputs: int, width: int, beside: int = 0):
        super().__init__()
        self.inner = nn.Linear(inputs, width, bias=False)
        self.shift = nn.Linear(beside, width) if beside else None
        # not zero: the norm behind would make even units without any factor blind to their scale
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1, 1) / inputs**0.5)
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        self.outer = nn.Linear(width, width)

    def forward(self, x: Tensor, factors: Factors, beside: Tensor | None = None) -> Tensor:
        x = self.inner(factors.canonical(x))
        shift = self.bias if self.shift is None or beside is None else self.bias + self.shift(beside)
        hidden = self.hidden(shift + x)
        if factors.sign.any():
            both = hidden + self.hidden(shift - x)
            hidden = both if factors.sign.all() else torch.where(_over(factors.sign, x), both, hidden)
        return self.outer(hidden)


class _Equivariant(nn.Module):
    """E(x): a linear map times an invariant one; carries the factor of its argument."""

    def __init__(self, inputs: int, width: int, beside: int = 0):
        super().__init__()
        self.linear = nn.Linear(inputs, width, bias=False)
        self.invariant = _Invariant(inputs, width, beside)

    def forward(self, x: Tensor, factors: Factors, beside: Tensor | None = None) -> Tensor:
        return self.linear(x) * self.invariant(x, factors, beside)


class _Round(nn.Module):
    """One round of messages; inputs and outputs, which have no factor, have plain networks of their own."""

    def __init__(self, width: int, last: bool, bidirectional: bool):
        super().__init__()
        back = width if bidirectional else 0
        self.edge, self.source = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.message = nn.ModuleDict({kind: _Equivariant(width, width) for kind in ("hidden", "output")})
        self.update = _Equivariant(2 * width, width, back)
        self.update_output = _plain(2 * width + back, width)
        self.last = last
        if bidirectional:
            self.backward_message = _Invariant(2 * width, width)
        if bidirectional and not last:
            self.update_input = _plain(width + back, width)
        if not last:
            self.edge_linear = nn.Linear(width, width, bias=False)
            self.edge_target, self.edge_source = (_Invariant(width, width) for _ in range(2))
        self.bidirectional = bidirectional

    def forward(
        self, graph: ParameterGraph, nodes: list[Tensor], edges: list[Tensor], factors: list[Factors]
    ) -> tuple[list[Tensor], list[Tensor]]:
        incoming = [torch.zeros_like(state) for state in nodes]
        outgoing = [torch.zeros_like(state) for state in nodes]
        for ends, edge in zip(graph.edges, edges, strict=True):
            t, s = ends.target, ends.source
            kind = "hidden" if graph.nodes[t].kind == "hidden" else "output"
            message = self.message[kind](self.edge(edge) * self.source(nodes[s])[:, None], factors[t])  # m t s d
            incoming[t] = incoming[t] + message.sum(2) / message.shape[2] ** 0.5
            if self.bidirectional:
                pair = torch.cat([message, nodes[t][:, :, None].expand_as(message)], dim=-1)
                back = self.backward_message(pair, factors[t])
                outgoing[s] = outgoing[s] + back.sum(1) / back.shape[1] ** 0.5
        updated = [
            state + self._change(graph.nodes[i].kind, state, incoming[i], outgoing[i], factors[i])
            for i, state in enumerate(nodes)
        ]
        if self.last:
            return updated, edges
        changed = []
        for ends, edge in zip(graph.edges, edges, strict=True):
            target = self.edge_target(updated[ends.target], factors[ends.target])[:, :, None]
            source = self.edge_source(updated[ends.source], factors[ends.source])[:, None]
            changed.append(self.edge_linear(edge) * F.silu(target + source))
        return updated, changed

    def _change(self, kind: str, state: Tensor, incoming: Tensor, outgoing: Tensor, factors: Factors) -> Tensor:
        back = [outgoing] if self.bidirectional else []
        if kind == "hidden":
            return self.update(torch.cat([state, incoming], dim=-1), factors, *back)
        if kind == "output":
            return self.update_output(torch.cat([state, incoming, *back], dim=-1))
        if back and not self.last:  # nothing reads the inputs after the last round
            return self.update_input(torch.cat([state, *back], dim=-1))
        return torch.zeros_like(state)


def _plain(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))


class ScaleGMN(WeightEncoder):
    """Messages forwards, from inputs to outputs.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> ScaleGMN(ScaleGMNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "scale-gmn"
    Config = ScaleGMNConfig
    bidirectional = False

    def __init__(self, config: ScaleGMNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.config = config
        self.sizes = GraphSizes.of(architectures, config.kernel)
        width, layers = config.width, config.layers
        self.scale = weight_scale(config.by_tensor, architectures)
        self.edge_vectors, self.node_vectors = EdgeVectors(self.sizes), NodeVectors(self.sizes)
        self.edge = nn.Linear(self.sizes.edge_values, width, bias=False)
        self.value = nn.Parameter(torch.randn(len(ROLES), self.sizes.node_values, width))
        self.code = NodeCodes(self.sizes, width)
        self.rounds = nn.ModuleList(_Round(width, i + 1 == layers, self.bidirectional) for i in range(layers))
        self.hidden = _Invariant(width, width)
        whole = config.readout == "graph"
        self.readout = OutputReadout(self.sizes, width, 2 * width)
        self.head = nn.Linear((3 if whole else 2) * width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the deviation of all weights; their mean stays, as taking it off would not commute with scales."""
        self.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings from the states of the outputs, and where so configured the mean over hidden nodes."""
        graph = self.sizes.graph(networks.architecture)
        rows = self.scale.rows(networks, centred=False)
        factors = node_factors(networks)
        edges = [self.edge(self.edge_vectors(rows, some)) for some in graph.edges]
        nodes = self._start(rows, networks, graph)
        for messages in self.rounds:
            nodes, edges = messages(graph, nodes, edges, factors)
        outputs = self.readout(nodes[output_nodes(graph)])
        hidden = [i for i, some in enumerate(graph.nodes) if some.kind == "hidden"]
        if self.config.readout == "outputs":
            return outputs
        if not hidden:
            return F.pad(outputs, (0, self.config.width))
        states = torch.cat([self.hidden(nodes[i], factors[i]) for i in hidden], dim=1)
        return torch.cat([outputs, states.mean(1)], dim=-1)

    def _start(
        self, rows: Float[Tensor, "m p"], networks: Networks, graph: ParameterGraph
    ) -> list[Float[Tensor, "m _ d"]]:
        """Biases as states; codes multiply those of hidden nodes, as a sum would not carry their factor."""
        codes = self.code(networks, graph)
        states = [torch.zeros_like(code) for code in codes]
        for values in graph.values:
            value = self.node_vectors(rows, values) @ self.value[ROLES.index(values.role)]
            states[values.nodes] = states[values.nodes] + value
        return [
            state * code if nodes.kind == "hidden" else state + code
            for state, code, nodes in zip(states, codes, graph.nodes, strict=True)
        ]


class BidirectionalScaleGMN(ScaleGMN):
    """Messages forwards and back.

    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> BidirectionalScaleGMN(ScaleGMNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "scale-gmn-b"
    bidirectional = True
