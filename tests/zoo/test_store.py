"""Zoos: the format, round trips, selections, splits, damage, writing."""

import errno
import json
import math
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from safetensors import safe_open
from torch import nn

import weightspace.zoo
from weightspace.errors import LayoutError, UnknownName, ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo import Zoo, ZooWriter, shards, splits, store, writer

LAYOUT = Layout.of(nn.Linear(3, 2))
WIDE = Layout.of(nn.Linear(4, 2))
HEADER = {"name": "tiny", "network": {"kind": "mlp"}, "dataset": {"name": "digits"}, "recipe": {"seed": 0}}

on_disk = settings(max_examples=15, deadline=None)
in_memory = settings(max_examples=60, deadline=None)


def rows_of(count: int, seed: int = 0, layout: Layout = LAYOUT) -> torch.Tensor:
    return torch.randn(count, layout.parameters, generator=torch.Generator().manual_seed(seed))


def table_of(models: list[str], steps: int = 1, **columns: list) -> pl.DataFrame:
    names = [model for model in models for _ in range(steps)]
    return pl.DataFrame({"model": names, "step": list(range(steps)) * len(models), **columns}, strict=False)


def memory_zoo(models: list[str], steps: int = 1, seed: int = 0, **columns: list) -> Zoo:
    return Zoo.in_memory(rows_of(len(models) * steps, seed), LAYOUT, table_of(models, steps, **columns), HEADER)


def disk_zoo(path: Path, models: list[str], steps: int = 1, part: str = "00000") -> Zoo:
    rows = rows_of(len(models) * steps, seed=len(models))
    ZooWriter.create(path, HEADER, [LAYOUT]).append(part, rows, table_of(models, steps))
    return weightspace.zoo.open(path)


def sides(zoo: Zoo, seed: int = 0) -> dict[str, str]:
    parts = zip(splits.SIDES, zoo.split(seed), strict=True)
    return {model: name for name, part in parts for model in part.models}


def bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(torch.int32)


@pytest.fixture(scope="module")
def three_parts(tmp_path_factory) -> Path:
    """Three parts of 5 models x 4 checkpoints, in three precisions."""
    path = tmp_path_factory.mktemp("zoo") / "three"
    made = ZooWriter.create(path, HEADER, [LAYOUT])
    accuracy = np.random.default_rng(0).uniform(size=(3, 20)).round(1)
    for i, dtype in enumerate(writer.DTYPES):
        table = table_of([f"m{i}{j}" for j in range(5)], 4, **{"metric.test_accuracy": accuracy[i].tolist()})
        made.append(f"{i}", rows_of(20, i).to(dtype), table)
    return path


# --- format ---------------------------------------------------------------------------------------------------------


def test_the_files_are_readable_without_weightspace(tmp_path):
    rows = rows_of(4)
    made = ZooWriter.create(tmp_path / "zoo", HEADER | {"created_by": {"torch": "2"}}, [LAYOUT])
    made.append("00000", rows, table_of(["a", "b"], 2, **{"config.init": ["uniform"] * 4}))
    header = json.loads((tmp_path / "zoo" / "zoo.json").read_text())
    assert header == {
        "format": "weightspace-zoo",
        "version": 1,
        **HEADER,
        "created_by": {"torch": "2"},
        "layouts": {LAYOUT.digest: LAYOUT.to_json()},
    }
    table = pl.read_parquet(tmp_path / "zoo" / "checkpoints" / "00000.parquet")
    assert table.to_dict(as_series=False) == {
        "model": ["a", "a", "b", "b"],
        "step": [0, 1, 0, 1],
        "layout": [LAYOUT.digest] * 4,
        "shard": ["00000.safetensors"] * 4,
        "row": [0, 1, 2, 3],
        "config.init": ["uniform"] * 4,
    }
    with safe_open(tmp_path / "zoo" / "weights" / "00000.safetensors", framework="np") as file:
        assert list(file.keys()) == ["rows"]
        np.testing.assert_array_equal(file.get_tensor("rows"), rows.numpy())
    found = sorted(f.name for f in (tmp_path / "zoo").rglob("*") if f.is_file())
    assert found == ["00000.parquet", "00000.safetensors", "00000.sha256", "zoo.json"]


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", writer.DTYPES)
def test_weights_come_back_bit_for_bit(tmp_path, dtype):
    rows = rows_of(6).to(dtype)
    rows[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    rows[1, 0] = torch.finfo(dtype).smallest_normal / 2  # subnormal
    table = table_of([*"abcdef"])
    ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT]).append("0", rows, table)
    for zoo in (weightspace.zoo.open(tmp_path / "zoo"), Zoo.in_memory(rows, LAYOUT, table, HEADER)):
        weights = zoo.weights()
        assert weights.dtype == torch.float32
        assert torch.equal(bits(weights), bits(rows.float()))
    saved = weightspace.zoo.open(tmp_path / "zoo").save(tmp_path / "copy")
    assert torch.equal(bits(saved.weights()), bits(rows.float()))


def test_a_zoo_does_not_depend_on_the_order_in_which_parts_finished(tmp_path):
    zoos = []
    for name, order in (("up", range(5)), ("down", reversed(range(5)))):
        made = ZooWriter.create(tmp_path / name, HEADER, [LAYOUT])
        for i in order:
            made.append(f"{i}", rows_of(4, i), table_of([f"{i}a", f"{i}b"], 2))
        zoos.append(weightspace.zoo.open(tmp_path / name))
    up, down = zoos
    assert_frame_equal(up.table, down.table)
    assert torch.equal(up.weights(), down.weights())
    assert torch.equal(up.weights(), torch.cat([rows_of(4, i) for i in range(5)]))
    assert up.digest == down.digest
    assert sides(up) == sides(down)


def test_parts_with_different_columns_are_joined(tmp_path):
    made = ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT])
    made.append("0", rows_of(1, 0), table_of(["a"], **{"metric.x": [1], "metric.y": [None]}))
    made.append("1", rows_of(1, 1), table_of(["b"], **{"metric.x": [0.5], "metric.z": [True]}))
    table = weightspace.zoo.open(tmp_path / "zoo").table
    assert table["metric.x"].to_list() == [1.0, 0.5]
    assert table["metric.z"].to_list() == [None, True]


def test_neither_the_input_nor_the_output_can_change_a_zoo():
    rows = rows_of(3)
    zoo = Zoo.in_memory(rows, LAYOUT, table_of([*"abc"]), HEADER)
    expected = rows.clone()
    rows.zero_()
    zoo.weights().zero_()
    assert torch.equal(zoo.weights(), expected)
    with pytest.raises(AttributeError):
        zoo.table = zoo.table.head(1)


# --- selections -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 59), max_size=80), st.sampled_from([1, 24, 2**24]))
@in_memory
def test_weights_of_a_selection_are_the_rows_of_the_weights(three_parts, places, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "READ_VALUES", block)  # blocks of 1 row, of 3 rows, of everything
        zoo = weightspace.zoo.open(three_parts)
        taken = zoo.take(places)
        assert torch.equal(taken.weights(), zoo.weights()[places])
        assert_frame_equal(taken.table, zoo.table[places])


def test_selections_commute_and_share_the_storage(three_parts):
    zoo = weightspace.zoo.open(three_parts)
    late, good = pl.col("step") > 1, pl.col("metric.test_accuracy") > 0.4
    both = zoo.where(late, good)
    assert 0 < len(both) < len(zoo)
    assert_frame_equal(zoo.where(late).where(good).table, both.table)
    assert_frame_equal(zoo.where(good).where(late).table, both.table)
    mask = (zoo.table["step"] > 1) & (zoo.table["metric.test_accuracy"] > 0.4)
    assert torch.equal(both.weights(), zoo.weights()[torch.from_numpy(mask.to_numpy().copy())])
    assert both.shards is zoo.shards
    nothing = zoo.where(pl.col("step") > 9)
    assert (len(nothing), nothing.models, nothing.weights().shape) == (0, [], (0, 8))


def test_take_accepts_arrays_and_tensors_and_nothing_else(three_parts):
    zoo = weightspace.zoo.open(three_parts)
    for places in ([3, 1], np.array([3, 1]), torch.tensor([3, 1])):
        assert zoo.take(places).table["row"].to_list() == [3, 1]
    for place in (60, -1):
        with pytest.raises(ZooError, match=f"checkpoint {place} does not exist"):
            zoo.take([0, place])
    with pytest.raises(ZooError, match="whole row numbers"):
        zoo.take(np.array([True, False]))


values = st.lists(st.none() | st.sampled_from([math.nan, -1.0, 0.0, 0.5, 1.0, math.inf]), min_size=1, max_size=20)


@given(values, st.integers(1, 100))
@in_memory
def test_best_is_a_sort_by_hand(column, percent):
    zoo = memory_zoo([f"m{i}" for i in range(len(column))], **{"metric.x": column})
    zoo = zoo.with_columns(**{"metric.x": pl.Series(column, dtype=pl.Float64)})
    best = zoo.best(percent / 100, by="metric.x")
    count = -(-percent * len(column) // 100)  # ceil in whole numbers
    known = [i for i, x in enumerate(column) if x is not None and not math.isnan(x)]
    unknown = [i for i in range(len(column)) if i not in known]
    order = sorted(known, key=lambda i: (-column[i], i)) + unknown
    assert best.table["row"].to_list() == sorted(order[:count])


def test_last_is_one_checkpoint_a_model(three_parts):
    zoo = weightspace.zoo.open(three_parts)
    shuffled = zoo.take(torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    assert sorted(shuffled.last().table["model"]) == sorted(zoo.models)
    assert set(shuffled.last().table["step"]) == {3}
    uneven = zoo.where((pl.col("model") != "m00") | (pl.col("step") < 2))
    assert uneven.last().where(pl.col("model") == "m00").table["step"].to_list() == [1]


def test_an_unknown_column_gets_a_suggestion(three_parts):
    zoo = weightspace.zoo.open(three_parts)
    for use in (lambda c: zoo.best(0.5, by=c), lambda c: zoo.where(pl.col("step") > 0, pl.col(c) > 0)):
        with pytest.raises(UnknownName, match=r"unknown column 'metric.test_acc'; did you mean 'metric.test_accuracy'"):
            use("metric.test_acc")
    with pytest.raises(ZooError, match="not a number"):
        zoo.best(0.5, by="model")
    for fraction in (0.0, 1.1, math.nan):
        with pytest.raises(ZooError, match="above 0 and at most 1"):
            zoo.best(fraction, by="step")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block", [1, 2**24])
def test_what_is_not_finite_is_kept_found_and_named(tmp_path, monkeypatch, value, block):
    monkeypatch.setattr(shards, "READ_VALUES", block)
    rows = rows_of(6)
    rows[3, 7] = rows[5, 0] = value
    ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT]).append("0", rows, table_of([*"abc"], 2))
    zoo = weightspace.zoo.open(tmp_path / "zoo")
    assert (~zoo.weights().isfinite()).sum() == 2
    assert zoo.finite().table["row"].to_list() == [0, 1, 2, 4]
    magnitudes = zoo.finite().weights().abs().amax(1)
    assert len(zoo.finite(float(magnitudes.max()))) == 4
    assert len(zoo.finite(float(magnitudes.sort().values[1]))) == 2
    with pytest.raises(ZooError, match=r"^fitting needs finite .* model 'b' at step 1 .*2 of 6.*use \.finite\(\)$"):
        zoo.require_finite("fitting")
    zoo.finite().require_finite("fitting")


def test_running_statistics_are_no_weights_that_are_too_large():
    layout = Layout.of(torch.nn.BatchNorm1d(2))
    rows = torch.ones(3, layout.parameters)
    rows[0, layout.slices["running_var"]] = 100.0
    rows[1, layout.slices["weight"]] = 100.0
    zoo = weightspace.zoo.Zoo.in_memory(rows, layout, pl.DataFrame({"model": [*"abc"], "step": [0] * 3}), {})
    assert zoo.finite(largest=5.0).models == ["a", "c"]


def test_columns_can_be_added_but_not_those_that_identify_a_checkpoint():
    zoo = memory_zoo([*"abc"], 2)
    more = zoo.with_columns(
        **{"metric.a": torch.arange(6), "metric.b": list("uvwxyz"), "metric.c": 7, "metric.d": pl.col("step") * 2}
    )
    assert more.table.select(r"^metric\..*$").row(5) == (5, "z", 7, 2)
    assert zoo.table.width == 5
    for name in ("model", "step", "layout", "shard", "row"):
        with pytest.raises(ZooError, match=name):
            zoo.with_columns(**{name: 0})
    with pytest.raises(ZooError, match="2 values for 6"):
        zoo.with_columns(x=[1, 2])


def test_repr_says_what_is_there(three_parts):
    zoo = weightspace.zoo.open(three_parts)
    assert repr(zoo) == f"Zoo('tiny': 15 models, 60 checkpoints, 8 parameters, in {three_parts})"
    assert repr(memory_zoo(["a"])) == "Zoo('tiny': 1 model, 1 checkpoint, 8 parameters, in memory)"
    assert "in 2 places" in repr(Zoo.concat([zoo, memory_zoo(["a"])]))


def test_the_digest_follows_the_weights_and_the_recipe_only(three_parts, tmp_path):
    zoo = weightspace.zoo.open(three_parts)
    assert zoo.digest == weightspace.zoo.open(three_parts).digest == zoo.with_columns(x=1).digest
    a, table = memory_zoo([*"abc"]), table_of([*"abc"])
    other_recipe = Zoo.in_memory(rows_of(3), LAYOUT, table, HEADER | {"recipe": {"seed": 1}})
    later, swapped = zoo.where(pl.col("step") > 0), zoo.take([1, 0])
    different = [zoo, later, swapped, zoo.take([0, 1]), a, memory_zoo([*"abc"], seed=1), other_recipe]
    digests = [x.digest for x in (*different, disk_zoo(tmp_path / "z", [*"abc"]))]
    assert len(set(digests)) == len(digests)
    assert a.digest == Zoo.in_memory(rows_of(3), LAYOUT, table, HEADER | {"created_by": {"x": 1}}).digest


# --- splits ---------------------------------------------------------------------------------------------------------

names = st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), min_size=3, max_size=60)


@given(names, st.integers(1, 3), st.integers(0, 99), st.randoms(use_true_random=False))
@in_memory
def test_split_is_a_partition_by_model_that_order_and_selection_do_not_change(models, steps, seed, rng):
    models = sorted(models)
    zoo = memory_zoo(models, steps)
    parts = zoo.split(seed)
    assert sum(len(part) for part in parts) == len(zoo)
    assert all(len(part) == steps * len(part.models) for part in parts)  # all checkpoints of a model together
    whole = sides(zoo, seed)
    assert sorted(whole) == models
    count = Counter(whole.values())
    assert count["validation"] == count["test"] == max(1, round(0.15 * len(models)))
    assert count["train"] >= 1
    shuffled = rng.sample(models, len(models))
    assert sides(memory_zoo(shuffled, steps, seed=1), seed) == whole
    some = zoo.take(sorted(rng.sample(range(len(zoo)), len(zoo) // 2)))
    assert sides(some, seed) == {model: whole[model] for model in some.models}
    assert sides(parts[0], seed).items() <= whole.items()
    assert sides(Zoo.concat(list(parts)), seed) == whole


def test_over_seeds_each_model_is_tested_as_often_as_it_should():
    zoo = memory_zoo([f"m{i}" for i in range(40)])
    seeds = 400
    count = Counter(model for seed in range(seeds) for model in zoo.split(seed)[2].models)
    # 6 of 40 are in a test part: a binomial with mean 60 and deviation 7.1; the largest of 40 stays below 4.5 of them
    assert max(abs(count[model] - seeds * 0.15) for model in zoo.models) < 4.5 * math.sqrt(seeds * 0.15 * 0.85)


@given(st.integers(3, 12), st.integers(1, 25))
@on_disk
def test_models_appended_later_leave_the_others_where_they_are(first, more):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo"
        before = sides(disk_zoo(path, [f"m{i}" for i in range(first)]))
        added = [f"n{i}" for i in range(more)]
        zoo = disk_zoo(path, added, part="00001")
        some = sides(zoo.where(pl.col("model").is_in(added[::2])))  # a selection is split first, like the whole
        after = sides(zoo)
        assert before.items() <= after.items()
        assert some == {model: after[model] for model in added[::2]}
        assert len(after) == first + more
        wanted = max(1, round(0.15 * (first + more)))
        assert Counter(after.values())["validation"] == max(wanted, Counter(before.values())["validation"])
        assert after == sides(weightspace.zoo.open(path))


def test_a_split_is_stored_and_the_stored_one_is_used(tmp_path):
    zoo = disk_zoo(tmp_path / "zoo", [f"m{i}" for i in range(10)])
    file = tmp_path / "zoo" / "splits.json"
    zero, one = sides(zoo, 0), sides(zoo, 1)
    assert zero != one
    assert json.loads(file.read_text()) == {"0": zero, "1": one}
    swapped = {model: "test" if side == "train" else "train" for model, side in zero.items()}
    swapped["m0"] = "validation"
    file.write_text(json.dumps({"0": swapped}))
    assert sides(zoo, 0) == swapped
    file.unlink()
    assert sides(zoo, 0) == zero
    for broken in ('{"0": {"m0": "trian"}}', '{"0": 3}', "[]", '{"0": {"m0": ["x"]}}', "{"):
        file.write_text(broken)
        with pytest.raises(ZooError, match=r"splits\.json"):
            zoo.split(0)


@pytest.mark.parametrize("models", [1, 2])
def test_a_split_needs_three_models(tmp_path, models):
    for zoo in (memory_zoo([*"abc"][:models], 4), disk_zoo(tmp_path / "zoo", [*"abc"][:models], 4)):
        with pytest.raises(ZooError, match="at least 3 models"):
            zoo.split()
    assert not (tmp_path / "zoo" / "splits.json").exists()


def test_fine_tuned_copies_stay_on_the_side_of_their_model(tmp_path):
    zoo = disk_zoo(tmp_path / "zoo", [*"abcde"])
    zoo.split()
    zoo = disk_zoo(tmp_path / "zoo", [f"n{i}" for i in range(20)], part="00001")  # now sides are not by rank alone
    table = pl.DataFrame({"model": zoo.models}).with_columns(step=pl.lit(9))
    tuned = Zoo.in_memory(rows_of(25), LAYOUT, table, HEADER)
    assert sides(tuned) != sides(zoo)
    assert sides(Zoo.concat([tuned, zoo])) == sides(zoo)


# --- joining and saving ---------------------------------------------------------------------------------------------


def test_concat_joins_without_reading(three_parts, tmp_path):
    a, b = weightspace.zoo.open(three_parts), disk_zoo(tmp_path / "zoo", [*"xyz"], part="0")  # both have a shard "0"
    c, d = memory_zoo([*"uv"], seed=3, **{"metric.new": [1, 2]}), memory_zoo([*"w"], seed=4)
    zoos = [a.where(pl.col("step") == 1), b, c, d, a.last()]
    joined = Zoo.concat(zoos)
    assert torch.equal(joined.weights(), torch.cat([zoo.weights() for zoo in zoos]))
    assert joined.table["metric.new"].drop_nulls().to_list() == [1, 2]
    assert joined.path is None
    assert Zoo.concat([a.last(), a.where(pl.col("step") == 0)]).path == three_parts
    assert torch.equal(Zoo.concat([joined, joined]).weights(), joined.weights().repeat(2, 1))


def test_concat_refuses_what_cannot_be_told_apart():
    a = memory_zoo([*"abc"], 2)
    with pytest.raises(ZooError, match="two zoos have a model 'b' with step 1"):
        Zoo.concat([a, memory_zoo([*"bx"], 2, seed=1).where(pl.col("step") == 1)])
    with pytest.raises(ZooError, match="at least one"):
        Zoo.concat([])


def test_concat_of_several_layouts_keeps_what_is_true_of_all():
    narrow = memory_zoo([*"abc"], 2)
    other = HEADER | {"name": "wide", "network": {"kind": "wider"}}
    wide = Zoo.in_memory(rows_of(2, 5, WIDE), WIDE, table_of([*"vw"]), other)
    joined = Zoo.concat([narrow, wide, memory_zoo([*"xy"], seed=7)])
    assert joined.table["model"].to_list() == [*"aabbccvwxy"]
    assert set(joined.header["layouts"]) == {LAYOUT.digest, WIDE.digest}
    assert "network" not in joined.header  # true of some checkpoints only
    assert {key: joined.header[key] for key in ("name", "dataset", "recipe")} == {
        key: HEADER[key] for key in ("name", "dataset", "recipe")
    }
    for layout, rows in ((LAYOUT, torch.cat([rows_of(6), rows_of(2, 7)])), (WIDE, rows_of(2, 5, WIDE))):
        one = joined.where(pl.col("layout") == layout.digest)
        assert one.layout == layout
        assert torch.equal(one.weights(), rows)
    with pytest.raises(ZooError, match="has 2 layouts"):
        joined.weights()
    both = Zoo.concat([joined, joined.where(pl.col("layout") == WIDE.digest)])
    assert "network" not in both.header and len(both) == 12
    assert Zoo.concat([narrow, wide.where(pl.col("step") > 0)]).header == narrow.header


def test_a_saved_selection_is_a_zoo(three_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_VALUES", 56)  # parts of 7 checkpoints
    zoo = weightspace.zoo.open(three_parts)
    chosen = zoo.take(list(range(50, 10, -1)))
    saved = chosen.save(tmp_path / "new" / "zoo")
    assert torch.equal(saved.weights(), chosen.weights())
    assert_frame_equal(saved.table.drop("shard", "row"), chosen.table.drop("shard", "row"))
    assert len(list((saved.path / "weights").iterdir())) == 6
    assert {key: saved.header[key] for key in HEADER} == HEADER
    for there in (tmp_path / "new" / "zoo", tmp_path):
        with pytest.raises(ZooError, match="exists already"):
            zoo.save(there)
    with pytest.raises(ZooError, match="no checkpoints to save"):
        zoo.where(pl.col("step") > 9).save(tmp_path / "none")
    with pytest.raises(ZooError, match="twice"):
        zoo.take([0, 0]).save(tmp_path / "none")
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["zoo"]
    assert [f.name for f in tmp_path.iterdir()] == ["new"]


def test_a_zoo_of_two_layouts_is_read_one_layout_at_a_time(tmp_path):
    made = ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT, WIDE])
    with pytest.raises(ZooError, match="has 2 layouts: say which"):
        made.append("0", rows_of(3), table_of([*"abc"]))
    made.append("0", rows_of(3), table_of([*"abc"]), LAYOUT)
    made.append("1", rows_of(2, 1, WIDE), table_of([*"de"]), WIDE)
    with pytest.raises(LayoutError, match="is not one of"):
        made.append("2", torch.zeros(1, 2), table_of(["f"]), Layout.of(nn.Linear(1, 1)))
    zoo = weightspace.zoo.open(tmp_path / "zoo")
    for read in (lambda: zoo.layout, zoo.weights):
        with pytest.raises(ZooError, match="has 2 layouts"):
            read()
    assert "2 layouts" in repr(zoo)
    assert len(zoo.finite()) == 5
    saved = zoo.take([4, 0, 1, 3]).save(tmp_path / "copy")
    assert saved.table["model"].to_list() == ["e", "a", "b", "d"]
    wide = saved.where(pl.col("layout") == WIDE.digest)
    assert wide.layout == WIDE
    assert torch.equal(wide.weights(), rows_of(2, 1, WIDE)[[1, 0]])


# --- damage ---------------------------------------------------------------------------------------------------------


def refuse(path: Path, match: str) -> None:
    """Opening or reading fails with one sentence of ours."""
    with pytest.raises(ZooError, match=match) as caught:
        weightspace.zoo.open(path).weights()
    assert "\n" not in str(caught.value)


def test_what_is_not_a_zoo_is_refused(tmp_path):
    path, file = tmp_path / "zoo", tmp_path / "zoo" / "zoo.json"
    refuse(path, "there is no folder .*zoo")
    path.mkdir()
    refuse(path, r"is not a zoo: expected a folder with zoo\.json")
    for content, match in (
        ("{", "not readable JSON"),
        ("\xff", "not readable JSON"),
        ("[]", "does not describe a zoo"),
        ('{"format": "other", "version": 1}', "does not describe a zoo"),
        ('{"format": "weightspace-zoo", "version": 7}', "format version 7, .* reads up to 1: update weightspace"),
        ('{"format": "weightspace-zoo", "version": 1}', 'no "layouts"'),
    ):
        file.write_text(content, encoding="latin-1")
        refuse(path, match)
    file.unlink()
    ZooWriter.create(path, HEADER, [LAYOUT])
    refuse(path, "is empty: no checkpoints were committed")
    refuse(file, "is not a zoo")


def test_damaged_shards_and_tables_are_named_with_the_way_to_mend(tmp_path):
    zoo = disk_zoo(tmp_path / "zoo", [*"abc"])
    shard, table = zoo.shards["00000.safetensors"], tmp_path / "zoo" / "checkpoints" / "00000.parquet"
    whole, mend = shard.read_bytes(), r"delete checkpoints/00000\.parquet and weights/00000\.safetensors"
    for size in (0, 7, 40, len(whole) - 1):
        shard.write_bytes(whole[:size])
        refuse(tmp_path / "zoo", rf"00000\.safetensors is truncated or damaged.*{mend}")
    for rows in (torch.zeros(3, 9), torch.zeros(3, 8, dtype=torch.int32), torch.zeros(24)):
        shard.write_bytes(safetensors.torch.save({"rows": rows}))
        refuse(tmp_path / "zoo", rf"00000\.safetensors holds .*rows of 8 parameters.*{mend}")
    shard.write_bytes(safetensors.torch.save({"other": torch.zeros(3, 8)}))
    refuse(tmp_path / "zoo", rf"damaged.*rows.*{mend}")
    shard.write_bytes(safetensors.torch.save({"rows": torch.zeros(2, 8)}))
    refuse(tmp_path / "zoo", rf"wants row 2 of shard 00000.* has 2 rows.*{mend}")
    shard.unlink()
    refuse(tmp_path / "zoo", rf"shard .*00000\.safetensors is missing.*{mend}")
    with pytest.raises(ZooError, match="is missing"):
        _ = zoo.digest
    table.write_bytes(table.read_bytes()[:100])
    refuse(tmp_path / "zoo", rf"00000\.parquet is truncated or damaged.*{mend}")
    pl.DataFrame({"model": ["a"]}).write_parquet(table)
    refuse(tmp_path / "zoo", "need a column 'step'")


def test_following_the_advice_mends_the_zoo(tmp_path):
    disk_zoo(tmp_path / "zoo", [*"abc"])
    (tmp_path / "zoo" / "weights" / "00000.safetensors").unlink()
    (tmp_path / "zoo" / "checkpoints" / "00000.parquet").unlink()
    assert torch.equal(disk_zoo(tmp_path / "zoo", [*"abc"]).weights(), rows_of(3, 3))


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "table", "match"),
    [
        (torch.zeros(2, 8), table_of([*"abc"]), "2 rows of weights for a table of 3"),
        (torch.zeros(1, 9), table_of(["a"]), "rows have 9 values.* has 8"),
        (torch.zeros(1, 8, dtype=torch.float64), table_of(["a"]), "float64: convert"),
        (torch.zeros(1, 8), table_of(["a"], row=[0]), "makes the columns row itself"),
        (torch.zeros(1, 8), pl.DataFrame({"model": [1], "step": [0]}), "text column 'model'"),
        (torch.zeros(1, 8), pl.DataFrame({"model": ["a"], "step": [0.5]}), "whole-number column 'step'"),
        (torch.zeros(1, 8), pl.DataFrame({"model": ["a"]}), "step: None"),
        (torch.zeros(2, 8), pl.DataFrame({"model": ["a", None], "step": [0, 0]}), "null"),
        (torch.zeros(2, 8), pl.DataFrame({"model": ["a", "a"], "step": [1, 1]}), "model 'a' has step 1 twice"),
    ],
)
def test_rows_and_tables_that_do_not_fit_are_refused(tmp_path, rows, table, match):
    made = ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT])
    with pytest.raises(ZooError, match=match):
        made.append("0", rows, table)
    with pytest.raises(ZooError, match=match):
        Zoo.in_memory(rows, LAYOUT, table, HEADER)
    assert made.parts() == set()
    assert not list((tmp_path / "zoo" / "weights").iterdir())


def test_a_committed_part_is_never_overwritten(tmp_path):
    zoo = disk_zoo(tmp_path / "zoo", [*"abc"])
    made = ZooWriter.open(tmp_path / "zoo")
    with pytest.raises(ZooError, match="already committed"):
        made.append("00000", torch.zeros(1, 8), table_of(["z"]))
    assert torch.equal(weightspace.zoo.open(tmp_path / "zoo").weights(), zoo.weights())
    for part in ("", "a.b", "../x", "a/b", "a b"):
        with pytest.raises(ZooError, match="a part is named with"):
            made.append(part, torch.zeros(1, 8), table_of(["z"]))
    with pytest.raises(ZooError, match="no checkpoints"):
        made.append("1", torch.zeros(0, 8), table_of(["z"]).head(0))


def test_the_same_header_resumes_and_another_is_refused(tmp_path):
    disk_zoo(tmp_path / "zoo", [*"abc"])
    again = ZooWriter.create(tmp_path / "zoo", HEADER | {"created_by": {"torch": "another"}}, [LAYOUT])
    assert again.parts() == {"00000"}
    for header, layout, match in (
        (HEADER | {"recipe": {"seed": 1}}, LAYOUT, r"another zoo \(different recipe\)"),
        (HEADER | {"dataset": {"name": "mnist"}}, WIDE, r"\(different layouts, dataset\)"),
    ):
        with pytest.raises(ZooError, match=match):
            ZooWriter.create(tmp_path / "zoo", header, [layout])
    with pytest.raises(ZooError, match="at least one layout"):
        ZooWriter.create(tmp_path / "other", HEADER, [])
    with pytest.raises(ZooError, match="plain JSON data"):
        ZooWriter.create(tmp_path / "other", {"recipe": {"path": Path("x")}}, [LAYOUT])
    assert not (tmp_path / "other").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ZooError, match=r"not empty \(it has 'thesis.tex'\)"):
        ZooWriter.create(tmp_path, HEADER, [LAYOUT])
    with pytest.raises(ZooError, match="cannot make a zoo"):
        ZooWriter.create(tmp_path / "thesis.tex" / "zoo", HEADER, [LAYOUT])
    with pytest.raises(ZooError, match="cannot make a zoo"):
        ZooWriter.create(tmp_path / "thesis.tex", HEADER, [LAYOUT])
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
    ZooWriter.create(tmp_path / "new", {}, [LAYOUT])
    assert json.loads((tmp_path / "new" / "zoo.json").read_text())["name"] == "new"


def test_leftovers_of_a_killed_run_are_invisible_and_overwritten(tmp_path):
    made = ZooWriter.create(tmp_path / "zoo", HEADER, [LAYOUT])
    made.append("0", rows_of(2), table_of([*"ab"]))
    weights, tables = tmp_path / "zoo" / "weights", tmp_path / "zoo" / "checkpoints"
    (weights / "1.safetensors").write_bytes(b"half a shard")
    (weights / ".1.safetensors.99-abc.tmp").write_bytes(b"half a shard")
    (tables / ".1.parquet.99-abc.tmp").write_bytes(b"half a table")
    (tables / ".11.parquet.99-abc.tmp").write_bytes(b"another part's, perhaps being written")
    assert made.parts() == {"0"}
    assert torch.equal(weightspace.zoo.open(tmp_path / "zoo").weights(), rows_of(2))
    made.append("1", rows_of(2, 1), table_of([*"cd"]))
    assert torch.equal(weightspace.zoo.open(tmp_path / "zoo").weights(), torch.cat([rows_of(2), rows_of(2, 1)]))
    assert [f.name for f in tmp_path.rglob("*.tmp")] == [".11.parquet.99-abc.tmp"]


def test_a_disk_that_is_full_at_the_commit_leaves_nothing(tmp_path, monkeypatch):
    zoo = disk_zoo(tmp_path / "zoo", [*"abc"])
    before = sorted(file for file in zoo.path.rglob("*"))

    def refused(*_):
        raise OSError(errno.ENOSPC, "no space for a name")

    monkeypatch.setattr(writer, "_rename_to_new", refused)
    with pytest.raises(ZooError, match=r"could not write part '1'.*no space for a name.*nothing of it was kept"):
        ZooWriter.open(zoo.path).append("1", rows_of(1), table_of(["z"]))
    assert sorted(file for file in zoo.path.rglob("*")) == before
    assert weightspace.zoo.check(zoo.path).unused == ()


def test_file_systems_without_hard_links_can_hold_a_zoo(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    zoo = disk_zoo(tmp_path / "zoo", [*"abc"])
    assert torch.equal(zoo.weights(), rows_of(3, 3))
    with pytest.raises(FileExistsError):
        writer.write_file(tmp_path / "zoo" / "zoo.json", b"", replace=False)
    assert not list(tmp_path.rglob("*.tmp"))
