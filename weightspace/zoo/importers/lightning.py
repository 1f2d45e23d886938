"""Logs of PyTorch Lightning: `hparams.yaml` and `metrics.csv` of a version beside its `checkpoints/*.ckpt`."""

from functools import cache
from pathlib import Path

import polars as pl

from weightspace.errors import ZooError
from weightspace.zoo.importers.found import Found, Plain, configuration, finite, metrics, read_csv_file
from weightspace.zoo.importers.states import FileContent
from weightspace.zoo.importers.weight_files import Description, read_folder


def detect(source: Path) -> bool:
    """Whether a folder below has a log of Lightning beside checkpoints."""
    if not source.is_dir():
        return False
    logs = (file.parent for name in ("metrics.csv", "hparams.yaml") for file in source.rglob(name))
    return any(next(folder.rglob("*.ckpt"), None) for folder in logs)


def read(source: Path) -> Found:
    """Every `.ckpt` and other file of weights, a run a version folder, with the metrics logged up to its step."""

    @cache
    def log(folder: Path) -> tuple[dict[str, Plain], pl.DataFrame | None, tuple[str, ...]]:
        settings, file = _hyper_parameters(folder / "hparams.yaml"), folder / "metrics.csv"
        if not file.is_file():
            return settings, None, ()
        try:
            return settings, read_csv_file(file), ()
        except ZooError as error:
            return settings, None, (f"metrics were not taken: {error}",)

    def describe(file: Path, content: FileContent) -> Description:
        run = next((up for up in file.parents if _is_run(up)), None)
        if run is None or not run.is_relative_to(source):
            return Description()
        settings, table, notes = log(run)
        step = _number(file, "step")
        columns = settings | (_metrics(table, content.step, step) if table is not None else {})
        model = run.relative_to(source).as_posix() if run != source else source.name
        return Description(model=model, columns=columns, notes=notes)

    return read_folder(source, describe)


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.csv").is_file() or (folder / "hparams.yaml").is_file()


def _number(file: Path, name: str) -> int | None:
    """A number in a name such as `epoch=3-step=400`."""
    for part in file.stem.split("-"):
        key, _, value = part.partition("=")
        if key == name and value.isdigit():
            return int(value)
    return None


def _metrics(table: pl.DataFrame, epoch: int | None, step: int | None) -> dict[str, Plain]:
    """The last value of each metric that was logged when the checkpoint was written.

    Lightning counts steps in the log from 0 and in names of checkpoints from 1.
    """
    if epoch is not None and "epoch" in table.columns:
        table = table.filter(pl.col("epoch") <= epoch)
    elif step is not None and "step" in table.columns:
        table = table.filter(pl.col("step") < step)
    values = {}
    for name in table.columns:
        known = table[name].drop_nulls()
        if name not in ("epoch", "step") and len(known) and finite(known[-1]):
            values[name.removesuffix("_epoch")] = known[-1]
    return metrics(values)


def _hyper_parameters(file: Path) -> dict[str, Plain]:
    """The lines `name: value` of a flat YAML file; what is nested or tagged with a class is left out."""
    columns: dict[str, object] = {}
    if not file.is_file():
        return {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        value = value.strip()
        if colon and value and name == name.strip() and name[:1] not in "-#!&{[" and value[:1] not in "!&*{[|>":
            columns[name.strip("'\"")] = _yaml_scalar(value)
    return configuration(columns)


def _yaml_scalar(text: str) -> Plain:
    words: dict[str, Plain] = {"true": True, "false": False, "null": None, "~": None, ".nan": float("nan")}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
