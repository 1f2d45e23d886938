"""A warm start from a zoo: before it meets images, a hypernetwork learns to make networks that were trained already.

Each network of the zoo, aligned to the first, gets a latent of its own, drawn once from the prior; the hypernetwork is
fitted to that assignment by least squares, in deviations of its values at the start. Between these latents it makes
mixtures, which the training that follows turns into good networks.

Axes: m network of the zoo, z latent scalar, p parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError, ZooError
from weightspace.generators.gauge import Gauge
from weightspace.generators.hypernetwork import Hypernetwork
from weightspace.symmetry import align
from weightspace.zoo import Zoo


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The zoo that a hypernetwork starts from.

    >>> import polars as pl
    >>> from weightspace.networks import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> WarmStart(zoo=Zoo.in_memory(torch.zeros(1, 8), layout, table, {}), steps=0)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: steps and batch of a warm start must be at least 1, 2, got 0, 24
    """

    zoo: Zoo
    """Networks of the target's layout that were trained for the task."""
    steps: int = 500
    batch: int = 24
    """Networks in a step."""

    def __post_init__(self):
        if self.steps < 1 or self.batch < 2:
            raise ConfigError(f"steps and batch of a warm start must be at least 1, 2, got {self.steps}, {self.batch}")

    def fit(
        self,
        module: Hypernetwork,
        gauge: Gauge,
        draw: Callable[[int, torch.Generator], Float[Tensor, "m z"]],
        *,
        learning_rate: float,
        generator: torch.Generator,
    ) -> list[float]:
        """Fit a hypernetwork to the zoo, in place.

        Args:
            gauge: Of the target.
            draw: Latents from their prior, `draw(n, generator)`.

        Returns:
            Mean squared error of every step, in squared deviations of the values at the start.

        Raises:
            ZooError: The networks have another layout than the target, or weights that are not finite.
        """
        rows = self._aligned(gauge, generator)
        latents = draw(len(rows), generator)
        free = gauge.parameters()
        scale = module.scale[free]
        optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
        module.train()
        errors: list[float] = []
        for _ in range(self.steps):
            chosen = torch.randint(len(rows), (self.batch,), generator=generator)
            made = module.rows(module.extractor(latents[chosen]))
            loss = ((made - rows[chosen])[:, free] / scale).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            errors.append(float(loss.detach()))
        return errors

    def _aligned(self, gauge: Gauge, generator: torch.Generator) -> Float[Tensor, "m p"]:
        """Weights with their units in the order of the first network."""
        if self.zoo.layout != gauge.layout:
            raise ZooError(
                f"{self.zoo!r} has another layout than the target, so it is no start for its hypernetwork: give a zoo "
                "of the same network"
            )
        self.zoo.require_finite("a warm start")
        rows = self.zoo.weights().float()
        return align(rows, rows[0], gauge.layout, gauge.groups, generator) if gauge.groups else rows
