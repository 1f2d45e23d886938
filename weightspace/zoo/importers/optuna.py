"""An Optuna study: parameters and values from its file, read without Optuna, beside checkpoints named by trial.

The file is an SQLite database, or a journal: a line of JSON an operation, from which the study is built up again.
Optuna keeps no weights; objectives save them under the trial's number, as `trial_7.pt`, `trial-7/model.safetensors` or
`7.pt`. A number of a category is looked up in the distribution stored with the parameter.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from weightspace.errors import ZooError
from weightspace.zoo.importers.found import Found, Plain, configuration, metrics
from weightspace.zoo.importers.states import FileContent
from weightspace.zoo.importers.weight_files import Description, read_folder

_SQLITE = b"SQLite format 3\x00"
_JOURNALS = ("*.log", "*.journal", "*.jsonl")
_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
_CREATE_STUDY, _DELETE_STUDY, _CREATE_TRIAL, _PARAMETER, _STATE_AND_VALUES, _NOTE = 0, 1, 4, 5, 6, 8
"""Operations of a journal that a zoo has use for."""
_TRIAL = re.compile(r"(?:^|[^a-z])trials?[-_=]?(\d+)", re.IGNORECASE)


def detect(source: Path) -> bool:
    """Whether a file beside or below is the database or the journal of a study."""
    return source.is_dir() and _study(source) is not None


def read(source: Path) -> Found:
    """Every file of weights, a model a trial, with the trial's parameters, values and notes.

    Raises:
        ZooError: The study cannot be read.
    """
    file = _study(source)
    if file is None:
        raise ZooError(f"{source} has no SQLite file and no journal of an Optuna study")
    trials = _journal_trials(file) if _is_journal(file) else _trials(file)

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
    journals = sorted(path for pattern in _JOURNALS for path in source.rglob(pattern) if path.is_file())
    return next((file for file in journals if _is_journal(file)), None)


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


def _is_journal(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.readline(2**16)
    try:
        operation = json.loads(start)
    except ValueError:
        return False
    return isinstance(operation, dict) and {"op_code", "worker_id"} <= operation.keys()


def _operations(file: Path) -> Iterator[dict[str, Any]]:
    """The journal's lines; one that a killed worker left unfinished is the last."""
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            operation = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ZooError(f"{file} is not a readable journal of Optuna: line {number}: {error}") from error
        yield operation


def _journal_trials(file: Path) -> dict[int, dict[str, Plain]]:
    """Columns of each trial, by number.

    As Optuna does it: studies and trials are numbered in the order of their creation, a study of a name that there is
    already does not count, and a finished trial does not change.
    """
    studies: list[str | None] = []
    study_of: list[int] = []
    trials: list[dict[str, Plain]] = []
    finished: set[int] = set()
    try:
        for operation in _operations(file):
            code = operation["op_code"]
            if code == _CREATE_STUDY and operation["study_name"] not in studies:
                studies.append(operation["study_name"])
            elif code == _DELETE_STUDY:
                studies[operation["study_id"]] = None
            elif code == _CREATE_TRIAL and studies[operation["study_id"]] is not None:
                study_of.append(operation["study_id"])
                trials.append(_created(operation))
                if operation.get("state", 0) in (1, 2, 3):
                    finished.add(len(trials) - 1)
            elif code in (_PARAMETER, _STATE_AND_VALUES, _NOTE) and operation["trial_id"] not in finished:
                trials[operation["trial_id"]] |= _changed(code, operation)
                if code == _STATE_AND_VALUES and operation["state"] in (1, 2, 3):
                    finished.add(operation["trial_id"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ZooError(f"{file} is not a readable journal of Optuna: {type(error).__name__}: {error}") from error
    left = [number for number, name in enumerate(studies) if name is not None]
    if len(left) != 1:
        raise ZooError(f"{file} holds {len(left)} studies, whose trials have the same numbers: export one of them")
    own = [columns for columns, study in zip(trials, study_of, strict=True) if study == left[0]]
    return dict(enumerate(own))


def _created(operation: Mapping[str, Any]) -> dict[str, Plain]:
    """What a trial has from its beginning: nothing, or all of a trial made elsewhere."""
    if "state" not in operation:
        return {"metric.trial_state": "RUNNING"}
    distributions = operation["distributions"]
    parameters = {name: _value(value, json.loads(distributions[name])) for name, value in operation["params"].items()}
    values = operation["values"] or ([] if operation["value"] is None else [operation["value"]])
    state: dict[str, Plain] = {"metric.trial_state": _STATES[operation["state"]]}
    return state | configuration(parameters) | _objectives(values) | metrics(operation["user_attrs"])


def _changed(code: int, operation: Mapping[str, Any]) -> dict[str, Plain]:
    if code == _PARAMETER:
        distribution = json.loads(operation["distribution"])
        return configuration({operation["param_name"]: _value(operation["param_value_internal"], distribution)})
    if code == _NOTE:
        return metrics(operation["user_attr"])
    state: dict[str, Plain] = {"metric.trial_state": _STATES[operation["state"]]}
    return state | _objectives(operation["values"] or [])


def _objectives(values: list[float]) -> dict[str, Plain]:
    names = ["objective"] if len(values) == 1 else [f"objective_{number}" for number in range(len(values))]
    return metrics(dict(zip(names, values, strict=True)))


def _value(stored: int | float, distribution: dict[str, Any]) -> Any:
    attributes = distribution.get("attributes", {})
    if distribution.get("name") == "CategoricalDistribution":
        return attributes["choices"][int(stored)]
    return int(stored) if str(distribution.get("name", "")).startswith("Int") else stored
