"""Every command on a small zoo, one after another; and what is said, and not written, when the input is bad."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightspace import cli, encoders
from weightspace.zoo import open as open_zoo

TRAIN = [
    *("--network", "mlp", "--models", "20", "--epochs", "3", "--checkpoints", "0", "--checkpoints", "1"),
    *("--checkpoints", "3", "--train-limit", "200", "--activation", "relu", "--activation", "tanh"),
    *("--seed", "3", "--workers", "1"),
]
"""The zoo of the fixture `digits_zoo`."""
FIT = ["--epochs", "1", "--batch-size", "16", "--accelerator", "cpu"]


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits_zoo):
    """A run made by the commands."""
    path = tmp_path_factory.mktemp("run")
    shutil.copytree(digits_zoo.path, path / "zoo")
    assert run("zoo", "train", path / "zoo", *TRAIN) == 0
    assert run("fit", "sane", path / "zoo", "--out", path / "sane", *FIT) == 0
    assert run("embed", path / "sane", path / "zoo", "--out", path / "new" / "embeddings.parquet") == 0
    assert run("predict", path / "sane", path / "zoo", "--out", path / "tables") == 0
    options = ["--n", 6, "--best", 1.0, "--mode", "joint"]
    assert run("sample", path / "sane", path / "zoo", "--out", path / "samples", *options) == 0
    options = ["--epochs", 0, "--epochs", 1, "--learning-rate", 0.003, "--best", 1.0, "--out", path / "tables"]
    assert run("evaluate", path / "samples", path / "sane", path / "zoo", *options) == 0
    assert run("report", path) == 0
    return path


@pytest.fixture
def zoo(digits_zoo, tmp_path):
    """A copy of the zoo to damage."""
    return shutil.copytree(digits_zoo.path, tmp_path / "zoo")


def fails(capsys, *arguments) -> str:
    """The sentence of a command that must fail by the user's fault."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("error: ").rstrip()


# --- what works ------------------------------------------------------------------------------------------------------


def test_an_aligned_zoo_has_the_same_functions_nearer_together(folder, capsys):
    out = folder / "aligned"
    assert run("align", "zoo", folder / "zoo", "--out", out) == 0
    assert "60 checkpoints of 20 networks: " in capsys.readouterr().out
    raw, aligned = open_zoo(folder / "zoo"), open_zoo(out)
    assert aligned.table.drop("shard", "row").equals(raw.table.drop("shard", "row"))
    assert torch.equal(aligned.weights().sort(1).values, raw.weights().sort(1).values)
    spread = [zoo.last().weights().var(0).sum() for zoo in (raw, aligned)]
    assert spread[1] < spread[0]


def test_a_pair_is_measured_before_and_after_alignment(folder, tmp_path, capsys):
    zoo = folder / "zoo"
    names = open_zoo(zoo).where(pl.col("config.activation") == "relu").models[:2]
    assert run("align", "pair", f"{zoo}:{names[0]}", f"{zoo}:{names[1]}@1", "--points", 3, "--out", tmp_path / "b") == 0
    out = capsys.readouterr().out
    assert "loss barrier between" in out and out.count("matching") == 2 * 2 * 2
    table = pl.read_csv(tmp_path / "b" / "barriers.csv")
    assert table["alignment"].unique(maintain_order=True).to_list() == [
        "none",
        "weight matching",
        "activation matching",
    ]
    assert len(pl.read_csv(tmp_path / "b" / "curves.csv")) == 3 * len(table) == 36
    assert (tmp_path / "b" / "barrier.png").stat().st_size > 1000
    same = f"{zoo}:{names[0]}"
    assert run("align", "pair", same, same, "--points", 3, "--no-repair", "--out", tmp_path / "c") == 0
    assert pl.read_csv(tmp_path / "c" / "barriers.csv")["barrier"].abs().max() < 1e-6


def test_networks_of_a_pair_are_named_with_care(folder, tmp_path, capsys):
    zoo, out = folder / "zoo", tmp_path / "b"
    table = open_zoo(zoo).table
    relu, tanh = (table.filter(pl.col("config.activation") == name)["model"][0] for name in ("relu", "tanh"))
    assert "ZOO:MODEL or ZOO:MODEL@STEP, got '00001'" in fails(capsys, "align", "pair", "00001", "00002", "--out", out)
    first = f"{zoo}:{relu}"
    assert "unknown model of" in fails(capsys, "align", "pair", first, f"{zoo}:99999", "--out", out)
    assert "unknown step of model" in fails(capsys, "align", "pair", first, f"{zoo}:{relu}@2", "--out", out)
    assert "is another network than the first one" in fails(
        capsys, "align", "pair", first, f"{zoo}:{tanh}", "--out", out
    )
    assert not out.exists()


def test_training_a_finished_zoo_changes_nothing(folder, digits_zoo):
    """The command's options are the recipe: they name the zoo that Python made."""
    assert open_zoo(folder / "zoo").digest == digits_zoo.digest
    assert open_zoo(folder / "zoo").table.equals(digits_zoo.table)


def test_a_new_zoo_by_command(tmp_path, capsys):
    sizes = ["--models", 3, "--epochs", 1, "--train-limit", 50, "--dropout", 0, 0.1]
    options = ["--network", "mlp", "--workers", 1, *sizes]
    assert run("zoo", "train", tmp_path / "zoo", *options) == 0
    assert "3 networks, 6 checkpoints" in capsys.readouterr().out
    assert open_zoo(tmp_path / "zoo").header["recipe"]["dropout"] == [0.0, 0.1]


def test_info_of_a_trained_zoo(folder, capsys):
    assert run("zoo", "info", folder / "zoo") == 0
    out = capsys.readouterr().out
    assert "60, at epochs 0, 1, 3" in out and "relu, tanh" in out


def test_embeddings_are_those_of_the_encoder(folder):
    table = pl.read_parquet(folder / "new" / "embeddings.parquet")
    population = open_zoo(folder / "zoo")
    assert set(table.columns) == set(population.table.columns) - {"layout", "shard", "row"} | {"embedding"}
    assert table["model"].equals(population.table["model"]) and table["step"].equals(population.table["step"])
    embedding = encoders.load(folder / "sane").embed(population)
    np.testing.assert_array_equal(table["embedding"].to_numpy(), embedding.numpy())


def test_embeddings_of_whole_sequences(folder, tmp_path):
    assert run("embed", folder / "sane", folder / "zoo", "--out", tmp_path / "e", "--pooling", "sequence") == 0
    sane = encoders.load(folder / "sane")
    assert pl.read_parquet(tmp_path / "e")["embedding"].to_numpy().shape == (60, sane.view.count * sane.config.latent)


def test_predictions_are_of_test_models(folder):
    scores = pl.read_csv(folder / "tables" / "properties.csv")
    columns = ["representation", "probe", "target", "metric", "value", "n_train", "n_test"]
    assert scores.columns == columns
    names = set(scores["representation"])
    assert {"weight statistics", "flat weights", "hyper-parameters"} < names
    assert any(name.startswith("SANE") for name in names)
    assert {"metric.test_accuracy", "step", "metric.generalisation_gap"} < set(scores["target"])
    predictions = pl.read_csv(folder / "tables" / "predictions.csv", schema_overrides={"model": pl.String})
    assert set(predictions["model"]) == set(open_zoo(folder / "zoo").split(0)[2].models)


def test_predicting_one_target(folder, tmp_path):
    assert run("predict", folder / "sane", folder / "zoo", "--targets", "step", "--out", tmp_path) == 0
    assert set(pl.read_csv(tmp_path / "properties.csv")["target"]) == {"step"}


def test_samples_are_a_zoo(folder):
    samples = open_zoo(folder / "samples")
    prompts = set(open_zoo(folder / "zoo").split(0)[0].models)
    assert len(samples) == 6 and set(samples.table["config.prompt"]) <= prompts
    assert samples.header["fit"]["checkpoints"] == 42  # 14 training models, three checkpoints each


def test_evaluation_tables(folder):
    tables = {name: pl.read_csv(folder / "tables" / f"{name}.csv") for name in ("networks", "generation", "novelty")}
    assert {"generated", "random initialisation", "held-out", "training"} < set(tables["generation"]["source"])
    assert set(tables["generation"]["epoch"]) == {0, 1}
    made = tables["networks"].filter(source="generated", epoch=0)["accuracy"]
    mean = tables["generation"].filter(source="generated", epoch=0)["accuracy_mean"].item()
    assert len(made) == 6 and float(made.mean()) == pytest.approx(mean, abs=1e-6)
    assert "verdict" in tables["novelty"].columns and (folder / "tables" / "ensembles.csv").exists()


def test_report_of_run_and_zoo(folder, tmp_path):
    assert "<html" in (folder / "report.html").read_text()
    assert run("report", folder / "zoo", "--out", tmp_path / "zoo.html") == 0
    assert (tmp_path / "zoo.html").stat().st_size > 10_000


def test_hyper_representation_end_to_end(folder, tmp_path):
    made = tmp_path / "made"
    assert run("fit", "hyper-representation", folder / "zoo", "--out", made, *FIT, "--align") == 0
    fitted = encoders.load_autoencoder(made)
    assert fitted.name == "hyper-representation" and fitted.preparation.reference is not None
    assert run("embed", made, folder / "zoo", "--out", tmp_path / "e.parquet", "--pooling", "layers") == 0
    assert len(pl.read_parquet(tmp_path / "e.parquet")) == 60
    assert run("predict", made, folder / "zoo", "--targets", "step", "--out", tmp_path / "tables") == 0
    names = pl.read_csv(tmp_path / "tables" / "properties.csv")["representation"]
    assert "hyper-representation, layers" in set(names)
    assert run("sample", made, folder / "zoo", "--out", tmp_path / "samples", "--n", 3, "--best", 1.0) == 0


def test_sane_on_two_zoos(folder, tmp_path):
    options = ["--network", "cnn", "--models", 6, "--epochs", 1, "--train-limit", 64, "--workers", 1]
    assert run("zoo", "train", tmp_path / "other", *options) == 0
    zoos = [folder / "zoo", tmp_path / "other"]
    assert run("fit", "sane", *zoos, "--out", tmp_path / "sane", *FIT, "--no-align") == 0
    fitted = encoders.load_autoencoder(tmp_path / "sane")
    assert len(fitted.preparations) == 2 and fitted.preparation.reference is None
    assert run("embed", tmp_path / "sane", zoos[1], "--out", tmp_path / "e.parquet") == 0


def test_same_commands_same_results(folder, tmp_path):
    assert run("fit", "sane", folder / "zoo", "--out", tmp_path / "sane", *FIT) == 0
    for name in ("model.safetensors", "preparation.safetensors"):
        assert (tmp_path / "sane" / name).read_bytes() == (folder / "sane" / name).read_bytes()
    options = ["--n", 6, "--best", 1.0, "--mode", "joint"]
    assert run("sample", tmp_path / "sane", folder / "zoo", "--out", tmp_path / "samples", *options) == 0
    assert torch.equal(open_zoo(tmp_path / "samples").weights(), open_zoo(folder / "samples").weights())


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "fit sane GONE --out NEW",
        "embed SANE GONE --out NEW",
        "predict SANE GONE --out NEW",
        "sample SANE GONE --out NEW",
        "evaluate ZOO SANE GONE --out NEW",
        "evaluate GONE SANE ZOO --out NEW",
        "report GONE --out NEW",
        "zoo info GONE",
        "embed GONE ZOO --out NEW",
        "predict GONE ZOO --out NEW",
        "sample GONE ZOO --out NEW",
        "evaluate ZOO GONE ZOO --out NEW",
    ],
)
def test_missing_folders(folder, tmp_path, capsys, command):
    paths = {"GONE": tmp_path / "gone", "NEW": tmp_path / "new", "ZOO": folder / "zoo", "SANE": folder / "sane"}
    sentence = fails(capsys, *(paths.get(word, word) for word in command.split()))
    assert str(tmp_path / "gone") in sentence and sentence.count(". ") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit", "embed", "predict", "sample", "info", "report"])
def test_empty_zoo(folder, zoo, tmp_path, capsys, command):
    for file in (zoo / "checkpoints").iterdir():
        file.unlink()
    assert "is empty" in fails(capsys, *_reading(command, folder, zoo, tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["zoo"]


@pytest.mark.parametrize("command", ["fit", "embed", "predict", "sample"])
def test_truncated_shard(folder, zoo, tmp_path, capsys, command):
    shard = sorted((zoo / "weights").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    sentence = fails(capsys, *_reading(command, folder, zoo, tmp_path))
    assert shard.name in sentence and "truncated or damaged" in sentence and "training command again" in sentence
    assert sorted(file.name for file in tmp_path.iterdir()) == ["zoo"]


@pytest.mark.parametrize("command", ["fit", "embed", "predict", "sample", "info", "report"])
def test_zoo_of_a_newer_version(folder, zoo, tmp_path, capsys, command):
    _change(zoo / "zoo.json", version=99)
    assert "update weightspace" in fails(capsys, *_reading(command, folder, zoo, tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["zoo"]


def test_encoder_of_a_newer_version(folder, tmp_path, capsys):
    shutil.copytree(folder / "sane", tmp_path / "sane")
    _change(tmp_path / "sane" / "config.json", version=99)
    assert "update weightspace" in fails(capsys, "embed", tmp_path / "sane", folder / "zoo", "--out", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_nan_weights_are_left_out_and_counted(folder, zoo, tmp_path, capsys):
    _spoil(zoo, {0: [3, 4]})
    capsys.readouterr()
    assert run("embed", folder / "sane", zoo, "--out", tmp_path / "e") == 0
    assert "58 embeddings" in (out := capsys.readouterr().out) and "2 with NaN or infinite weights left out" in out
    table = pl.read_parquet(tmp_path / "e")
    assert len(table) == 58 and np.isfinite(table["embedding"].to_numpy()).all()
    assert run("fit", "sane", zoo, "--out", tmp_path / "sane", *FIT) == 0
    assert "2 with NaN or infinite weights left out" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in load_file(tmp_path / "sane" / "model.safetensors").values())


def test_a_zoo_of_nothing_but_nan(folder, zoo, tmp_path, capsys):
    _spoil(zoo, dict.fromkeys(range(len(list((zoo / "weights").iterdir())))))
    said = {"fit": "finite weights", "embed": "finite weights", "predict": "0 usable of 0", "sample": "is empty"}
    for command, words in said.items():
        assert words in fails(capsys, *_reading(command, folder, zoo, tmp_path))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("fit sanne ZOO --out NEW", "unknown encoder 'sanne'; did you mean 'sane'?"),
        ("zoo train NEW --network cmn", "unknown network 'cmn'; did you mean 'cnn'?"),
        ("zoo train NEW --activation rellu", "unknown activation 'rellu'; did you mean 'relu'?"),
        ("zoo train NEW --init kaiming_unifrom", "did you mean 'kaiming_uniform'?"),
        ("zoo train NEW --data digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("zoo train NEW --data mnist", "pass --data-root DIR"),
        ("zoo train NEW --data NEW.npz", "there is no data set"),
        ("zoo train NEW --models 0", "models must be at least 1"),
        ("zoo train NEW --epochs 2 --checkpoints 3", "checkpoints must lie between 0 and 2"),
        ("zoo train NEW --batch-size 5000", "batch_size 5000 is larger than the 1000 training images"),
        ("zoo train NEW --train-limit 3", "train_limit 3"),
        ("zoo train NEW --network cnn_l", "too small for this CNN"),
        ("zoo train NEW --recipe mnist-cnn-sed", "did you mean 'mnist-cnn-seed'?"),
        ("zoo train NEW --device nonsense", "device 'nonsense' cannot be used"),
        ("fit sane ZOO --out NEW --epochs 0", "epochs must be at least 1"),
        ("fit sane ZOO --out NEW --learning-rate nan", "learning_rate must be positive"),
        ("fit sane ZOO --out NEW --accelerator banana", "accelerator 'banana'"),
        ("fit sane ZOO --out NEW --target step", "learns from weights alone; leave --target out"),
        ("fit sane ZOO --out NEW --size resnet17", "unknown size of SANE 'resnet17'; did you mean 'resnet18'?"),
        ("fit dng ZOO ZOO --out NEW", "dng is no autoencoder; give one zoo"),
        ("fit dng ZOO --out NEW --target metric.test_acuracy", "did you mean 'metric.test_accuracy'?"),
        ("benchmark --zoo ZOO --out NEW --encoders sme", "unknown contestant 'sme'; did you mean 'sne'?"),
        ("benchmark --zoo ZOO ZOO --out NEW", "two zoos are called 'zoo'"),
        ("benchmark --zoo ZOO --out NEW --encoder no.such:Thing", "cannot load the encoder 'no.such:Thing'"),
        ("predict SANE ZOO --out NEW --targets metric.test_acuracy", "did you mean 'metric.test_accuracy'?"),
        ("sample SANE ZOO --out NEW --n 0", "at least 1"),
        ("sample SANE ZOO --out NEW --mode jiont", "jiont"),
        ("sample SANE ZOO --out NEW --best 1.5", "at most 1"),
        ("sample SANE ZOO --out NEW --bandwidth -1", "bandwidth"),
        ("evaluate SAMPLES SANE ZOO --out NEW --best 1 --epochs -1", "at least 0"),
    ],
)
def test_wrong_words(folder, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    paths = {"NEW": tmp_path / "new", "ZOO": folder / "zoo", "SANE": folder / "sane", "SAMPLES": folder / "samples"}
    paths["NEW.npz"] = tmp_path / "new.npz"
    assert says in fails(capsys, *(paths.get(word, word) for word in arguments.split()))
    assert list(tmp_path.iterdir()) == []


def test_a_zoo_of_other_images(folder, zoo, tmp_path, capsys):
    """The encoder is asked about networks for images of another size."""
    path = _images(tmp_path / "small.npz", (6, 6))
    options = ["--network", "mlp", "--models", "4", "--epochs", "1", "--workers", "1"]
    assert run("zoo", "train", tmp_path / "other", "--data", path, *options) == 0
    for command in ("embed", "predict", "sample"):
        sentence = fails(capsys, *_reading(command, folder, tmp_path / "other", tmp_path))
        assert "choose a zoo of the same architecture" in sentence
    assert not (tmp_path / "new").exists()
    header = json.loads((zoo / "zoo.json").read_text())
    _change(zoo / "zoo.json", recipe=header["recipe"] | {"data": str(path), "train_limit": None})
    sentence = fails(capsys, "evaluate", folder / "samples", folder / "sane", zoo, "--out", tmp_path / "new")
    assert "was trained on other images" in sentence and "[1, 6, 6]" in sentence
    assert not (tmp_path / "new").exists()


def test_a_zoo_without_recipe_cannot_be_evaluated(folder, zoo, tmp_path, capsys):
    _change(zoo / "zoo.json", recipe=None)
    sentence = fails(capsys, "evaluate", folder / "samples", folder / "sane", zoo, "--out", tmp_path / "new")
    assert "header has no recipe" in sentence
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("shape", "says"), [((), "needs images [n, h, w]"), ((6,), "needs images [n, h, w]"), ((6, 6, 3), "channels last")]
)
def test_images_of_wrong_shape(tmp_path, capsys, shape, says):
    path = _images(tmp_path / "data.npz", shape)
    assert says in fails(capsys, "zoo", "train", tmp_path / "zoo", "--data", path)
    assert not (tmp_path / "zoo").exists()


def test_folders_that_are_taken(folder, zoo, tmp_path, capsys):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    sentence = fails(capsys, "sample", folder / "sane", folder / "zoo", "--out", folder / "samples")
    assert "exists already" in sentence
    sentence = fails(capsys, "zoo", "train", folder / "zoo", *TRAIN, "--batch-size", 16)
    assert "already holds another zoo" in sentence
    sentence = fails(capsys, "fit", "sane", folder / "zoo", "--out", folder / "sane", *FIT, "--seed", 1)
    assert "other settings or data; choose another folder" in sentence
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_full_disk_leaves_no_half_table(folder, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in fails(capsys, "embed", folder / "sane", folder / "zoo", "--out", tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def _reading(command, folder, zoo, tmp_path):
    """The command on this zoo, with the run's encoder."""
    out = ["--out", tmp_path / "new"]
    return {
        "fit": ["fit", "sane", zoo, *out, *FIT],
        "embed": ["embed", folder / "sane", zoo, *out],
        "predict": ["predict", folder / "sane", zoo, *out],
        "sample": ["sample", folder / "sane", zoo, *out],
        "info": ["zoo", "info", zoo],
        "report": ["report", zoo, *out],
    }[command]


def _change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _spoil(zoo, rows):
    """NaN in some rows of some shards, in all of a shard where no rows are given."""
    for number, shard in enumerate(sorted((zoo / "weights").iterdir())):
        if number in rows:
            weights = load_file(shard)["rows"]
            weights[rows[number] if rows[number] is not None else slice(None), 5] = torch.nan
            save_file({"rows": weights}, shard)


def _images(path, shape):
    rng = np.random.default_rng(0)
    images = {"x_train": rng.random((60, *shape)), "x_test": rng.random((20, *shape))}
    np.savez(path, **images, y_train=np.arange(60) % 2, y_test=np.arange(20) % 2)
    return path
