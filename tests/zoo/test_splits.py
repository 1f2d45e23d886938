"""Stratified splits and held-out models; plain splits are in test_store."""

import json
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace.zoo
from weightspace.errors import UnknownName, ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo import Zoo, ZooWriter, splits

LAYOUT = Layout.of(nn.Linear(3, 2))
examples = settings(max_examples=60, deadline=None)


def table_of(models: list[str], steps: int = 1, **columns: list) -> pl.DataFrame:
    """Columns have a value a model."""
    values = {name: [value for value in column for _ in range(steps)] for name, column in columns.items()}
    names = [model for model in models for _ in range(steps)]
    return pl.DataFrame({"model": names, "step": list(range(steps)) * len(models), **values}, strict=False)


def memory_zoo(models: list[str], steps: int = 1, **columns: list) -> Zoo:
    rows = torch.zeros(len(models) * steps, LAYOUT.parameters)
    return Zoo.in_memory(rows, LAYOUT, table_of(models, steps, **columns), {"name": "tiny"})


def disk_zoo(path, models: list[str], part: str = "0", **columns: list) -> Zoo:
    rows = torch.zeros(len(models), LAYOUT.parameters)
    ZooWriter.create(path, {}, [LAYOUT]).append(part, rows, table_of(models, **columns))
    return weightspace.zoo.open(path)


def sides(zoo: Zoo, seed: int = 0, stratify=()) -> dict[str, str]:
    parts = zip(splits.SIDES, zoo.split(seed, stratify=stratify), strict=True)
    return {model: name for name, part in parts for model in part.models}


strata = st.lists(st.sampled_from(["relu", "tanh", "gelu", None]), min_size=3, max_size=80)


@given(strata, st.integers(1, 3), st.integers(0, 99), st.randoms(use_true_random=False))
@examples
def test_a_stratified_split_is_a_partition_by_model_with_equal_shares(values, steps, seed, rng):
    models = [f"m{i}" for i in range(len(values))]
    zoo = memory_zoo(models, steps, **{"config.activation": values})
    parts = zoo.split(seed, stratify="config.activation")
    assert sum(len(part) for part in parts) == len(zoo)
    assert all(len(part) == steps * len(part.models) for part in parts)  # all checkpoints of a model together
    whole = sides(zoo, seed, "config.activation")
    count = Counter(whole.values())
    wanted = max(1, round(0.15 * len(models)))
    assert count["validation"] == count["test"] == wanted
    share = wanted / len(models)
    if len(set(values)) > 1:
        for value in set(values):
            of_stratum = Counter(whole[model] for model, own in zip(models, values, strict=True) if own == value)
            for side in ("validation", "test"):
                assert abs(of_stratum[side] - share * of_stratum.total()) < 1
    order = rng.sample(range(len(models)), len(models))
    shuffled = memory_zoo([models[i] for i in order], steps, **{"config.activation": [values[i] for i in order]})
    assert sides(shuffled, seed, ["config.activation"]) == whole
    some = zoo.take(sorted(rng.sample(range(len(zoo)), len(zoo) // 2)))
    assert sides(some, seed, "config.activation") == {model: whole[model] for model in some.models}


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=20, max_size=120, unique=True), st.integers(0, 9))
@examples
def test_any_range_of_a_number_has_its_share(values, seed):
    models = [f"m{i}" for i in range(len(values))]
    zoo = memory_zoo(models, **{"metric.accuracy": values})
    side = sides(zoo, seed, "metric.accuracy")
    ranked = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
    share = round(0.15 * len(models)) / len(models)
    for name in ("validation", "test"):
        marks = np.concatenate([[0], np.cumsum([side[models[i]] == name for i in ranked])])
        # counts between any two ranks: the largest and the smallest deviation from the share
        deviation = marks - share * np.arange(len(marks))
        assert deviation.max() - deviation.min() < 1 + 1e-9


def test_over_seeds_every_model_is_tested():
    values = [0.1, 0.2, 0.3, 0.4] * 10
    zoo = memory_zoo([f"m{i}" for i in range(40)], **{"config.lr": values})
    seeds = 400
    count = Counter(model for seed in range(seeds) for model in zoo.split(seed, stratify="config.lr")[2].models)
    # 6 of 40 are in a test part: a binomial with mean 60 and deviation 7.1; the largest of 40 stays below 4.5 of them
    assert max(abs(count[model] - seeds * 0.15) for model in zoo.models) < 4.5 * math.sqrt(seeds * 0.15 * 0.85)


def test_two_columns_make_cells_and_the_last_checkpoint_counts():
    a, b = ["x", "y"] * 40, [0] * 40 + [1] * 40
    zoo = memory_zoo([f"m{i}" for i in range(80)], 2, **{"config.a": a, "config.b": b})
    side = sides(zoo, 3, ["config.a", "config.b"])
    cells = Counter((a[i], b[i]) for i in range(80) if side[f"m{i}"] == "test")
    assert set(cells.values()) == {3}  # 15 % of 20
    early = zoo.with_columns(**{"metric.x": pl.when(pl.col("step") == 0).then(0).otherwise(pl.col("config.b"))})
    rebuilt = Zoo.in_memory(early.weights(), LAYOUT, early.table.drop("layout", "shard", "row"), {})
    assert sides(rebuilt, 3, "metric.x") == sides(zoo, 3, "config.b")


def test_a_stratified_split_is_stored_under_its_own_name(tmp_path):
    columns = {"config.a": [*"xxxxxyyyyy"]}
    zoo = disk_zoo(tmp_path / "zoo", [f"m{i}" for i in range(10)], **columns)
    plain, by = sides(zoo), sides(zoo, 0, "config.a")
    assert json.loads((tmp_path / "zoo" / "splits.json").read_text()) == {"0": plain, "0 by config.a": by}
    more = disk_zoo(tmp_path / "zoo", [f"n{i}" for i in range(10)], "1", **columns)
    after = sides(more, 0, "config.a")
    assert by.items() <= after.items()
    assert Counter(after.values()) == {"train": 14, "validation": 3, "test": 3}
    one = disk_zoo(tmp_path / "zoo", ["o0"], "2", **{"config.a": ["z"]})
    assert after.items() <= sides(one, 0, "config.a").items()
    with pytest.raises(UnknownName, match=r"unknown column 'config\.b'; did you mean 'config\.a'"):
        zoo.split(stratify="config.b")
    with pytest.raises(UnknownName, match=r"config\.b"):
        memory_zoo([*"abc"]).with_columns(**{"config.b": 1}).split(stratify="config.b")  # not a column of the zoo


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 9))
@examples
def test_models_that_come_later_leave_the_others_where_they_are(batches, seed):
    known: dict[str, splits.Side] = {}
    strata: dict[str, int] = {}
    for batch in batches:
        strata |= {f"m{len(strata) + i}": i % 3 for i in range(batch)}
        after = splits.draw(seed, strata, known)
        assert known.items() <= after.items()
        known = after
    assert known.keys() == strata.keys()
    if len(strata) >= 3 and len(set(strata.values())) > 1 and len(batches) == 1:
        assert {"validation", "test"} <= set(known.values())


# --- holding out ----------------------------------------------------------------------------------------------------

factors = st.lists(st.tuples(st.sampled_from(["relu", "tanh"]), st.sampled_from([0.1, 0.2])), min_size=2, max_size=30)


@given(factors, st.integers(1, 3))
@examples
def test_hold_out_takes_a_cell_of_whole_models(cells, steps):
    activation, rate = map(list, zip(*cells, strict=True))
    models = [f"m{i}" for i in range(len(cells))]
    zoo = memory_zoo(models, steps, **{"config.activation": activation, "config.lr": rate})
    cell = (pl.col("config.activation") == "tanh", pl.col("config.lr") == 0.2)
    held = [model for model, values in zip(models, cells, strict=True) if values == ("tanh", 0.2)]
    if len(held) in (0, len(models)):
        with pytest.raises(ZooError, match=r"holds for (all|none) of the models"):
            zoo.hold_out(*cell)
        return
    rest, out = zoo.hold_out(*cell)
    assert out.models == held
    assert rest.models == [model for model in models if model not in held]
    assert (len(rest), len(out)) == (steps * len(rest.models), steps * len(out.models))
    if len(models) >= 3:
        assert sides(rest).items() <= sides(zoo).items()


def test_hold_out_refuses_to_cut_a_model():
    zoo = memory_zoo([*"abc"], 3)
    with pytest.raises(ZooError, match=r"holds for 1 of the 3 checkpoints of model 'a'.* use zoo\.where"):
        zoo.hold_out(pl.col("step") > 1)
    with pytest.raises(UnknownName, match="config"):
        zoo.hold_out(pl.col("config.lr") > 1)


def test_a_data_set_can_be_held_out_of_joined_zoos():
    zoos = [memory_zoo([f"{name}{i}" for i in range(4)], 2).with_columns(dataset=name) for name in ("mnist", "usps")]
    rest, out = Zoo.concat(zoos).hold_out(pl.col("dataset") == "usps")
    assert out.models == [f"usps{i}" for i in range(4)] and rest.models == [f"mnist{i}" for i in range(4)]
