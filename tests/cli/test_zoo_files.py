"""`weightspace zoo import` and `export`: what is said is what was done."""

import json
import math

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import cli
from weightspace.zoo import open as open_zoo


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three networks, of two sizes, one with a NaN, one empty file, and labels."""
    monkeypatch.setenv("COLUMNS", "160")
    source = tmp_path / "runs"
    source.mkdir()
    for place, hidden in enumerate((4, 4, 5)):
        torch.save(nn.Linear(3, hidden).state_dict(), source / f"net{place}.pt")
    torch.save({"weight": torch.full((4, 3), math.nan)}, source / "nan.pt")
    (source / "zero.pt").write_bytes(b"")
    pl.DataFrame({"file": ["net0.pt", "net1.pt"], "reward": [1.0, 2.0]}).write_csv(source / "labels.csv")
    return source


def cells(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]


def test_import_prints_its_report(folder, tmp_path, capsys):
    labels = str(folder / "labels.csv")
    assert cli.main(["zoo", "import", str(folder), str(tmp_path / "zoo"), "--labels", labels]) == 0
    out = capsys.readouterr().out
    lines = cells(out)
    zoo = open_zoo(tmp_path / "zoo")
    sizes = {layout["digest"]: layout for layout in json.loads((tmp_path / "zoo/import.json").read_text())["layouts"]}
    assert all([d, str(x["tensors"]), str(x["parameters"]), str(x["checkpoints"])] in lines for d, x in sizes.items())
    assert ["1", "empty: the file has 0 bytes", "zero.pt"] in lines
    assert ["1", "NaN or infinite weights: 12 of 12 values", "nan.pt"] in lines
    assert ["2", "labels joined by column 'file'"] in lines
    assert "3 models, 3 checkpoints, 2 skipped" in out and len(zoo) == 3


def test_options_change_the_result(folder, tmp_path, capsys):
    assert cli.main(["zoo", "import", str(folder), str(tmp_path / "a"), "--keep-nonfinite", "--format", "files"]) == 0
    assert len(open_zoo(tmp_path / "a")) == 4
    assert cli.main(["zoo", "import", str(folder), str(tmp_path / "b"), "--max-weight", "1e-9"]) == 2
    err = capsys.readouterr().err
    assert "nothing of runs could be imported as 'files'" in err and not (tmp_path / "b").exists()


def test_export_and_back(folder, tmp_path, capsys):
    assert cli.main(["zoo", "import", str(folder), str(tmp_path / "zoo")]) == 0
    assert cli.main(["zoo", "export", str(tmp_path / "zoo"), str(tmp_path / "files")]) == 0
    assert "3 checkpoints: " in capsys.readouterr().out
    labels = str(tmp_path / "files/labels.csv")
    assert cli.main(["zoo", "import", str(tmp_path / "files"), str(tmp_path / "again"), "--labels", labels]) == 0
    assert sorted(open_zoo(tmp_path / "again").models) == sorted(open_zoo(tmp_path / "zoo").models)
    assert cli.main(["zoo", "export", str(tmp_path / "zoo"), str(tmp_path / "x"), "--format", "small-cnn"]) == 2
    assert "has 2 layouts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "zoo"], "there is no"),
        (["runs", "zoo", "--format", "raay"], "unknown format 'raay'; did you mean 'ray'?"),
        (["runs", "runs"], "exists already"),
        (["runs", "zoo", "--labels", "none.csv"], "none.csv"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["zoo", "import", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_pull_of_a_zoo_that_is_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["zoo", "pull", "me/none", str(tmp_path / "zoo"), "--endpoint", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.startswith("error: the Hub gave nothing under 'me/none'")
