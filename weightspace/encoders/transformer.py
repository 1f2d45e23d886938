"""Parts that autoencoders of weights share: transformer blocks, sinusoidal positions, losses, moments of layers.

Axes: b sequence in a batch, t token, w weight in token, d width, l layer, m network.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_VARIANCE = 1e-4  # of hidden states over a layer, whose spread is about one
_LEAST_DEVIATION = 1e-4  # of the weights of a batch, as published


class Block(nn.Module):
    """Pre-norm transformer block, not causal; by default as in GPT-2 without biases.

    >>> Block(8, 2)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feedforward: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        norm: Callable[[int], nn.Module] = lambda width: nn.LayerNorm(width, bias=False),
    ):
        super().__init__()
        feedforward = 4 * width if feedforward is None else feedforward
        self.heads, self.dropout, self.activation = heads, dropout, activation
        self.attention_norm = norm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=bias)
        self.attention_out = nn.Linear(width, width, bias=bias)
        self.mlp_norm = norm(width)
        self.mlp_in = nn.Linear(width, feedforward, bias=bias)
        self.mlp_out = nn.Linear(feedforward, width, bias=bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Attention, then MLP, each added to its input."""
        qkv = self.attention_in(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # b t 3 h d/h
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = attention(q, k, v)  # b h t d/h
        x = x + self._dropped(self.attention_out(attended.transpose(1, 2).flatten(2)))
        return x + self._dropped(self.mlp_out(self._dropped(self.activation(self.mlp_in(self.mlp_norm(x))))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def attention(q: Float[Tensor, "b h t e"], k: Float[Tensor, "b h s e"], v: Float[Tensor, "b h s e"]) -> Tensor:
    """Softmax attention of each head, `[b, h, t, e]`.

    On processors the products are written out in bfloat16, whose fused kernel is slow there (`benchmarks/sane.py`).
    Their matrices are smaller than the states of the MLP up to windows of four times a head's width.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3) @ v
    return F.scaled_dot_product_attention(q, k, v)


def sinusoids(numbers: Int64[Tensor, "*b t"], size: int) -> Float[Tensor, "*b t {size}"]:
    """Sines and cosines of numbers at wavelengths from 2 pi to 10 000 times that (Vaswani et al., 2017, section 3.5).

    >>> sinusoids(torch.tensor([0]), 4)
    tensor([[0., 0., 1., 1.]])
    """
    rates = torch.exp(torch.arange(0, size, 2, device=numbers.device) * (-math.log(10_000) / size))
    angles = numbers[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :size]


def masked_mse(
    predicted: Float[Tensor, "b t w"], true: Float[Tensor, "b t w"], real: Bool[Tensor, "t w"]
) -> Float[Tensor, ""]:
    """Mean squared error over real weights; padding counts neither above nor below the line."""
    error = torch.where(real, predicted - true, 0.0)
    return error.square().sum() / (real.sum() * len(true))


def masked_deviation(true: Float[Tensor, "b t w"], real: Bool[Tensor, "t w"]) -> Float[Tensor, ""]:
    """Standard deviation of the real weights of a batch, by which the error is divided (masked loss normalisation).

    Source: MultiZoo-SANE (Falk et al., 2025, arXiv 2504.10141).
    """
    count = real.sum() * len(true)
    mean = torch.where(real, true, 0.0).sum() / count
    return (torch.where(real, true - mean, 0.0).square().sum() / count).sqrt() + _LEAST_DEVIATION


def nt_xent(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, Chen et al., 2020, equation 1)."""
    both = F.normalize(torch.cat([first, second]).float(), dim=1)
    with torch.autocast(both.device.type, enabled=False):  # a temperature of 0.1 makes ten times the rounding errors
        similarity = both @ both.T / temperature
    similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def layer_moments(states: Float[Tensor, "m t d"], layer: Int64[Tensor, " t"]) -> Float[Tensor, "m e"]:
    """Mean and logarithm of the variance of hidden states over the tokens of each layer: what a linear probe needs.

    >>> layer_moments(torch.zeros(5, 3, 2), torch.tensor([0, 0, 1])).shape
    torch.Size([5, 8])
    """
    member = F.one_hot(layer).to(states)
    share = member / member.sum(0)  # t l
    mean = torch.einsum("mtd,tl->mld", states, share)
    variance = torch.einsum("mtd,tl->mld", (states - mean[:, layer]).square(), share)
    return torch.cat([mean.flatten(1), (variance + _LEAST_VARIANCE).log().flatten(1)], dim=1)
