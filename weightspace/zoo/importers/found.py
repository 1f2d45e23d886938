"""What an importer yields: checkpoints, blocks of checkpoints, and what it passes over with the reason.

Axes: n checkpoint of a block, p parameter.
"""

import json
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import polars as pl
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import WeightspaceError, ZooError
from weightspace.networks.layout import Layout

Plain = bool | int | float | str | None
"""A value that a column of the zoo's table can hold."""


class Unreadable(WeightspaceError):
    """One checkpoint cannot be taken; the message is the reason in the report, and the import goes on."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One network as it was found."""

    source: str
    """File or folder, relative to what is imported; for the report and for joining labels."""
    model: str
    """The run it belongs to."""
    step: int = 0
    """The epoch, or the training step where only that is known."""
    state: Mapping[str, Tensor]
    """Named tensors in the network's order; counters and tied tensors may be among them."""
    columns: Mapping[str, Plain] = field(default_factory=dict)
    """`config.*` and `metric.*`."""
    notes: tuple[str, ...] = ()
    """What was changed or left out on the way, for the report."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Many checkpoints of one layout at once."""

    source: str
    layout: Layout
    rows: Float[Tensor, "n p"]
    table: pl.DataFrame
    """`n` checkpoints: model, step, `config.*`, `metric.*`."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that was not taken."""

    source: str
    reason: str


Item = Checkpoint | Block | Skipped


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an importer makes of a source."""

    items: Iterator[Item]
    header: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the whole zoo: network, dataset, …"""
    notes: tuple[str, ...] = ()
    count: int = 0
    """How many items to expect, for the progress bar; 0 if that is not known."""


def plain(value: Any) -> Plain:
    """A value as a column can hold it: numbers, text and truth values as they are, anything else as JSON text.

    >>> plain([1, 2]), plain(0.5), plain(2**70)
    ('[1, 2]', 0.5, '1180591620717411303424')
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return whole if -(2**63) <= whole < 2**63 else str(whole)
    if isinstance(value, numbers.Real):
        return float(value)
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        return plain(value.item())
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):
        return str(value)


def configuration(values: Mapping[Any, Any]) -> dict[str, Plain]:
    """Hyper-parameters as `config.*` columns, nested ones with dots, the customary ones under the zoo's names.

    >>> configuration({"optim": {"lr": 0.1}, "model::nlin": "tanh"})
    {'config.optim.lr': 0.1, 'config.activation': 'tanh'}
    """
    columns = {}
    for key, value in _flat(values):
        columns["config." + _CONFIGURATION.get(key, key.replace("::", ".").replace("/", "."))] = plain(value)
    return columns


def metrics(values: Mapping[Any, Any]) -> dict[str, Plain]:
    """Measurements as `metric.*` columns; accuracies and losses of the three splits under the zoo's names.

    >>> metrics({"val_acc": 0.5, "train/loss": 1.0, "eval_f1": 0.3})
    {'metric.validation_accuracy': 0.5, 'metric.train_loss': 1.0, 'metric.eval_f1': 0.3}
    """
    return {"metric." + metric_name(key): plain(value) for key, value in _flat(values)}


def metric_name(name: str) -> str:
    """The zoo's name of a metric.

    >>> metric_name("valid_acc")
    'validation_accuracy'
    """
    name = name.replace("/", "_")
    if match := re.fullmatch(r"(train|training|val|valid|validation|test)_(acc|accuracy|loss)", name):
        split = {"training": "train", "val": "validation", "valid": "validation"}.get(match[1], match[1])
        return f"{split}_{'loss' if match[2] == 'loss' else 'accuracy'}"
    return name


def label_columns(table: pl.DataFrame) -> pl.DataFrame:
    """Columns of a user's table under the names of a zoo.

    `config.*` and `metric.*` stay. Hyper-parameters' customary names and columns of words say how a network was made;
    other numbers are measurements, so that no baseline of hyper-parameters sees them.

    >>> label_columns(pl.DataFrame({"lr": [0.1], "reward": [3.0], "algo": ["ppo"]})).columns
    ['config.learning_rate', 'metric.reward', 'config.algo']
    """
    names = {}
    for name, dtype in table.schema.items():
        if name.startswith(("config.", "metric.")):
            names[name] = name
        elif name.lower() in _HYPERPARAMETERS or not dtype.is_numeric():
            names[name] = "config." + _CONFIGURATION.get(name, name)
        else:
            names[name] = "metric." + metric_name(name)
    twice = {new for new, count in Counter(names.values()).items() if count > 1}
    return table.rename({name: new if new not in twice else f"{new[:7]}{name}" for name, new in names.items()})


def step_in(path: Path) -> tuple[str, int | None]:
    """Run and step of a checkpoint by its path: `run-3/epoch=7-step=900`, `run-3/checkpoint-500`, `net_epoch12`.

    The step is the last number called epoch, else the last called step; the run is what is left of the path, which may
    be nothing. Files of one run must carry one name: splits keep a run's checkpoints on one side.

    >>> step_in(Path("run-3/checkpoint-500/model")), step_in(Path("a/net_epoch12")), step_in(Path("resnet18"))
    (('run-3/model', 500), ('a/net', 12), ('resnet18', None))
    """
    parts, steps = [], {}
    for part in path.parts:
        for kind, number in _STEP.findall(part):
            steps["epoch" if kind.lower().startswith("ep") else "step"] = int(number)
        if (rest := _STEP.sub("", part).strip("-_=. ")) or not part:
            parts.append(rest)
    step = steps.get("epoch", steps.get("step"))
    return ("/".join(parts), step) if step is not None else (path.as_posix(), None)


def read_json_file(file: Path) -> Any:
    """The content of a JSON file, which may have NaN and Infinity.

    Raises:
        Unreadable: It is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{file.name} is not readable JSON: {error}") from error


def read_csv_file(file: Path) -> pl.DataFrame:
    """A table of comma-separated values, compressed or not.

    Raises:
        ZooError: It cannot be read as one.
    """
    try:
        return pl.read_csv(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ZooError(f"{file} is not a readable CSV table: {error}") from error


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number, and neither NaN nor infinite.

    >>> finite(1), finite(float("nan")), finite("1"), finite(True)
    (True, False, False, False)
    """
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_STEP = re.compile(
    r"(?:(?<=^)|(?<=[-_.]))(epochs?|ep|steps?|global_step|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d+)", re.I
)
_CONFIGURATION = {
    "model::nlin": "activation",
    "model::init_type": "init",
    "model::dropout": "dropout",
    "optim::optimizer": "optimiser",
    "optim::lr": "learning_rate",
    "optim::wd": "weight_decay",
    "training::batchsize": "batch_size",
    "optimizer": "optimiser",
    "lr": "learning_rate",
    "wd": "weight_decay",
}
"""Customary names of hyper-parameters, and the zoo's."""
_HYPERPARAMETERS = {
    *_CONFIGURATION, *_CONFIGURATION.values(), "batch_size", "batchsize", "momentum", "seed", "epochs", "gamma",
    "width", "depth", "layers", "hidden", "n_envs", "n_timesteps", "train_fraction", "init_scale", "l2reg",
}  # fmt: skip
