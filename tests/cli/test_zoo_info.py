"""`weightspace zoo info` on a written zoo: what it says is what was written."""

import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightspace import cli
from weightspace.cli.zoo import BARS, BINS, histogram
from weightspace.networks import Layout
from weightspace.zoo import Zoo, import_zoo


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten models at two steps, one checkpoint of them with a NaN."""
    monkeypatch.setenv("COLUMNS", "160")
    layout = Layout.of(nn.Linear(3, 2))
    rows = torch.randn(20, layout.parameters, generator=torch.Generator().manual_seed(0))
    rows[3, 1] = float("nan")
    table = pl.DataFrame(
        {
            "model": [f"m{i:02d}" for i in range(10) for _ in range(2)],
            "step": [0, 5] * 10,
            "config.learning_rate": [0.001 * (1 + i // 2) for i in range(20)],
            "config.activation": ["relu", "relu", "tanh", "tanh"] * 5,
            "metric.test_accuracy": [0.1, 0.5] * 9 + [0.1, 0.95],
        }
    )
    header = {"name": "tiny", "dataset": {"name": "digits", "image_shape": [1, 8, 8]}}
    Zoo.in_memory(rows, layout, table, header).save(tmp_path / "zoo")
    return tmp_path / "zoo"


def test_info(folder, capsys):
    assert cli.main(["zoo", "info", str(folder)]) == 0
    out = capsys.readouterr().out
    rows = {cells[0].strip(): cells[1].strip() for line in out.splitlines() if len(cells := line.split("│")[1:-1]) == 2}
    assert rows["models"] == "10"
    assert rows["checkpoints"] == "20, at epochs 0, 5"
    assert rows["parameters"].startswith("8 (layout ")
    assert rows["data set"] == "name digits, image_shape 1x8x8"
    assert rows["network"] == "unknown"
    assert rows["NaN or infinite weights"] == "1 checkpoints"
    assert "lowest 0.500, median 0.500, highest 0.950" in out
    assert rows["learning_rate"] == "0.001 to 0.01"
    assert rows["activation"] == "relu, tanh"


def test_info_of_many_layouts(tmp_path, capsys):
    for width in range(1, 9):
        save_file({"weight": torch.zeros(width, 3)}, tmp_path / f"{width}.safetensors")
    import_zoo(tmp_path, tmp_path / "zoo")
    assert cli.main(["zoo", "info", str(tmp_path / "zoo")]) == 0
    assert "3 to 24 in 8 layouts" in capsys.readouterr().out


def test_info_without_a_zoo(tmp_path, capsys):
    assert cli.main(["zoo", "info", str(tmp_path / "gone")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "gone" in err


def test_histogram_shows_each_value_in_its_bin():
    for i in range(BINS):
        bar = histogram(pl.Series([(i + 0.5) / BINS]))
        assert bar == " " * i + BARS[-1] + " " * (BINS - 1 - i)
    rare = histogram(pl.Series([0.0] * 1000 + [1.0]))
    assert (rare[0], rare[-1]) == (BARS[-1], BARS[1])
    assert histogram(pl.Series([0.0] * 4 + [1.0] * 2))[-1] == "▄"
