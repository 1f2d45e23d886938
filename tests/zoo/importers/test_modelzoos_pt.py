"""Preprocessed Model Zoos: pickles of classes that do not exist when they are read."""

import json
import sys
import types
from pathlib import PosixPath

import pytest
import torch

import weightspace as ws
from weightspace.errors import ZooError
from weightspace.zoo import import_zoo

SHAPES = [(8, 1, 5, 5), (6, 8, 5, 5), (4, 6, 2, 2), (20, 36), (10, 20)]
INDEX = {
    "layer": [[0, "conv2d"], [3, "conv2d"], [6, "conv2d"], [9, "fc"], [11, "fc"]],
    "idx_start": [0, 208, 1414, 1514, 2254],
    "idx_length": [208, 1206, 100, 740, 210],
    "kernel_no": [8, 6, 4, 20, 10],
    "kernel_size": [25, 25, 4, 1, 1],
    "channels_in": [1, 8, 6, 36, 20],
}


@pytest.fixture
def dataset_class(monkeypatch):
    """A class as in the authors' package, there only while files are written."""
    package = types.ModuleType("checkpoints_to_datasets")
    module = types.ModuleType("checkpoints_to_datasets.dataset_base")

    class ModelDatasetBase:
        def __getstate__(self):
            return self.__dict__

        def __setstate__(self, state):
            raise AssertionError("a method of the stored class was called")

    ModelDatasetBase.__module__, ModelDatasetBase.__qualname__ = module.__name__, "ModelDatasetBase"
    module.ModelDatasetBase = ModelDatasetBase
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package.__name__, package)
        patch.setitem(sys.modules, module.__name__, module)
        yield ModelDatasetBase


def vector(seed: int) -> torch.Tensor:
    return torch.randn(2464, generator=torch.Generator().manual_seed(seed))


def dataset(kind, split: int, data):
    new = kind()
    count = len(data)
    new.data_in, new.mode, new.use_bias, new.weight_threshold = data, "vector", True, 5
    new.paths = [PosixPath(f"/zoos/raw/NN_tune_trainable_{split}{i // 2}") for i in range(count)]
    new.epochs = [i % 2 for i in range(count)]
    new.layer_lst = [(0, "conv2d"), (3, "conv2d"), (6, "conv2d"), (9, "fc"), (11, "fc")]
    new.properties = {
        "test_acc": [split / 10 + i / 100 for i in range(count)], "training_iteration": [i % 2 for i in range(count)],
        "ggap": [0.1] * count, "lr": [1e-3] * count, "model::nlin": ["tanh"] * count, "short": [1],
    }  # fmt: skip
    new.property_keys = list(new.properties)
    return new


@pytest.fixture
def folder(tmp_path, dataset_class):
    """Three data sets of vectors, four in each, and their index."""
    content = {
        name: dataset(dataset_class, split, [vector(10 * split + i) for i in range(4)])
        for split, name in enumerate(("trainset", "valset", "testset"))
    }
    (tmp_path / "pre").mkdir()
    torch.save(content, tmp_path / "pre/dataset.pt")
    (tmp_path / "pre/index_dict.json").write_text(json.dumps(INDEX))
    sys.modules.pop("checkpoints_to_datasets.dataset_base")
    return tmp_path / "pre"


def test_vectors_become_rows(folder, tmp_path):
    assert "checkpoints_to_datasets.dataset_base" not in sys.modules
    report = import_zoo(folder, tmp_path / "zoo")
    assert (report.format, report.checkpoints, report.models) == ("modelzoos-pt", 12, 6)
    zoo = ws.open(tmp_path / "zoo")
    assert zoo.weights().equal(torch.stack([vector(10 * split + i) for split in range(3) for i in range(4)]))
    assert [(spec.name, spec.shape) for spec in zoo.layout.tensors][::2] == [
        (f"{kind}.weight", shape) for kind, shape in zip(("conv1", "conv2", "conv3", "fc1", "fc2"), SHAPES, strict=True)
    ]
    assert zoo.table["published_split"].unique(maintain_order=True).to_list() == ["train", "validation", "test"]
    assert zoo.table["model"][0] == "NN_tune_trainable_00" and zoo.table["step"].to_list() == [0, 1] * 6
    assert zoo.table["metric.test_accuracy"].to_list() == [s / 10 + i / 100 for s in range(3) for i in range(4)]
    assert zoo.table["config.activation"].unique().to_list() == ["tanh"]
    assert zoo.table["config.learning_rate"].unique().to_list() == [1e-3]
    assert "metric.training_iteration" not in zoo.table.columns
    skipped = {item.source: item.reason for item in report.skipped}
    assert skipped["dataset.pt/trainset/short"] == "the property has 1 values for 4 checkpoints: not taken"
    assert ws.networks.from_json(zoo.header["network"]).channels == (8, 6, 4)


def test_a_published_index_with_a_wrong_start(folder, tmp_path):
    (folder / "index_dict.json").write_text(json.dumps(INDEX | {"idx_start": [0, 208, 1254, 1514, 2254]}))
    report = import_zoo(folder, tmp_path / "zoo")
    assert report.notes["index_dict.json states wrong starts; its lengths were used"] == 1
    assert ws.open(tmp_path / "zoo").weights()[0].equal(vector(0))


def test_without_an_index_the_length_says_which_network(folder, tmp_path):
    (folder / "index_dict.json").unlink()
    import_zoo(folder / "dataset.pt", tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    assert zoo.layout.parameters == 2464 and zoo.weights()[5].equal(vector(11))


def test_truncated_vectors_are_skipped(tmp_path, dataset_class):
    """What the published reader made of models with dropout."""
    data = dataset(dataset_class, 0, [vector(0), vector(1)[:1514], vector(2), torch.zeros(3, dtype=torch.int64)])
    torch.save({"trainset": data, "note": "text"}, tmp_path / "dataset.pt")
    report = import_zoo(tmp_path / "dataset.pt", tmp_path / "zoo")
    skipped = {item.source: item.reason for item in report.skipped}
    assert "a vector of 1514 values, and no index_dict.json" in skipped["dataset.pt/trainset[1]"]
    assert skipped["dataset.pt/trainset[3]"].startswith("neither a state dict nor a vector")
    assert skipped["dataset.pt/note"] == "no data set of checkpoints: it has no data_in"
    assert report.checkpoints == 2


def test_state_dicts_with_shifted_layers(tmp_path, dataset_class):
    states = []
    for seed, indices in ((0, (0, 3, 6, 9, 11)), (1, (0, 4, 8, 11, 14))):
        place, state = 0, {}
        for index, shape in zip(indices, SHAPES, strict=True):
            for key, size in (("weight", shape), ("bias", shape[:1])):
                count = torch.Size(size).numel()
                state[f"module_list.{index}.{key}"] = vector(seed)[place : place + count].reshape(size)
                place += count
        states.append(state)
    torch.save({"testset": dataset(dataset_class, 2, states)}, tmp_path / "dataset.pt")
    report = import_zoo(tmp_path, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    assert len(report.layouts) == 1 and zoo.weights().equal(torch.stack([vector(0), vector(1)]))
    assert zoo.table["published_split"].to_list() == ["test", "test"]


def test_code_in_the_file_is_refused(tmp_path, dataset_class):
    canary = tmp_path / "canary"
    data = dataset(dataset_class, 0, [vector(0)])

    class Hostile:
        def __reduce__(self):
            return open, (str(canary), "w")

    data.extra = Hostile()
    torch.save({"trainset": data}, tmp_path / "dataset.pt")
    with pytest.raises(ZooError, match=r"it would execute code: unpickling calls \w+\.open; nothing of it was run"):
        import_zoo(tmp_path / "dataset.pt", tmp_path / "zoo")
    assert not canary.exists() and not (tmp_path / "zoo").exists()


def test_an_index_that_is_none(folder, tmp_path):
    (folder / "index_dict.json").write_text(json.dumps(INDEX | {"idx_length": [208, 1201, 100, 740, 210]}))
    with pytest.raises(ZooError, match="conv2 has 1201 values"):
        import_zoo(folder, tmp_path / "zoo")
