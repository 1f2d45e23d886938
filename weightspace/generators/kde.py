"""Kernel density estimates over the latents of good networks (SANE, §3.4 and algorithm 3), drawn correctly.

Prompts are encoded, a Gaussian kernel density is put over their latent sequences, and draws are decoded. A Gaussian KDE
with weights 1/n is a mixture: choose a prompt, add noise; so drawing is exact and one vectorised call.

Axes: m prompt, n network drawn, t token, z latent, p parameter.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.encoders import Autoencoder
from weightspace.errors import ConfigError, ZooError, unknown_name
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

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


class KDE:
    """A sampler of networks from the latent space of a fitted autoencoder.

    Prompts of different activations are kept apart: a network drawn has the activation of its prompts, in proportion to
    their number.
    """

    def __init__(self, encoder: Autoencoder, config: KDEConfig = KDEConfig()):
        self.encoder, self.config = encoder, config

    def fit(self, prompts: Zoo) -> "KDE":
        """Encode the prompts, usually the best networks of a training zoo.

        Raises:
            ZooError: There are no prompts, or one has NaN weights.
        """
        if not len(prompts):
            raise ZooError("a kernel density needs prompts, and this selection of the zoo is empty")
        self.prompts = prompts
        self.latents = self.encoder.latents(prompts)
        return self

    def sample(self, n: int, seed: int = 0) -> Zoo:
        """Draw networks.

        Returns:
            A zoo in memory; `config.activation` is that of the prompts, `config.prompt` names the prompt in the modes
            that have one for a whole network.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"the number of networks to draw must be at least 1, got {n}")
        generator = torch.Generator().manual_seed(seed)
        owner = torch.randint(len(self.latents), (n,), generator=generator)
        rows, tables = [], []
        for network, place in by_activation(self.prompts):
            count = int(torch.isin(owner, place).sum())
            if not count:
                continue
            drawn, prompt = draw(self.latents[place], count, self.config, generator)
            rows.append(self.encoder.decode(drawn))
            columns = {"config.activation": [network.activation] * count}
            if self.config.mode in ("smooth", "joint", "reference"):
                columns["config.prompt"] = self.prompts.table["model"][place[prompt.flatten()].tolist()].to_list()
            tables.append(pl.DataFrame(columns))
        table = pl.concat(tables).with_columns(
            pl.Series("model", [f"generated-{i:04d}" for i in range(n)]), pl.lit(0, pl.Int64).alias("step")
        )
        header = self.encoder.header | {"name": f"KDE ({self.config.mode})"}
        return Zoo.in_memory(torch.cat(rows), self.encoder.preparation.layout, table, header)
