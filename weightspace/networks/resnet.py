"""ResNet-18 for small images (He et al., 2016; 3x3 stem without pooling as in the CIFAR zoos).

State-dict keys are the customary ones (`layer1.0.conv1.weight`, `layer2.0.downsample.0.weight`, …), so that foreign
checkpoints load.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        return _ResNet(self)


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
    def __init__(self, config: ResNet18):
        super().__init__()
        width, act = config.width, config.activation
        self.conv1 = nn.Conv2d(config.image_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = activation(act)
        self.layer1 = nn.Sequential(_BasicBlock(width, width, 1, act), _BasicBlock(width, width, 1, act))
        self.layer2 = nn.Sequential(_BasicBlock(width, 2 * width, 2, act), _BasicBlock(2 * width, 2 * width, 1, act))
        self.layer3 = nn.Sequential(
            _BasicBlock(2 * width, 4 * width, 2, act), _BasicBlock(4 * width, 4 * width, 1, act)
        )
        self.layer4 = nn.Sequential(
            _BasicBlock(4 * width, 8 * width, 2, act), _BasicBlock(8 * width, 8 * width, 1, act)
        )
        self.fc = nn.Linear(8 * width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.mean(x, dim=(2, 3)))


def resnet18(image_shape: tuple[int, int, int], classes: int) -> ResNet18:
    """ResNet-18 with 64 channels in the first stage."""
    return ResNet18(image_shape=image_shape, classes=classes)
