"""Abstract interpretation of a module: which units its axes count, and how its values scale with its weights."""

from weightspace.symmetry.trace import axis_layers, axis_views, scale_layers, scale_views

__all__ = ["axis_layers", "axis_views", "scale_layers", "scale_views"]
