"""A picture of which layers tell what."""

from math import isfinite
from pathlib import Path

import polars as pl

from weightspace.errors import ConfigError, MissingExtra
from weightspace.report.figures import LAYER_METRICS, LEAST_OF_LAYER, plain_name


def layers_picture(table: pl.DataFrame, out: Path) -> Path:
    """Draw how well each layer tells each property, a panel for each representation.

    Args:
        table: Of `probe_layers`; the first probe of each target is drawn.
        out: PNG file to write.

    Returns:
        The file written.

    Raises:
        ConfigError: The table has nothing to draw.
        MissingExtra: matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> row = {"representation": "statistics", "layer": "conv0", "layer_number": 0, "probe": "ridge"}
    >>> table = pl.DataFrame([row | {"target": "step", "metric": "r2", "value": 0.5}])
    >>> layers_picture(table, Path(mkdtemp()) / "layers.png").name
    'layers.png'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "the picture needs matplotlib, which is not installed: pip install 'weightspace[plot]'"
        raise MissingExtra(message) from error
    shown = table.filter(pl.col("metric").is_in(LAYER_METRICS) & pl.col("value").is_finite())
    shown = shown.unique(["representation", "layer", "target"], keep="first", maintain_order=True)
    names = shown["representation"].unique(maintain_order=True).to_list()
    if not names:
        raise ConfigError("the table of layers has no values to draw: no target varied")
    figure = Figure(figsize=(1.5 + 5 * len(names), 4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        own = shown.filter(representation=name).sort("layer_number", nulls_last=True, maintain_order=True)
        layers = own["layer"].unique(maintain_order=True).to_list()
        for target in own["target"].unique(maintain_order=True):
            values = dict(own.filter(target=target).select("layer", "value").iter_rows())
            heights = [
                max(LEAST_OF_LAYER, values[layer]) if isfinite(values.get(layer, float("nan"))) else None
                for layer in layers
            ]
            axes.plot(layers, heights, marker="o", label=plain_name(target))
        axes.set(title=name, ylim=(LEAST_OF_LAYER, 1.02))
        axes.tick_params(axis="x", rotation=60)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("R², or share of right classes")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(out, dpi=160)
    return Path(out)
