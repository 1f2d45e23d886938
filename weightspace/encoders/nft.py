"""NFT: attention between the weights of a network that commutes with renumbering its units.

Zhou et al., "Neural Functional Transformers" (2023). For every set of units all weights that belong to them are tokens:
each column of the weights that make the units, each row of those that read them, each vector of biases. A token is a
vector over the units, so that a product of two does not depend on the order of the units. The means of all tensors
attend to each other as well. The paper has plain chains; by sets of units (`unit_tensors`) any network is read.

Axes: m network, e entry of any tensor, a token of a set of units, n unit, c channel, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.unit_tensors import (
    Codes,
    OrbitScale,
    OutputPool,
    UnitTensor,
    graph_tensors,
    structure,
    tensors_like,
)
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError
from weightspace.views.architecture import Architecture, Networks


@dataclass(frozen=True, kw_only=True)
class NFTConfig:
    """Sizes of a neural functional transformer."""

    channels: int = 16
    """Of every weight."""
    heads: int = 4
    """Of each attention; they divide the channels."""
    layers: int = 4
    """Blocks of attention and feed-forward."""
    width: int = 256
    """Of each of the two hidden layers that read the pooled channels."""

    def __post_init__(self):
        if min(self.channels, self.heads, self.layers, self.width) < 1:
            raise ConfigError(f"all sizes of an NFT must be at least 1, got {self}")
        if self.channels % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide {self.channels} channels of an NFT")


def tokens(tensors: Sequence[UnitTensor]) -> list[Int64[Tensor, "a n"]]:
    """For each set of units, where its tokens are among the entries of all tensors, which stand one after the other.

    >>> two = UnitTensor((1, 0), (False, True), torch.zeros(2, 3, 1)), UnitTensor((1,), (False,), torch.zeros(2, 1))
    >>> [index.tolist() for index in tokens(two)]
    [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5], [6, 7]]]
    """
    found: dict[int, list[Tensor]] = {}
    start = 0
    for tensor in tensors:
        shape = tensor.index.shape[:-1]
        places = torch.arange(start, start + prod(shape)).reshape(shape)
        start += prod(shape)
        for axis, units in enumerate(tensor.axes):
            found.setdefault(units, []).append(places.movedim(axis, -1).reshape(-1, shape[axis]))
    return [torch.cat(found[units]) for units in sorted(found)]


class _Block(nn.Module):
    """Attention within every set of units and between means, feed-forward; norms before both."""

    def __init__(self, config: NFTConfig):
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(config.channels), nn.LayerNorm(config.channels)
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.proj = nn.Linear(config.channels, config.channels)
        self.feed_forward = perceptron(config.channels, 4 * config.channels, config.channels, activation=nn.GELU)

    def forward(
        self, x: Float[Tensor, "m e c"], index: Sequence[Tensor], sizes: Sequence[int]
    ) -> Float[Tensor, "m e c"]:
        qkv = self.qkv(self.norm1(x))
        means = torch.stack([part.mean(1) for part in qkv.split(list(sizes), dim=1)], dim=1)
        owner = torch.repeat_interleave(torch.tensor(sizes, device=x.device))
        attended = self._attention(means[:, :, None])[:, :, 0][:, owner]
        for places in index:
            found = self._attention(qkv[:, places])
            attended = attended.index_add(1, places.flatten(), found.flatten(1, 2))
        x = x + self.proj(attended)
        return x + self.feed_forward(self.norm2(x))

    def _attention(self, qkv: Float[Tensor, "m a n c3"]) -> Float[Tensor, "m a n c"]:
        units = qkv.shape[2]
        # each [m, head, a, n c / heads]
        q, k, v = qkv.unflatten(3, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5).flatten(4)
        return F.scaled_dot_product_attention(q, k, v).unflatten(3, (units, -1)).permute(0, 2, 3, 1, 4).flatten(3)


class NFT(WeightEncoder):
    """Blocks of attention, means over hidden units, a perceptron.

    One instance reads any hidden widths of one kind of network, that is, the same layers connected in the same way.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NFT(NFTConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "nft"
    Config = NFTConfig
    optimisation = PredictorTraining(learning_rate=1e-3)

    def __init__(self, config: NFTConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        tensors = graph_tensors(architectures[0].graph)
        self.structure = structure(tensors)
        for architecture in architectures[1:]:
            tensors_like(self.structure, architecture, self.name)
        self.scale = OrbitScale(tensors)
        # an own map for each tensor; its bias is the tensor's code
        self.lift = nn.ModuleList([nn.Linear(tensor.index.shape[-1], config.channels) for tensor in tensors])
        self.codes = Codes(tensors, [config.channels] * len(tensors))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.channels)
        self.pool = OutputPool(tensors, architectures[0].graph)
        self.body = nn.Sequential(perceptron(config.channels * self.pool.size, config.width, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep statistics of the weights."""
        self.scale.prepare([(some, self._tensors(some)) for some in training])

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        tensors = self._tensors(networks)
        lifted = [lift(values) for lift, values in zip(self.lift, self.scale(networks, tensors), strict=True)]
        coded = self.codes(lifted)
        shapes = [values.shape[1:-1] for values in coded]
        sizes = [shape.numel() for shape in shapes]
        index = [places.to(networks.rows.device) for places in tokens(tensors)]
        x = torch.cat([values.flatten(1, -2) for values in coded], dim=1)
        for block in self.blocks:
            x = block(x, index, sizes)
        parts = zip(self.norm(x).split(sizes, dim=1), shapes, strict=True)
        return self.body(self.pool([part.unflatten(1, shape) for part, shape in parts]))

    def _tensors(self, networks: Networks) -> list[UnitTensor]:
        return tensors_like(self.structure, networks.architecture, self.name)
