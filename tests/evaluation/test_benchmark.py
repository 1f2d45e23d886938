"""The benchmark: cells, what is known when, going on after a stop, and encoders from elsewhere."""

import json
from itertools import product

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import kendalltau

from weightspace.encoders import FlatConfig, SNEConfig
from weightspace.errors import ConfigError, UnknownName
from weightspace.evaluation import benchmark, contestants, summary
from weightspace.evaluation.benchmark import tau_ceiling
from weightspace.evaluation.contestants import contestant, names
from weightspace.networks import CNN, MLP, Layout, to_json
from weightspace.zoo import Zoo

SIMPLE = ("constant", "hyper-parameters, boosting", "statistics, ridge", "statistics, boosting")
SMALL, LARGE = (
    MLP(image_shape=(1, 2, 4), hidden=(4,), classes=3),
    CNN(image_shape=(1, 4, 4), channels=(3,), kernels=(3,), pools=(2,), classes=3),
)


def population(network, images, seed, count=60):
    """Networks whose accuracy grows with the size of their weights, as the learning rate does."""
    g = torch.Generator().manual_seed(seed)
    layout = Layout.of(network.build())
    size = torch.rand(count, 1, generator=g) * 2 - 1
    rows = torch.exp(size) * torch.randn(count, layout.parameters, generator=g)
    table = pl.DataFrame({
        "model": [f"{images}{seed}-{i}" for i in range(count)],
        "step": [3] * count,
        "metric.test_accuracy": torch.sigmoid(3 * size[:, 0]).tolist(),
        "config.learning_rate": (10 ** (2 * size[:, 0])).tolist(),
        "config.optimiser": ["adam" if value > 0 else "sgd" for value in size[:, 0].tolist()],
        "config.seed": list(range(count)),
    })  # fmt: skip
    return Zoo.in_memory(rows, layout, table, {"network": to_json(network), "dataset": {"name": images}})


@pytest.fixture(scope="module", autouse=True)
def one_setting():
    """Choosing among settings is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants, "BOOSTING", contestants.BOOSTING[:1])
        yield


@pytest.fixture(scope="module")
def zoos():
    return {
        "small-a": population(SMALL, "a", 0), "small-b": population(SMALL, "b", 1),
        "large-a": population(LARGE, "a", 2), "large-b": population(LARGE, "b", 3),
    }  # fmt: skip


@pytest.fixture(scope="module")
def frame(zoos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    everybody = [*map(contestant, SIMPLE), contestant("flat", epochs=2, accelerator="cpu")]
    return benchmark(zoos, everybody, folder, seeds=(0, 1)), folder, everybody


def value(frame, **wanted):
    rows = frame.filter(*(pl.col(name) == known for name, known in wanted.items()))
    return rows["value"].to_list()


def test_every_pair_of_zoos_is_one_task(frame):
    cells = frame[0].filter(pl.col("encoder") == "statistics, boosting", pl.col("metric") == "kendall_tau")
    found = {
        (a, b): task for task, a, b in cells.select("task", "trained_on", "tested_on").iter_rows() if task != "factors"
    }
    for a, b in product(("small-a", "small-b", "large-a", "large-b"), repeat=2):
        same = a[:5] == b[:5], a[-1] == b[-1]
        wanted = {(True, True): "in-distribution", (True, False): "cross-dataset",
                  (False, True): "cross-architecture", (False, False): "cross-both"}[same]  # fmt: skip
        assert found[a, b] == wanted
    assert set(cells.filter(pl.col("task") == "factors")["target"]) == {"log10 config.learning_rate"}
    assert cells["seed"].unique().sort().to_list() == [0, 1]


def test_what_the_weights_say_is_found_and_a_constant_finds_nothing(frame):
    means = {(row["encoder"], row["task"]): row["mean"] for row in summary(frame[0]).iter_rows(named=True)
             if row["trained_on"] == "small-a" and row["tested_on"] == "small-a"}  # fmt: skip
    assert means["statistics, boosting", "in-distribution"] > 0.7
    assert means["hyper-parameters, boosting", "in-distribution"] > 0.9  # the learning rate says all
    assert ("constant", "in-distribution") not in means  # its tau is not defined
    assert max(value(frame[0], encoder="constant", metric="r2", task="in-distribution")) <= 0
    accuracy = value(frame[0], encoder="statistics, ridge", metric="accuracy", target="config.optimiser")
    assert np.mean(accuracy) > 0.8  # of nine networks each


def test_an_encoder_of_one_layout_is_refused_elsewhere(frame):
    refused = frame[0].filter(pl.col("metric") == "refused")
    assert refused["encoder"].unique().to_list() == ["flat"]
    assert set(refused["task"]) == {"cross-architecture", "cross-both"}
    assert refused["value"].null_count() == refused.height
    assert "made for layout" in refused["note"][0]


def test_costs_are_measured(frame):
    facts = frame[0].filter(pl.col("target").is_null(), pl.col("encoder") == "flat", pl.col("metric") != "refused")
    assert set(facts["metric"]) == {"parameters", "training_core_seconds", "inference_core_seconds", "invariance_gap"}
    assert facts["value"].min() > 0
    assert value(frame[0], encoder="statistics, boosting", metric="parameters", task="in-distribution") == [None] * 8


def test_a_stopped_benchmark_goes_on(frame, zoos):
    before, folder, everybody = frame
    cells = sorted((folder / "cells").iterdir())
    assert len(cells) == 5 * 4 * 2 * 2
    stamps = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    cells[1].write_text("{")
    again = benchmark(zoos, everybody, folder, seeds=(0, 1))
    timed = pl.col("metric").str.ends_with("seconds")
    assert again.filter(~timed).equals(before.filter(~timed))
    changed = [path for path in cells if path.stat().st_mtime_ns != stamps[path]]
    assert changed == cells[:2]
    stored = json.loads(cells[2].read_text())
    cells[2].write_text(json.dumps(stored | {"identity": {"zoos": "others"}}))
    benchmark(zoos, everybody, folder, seeds=(0, 1))
    assert json.loads(cells[2].read_text()) == stored | {"rows": json.loads(cells[2].read_text())["rows"]}
    assert pl.read_csv(folder / "benchmark.csv").height == before.height


def test_several_processes_measure_the_same(zoos, frame, tmp_path):
    few = {name: zoos[name] for name in ("small-a", "small-b")}
    both = [contestant("statistics, ridge"), contestant("flat", epochs=1, accelerator="cpu")]
    one, two = (
        benchmark(few, both, tmp_path / str(n), seeds=(0,), tasks=("cross-dataset",), workers=n) for n in (1, 2)
    )
    untimed = ~pl.col("metric").str.ends_with("seconds")
    assert one.filter(untimed).equals(two.filter(untimed))
    assert set(one["task"]) == {"cross-dataset"}


def test_labels_of_test_models_are_not_known(zoos, tmp_path):
    zoo = zoos["small-a"]
    test = set(zoo.split(0)[2].models)
    lies = [
        1 - v if m in test else v for m, v in zip(zoo.table["model"], zoo.table["metric.test_accuracy"], strict=True)
    ]
    lying = zoo.with_columns(**{"metric.test_accuracy": lies})
    some = [contestant(name) for name in ("statistics, ridge", "statistics, boosting")]
    some.append(contestant("flat", epochs=2, accelerator="cpu"))
    taus = [
        summary(benchmark({"zoo": known}, some, tmp_path / str(i), seeds=(0,), tasks=("in-distribution",)))
        for i, known in enumerate((zoo, lying))
    ]
    assert taus[0]["mean"].to_list() == pytest.approx([-tau for tau in taus[1]["mean"]])


def test_the_ceiling_is_reached_by_the_best_untied_predictions():
    g = np.random.default_rng(0)
    labels = g.integers(0, 5, 60) / 5
    best = labels + g.uniform(0, 0.1, 60)
    assert kendalltau(labels, best).statistic == pytest.approx(tau_ceiling(labels))
    assert tau_ceiling(g.uniform(size=20)) == 1
    assert tau_ceiling(np.ones(3)) == 0


def test_summary_is_mean_and_deviation_over_seeds(frame):
    chosen = {"encoder": "statistics, ridge", "trained_on": "small-a", "tested_on": "large-b", "metric": "r2"}
    values = value(frame[0], **chosen)
    [row] = [
        r for r in summary(frame[0], "r2").iter_rows(named=True) if all(r.get(k, v) == v for k, v in chosen.items())
    ]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["seeds"] == 2


def test_an_encoder_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere_encoder.py").write_text(
        "from weightspace.encoders import Flat\n\n\nclass Mine(Flat):\n    name = 'mine'\n\n\nclass Other:\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    found = contestant("elsewhere_encoder:Mine", epochs=1)
    assert (found.name, found.source) == ("mine", "elsewhere_encoder:Mine")
    for wrong in ("elsewhere_encoder:Nobody", "not_there:Mine", "elsewhere_encoder:Other"):
        with pytest.raises(ConfigError, match=wrong):
            contestant(wrong)


def test_everybody_has_a_name():
    assert [contestant(name).name for name in names()] == names()
    with pytest.raises(UnknownName, match="did you mean 'flat'"):
        contestant("flatt")


def test_one_encoder_competes_with_several_configurations(zoos, tmp_path):
    narrow, wide = (
        contestant("flat", config=FlatConfig(width=width), called=f"flat {width}", epochs=1, accelerator="cpu")
        for width in (8, 16)
    )
    assert narrow.how != wide.how
    found = benchmark({"zoo": zoos["small-a"]}, [narrow, wide], tmp_path, seeds=(0,), tasks=("in-distribution",))
    sizes = [value(found, encoder=f"flat {width}", metric="parameters")[0] for width in (8, 16)]
    assert sizes[0] < sizes[1]
    with pytest.raises(ConfigError, match="needs a FlatConfig, got a SNEConfig"):
        contestant("flat", config=SNEConfig())


def test_nothing_to_do_is_refused(zoos, tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        benchmark({}, [contestant("constant")], tmp_path)
    with pytest.raises(ConfigError, match="same name"):
        benchmark(zoos, [contestant("constant")] * 2, tmp_path)
