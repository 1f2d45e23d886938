"""Plain convolutional classifiers: those of published zoos (Schürholt et al., 2022) and a small one for 8x8 digits."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from weightspace.errors import ConfigError
from weightspace.networks.blocks import Conv2d, Dropout, MaxPool, activation


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Blocks of convolution, max-pooling, activation and dropout, then linear layers.

    >>> sum(p.numel() for p in CNN().build().parameters())
    994
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    """Channels, height and width of an image."""
    classes: int = 10
    channels: tuple[int, ...] = (8, 8)
    """Output channels of each convolution."""
    kernels: tuple[int, ...] = (3, 3)
    """Side of each convolution's square kernel."""
    pools: tuple[int, ...] = (2, 2)
    """Max-pooling after each convolution; 1 means none."""
    padding: bool = True
    """Pad so that a convolution keeps the image size; needs odd kernels."""
    hidden: tuple[int, ...] = ()
    """Widths of linear layers before the last one."""
    bias: bool = True
    batch_norm: bool = False
    """Batch normalisation after each convolution."""
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.pools) > 0:
            raise ConfigError("channels, kernels and pools of a CNN must have the same length, at least 1")
        if min(*self.channels, *self.kernels, *self.pools, *self.hidden, self.classes) < 1:
            raise ConfigError(f"all sizes of a CNN must be at least 1, got {self}")
        if self.padding and any(k % 2 == 0 for k in self.kernels):
            raise ConfigError(f"padding needs odd kernels, got {self.kernels}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if min(self.feature_shape) < 1:
            raise ConfigError(f"images of {self.image_shape} are too small for this CNN; pool less or pad")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, height and width after the last pooling."""
        _, height, width = self.image_shape
        for kernel, pool in zip(self.kernels, self.pools, strict=True):
            lost = 0 if self.padding else kernel - 1
            height, width = (height - lost) // pool, (width - lost) // pool
        return self.channels[-1], height, width

    def build(self) -> nn.Sequential:
        """The module; its state-dict keys are `conv1.weight`, …, `fc1.weight`, …."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = self.image_shape[0]
        for i, (channels, kernel, pool) in enumerate(zip(self.channels, self.kernels, self.pools, strict=True), 1):
            padding = kernel // 2 if self.padding else 0
            layers[f"conv{i}"] = Conv2d(width, channels, kernel, padding=padding, bias=self.bias)
            if self.batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(channels)
            if pool > 1:
                layers[f"pool{i}"] = MaxPool(pool)
            layers[f"act{i}"] = activation(self.activation)
            layers[f"drop{i}"] = Dropout(self.dropout)
            width = channels
        layers["flatten"] = nn.Flatten()
        channels, height, side = self.feature_shape
        width = channels * height * side
        for i, size in enumerate(self.hidden, 1):
            layers[f"fc{i}"] = nn.Linear(width, size, bias=self.bias)
            layers[f"fc_act{i}"] = activation(self.activation)
            layers[f"fc_drop{i}"] = Dropout(self.dropout)
            width = size
        layers[f"fc{len(self.hidden) + 1}"] = nn.Linear(width, self.classes, bias=self.bias)
        return nn.Sequential(layers)


def cnn(image_shape: tuple[int, int, int], classes: int) -> CNN:
    """Two convolutions of 8 channels and one linear layer: 994 parameters on 8x8 digits."""
    return CNN(image_shape=image_shape, classes=classes)


def cnn_s(image_shape: tuple[int, int, int], classes: int) -> CNN:
    """CNN-s of the Model Zoos (Schürholt et al., 2022): 2464 parameters on 1x28x28 with 10 classes."""
    return CNN(
        image_shape=image_shape, classes=classes, channels=(8, 6, 4), kernels=(5, 5, 2), pools=(2, 2, 1),
        padding=False, hidden=(20,), activation="tanh",
    )  # fmt: skip


def cnn_l(image_shape: tuple[int, int, int], classes: int) -> CNN:
    """CNN-l of the Model Zoos (Schürholt et al., 2022): 10 853 parameters on 3x32x32 with 10 classes."""
    return CNN(
        image_shape=image_shape, classes=classes, channels=(16, 32, 15), kernels=(3, 3, 3), pools=(2, 2, 2),
        padding=False, hidden=(20,), activation="gelu",
    )  # fmt: skip


def arch2(image_shape: tuple[int, int, int], classes: int) -> CNN:
    """Arch 2 of Andreis et al. (2023) with widths of our own: 3346 parameters on 1x28x28 with 10 classes."""
    return CNN(
        image_shape=image_shape, classes=classes, channels=(8, 12), kernels=(3, 3), pools=(3, 3), hidden=(20,),
    )  # fmt: skip
