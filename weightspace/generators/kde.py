"""Kernel density estimates over the latents of good networks (SANE, §3.4 and algorithm 3), drawn correctly.

Prompts are encoded, a Gaussian kernel density is put over their latent sequences, and draws are decoded. A Gaussian KDE
with weights 1/n is a mixture: choose a prompt, add noise; so drawing is exact and one vectorised call.

Axes: m prompt, n network drawn, t token, z latent, p parameter.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler

Mode = Literal["smooth", "joint", "token", "independent", "reference"]


@dataclass(frozen=True, kw_only=True)
class KDEConfig:
    """What is drawn together, and how wide the kernels are.

    >>> KDEConfig().mode
    'smooth'
    """

    mode: Mode = "smooth"
    """`joint`: one prompt for a whole network, independent noise on its latents. `smooth`: the same, but the noise has
    the covariance of the prompts, and draws are scaled to have it too, times spread². `token`: one prompt for each
    token. `independent`: one for each latent scalar, as the paper says. `reference`: as the published code does
    through its fixed seed: one prompt and one random number for a whole network."""
    bandwidth: float = 0.3
    """Kernel width in standard deviations of the prompts' latents; in `reference`, in latent units."""
    spread: float = 0.65
    """In `smooth`: standard deviation of the draws over that of the prompts; below 1 they move towards the prompts'
    mean (truncation), where aligned networks are good and far from each single one."""

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            raise unknown_name("mode", self.mode, get_args(Mode))
        if not 0 <= self.bandwidth < math.inf:
            raise ConfigError(f"bandwidth must be at least 0 and finite, got {self.bandwidth}")
        if self.mode == "smooth" and self.bandwidth > 1:
            raise ConfigError(f"bandwidth of smooth draws must be at most 1 (a Gaussian), got {self.bandwidth}")
        if not 0 < self.spread <= 1:
            raise ConfigError(f"spread must lie in (0, 1], got {self.spread}")


def draw(
    latents: Float[Tensor, "m t z"], n: int, config: KDEConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "n t z"], Int64[Tensor, "n _ _"]]:
    """Latent sequences from the kernel density over given ones, and the prompt that each entry comes from.

    >>> drawn, _ = draw(torch.randn(9, 4, 3), 100, KDEConfig(), torch.Generator())
    >>> drawn.shape
    torch.Size([100, 4, 3])
    """
    m, t, z = latents.shape
    shape = {"token": (n, t, 1), "independent": (n, t, z)}.get(config.mode, (n, 1, 1))
    prompt = torch.randint(m, shape, generator=generator)
    chosen = latents.gather(0, prompt.expand(n, t, z))
    if config.mode == "reference":
        return chosen + config.bandwidth * torch.randn(n, 1, 1, generator=generator), prompt
    if config.mode == "smooth":
        mean = latents.mean(0)
        # Gaussian with the prompts' covariance, without forming it: a random combination of their deviations
        noise = torch.einsum("nm,mtz->ntz", torch.randn(n, m, generator=generator), latents - mean) / math.sqrt(m)
        deviation = math.sqrt(1 - config.bandwidth**2) * (chosen - mean) + config.bandwidth * noise
        return mean + config.spread * deviation, prompt
    spread = latents.std(0, correction=0)
    return chosen + config.bandwidth * spread * torch.randn(n, t, z, generator=generator), prompt


class KDE(LatentSampler):
    """A kernel density over the latents of prompts.

    `config.prompt` names the prompt of a network in the modes that have one for it: smooth, joint, reference.
    """

    name = "kde"
    Config = KDEConfig
    config: KDEConfig

    @property
    def label(self) -> str:
        """Method and mode."""
        return f"KDE ({self.config.mode})"

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """The kernel density over given latents."""

        def drawn(n: int, source: torch.Generator) -> Draw:
            made, prompt = draw(latents, n, self.config, source)
            return made, prompt.flatten() if self.config.mode in ("smooth", "joint", "reference") else None

        return drawn
