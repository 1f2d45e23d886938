"""The published zoos: their numbers, and that each of them trains."""

import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from weightspace import cli, networks
from weightspace.datasets import Dataset, Pixels, load_pixels
from weightspace.errors import ConfigError, DatasetError, UnknownName
from weightspace.networks import Layout, wild_park
from weightspace.networks.fitting import signal_errors
from weightspace.networks.siren import pixel_grid
from weightspace.zoo import open as open_zoo
from weightspace.zoo import recipes
from weightspace.zoo.cost import CLASSES, SHAPES, costs
from weightspace.zoo.train import train
from weightspace.zoo.units import load_data, train_unit, units, waves


def zoos(kind: str) -> list[str]:
    """Names of the 24 published CNN zoos, or of one kind of them."""
    return [name for name in recipes.names() if "-cnn-" in name and kind in name and not name.startswith("eurosat")
            and "small" not in name]  # fmt: skip


def test_the_cnn_zoos_are_24_with_47360_models():
    assert len(zoos("")) == 24
    assert sum(recipes.by_name(name).models for name in zoos("")) == 47_360
    assert all(recipes.by_name(name).kept_epochs == tuple(range(51)) for name in zoos(""))


@pytest.mark.parametrize("name", zoos("hyp"))
def test_every_combination_of_a_grid_has_ten_models(name):
    recipe = recipes.by_name(name)
    plan = recipe.plan()
    cells = plan.group_by([f"config.{factor}" for factor in recipe.factors]).len()["len"]
    assert set(cells) == {10} and len(cells) == recipe.models // 10
    assert plan["config.seed"].n_unique() == (10 if name.endswith("fix") else recipe.models)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist-cnn-seed", "2,464"), ("svhn-cnn-seed", "2,464"), ("cifar10-cnn-hyp-fix", "2,864"),
        ("stl10-cnn-l-seed", "10,853"), ("eurosat-cnn-seed", "2,864"), ("cifar10-small-cnn", "4,970"),
        ("svhn-small-cnn", "4,970"), ("mnist-siren", "1,185"), ("cifar10-siren-dws", "1,251"), ("sine-siren", "1,153"),
        ("cifar10-resnet18", "11,173,962"), ("cifar100-resnet18", "11,220,132"),
        ("tiny-imagenet-resnet18", "11,271,432"), ("digits-mlp", "1,060"),
    ],
)  # fmt: skip
def test_recipes_have_the_published_parameter_counts(name, parameters):
    assert [cost.parameters for cost in costs([name], measure=False)] == [parameters]


def test_fewer_epochs_keep_the_published_checkpoints_that_are_reached():
    assert recipes.by_name("mnist-small-cnn", epochs=30).kept_epochs == (0, 1, 2, 3, 20, 30)
    assert recipes.by_name("mnist-small-cnn", epochs=30, checkpoints=(7,)).kept_epochs == (7,)
    assert recipes.by_name("mnist-small-cnn", models=3).kept_epochs[-1] == 86


def test_unknown_recipes_suggest_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'mnist-cnn-seed'"):
        recipes.by_name("mnist-cnn-sed")
    with pytest.raises(ConfigError, match="models must be at least 1"):
        recipes.by_name("mnist-cnn-seed", models=0)


def noise(recipe) -> Dataset | Pixels | None:
    """Images of the recipe's shape; what is learned from them does not matter here."""
    channels, height, width = SHAPES[recipe.data]
    shape = (1 if recipe.grey else channels, recipe.side or height, recipe.side or width)
    generator, classes = torch.Generator().manual_seed(0), CLASSES.get(recipe.data, 10)
    images = torch.rand(recipe.batch_size, *shape, generator=generator)
    labels = torch.arange(len(images)) % classes
    if recipe.fits_signals:
        return None if recipe.data == "sines" else Pixels(name="noise", images=images[:5], labels=labels[:5])
    return Dataset(
        name="noise", classes=classes, train_images=images, train_labels=labels, validation_images=images[:3],
        validation_labels=labels[:3], test_images=images[:3], test_labels=labels[:3],
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in recipes.names() if name[-8:] != "resnet18" or "r10-r" in name])
def test_every_recipe_trains(name):
    """One step of two networks; of the ResNets one, as they differ in their images only."""
    recipe = recipes.by_name(name, models=2, epochs=1, batch_size=2 if "resnet" in name else 8)
    plan = units(recipe)[0].plan
    rows, table = train_unit(recipe, noise(recipe), plan)
    assert table["step"].to_list() == list(recipe.kept_epochs) * len(plan) and rows.isfinite().all()
    assert table.select(pl.col("^metric\\..*(loss|accuracy|mse)$")).to_numpy().shape[1] >= 1
    first, last = rows[:: len(recipe.kept_epochs)], rows[len(recipe.kept_epochs) - 1 :: len(recipe.kept_epochs)]
    assert not first.equal(last) or len(recipe.kept_epochs) == 1


# ---- Signals


def test_a_siren_zoo_fits_its_images(tmp_path):
    """The table says which image, and its error is that of the stored weights."""
    recipe = recipes.by_name(
        "mnist-siren", data="digits", models=7, epochs=60, checkpoints=(0, 60), train_limit=5, learning_rate=(1e-2,)
    )
    zoo = train(tmp_path / "zoo", recipe, workers=1)
    pixels = load_pixels("digits", limit=5)
    assert zoo.header["dataset"]["digest"] == pixels.digest and zoo.layout.parameters == 1185
    network = networks.from_json(zoo.header["network"])
    assert isinstance(network, networks.SIREN)
    images = [0, 1, 2, 3, 4, 0, 1]
    assert zoo.last().table["config.image_id"].to_list() == images
    assert zoo.last().table["config.label"].to_list() == [str(int(pixels.labels[i])) for i in images]
    targets = network.from_pixels(pixels.images[images].flatten(2).mT)
    errors = signal_errors(network, zoo.last().weights(), pixel_grid(8, 8), targets)
    np.testing.assert_allclose(zoo.last().table["metric.mse"].to_numpy(), errors.numpy(), rtol=1e-4)
    psnr = zoo.table.group_by("step").agg(pl.col("metric.psnr").mean()).sort("step")["metric.psnr"]
    assert psnr[1] > psnr[0] + 10
    np.testing.assert_allclose(zoo.last().table["metric.psnr"], -10 * np.log10(errors.numpy()), rtol=1e-3)
    same = zoo.last().table.filter(pl.col("config.image_id") == 0)["model"].to_list()
    both = zoo.last().where(pl.col("model").is_in(same)).weights()
    assert len(same) == 2 and not both[0].equal(both[1]), "two networks of one image begin differently"


def test_waves_have_their_amplitude_and_frequency():
    plan = pl.DataFrame({"config.amplitude": [3.0, 2.0], "config.frequency": [2.0, 0.5]})
    x, y = waves(plan)
    assert x.shape == (2000, 1) and float(x[0]) == pytest.approx(-np.pi) and float(x[-1]) < np.pi
    np.testing.assert_allclose(y[0, :, 0], 3 * np.sin(2 * x[:, 0].numpy()), atol=1e-5)
    np.testing.assert_allclose(y[1, :, 0], 2 * np.sin(0.5 * x[:, 0].numpy()), atol=1e-5)


def test_a_wave_zoo_learns(tmp_path):
    recipe = recipes.by_name("sine-siren", models=3, epochs=40, checkpoints=(0, 40))
    zoo = train(tmp_path / "zoo", recipe, workers=1)
    errors = zoo.table.sort("model", "step")["metric.mse"].to_numpy().reshape(3, 2)
    assert (errors[:, 1] < errors[:, 0]).all() and "metric.psnr" not in zoo.table.columns
    assert zoo.header["dataset"] == {"name": "sines"}


# ---- Several architectures


def test_a_wild_park_has_several_layouts(tmp_path):
    recipe = recipes.by_name(
        "cifar10-wild-park", data="digits", models=6, epochs=2, batch_size=50, train_limit=100,
        models_per_architecture=2,
    )  # fmt: skip
    zoo = train(tmp_path / "zoo", recipe, workers=1)
    assert len(zoo.models) == 6 and "network" not in zoo.header
    for digest in zoo.table["layout"].unique():
        some = zoo.where(pl.col("layout") == digest)
        for name in some.table["network"].unique():
            network = networks.from_json(zoo.header["networks"][name])
            assert network.name == name and Layout.of(network.build()).digest == digest
            assert some.where(pl.col("network") == name).weights().shape[1] == Layout.of(network.build()).parameters
    (tmp_path / "zoo" / "checkpoints" / "00001.parquet").unlink()
    again = train(tmp_path / "zoo", recipe, workers=1)
    assert again.table.equals(zoo.table) and again.digest == zoo.digest


# ---- Real images, and those that are not there


def test_grey_and_small_images_by_data_root(image_data):
    cifar = load_data(recipes.by_name("cifar10-small-cnn", train_limit=600), image_data)
    assert cifar.image_shape == (1, 32, 32)
    assert load_data(recipes.by_name("cifar10-cnn-seed", train_limit=100), image_data).image_shape == (3, 28, 28)
    assert load_data(recipes.by_name("usps-cnn-seed"), image_data).image_shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["svhn-cnn-seed", "stl10-cnn-l-seed", "eurosat-cnn-seed", "cifar100-resnet18"])
def test_images_that_are_not_there_are_named(tmp_path, name):
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetError, match=r"lacks x_test"):
        train(tmp_path / "zoo", recipes.by_name(name), data_root=tmp_path / "data")
    assert not (tmp_path / "zoo").exists()


# ---- Commands


def test_the_option_recipe_is_the_published_one_where_nothing_else_is_said(tmp_path, capsys):
    options = ["--models", "3", "--epochs", "2", "--train-limit", "60", "--workers", "1", "--activation", "relu"]
    assert cli.main(["zoo", "train", str(tmp_path / "zoo"), "--recipe", "digits-cnn", *options]) == 0
    expected = recipes.by_name("digits-cnn", models=3, epochs=2, train_limit=60, activation=("relu",))
    stored = open_zoo(tmp_path / "zoo").header["recipe"]
    assert stored == {k: list(v) if isinstance(v, tuple) else v for k, v in vars(expected).items()}
    capsys.readouterr()
    assert cli.main(["zoo", "train", str(tmp_path / "other"), "--recipe", "mnist-cnn-sed"]) == 2
    assert "did you mean 'mnist-cnn-seed'" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipes.names())
def test_the_option_recipe_gives_every_field(name, tmp_path, monkeypatch):
    """Whatever the types of its fields, nothing is lost on the way through words."""
    given = []
    monkeypatch.setattr("weightspace.cli.zoo.train_zoo", lambda path, recipe, **_: given.append(recipe) or _Done())
    assert cli.main(["zoo", "train", str(tmp_path), "--recipe", name, "--models", "5"]) == 0
    assert given == [recipes.by_name(name, models=5)]
    assert cli.main(["zoo", "train", str(tmp_path), "--recipe", name, "--epochs", "12"]) == 0
    assert given[1] == recipes.by_name(name, epochs=12)


class _Done:
    """Stands for a trained zoo, as only the recipe matters."""

    models = ()

    def __len__(self) -> int:
        return 0


def test_an_option_that_equals_the_default_is_still_taken(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("weightspace.cli.zoo.train_zoo", lambda path, recipe, **_: given.append(recipe) or _Done())
    default = ["--batch-size", "32", "--epochs", "16"]
    assert cli.main(["zoo", "train", str(tmp_path), "--recipe", "mnist-cnn-seed", *default]) == 0
    assert (given[0].batch_size, given[0].epochs) == (32, 16)


def test_the_list_of_recipes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["zoo", "recipes", "*siren", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "mnist-siren" in out and "70,000" in out and "1,185" in out and "mnist-cnn" not in out


def test_every_recipe_has_a_size_without_images():
    sizes = {cost.name: cost.parameters for cost in costs(recipes.names(), measure=False)}
    assert sizes["mnist-arch1"] == sizes["fashion-mnist-arch1"] == "5,018"
    seeds = recipes.by_name("cifar10-wild-park", models=50).plan()["config.architecture_seed"]
    parks = [wild_park((3, 32, 32), 10, seed=seed).build() for seed in seeds]
    counts = [sum(p.numel() for p in park.parameters()) for park in parks]
    assert sizes["cifar10-wild-park"] == f"{min(counts):,} to {max(counts):,}"


def test_costs_are_measured_where_there_are_images(monkeypatch, tmp_path):
    """A recipe of ten times the epochs costs about ten times as much."""
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    digits, mnist = costs(["digits-mlp", "mnist-mlp"], root=tmp_path)
    assert digits.models_per_minute > 1 and digits.hours == pytest.approx(1536 / digits.models_per_minute / 60)
    assert mnist.models_per_minute is None and mnist.hours is None


def test_a_device_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for device in ("cuda", "no-such-device"):
        with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used"):
            train(tmp_path / "zoo", replace(recipes.by_name("digits-mlp"), models=2), device=device)
    assert not os.listdir(tmp_path)
