"""`weightspace benchmark`."""

from pathlib import Path
from typing import Any, Literal

import polars as pl
from rich.console import Console

from weightspace import evaluation
from weightspace.cli.evaluate import show
from weightspace.errors import ConfigError
from weightspace.evaluation.benchmark import TASKS, Task
from weightspace.evaluation.contestants import contestant, names
from weightspace.report.heat_map import heat_map
from weightspace.zoo import open as open_zoo


def benchmark(
    *,
    zoo: tuple[Path, ...],
    out: Path = Path("benchmark"),
    encoders: tuple[str, ...] = ("all",),
    encoder: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = TASKS,
    seeds: int = 3,
    target: tuple[str, ...] = ("metric.test_accuracy",),
    checkpoints: Literal["last", "all"] = "last",
    epochs: int | None = None,
    workers: int = 1,
) -> None:
    """Compare encoders on zoos: in-distribution, across data sets and architectures, and on hyper-parameters.

    Args:
        zoo: Folder of a zoo; give several to measure what carries over from one to another.
        out: Folder for benchmark.csv, summary.csv and heat_map.svg; a stopped benchmark is continued there.
        encoders: Names, or all: simple predictors and every encoder of this library.
        encoder: One from elsewhere, as my_module:MyEncoder; may be repeated.
        tasks: What to measure.
        seeds: Number of seeds, each with a split and a training of its own.
        target: Column to predict.
        checkpoints: Of each model the last one, or all.
        epochs: Of the training of encoders; each method's own number when missing.
        workers: Processes, each on one core.
    """
    zoos = {}
    for folder in zoo:
        if folder.name in zoos:
            raise ConfigError(f"two zoos are called {folder.name!r}; rename one of the folders")
        opened = open_zoo(folder)
        zoos[folder.name] = opened.last() if checkpoints == "last" else opened
    changes: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    chosen = [*(names() if "all" in encoders else encoders), *encoder]
    frame = evaluation.benchmark(
        zoos, [contestant(name, **changes) for name in chosen], out, tasks=tasks, seeds=range(seeds), targets=target,
        workers=workers,
    )  # fmt: skip
    metric = "kendall_tau" if (frame["metric"] == "kendall_tau").any() else "accuracy"
    table = evaluation.summary(frame, metric)
    table.write_csv(out / "summary.csv")
    for task in table["task"].unique(maintain_order=True):
        show(
            _wide(table.filter(pl.col("task") == task), task), f"{task}: {metric}, mean ± deviation over {seeds} seeds"
        )
    refused = frame.filter(pl.col("metric") == "refused").unique(["encoder", "trained_on", "tested_on"])
    if refused.height:
        Console().print(f"{refused.height} cells are empty: the encoder cannot read the zoo (see benchmark.csv)")
    picture = heat_map(table.filter(pl.col("task") != "factors"), out / "heat_map.svg", metric)
    Console().print(f"written: {out / 'benchmark.csv'}, {out / 'summary.csv'}, {picture}", highlight=False)


def _wide(table: pl.DataFrame, task: str) -> pl.DataFrame:
    """A row an encoder; a column a pair of zoos, or a zoo and a hyper-parameter."""
    cell = (
        pl.format("{} {}", "tested_on", "target")
        if task == "factors"
        else pl.format("{} → {}", "trained_on", "tested_on")
    )
    rounded = pl.col("mean").round(3).cast(pl.String)
    text = (
        pl.when(pl.col("std").is_null()).then(rounded).otherwise(pl.format("{} ± {}", rounded, pl.col("std").round(3)))
    )
    return table.with_columns(cell.alias("cell"), text.alias("text")).pivot("cell", index="encoder", values="text")
