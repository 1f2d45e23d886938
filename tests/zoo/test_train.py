"""Training a zoo: the same bits whoever trains them, in how many pieces, and however often the run is killed."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from weightspace import networks
from weightspace.datasets import load
from weightspace.errors import ConfigError, DatasetError, ZooError
from weightspace.networks.population import Hyperparameters, population_metrics, subset_weights, with_activation
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo import train as train_module
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train
from weightspace.zoo.units import train_unit, units

TINY = Recipe(
    network="mlp", models=14, epochs=2, checkpoints=(0, 2), train_limit=100, optimiser=("adam", "sgd"), seed=4
)
LONG_OPTIONS = {"network": "mlp", "models": 130, "epochs": 8, "checkpoints": (0, 4, 8), "train_limit": 400, "seed": 1}
LONG = Recipe(**LONG_OPTIONS)


def contents(path: Path) -> dict[str, str]:
    """A hash of every file that readers see."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def committed(path: Path) -> dict[str, str]:
    """The files of every committed part."""
    parts = {file.stem for file in (path / "checkpoints").glob("*.parquet")}
    return {name: digest for name, digest in contents(path).items() if Path(name).stem in parts}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Zoo:
    return train(tmp_path_factory.mktemp("zoo") / "tiny", TINY, workers=1)


def test_units_share_activation_and_optimiser_and_cover_the_plan():
    recipe = Recipe(models=300, optimiser=("adam", "sgd"))
    made = units(recipe)
    assert [unit.part for unit in made] == [f"{i:05d}" for i in range(len(made))]
    for unit in made:
        assert unit.plan["config.activation"].n_unique() == unit.plan["config.optimiser"].n_unique() == 1
        assert 1 <= len(unit.plan) <= recipe.unit_models
    assert_frame_equal(pl.concat([unit.plan for unit in made]).sort("model"), recipe.plan())


@pytest.mark.timeout(300)  # each process loads torch, which takes long where a Ray cluster starts beside it
def test_two_processes_make_the_zoo_that_one_makes(tiny, tmp_path):
    train(tmp_path / "tiny", TINY, workers=2)
    assert contents(tmp_path / "tiny") == contents(tiny.path)


def test_the_table_says_what_the_weights_do(tiny):
    data = load("digits", train_limit=100, seed=TINY.seed)
    assert len(tiny) == 28 and tiny.table["step"].to_list() == [0, 2] * 14
    assert_frame_equal(tiny.last().table.select(TINY.plan().columns).sort("model"), TINY.plan())
    for row, network in enumerate(tiny.table.iter_rows(named=True)):
        names = ("learning_rate", "weight_decay", "dropout", "train_fraction")
        h = Hyperparameters(
            seeds=torch.tensor([network["config.seed"]]),
            **{name: torch.tensor([network[f"config.{name}"]]) for name in names},
        )
        module = with_activation(networks.from_json(tiny.header["network"]), network["config.activation"])
        weights = {"train": subset_weights(h, 100, 10), "validation": None, "test": None}
        for part, share in weights.items():
            images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
            loss, accuracy = population_metrics(module, tiny.weights()[[row]], images, labels, share)
            assert network[f"metric.{part}_loss"] == pytest.approx(float(loss), rel=1e-5)
            assert network[f"metric.{part}_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
        gap = network["metric.train_accuracy"] - network["metric.test_accuracy"]
        assert network["metric.generalisation_gap"] == pytest.approx(gap)
        assert network["metric.diverged"] is False


def test_divergence_is_recorded_and_stored_finite():
    recipe = Recipe(network="mlp", models=2, epochs=1, learning_rate=(1e38, 1e38), activation=("relu",), train_limit=64)
    rows, table = train_unit(recipe, load("digits", train_limit=64), recipe.plan())
    assert table["metric.diverged"].to_list() == [False, True] * 2 and rows.isfinite().all()


def test_training_learns():
    fixed = {"learning_rate": (3e-3, 3e-3), "activation": ("relu",), "train_fraction": (1.0,), "init_scale": (1.0, 1.0)}
    recipe = Recipe(network="mlp", models=6, epochs=4, **fixed)
    _, table = train_unit(recipe, load("digits"), recipe.plan())
    accuracy = table.group_by("step").agg(pl.col("metric.test_accuracy").mean()).sort("step")["metric.test_accuracy"]
    assert accuracy[0] < 0.25 and accuracy[-1] > 0.8


def test_a_finished_zoo_is_not_trained_again(tiny, tmp_path, monkeypatch):
    copy = tmp_path / "tiny"
    shutil.copytree(tiny.path, copy)
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    monkeypatch.setattr(train_module, "train_unit", lambda *_: pytest.fail("a unit was trained again"))
    again = train(copy, TINY, workers=1)
    assert_frame_equal(again.table, tiny.table)
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


def test_a_lost_part_is_made_again(tiny, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(tiny.path, copy)
    (copy / "checkpoints" / "00001.parquet").unlink()
    train(copy, TINY, workers=1)
    assert contents(copy) == contents(tiny.path)


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"models": 15}, {"epochs": 3}, {"network": "cnn"}, {"train_limit": 101}]
)
def test_another_recipe_in_the_same_folder_is_refused(tiny, change):
    before = contents(tiny.path)
    with pytest.raises(ZooError, match="already holds another zoo"):
        train(tiny.path, replace(TINY, **change), workers=1)
    assert contents(tiny.path) == before


@pytest.mark.parametrize(
    ("recipe", "options", "error", "says"),
    [
        (Recipe(train_limit=20), {}, ConfigError, "batch_size 32 is larger than the 20 training images of digits"),
        (Recipe(network="cnn_s"), {}, ConfigError, "too small"),
        (Recipe(train_limit=5), {}, DatasetError, "train_limit 5"),
        (Recipe(data="mnist"), {"data_root": "no such folder"}, DatasetError, "no data root"),
        (Recipe(), {"workers": 0}, ConfigError, "workers must be at least 1"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, recipe, options, error, says):
    with pytest.raises(error, match=says):
        train(tmp_path / "zoo", recipe, **options)
    assert not (tmp_path / "zoo").exists()


def test_images_that_change_are_read_anew(tmp_path):
    """Also by workers, which outlive a zoo."""
    import numpy as np

    made = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        images = rng.random((60, 1, 8, 8), dtype=np.float32)
        arrays = {"x_train": images, "y_train": np.arange(60) % 3, "x_test": images[:12], "y_test": np.arange(12) % 3}
        np.savez(tmp_path / "images.npz", **arrays)
        recipe = Recipe(data=str(tmp_path / "images.npz"), network="mlp", models=4, epochs=1, batch_size=10)
        zoos = [train(tmp_path / f"{seed}-{workers}", recipe, workers=workers) for workers in (1, 2)]
        assert zoos[0].weights().equal(zoos[1].weights())
        made.append(zoos[0])
    assert made[0].header["dataset"]["digest"] != made[1].header["dataset"]["digest"]
    assert not made[0].last().weights().equal(made[1].last().weights())


def test_mnist_by_data_root(image_data, tmp_path):
    recipe = Recipe(data="mnist", network="cnn_s", models=2, epochs=1, checkpoints=(1,), train_limit=500)
    zoo = train(tmp_path / "mnist", recipe, data_root=image_data, workers=1)
    assert zoo.layout.parameters == 2464 and zoo.header["dataset"]["image_shape"] == [1, 28, 28]
    assert len(zoo) == 2 and zoo.table["metric.test_loss"].is_finite().all()


def start(path: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "weightspace", "zoo", "train", str(path), "--workers", str(workers)]
    for name, value in LONG_OPTIONS.items():
        for one in value if isinstance(value, tuple) else (value,):
            command += [f"--{name.replace('_', '-')}", str(one)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(run: subprocess.Popen) -> None:
    """The command and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def wait_for_parts(run: subprocess.Popen, path: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(list((path / "checkpoints").glob("*.parquet"))) < count:
        assert run.poll() is None and time.monotonic() < until, "the command ended or hangs"
        time.sleep(0.01)


def test_a_run_killed_at_any_moment_loses_nothing_and_ends_with_the_same_zoo(tmp_path):
    """kill -9 of the command and its workers while it starts, trains and writes."""
    whole = contents(train(tmp_path / "whole" / "zoo", LONG, workers=1).path)
    path, safe = tmp_path / "killed" / "zoo", {}
    for wanted, workers in ((0, 1), (1, 1), (3, 2)):
        run = start(path, workers)
        try:
            wait_for_parts(run, path, wanted)
            time.sleep(random.uniform(0, 0.3))
            if workers > 1:
                os.kill(run.pid, signal.SIGKILL)  # the command alone: its workers live on and must write nothing
                run.wait()
                orphaned = committed(path)
                time.sleep(1)  # longer than a unit takes
                assert committed(path) == orphaned
        finally:
            kill(run)
        now = committed(path)
        assert safe.items() <= now.items(), "a committed part changed or vanished"
        assert now.items() <= whole.items(), "a committed part differs from that of a run without a crash"
        if now:
            assert len(open_zoo(path)) and open_zoo(path).finite().weights().shape[1] == 1060
        safe = now
    run = start(path, 1)
    try:
        assert run.wait(60) == 0
    finally:
        kill(run)
    assert contents(path) == whole
