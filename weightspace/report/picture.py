"""One wide PNG of a run for a README: the map, predicted against true accuracy, fine-tuning curves."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from weightspace.errors import MissingExtra
from weightspace.report import figures
from weightspace.report.figures import ACCENT, ACCURACY, SOURCE_FAMILIES, family, is_learned
from weightspace.report.headline import common_probe
from weightspace.report.run import ReportError, read_run

if TYPE_CHECKING:
    import matplotlib.axes

GREY = "#8b8f96"


def readme_picture(run: Path, out: Path) -> Path:
    r"""Draw the three figures that say most about a run, side by side.

    Args:
        run: Run folder; a panel whose table is missing is left out.
        out: PNG file to write.
    Returns:
        The file written.
    Raises:
        ReportError: The run has none of the three tables.
        MissingExtra: matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> (folder / "tables").mkdir()
    >>> _ = (folder / "tables/map.csv").write_text("model,step,x,y,metric.test_accuracy\na,1,0.0,1.0,0.5\n")
    >>> readme_picture(folder, folder / "picture.png").name
    'picture.png'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "the picture needs matplotlib, which is not installed: pip install 'weightspace[plot]'"
        raise MissingExtra(message) from error
    tables = read_run(Path(run)).tables
    panels = [
        (draw, frame)
        for draw, frame in (
            (_draw_map, _map(tables.get("map"))),
            (_draw_predictions, _predictions(tables.get("predictions"))),
            (_draw_fine_tuning, _fine_tuning(tables.get("generation"))),
        )
        if frame.height
    ]
    if not panels:
        raise ReportError(f"{run} holds none of tables/map.csv, predictions.csv and generation.csv to draw")
    figure = Figure(figsize=(4.6 * len(panels), 4.0), layout="constrained", facecolor="white")
    for axes, (draw, frame) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, frame)
    figure.savefig(out, dpi=160)
    return Path(out)


def _map(frame: pl.DataFrame | None) -> pl.DataFrame:
    if frame is None or ACCURACY not in frame.columns:
        return pl.DataFrame()
    return frame.drop_nulls(["x", "y", ACCURACY]).sort(ACCURACY)


def _draw_map(axes: "matplotlib.axes.Axes", frame: pl.DataFrame) -> None:
    dots = axes.scatter(frame["x"], frame["y"], c=frame[ACCURACY], s=7, cmap="viridis", linewidths=0)
    bar = axes.figure.colorbar(dots, ax=axes, shrink=0.75, pad=0.02)
    bar.ax.set_title("test accuracy", fontsize=9, loc="left")
    bar.outline.set_visible(False)
    axes.set(title="A population of networks", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _predictions(frame: pl.DataFrame | None) -> pl.DataFrame:
    """Predictions of test accuracy from the learned representation, with ridge where there is one."""
    if frame is None:
        return pl.DataFrame()
    learned = [name for name in dict.fromkeys(frame["representation"]) if is_learned(name)][:1]
    frame = frame.filter((pl.col("target") == ACCURACY) & pl.col("representation").is_in(learned))
    if frame.height:
        frame = frame.filter(pl.col("probe") == common_probe(frame))
    return frame.drop_nulls(["true", "predicted"])


def _draw_predictions(axes: "matplotlib.axes.Axes", frame: pl.DataFrame) -> None:
    axes.axline((0.5, 0.5), slope=1, color=GREY, linewidth=1, linestyle="--")
    axes.scatter(frame["true"], frame["predicted"], s=9, color=ACCENT, alpha=0.5, linewidths=0)
    axes.set(title="Accuracy read from weights alone", xlabel="true test accuracy", ylabel="predicted test accuracy")


def _fine_tuning(frame: pl.DataFrame | None) -> pl.DataFrame:
    if frame is None:
        return pl.DataFrame()
    shown = [s for s in frame["source"].unique() if family(s, SOURCE_FAMILIES) in ("generated", "random")]
    return frame.filter(pl.col("source").is_in(shown)).drop_nulls(["epoch", "accuracy_mean"]).sort("epoch")


def _draw_fine_tuning(axes: "matplotlib.axes.Axes", frame: pl.DataFrame) -> None:
    for name, style in figures.source_styles(frame["source"]).items():
        part = frame.filter(pl.col("source") == name)
        mean, spread = part["accuracy_mean"], part["accuracy_std"].fill_null(0)
        low, high = (mean - spread).clip(0, 1), (mean + spread).clip(0, 1)
        axes.fill_between(part["epoch"], low, high, color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(part["epoch"], mean, color=style.colour, marker="o", linewidth=2.2, label=name)
    axes.set(title="Generated networks as a start", xlabel="epochs of fine-tuning", ylabel="test accuracy")
    axes.set_ylim(top=1.0)
    axes.legend(frameon=False, loc="lower right")
