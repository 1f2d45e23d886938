"""Samplers, novelty audit, transfer and further probes as commands; and what is said of options that do not fit."""

from typing import get_args

import polars as pl
import pytest

from weightspace import cli, datasets
from weightspace.cli.sample import Method
from weightspace.evaluation import best_prompts, few_images
from weightspace.generators import Gaussian, GaussianConfig, latent_samplers
from weightspace.zoo import open as open_zoo


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments) -> str:
    """The sentence of a command that must fail by the user's fault."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("error: ").rstrip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits_zoo, digits_sane):
    """A fitted encoder, and networks from a Gaussian."""
    path = tmp_path_factory.mktemp("run")
    digits_sane.save_pretrained(path / "sane")
    options = ["--method", "gaussian", "--rank", 3, "--n", 6, "--best", 1.0, "--seed", 4]
    assert run("sample", path / "sane", digits_zoo.path, "--out", path / "samples", *options) == 0
    return path


def test_every_sampler_has_its_name_on_the_command_line():
    assert set(get_args(Method)) == set(latent_samplers())


def test_samples_are_those_of_python(folder, digits_sane, digits_zoo):
    prompts = best_prompts(digits_zoo.split(0)[0], 1.0)
    wanted = Gaussian(digits_sane, GaussianConfig(rank=3)).fit(prompts).sample(6, seed=4)
    assert (open_zoo(folder / "samples").weights() - wanted.weights()).abs().max() < 1e-6


def test_the_best_of_many(folder, digits_zoo, tmp_path):
    options = ["--n", 3, "--best", 1.0, "--candidates", 3, "--rounds", 2, "--bandwidth", 0.5]
    assert run("sample", folder / "sane", digits_zoo.path, "--out", tmp_path / "a", *options) == 0
    made = open_zoo(tmp_path / "a")
    assert made.header["selection"] == {"candidates": 18, "kept": 3, "by": "validation accuracy"}
    assert made.table["metric.validation_accuracy"].is_sorted(descending=True)


def test_a_target_and_a_likely_bandwidth(folder, digits_zoo, tmp_path):
    options = [
        "--n",
        3,
        "--best",
        1.0,
        "--target",
        "step",
        "--low",
        0.5,
        "--mode",
        "joint",
        "--bandwidth",
        "likelihood",
    ]
    assert run("sample", folder / "sane", digits_zoo.path, "--out", tmp_path / "a", *options) == 0
    assert open_zoo(tmp_path / "a").table["predicted.step"].min() >= 0.5


def test_prompts_of_another_zoo(folder, digits_zoo, tmp_path):
    other = digits_zoo.with_columns(**{"config.copy": 1}).save(tmp_path / "other")
    options = ["--n", 3, "--best", 1.0, "--method", "interpolation", "--prompts", other.path]
    assert run("sample", folder / "sane", digits_zoo.path, "--out", tmp_path / "a", *options) == 0
    assert len(open_zoo(tmp_path / "a")) == 3


def test_novelty_flags_planted_copies(folder, digits_zoo, tmp_path, capsys):
    copies = digits_zoo.split(0)[0].last().save(tmp_path / "copies")
    options = ["--best", 1.0, "--out", tmp_path / "tables"]
    assert run("evaluate", "novelty", copies.path, digits_zoo.path, *options) == 0
    assert "replica" in capsys.readouterr().out
    table = pl.read_csv(tmp_path / "tables" / "novelty.csv")
    assert "replica" in table.filter(source="networks")["verdict"].item()
    assert run("novelty", folder / "samples", digits_zoo.path, *options) == 0
    distance = pl.read_csv(tmp_path / "tables" / "novelty.csv").filter(source="networks")["distance_ratio_50"].item()
    assert distance > table.filter(source="networks")["distance_ratio_50"].item()


def test_transfer_and_few_images(folder, digits_zoo, tmp_path, capsys):
    options = ["--best", 1.0, "--epochs", 0, 1, "--learning-rates", 0.003, "--out", tmp_path]
    assert run("evaluate", "transfer", folder / "samples", digits_zoo.path, *options) == 0
    curves = pl.read_csv(tmp_path / "transfer_curves.csv")
    assert {"generated", "random initialisation", "held-out models"} < set(curves["source"])
    assert set(curves["epoch"]) == {0, 1}
    own = ["--optimiser", "sgd", "--schedule", "one_cycle", "--momentum", 0.8, "--weight-decay", 0.001]
    finer = ["--best", 1.0, "--epochs", 0, 0.1, 1, "--learning-rates", 0.05, "--out", tmp_path / "finer"]
    assert run("evaluate", "transfer", folder / "samples", digits_zoo.path, *finer, *own) == 0
    assert set(pl.read_csv(tmp_path / "finer" / "transfer_curves.csv")["epoch"]) == {0, 0.1, 1}
    task = ["--data", "digits", "--shots", 2, "--draws", 1]
    assert run("transfer", folder / "samples", digits_zoo.path, *task, *options) == 0
    assert set(pl.read_csv(tmp_path / "few_shot.csv")["shots"]) == {2}
    assert "few images" in capsys.readouterr().out
    assert len(few_images(datasets.load("digits"), 2).train_labels) == 20


def test_other_zoos_and_layers(folder, digits_zoo, tmp_path):
    other = digits_zoo.save(tmp_path / "other")
    options = ["--targets", "step", "--others", other.path, "--layers", "--out", tmp_path / "tables"]
    assert run("predict", folder / "sane", digits_zoo.path, *options) == 0
    shifted = pl.read_csv(tmp_path / "tables" / "shifted.csv")
    assert set(shifted["tested_on"]) == {digits_zoo.header["name"], str(other.path)}
    assert set(pl.read_csv(tmp_path / "tables" / "layers.csv")["layer"]) == {"fc1", "fc2", "all layers"}
    assert (tmp_path / "tables" / "layers.png").stat().st_size > 1000
    names = set(pl.read_csv(tmp_path / "tables" / "properties.csv")["representation"])
    assert "SANE, mean token + weight statistics" in names


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--method uniform --bandwidth 0.1", "unknown setting of the sampler 'uniform' 'bandwidth'"),
        ("--rank 3", "unknown setting of the sampler 'kde' 'rank'"),
        ("--bandwidth likelihood", "no density"),
        ("--target step --low 1 --candidates 3", "leave --target or --candidates out"),
        ("--target metric.test_accuracy --low 0.5", "test images"),
        ("--target stpe --low 0.5", "did you mean 'step'"),
        ("--target step", "needs a category"),
        ("--candidates 0 --rounds 2", "at least 1"),
    ],
)
def test_options_that_do_not_fit(folder, digits_zoo, tmp_path, capsys, options, says):
    command = ["sample", folder / "sane", digits_zoo.path, "--out", tmp_path / "new", "--best", 1.0]
    assert says in fails(capsys, *command, *options.split())
    assert not (tmp_path / "new").exists()
