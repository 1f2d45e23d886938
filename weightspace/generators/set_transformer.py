"""Attention over sets (Lee et al., 2019, "Set Transformer"), as D2NWG uses it ("Diffusion generators", section 4.2).

    MAB(X, Y) = LN(H + FF(H))       H = LN(X + MHA(X, Y, Y))
    ISAB(X)   = MAB(X, MAB(I, X))   I learned inducing points
    PMA(X)    = MAB(S, FF(X))       S a learned seed
    SAB(X)    = MAB(X, X)

Axes: b set, n element, i inducing point or seed, w width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AttentionBlock(nn.Module):
    """MAB: one set looks at another, element by element.

    >>> AttentionBlock(8, 2)(torch.zeros(3, 5, 8), torch.zeros(3, 7, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b i w"], y: Float[Tensor, "b n w"]) -> Float[Tensor, "b i w"]:
        """The first set, changed by what it sees in the second."""
        h = self.norms[0](x + self.attention(x, y, y, need_weights=False)[0])
        return self.norms[1](h + self.feed(h))


class InducedBlock(nn.Module):
    """ISAB: a set looks at itself through a few inducing points.

    >>> InducedBlock(8, 2, 4)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.points = nn.Parameter(torch.zeros(points, width))
        self.gather, self.spread = AttentionBlock(width, heads), AttentionBlock(width, heads)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """The set, each element changed by all."""
        return self.spread(x, self.gather(self.points.expand(len(x), -1, -1), x))


class Pooling(nn.Module):
    """PMA with one seed: a set becomes one vector.

    >>> Pooling(8, 2)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 8])
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.seed = nn.Parameter(torch.zeros(1, width))
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.attention = AttentionBlock(width, heads)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b w"]:
        """One vector a set."""
        return self.attention(self.seed.expand(len(x), -1, -1), self.feed(x))[:, 0]


def draw_set_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Initial weights of attention over sets: maps N(0, 1 / inputs), inducing points and seeds N(0, 1), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            nn.init.normal_(part.in_proj_weight, std=part.embed_dim**-0.5, generator=generator)
            nn.init.zeros_(part.in_proj_bias)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, InducedBlock):
            nn.init.normal_(part.points, generator=generator)
        if isinstance(part, Pooling):
            nn.init.normal_(part.seed, generator=generator)
