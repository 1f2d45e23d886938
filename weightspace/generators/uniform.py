"""Uniform draws from a box of latents (Schürholt et al., NeurIPS 2022, S_U): the least that a latent space must do.

Axes: m prompt, n network drawn, t token, z latent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """The box.

    >>> UniformConfig(bounds=(-1.0, 1.0)).bounds
    (-1.0, 1.0)
    """

    bounds: tuple[float, float] | None = None
    """The same for every latent, as published for a tanh bottleneck, (-1, 1); the range of each latent over the prompts
    when missing."""

    def __post_init__(self):
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"bounds must be a lower and a higher number, got {self.bounds}")


class Uniform(LatentSampler):
    """Independent uniform draws of every latent scalar."""

    name = "uniform"
    Config = UniformConfig
    config: UniformConfig

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """The box of given latents."""
        low, high = latents.amin(0), latents.amax(0)
        if self.config.bounds is not None:
            low, high = (torch.full_like(low, bound) for bound in self.config.bounds)

        def drawn(n: int, source: torch.Generator) -> Draw:
            return low + (high - low) * torch.rand(n, *low.shape, generator=source), None

        return drawn
