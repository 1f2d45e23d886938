"""A meta-zoo, a generator fitted on it, and networks for a data set that it has not seen, from the command line."""

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

from weightspace import cli
from weightspace.zoo import open as open_zoo

TRAIN = ["--data", "digits", "--classes", 3, "--tasks", 60, "--validation-tasks", 10, "--test-tasks", 2, "--side", 8,
         "--train-images", 50, "--validation-images", 20, "--test-images", 40, "--workers", 1]  # fmt: skip
FIT = ["--epochs", 5, "--batch-size", 32, "--sets", "moments", "--width", 32, "--output", 32, "--accelerator", "cpu"]


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The meta-zoo knows the digits; the new data set is of the same digits, moved by a pixel."""
    path = tmp_path_factory.mktemp("tasks")
    digits = load_digits()
    moved = np.roll(digits.images, 1, axis=2).astype(np.float32)
    first = np.arange(len(moved)) < 1200
    np.savez(path / "moved.npz", x_train=moved[first], y_train=digits.target[first], x_test=moved[~first],
             y_test=digits.target[~first])  # fmt: skip
    assert run("tasks", "train", path / "zoo", *TRAIN) == 0
    assert run("tasks", "fit", path / "zoo", "--out", path / "generator", *FIT) == 0
    return path


def test_networks_for_a_folder_of_images(folder, capsys):
    new = ("--for-data", folder / "moved.npz", "--classes", 1, 4, 7, "--n", 4, "--out", folder / "new")
    assert run("sample", folder / "generator", *new) == 0
    assert "right about" in capsys.readouterr().out
    zoo = open_zoo(folder / "new")
    assert len(zoo) == 4 and zoo.layout.slices["fc2.bias"].stop == zoo.layout.parameters
    accuracy = zoo.table["metric.validation_accuracy"]
    assert accuracy.is_sorted(descending=True) and accuracy.min() > 0.45  # chance is a third
    assert zoo.table.select(pl.col("config.candidates").unique()).item() == 16


def test_misfits_are_said_in_one_sentence(folder, capsys, digits_zoo):
    generator, out = folder / "generator", folder / "none"
    assert run("sample", generator, "--for-data", folder / "moved.npz", "--out", out) == cli.USER_ERROR
    assert "choose 3 of them with --classes" in capsys.readouterr().err
    assert run("tasks", "fit", digits_zoo.path, "--out", out) == cli.USER_ERROR
    assert "is no meta-zoo" in capsys.readouterr().err
    assert not out.exists()
