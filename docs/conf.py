"""Sphinx configuration: plain Markdown pages, one theme."""

from weightspace import __version__

project = "weightspace"
author = "The weightspace authors"
copyright = author
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"weightspace {release}"
