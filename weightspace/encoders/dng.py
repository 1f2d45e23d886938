"""DNG: a network's graph read in one sweep from its inputs to its outputs, as the network itself computes.

Source: Wu et al. (2026), "Dynamic Neural Graph Encoding of Inference Processes in Deep Weight Space" (TMLR); "Encoders
of network weights", section 11. With φ Fourier features, h the states of nodes and l a layer:

    message   m_i = sum_j (E φ(w_ij)) * (N h_j)
    state     h_i = LayerNorm(GRU(input F φ(b_i), state m_i))

E, N and F are shared by all layers, which have codes and gains of their own, so that networks of any depth can be read.

Axes: m network, p parameter, t target node, s source node, n node, k value of a vector, d model width, e value of an
embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
from weightspace.encoders.weight_encoder import WeightEncoder, weight_scale
from weightspace.errors import ConfigError, LayoutError
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.graph import EdgeSet, NodeValues, ParameterGraph

Step = tuple[int, int, list[EdgeSet], list[NodeValues]]
"""Level, set of nodes, edges and values that enter it there."""


@dataclass(frozen=True, kw_only=True)
class DNGConfig:
    """Sizes of a DNG."""

    width: int = 64
    """Of the states of nodes."""
    frequencies: int = 32
    """Random directions of the Fourier features."""
    spread: float = 0.1
    """Deviation of the frequencies, for weights of deviation one."""
    sweeps: int = 1
    """How often the network is read; from the second time on nodes remember their states."""
    readout: int = 128
    """Width of the layers behind the states of the outputs, and of embeddings."""
    kernel: int | None = None
    """Side of the largest kernel; that of the training networks when missing."""
    by_tensor: bool = False
    """Standardise each tensor on its own; only networks of one layout can then be read."""

    def __post_init__(self):
        if min(self.width, self.frequencies, self.sweeps, self.readout) < 1:
            raise ConfigError(f"all sizes of a DNG must be at least 1, got {self}")


class DNG(WeightEncoder):
    """One forward sweep over the layers of a network, whatever it is wired like.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> DNG(DNGConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "dng"
    Config = DNGConfig

    def __init__(self, config: DNGConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.config = config
        self.sizes = GraphSizes.of(architectures, config.kernel)
        width = config.width
        self.scale = weight_scale(config.by_tensor, architectures)
        self.vectors = EdgeVectors(self.sizes)
        self.edge_waves = FourierFeatures(self.sizes.edge_values, config.frequencies, config.spread)
        self.edge = nn.Linear(self.edge_waves.size, width)
        self.source = nn.Linear(width, width)
        self.value = ValueEmbedding(self.sizes, width, config.frequencies, config.spread)
        self.code = NodeCodes(self.sizes, width)
        self.gain = nn.Parameter(torch.ones(self.sizes.levels, width))
        again = config.sweeps > 1 or any(_revisits(architecture.graph) for architecture in architectures)
        self.memory = nn.Linear(width, width, bias=False) if again else None
        self.cell = nn.GRUCell(width, width)
        self.norm = nn.LayerNorm(width)
        self.readout = OutputReadout(self.sizes, width, config.readout)
        self.head = nn.Linear(config.readout, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the scale of all weights."""
        self.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings from the states of the outputs after the last sweep."""
        graph = self.sizes.graph(networks.architecture)
        if self.memory is None and _revisits(graph):
            raise LayoutError(
                "several layers of the network write to the same units, as in residual networks, and those of no "
                "training network do; train the encoder dng on some that do"
            )
        rows = self.scale.rows(networks)
        codes = self.code(networks, graph)
        states = {i: codes[i] for i, nodes in enumerate(graph.nodes) if nodes.kind == "input"}
        steps = in_order(graph)
        messages = [[self.edge(self.edge_waves(self.vectors(rows, edges))) for edges in step[2]] for step in steps]
        entries = [sum((self.value(rows, some) for some in values), codes[target]) for _, target, _, values in steps]
        for _ in range(self.config.sweeps):
            for (level, target, edges, _), weights, entry in zip(steps, messages, entries, strict=True):
                state = torch.zeros_like(entry)
                for some, weight in zip(edges, weights, strict=True):
                    if some.source in states:
                        sources = self.source(states[some.source])[:, None]
                        # a sum of s independent terms, at the size of one of them
                        state = state + (weight * sources).sum(2) / weight.shape[2] ** 0.5
                state = state * self.gain[min(level, len(self.gain)) - 1]
                if self.memory is not None and target in states:
                    entry = entry + self.memory(states[target])
                state = self.cell(entry.flatten(0, 1), state.flatten(0, 1)).unflatten(0, entry.shape[:2])
                states[target] = self.norm(state)
        return self.readout(states[output_nodes(graph)])


def in_order(graph: ParameterGraph) -> list[Step]:
    """Steps of a sweep: by level, and for each set of nodes all edges and values that enter it at that level.

    >>> from weightspace.networks import CNN
    >>> [(level, target) for level, target, _, _ in in_order(Architecture.of(CNN()).graph)]
    [(1, 1), (2, 2), (3, 3)]
    """
    steps: dict[tuple[int, int], tuple[list[EdgeSet], list[NodeValues]]] = {}
    for edges in graph.edges:
        steps.setdefault((edges.level, edges.target), ([], []))[0].append(edges)
    for values in graph.values:
        steps.setdefault((values.level, values.nodes), ([], []))[1].append(values)
    return [(*key, *steps[key]) for key in sorted(steps, key=lambda key: key[0])]


def _revisits(graph: ParameterGraph) -> bool:
    targets = [target for _, target, _, _ in in_order(graph)]
    return len(set(targets)) < len(targets)
