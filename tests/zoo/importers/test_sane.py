"""Preprocessed data of SANE, written by hand after the specification: tokens, windows, normalisations, pickles."""

import json
import sys
import types
from collections import OrderedDict
from pathlib import PosixPath

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import weightspace as ws
from weightspace import networks
from weightspace.errors import ZooError
from weightspace.networks.population import population_logits
from weightspace.zoo import import_zoo

EPOCHS = (21, 25)
PROPERTIES = ["test_acc", "training_iteration", "ggap"]


def cnn_s(seed: int) -> OrderedDict:
    """A state dict of the published network, with the keys that it has without dropout."""
    torch.manual_seed(seed)
    shapes = {0: (8, 1, 5, 5), 3: (6, 8, 5, 5), 6: (4, 6, 2, 2), 9: (20, 36), 11: (10, 20)}
    state = OrderedDict()
    for index, shape in shapes.items():
        state[f"module_list.{index}.weight"] = torch.randn(shape) / 3
        state[f"module_list.{index}.bias"] = torch.randn(shape[0]) / 3
    return state


def with_norm(seed: int) -> OrderedDict:
    torch.manual_seed(seed)
    module = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3, bias=False), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))
    module.bn1.running_mean.normal_()
    module.bn1.running_var.exponential_()
    nn.init.normal_(module.bn1.weight)
    return OrderedDict((k, v.detach().clone()) for k, v in module.state_dict().items())


def matrices(state: dict, ignore_bn: bool = False) -> dict:
    """What becomes tokens: channels as lines, the bias as their last column."""
    found = {}
    for key, value in state.items():
        if "num_batches" in key or (ignore_bn and "bn" in key):
            continue
        if "weight" in key or "running_" in key:
            lines = value.reshape(len(value), -1)
            bias = state.get(key.replace("weight", "bias")) if "weight" in key else None
            found[key] = lines if bias is None else torch.cat([lines, bias[:, None]], dim=1)
    return found


def normalised(states: list[dict], mode: str | None, ignore_bn: bool = False) -> tuple[list[dict], dict]:
    """Matrices of all networks with one mean and deviation, or range, a layer; and what the file says of them."""
    every = [matrices(state, ignore_bn) for state in states]
    norms: dict = {}
    for key in every[0]:
        values = torch.stack([one[key] for one in every])
        if mode == "standardize":
            mean = values.mean((1, 2)).mean().item()
            std = torch.stack([one[key].std() for one in every]).square().mean().sqrt().item()
            norms[key] = {"mean": mean, "std": std}
            for one in every:
                one[key] = (one[key] - mean) / std
        elif mode == "minmax" and "weight" in key:
            low, high = values.min().item(), values.max().item()
            norms[key] = {"min": low, "max": high}
            for one in every:
                one[key] = (one[key] - low) / (high - low) * 2 - 1
    return every, norms | {"mode": mode}


def tokenised(layers: dict, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and positions, channel after channel."""
    tokens, masks, positions = [], [], []
    for number, lines in enumerate(layers.values()):
        for channel, line in enumerate(lines):
            for piece in line.split(width):
                tokens.append(F.pad(piece, (0, width - len(piece))))
                masks.append(torch.arange(width) < len(piece))
                positions.append([len(positions), number, channel])
    return torch.stack(tokens), torch.stack(masks), torch.tensor(positions, dtype=torch.int32)


def write_split(folder, split, states, *, width=201, mode="standardize", windows=None, ignore_bn=False, **info):
    """A split as the published preprocessing writes it: networks by model, then epoch, in windows if told."""
    every, norms = normalised(states, mode, ignore_bn)
    (folder / f"dataset_torch.{split}").mkdir(parents=True)
    parts = [tokenised(layers, width) for layers in every]
    count = len(parts[0][0])
    for turn, start in enumerate(windows or [0]):
        stop = count if windows is None else start + windows[1]
        for number, (tokens, mask, positions) in enumerate(parts):
            props = torch.tensor([number / 10, EPOCHS[number % 2], 0.25])
            sample = {"w": tokens[start:stop], "m": mask[start:stop], "p": positions[start:stop], "props": props}
            torch.save(sample, folder / f"dataset_torch.{split}" / f"sample_{turn * len(states) + number}.pt")
    about = {"num_samples": len(states), "properties": PROPERTIES, "epoch_list": list(EPOCHS), "split": split}
    about["max_positions"] = parts[0][2].max(0).values.tolist()
    (folder / f"dataset_info_{split}.json").write_text(json.dumps(about | info))
    (folder / f"dataset_normalization_{split}.json").write_text(json.dumps(norms))


def flat(state: dict) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for key, value in state.items() if value.ndim])


def imported(folder):
    report = import_zoo(folder, folder.parent / f"{folder.name}-zoo")
    return report, ws.open(folder.parent / f"{folder.name}-zoo")


@pytest.mark.parametrize("width", [201, 30])  # a token a channel, and channels in pieces
@pytest.mark.parametrize("mode", ["standardize", "minmax"])
def test_samples_become_the_networks_that_were_tokenised(tmp_path, width, mode):
    states = {"train": [cnn_s(i) for i in range(4)], "val": [cnn_s(10 + i) for i in range(2)]}
    for split, some in states.items():
        write_split(tmp_path / "sane", split, some, width=width, mode=mode)
    report, zoo = imported(tmp_path / "sane")
    assert (report.format, report.checkpoints, report.models, report.skipped) == ("sane", 6, 3, ())
    expected = torch.stack([flat(state) for some in states.values() for state in some])
    torch.testing.assert_close(zoo.weights(), expected, rtol=1e-5, atol=1e-6)  # the normalisation rounds
    assert zoo.table["step"].to_list() == [21, 25] * 3
    assert zoo.table["model"].to_list() == [f"{s}-0000{m}" for s, m in [("train", 0), ("train", 1), ("val", 0)]
                                            for _ in range(2)]  # fmt: skip
    assert zoo.table["published_split"].to_list() == ["train"] * 4 + ["validation"] * 2
    assert zoo.table["metric.ggap"].to_list() == [0.25] * 6
    assert zoo.table["metric.test_accuracy"].to_list() == pytest.approx([0, 0.1, 0.2, 0.3, 0, 0.1])


def test_the_published_network_is_recognised_and_runs(tmp_path):
    states = [cnn_s(i) for i in range(2)]
    write_split(tmp_path / "sane", "test", states)
    _, zoo = imported(tmp_path / "sane")
    network = networks.from_json(zoo.header["network"])
    x = images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for index, pool in ((0, 2), (3, 2), (6, 1)):
        x = F.conv2d(x, states[1][f"module_list.{index}.weight"], states[1][f"module_list.{index}.bias"])
        x = F.max_pool2d(x, pool).tanh()
    x = F.linear(x.flatten(1), states[1]["module_list.9.weight"], states[1]["module_list.9.bias"]).tanh()
    x = F.linear(x, states[1]["module_list.11.weight"], states[1]["module_list.11.bias"])
    torch.testing.assert_close(population_logits(network, zoo.weights(), images)[1], x, rtol=1e-4, atol=1e-4)


def test_windows_are_put_together_and_holes_are_skipped(tmp_path):
    """Sample i, i + n and i + 2n are windows of network i; the published files hold random ones."""
    states = [cnn_s(i) for i in range(2)]
    write_split(tmp_path / "sane", "train", states, windows=[0, 20, 28])
    report, zoo = imported(tmp_path / "sane")
    torch.testing.assert_close(zoo.weights(), torch.stack([flat(s) for s in states]), rtol=1e-5, atol=1e-6)
    (tmp_path / "sane/dataset_torch.train/sample_3.pt").unlink()
    report = import_zoo(tmp_path / "sane", tmp_path / "holes")
    assert [(item.source, item.reason) for item in report.skipped] == [
        ("dataset_torch.train/sample_1", "windows that do not cover the network: 40 of 48 tokens")
    ]


def test_of_permuted_copies_the_network_itself_is_taken(tmp_path):
    states = [cnn_s(0), cnn_s(1)]
    write_split(tmp_path / "sane", "train", states)
    for file in (tmp_path / "sane/dataset_torch.train").iterdir():
        sample = torch.load(file)
        sample["w"] = torch.stack([sample["w"], sample["w"].flip(0), torch.zeros_like(sample["w"])])
        torch.save(sample, file)
    report, zoo = imported(tmp_path / "sane")
    torch.testing.assert_close(zoo.weights(), torch.stack([flat(s) for s in states]), rtol=1e-5, atol=1e-6)
    assert report.notes["permuted copies left out"] == 2


def test_unknown_shapes_stay_matrices_with_names_of_the_normalisation(tmp_path):
    states = [OrderedDict(a=None) for _ in range(2)]
    for seed, state in enumerate(states):
        torch.manual_seed(seed)
        state.pop("a")
        state |= {"enc.weight": torch.randn(5, 3, 2), "enc.bias": torch.randn(5), "out.weight": torch.randn(2, 5)}
    write_split(tmp_path / "sane", "train", states, width=4)
    report, zoo = imported(tmp_path / "sane")
    assert [(spec.name, spec.shape) for spec in zoo.layout.tensors] == [("enc.weight", (5, 7)), ("out.weight", (2, 5))]
    expected = torch.stack([torch.cat([m.flatten() for m in matrices(s).values()]) for s in states])
    torch.testing.assert_close(zoo.weights(), expected, rtol=1e-5, atol=1e-6)
    assert any("shapes are not in the files" in note for note in report.notes)
    (tmp_path / "sane/dataset_normalization_train.json").unlink()
    report = import_zoo(tmp_path / "sane", tmp_path / "nameless")
    assert [spec.name for spec in ws.open(tmp_path / "nameless").layout.tensors] == ["layer0.weight", "layer1.weight"]
    assert any("keep no normalisation" in note for note in report.notes)


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Write a `DatasetTokens`, whose class is there only while it is written."""
    module = types.ModuleType("SANE.datasets.dataset_tokens")

    class DatasetTokens:
        def __setstate__(self, state):
            raise AssertionError("a method of the stored class was called")

    DatasetTokens.__module__, DatasetTokens.__qualname__ = module.__name__, "DatasetTokens"
    module.DatasetTokens = DatasetTokens

    def write(states, *, ignore_bn, precision=torch.float32):
        every, norms = normalised(states, "standardize", ignore_bn)
        parts = [tokenised(layers, 10) for layers in every]
        new = DatasetTokens()
        new.data = [[tokens.to(precision) for tokens, _, _ in parts[i : i + 2]] for i in range(0, len(parts), 2)]
        new.mask, new.positions = parts[0][1], parts[0][2]
        new.layers = {key: value for key, value in norms.items() if key != "mode"}
        new.standardize, new.mode, new.reference_checkpoint = True, "vector", states[0]
        new.paths = [[PosixPath(f"/zoos/raw/NN_{i}")] * 2 for i in range(len(new.data))]
        new.epochs = [list(EPOCHS) for _ in new.data]
        new.property_keys = {"result_keys": PROPERTIES, "config_keys": ["optim::lr"]}
        new.properties = {"test_acc": [[0.5, 0.75] for _ in new.data], "optim::lr": [[0.01, 0.01] for _ in new.data]}
        folder = tmp_path / "sane"
        folder.mkdir()
        with monkeypatch.context() as patch:
            for name in ("SANE", "SANE.datasets"):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            patch.setitem(sys.modules, module.__name__, module)
            torch.save(new, folder / "dataset_train.pt")
        return folder

    return write


@pytest.mark.parametrize("ignore_bn", [False, True])
def test_a_pickled_set_has_names_and_shapes(pickled, ignore_bn):
    states = [with_norm(i) for i in range(4)]
    report, zoo = imported(pickled(states, ignore_bn=ignore_bn))
    kept = [{k: v for k, v in s.items() if not (ignore_bn and "bn" in k)} for s in states]
    assert [(spec.name, spec.shape) for spec in zoo.layout.tensors] == [
        (name, tuple(value.shape)) for name, value in kept[0].items() if value.ndim
    ]
    torch.testing.assert_close(zoo.weights(), torch.stack([flat(s) for s in kept]), rtol=1e-5, atol=1e-6)
    assert zoo.table["model"].to_list() == ["NN_0", "NN_0", "NN_1", "NN_1"]
    assert zoo.table["step"].to_list() == [21, 25] * 2
    assert zoo.table["config.learning_rate"].to_list() == [0.01] * 4
    assert ("normalisation layers are not among the tokens" in report.notes) == ignore_bn


def test_half_precision_costs_digits_only(pickled):
    states = [with_norm(i) for i in range(2)]
    _, zoo = imported(pickled(states, ignore_bn=True, precision=torch.bfloat16))
    kept = torch.stack([flat({k: v for k, v in s.items() if "bn" not in k}) for s in states])
    torch.testing.assert_close(zoo.weights(), kept, rtol=2**-7, atol=2**-7)  # bfloat16 has eight digits


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: s.pop("p"), "without tokens, mask and positions"),
        (lambda s: s.update(w=s["w"][:, :-1]), "with another mask or other positions"),
        (lambda s: s["p"][:, 0].add_(7), "a token beyond the 48 of a network"),
        (lambda s: s["p"][:8, 2].copy_(s["p"][:8, 2].flip(0).clone()), "positions are not those of its channels"),
        (lambda s: s["p"][:, 1].copy_(s["p"][:, 1].flip(0).clone()), "not in the order of tokens and layers"),
        (lambda s: s["m"][0, 3].logical_not_(), "mask is not that of padded channels"),
    ],
)
def test_samples_that_are_none_are_skipped_with_the_reason(tmp_path, damage, sentence):
    write_split(tmp_path / "sane", "train", [cnn_s(0), cnn_s(1)])
    file = tmp_path / "sane/dataset_torch.train/sample_1.pt"
    sample = torch.load(file)
    damage(sample)
    torch.save(sample, file)
    report, _ = imported(tmp_path / "sane")
    assert report.checkpoints == 1 and sentence in report.skipped[0].reason


def test_a_normalisation_of_other_layers_is_refused(tmp_path):
    write_split(tmp_path / "sane", "train", [cnn_s(0), cnn_s(1)])
    norms = tmp_path / "sane/dataset_normalization_train.json"
    norms.write_text(json.dumps({"module_list.0.weight": {"mean": 0, "std": 1}, "mode": "standardize"}))
    with pytest.raises(ZooError, match="normalisation has 1 layers and not the 5"):
        import_zoo(tmp_path / "sane", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


class Hostile:
    def __reduce__(self):
        return exec, ("raise AssertionError('code of the file was run')",)


def test_a_sample_that_would_run_code_is_refused(tmp_path):
    write_split(tmp_path / "sane", "train", [cnn_s(0), cnn_s(1)])
    torch.save({"w": Hostile()}, tmp_path / "sane/dataset_torch.train/sample_1.pt")
    report, _ = imported(tmp_path / "sane")
    assert report.checkpoints == 1 and "would execute code" in report.skipped[0].reason
