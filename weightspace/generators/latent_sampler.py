"""What all samplers of an autoencoder's latents share: prompts are encoded, latents are drawn and decoded.

A method says how latents are drawn once it has seen those of some prompts; it knows neither networks nor zoos. Prompts
of different activations are kept apart: a network drawn has the activation of its prompts, in proportion to their
number. Prompts may come from another zoo of the same layout: the networks then say that they are of its task.

Axes: m prompt, n network drawn, t token, z latent, p parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.encoders import Autoencoder
from weightspace.errors import ConfigError, ZooError
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

Draw = tuple[Float[Tensor, "n t z"], Int64[Tensor, " n"] | None]
"""Latent sequences, and the number of the prompt of each where it has one."""
Density = Callable[[int, torch.Generator], Draw]
"""Draws so many latent sequences."""
TASK = ("network", "networks", "dataset", "recipe")
"""What the header of generated networks takes from their prompts."""
Sampler = TypeVar("Sampler", bound="LatentSampler")  # typing.Self is refused by run-time type checks


class LatentSampler(ABC):
    """A sampler of networks from the latents of a fitted autoencoder."""

    name: ClassVar[str]
    """Of the method, on the command line too."""
    Config: ClassVar[type]
    least: ClassVar[int] = 1
    """Prompts of an activation that the method needs."""

    def __init__(self, encoder: Autoencoder, config: Any = None):
        self.encoder, self.config = encoder, self.Config() if config is None else config

    @abstractmethod
    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """How latents are drawn that resemble given ones.

        Args:
            generator: For methods that learn; draws get their own.
        """

    @property
    def label(self) -> str:
        """What the zoo of generated networks is called."""
        return self.name

    def fit(self: Sampler, prompts: Zoo, seed: int = 0) -> Sampler:
        """Encode the prompts, usually the best networks of a training zoo.

        Args:
            prompts: Networks of the layout that the autoencoder was fitted on, of any task.
            seed: For methods that learn.

        Raises:
            ZooError: There are no prompts, or too few of an activation, or one has NaN weights.
            LayoutError: They have another layout.
        """
        if not len(prompts):
            raise ZooError(f"the sampler {self.name!r} needs prompts, and this selection of the zoo is empty")
        return self.condition(self.encoder.latents(prompts), prompts, seed)

    def condition(self: Sampler, latents: Float[Tensor, "m t z"], prompts: Zoo, seed: int = 0) -> Sampler:
        """Fit to latents that are known already.

        Args:
            prompts: What the latents belong to: their models and activations count, their weights do not.

        Raises:
            ZooError: There are too few prompts of an activation.
        """
        generator = torch.Generator().manual_seed(seed)
        groups = []
        for network, place in by_activation(prompts):
            if len(place) < self.least:
                raise ZooError(
                    f"the sampler {self.name!r} needs at least {self.least} prompts of each activation, but only "
                    f"{len(place)} of these {len(prompts)} have that of {network}: give more"
                )
            groups.append((network, place, self.density(latents[place], generator)))
        self.prompts, self.latents, self._groups = prompts, latents, groups
        return self

    def draw(self, n: int, seed: int = 0) -> tuple[Float[Tensor, "n t z"], pl.DataFrame]:
        """Draw latents.

        Returns:
            Latent sequences, and what is known of each: `config.activation`, and `config.prompt` where the method has
            one prompt for a whole network.

        Raises:
            ConfigError: n is below 1, or the sampler was not fitted.
        """
        if n < 1:
            raise ConfigError(f"the number of networks to draw must be at least 1, got {n}")
        if not hasattr(self, "prompts"):
            raise ConfigError(f"the sampler {self.name!r} has no prompts yet: call fit(prompts) first")
        generator = torch.Generator().manual_seed(seed)
        owner = torch.randint(len(self.latents), (n,), generator=generator)
        latents, tables = [], []
        for network, place, density in self._groups:
            count = int(torch.isin(owner, place).sum())
            if not count:
                continue
            drawn, prompt = density(count, generator)
            latents.append(drawn)
            columns = {"config.activation": [network.activation] * count}
            if prompt is not None:
                columns["config.prompt"] = self.prompts.table["model"][place[prompt].tolist()].to_list()
            tables.append(pl.DataFrame(columns))
        return torch.cat(latents), pl.concat(tables)

    def networks(self, latents: Float[Tensor, "n t z"], table: pl.DataFrame) -> Zoo:
        """The networks of drawn latents, `generated-0000` and so on, in memory."""
        named = table.with_columns(
            pl.Series("model", [f"generated-{i:04d}" for i in range(len(latents))]), pl.lit(0, pl.Int64).alias("step")
        )
        task = {key: self.prompts.header[key] for key in TASK if key in self.prompts.header}
        header = {key: value for key, value in self.encoder.header.items() if key not in TASK} | task
        layout = self.encoder.preparation.layout
        return Zoo.in_memory(self.encoder.decode(latents), layout, named, header | {"name": self.label})

    def sample(self, n: int, seed: int = 0) -> Zoo:
        """Draw networks.

        Returns:
            A zoo in memory; `config.activation` is that of the prompts, `config.prompt` names the prompt where there is
            one for a whole network.

        Raises:
            ConfigError: n is below 1, or the sampler was not fitted.
        """
        return self.networks(*self.draw(n, seed))
