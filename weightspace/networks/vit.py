"""Vision transformers (Dosovitskiy et al., 2021) and small transformers over the rows of an image.

State-dict keys are the customary ones (`patch_embed.proj.weight`, `blocks.0.attn.qkv.weight`, `head.weight`, …), so
that foreign checkpoints load.

Axes: n image, t token, d model width, h head.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.networks.blocks import Dropout, activation


@dataclass(frozen=True, kw_only=True)
class ViT:
    """Patches of an image as tokens, pre-norm transformer blocks, a linear layer on the class token or the mean.

    >>> tiny = ViT(image_shape=(3, 224, 224), classes=1000, patch=(16, 16), width=192, depth=12, heads=3, mlp_ratio=4)
    >>> sum(p.numel() for p in tiny.build().parameters())
    5717416
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: int = 10
    patch: tuple[int, int] = (4, 4)
    """Height and width of a patch; they divide the image's."""
    width: int = 48
    """Width of the model."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 3
    """Attention heads; they divide the width."""
    mlp_ratio: int = 2
    """Width of a block's hidden layer, in widths of the model."""
    pooling: Literal["class", "mean"] = "class"
    """What the last layer reads: a class token, or the mean of the tokens."""
    activation: str = "gelu"
    dropout: float = 0.0
    """Of the tokens behind the embedding and of each block's two branches."""

    def __post_init__(self):
        if min(*self.image_shape, *self.patch, self.width, self.depth, self.heads, self.mlp_ratio, self.classes) < 1:
            raise ConfigError(f"all sizes of a ViT must be at least 1, got {self}")
        if self.image_shape[1] % self.patch[0] or self.image_shape[2] % self.patch[1]:
            raise ConfigError(f"patches of {self.patch} do not divide images of {self.image_shape}; choose others")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.pooling not in ("class", "mean"):
            raise ConfigError(f"pooling of a ViT is class or mean, got {self.pooling!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def tokens(self) -> int:
        """Patches, and the class token if there is one."""
        _, height, width = self.image_shape
        return height // self.patch[0] * (width // self.patch[1]) + (self.pooling == "class")

    def build(self) -> nn.Module:
        """The module."""
        return _ViT(self)


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        # patches do not overlap, so the convolution is one matrix product
        tall, wide = self.proj.kernel_size
        n, channels, height, width = images.shape
        patches = images.reshape(n, channels, height // tall, tall, width // wide, wide).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [n, h, t, d / h]
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = activation(act)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, config: ViT):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = _Attention(config.width, config.heads)
        self.drop1 = Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = _MLP(config.width, config.mlp_ratio * config.width, config.activation)
        self.drop2 = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(self.attn(self.norm1(x)))
        return x + self.drop2(self.mlp(self.norm2(x)))


class _ViT(nn.Module):
    def __init__(self, config: ViT):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pooling == "class" else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_embed = _PatchEmbed(config.image_shape[0], config.width, config.patch)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.Sequential(*(_Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(self.drop(x + self.pos_embed)))
        return self.head(x.mean(1) if self.cls_token is None else x[:, 0])


def vit(image_shape: tuple[int, int, int], classes: int) -> ViT:
    """A small ViT on patches of a quarter of MNIST's or an eighth of CIFAR's side: 81,946 parameters on 3x32x32."""
    side = image_shape[1] // (4 if image_shape[1] == 28 else 8)
    return ViT(image_shape=image_shape, classes=classes, patch=(side, side))


def transformer(image_shape: tuple[int, int, int], classes: int) -> ViT:
    """A small transformer whose tokens are the rows of an image: 10,762 parameters on 1x28x28."""
    width = image_shape[2]
    return ViT(
        image_shape=image_shape, classes=classes, patch=(1, width), width=32, depth=1, heads=4, mlp_ratio=2,
        pooling="mean", activation="relu",
    )  # fmt: skip
