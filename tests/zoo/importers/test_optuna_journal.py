"""Journals of Optuna: `optuna_journal.log` is what Optuna 5.0.0 wrote, the others are made of its lines."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import ZooError
from weightspace.zoo import import_zoo

JOURNAL = Path(__file__).with_name("optuna_journal.log")
"""Six trials: enqueued, ordinary, with an infinite value, pruned, failed, and one that was added whole."""


@pytest.fixture
def study(tmp_path):
    """The journal, and weights named by trial."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study/journal.log").write_bytes(JOURNAL.read_bytes())
    for number in range(6):
        torch.manual_seed(number)
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / f"study/trial_{number}.pt")
    return tmp_path / "study"


def operations() -> list[dict]:
    return [json.loads(line) for line in JOURNAL.read_text().splitlines()]


def write(study: Path, journal: list[dict]) -> None:
    (study / "journal.log").write_text("".join(json.dumps(operation) + "\n" for operation in journal))


def table(study: Path, name: str = "zoo") -> dict[str, dict]:
    import_zoo(study, study.parent / name)
    return {entry["model"]: entry for entry in ws.open(study.parent / name).table.iter_rows(named=True)}


def test_trials_of_a_journal(study):
    found = table(study)
    assert json.loads((study.parent / "zoo/import.json").read_text())["format"] == "optuna"
    assert [found[f"trial_{i}"]["metric.trial_state"] for i in range(6)] == [
        "COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE"
    ]  # fmt: skip
    assert [found[f"trial_{i}"]["metric.objective"] for i in range(6)] == [
        0.0, 0.25, float("inf"), 0.6000000000000001, None, 0.875
    ]  # fmt: skip
    assert [found[f"trial_{i}"]["config.width"] for i in range(6)] == [6, 6, 8, 6, 4, 7]
    assert [found[f"trial_{i}"]["config.activation"] for i in range(6)] == [
        "relu", "relu", "tanh", "relu", "relu", "tanh"
    ]  # fmt: skip
    assert found["trial_1"]["config.learning_rate"] == 0.004311710058685493
    assert [found[f"trial_{i}"]["metric.test_accuracy"] for i in range(6)] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]


def test_a_finished_trial_does_not_change_and_a_second_study_of_a_name_does_not_count(study):
    """Two workers may write the same thing; who comes second has lost."""
    whole = table(study)
    journal = operations()
    late = [operation | {"values": [7.0]} for operation in journal if operation["op_code"] == 6 and operation["values"]]
    write(study, [journal[0], *journal, *late])
    assert table(study, "again") == whole


def test_trials_of_a_deleted_study_keep_their_numbers_from_others(study):
    journal = operations()
    worker = {"worker_id": "w"}
    before = [
        {"op_code": 0, **worker, "study_name": "old", "directions": [1]},
        {"op_code": 4, **worker, "study_id": 0, "datetime_start": None},
        {"op_code": 1, **worker, "study_id": 0},
    ]
    moved = [{k: v + 1 if k in ("study_id", "trial_id") else v for k, v in line.items()} for line in journal]
    whole = table(study)
    write(study, before + moved)
    assert table(study, "again") == whole


def test_a_line_that_was_being_written_is_left_out(study):
    lines = JOURNAL.read_bytes().splitlines(keepends=True)
    (study / "journal.log").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert table(study)["trial_5"].get("metric.objective") is None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [lines[0], b'{"op_code":\n', *lines[1:]], "line 2"),
        (lambda lines: [lines[0], b"[1]\n", *lines[1:]], "not a readable journal of Optuna: TypeError"),
        (lambda lines: [*lines, b'{"op_code":5,"worker_id":"w","trial_id":99}\n'], "IndexError"),
        (lambda lines: [*lines, lines[0].replace(b"sweep", b"second")], "holds 2 studies"),
    ],
)
def test_damaged_journals_are_refused(study, damage, sentence):
    (study / "journal.log").write_bytes(b"".join(damage(JOURNAL.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ZooError, match=sentence):
        import_zoo(study, study.parent / "zoo")


def test_an_ordinary_log_is_no_journal(study):
    (study / "journal.log").write_text('{"epoch": 1}\n')
    assert import_zoo(study, study.parent / "zoo").format == "files"
