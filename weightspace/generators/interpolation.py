"""Points between two prompts in latent space.

Axes: m prompt, n network drawn, t token, z latent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler


@dataclass(frozen=True, kw_only=True)
class InterpolationConfig:
    """Where on the segment.

    >>> InterpolationConfig().margin
    0.0
    """

    margin: float = 0.0
    """Shares are uniform in (margin, 1 - margin): 0.5 is the middle, 0 the whole segment."""

    def __post_init__(self):
        if not 0 <= self.margin <= 0.5:
            raise ConfigError(f"margin must lie between 0 and 0.5, got {self.margin}")


class Interpolation(LatentSampler):
    """Random points on the segments between the latents of two different prompts of one activation."""

    name = "interpolation"
    Config = InterpolationConfig
    config: InterpolationConfig
    least = 2

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """The segments between given latents."""
        m, margin = len(latents), self.config.margin

        def drawn(n: int, source: torch.Generator) -> Draw:
            first = torch.randint(m, (n,), generator=source)
            second = (first + torch.randint(1, m, (n,), generator=source)) % m
            share = margin + (1 - 2 * margin) * torch.rand(n, 1, 1, generator=source)
            return torch.lerp(latents[first], latents[second], share), None

        return drawn
