"""StatNN: a perceptron that reads weight statistics.

Unterthiner et al., "Predicting neural network accuracy from weights" (2020): seven numbers of every tensor, 56 of the
Small CNN Zoo's networks. The perceptron is the one that Zhou et al. (2023) call StatNN. Networks with fewer tensors
than the deepest training network have zeros in the place of those that they lack (Kofinas et al., 2024).

Axes: m network, p parameter, f feature, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import Layout
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.statistics import PERCENTILES, weight_statistics

_SPREAD = 1  # place of the deviation among the numbers of a tensor
_NUMBERS = 2 + len(PERCENTILES)


@dataclass(frozen=True, kw_only=True)
class StatNNConfig:
    """Sizes of StatNN."""

    width: int = 1000
    """Of each of the two hidden layers."""
    spread: Literal["deviation", "variance"] = "deviation"
    """Second number of a tensor: deviation over n (Unterthiner et al.), or variance over n - 1 (Zhou et al.)."""

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width of StatNN must be at least 1, got {self.width}")
        if self.spread not in ("deviation", "variance"):
            raise ConfigError(f"spread of StatNN is deviation or variance, got {self.spread!r}")


class StatNN(WeightEncoder):
    """Statistics, standardised over training networks, and a perceptron with two hidden layers.

    >>> from weightspace.networks import PooledCNN
    >>> zoo = Architecture.of(PooledCNN())
    >>> encoder = StatNN(StatNNConfig(), [zoo], outputs=1)
    >>> encoder.features, encoder(Networks.of(torch.randn(4, 4970), zoo)).shape
    (56, torch.Size([4, 1]))
    """

    name = "statnn"
    Config = StatNNConfig
    optimisation = PredictorTraining(learning_rate=1e-3)
    mean: Tensor
    std: Tensor

    def __init__(self, config: StatNNConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.variance = config.spread == "variance"
        self.tensors = max(len(architecture.layout.tensors) for architecture in architectures)
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))
        self.body = nn.Sequential(perceptron(self.features, config.width, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    @property
    def features(self) -> int:
        """Statistics of the deepest training network."""
        return _NUMBERS * self.tensors

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep mean and deviation of every statistic."""
        features = torch.cat([self.statistics(some) for some in training]).double()
        std, mean = torch.std_mean(features, dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-8, std, 1.0))

    def statistics(self, networks: Networks) -> Float[Tensor, "m f"]:
        """Statistics as the perceptron reads them, but for the standardisation.

        Raises:
            LayoutError: The networks have more tensors than the deepest training network.
        """
        layout = networks.architecture.layout
        lacking = self.tensors - len(layout.tensors)
        if lacking < 0:
            raise LayoutError(
                f"the encoder statnn was made for networks of at most {self.tensors} tensors, and layout "
                f"{layout.digest} has {len(layout.tensors)}; train it on networks as deep, or take an encoder of graphs"
            )
        features = weight_statistics(networks.rows.detach(), layout).to(networks.rows.dtype)
        if self.variance:
            spread = features[:, _SPREAD::_NUMBERS]
            features = features.clone()
            features[:, _SPREAD::_NUMBERS] = spread.square() * _unbiased(layout).to(features)
        return nn.functional.pad(features, (0, _NUMBERS * lacking))

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        return self.body((self.statistics(networks) - self.mean) / self.std)


def _unbiased(layout: Layout) -> Tensor:
    """n / (n - 1) of each tensor; one of a single value, whose variance is zero."""
    sizes = torch.tensor([float(spec.size) for spec in layout.tensors])
    return sizes / (sizes - 1).clamp_min(1)
