"""A picture of the benchmark: a row an encoder, a column a pair of zoos."""

from pathlib import Path

import polars as pl

from weightspace.errors import ConfigError, MissingExtra

TASK_ORDER = ("in-distribution", "cross-dataset", "cross-architecture", "cross-both")


def heat_map(table: pl.DataFrame, out: Path, metric: str = "kendall_tau") -> Path:
    """Draw means of a metric, encoders by their mean over all cells that they have.

    Args:
        table: Of `evaluation.summary`: encoder, task, trained_on, tested_on, mean.
        out: SVG or PNG file to write.
    Returns:
        The file written.
    Raises:
        ConfigError: The table is empty.
        MissingExtra: matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> row = {"encoder": "dng", "task": "in-distribution", "trained_on": "a", "tested_on": "a", "mean": 0.9}
    >>> heat_map(pl.DataFrame([row]), Path(mkdtemp()) / "map.svg").name
    'map.svg'
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "the picture needs matplotlib, which is not installed: pip install 'weightspace[plot]'"
        raise MissingExtra(message) from error
    if not table.height:
        raise ConfigError("there is nothing to draw: the benchmark has no cell with a value")
    order = {task: number for number, task in enumerate(TASK_ORDER)}
    cells = table.with_columns(
        pl.col("task").replace_strict(order, default=len(order)).alias("order"),
        pl.format("{} \u2192 {}", "trained_on", "tested_on").alias("cell"),
    ).sort("order", "trained_on", "tested_on", maintain_order=True)
    columns = cells.select("task", "cell").unique(maintain_order=True)
    rows = cells.group_by("encoder").agg(pl.col("mean").mean()).sort("mean", descending=True)["encoder"].to_list()
    values = [[None] * columns.height for _ in rows]
    for encoder, cell, mean in cells.select("encoder", "cell", "mean").iter_rows():
        values[rows.index(encoder)][columns["cell"].to_list().index(cell)] = mean
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    with mpl.rc_context({"svg.hashsalt": "weightspace"}):
        figure = Figure(figsize=(2.6 + 0.62 * columns.height, 1.9 + 0.32 * len(rows)), layout="constrained")
        axes = figure.subplots()
        known = [value for row in numbers for value in row if value == value]
        image = axes.imshow(numbers, cmap="viridis", aspect="auto", vmin=max(0.0, min(known)), vmax=max(known))
        axes.set_xticks(range(columns.height), columns["cell"].to_list(), rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        middle = (max(0.0, min(known)) + max(known)) / 2
        for i, row in enumerate(numbers):
            for j, value in enumerate(row):
                if value == value:
                    colour = "white" if value < middle else "black"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
        tasks = columns["task"].to_list()
        for j in range(1, len(tasks)):
            if tasks[j] != tasks[j - 1]:
                axes.axvline(j - 0.5, color="white", linewidth=3)
        figure.colorbar(image, label=metric.replace("_", " "))
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    return out
