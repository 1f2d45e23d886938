"""Raw Model Zoos and other folders of Ray, written by hand after the specification, with every trap in it."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import ZooError
from weightspace.zoo import import_zoo
from weightspace.zoo.behaviour import by_activation

SHAPES = [(8, 1, 5, 5), (6, 8, 5, 5), (4, 6, 2, 2), (20, 36), (10, 20)]
PLAIN, DROPPED = (0, 3, 6, 9, 11), (0, 4, 8, 11, 14)
"""Indices of CNN-s in `module_list` without and with dropout."""


def state(indices, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = {}
    for index, shape in zip(indices, SHAPES, strict=True):
        named[f"module_list.{index}.weight"] = torch.randn(shape, generator=generator)
        named[f"module_list.{index}.bias"] = torch.randn(shape[0], generator=generator)
    return named


def row(named) -> torch.Tensor:
    return torch.cat([x.flatten() for x in named.values()])


def trial(zoo, name, *, epochs, first=0, dropout=0.0, indices=PLAIN, seed=0, naming="checkpoint_{:06d}", nlin="tanh"):
    """A trial with a line and a checkpoint for each epoch from `first`; the state of epoch e has seed `seed + e`."""
    folder = zoo / f"NN_tune_trainable_{name}"
    folder.mkdir(parents=True)
    parameters = {"model::nlin": nlin, "model::init_type": "uniform", "model::dropout": dropout, "optim::lr": 3e-4,
                  "optim::wd": 0, "optim::optimizer": "adam", "seed": seed, "training::batchsize": 10}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(parameters))
    lines = []
    for epoch in range(first, epochs + 1):
        line = {"training_iteration": epoch, "test_acc": epoch / 100, "train_loss": float("nan") if epoch == 0 else 1.0,
                "val_acc": 0.5, "time_this_iter_s": 2.0, "pid": 7, "hostname": "h", "config": parameters}  # fmt: skip
        lines.append(json.dumps(line))
        checkpoint = folder / naming.format(epoch)
        checkpoint.mkdir()
        torch.save(state(indices, seed + epoch), checkpoint / "checkpoints")
        torch.save({"state": {}}, checkpoint / "optimizer")
    (folder / "result.json").write_text("\n".join(lines) + "\n")
    return folder


def reasons(report) -> dict[str, str]:
    return {item.source: item.reason for item in report.skipped}


@pytest.fixture
def zoo(tmp_path):
    """Three models: evaluated before training, not evaluated before, and with dropout."""
    folder = tmp_path / "raw"
    trial(folder, "a", epochs=3, seed=100)
    trial(folder, "b", epochs=3, first=1, seed=200, naming="checkpoint_{}", nlin="relu")
    trial(folder, "c", epochs=2, seed=300, dropout=0.5, indices=DROPPED)
    (folder / "config.json").write_text('{"model::nlin": "<grid>"}')
    torch.save({"trainset": 1}, folder / "dataset.pt")
    return folder


def test_every_checkpoint_has_its_own_metrics(zoo, tmp_path):
    report = import_zoo(zoo, tmp_path / "zoo")
    assert (report.format, report.checkpoints, report.models, report.skipped) == ("ray", 10, 3, ())
    imported = ws.open(tmp_path / "zoo")
    table = imported.table.with_columns(trial=pl.col("model").str.slice(-1))
    assert table["metric.test_accuracy"].to_list() == [step / 100 for step in table["step"]]
    assert dict(zip(*table.group_by("trial").len().sort("trial").to_dict(as_series=False).values(), strict=True)) == {
        "a": 4, "b": 3, "c": 3
    }  # fmt: skip
    seeds = {"a": 100, "b": 200, "c": 300}
    for weights, name, step in zip(imported.weights(), table["trial"], table["step"], strict=True):
        assert weights.equal(row(state(DROPPED if name == "c" else PLAIN, seeds[name] + step)))


def test_models_with_dropout_share_the_layout(zoo, tmp_path):
    """Fixed indices would take an activation for a layer, and cut the vector."""
    report = import_zoo(zoo, tmp_path / "zoo")
    (layout,) = report.layouts
    assert (layout.parameters, layout.checkpoints) == (2464, 10)
    assert report.notes["layers of module_list counted anew"] == 10
    imported = ws.open(tmp_path / "zoo")
    assert [spec.name for spec in imported.layout.tensors][::2] == [
        "conv1.weight", "conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"
    ]  # fmt: skip


def test_an_imported_zoo_can_be_run(zoo, tmp_path):
    """The published network is recognised; its forward pass is that of the modules listed in the specification."""
    import_zoo(zoo, tmp_path / "zoo")
    imported = ws.open(tmp_path / "zoo")
    assert {network.activation for network, _ in by_activation(imported)} == {"tanh", "relu"}
    network = ws.networks.from_json(imported.header["network"])
    last = imported.where(pl.col("step") == 3, pl.col("config.activation") == "tanh")
    named = state(PLAIN, 103)
    modules = nn.ModuleList([
        nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh(),
        nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10),
    ])  # fmt: skip
    modules.load_state_dict({key.removeprefix("module_list."): value for key, value in named.items()})
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = images
    for module in modules:
        expected = module(expected)
    found = torch.func.functional_call(network.build().eval(), last.layout.unflatten(last.weights()[0]), (images,))
    torch.testing.assert_close(found, expected)  # the same operations in the same order


def test_columns_have_the_names_of_this_package(zoo, tmp_path):
    import_zoo(zoo, tmp_path / "zoo")
    imported = ws.open(tmp_path / "zoo")
    first = imported.table.row(0, named=True)
    expected = {
        "config.activation": "tanh", "config.init": "uniform", "config.dropout": 0.0, "config.learning_rate": 3e-4,
        "config.weight_decay": 0, "config.optimiser": "adam", "config.seed": 100, "config.batch_size": 10,
        "metric.validation_accuracy": 0.5, "metric.time_this_iter_s": 2.0,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert math.isnan(first["metric.train_loss"])  # the literal NaN
    assert not {"metric.pid", "metric.hostname", "metric.training_iteration"} & set(imported.table.columns)
    assert imported.header["grid"] == {"model::nlin": "<grid>"}


def test_what_cannot_be_taken_is_in_the_report(zoo, tmp_path):
    a, b, c = sorted(zoo.glob("NN*"))
    whole = (a / "checkpoint_000001/checkpoints").read_bytes()
    (a / "checkpoint_000001/checkpoints").write_bytes(whole[: len(whole) // 2])
    (a / "checkpoint_000002/checkpoints").write_bytes(b"")
    (a / "checkpoint_000003/checkpoints").unlink()
    bad = state(PLAIN, 0)
    bad["module_list.9.weight"][0, 0] = math.nan
    torch.save(bad, b / "checkpoint_1/checkpoints")
    (b / "checkpoint_000002").mkdir()
    (b / "checkpoint_7").mkdir()
    lines = (c / "result.json").read_text().splitlines()
    (c / "result.json").write_text("\n".join([*lines[:2], lines[2][:40]]))
    for folder in (c / "checkpoint_000000").iterdir():
        folder.unlink()
    (c / "checkpoint_000000").rmdir()
    (zoo / "logs").mkdir()
    (zoo / "NN_empty").mkdir()
    report = import_zoo(zoo, tmp_path / "zoo")
    found = reasons(report)
    assert found[f"{a.name}/checkpoint_000001"].startswith("truncated or damaged")
    assert found[f"{a.name}/checkpoint_000002"] == "empty: the file has 0 bytes"
    assert found[f"{a.name}/checkpoint_000003"] == "the checkpoint's folder has no file of weights"
    assert found[f"{b.name}/checkpoint_1"] == "NaN or infinite weights: 1 of 2464 values"
    assert found[f"{b.name}/checkpoint_000002"] == "a second checkpoint of epoch 2"
    assert found[f"{b.name}/checkpoint_7"] == "no line of result.json has the epoch: 7"
    assert found[f"{c.name}/result.json"] == "line 3 is truncated or has no training_iteration"
    assert found[f"{c.name}/checkpoint_000002"] == "no line of result.json has the epoch: 2"
    assert found[c.name] == "no checkpoint folder for 1 epochs with metrics: 0"
    assert found["logs"] == found["NN_empty"] == "no result.json: not a model's folder"
    assert report.checkpoints == 1 + 2 + 1
    stored = json.loads((tmp_path / "zoo/import.json").read_text())
    assert {item["source"]: item["reason"] for item in stored["skipped"]} == found
    assert stored["checkpoints"] == 4 and stored["format"] == "ray"


def test_large_weights_are_skipped_on_request(zoo, tmp_path):
    report = import_zoo(zoo, tmp_path / "zoo", max_weight=3.6)
    imported = ws.open(tmp_path / "zoo")
    assert len(report.skipped) + report.checkpoints == 10 and report.checkpoints > 0
    assert imported.weights().abs().max() <= 3.6
    assert all(item.reason.startswith("a weight beyond 3.6: ") for item in report.skipped)


def test_newer_ray_says_in_a_line_which_folder_it_wrote(tmp_path):
    """There folders are numbered from 0, whatever the iteration; files have suffixes."""
    folder = tmp_path / "results/trial_x"
    for place in range(2):
        (folder / f"checkpoint_{place:06d}").mkdir(parents=True)
        torch.save({"model": nn.Linear(3, 2).state_dict()}, folder / f"checkpoint_{place:06d}/model.pt")
    lines = [{"training_iteration": i, "loss": 1 / i} for i in range(1, 11)]
    for place, iteration in enumerate((5, 10)):
        lines[iteration - 1]["checkpoint_dir_name"] = f"checkpoint_{place:06d}"
    (folder / "result.json").write_text("\n".join(map(json.dumps, lines)))
    (folder / "params.json").write_text('{"lr": 0.1, "layers": [4, 4], "net": {"width": 3}}')
    report = import_zoo(tmp_path / "results", tmp_path / "zoo")
    table = ws.open(tmp_path / "zoo").table
    assert report.format == "ray" and table["step"].to_list() == [5, 10]
    np.testing.assert_allclose(table["metric.loss"], [1 / 5, 1 / 10])
    assert table["config.learning_rate"].to_list() == [0.1, 0.1]
    assert table["config.layers"].to_list() == ["[4, 4]"] * 2 and table["config.net.width"].to_list() == [3, 3]


def test_nothing_is_left_when_nothing_can_be_read(zoo, tmp_path):
    for file in zoo.rglob("checkpoints"):
        file.write_bytes(b"")
    with pytest.raises(ZooError, match=r"nothing of raw could be imported as 'ray': 10 skipped, as .*: empty"):
        import_zoo(zoo, tmp_path / "zoo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
