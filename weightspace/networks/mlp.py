"""Multi-layer perceptrons on flattened images."""

from collections import OrderedDict
from dataclasses import dataclass
from math import prod

from torch import nn

from weightspace.errors import ConfigError
from weightspace.networks.blocks import Dropout, activation


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with an activation and dropout between them.

    >>> sum(p.numel() for p in MLP().build().parameters())
    1060
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    """Channels, height and width of an image."""
    classes: int = 10
    hidden: tuple[int, ...] = (14,)
    """Widths of the hidden layers."""
    bias: bool = True
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self):
        if min(*self.hidden, *self.image_shape, self.classes) < 1:
            raise ConfigError(f"all sizes of an MLP must be at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")

    def build(self) -> nn.Sequential:
        """The module; its state-dict keys are `fc1.weight`, `fc1.bias`, …."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = prod(self.image_shape)
        for i, size in enumerate(self.hidden, 1):
            layers[f"fc{i}"] = nn.Linear(width, size, bias=self.bias)
            layers[f"act{i}"] = activation(self.activation)
            layers[f"drop{i}"] = Dropout(self.dropout)
            width = size
        layers[f"fc{len(self.hidden) + 1}"] = nn.Linear(width, self.classes, bias=self.bias)
        return nn.Sequential(layers)


def mlp(image_shape: tuple[int, int, int], classes: int) -> MLP:
    """One hidden layer of 14 units: 1060 parameters on 8x8 digits."""
    return MLP(image_shape=image_shape, classes=classes)
