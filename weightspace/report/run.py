"""What a report is made of: the tables, the zoo and the facts that are in a run folder, each of them optional."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from weightspace.errors import WeightspaceError
from weightspace.networks.layout import Layout
from weightspace.zoo import store

REQUIRED = {
    "map": ("model", "step", "x", "y"),
    "properties": ("representation", "probe", "target", "metric", "value"),
    "predictions": ("representation", "probe", "target", "true", "predicted"),
    "layers": ("representation", "layer", "layer_number", "target", "metric", "value"),
    "networks": ("source", "epoch", "accuracy"),
    "generation": ("source", "epoch", "accuracy_mean", "accuracy_std"),
    "novelty": ("source", "distance_ratio_50"),
    "ensembles": ("source", "members", "accuracy"),
    "transfer_curves": ("source", "epoch", "accuracy_mean", "accuracy_low", "accuracy_high"),
    "transfer_summary": ("source", "start", "final", "area"),
}
TEXT = {"model", "split", "representation", "layer", "probe", "target", "metric", "source", "verdict"}


class ReportError(WeightspaceError):
    """A run folder has nothing to show, or one of its files cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run folder; what the folder lacks is `None` or empty."""

    path: Path
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    """Tables with at least one row, by the names in `REQUIRED`."""
    checkpoints: pl.DataFrame | None = None
    """One row a checkpoint: the zoo's table, else the table of the map."""
    history: pl.DataFrame | None = None
    """Losses of the encoder over its training."""
    facts: dict[str, object] = field(default_factory=dict)
    """Content of run.json."""
    zoo_facts: dict[str, object] = field(default_factory=dict)
    """Content of zoo.json, with the size of each layout in place of its tensors."""


def read_run(path: Path) -> Run:
    """Read a run folder, or a bare zoo folder.

    Args:
        path: Folder with any of tables/, zoo/, run.json and a fitted encoder, or a zoo folder.
    Returns:
        The run; tables without rows count as missing.
    Raises:
        ReportError: The folder is missing or holds none of these, or a file is damaged or lacks a column.
        ZooError: The zoo cannot be opened.
    """
    if not path.is_dir():
        raise ReportError(f"there is no folder {path}; give a run folder or a zoo folder")
    tables = {}
    for name, columns in REQUIRED.items():
        frame = _read_table(path / "tables" / f"{name}.csv", columns)
        if frame is not None:
            tables[name] = frame
    folder = path if (path / "zoo.json").exists() else path / "zoo"
    zoo = store.open(folder) if (folder / "zoo.json").exists() else None
    histories = (_read_table(file, ("epoch",)) for file in sorted(path.glob("*/history.csv")))
    run = Run(
        path=path,
        tables=tables,
        checkpoints=zoo.table if zoo is not None else tables.get("map"),
        history=next((history for history in histories if history is not None), None),
        facts=_read_facts(path / "run.json"),
        zoo_facts=_zoo_facts(zoo.header) if zoo is not None else {},
    )
    if run.checkpoints is None and not tables and run.history is None and not run.facts:
        raise ReportError(f"{path} holds no tables/*.csv, zoo.json or run.json; give a run folder or a zoo folder")
    return run


def _read_table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """Numbers as float64 where a whole column reads as numbers; names of models and sources stay text ("007")."""
    if not path.exists():
        return None
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReportError(f"cannot read the table {path} ({str(error).splitlines()[0]}); write it again") from error
    numbers = frame.cast(pl.Float64, strict=False)
    is_number = [c for c in frame.columns if c not in TEXT and numbers[c].null_count() == frame[c].null_count()]
    frame = frame.with_columns(numbers[c] for c in is_number)
    if missing := [c for c in columns if c not in frame.columns]:
        raise ReportError(f"the table {path} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    if wrong := [c for c in columns if c not in TEXT and c not in is_number]:
        raise ReportError(f"the table {path} has text in the column of numbers {wrong[0]!r}; write it again")
    return frame if frame.height else None


def _zoo_facts(header: dict[str, Any]) -> dict[str, object]:
    layouts = {digest: Layout.from_json(tensors) for digest, tensors in header["layouts"].items()}
    sizes = {digest: f"{len(a.tensors)} tensors, {a.parameters:,} parameters" for digest, a in layouts.items()}
    return header | {"layouts": sizes}


def _read_facts(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is not valid JSON ({error}); write it again or remove it") from error
    if not isinstance(facts, dict):
        raise ReportError(f"{path} holds a JSON {type(facts).__name__}, not an object; write it again or remove it")
    return facts
