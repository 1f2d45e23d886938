"""The Small CNN Zoo, written by hand after the specification: order of layers, axes of kernels, split files."""

import gzip

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import weightspace as ws
from weightspace import networks
from weightspace.errors import ZooError
from weightspace.networks import Layout
from weightspace.networks.population import population_logits
from weightspace.zoo import import_zoo

LAYOUT = """varname,start_idx,end_idx,shape
sequential/conv2d/bias:0,0,16,"(16,)"
sequential/conv2d/kernel:0,16,160,"(3, 3, 1, 16)"
sequential/conv2d_1/bias:0,160,176,"(16,)"
sequential/conv2d_1/kernel:0,176,2480,"(3, 3, 16, 16)"
sequential/conv2d_2/bias:0,2480,2496,"(16,)"
sequential/conv2d_2/kernel:0,2496,4800,"(3, 3, 16, 16)"
sequential/dense/bias:0,4800,4810,"(10,)"
sequential/dense/kernel:0,4810,4970,"(16, 10)"
"""
ROWS = 18


@pytest.fixture
def folder(tmp_path):
    """Six models at three epochs."""
    source = tmp_path / "small"
    source.mkdir()
    weights = np.random.default_rng(0).normal(0, 0.3, (ROWS, 4970)).astype(np.float32)
    np.save(source / "weights.npy", weights)
    (source / "layout.csv").write_text(LAYOUT)
    lines = [
        "config.activation,config.learning_rate,config.w_init,modeldir,step,test_accuracy,test_loss,train_accuracy"
    ]
    lines += [
        f"relu,0.00{i // 3 + 1},glorot,/models/{i // 3},{(0, 1, 86)[i % 3]},0.{i:02d},1.5,0.5" for i in range(ROWS)
    ]
    with gzip.open(source / "metrics.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return source


def channels_last_network(row: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The published network in plain numpy, with kernels as they are stored: HWIO, and dense matrices inputs first."""
    x = images
    for bias, kernel in (((0, 16), (16, 160)), ((160, 176), (176, 2480)), ((2480, 2496), (2496, 4800))):
        b, k = row[slice(*bias)], row[slice(*kernel)].reshape(3, 3, -1, 16)
        size = (x.shape[1] - 3) // 2 + 1
        out = np.zeros((len(x), size, size, 16))
        for i in range(size):
            for j in range(size):
                window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, :]
                out[:, i, j, :] = np.einsum("nhwc,hwco->no", window, k) + b
        x = np.maximum(out, 0)
    return x.mean(axis=(1, 2)) @ row[4810:].reshape(16, 10) + row[4800:4810]


def test_the_converted_network_computes_the_same(folder, tmp_path):
    import_zoo(folder, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    images = np.random.default_rng(1).normal(size=(4, 28, 28, 1))
    for place in (0, 7):
        state = zoo.layout.unflatten(zoo.weights()[place].double())
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        for i in (1, 2, 3):
            x = F.conv2d(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], stride=2).relu()
        found = F.linear(x.mean((2, 3)), state["fc1.weight"], state["fc1.bias"])
        row = np.load(folder / "weights.npy")[place].astype(np.float64)
        torch.testing.assert_close(found, torch.from_numpy(channels_last_network(row, images)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dataset", "side"), [("mnist", 28), ("fashion_mnist", 28), ("cifar10", 32), ("svhn_cropped", 32)]
)
def test_the_published_network_is_recognised_and_runs(folder, tmp_path, dataset, side):
    lines = gzip.decompress((folder / "metrics.csv.gz").read_bytes()).decode().splitlines()
    named = [f"config.dataset,{lines[0]}", *(f"{dataset},{line}" for line in lines[1:])]
    with gzip.open(folder / "metrics.csv.gz", "wt") as file:
        file.write("\n".join(named) + "\n")
    import_zoo(folder, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    network = networks.from_json(zoo.header["network"])
    assert network.image_shape == (1, side, side) and Layout.of(network.build()) == zoo.layout
    images = np.random.default_rng(1).normal(size=(2, side, side, 1))
    x = torch.from_numpy(images).float().permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    logits = population_logits(network, zoo.weights()[:3], x)
    rows = np.load(folder / "weights.npy").astype(np.float64)
    expected = np.stack([channels_last_network(row, images) for row in rows[:3]])
    torch.testing.assert_close(logits.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)  # float32


def test_other_layouts_and_image_sets_have_no_network(folder, tmp_path):
    import_zoo(folder, tmp_path / "unnamed")  # without a column of data sets: the layout is that of the digits
    assert ws.open(tmp_path / "unnamed").header["network"]["image_shape"] == [1, 28, 28]
    lines = gzip.decompress((folder / "metrics.csv.gz").read_bytes()).decode().splitlines()
    with gzip.open(folder / "metrics.csv.gz", "wt") as file:
        file.write("\n".join([f"config.dataset,{lines[0]}", *(f"faces,{line}" for line in lines[1:])]) + "\n")
    import_zoo(folder, tmp_path / "faces")
    assert "network" not in ws.open(tmp_path / "faces").header


def test_values_are_moved_and_never_changed(folder, tmp_path):
    report = import_zoo(folder, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    assert (report.format, report.checkpoints, report.models, zoo.layout.parameters) == ("small-cnn", ROWS, 6, 4970)
    weights = np.load(folder / "weights.npy")
    np.testing.assert_array_equal(np.sort(zoo.weights().numpy(), axis=1), np.sort(weights, axis=1))
    assert [t.shape for t in zoo.layout.tensors] == [
        (16, 1, 3, 3), (16,), (16, 16, 3, 3), (16,), (16, 16, 3, 3), (16,), (10, 16), (10,)
    ]  # fmt: skip
    assert {spec.output_axis for spec in zoo.layout.tensors} == {0}


def test_metrics_stand_beside_their_rows(folder, tmp_path):
    import_zoo(folder, tmp_path / "zoo")
    table = ws.open(tmp_path / "zoo").table
    assert table["model"][3] == "/models/1" and table["step"].to_list() == [0, 1, 86] * 6
    assert table["metric.test_accuracy"].to_list() == [float(f"0.{i:02d}") for i in range(ROWS)]
    assert {"config.w_init", "metric.test_loss", "metric.train_accuracy"} <= set(table.columns)


def test_it_is_read_in_blocks(folder, tmp_path, monkeypatch):
    """A part of the matrix is in memory at a time; the parts together are the same zoo."""
    from weightspace.zoo.importers import small_cnn_zoo, write

    import_zoo(folder, tmp_path / "whole")
    monkeypatch.setattr(small_cnn_zoo, "BLOCK_VALUES", 4 * 4970)
    monkeypatch.setattr(write, "BUFFER_VALUES", 6 * 4970)
    import_zoo(folder, tmp_path / "parts")
    whole, parts = ws.open(tmp_path / "whole"), ws.open(tmp_path / "parts")
    assert len(list((tmp_path / "parts/weights").iterdir())) > 1
    assert parts.weights().equal(whole.weights())
    assert parts.table.drop("shard", "row").equals(whole.table.drop("shard", "row"))


def test_a_row_that_diverged_is_skipped(folder, tmp_path):
    weights = np.load(folder / "weights.npy")
    weights[5, 17] = np.inf
    np.save(folder / "weights.npy", weights)
    report = import_zoo(folder, tmp_path / "zoo")
    assert [(item.source, item.reason) for item in report.skipped] == [
        ("weights.npy, /models/1, step 86", "NaN or infinite weights: 1 of 4970 values")
    ]
    kept = import_zoo(folder, tmp_path / "all", keep_nonfinite=True)
    assert kept.checkpoints == ROWS and len(ws.open(tmp_path / "all").finite()) == ROWS - 1


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("weights.npy", lambda f: f.write_bytes(f.read_bytes()[:9000]), r"weights\.npy is truncated or damaged"),
        ("weights.npy", lambda f: np.save(f, np.zeros((ROWS, 12), np.float32)), "do not belong together"),
        ("weights.npy", lambda f: np.save(f, np.array([[{}]], dtype=object)), r"weights\.npy is truncated or damaged"),
        ("metrics.csv.gz", lambda f: f.write_bytes(f.read_bytes()[:60]), "not a readable CSV"),
        (
            "layout.csv",
            lambda f: f.write_text(LAYOUT.replace("16,160", "17,160")),
            "begins where the one before",
        ),
        ("layout.csv", lambda f: f.write_text(LAYOUT.replace("d/kernel", "d/gamma")), "not a kernel or bias"),
        ("layout.csv", lambda f: f.write_text("a,b\n1,2\n"), "not a layout of the Small CNN Zoo"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, tmp_path, file, damage, sentence):
    damage(folder / file)
    with pytest.raises(ZooError, match=sentence):
        import_zoo(folder, tmp_path / "zoo", format="small-cnn")
    assert not (tmp_path / "zoo").exists()


def test_shapes_in_other_writings(folder, tmp_path):
    table = pl.read_csv(folder / "layout.csv")
    table.with_columns(pl.col("shape").str.replace_all(r"[(),]", "").str.strip_chars()).write_csv(folder / "layout.csv")
    import_zoo(folder, tmp_path / "zoo")
    assert ws.open(tmp_path / "zoo").layout.tensors[2].shape == (16, 16, 3, 3)
