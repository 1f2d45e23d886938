"""Residual networks for small images (He et al., 2016): 3x3 stem without pooling, basic blocks, projection shortcuts.

`ResNet18` is that of the CIFAR zoos, `ResNet` the deeper and narrower family of the paper's CIFAR-10 experiments.

State-dict keys are the customary ones (`layer1.0.conv1.weight`, `layer2.0.downsample.0.weight`, …), so that foreign
checkpoints load.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import ConfigError
from weightspace.networks.blocks import activation


@dataclass(frozen=True, kw_only=True)
class ResNet18:
    """Four stages of two basic blocks, widths w, 2w, 4w, 8w.

    >>> sum(p.numel() for p in ResNet18().build().parameters())
    11173962
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: int = 10
    width: int = 64
    """Channels of the first stage."""
    activation: str = "relu"

    def build(self) -> nn.Module:
        """The module."""
        widths = tuple(self.width * 2**stage for stage in range(4))
        return _ResNet(self.image_shape[0], self.classes, widths, 2, self.activation)


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """Stages of basic blocks; every stage after the first halves the image.

    The default is ResNet-32. Its 464 442 weights of convolutions and the last layer are joined by 2464 scales and
    offsets.

    >>> sum(p.numel() for p in ResNet().build().parameters())
    466906
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage."""
    blocks: int = 5
    """Blocks of each stage."""
    activation: str = "relu"

    def __post_init__(self):
        if not self.widths or min(*self.widths, self.blocks, self.classes) < 1:
            raise ConfigError(f"all sizes of a ResNet must be at least 1, got {self}")

    def build(self) -> nn.Module:
        """The module."""
        return _ResNet(self.image_shape[0], self.classes, self.widths, self.blocks, self.activation)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, act: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = activation(act)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(x)) + shortcut)


class _ResNet(nn.Module):
    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], blocks: int, act: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = activation(act)
        width = widths[0]
        for stage, outputs in enumerate(widths, 1):
            first = _BasicBlock(width, outputs, 1 if stage == 1 else 2, act)
            rest = [_BasicBlock(outputs, outputs, 1, act) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            width = outputs
        self.stages = len(widths)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(torch.mean(x, dim=(2, 3)))


def resnet18(image_shape: tuple[int, int, int], classes: int) -> ResNet18:
    """ResNet-18 with 64 channels in the first stage."""
    return ResNet18(image_shape=image_shape, classes=classes)


def resnet32(image_shape: tuple[int, int, int], classes: int) -> ResNet:
    """ResNet-32 with 16, 32 and 64 channels."""
    return ResNet(image_shape=image_shape, classes=classes)


def resnet8(image_shape: tuple[int, int, int], classes: int) -> ResNet:
    """ResNet-8 of half the usual width: 8, 16 and 32 channels, 19 810 parameters on grey images with 10 classes."""
    return ResNet(image_shape=image_shape, classes=classes, widths=(8, 16, 32), blocks=1)
