"""The commands without a zoo: fit a hypernetwork, sample, ensemble, distill; and what is said of bad input."""

import polars as pl
import pytest
import torch

from weightspace import cli, datasets
from weightspace.evaluation.ensembles import Ensemble
from weightspace.generators import Manifold
from weightspace.zoo import open as open_zoo

FIT = ["--epochs", 2, "--epoch-steps", 60, "--batch-size", 8, "--accelerator", "cpu", "--learning-rate", 0.01]


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifold")
    assert run("manifold", "fit", "--target", "mlp", "--data", "digits", "--out", path / "manifold", *FIT) == 0
    assert run("manifold", "sample", path / "manifold", "--out", path / "samples", "--n", 12, "--seed", 3) == 0
    assert run("ensemble", path / "samples", "--members", 1, 4, "--out", path / "tables") == 0
    students = ["--epochs", 2, "--accelerator", "cpu", "--seeds", 0, 1]
    assert run("distill", path / "samples", "--student", "cnn", "--out", path / "tables", *students) == 0
    return path


def test_samples_are_those_of_python(folder):
    fitted = Manifold.from_pretrained(folder / "manifold")
    assert fitted.header["fit"]["optimisation"]["weight_decay"] == 0.0  # defaults are the hypernetwork's own
    assert fitted.config.adversarial is None  # no option of a discriminator was given
    assert torch.equal(open_zoo(folder / "samples").weights(), fitted.sample(12, seed=3).weights())


def test_fit_manifold_is_manifold_fit(capsys):
    helps = []
    for words in (("fit", "manifold"), ("manifold", "fit")):
        assert run(*words, "--help") == 0
        helps.append(capsys.readouterr().out)
    assert helps[0] == helps[1] and "--target" in helps[0] and "latent" in helps[0]


def test_ensemble_tables_are_those_of_python(folder):
    data, table = datasets.load("digits"), pl.read_csv(folder / "tables" / "ensemble.csv")
    expected = Ensemble(open_zoo(folder / "samples")).calibrated(data.validation_images, data.validation_labels)
    found = expected.evaluate(data.test_images, data.test_labels)
    assert table["rule"].to_list() == found["rule"].to_list()
    assert table["brier"].to_list() == pytest.approx(found["brier"].to_list(), abs=1e-6)
    assert table["temperature"][0] == pytest.approx(expected.temperature)
    assert pl.read_csv(folder / "tables" / "ensemble_curve.csv")["members"].to_list() == [1, 4]


def test_selection_and_a_zoo_of_trained_networks(digits_zoo, tmp_path, capsys):
    options = ["--select", 3, "--members", 1, "--outliers", "digits", "--out", tmp_path]
    assert run("ensemble", digits_zoo.path, *options) == 0
    table = pl.read_csv(tmp_path / "ensemble.csv")
    assert table["members"][0] <= 3 and table["auroc_digits"][0] == pytest.approx(0.5, abs=0.1)  # another cut
    assert "confident" in capsys.readouterr().out


def test_distillation_table(folder):
    table = pl.read_csv(folder / "tables" / "distillation.csv")
    assert table["model"].to_list() == [
        "single member", "ensemble of 12", "distilled", "labels alone", "distilled", "labels alone"
    ]  # fmt: skip
    assert table["accuracy"].min() > 0.2  # untrained CNNs have .1


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_bad_input_is_one_sentence(folder, tmp_path, capsys):
    assert "did you mean 'mlp'" in fails(capsys, "manifold", "fit", "--target", "mpl", "--out", tmp_path / "a")
    assert "did you mean 'mlp'" in fails(capsys, "fit", "manifold", "--target", "mpl", "--out", tmp_path / "a")
    assert "SIREN" in fails(capsys, "manifold", "fit", "--target", "siren", "--out", tmp_path / "a")
    weight = ["--accuracy-weight", -1]
    assert "accuracy_weight" in fails(capsys, "manifold", "fit", "--out", tmp_path / "a", *weight)
    assert "no fitted generator" in fails(capsys, "manifold", "sample", folder / "samples", "--out", tmp_path / "b")
    assert "exists already" in fails(capsys, "manifold", "sample", folder / "manifold", "--out", folder / "samples")
    assert "at least 1" in fails(capsys, "manifold", "sample", folder / "manifold", "--out", tmp_path / "b", "--n", 0)
    assert "unknown data set" in fails(capsys, "ensemble", folder / "samples", "--data", "digit")
    assert "trained on other images" in fails(capsys, "ensemble", folder / "samples", "--seed", 1)
    assert "temperature" in fails(capsys, "distill", folder / "samples", "--temperature", 0)
    assert not any(tmp_path.iterdir())
