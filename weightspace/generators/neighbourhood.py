"""The neighbourhood sampler (Schürholt et al., NeurIPS 2022, S_Neigh): UMAP, uniform draws on its map, and back.

Axes: m prompt, n network drawn, t token, z latent, k coordinate of the map.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError, MissingExtra
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodConfig:
    """The map, as published.

    >>> NeighbourhoodConfig().components
    3
    """

    neighbours: int = 15
    """Nearest prompts that shape the map; fewer where there are fewer."""
    min_dist: float = 0.01
    """Least distance of points on the map."""
    components: int = 3
    """Dimensions of the map."""
    epochs: int | None = None
    """Of the map's optimisation; UMAP chooses when missing."""

    def __post_init__(self):
        if self.neighbours < 2 or self.components < 1 or self.min_dist < 0:
            raise ConfigError(
                f"neighbours, components and min_dist must be at least 2, 1 and 0, got {self.neighbours}, "
                f"{self.components} and {self.min_dist}"
            )


@contextmanager
def _left_alone() -> Iterator[None]:
    """Calls of UMAP: numba sets the number of threads of the whole process, and warns about UMAP's own code."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


class Neighbourhood(LatentSampler):
    """Uniform draws in the box of a UMAP of the prompts (one range for all its coordinates), mapped back to latents."""

    name = "neighbourhood"
    Config = NeighbourhoodConfig
    config: NeighbourhoodConfig
    least = 10

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """The map of given latents.

        Raises:
            MissingExtra: umap-learn is not installed.
        """
        shape = latents.shape[1:]
        points = latents.flatten(1).numpy()
        reducer = self._reducer(len(points), int(torch.randint(2**31 - 1, (), generator=generator)))
        with _left_alone():
            places = reducer.fit_transform(points)
        low, high = float(places.min()), float(places.max())

        def drawn(n: int, source: torch.Generator) -> Draw:
            wanted = low + (high - low) * torch.rand(n, places.shape[1], generator=source)
            with _left_alone():
                back = reducer.inverse_transform(wanted.numpy())
            return torch.from_numpy(np.asarray(back, np.float32)).unflatten(1, shape), None

        return drawn

    def _reducer(self, count: int, seed: int) -> Any:
        try:
            with _left_alone():
                from umap import UMAP
        except ImportError as error:
            message = "the neighbourhood sampler needs UMAP, which is not installed: pip install 'weightspace[map]'"
            raise MissingExtra(message) from error
        c = self.config
        # with a seed UMAP runs on one thread, and says so unless it is asked for
        return UMAP(
            n_neighbors=min(c.neighbours, count - 1), min_dist=c.min_dist, n_components=c.components,
            n_epochs=c.epochs, random_state=seed, n_jobs=1, init="pca",
        )  # fmt: skip
