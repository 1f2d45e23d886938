"""Generators: latents or noise to networks, one file a method; and the simple baselines beside them."""

from weightspace.generators.hypernetwork import HypernetworkConfig
from weightspace.generators.kde import KDE, KDEConfig
from weightspace.generators.manifold import Manifold, ManifoldConfig, ManifoldTraining

__all__ = ["KDE", "HypernetworkConfig", "KDEConfig", "Manifold", "ManifoldConfig", "ManifoldTraining"]
