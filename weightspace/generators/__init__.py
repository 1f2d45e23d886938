"""Generators: latents or noise to networks, one file a method; and the simple baselines beside them."""

from weightspace.generators.kde import KDE, KDEConfig

__all__ = ["KDE", "KDEConfig"]
