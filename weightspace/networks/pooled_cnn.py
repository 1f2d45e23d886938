"""Convolutional classifiers that end in adaptive average pooling: the Small CNN Zoo and Arch 1.

Sources: Unterthiner et al. (2020), "Predicting Neural Network Accuracy from Weights"; Andreis, Soro and Hwang (2023),
"Set-based Neural Network Encoding without Weight Tying", Table 10 (its layers; its widths are not given there).
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from weightspace.errors import ConfigError
from weightspace.networks.blocks import Conv2d, Dropout, activation


@dataclass(frozen=True, kw_only=True)
class PooledCNN:
    """Strided convolutions with activation and dropout, average pooling to a small square, one linear layer.

    >>> sum(p.numel() for p in PooledCNN().build().parameters())
    4970
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of an image."""
    classes: int = 10
    channels: tuple[int, ...] = (16, 16, 16)
    """Output channels of each convolution."""
    kernels: tuple[int, ...] = (3, 3, 3)
    """Side of each convolution's square kernel."""
    strides: tuple[int, ...] = (2, 2, 2)
    """Step of each convolution."""
    pooled: int = 1
    """Side of the features after the average pooling."""
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ConfigError("channels, kernels and strides of a PooledCNN must have the same length, at least 1")
        if min(*self.channels, *self.kernels, *self.strides, self.pooled, self.classes) < 1:
            raise ConfigError(f"all sizes of a PooledCNN must be at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        side = min(self.image_shape[1:])
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            side = (side - kernel) // stride + 1
        if side < 1:
            raise ConfigError(f"images of {self.image_shape} are too small for this PooledCNN; stride less")

    def build(self) -> nn.Sequential:
        """The module; its state-dict keys are `conv1.weight`, …, `fc1.weight`, `fc1.bias`."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = self.image_shape[0]
        for i, (channels, kernel, stride) in enumerate(zip(self.channels, self.kernels, self.strides, strict=True), 1):
            layers[f"conv{i}"] = Conv2d(width, channels, kernel, stride=stride)
            layers[f"act{i}"] = activation(self.activation)
            layers[f"drop{i}"] = Dropout(self.dropout)
            width = channels
        layers["pool"] = nn.AdaptiveAvgPool2d(self.pooled)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(width * self.pooled**2, self.classes)
        return nn.Sequential(layers)


def small_cnn(image_shape: tuple[int, int, int], classes: int) -> PooledCNN:
    """The network of the Small CNN Zoo (Unterthiner et al., 2020): 4970 parameters on grey images with 10 classes."""
    return PooledCNN(image_shape=image_shape, classes=classes)


def arch1(image_shape: tuple[int, int, int], classes: int) -> PooledCNN:
    """Arch 1 of Andreis et al. (2023) with widths of our own: 5018 parameters on 1x28x28 with 10 classes."""
    return PooledCNN(image_shape=image_shape, classes=classes, channels=(8, 16, 16), strides=(2, 1, 1), pooled=3)
