"""Gaussians over latents: with the mean and covariance of the prompts, all of it or its largest directions.

A covariance of m prompts has rank m - 1. It is never formed: a random combination of the prompts' deviations has it,
and one of their first singular vectors its low-rank part.

Axes: m prompt, n network drawn, t token, z latent, r direction.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """Which Gaussian.

    >>> GaussianConfig(rank=16).rank
    16
    """

    rank: int | None = None
    """Directions of largest variance that are kept; all when missing."""
    spread: float = 1.0
    """Standard deviation of the draws over that of the prompts."""
    sigma: float | None = None
    """Draw from N(0, sigma²) instead, blind to the prompts: the published anchors of SANE's GAUSS variant (10 in its
    code)."""

    def __post_init__(self):
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.spread < math.inf:
            raise ConfigError(f"spread must be at least 0 and finite, got {self.spread}")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ConfigError(f"sigma must be positive and finite, got {self.sigma}")
        if self.sigma is not None and self.rank is not None:
            raise ConfigError("a Gaussian with sigma is blind to the prompts and has no rank: leave one of them out")


class Gaussian(LatentSampler):
    """A Gaussian over the latents of prompts."""

    name = "gaussian"
    Config = GaussianConfig
    config: GaussianConfig
    least = 2

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """The Gaussian of given latents."""
        shape, c = latents.shape[1:], self.config
        mean = latents.mean(0)
        factor = (latents - mean).flatten(1) / math.sqrt(len(latents) - 1)  # factor^T factor is the covariance
        if c.rank is not None:
            _, strength, direction = torch.linalg.svd(factor, full_matrices=False)
            factor = strength[: c.rank, None] * direction[: c.rank]

        def drawn(n: int, source: torch.Generator) -> Draw:
            if c.sigma is not None:
                return c.sigma * torch.randn(n, *shape, generator=source), None
            noise = torch.randn(n, len(factor), generator=source) @ factor
            return mean + c.spread * noise.unflatten(1, shape), None

        return drawn
