"""`check`: every kind of damage is named, and nothing that is not damage."""

import json
import math
import subprocess

import polars as pl
import pytest
import safetensors.torch
import torch
from torch import nn

import weightspace.zoo
from weightspace import cli
from weightspace.errors import ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo import ZooWriter, check

LAYOUT, WIDE = Layout.of(nn.Linear(3, 2)), Layout.of(nn.Linear(4, 2))


def rows_of(count: int, seed: int, layout: Layout = LAYOUT) -> torch.Tensor:
    return torch.randn(count, layout.parameters, generator=torch.Generator().manual_seed(seed))


def table_of(count: int, name: str) -> pl.DataFrame:
    return pl.DataFrame({"model": [f"{name}{i}" for i in range(count)], "step": [0] * count})


@pytest.fixture
def path(tmp_path):
    """Two parts of two layouts, one network that diverged, a stored split."""
    made = ZooWriter.create(tmp_path / "zoo", {"name": "sound"}, [LAYOUT, WIDE])
    rows = rows_of(4, 0)
    rows[2, 3], rows[3, 0] = math.nan, -math.inf
    made.append("a", rows, table_of(4, "a"), LAYOUT)
    made.append("b", rows_of(3, 1, WIDE).half(), table_of(3, "b"), WIDE)
    weightspace.zoo.open(tmp_path / "zoo").split()
    return tmp_path / "zoo"


def test_a_sound_zoo(path, capsys):
    found = check(path)
    assert (found.models, found.checkpoints, found.parts, found.not_finite, found.without_hashes) == (7, 7, 2, 2, 0)
    assert found.size == sum(file.stat().st_size for file in (path / "weights").iterdir())
    assert found.unused == found.damage == ()
    assert cli.main(["zoo", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "2 checkpoints" in out and err == ""


def test_the_hashes_are_those_that_sha256sum_checks(path):
    files = sorted((path / "hashes").iterdir())
    done = subprocess.run(["sha256sum", "--check", "--strict", *files], cwd=path, capture_output=True, text=True)
    assert done.returncode == 0
    assert sorted(done.stdout.split("\n")[:-1]) == [
        "checkpoints/a.parquet: OK", "checkpoints/b.parquet: OK",
        "weights/a.safetensors: OK", "weights/b.safetensors: OK",
    ]  # fmt: skip


def test_one_changed_byte_anywhere_is_found(path, capsys):
    for file in sorted((path / "weights").iterdir()) + sorted((path / "checkpoints").iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 9)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            damage = check(path).damage
            assert len(damage) == 1
            assert f"{file} is not what was committed (its SHA-256 differs): delete checkpoints/" in damage[0]
        file.write_bytes(whole)
    assert check(path).damage == ()
    file.write_bytes(whole[:-1])
    assert cli.main(["zoo", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "SHA-256 differs" in err and err.count("\n") == 1
    assert "damage" in out


def test_missing_files_are_found(path):
    for name in ("a.safetensors", "b.safetensors"):
        (path / "weights" / name).unlink()
    damage = check(path).damage
    assert len(damage) == 2
    assert "a.safetensors is missing" in damage[0] and "b.safetensors is missing" in damage[1]
    assert check(path).checkpoints == 7


def test_a_zoo_without_hashes_is_read_and_checked_as_far_as_possible(path):
    """As versions before hashes wrote it."""
    for file in (path / "hashes").iterdir():
        file.unlink()
    (path / "hashes").rmdir()
    found = check(path)
    assert (found.without_hashes, found.damage, found.not_finite) == (2, (), 2)
    assert len(weightspace.zoo.open(path)) == 7
    ZooWriter.open(path).append("c", rows_of(1, 2), table_of(1, "c"), LAYOUT)
    assert (check(path).without_hashes, check(path).damage) == (2, ())
    shard = path / "weights" / "a.safetensors"
    for content, match in (
        (shard.read_bytes()[:-5], "truncated or damaged"),
        (safetensors.torch.save({"rows": rows_of(3, 0)}), "has 3 rows and its table names 4 of them, 4 in all"),
        (safetensors.torch.save({"rows": rows_of(5, 0)}), "has 5 rows and its table names 4"),
        (safetensors.torch.save({"rows": rows_of(4, 0, WIDE)}), "has rows of 8 parameters"),
    ):
        shard.write_bytes(content)
        assert len(check(path).damage) == 1
        assert match in check(path).damage[0]


def test_a_table_that_names_a_row_twice_is_damage(path):
    (path / "hashes" / "a.sha256").unlink()
    file = path / "checkpoints" / "a.parquet"
    table = pl.read_parquet(file)
    table.with_columns(row=pl.Series([0, 1, 2, 2])).write_parquet(file)
    assert "has 4 rows and its table names 3 of them, 4 in all" in check(path).damage[0]
    table.drop("step").write_parquet(file)
    assert "need a column 'step'" in check(path).damage[0]


def test_a_checkpoint_in_two_parts_is_damage(path):
    ZooWriter.open(path).append("c", rows_of(5, 2), table_of(5, "a"), LAYOUT)
    assert check(path).damage == ("model 'a0' has step 0 in two parts, as 4 checkpoints have: delete one",)


def test_damaged_headers_and_splits_are_found(path):
    (path / "splits.json").write_text('{"0": {"a0": "trian"}}')
    assert "not a record of splits" in check(path).damage[0]
    (path / "splits.json").unlink()
    header = json.loads((path / "zoo.json").read_text())
    header["layouts"][LAYOUT.digest], header["layouts"][WIDE.digest] = header["layouts"][WIDE.digest], [{"name": 3}]
    (path / "zoo.json").write_text(json.dumps(header))
    damage = check(path).damage
    assert f"calls a layout {LAYOUT.digest} whose content is {WIDE.digest}" in damage[0]
    assert f"is damaged at layout {WIDE.digest}" in damage[1]
    (path / "zoo.json").write_text("{")
    with pytest.raises(ZooError, match="not readable JSON"):
        check(path)


@pytest.mark.parametrize("content", ["", "nonsense", f"{'0' * 64}  ../../x", f"{'0' * 64}  weights/a.safetensors"])
def test_a_damaged_list_of_hashes_is_damage(path, content):
    (path / "hashes" / "a.sha256").write_text(content)
    damage = check(path).damage
    assert len(damage) == 1 and "a.sha256 does not list the hashes of its two files" in damage[0]


def test_files_of_no_part_are_named_and_are_no_damage(path, capsys):
    (path / "weights" / "c.safetensors").write_bytes(b"committed by nobody")
    (path / "hashes" / "c.sha256").write_bytes(b"")
    (path / "weights" / ".c.safetensors.1-abc.tmp").write_bytes(b"half")
    (path / "checkpoints" / ".c.parquet.1-abc.tmp").write_bytes(b"half")
    found = check(path)
    assert found.damage == ()
    assert set(found.unused) == {
        "weights/c.safetensors", "hashes/c.sha256", "weights/.c.safetensors.1-abc.tmp",
        "checkpoints/.c.parquet.1-abc.tmp",
    }  # fmt: skip


def test_an_empty_zoo_is_sound(tmp_path):
    ZooWriter.create(tmp_path / "zoo", {}, [LAYOUT])
    found = check(tmp_path / "zoo")
    assert (found.parts, found.checkpoints, found.models, found.damage) == (0, 0, 0, ())
