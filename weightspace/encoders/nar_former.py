"""NAR-Former: the architecture of a network as tokens, without its weights; and joined with a code of the weights.

Source: Yi et al. (2023), "NAR-Former: Neural Architecture Representation Learning towards Holistic Attributes
Prediction" (CVPR); "Encoders of network weights", section 12. A layer is a token, in the order in which the network
applies them: what it does, its number, whose results it reads, and its sizes, each number as sines and cosines. A first
token says how many there are. A transformer reads the tokens, three stages of learned queries (4, 2, 1) collect them.

Axes: m network, t token, f value of a token, d model width, q query, e value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.dng import DNG, DNGConfig
from weightspace.encoders.weight_encoder import WeightEncoder, perceptron
from weightspace.errors import ConfigError
from weightspace.networks import WildPark
from weightspace.views.architecture import Architecture, Networks, activation_number

_SINES = 32
_END, _NONE = 1e5, -1.0  # the numbers of the last token, and of a source or a size that is not there, as published
_KINDS = ("linear", "conv", "norm", "other")
_NUMBERS = 11  # of a token: operation, place, sources, and eight sizes


@dataclass(frozen=True, kw_only=True)
class NARFormerConfig:
    """Sizes of a NAR-Former."""

    width: int = 96
    heads: int = 6
    """They divide the width."""
    layers: int = 3
    dropout: float = 0.0

    def __post_init__(self):
        if min(self.width, self.heads, self.layers) < 1:
            raise ConfigError(f"all sizes of a NAR-Former must be at least 1, got {self}")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}")

    @classmethod
    def published(cls) -> "NARFormerConfig":
        """The size of the paper's released code."""
        return cls(width=192, layers=6, dropout=0.1)


@dataclass(frozen=True, kw_only=True)
class NARFormerDNGConfig:
    """Sizes of a NAR-Former joined with a DNG."""

    architecture: NARFormerConfig = field(default_factory=NARFormerConfig)
    """Of the part that reads architectures."""
    weights: DNGConfig = field(default_factory=DNGConfig)
    """Of the part that reads weights."""


def sinusoids(numbers: Float[Tensor, "*some"]) -> Float[Tensor, "*some 64"]:
    """Numbers as sines and cosines of 32 wavelengths, from 2π to 2π 10000.

    >>> sinusoids(torch.zeros(2)).sum(1)
    tensor([32., 32.])
    """
    phases = numbers[..., None] / 10_000 ** (torch.arange(_SINES) / _SINES)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


@lru_cache(maxsize=512)
def tokens(architecture: Architecture, activation: int) -> Float[Tensor, "t f"]:
    """Tokens of an architecture: its inputs, each layer, and an end.

    Sizes of a layer are height and width of its kernel, places of a flattened channel, units that it reads and makes,
    the number of its activation, and how many values its biases and its norm have.

    Args:
        activation: Number of the activation, as in `Networks`.

    >>> from weightspace.networks import CNN
    >>> tokens(Architecture.of(CNN()), 0).shape
    torch.Size([5, 704])
    """
    graph = architecture.graph
    activations = [activation] * graph.levels
    if isinstance(architecture.network, WildPark):
        activations = [activation_number(name) for name in architecture.network.activations]
    inputs = [i for i, nodes in enumerate(graph.nodes) if nodes.kind == "input"]
    written = [(0, set(inputs))]  # sets of nodes that each layer writes to
    width = float(sum(graph.nodes[i].size for i in inputs))
    found = [_token([0.0, 0.0], [_NONE], [_NONE, _NONE, _NONE, _NONE, width, _NONE, 0.0, 0.0])]
    for level in range(1, graph.levels + 1):
        edges = [some for some in graph.edges if some.level == level]
        read, made = {some.source for some in edges}, {some.target for some in edges}
        sources = [float(before) for before, sets in written if sets & read] or [_NONE]
        kernel = next((some.kernel for some in edges if len(some.kernel) == 2), (1, 1))
        places = max((some.kernel[0] for some in edges if len(some.kernel) == 1), default=1)
        hidden = any(graph.nodes[i].kind == "hidden" for i in made)
        counts = {"bias": 0.0, "norm": 0.0}
        for values in graph.values:
            if values.level == level and values.role != "other":
                counts["bias" if values.role == "bias" else "norm"] += values.index.numel()
        units = [sum(graph.nodes[i].size for i in some) for some in (read, made)]
        acting = float(activations[level - 1]) if hidden else _NONE
        sizes = [*map(float, (*kernel, places, *units)), acting, *counts.values()]
        operation = 1 + _KINDS.index(architecture.layout.by_name[edges[0].tensor].layer)
        found.append(_token([float(operation), float(level)], sources, sizes))
        written.append((level, made))
    return torch.stack([*found, sinusoids(torch.full((_NUMBERS,), _END)).flatten()])


def _token(head: list[float], sources: list[float], sizes: list[float]) -> Float[Tensor, " f"]:
    codes = [sinusoids(torch.tensor(head)), sinusoids(torch.tensor(sources)).sum(0, keepdim=True)]
    return torch.cat([*codes, sinusoids(torch.tensor(sizes))]).flatten()


class _Fusion(nn.Module):
    """Learned queries that collect the tokens, after the tokens have seen what the queries before them collected."""

    def __init__(self, config: NARFormerConfig, queries: int, first: bool):
        super().__init__()
        options = {"dropout": config.dropout, "batch_first": True}
        self.queries = nn.Parameter(torch.randn(queries, config.width))
        self.first = first
        if not first:
            self.look_back = nn.MultiheadAttention(config.width, config.heads, **options)
            self.back_norm = nn.LayerNorm(config.width)
        self.collect = nn.MultiheadAttention(config.width, config.heads, **options)
        self.norm = nn.LayerNorm(config.width)
        self.feed_forward = perceptron(config.width, 4 * config.width, config.width)

    def forward(
        self, memory: Float[Tensor, "m t d"], before: Float[Tensor, "m _ d"]
    ) -> tuple[Float[Tensor, "m t d"], Float[Tensor, "m q d"]]:
        if not self.first:
            memory = memory + self.look_back(self.back_norm(memory), before, before, need_weights=False)[0]
        queries = self.queries.expand(len(memory), -1, -1)
        collected = self.collect(queries, memory, memory, need_weights=False)[0]
        return memory, collected + self.feed_forward(self.norm(collected))


class ArchitectureTransformer(nn.Module):
    """From architectures to embeddings."""

    def __init__(self, config: NARFormerConfig):
        super().__init__()
        self.width = config.width
        self.token = nn.Linear(_NUMBERS * 2 * _SINES, config.width)
        self.depth = nn.Sequential(nn.Linear(2 * _SINES, config.width), nn.ReLU())
        block = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            block, config.layers, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.stages = nn.ModuleList(_Fusion(config, queries, queries == 4) for queries in (4, 2, 1))

    def forward(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Embeddings of the architectures of networks; each activation is read once."""
        numbers, owner = networks.activations.unique(return_inverse=True)
        found = torch.stack([tokens(networks.architecture, number) for number in numbers.tolist()]).to(networks.rows)
        depth = sinusoids(torch.tensor(float(found.shape[1]))).to(found).expand(len(found), 1, -1)
        memory = self.encoder(torch.cat([self.depth(depth), self.token(found)], dim=1))
        collected = memory
        for stage in self.stages:
            memory, collected = stage(memory, collected)
        return collected[:, 0][owner]


class NARFormer(WeightEncoder):
    """The architecture alone: a baseline that knows nothing of the weights.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NARFormer(NARFormerConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "nar-former"
    Config = NARFormerConfig

    def __init__(self, config: NARFormerConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.body = ArchitectureTransformer(config)
        self.head = nn.Linear(config.width, outputs)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Embeddings, equal for networks of one architecture and activation."""
        return self.body(networks)


class NARFormerDNG(WeightEncoder):
    """Embedding of the architecture and embedding of the weights, side by side.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NARFormerDNG(NARFormerDNGConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "nar-former-dng"
    Config = NARFormerDNGConfig

    def __init__(self, config: NARFormerDNGConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.architecture = ArchitectureTransformer(config.architecture)
        self.weights = DNG(config.weights, architectures, outputs)
        self.weights.head = nn.Identity()  # what is predicted is read from both embeddings
        together = config.architecture.width + config.weights.readout
        self.head = perceptron(together, config.weights.readout, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the scale of all weights."""
        self.weights.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Both embeddings."""
        return torch.cat([self.architecture(networks), self.weights.encode(networks)], dim=1)
