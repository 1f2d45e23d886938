"""Neural functional networks: equivariant layers for plain chains of linear and convolutional layers.

Zhou et al., "Permutation Equivariant Neural Functionals" (2023). NP layers treat inputs and outputs of the networks as
if they could be renumbered, too, and tell them apart by learned codes; in HNP layers they are channels.

A kernel is folded into the channels of a weight, and so are the places of a flattened channel. All pooling is by means.
Parameters depend on the number of layers, on kernels, inputs and outputs of the networks, not on hidden widths.

Axes: m network, t unit that is made, s unit that is read, n unit, c channel, d value of an embedding. Layers of the
networks are numbered from 0.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.unit_tensors import OrbitScale, UnitTensor, chain_tensors
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError, LayoutError
from weightspace.views.architecture import Architecture, Networks

Weights = list[Tensor]
"""`[m, t, s, c]` of each layer."""
Biases = list[Tensor]
"""`[m, n, c]` of each layer."""


@dataclass(frozen=True, kw_only=True)
class NFNConfig:
    """Sizes of an NFN; those published for the Small CNN Zoo.

    >>> NFNConfig.siren().channels, NFNConfig.siren().frequencies
    ((512, 512, 512), 128)
    """

    channels: tuple[int, ...] = (16, 16, 5)
    """Of every weight after each layer."""
    width: int = 1000
    """Of each of the two hidden layers that read the pooled channels."""
    dropout: float = 0.0
    """In the two hidden layers."""
    frequencies: int = 0
    """Random ones, of which each weight becomes sine and cosine; 0 leaves the weight as it is."""
    frequency_scale: float = 3.0
    """Deviation of the frequencies; published are 3 for SIRENs of MNIST and 10 for others."""

    def __post_init__(self):
        if min(*self.channels, self.width, 1) < 1 or not self.channels:
            raise ConfigError(f"an NFN needs at least one layer and sizes of at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.frequencies < 0 or self.frequency_scale <= 0:
            raise ConfigError(f"frequencies of an NFN cannot be negative, and their scale is above 0, got {self}")

    @classmethod
    def siren(cls) -> "NFNConfig":
        """Sizes published for classifiers of SIRENs; too large for a CPU."""
        return cls(channels=(512, 512, 512), dropout=0.5, frequencies=128)


@dataclass(frozen=True)
class ChainShape:
    """What networks must have in common for one instance to read them."""

    kernels: tuple[int, ...]
    """Values of a weight in each layer: positions of the kernel, or places of a flattened channel."""
    inputs: int
    outputs: int

    @classmethod
    def of(cls, tensors: Sequence[UnitTensor]) -> "ChainShape":
        """The shape of `unit_tensors.chain_tensors`."""
        weights = [tensor.index.shape for tensor in tensors if len(tensor.axes) == 2]
        return cls(tuple(shape[2] for shape in weights), weights[0][1], weights[-1][0])


class FourierFeatures(nn.Module):
    """Sines and cosines of weights at random frequencies, which stay as they are drawn (Tancik et al., 2020).

    >>> FourierFeatures(8, scale=3.0)(torch.zeros(2, 5, 4, 9)).shape
    torch.Size([2, 5, 4, 144])
    """

    frequencies: Tensor

    def __init__(self, count: int, scale: float):
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(count))

    def forward(self, x: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
        """Twice as many channels as frequencies for each value."""
        angles = 2 * math.pi * x[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class _Sum(nn.Module):
    """A sum of linear maps of several inputs, which the caller adds where each is broadcast."""

    def __init__(self, inputs: Sequence[int], output: int):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(size, output) for size in inputs])
        bound = sum(inputs) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Each input through its own map."""
        return (some(x) for some, x in zip(self.maps, inputs, strict=True))


def _mean(x: Tensor, axis: int) -> Tensor:
    # the gradient of a sum is a view, that of a mean a new tensor of the size of the weights
    return x.sum(axis) * (1 / x.shape[axis])


class NPLinear(nn.Module):
    """The NF layer that commutes with renumbering of all units, inputs and outputs of the networks among them.

    >>> layer = NPLinear(ChainShape((9, 1), inputs=1, outputs=10), 1, 16)
    >>> weights, biases = [torch.zeros(2, 8, 1, 9), torch.zeros(2, 10, 8, 1)], [torch.zeros(2, n, 1) for n in (8, 10)]
    >>> [tuple(w.shape) for w in layer(weights, biases)[0]]
    [(2, 8, 1, 144), (2, 10, 8, 16)]
    """

    def __init__(self, shape: ChainShape, inputs: int, outputs: int):
        super().__init__()
        entries = [inputs * kernel for kernel in shape.kernels]
        every = sum(entries) + inputs * len(entries)
        # what is known of a unit: the layer that makes it by rows and bias, the one that reads it by columns
        made = [entry + inputs for entry in entries]
        rows = [entry + (made[i - 1] if i else 0) for i, entry in enumerate(entries)]
        columns = [some + (entries[i + 1] if i + 1 < len(entries) else 0) for i, some in enumerate(made)]
        self.weights = nn.ModuleList([
            _Sum((entry, row, column, every), outputs * kernel)
            for entry, row, column, kernel in zip(entries, rows, columns, shape.kernels, strict=True)
        ])  # fmt: skip
        self.biases = nn.ModuleList([_Sum((column, every), outputs) for column in columns])

    def forward(self, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        """Features of the next layer."""
        by_column = [_mean(w, 1) for w in weights]  # over what is made: [m, s, c]
        by_row = [_mean(w, 2) for w in weights]  # over what is read: [m, t, c]
        every = torch.cat([_mean(x, 1) for x in (*by_row, *biases)], dim=1)
        new_weights, new_biases = [], []
        for i, weight in enumerate(weights):
            row = torch.cat([by_column[i], *([by_row[i - 1], biases[i - 1]] if i else [])], dim=-1)
            column = torch.cat([by_row[i], biases[i], *by_column[i + 1 : i + 2]], dim=-1)
            entry, of_read, of_made, of_all = self.weights[i](weight, row, column, every)
            new_weights.append(_joined(entry, of_read, of_made, of_all))
            of_made, of_all = self.biases[i](column, every)
            new_biases.append(of_made + of_all[:, None])
        return new_weights, new_biases


class HNPLinear(nn.Module):
    """The NF layer that commutes with renumbering of hidden units; inputs and outputs of the networks are channels.

    >>> layer = HNPLinear(ChainShape((9, 1), inputs=1, outputs=10), 1, 16)
    >>> weights, biases = [torch.zeros(2, 8, 1, 9), torch.zeros(2, 10, 8, 1)], [torch.zeros(2, n, 1) for n in (8, 10)]
    >>> [tuple(b.shape) for b in layer(weights, biases)[1]]
    [(2, 8, 16), (2, 10, 16)]
    """

    def __init__(self, shape: ChainShape, inputs: int, outputs: int):
        super().__init__()
        self.shape = shape
        kernels, last = shape.kernels, len(shape.kernels) - 1
        entries = [inputs * kernel for kernel in kernels]
        first_read, last_made = entries[0] * shape.inputs, entries[-1] * shape.outputs
        every = sum(entries) + inputs * len(entries) + first_read + last_made + inputs * shape.outputs
        first = first_read + entries[1] + inputs + (last_made if last == 1 else 0)
        final = last_made + entries[-2] + (first_read if last == 1 else 0)
        self.weights = nn.ModuleList([_Sum((first, every), outputs * kernels[0] * shape.inputs)])
        self.biases = nn.ModuleList([_Sum((first, every), outputs)])
        for i in range(1, last):
            row = entries[i] + entries[i - 1] + inputs + (first_read if i == 1 else 0)
            column = entries[i] + inputs + entries[i + 1] + (last_made if i == last - 1 else 0)
            self.weights.append(_Sum((entries[i], row, column, every), outputs * kernels[i]))
            self.biases.append(_Sum((column, every), outputs))
        self.weights.append(_Sum((final, every), outputs * kernels[-1] * shape.outputs))
        self.biases.append(_Sum((every,), outputs * shape.outputs))

    def forward(self, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        """Features of the next layer."""
        last = len(weights) - 1
        by_column = [_mean(w, 1) for w in weights]  # over what is made: [m, s, c]
        by_row = [_mean(w, 2) for w in weights]  # over what is read: [m, t, c]
        ends = [by_column[0], by_row[-1], biases[-1]]  # inputs and outputs keep their places
        every = torch.cat([_mean(x, 1) for x in (*by_row, *biases)] + [some.flatten(1) for some in ends], dim=1)
        first = weights[0].flatten(2)  # [m, t, s c]
        final = weights[-1].transpose(1, 2).flatten(2)  # [m, s, t c]

        known = torch.cat([first, by_column[1], biases[0], *([final] if last == 1 else [])], dim=-1)
        of_made, of_all = self.weights[0](known, every)
        new_weights = [(of_made + of_all[:, None]).unflatten(2, (self.shape.inputs, -1))]
        of_made, of_all = self.biases[0](known, every)
        new_biases = [of_made + of_all[:, None]]

        for i in range(1, last):
            row = torch.cat([by_column[i], by_row[i - 1], biases[i - 1], *([first] if i == 1 else [])], dim=-1)
            column = [by_row[i], biases[i], by_column[i + 1], *([final] if i == last - 1 else [])]
            made = torch.cat(column, dim=-1)
            new_weights.append(_joined(*self.weights[i](weights[i], row, made, every)))
            of_made, of_all = self.biases[i](made, every)
            new_biases.append(of_made + of_all[:, None])

        known = torch.cat([final, by_row[-2], *([first] if last == 1 else [])], dim=-1)
        of_read, of_all = self.weights[-1](known, every)
        new_weights.append((of_read + of_all[:, None]).unflatten(2, (self.shape.outputs, -1)).transpose(1, 2))
        [of_all] = self.biases[-1](every)
        new_biases.append(of_all.unflatten(1, (self.shape.outputs, -1)))
        return new_weights, new_biases


def _joined(
    entry: Float[Tensor, "m t s c"],
    of_read: Float[Tensor, "m s c"],
    of_made: Float[Tensor, "m t c"],
    of_all: Float[Tensor, "m c"],
) -> Float[Tensor, "m t s c"]:
    return entry + of_read[:, None] + (of_made + of_all[:, None])[:, :, None]


class IOCodes(nn.Module):
    """Learned codes of the inputs and outputs of the networks, added before an NP layer."""

    def __init__(self, shape: ChainShape, channels: int):
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(shape.inputs, shape.kernels[0] * channels))
        self.outputs = nn.Parameter(torch.randn(shape.outputs, 1, shape.kernels[-1] * channels))
        self.bias = nn.Parameter(torch.randn(shape.outputs, channels))

    def forward(self, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        """Features with codes."""
        coded = [weights[0] + self.inputs, *weights[1:-1], weights[-1] + self.outputs]
        return coded, [*biases[:-1], biases[-1] + self.bias]


def hnp_pool(weights: Weights, biases: Biases) -> Float[Tensor, "m d"]:
    """Means over hidden units; inputs and outputs of the networks keep their places.

    >>> weights, biases = [torch.zeros(2, 8, 1, 9), torch.zeros(2, 10, 8, 1)], [torch.zeros(2, n, 1) for n in (8, 10)]
    >>> hnp_pool(weights, biases).shape
    torch.Size([2, 30])
    """
    means = [*(_mean(_mean(w, 2), 1) for w in weights[1:-1]), *(_mean(b, 1) for b in biases[:-1])]
    ends = [_mean(weights[0], 1), _mean(weights[-1], 2), biases[-1]]
    return torch.cat([*means, *(some.flatten(1) for some in ends)], dim=1)


class _NFN(WeightEncoder):
    """What both have in common: layers with ReLU between them, HNP pooling, a perceptron."""

    Config = NFNConfig
    optimisation = PredictorTraining(learning_rate=1e-3)
    layer: ClassVar[type[NPLinear] | type[HNPLinear]]

    def __init__(self, config: NFNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        tensors = chain_tensors(architectures[0].graph, self.name)
        self.shape = ChainShape.of(tensors)
        for architecture in architectures[1:]:
            self._tensors(architecture)
        self.scale = OrbitScale(tensors)
        waves = config.frequencies
        self.features = FourierFeatures(waves, config.frequency_scale) if waves else nn.Identity()
        self.channels = channels = (2 * waves or 1, *config.channels)
        """Of every weight before and after each layer."""
        self.layers = nn.ModuleList([self.layer(self.shape, *some) for some in pairwise(channels)])
        kernels, shape = self.shape.kernels, self.shape
        ends = kernels[0] * shape.inputs + (kernels[-1] + 1) * shape.outputs
        pooled = channels[-1] * (ends + sum(kernels[1:-1]) + len(kernels) - 1)
        first, second = perceptron(pooled, config.width), perceptron(config.width, config.width)
        self.body = nn.Sequential(
            first, nn.ReLU(), nn.Dropout(config.dropout), second, nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep statistics of the weights."""
        self.scale.prepare([(some, self._tensors(some.architecture)) for some in training])

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        read = [self.features(x) for x in self.scale(networks, self._tensors(networks.architecture))]
        weights, biases = read[: len(read) // 2], read[len(read) // 2 :]
        for number, layer in enumerate(self.layers):
            weights, biases = layer(*self.coded(number, weights, biases))
            weights, biases = [torch.relu(w) for w in weights], [torch.relu(b) for b in biases]
        return self.body(hnp_pool(weights, biases))

    def coded(self, number: int, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        """What layer `number` reads."""
        return weights, biases

    def _tensors(self, architecture: Architecture) -> list[UnitTensor]:
        tensors = chain_tensors(architecture.graph, self.name)
        if (found := ChainShape.of(tensors)) != self.shape:
            raise LayoutError(
                f"the encoder {self.name} was made for chains of {len(self.shape.kernels)} layers ({self.shape}), and "
                f"layout {architecture.layout.digest} is one of {len(found.kernels)} ({found}); take an encoder of "
                "sets or graphs"
            )
        return tensors


class NFNNP(_NFN):
    """NP layers with input and output codes.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NFNNP(NFNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "nfn-np"
    layer = NPLinear

    def __init__(self, config: NFNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.codes = nn.ModuleList([IOCodes(self.shape, channels) for channels in self.channels[:-1]])

    def coded(self, number: int, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        """With codes of inputs and outputs."""
        return self.codes[number](weights, biases)


class NFNHNP(_NFN):
    """HNP layers.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> NFNHNP(NFNConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "nfn-hnp"
    layer = HNPLinear
