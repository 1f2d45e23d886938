"""Populations that others trained, where they are at hand."""

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import weightspace as ws
from weightspace.networks import Layout
from weightspace.views.statistics import weight_statistics
from weightspace.zoo import import_zoo


def test_reinforcement_learning_agents(populations, tmp_path):
    source = populations / "rl_agents_sb3"
    report = import_zoo(source, tmp_path / "zoo", labels=source / "labels.csv")
    assert (report.checkpoints, len(report.layouts), report.skipped) == (111, 71, ())
    zoo = ws.open(tmp_path / "zoo")
    labels = pl.read_csv(source / "labels.csv")
    by_model = dict(zip(labels["model_id"], labels["label_reward"], strict=True))
    assert dict(zip(zoo.table["model"], zoo.table["metric.label_reward"], strict=True)) == by_model
    assert zoo.table["config.algo"].n_unique() == labels["algo"].n_unique()
    sizes = dict(zip(labels["model_id"], labels["n_params"], strict=True))
    for digest in zoo.table["layout"].unique().sort()[:8]:
        part = zoo.where(pl.col("layout") == digest)
        assert {sizes[model] for model in part.models} == {part.layout.parameters}
        state = load_file(source / "models" / f"{part.models[0]}.safetensors")
        named = part.layout.unflatten(part.weights()[0])
        assert named.keys() == state.keys() and all(named[name].equal(state[name]) for name in state)
    kinds = {spec["layer"] for tensors in zoo.header["layouts"].values() for spec in tensors}
    assert kinds == {"linear", "other"}
    others = {t["name"] for tensors in zoo.header["layouts"].values() for t in tensors if t["layer"] == "other"}
    assert others == {"log_std", "actor.log_std"}


def test_collision_avoidance_networks(populations, tmp_path):
    source = populations / "acasxu"
    report = import_zoo(source, tmp_path / "zoo", labels=source / "labels.csv")
    zoo = ws.open(tmp_path / "zoo")
    assert (report.checkpoints, zoo.layout.parameters) == (45, 13305)
    shapes = [spec.shape for spec in zoo.layout.tensors if spec.role == "weight"]
    assert shapes == [(50, 5)] + [(50, 50)] * 5 + [(5, 50)]
    assert weight_statistics(zoo.weights(), zoo.layout).isfinite().all()
    entry = zoo.table.row(0, named=True)
    state = load_file(source / "models" / f"{entry['model']}.safetensors")
    names = [f"{layer}.{key}" for layer in range(0, 13, 2) for key in ("weight", "bias")]
    assert list(zoo.layout.by_name) == names
    assert zoo.weights()[0].equal(torch.cat([state[name].flatten() for name in names]))


@pytest.mark.parametrize("name", ["acasxu", "rl_agents_sb3"])
def test_exported_and_imported_again(populations, tmp_path, name):
    import_zoo(populations / name, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    ws.zoo.export_zoo(zoo, tmp_path / "files")
    import_zoo(tmp_path / "files", tmp_path / "again", labels=tmp_path / "files/labels.csv")
    again = ws.open(tmp_path / "again")
    assert again.header["layouts"].keys() == zoo.header["layouts"].keys()
    for digest in zoo.header["layouts"]:
        one, two = (z.where(pl.col("layout") == digest) for z in (zoo, again))
        order = [two.table["model"].to_list().index(model) for model in one.table["model"]]
        assert two.take(order).weights().equal(one.weights())
        assert Layout.from_json(zoo.header["layouts"][digest]) == two.layout
