"""Export: what is written is what others read, and comes back the same."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import weightspace as ws
from weightspace.errors import LayoutError, UnknownName, ZooError
from weightspace.networks import CNN, Layout, ResNet18
from weightspace.zoo import Zoo, export_zoo, import_zoo

NORMED = CNN(channels=(3, 4), bias=False, batch_norm=True)


def zoo_of(network, models: int = 4, **columns) -> Zoo:
    layout = Layout.of(network.build())
    rows = torch.randn(2 * models, layout.parameters, generator=torch.Generator().manual_seed(0))
    table = pl.DataFrame(
        {
            "model": [f"m/{i // 2}" for i in range(2 * models)],
            "step": [0, 86] * models,
            "config.learning_rate": [0.001 * (1 + i // 2) for i in range(2 * models)],
            "config.activation": ["relu", "tanh"] * models,
            "metric.test_accuracy": [i / 10 for i in range(2 * models)],
            "metric.diverged": [i == 1 for i in range(2 * models)],
            **columns,
        }
    )
    return Zoo.in_memory(rows, layout, table, {"name": "x"})


def same(one: Zoo, two: Zoo) -> None:
    key = ["model", "step"]
    orders = [z.table.with_row_index("i").sort(key)["i"].to_numpy() for z in (one, two)]
    one, two = one.take(orders[0]), two.take(orders[1])
    assert one.layout == two.layout and one.weights().equal(two.weights())
    columns = one.table.drop("shard", "row").columns
    assert two.table.select(columns).equals(one.table.select(columns)), (one.table, two.table)


@pytest.mark.parametrize("network", [CNN(), NORMED, ResNet18(width=2)], ids=["cnn", "normed", "resnet"])
def test_safetensors_round_trip(network, tmp_path):
    zoo = zoo_of(network)
    export_zoo(zoo, tmp_path / "files")
    report = import_zoo(tmp_path / "files", tmp_path / "zoo", labels=tmp_path / "files/labels.csv")
    assert report.skipped == ()
    same(zoo, ws.open(tmp_path / "zoo"))


def test_files_load_into_the_network(tmp_path):
    zoo = zoo_of(NORMED)
    export_zoo(zoo, tmp_path / "files")
    module = NORMED.build()
    state = load_file(tmp_path / "files/m/1/step-000086.safetensors")
    missing = module.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys) and not missing.unexpected_keys
    assert zoo.layout.flatten(module.state_dict()).equal(zoo.weights()[3])
    labels = pl.read_csv(tmp_path / "files/labels.csv")
    assert labels["file"][3] == "m/1/step-000086.safetensors" and labels["metric.test_accuracy"][3] == 0.3


def test_small_cnn_round_trip(tmp_path):
    zoo = zoo_of(CNN(channels=(4, 4), kernels=(3, 3), pools=(1, 1), image_shape=(2, 9, 9)))
    export_zoo(zoo, tmp_path / "small", format="small-cnn")
    report = import_zoo(tmp_path / "small", tmp_path / "zoo")
    assert (report.format, report.skipped) == ("small-cnn", ())
    same(zoo, ws.open(tmp_path / "zoo"))


def test_small_cnn_files_are_those_of_the_specification(tmp_path):
    """Read with numpy alone: bias before kernel, kernels HWIO, a convolution computed from them by its definition."""
    zoo = zoo_of(CNN(channels=(4, 5), kernels=(3, 3), pools=(1, 1), image_shape=(2, 9, 9)))
    export_zoo(zoo, tmp_path / "small", format="small-cnn")
    lines = pl.read_csv(tmp_path / "small/layout.csv").rows()
    assert lines[:2] == [("conv1/bias:0", 0, 4, "(4,)"), ("conv1/kernel:0", 4, 76, "(3, 3, 2, 4)")]
    assert lines[-1][0] == "fc1/kernel:0" and lines[-1][2] == zoo.layout.parameters
    weights = np.load(tmp_path / "small/weights.npy", mmap_mode="r")
    assert weights.shape == zoo.weights().shape and weights.dtype == np.float32
    kernel, bias = weights[3, 4:76].reshape(3, 3, 2, 4).astype(np.float64), weights[3, :4]
    image = np.random.default_rng(0).normal(size=(3, 3, 2))
    state = zoo.layout.unflatten(zoo.weights()[3].double())
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = np.einsum("hwc,hwco->o", image, kernel) + bias
    np.testing.assert_allclose(F.conv2d(x, state["conv1.weight"], state["conv1.bias"]).flatten(), expected, rtol=1e-12)
    with gzip.open(tmp_path / "small/metrics.csv.gz", "rt") as file:
        names = file.readline().strip().split(",")
    assert {"modeldir", "step", "test_accuracy", "config.activation"} <= set(names) and "row" not in names


def test_models_with_strange_names_stay_inside(tmp_path):
    layout = Layout.of(torch.nn.Linear(1, 1))
    names = ["../up", "a b", "/absolute", "..", "ü%", "c:d\\e"]
    table = pl.DataFrame({"model": names, "step": [0] * len(names)})
    zoo = Zoo.in_memory(torch.arange(12.0).view(6, 2), layout, table, {})
    export_zoo(zoo, tmp_path / "files")
    assert len(list((tmp_path / "files").rglob("*.safetensors"))) == len(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["files"]
    import_zoo(tmp_path / "files", tmp_path / "zoo", labels=tmp_path / "files/labels.csv")
    same(zoo, ws.open(tmp_path / "zoo"))


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(LayoutError, match=r"'norm1.weight' \(norm\) has no place in a Small CNN Zoo"):
        export_zoo(zoo_of(NORMED), tmp_path / "x", format="small-cnn")
    with pytest.raises(ZooError, match="column 'tags' holds lists"):
        export_zoo(zoo_of(CNN(), tags=[[1]] * 8), tmp_path / "x")
    with pytest.raises(UnknownName, match="did you mean 'safetensors'"):
        export_zoo(zoo_of(CNN()), tmp_path / "x", format="safetensor")
    with pytest.raises(ZooError, match="has no checkpoints"):
        export_zoo(zoo_of(CNN()).take([]), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZooError, match="exists already"):
        export_zoo(zoo_of(CNN()), Path(tmp_path))
