"""The CNN Wild Park: classifiers of random depth, width, kernels, activations and skip connections.

Source: Kofinas et al. (2024), "Graph Neural Networks for Learning Equivariant Representations of Neural Networks"; two
to five convolutions of stride 1 that keep the image size, global average pooling, one linear layer. A skip connection
adds the first channels of an earlier, not adjacent layer before the activation.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from weightspace.errors import ConfigError
from weightspace.networks import streams
from weightspace.networks.blocks import Conv2d, activation

DEPTHS, CHANNELS, KERNELS = (2, 3, 4, 5), (4, 8, 16, 32), (3, 5, 7)
"""What `wild_park` draws from."""
SKIP_SHARE = 0.5
"""Probability of a skip connection where one is possible."""
_DRAWS = 7  # stream
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class WildPark:
    """One network of the park.

    >>> WildPark(channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3, skips=(None, None, 0)).name
    '4-8-4_k3-5-3_relu-relu-relu_s2from0'
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: int = 10
    channels: tuple[int, ...] = (8, 8)
    """Output channels of each convolution."""
    kernels: tuple[int, ...] = (3, 3)
    """Side of each convolution's square kernel, odd."""
    activations: tuple[str, ...] = ("relu", "relu")
    """Activation of each convolution."""
    skips: tuple[int | None, ...] = (None, None)
    """For each convolution the earlier one whose output it adds; at least two before it."""

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.activations) == len(self.skips) > 0:
            raise ConfigError("channels, kernels, activations and skips of a WildPark must have the same length")
        if min(*self.channels, *self.kernels, self.classes) < 1 or any(kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"all sizes of a WildPark must be at least 1 and its kernels odd, got {self}")
        for layer, source in enumerate(self.skips):
            if source is not None and not 0 <= source <= layer - 2:
                raise ConfigError(f"layer {layer} can add layers 0 to {layer - 2}, got {source}")

    @property
    def name(self) -> str:
        """Channels, kernels, activations and skips as one word."""
        skips = "".join(f"_s{layer}from{source}" for layer, source in enumerate(self.skips) if source is not None)
        parts = ("-".join(map(str, part)) for part in (self.channels, self.kernels, self.activations))
        return "{}_k{}_{}".format(*parts) + skips

    @property
    def activation(self) -> str:
        """The activations of all layers as one word."""
        return "-".join(self.activations)

    def build(self) -> nn.Module:
        """The module; its state-dict keys are `conv.0.weight`, …, `fc.weight`, `fc.bias`."""
        return _WildPark(self)


class _WildPark(nn.Module):
    def __init__(self, config: WildPark):
        super().__init__()
        inputs = (config.image_shape[0], *config.channels[:-1])
        shapes = zip(inputs, config.channels, config.kernels, strict=True)
        self.conv = nn.ModuleList([Conv2d(i, o, kernel, padding=kernel // 2) for i, o, kernel in shapes])
        self.act = nn.ModuleList([activation(name) for name in config.activations])
        self.skips = config.skips
        self.fc = nn.Linear(config.channels[-1], config.classes)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for convolution, act, source in zip(self.conv, self.act, self.skips, strict=True):
            x = convolution(x)
            if source is not None:
                shared = min(x.shape[1], seen[source].shape[1])
                x = torch.cat([x[:, :shared] + seen[source][:, :shared], x[:, shared:]], dim=1)
            x = act(x)
            seen.append(x)
        return self.fc(x.mean((2, 3)))


def wild_park(
    image_shape: tuple[int, int, int], classes: int, *, seed: int, activations: tuple[str, ...] = ("relu",)
) -> WildPark:
    """The network of the park that a seed determines.

    Args:
        activations: What each layer's activation is drawn from.

    >>> wild_park((3, 32, 32), 10, seed=3) == wild_park((3, 32, 32), 10, seed=3)
    True
    """
    draws = iter(streams.uniform(torch.tensor([seed]), _DRAWS, 1 + 5 * max(DEPTHS))[0].double().tolist())

    def choice(options: tuple[T, ...]) -> T:
        return options[int(next(draws) * len(options))]

    depth = choice(DEPTHS)
    channels, kernels, acts, skips = [], [], [], list[int | None]()
    for layer in range(depth):
        channels.append(choice(CHANNELS))
        kernels.append(choice(KERNELS))
        acts.append(choice(activations))
        added, place = next(draws) < SKIP_SHARE, next(draws)
        skips.append(int(place * (layer - 1)) if added and layer >= 2 else None)
    return WildPark(
        image_shape=image_shape, classes=classes, channels=tuple(channels), kernels=tuple(kernels),
        activations=tuple(acts), skips=tuple(skips),
    )  # fmt: skip
