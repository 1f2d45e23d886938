"""Denoisers: networks that predict the target of a diffusion or a flow from a noisy point, its time and a condition.

Three of them: a residual perceptron with FiLM (Perez et al., 2018), the one-dimensional convolutions of p-diff (Wang et
al., 2024, arXiv 2402.13144), and a transformer over tokens with adaptive normalisation (DiT, Peebles and Xie, 2023).
Each is plain data that builds its module. A module has `reset(generator)`; its prediction starts at zero.

Axes: b network, d value of a point, t token, z value of a token, c condition, w width, h head.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import log, prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import ConfigError

FREQUENCIES = 128
"""Of the embedding of time: as many cosines and sines."""
_TIME_SCALE = 1000.0  # time runs from 0 to 1 here, and over about 1000 steps where these frequencies come from
_LONGEST = 10_000.0


@dataclass(frozen=True, kw_only=True)
class MLPDenoiser:
    """Residual blocks over whole points; time and condition scale and shift every block.

    >>> MLPDenoiser(width=16).build((5,))(torch.zeros(2, 5), torch.zeros(2)).shape
    torch.Size([2, 5])
    """

    width: int = 512
    depth: int = 3
    """Residual blocks."""

    def __post_init__(self):
        if min(self.width, self.depth) < 1:
            raise ConfigError(f"width and depth must be at least 1, got {self.width}, {self.depth}")

    def build(self, shape: tuple[int, ...], condition: int | None = None) -> "MLPModule":
        """The module for points of a shape and conditions of so many values."""
        return MLPModule(self, shape, condition)


@dataclass(frozen=True, kw_only=True)
class ConvDenoiser:
    """p-diff's convolutions of stride 1 along a point; each of its first outputs is added to the mirrored input.

    >>> ConvDenoiser(channels=(1, 4, 8, 4, 1)).build((6,))(torch.zeros(2, 6), torch.zeros(2)).shape
    torch.Size([2, 6])
    """

    channels: tuple[int, ...] = (1, 64, 128, 256, 512, 256, 128, 64, 1)
    """Before, between and behind the convolutions; the same read backwards."""
    kernel: int = 7

    def __post_init__(self):
        if len(self.channels) < 3 or self.channels != self.channels[::-1] or self.channels[0] != 1:
            raise ConfigError(f"channels must begin and end with 1 and read the same backwards, got {self.channels}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, got {self.kernel}")

    def build(self, shape: tuple[int, ...], condition: int | None = None) -> "ConvModule":
        """The module for points of a shape and conditions of so many values."""
        return ConvModule(self, shape, condition)


@dataclass(frozen=True, kw_only=True)
class TransformerDenoiser:
    """Attention among the tokens of a point; time and condition scale, shift and gate every block.

    >>> TransformerDenoiser(width=16).build((3, 5))(torch.zeros(2, 3, 5), torch.zeros(2)).shape
    torch.Size([2, 3, 5])
    """

    width: int = 128
    heads: int = 4
    depth: int = 4
    """Blocks."""

    def __post_init__(self):
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ConfigError(
                f"width {self.width} must be a multiple of the {self.heads} heads, depth {self.depth} > 0"
            )

    def build(self, shape: tuple[int, ...], condition: int | None = None) -> "TransformerModule":
        """The module for points `[t, z]` and conditions of so many values.

        Raises:
            ConfigError: Points have no tokens.
        """
        return TransformerModule(self, shape, condition)


Denoisers = MLPDenoiser | ConvDenoiser | TransformerDenoiser


def time_embedding(time: Float[Tensor, " b"]) -> Float[Tensor, "b 256"]:
    """Cosines and sines of 1000 · time at frequencies 10000^(-k / 128).

    >>> time_embedding(torch.tensor([0.0]))[0, [0, 128]]
    tensor([1., 0.])
    """
    frequencies = torch.exp(-log(_LONGEST) / FREQUENCIES * torch.arange(FREQUENCIES, device=time.device))
    angle = _TIME_SCALE * time[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Signal(nn.Module):
    """What a denoiser knows beside the point: time and condition, summed; a learned vector where there is no condition.

    >>> signal = Signal(8, 2)
    >>> nothing = torch.full((1, 2), torch.nan)
    >>> torch.equal(signal(torch.zeros(1), nothing), signal(torch.zeros(1), None))
    True
    """

    def __init__(self, width: int, condition: int | None):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = None
        if condition is not None:
            self.condition = nn.Sequential(nn.Linear(condition, width), nn.SiLU(), nn.Linear(width, width))
            self.none = nn.Parameter(torch.zeros(width))

    def forward(self, time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b w"]:
        """Embedding of both; a condition with a NaN counts as none."""
        signal = self.time(time_embedding(time))
        if self.condition is None:
            return signal
        if condition is None:
            return signal + self.none
        given = ~condition.isnan().any(1, keepdim=True)
        return signal + torch.where(given, self.condition(condition.nan_to_num()), self.none)


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Initial weights of linear maps and convolutions that keep the variance, N(0, 1 / inputs); biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _zero(*parts: nn.Module) -> None:
    for part in parts:
        for parameter in part.parameters():
            nn.init.zeros_(parameter)


class MLPModule(nn.Module):
    """The module of `MLPDenoiser`."""

    def __init__(self, config: MLPDenoiser, shape: tuple[int, ...], condition: int | None):
        super().__init__()
        size, width = prod(shape), config.width
        self.signal = Signal(width, condition)
        self.enter = nn.Linear(size, width)
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(config.depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(config.depth)
        )
        self.leave = nn.Linear(width, size)
        # The noise of a point has more dimensions than the width: what is linear in each of them goes around blocks.
        self.around = nn.Linear(width, size)

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights; the prediction starts at zero."""
        draw_weights(self, generator)
        _zero(*self.films, self.leave, self.around)

    def forward(
        self, noisy: Float[Tensor, "b *d"], time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b *d"]:
        """The prediction."""
        signal, x = self.signal(time, condition), noisy.flatten(1)
        h = self.enter(x)
        for film, block in zip(self.films, self.blocks, strict=True):
            scale, shift = film(F.silu(signal)).chunk(2, dim=1)
            h = h + block(F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift)
        h = F.layer_norm(h, h.shape[1:])
        return (self.leave(h) + self.around(F.silu(signal)) * x).view_as(noisy)


class ConvModule(nn.Module):
    """The module of `ConvDenoiser`."""

    def __init__(self, config: ConvDenoiser, shape: tuple[int, ...], condition: int | None):
        super().__init__()
        pairs = list(pairwise(config.channels))
        self.signal = Signal(prod(shape), condition)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, config.kernel, padding="same") for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for _, b in pairs[:-1])

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights; the prediction starts at zero."""
        draw_weights(self, generator)
        _zero(self.convs[-1])

    def forward(
        self, noisy: Float[Tensor, "b *d"], time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b *d"]:
        """The prediction."""
        signal = self.signal(time, condition)[:, None]  # b 1 d
        h = noisy.flatten(1)[:, None]
        count = len(self.convs)
        passed: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            if count - i < count / 2:
                h = h + passed[count - i - 1]
            h = conv(h + signal)
            if i < count - 1:
                h = F.elu(self.norms[i](h))
                passed.append(h)
        return h[:, 0].view_as(noisy)


class TransformerModule(nn.Module):
    """The module of `TransformerDenoiser`."""

    def __init__(self, config: TransformerDenoiser, shape: tuple[int, ...], condition: int | None):
        super().__init__()
        if len(shape) != 2:
            raise ConfigError(f"a transformer denoises points of tokens [t, z], these have shape {shape}: use an MLP")
        tokens, size = shape
        self.heads = config.heads
        self.signal = Signal(config.width, condition)
        self.enter = nn.Linear(size, config.width)
        self.positions = nn.Parameter(torch.zeros(tokens, config.width))
        self.blocks = nn.ModuleList(AdaptiveBlock(config.width, config.heads) for _ in range(config.depth))
        self.film = nn.Linear(config.width, 2 * config.width)
        self.leave = nn.Linear(config.width, size)
        self.around = nn.Linear(config.width, tokens * size)  # as in `MLPModule`: tokens may be wider than the model

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights; the prediction starts at zero and blocks as the identity."""
        draw_weights(self, generator)
        nn.init.normal_(self.positions, std=0.02, generator=generator)
        films = [part.film for part in self.blocks.modules() if isinstance(part, AdaptiveBlock)]
        _zero(*films, self.film, self.leave, self.around)

    def forward(
        self, noisy: Float[Tensor, "b t z"], time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b t z"]:
        """The prediction."""
        signal = F.silu(self.signal(time, condition))
        h = self.enter(noisy) + self.positions
        for block in self.blocks:
            h = block(h, signal)
        scale, shift = self.film(signal)[:, None].chunk(2, dim=2)
        h = F.layer_norm(h, h.shape[2:]) * (1 + scale) + shift
        return self.leave(h) + self.around(signal).view_as(noisy) * noisy


class AdaptiveBlock(nn.Module):
    """A pre-norm transformer block whose norms and residuals are scaled by a signal."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.film = nn.Linear(width, 6 * width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Float[Tensor, "b t w"], signal: Float[Tensor, "b w"]) -> Float[Tensor, "b t w"]:
        """Attention, then MLP, each gated and added to its input."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = self.film(signal)[:, None].chunk(6, dim=2)
        x = F.layer_norm(h, h.shape[2:]) * (1 + scale) + shift
        q, k, v = self.attention_in(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b h t w/h
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate * self.attention_out(attended)
        x = F.layer_norm(h, h.shape[2:]) * (1 + mlp_scale) + mlp_shift
        return h + mlp_gate * self.mlp(x)
