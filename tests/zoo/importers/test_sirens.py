"""SIREN folders of NFN and DWSNets, written by hand after the specification."""

import json

import pytest
import torch

import weightspace as ws
from weightspace.zoo import import_zoo


def siren(seed: int, names: tuple[str, ...], outputs: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(32, 2), (32,), (32, 32), (32,), (outputs, 32), (outputs,)]
    return {name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)}


NFN = tuple(f"net.{layer}.{key}" for layer in ("0.linear", "1.linear", "2") for key in ("weight", "bias"))
DWS = tuple(f"seq.{layer}.{key}" for layer in range(3) for key in ("weight", "bias"))


@pytest.fixture
def nfn(tmp_path):
    source = tmp_path / "siren_mnist_wts"
    for index, label in ((3, 7), (44999, 0), (45000, 1), (50000, 7)):
        folder = source / f"randinit_test_{label}s"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(siren(index, NFN), folder / f"net{index}.pth")
    torch.save({}, source / "randinit_test_7s/other.pth")
    (source / "randinit_test_7s/net9.pth").write_bytes(b"")
    return source


def test_nfn_folder(nfn, tmp_path):
    report = import_zoo(nfn, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    assert (report.format, report.checkpoints, zoo.layout.parameters) == ("nfn-siren", 4, 1185)
    assert zoo.table["config.image"].to_list() == [3, 44999, 45000, 50000]
    assert zoo.table["config.label"].to_list() == ["7", "0", "1", "7"]
    assert zoo.table["published_split"].to_list() == ["train", "train", "validation", "test"]
    assert zoo.table["model"][0] == "randinit_test_7s/net3"
    assert zoo.weights()[2].equal(torch.cat([x.flatten() for x in siren(45000, NFN).values()]))
    assert {item.source: item.reason for item in report.skipped} == {
        "randinit_test_7s/other.pth": "not called net<index>.pth in <prefix>_<label>s",
        "randinit_test_7s/net9.pth": "empty: the file has 0 bytes",
    }
    assert {spec.layer for spec in zoo.layout.tensors} == {"linear"}


def test_colour_sirens_have_their_published_size(tmp_path):
    folder = tmp_path / "siren_cifar_wts/randinit_test_3s"
    folder.mkdir(parents=True)
    torch.save(siren(0, NFN, outputs=3), folder / "net0.pth")
    import_zoo(tmp_path / "siren_cifar_wts", tmp_path / "zoo")
    assert ws.open(tmp_path / "zoo").layout.parameters == 1251


@pytest.fixture
def dws(tmp_path):
    source = tmp_path / "mnist-inrs"
    splits = {side: {"path": [], "label": []} for side in ("train", "val", "test")}
    for place, (part, label, index, side) in enumerate(
        [("training", 5, 10, "train"), ("training", 0, 2, "val"), ("testing", 7, 10, "test")]
    ):
        file = source / f"mnist_png_{part}_{label}_{index}/checkpoints/model_final.pth"
        file.parent.mkdir(parents=True)
        torch.save(siren(place, DWS), file)
        splits[side]["path"].append(f"mnist-inrs/{file.relative_to(source)}")
        splits[side]["label"].append(str(label))
    (source / "mnist_splits.json").write_text(json.dumps(splits))
    torch.save({"weights": {"mean": [torch.zeros(1)]}}, source / "statistics.pth")
    return source


def test_dws_folder(dws, tmp_path):
    report = import_zoo(dws, tmp_path / "zoo")
    zoo = ws.open(tmp_path / "zoo")
    assert (report.format, report.checkpoints, zoo.layout.parameters) == ("dws-siren", 3, 1185)
    found = {row["model"]: row for row in zoo.table.iter_rows(named=True)}
    row = found["mnist_png_testing_7_10"]
    assert (row["config.label"], row["config.image"], row["config.part"]) == ("7", 10, "test")
    assert row["published_split"] == "test" and found["mnist_png_training_0_2"]["published_split"] == "validation"
    assert [(item.source, item.reason) for item in report.skipped] == [
        ("statistics.pth", "statistics of the zoo, not a network")
    ]
    assert report.notes["published split from mnist_splits.json"] == 1
    weights = dict(zip(zoo.table["model"], zoo.weights(), strict=True))
    assert weights["mnist_png_training_5_10"].equal(torch.cat([x.flatten() for x in siren(0, DWS).values()]))


def test_dws_folder_without_splits(dws, tmp_path):
    (dws / "mnist_splits.json").unlink()
    import_zoo(dws, tmp_path / "zoo")
    assert "published_split" not in ws.open(tmp_path / "zoo").table.columns
