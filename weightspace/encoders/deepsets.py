"""DeepSets: weights as sets of numbers, of each tensor or of the whole network.

Zaheer et al., "Deep Sets" (2017), as a baseline of weight encoders (Navon et al., 2023): every weight and its square
go through one perceptron, and the results are averaged. This ignores in what order the weights of a tensor are, which
is much more than hidden units may change places.

The mean is taken before the perceptron's last layer, which is linear: the result is the same, and the layer is applied
once instead of once for every weight.

Axes: m network, p parameter, v weight of a tensor, h hidden value, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.weight_encoder import PredictorTraining, ScalarScale, WeightEncoder, perceptron
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import Layout
from weightspace.views.architecture import Architecture, Networks

_LAYERS, _ROLES = ("linear", "conv", "norm", "other"), ("weight", "bias", "running_mean", "running_var")
_FREQUENCIES = 4  # of the code of a level: periods of 6, 13, 25 and 50 layers


@dataclass(frozen=True, kw_only=True)
class DeepSetsConfig:
    """Sizes of DeepSets."""

    width: int = 64
    """Of the perceptron that reads each weight, and of its result."""
    head_width: int = 256
    """Of the hidden layer that reads the results of all tensors, and of the embedding."""

    def __post_init__(self):
        if min(self.width, self.head_width) < 1:
            raise ConfigError(f"all sizes of DeepSets must be at least 1, got {self}")


class DeepSets(WeightEncoder):
    """For each tensor a perceptron of each weight, a mean and a second perceptron; the tensors side by side.

    Reads networks of the same kinds of tensors in the same order, of any sizes.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> DeepSets(DeepSetsConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "deepsets"
    Config = DeepSetsConfig
    optimisation = PredictorTraining(learning_rate=1e-3)
    mean: Tensor
    std: Tensor

    def __init__(self, config: DeepSetsConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.kinds = _kinds(architectures[0].layout)
        for architecture in architectures[1:]:
            self._check(architecture.layout)
        count, width = len(self.kinds), config.width
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        bound = 2**-0.5  # as of a linear layer with two inputs
        self.weights = nn.Parameter(torch.empty(count, width, 2).uniform_(-bound, bound))
        self.biases = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))
        self.second = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.after = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(count)])
        self.body = nn.Sequential(nn.ReLU(), perceptron(count * width, config.head_width, config.head_width), nn.ReLU())
        self.head = nn.Linear(config.head_width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep mean and deviation of every tensor."""
        for number in range(len(self.kinds)):
            values = torch.cat([_tensors(some)[number].double().flatten() for some in training])
            std, mean = torch.std_mean(values, correction=0)
            self.mean[number] = mean
            self.std[number] = torch.where(std > 1e-8, std, 1.0)

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        self._check(networks.architecture.layout)
        means = []
        for number, values in enumerate(_tensors(networks)):
            scaled = (values - self.mean[number]) / self.std[number]
            mean = _mean_hidden(scaled, self.weights[number], self.biases[number])
            means.append(self.after[number](self.second[number](mean)))
        return self.body(torch.cat(means, dim=1))

    def _check(self, layout: Layout) -> None:
        if _kinds(layout) != self.kinds:
            raise LayoutError(
                f"the encoder deepsets was made for networks of {len(self.kinds)} tensors of certain kinds, and layout "
                f"{layout.digest} has other ones; take deepsets-any, or an encoder of graphs"
            )


class DeepSetsAny(WeightEncoder):
    """One perceptron of every weight and of a code of its tensor, one mean over the whole network.

    The code says what kind of layer the tensor is of, what it is to it, and how many layers are before and behind it,
    so that networks of any architectures are read together.

    >>> from weightspace.networks import CNN, MLP
    >>> both = [Architecture.of(network) for network in (CNN(), MLP())]
    >>> encoder = DeepSetsAny(DeepSetsConfig(), both, outputs=1)
    >>> [encoder(Networks.of(torch.randn(4, some.layout.parameters), some)).shape for some in both]
    [torch.Size([4, 1]), torch.Size([4, 1])]
    """

    name = "deepsets-any"
    Config = DeepSetsConfig
    optimisation = PredictorTraining(learning_rate=1e-3)

    def __init__(self, config: DeepSetsConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.scale = ScalarScale()
        self.first = nn.Linear(2, config.width)
        self.kinds = nn.Embedding(len(_LAYERS) * len(_ROLES), config.width)
        self.levels = nn.Linear(4 * _FREQUENCIES, config.width, bias=False)
        self.second = nn.Linear(config.width, config.width)
        self.body = nn.Sequential(nn.ReLU(), perceptron(config.width, config.head_width, config.head_width), nn.ReLU())
        self.head = nn.Linear(config.head_width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep one mean and deviation of all weights."""
        self.scale.prepare(training)

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        layout = networks.architecture.layout
        kinds = [_LAYERS.index(layer) * len(_ROLES) + _ROLES.index(role) for layer, role in _kinds(layout)]
        device = networks.rows.device
        codes = self.kinds(torch.tensor(kinds, device=device))
        codes = codes + self.levels(_level_codes(networks.architecture).to(codes)) + self.first.bias
        total = networks.rows.new_zeros(len(networks), self.first.out_features)
        for code, values in zip(codes, _tensors(networks), strict=True):
            share = values.shape[1] / layout.parameters
            total = total + share * _mean_hidden(self.scale(values), self.first.weight, code)
        return self.body(self.second(total))


def _mean_hidden(
    values: Float[Tensor, "m v"], weight: Float[Tensor, "h 2"], bias: Float[Tensor, " h"]
) -> Float[Tensor, "m h"]:
    """Mean over weights of what the first layer of the perceptron makes of a weight and its square."""
    known = torch.stack([values, values.square(), torch.ones_like(values)], dim=1)  # [m, 3, v]
    linear = torch.cat([weight, bias[:, None]], dim=1)
    # The mean of relu(linear(v)) is linear applied to the sums of those v where it is positive. Which these are has no
    # gradient, so that nothing of the size [m, v, h] is kept or read again on the way back.
    with torch.no_grad():
        positive = F.linear(known.transpose(1, 2), linear).gt_(0)
    sums = known @ positive  # [m, 3, h]
    return (sums * linear.T).sum(1) / values.shape[1]


def _tensors(networks: Networks) -> list[Float[Tensor, "m v"]]:
    return list(networks.rows.split([spec.size for spec in networks.architecture.layout.tensors], dim=1))


def _kinds(layout: Layout) -> list[tuple[str, str]]:
    return [(spec.layer, spec.role) for spec in layout.tensors]


def _level_codes(architecture: Architecture) -> Tensor:
    """Sines and cosines of each tensor's number of layer, counted from the inputs and from the outputs."""
    graph = architecture.graph
    levels = {part.tensor: part.level for part in graph.edges} | {part.tensor: part.level for part in graph.values}
    before = torch.tensor([levels[spec.name] for spec in architecture.layout.tensors], dtype=torch.float64)
    numbers = torch.stack([before, graph.levels - before], dim=1)
    angles = (numbers[:, :, None] * 0.5 ** torch.arange(_FREQUENCIES, dtype=torch.float64)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
