"""Fitting a diffusion and G.pt by commands, drawing from them, and what is said of bad input."""

import polars as pl
import pytest
import torch

from weightspace import cli
from weightspace.generators import GPT, Diffusion
from weightspace.zoo import open as open_zoo
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train

FIT = ["--epochs", 1, "--batch-size", 16, "--accelerator", "cpu"]
LOSS = "metric.validation_loss"


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusion")
    recipe = Recipe(models=20, epochs=2, checkpoints=(0, 1, 2), train_limit=100, activation=("relu",), seed=1)
    train(path / "zoo", recipe, workers=1)
    options = ["--components", 4, "--condition", LOSS, "--process", "ddim", *FIT]
    assert run("fit", "diffusion", path / "zoo", "--out", path / "fitted", *options) == 0
    sizes = ["--width", 16, "--heads", 2, "--depth", 1, "--epoch-steps", 5]
    assert run("fit", "gpt", path / "zoo", "--out", path / "gpt", *sizes, *FIT) == 0
    return path


def test_samples_are_those_of_python(folder, tmp_path):
    asked = ["--condition", f"{LOSS}=1.5", "--guidance", 2, "--steps", 4, "--n", 5, "--seed", 3]
    assert run("sample", folder / "fitted", "--out", tmp_path / "new", *asked) == 0
    fitted = Diffusion.from_pretrained(folder / "fitted")
    wanted = fitted.sample(5, condition={LOSS: 1.5}, guidance=2.0, steps=4, seed=3)
    found = open_zoo(tmp_path / "new")
    assert torch.equal(found.weights(), wanted.weights())
    assert found.table["config.activation"].to_list() == ["relu"] * 5
    assert fitted.space.shape == (4,) and fitted.config.process.eta == 0


def test_gpt_starts_from_untrained_test_models(folder, tmp_path):
    options = ["--condition", f"{LOSS}=0.8", "--steps", 3, "--n", 2]
    assert run("sample", folder / "gpt", folder / "zoo", "--out", tmp_path / "new", *options) == 0
    _, _, test = open_zoo(folder / "zoo").split(0)
    starts = test.where(pl.col("step") == 0).take(range(2))
    found = open_zoo(tmp_path / "new")
    assert found.table["start"].to_list() == starts.table["model"].to_list()
    wanted = GPT.from_pretrained(folder / "gpt").sample(starts, 0.8, steps=3)
    assert torch.equal(found.weights(), wanted.weights())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sample FITTED --out NEW --condition metric.validation_los=1", "did you mean 'metric.validation_loss'"),
        ("sample FITTED --out NEW --condition 3", "COLUMN=VALUE"),
        ("sample FITTED --out NEW --guidance 2", "needs a condition"),
        ("sample FITTED --out NEW --n 0", "at least 1"),
        ("sample GPT --out NEW --condition metric.validation_loss=1", "needs a zoo"),
        ("sample GPT ZOO --out NEW", "--condition metric.validation_loss=VALUE"),
        ("sample ZOO --out NEW", "needs a zoo"),
        ("fit diffusion ZOO --out NEW --space latents", "--encoder"),
        ("fit diffusion ZOO --out NEW --components 99", "principal components"),
        ("fit diffusion ZOO --out NEW --condition metric.los", "unknown column"),
        ("fit gpt ZOO --out NEW --metric metric.los", "unknown metric"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(folder, tmp_path, capsys, command, said):
    paths = {"FITTED": folder / "fitted", "GPT": folder / "gpt", "ZOO": folder / "zoo", "NEW": tmp_path / "new"}
    words = [paths.get(word, word) for word in command.split()]
    assert run(*words, *(FIT if words[0] == "fit" else [])) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and "Traceback" not in error
    assert not (tmp_path / "new").exists()
