"""Generators: latents or noise to networks, one file a method; and the simple baselines beside them."""

from weightspace.generators.hypergan import AdversarialConfig
from weightspace.generators.hypernetwork import HypernetworkConfig
from weightspace.generators.kde import KDE, KDEConfig
from weightspace.generators.manifold import Manifold, ManifoldConfig, ManifoldTraining
from weightspace.generators.warm_start import WarmStart

__all__ = [
    "KDE",
    "AdversarialConfig",
    "HypernetworkConfig",
    "KDEConfig",
    "Manifold",
    "ManifoldConfig",
    "ManifoldTraining",
    "WarmStart",
]
