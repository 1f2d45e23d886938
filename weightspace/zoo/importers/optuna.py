"""An Optuna study: parameters and values from its SQLite file, read without Optuna, beside checkpoints named by trial.

Optuna keeps no weights; objectives save them under the trial's number, as `trial_7.pt`, `trial-7/model.safetensors` or
`7.pt`. A number of a category is looked up in the distribution stored with the parameter.
"""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from weightspace.errors import ZooError
from weightspace.zoo.importers.found import Found, Plain, configuration, metrics
from weightspace.zoo.importers.states import FileContent
from weightspace.zoo.importers.weight_files import Description, read_folder

_SQLITE = b"SQLite format 3\x00"
_TRIAL = re.compile(r"(?:^|[^a-z])trials?[-_=]?(\d+)", re.IGNORECASE)


def detect(source: Path) -> bool:
    """Whether a file beside or below is the SQLite file of a study."""
    return source.is_dir() and _study(source) is not None


def read(source: Path) -> Found:
    """Every file of weights, a model a trial, with the trial's parameters, values and intermediate values.

    Raises:
        ZooError: The study cannot be read.
    """
    file = _study(source)
    if file is None:
        raise ZooError(f"{source} has no SQLite file of an Optuna study")
    trials = _trials(file)

    def describe(path: Path, content: FileContent) -> Description:
        name = path.relative_to(source).with_suffix("").as_posix()
        found = _TRIAL.findall(name) or re.findall(r"(?:^|/)(\d+)(?:$|/)", name)
        trial = trials.get(int(found[-1])) if found else None
        if trial is None:
            return Description()
        return Description(model=f"trial_{int(found[-1])}", columns=trial)

    return read_folder(source, describe)


def _study(source: Path) -> Path | None:
    for file in sorted(path for suffix in ("*.db", "*.sqlite", "*.sqlite3") for path in source.rglob(suffix)):
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            if stream.read(len(_SQLITE)) != _SQLITE:
                continue
        with closing(_connection(file)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if {"studies", "trials", "trial_params", "trial_values"} <= names:
            return file
    return None


def _connection(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)


def _trials(file: Path) -> dict[int, dict[str, Plain]]:
    """Columns of each trial, by number."""
    try:
        with closing(_connection(file)) as database:
            numbers = dict(database.execute("SELECT trial_id, number FROM trials"))
            states = dict(database.execute("SELECT trial_id, state FROM trials"))
            parameters = database.execute(
                "SELECT trial_id, param_name, param_value, distribution_json FROM trial_params ORDER BY param_id"
            ).fetchall()
            values = database.execute("SELECT trial_id, objective, value, value_type FROM trial_values").fetchall()
            notes = database.execute("SELECT trial_id, key, value_json FROM trial_user_attributes").fetchall()
            studies = database.execute("SELECT study_id FROM studies").fetchall()
    except sqlite3.Error as error:
        raise ZooError(f"{file} is not a readable Optuna study: {error}") from error
    if len(studies) > 1:
        raise ZooError(f"{file} holds {len(studies)} studies, whose trials have the same numbers: export one of them")
    trials: dict[int, dict[str, Plain]] = {key: {"metric.trial_state": state} for key, state in states.items()}
    for key, name, value, distribution in parameters:
        trials[key] |= configuration({name: _value(value, json.loads(distribution))})
    objectives = len({objective for _, objective, _, _ in values})
    for key, objective, value, kind in values:
        infinite = {"INF_POS": float("inf"), "INF_NEG": float("-inf")}.get(kind, value)
        trials[key] |= metrics({"objective" if objectives == 1 else f"objective_{objective}": infinite})
    for key, name, value in notes:
        trials[key] |= metrics({name: json.loads(value)})
    return {number: trials[key] for key, number in numbers.items()}


def _value(stored: float, distribution: dict[str, Any]) -> Any:
    attributes = distribution.get("attributes", {})
    if distribution.get("name") == "CategoricalDistribution":
        return attributes["choices"][int(stored)]
    return int(stored) if str(distribution.get("name", "")).startswith("Int") else stored
