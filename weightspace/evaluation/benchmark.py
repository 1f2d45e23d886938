"""The benchmark of encoders: every contestant on the same zoos, the same splits and the same targets.

A unit is one contestant fitted on the training models of one zoo with one seed, which also seeds the split; it then
predicts the test models of every zoo. Of another zoo nothing else is used: no training, no choice, no statistics.

    in-distribution      test models of the zoo it was fitted on
    cross-dataset        test models of a zoo of the same architectures on other images
    cross-architecture   test models of a zoo of other architectures on the same images
    cross-both           both differ
    factors              hyper-parameters of test models of the same zoo, all learned at once

Units are independent and kept in files, so that a stopped benchmark goes on, and several processes share the work.

Axes: n network, k class.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, Literal, get_args

import joblib
import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import weightspace
from weightspace.encoders.predictor import DEFAULT_TARGETS, Target
from weightspace.errors import ConfigError, LayoutError, UnknownName
from weightspace.evaluation.contestants import Contestant
from weightspace.evaluation.properties import class_scores, number_scores
from weightspace.progress import progress_bar
from weightspace.zoo import Zoo
from weightspace.zoo.writer import write_file

Task = Literal["in-distribution", "cross-dataset", "cross-architecture", "cross-both", "factors"]
TASKS: tuple[Task, ...] = get_args(Task)
CELLS = "cells"
COLUMNS = {
    **dict.fromkeys(("encoder", "task", "trained_on", "tested_on"), pl.String),
    "seed": pl.Int64,
    "target": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "n_train": pl.Int64,
    "n_test": pl.Int64,
    "note": pl.String,
}
"""Columns of the tidy table: a row a measured value."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A contestant, the zoo it is fitted on, its seed and what it learns."""

    contestant: Contestant
    zoo: str
    seed: int
    targets: tuple[str, ...]
    factors: bool

    @property
    def name(self) -> str:
        """Name of its file."""
        kind = "factors" if self.factors else "target"
        words = f"{self.contestant.name} {self.zoo} {kind} {self.seed}"
        return "".join(letter if letter.isalnum() else "-" for letter in words)


def benchmark(
    zoos: Mapping[str, Zoo],
    contestants: Sequence[Contestant],
    folder: Path,
    *,
    tasks: Sequence[Task] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    targets: Sequence[str] = DEFAULT_TARGETS,
    workers: int = 1,
) -> pl.DataFrame:
    """Fit every contestant on every zoo and measure it on all of them.

    Args:
        zoos: By name; checkpoints with NaN weights are left out.
        folder: Gets a file a unit, and `benchmark.csv`. Units whose file is there, of the same zoos and by the same
            version, are not run again.
        seeds: Of split and training, one run each.
        targets: Columns to predict; shares, numbers or classes.
        workers: Processes, each on one core.

    Returns:
        The tidy table: encoder, task, trained_on, tested_on, seed, target, metric, value, n_train, n_test, note.
        Metrics of numbers: kendall_tau, tau_ceiling (the most that tied labels allow), r2, mae; of classes: accuracy,
        majority; of a fitted contestant: parameters, training_core_seconds and inference_core_seconds per 1000
        networks, invariance_gap. A method that cannot read a zoo has one row with metric "refused" and the reason.

    Raises:
        ConfigError: There is nothing to do, or two contestants have one name.

    Source: "SNE", section 7; Zhou et al. (2023) for the split by model and the metrics.
    """
    if not zoos or not contestants or not seeds or not tasks:
        raise ConfigError("a benchmark needs at least one zoo, one encoder, one seed and one task")
    called = [contestant.name for contestant in contestants]
    if len(set(called)) != len(called):
        raise ConfigError(f"two encoders have the same name among {called}; rename one")
    finite = {name: zoo.finite() for name, zoo in zoos.items()}
    identity = {
        "zoos": {name: zoo.digest for name, zoo in finite.items()},
        "targets": list(targets),
        "version": weightspace.__version__,
    }
    units = list(_units(finite, contestants, tasks, seeds, targets))
    cells = folder / CELLS
    cells.mkdir(parents=True, exist_ok=True)
    todo = [unit for unit in units if _stored(cells, unit, identity) is None]
    run = partial(_run, zoos=finite)
    with progress_bar(f"benchmark of {len(contestants)} encoders", len(units)) as advance:
        advance(len(units) - len(todo))
        for unit, rows in _results(run, todo, workers):
            content: dict = {"identity": identity, "source": unit.contestant.source, "how": unit.contestant.how}
            content["rows"] = rows
            write_file(cells / f"{unit.name}.json", json.dumps(content, indent=1).encode())
            advance(note=f"{unit.contestant.name} on {unit.zoo}")
    rows = [row for unit in units for row in _stored(cells, unit, identity) or []]
    frame = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    frame = frame.filter(pl.col("task").is_in(list(tasks)))
    write_file(folder / "benchmark.csv", frame.write_csv().encode())
    return frame


def summary(frame: pl.DataFrame, metric: str = "kendall_tau") -> pl.DataFrame:
    """Mean and deviation over seeds of one metric: a row an encoder and cell.

    Returns:
        encoder, task, trained_on, tested_on, target, mean, std (null for one seed), seeds.
    """
    keys = ["encoder", "task", "trained_on", "tested_on", "target"]
    chosen = frame.filter((pl.col("metric") == metric) & pl.col("value").is_not_null())
    return chosen.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean().alias("mean"),
        pl.col("value").std().alias("std"),
        pl.len().alias("seeds"),
    )


def tau_ceiling(labels: Float[np.ndarray, " n"]) -> float | None:
    """The most that Kendall's tau-b can be with predictions that are not tied: sqrt(1 - share of tied label pairs).

    >>> tau_ceiling(np.array([0.1, 0.1, 0.5]))
    0.816...
    """
    _, counts = np.unique(labels, return_counts=True)
    pairs = len(labels) * (len(labels) - 1) / 2
    return math.sqrt(1 - (counts * (counts - 1) / 2).sum() / pairs) if pairs else None


# ---- Units


def _units(
    zoos: Mapping[str, Zoo],
    contestants: Sequence[Contestant],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    targets: Sequence[str],
) -> Iterator[Unit]:
    for seed in seeds:
        for name, zoo in zoos.items():
            factors = _factors(zoo) if "factors" in tasks else ()
            for contestant in contestants:
                if set(tasks) - {"factors"}:
                    yield Unit(contestant=contestant, zoo=name, seed=seed, targets=tuple(targets), factors=False)
                if factors:
                    yield Unit(contestant=contestant, zoo=name, seed=seed, targets=factors, factors=True)


def _factors(zoo: Zoo) -> tuple[str, ...]:
    """Hyper-parameters that vary and do not name a run."""
    table = zoo.table
    names = [name for name in table.columns if name.startswith("config.") and "seed" not in name]
    return tuple(name for name in names if table[name].drop_nulls().n_unique() > 1)


def _results(
    run: Callable[[Unit], list[tuple]], todo: Sequence[Unit], workers: int
) -> Iterator[tuple[Unit, list[tuple]]]:
    if workers <= 1:
        yield from ((unit, run(unit)) for unit in todo)
        return
    pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
    yield from pool(joblib.delayed(_pair)(run, unit) for unit in todo)


def _pair(run: Callable[[Unit], list[tuple]], unit: Unit) -> tuple[Unit, list[tuple]]:
    return unit, run(unit)


def _run(unit: Unit, zoos: Mapping[str, Zoo]) -> list[tuple]:
    """Rows of one unit, on one core, so that processor time is comparable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _measure(unit, zoos)
    finally:
        torch.set_num_threads(threads)


def _measure(unit: Unit, zoos: Mapping[str, Zoo]) -> list[tuple]:
    train, validation, test = zoos[unit.zoo].split(unit.seed)
    own: Task = "factors" if unit.factors else "in-distribution"
    about = (unit.contestant.name, own, unit.zoo, unit.zoo, unit.seed)
    started = process_time()
    try:
        fitted = unit.contestant.fit(train, validation, unit.targets, unit.seed)
    except LayoutError as error:
        return [(*about, None, "refused", None, len(train), len(test), str(error))]
    spent = process_time() - started
    started = process_time()
    fitted.predict(test)
    facts = {
        "parameters": fitted.parameters,
        "training_core_seconds": spent / len(train) * 1000,
        "inference_core_seconds": (process_time() - started) / len(test) * 1000,
        "invariance_gap": fitted.invariance_gap(test),
    }
    rows: list[tuple] = [
        (*about, None, name, None if value is None else float(value), len(train), len(test), None)
        for name, value in facts.items()
    ]
    others = [unit.zoo] if unit.factors else list(zoos)
    for name in others:
        task = own if name == unit.zoo else _task(zoos[unit.zoo], zoos[name])
        tested = test if name == unit.zoo else zoos[name].split(unit.seed)[2]
        about = (unit.contestant.name, task, unit.zoo, name, unit.seed)
        try:
            predicted = fitted.predict(tested)
        except (LayoutError, UnknownName) as error:
            rows.append((*about, None, "refused", None, len(train), len(tested), str(error)))
            continue
        for target in fitted.targets:
            rows += _scored(about, target, train, tested, predicted[target.column])
    return rows


def _scored(about: tuple, target: Target, train: Zoo, tested: Zoo, predicted: pl.Series) -> list[tuple]:
    true = tested.table[target.column] if target.column in tested.table.columns else pl.Series([None] * len(tested))
    known = true.is_not_null()
    scores: dict[str, float | None]
    if target.kind == "class":
        before = train.table[target.column].drop_nulls().cast(pl.String).to_numpy()
        scores = class_scores(true.filter(known).cast(pl.String).to_numpy(), predicted.filter(known).to_numpy(), before)
        label = target.column
    else:
        numbers = [series.cast(pl.Float64).to_numpy() for series in (true, predicted)]
        if target.log10:
            with np.errstate(divide="ignore", invalid="ignore"):
                numbers = [np.log10(values) for values in numbers]
        finite = np.isfinite(numbers[0]) & np.isfinite(numbers[1])
        pair = numbers[0][finite], numbers[1][finite]
        scores = number_scores(*pair) | {"tau_ceiling": tau_ceiling(pair[0])} if finite.sum() > 1 else {}
        label = f"log10 {target.column}" if target.log10 else target.column
    counted = int(known.sum())
    return [(*about, label, name, value, len(train), counted, None) for name, value in scores.items()]


def _task(first: Zoo, second: Zoo) -> Task:
    """How two zoos differ: in their images, in their architectures, or in both."""
    images = [(zoo.header.get("dataset") or {}).get("name") for zoo in (first, second)]
    layouts = [set(zoo.table["layout"].unique()) for zoo in (first, second)]
    if layouts[0] == layouts[1]:
        return "cross-dataset"
    return "cross-architecture" if images[0] == images[1] else "cross-both"


def _stored(cells: Path, unit: Unit, identity: dict[str, Any]) -> list | None:
    """Rows of a unit that has been run on the same zoos, or nothing."""
    path = cells / f"{unit.name}.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return None
    known = [content.get(key) for key in ("identity", "source", "how")]
    same = known == [identity, unit.contestant.source, unit.contestant.how]
    return [tuple(row) for row in content["rows"]] if same else None
