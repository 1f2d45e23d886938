"""Windows, batches and duplicates: equal to the plain way, and only what is asked for is read."""

import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace.zoo
from weightspace.errors import ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo import Zoo, ZooWriter, duplicates, parts, shards

LAYOUT, WIDE = Layout.of(nn.Linear(3, 2)), Layout.of(nn.Linear(4, 2))
COUNTS = (20, 1, 13)  # rows of three parts in three precisions
examples = settings(max_examples=60, deadline=None)


def rows_of(count: int, seed: int, layout: Layout = LAYOUT) -> torch.Tensor:
    return torch.randn(count, layout.parameters, generator=torch.Generator().manual_seed(seed))


def table_of(count: int, name: str = "m", **columns: list) -> pl.DataFrame:
    return pl.DataFrame({"model": [f"{name}{i}" for i in range(count)], "step": [0] * count, **columns})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    made = ZooWriter.create(tmp_path_factory.mktemp("zoo") / "zoo", {"name": "three"}, [LAYOUT])
    for part, (count, dtype) in enumerate(zip(COUNTS, (torch.float32, torch.float16, torch.bfloat16), strict=True)):
        made.append(f"{part}", rows_of(count, part).to(dtype), table_of(count, f"{part}-"))
    return weightspace.zoo.open(made.path)


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return torch.cat([rows_of(n, i).to(dtype).float() for i, (n, dtype) in enumerate(zip(COUNTS, dtypes, strict=True))])


places = st.lists(st.integers(0, sum(COUNTS) - 1), max_size=60)
edges = st.none() | st.integers(-10, 10)


@given(places, st.builds(slice, edges, edges, st.none() | st.integers(1, 3)), st.sampled_from([1, 24, 2**20]))
@examples
def test_a_window_is_a_window_of_the_matrix(zoo, matrix, rows, columns, values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "READ_VALUES", values)  # blocks of 1 row, of 3 rows, of everything
        patch.setattr(shards, "OPEN_FILES", 2)  # files are closed in the middle
        for wanted in (rows, np.array(rows, dtype=np.int32), sorted(rows)):
            window = zoo.read(wanted, columns)
            assert window.dtype == torch.float32
            assert torch.equal(window, matrix[torch.tensor(wanted, dtype=torch.int64)][:, columns])
        assert torch.equal(zoo.read(columns=columns), matrix[:, columns])


@given(st.integers(1, 40), st.none() | st.integers(0, 5))
@examples
def test_batches_are_one_pass(zoo, matrix, size, seed):
    found = list(zoo.batches(size, columns=slice(2, 7), seed=seed))
    order = torch.cat([place for place, _ in found])
    assert [len(rows) for _, rows in found[:-1]] == [size] * (len(found) - 1)
    assert order.sort().values.tolist() == list(range(sum(COUNTS)))
    assert torch.equal(torch.cat([rows for _, rows in found]), matrix[order, 2:7])
    assert torch.equal(order, torch.cat([place for place, _ in zoo.batches(size, seed=seed)]))
    if seed is None:
        assert torch.equal(order, torch.arange(sum(COUNTS)))


def test_seeds_shuffle_differently(zoo):
    orders = [next(zoo.batches(34, seed=seed))[0].tolist() for seed in range(3)]
    assert len({tuple(order) for order in orders} | {tuple(range(34))}) == 4


def test_files_that_are_not_used_are_closed(zoo):
    opened = weightspace.zoo.open(zoo.path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened.weights()
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 3
    del opened
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reads_refuse_what_is_not_there(zoo):
    for rows, match in (
        ([34], "checkpoint 34 does"),
        ([-1], "checkpoint -1"),
        (np.array([0.5]), "whole row"),
    ):
        with pytest.raises(ZooError, match=match):
            zoo.read(rows)
    with pytest.raises(ZooError, match="ascending order"):
        zoo.read([0], slice(None, None, -1))
    with pytest.raises(ZooError, match="at least one checkpoint, got size 0"):
        next(zoo.batches(0))
    assert list(zoo.take([]).batches(3)) == []


def test_a_tensor_is_read_by_its_place_in_the_layout(zoo, matrix):
    state = LAYOUT.unflatten(matrix)
    for name, columns in zoo.layout.slices.items():
        assert torch.equal(zoo.read(columns=columns), state[name].flatten(1))


def test_opening_and_reading_weights_leave_the_other_columns_unread(zoo, monkeypatch):
    asked = []
    read = parts.TableParts.read
    monkeypatch.setattr(
        parts.TableParts, "read", lambda self, columns=None: asked.append(columns) or read(self, columns)
    )
    opened = weightspace.zoo.open(zoo.path)
    assert asked == []
    assert len(opened) == 34
    opened.read([3])
    opened.weights()
    _ = opened.digest
    assert asked[0] == ("layout", "shard", "row") and None not in asked
    assert opened.models == zoo.table["model"].to_list()
    assert opened.table.equals(zoo.table)
    asked.clear()
    assert len(opened.where(pl.col("step") == 0).models) == 34
    assert asked == []


def test_what_was_opened_stays_when_more_is_appended(tmp_path):
    made = ZooWriter.create(tmp_path / "zoo", {}, [LAYOUT])
    made.append("0", rows_of(3, 0), table_of(3))
    opened = weightspace.zoo.open(tmp_path / "zoo")
    made.append("1", rows_of(2, 1), table_of(2, "n"))
    assert (len(opened), len(opened.models), len(weightspace.zoo.open(tmp_path / "zoo"))) == (3, 3, 5)
    joined = Zoo.concat([opened, weightspace.zoo.open(tmp_path / "zoo").where(pl.col("model") == "n1")])
    assert torch.equal(joined.weights(), torch.cat([rows_of(3, 0), rows_of(2, 1)[1:]]))
    assert sum(len(side) for side in joined.split()) == 4


def test_a_zoo_travels_to_another_process_without_its_open_files(zoo, matrix):
    zoo.weights()
    copy = pickle.loads(pickle.dumps(zoo))
    assert len(pickle.dumps(zoo)) < 20_000
    assert torch.equal(copy.weights(), matrix)


def test_a_zoo_that_was_removed_says_so(tmp_path):
    made = ZooWriter.create(tmp_path / "zoo", {}, [LAYOUT])
    made.append("0", rows_of(3, 0), table_of(3))
    opened = weightspace.zoo.open(tmp_path / "zoo")
    shutil.rmtree(tmp_path / "zoo")
    with pytest.raises(ZooError, match=r"0\.parquet was there when the zoo was opened and is gone"):
        len(opened)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"row": [0, 1, -1]}, "wants row -1"),
        ({"row": [0, None, 1]}, "column 'row' of type Int64 without nulls"),
        ({"shard": ["../0.safetensors"] * 3}, r"shard '../0\.safetensors' outside of"),
        ({"layout": ["no"] * 3}, r"zoo\.json lacks layout no"),
    ],
)
def test_a_table_that_points_elsewhere_is_refused(tmp_path, change, match):
    made = ZooWriter.create(tmp_path / "zoo", {}, [LAYOUT])
    made.append("0", rows_of(3, 0), table_of(3))
    file = tmp_path / "zoo" / "checkpoints" / "0.parquet"
    pl.read_parquet(file).with_columns(**{name: pl.Series(values) for name, values in change.items()}).write_parquet(
        file
    )
    with pytest.raises(ZooError, match=match):
        weightspace.zoo.open(tmp_path / "zoo").weights()


# --- duplicates -----------------------------------------------------------------------------------------------------

cells = st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf])
triples = st.lists(st.tuples(cells, cells, cells), max_size=30)


@given(triples, st.integers(1, 3), st.sampled_from([1, 6, 2**18]), st.booleans())
@examples
def test_the_first_of_identical_rows_is_the_first_by_hand(rows, width, block, collide):
    matrix = np.array(rows, dtype=np.float32).reshape(-1, 3)[:, :width].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK_VALUES", block)
        if collide:  # every hash is 0: what is equal to the first row is found, and nothing else is taken for it
            patch.setattr(np.random, "default_rng", lambda _: type("zeros", (), {"integers": zeros})())
        first = duplicates.first_of_identical(lambda places: matrix[places], len(matrix), width)
    keys = [row.tobytes() for row in matrix]  # bit for bit: 0 is not -0, and NaN is NaN
    by_hand = [keys.index(key) for key in keys]
    if collide:
        by_hand = [0 if place == 0 else i for i, place in enumerate(by_hand)]
    assert first.tolist() == by_hand


def zeros(self, low, high, size, dtype):
    return np.zeros(size, dtype)


def test_deduplicate_keeps_the_first_of_each_layout():
    rows = rows_of(4, 0)
    repeated = rows[[0, 1, 0, 2, 1, 3]]
    narrow = Zoo.in_memory(repeated, LAYOUT, table_of(6), {})
    half = Zoo.in_memory(rows[:2].half().float().half(), LAYOUT, table_of(2, "h"), {})
    same_as_half = Zoo.in_memory(rows[:2].half().float(), LAYOUT, table_of(2, "f"), {})
    wide = Zoo.in_memory(torch.zeros(3, WIDE.parameters), WIDE, table_of(3, "w"), {})
    assert narrow.deduplicate().models == ["m0", "m1", "m3", "m5"]
    assert torch.equal(narrow.deduplicate().weights(), rows)
    joined = Zoo.concat([half, narrow, same_as_half, wide]).deduplicate()
    assert joined.models == [
        "h0",
        "h1",
        "m0",
        "m1",
        "m3",
        "m5",
        "w0",
    ]  # float16 rows and their float32 copies are equal
    again = joined.deduplicate()
    assert again.models == joined.models
    assert len(narrow.take([]).deduplicate()) == 0


def test_the_sign_of_many_weights_alone_makes_another_row():
    # sign flips change only the highest bit of each word, the weak spot of a hash that is a sum modulo 2^64
    signs = torch.tensor(np.random.default_rng(0).choice([-1.0, 1.0], (2000, 64)), dtype=torch.float32).unique(dim=0)
    calls = []

    def read(places: np.ndarray) -> np.ndarray:
        calls.append(len(places))
        return signs.numpy()[places]

    first = duplicates.first_of_identical(read, len(signs), 64)
    assert first.tolist() == list(range(len(signs)))
    assert sum(calls) == len(signs)  # no two had the same hash: none was read again to compare
