"""A picture of the line between two networks: loss and accuracy, before and after alignment."""

from pathlib import Path

import polars as pl

from weightspace.errors import MissingExtra

COLOURS = {"none": "#8b8f96", "weight matching": "#3f7fb8", "activation matching": "#d55e00"}
OTHERS = ("#2f9e7d", "#8e6fb8", "#b3983a")


def barrier_picture(curves: pl.DataFrame, out: Path) -> Path:
    """Draw loss and accuracy along the line, a curve for each alignment; with REPAIR dashed.

    Args:
        curves: Table of `compare_barriers` for one part of the data: alignment, repair, share, loss, accuracy.
        out: PNG file to write.
    Returns:
        The file written.
    Raises:
        MissingExtra: matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> point = {"alignment": "none", "repair": False, "loss": 1.0, "accuracy": 0.5}
    >>> curves = pl.DataFrame([point | {"share": 0.0}, point | {"share": 1.0}])
    >>> barrier_picture(curves, Path(mkdtemp()) / "barrier.png").name
    'barrier.png'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "the picture needs matplotlib, which is not installed: pip install 'weightspace[plot]'"
        raise MissingExtra(message) from error
    names = curves["alignment"].unique(maintain_order=True).to_list()
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    figure = Figure(figsize=(11.5, 3.8), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2)
    for axes, column in zip(panels, ("loss", "accuracy"), strict=True):
        for name in names:
            for repaired in (False, True):
                curve = curves.filter((pl.col("alignment") == name) & (pl.col("repair") == repaired)).sort("share")
                if curve.height:
                    axes.plot(
                        curve["share"], curve[column], color=colours[name], linewidth=2,
                        linestyle="--" if repaired else "-", label=f"{name}, REPAIR" if repaired else name,
                    )  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="from the first network to the second", ylabel=column, title=f"{column} on the line")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(out, dpi=160)
    return Path(out)
