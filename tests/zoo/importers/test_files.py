"""Folders of weight files: every suffix, everything that is met in real folders, labels, crashes."""

import json
import math
import signal
import subprocess
import sys

import h5py
import numpy as np
import onnx
import polars as pl
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import weightspace as ws
from weightspace.errors import UnknownName, ZooError
from weightspace.networks import Layout
from weightspace.zoo import import_zoo


def net(seed: int = 0, hidden: int = 5) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def row(module: nn.Module) -> torch.Tensor:
    return Layout.of(module).flatten(module.state_dict())


def reasons(report) -> dict[str, str]:
    return {item.source: item.reason for item in report.skipped}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def imported(folder, tmp_path, **options):
    report = import_zoo(folder, tmp_path / "zoo", **options)
    return report, ws.open(tmp_path / "zoo")


# --- one network in every kind of file --------------------------------------------------------------------------------


def write_onnx(module: nn.Sequential, file, *, matmul: bool) -> None:
    """A graph made by hand: `Gemm`, as PyTorch exports linear layers, or `MatMul` and `Add` with inputs first."""
    nodes, values, last = [], [], "x"
    for place in (0, 2):
        weight, bias = module[place].weight.detach().numpy(), module[place].bias.detach().numpy()
        if matmul:
            values += [numpy_helper.from_array(weight.T.copy(), f"onnx::MatMul_{place}")]
            used = [last, f"onnx::MatMul_{place}"]
            nodes += [helper.make_node("MatMul", used, [f"p{place}"], name=f"/{place}/MatMul"),
                      helper.make_node("Add", [f"{place}.bias", f"p{place}"], [f"y{place}"])]  # fmt: skip
        else:
            values += [numpy_helper.from_array(weight, f"{place}.weight")]
            nodes += [helper.make_node("Gemm", [last, f"{place}.weight", f"{place}.bias"], [f"y{place}"], transB=1)]
        values += [
            numpy_helper.from_array(bias, f"{place}.bias"),
            numpy_helper.from_array(np.int64([1, 2]), f"shape{place}"),
        ]
        nodes.append(helper.make_node("Relu", [f"y{place}"], [f"z{place}"]))
        last = f"z{place}"
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, 2])], values,
    )  # fmt: skip
    onnx.save(helper.make_model(graph), str(file))


def write_keras(module: nn.Sequential, file) -> None:
    """As Keras 2 writes `.h5`: names in attributes, kernels with inputs first."""
    with h5py.File(file, "w") as content:
        root = content.create_group("model_weights")
        root.attrs["layer_names"] = [b"z_first", b"a_second"]
        for name, place in (("z_first", 0), ("a_second", 2)):
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group[f"{name}/kernel:0"] = module[place].weight.detach().numpy().T
            group[f"{name}/bias:0"] = module[place].bias.detach().numpy()


def write(kind: str, module: nn.Sequential, folder) -> None:
    state = module.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    match kind:
        case "safetensors":
            safetensors.torch.save_file(state, folder / "net.safetensors")
        case "pt" | "pth" | "bin":
            torch.save(state, folder / f"net.{kind}")
        case "legacy":
            torch.save(state, folder / "net.pth.tar", _use_new_zipfile_serialization=False)
        case "module":
            torch.save(module, folder / "net.pt")
        case "wrapped":
            compiled = {f"module._orig_mod.{name}": value for name, value in state.items()}
            torch.save({"epoch": 4, "model": compiled, "optimizer": {"state": {0: state}}, "loss": torch.ones(())},
                       folder / "net.ckpt")  # fmt: skip
        case "npz":
            np.savez(folder / "net.npz", **arrays)
        case "npz numbered":
            np.savez(
                folder / "net.npz",
                W0=arrays["0.weight"].T,
                b0=arrays["0.bias"],
                W1=arrays["2.weight"].T,
                b1=arrays["2.bias"],
            )
        case "npz positional":
            np.savez(folder / "net.npz", *arrays.values())
        case "npz scikit-learn":
            np.savez(folder / "net.npz", coefs_0=arrays["0.weight"].T, intercepts_0=arrays["0.bias"],
                     coefs_1=arrays["2.weight"].T, intercepts_1=arrays["2.bias"])  # fmt: skip
        case "flax":
            named = {}
            for place, layer in enumerate(("0", "2")):
                named[f"Dense_{place}.kernel"] = state[f"{layer}.weight"].T.contiguous()
                named[f"Dense_{place}.bias"] = state[f"{layer}.bias"]
            safetensors.torch.save_file(named, folder / "net.safetensors")
        case "keras":
            write_keras(module, folder / "net.h5")
        case "onnx":
            write_onnx(module, folder / "net.onnx", matmul=False)
        case "onnx matmul":
            write_onnx(module, folder / "net.onnx", matmul=True)
        case "sharded":
            shards = {"model-00001-of-00002.safetensors": ["0.weight"],
                      "model-00002-of-00002.safetensors": ["0.bias", "2.weight", "2.bias"]}  # fmt: skip
            (folder / "net").mkdir()
            for shard, names in shards.items():
                safetensors.torch.save_file({name: state[name] for name in names}, folder / "net" / shard)
            index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
            (folder / "net/model.safetensors.index.json").write_text(json.dumps(index))


KINDS = ["safetensors", "pt", "pth", "bin", "legacy", "module", "wrapped", "npz", "npz numbered", "npz positional",
         "npz scikit-learn", "flax", "keras", "onnx", "onnx matmul", "sharded"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_row(kind, folder, tmp_path):
    module = net()
    write(kind, module, folder)
    (folder / "notes.txt").write_text("x")
    report, zoo = imported(folder, tmp_path)
    assert (report.format, report.skipped, len(zoo)) == ("files", (), 1)
    assert zoo.weights()[0].equal(row(module))
    assert [(spec.shape, spec.layer, spec.output_axis) for spec in zoo.layout.tensors] == [
        ((5, 3), "linear", 0), ((5,), "linear", 0), ((2, 5), "linear", 0), ((2,), "linear", 0)
    ]  # fmt: skip
    assert zoo.table["step"][0] == (4 if kind == "wrapped" else 0)
    assert any("1 .txt" in note for note in report.notes)


def test_all_kinds_together(folder, tmp_path):
    for place, kind in enumerate(KINDS):
        (folder / f"run{place:02d}").mkdir()
        write(kind, net(place), folder / f"run{place:02d}")
    report, zoo = imported(folder, tmp_path)
    assert report.checkpoints == len(KINDS) and report.skipped == ()
    rows = {model: ws.Zoo.weights(zoo.where(pl.col("model") == model))[0] for model in zoo.models}
    assert all(rows[f"run{place:02d}/net"].equal(row(net(place))) for place in range(len(KINDS)))


def test_images_kernels_are_turned(folder, tmp_path):
    """A convolution, a depthwise and a transposed one compute the same in both conventions."""
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(3, 2, 4, 6, generator=generator)  # height, width, inputs, outputs
    depthwise = torch.randn(3, 3, 6, 2, generator=generator)  # height, width, inputs, filters of each
    transposed = torch.randn(2, 2, 5, 12, generator=generator)  # height, width, outputs, inputs
    with h5py.File(folder / "net.weights.h5", "w") as content:
        for name, kernel, bias in (("conv2d", conv, 6), ("depthwise_conv2d", depthwise, 12),
                                   ("conv2d_transpose", transposed, 5)):  # fmt: skip
            content[f"layers/{name}/vars/0"] = kernel.numpy()
            content[f"layers/{name}/vars/1"] = np.zeros(bias, np.float32)
    _, zoo = imported(folder, tmp_path)
    state = zoo.layout.unflatten(zoo.weights()[0])
    assert zoo.layout.by_name["conv2d_transpose.weight"].output_axis == 1
    x = torch.randn(1, 4, 7, 6, generator=generator)
    expected = torch.zeros(1, 6, 5, 5)
    for i in range(5):
        for j in range(5):
            expected[:, :, i, j] = torch.einsum("nchw,hwco->no", x[:, :, i : i + 3, j : j + 2], conv)
    torch.testing.assert_close(F.conv2d(x, state["conv2d.weight"]), expected)  # float32, sums reordered
    windows = torch.einsum("nchwij,ijcm->ncmhw", expected.unfold(2, 3, 1).unfold(3, 3, 1), depthwise).flatten(1, 2)
    found = F.conv2d(expected, state["depthwise_conv2d.weight"], groups=6)
    torch.testing.assert_close(found, windows, rtol=1e-4, atol=1e-4)
    one = torch.zeros(1, 12, 1, 1)
    one[0, 3] = 1
    placed = F.conv_transpose2d(one, state["conv2d_transpose.weight"])
    assert placed[0].equal(transposed[..., 3].permute(2, 0, 1))


# --- what is met in real folders --------------------------------------------------------------------------------------


def test_each_damaged_file_is_skipped_with_its_reason(folder, tmp_path):
    module = net()
    state = module.state_dict()
    torch.save(state, folder / "good.pt")
    whole = safetensors.torch.save(state)
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) - 10])
    (folder / "cut.pt").write_bytes((folder / "good.pt").read_bytes()[:300])
    for name in ("zero.pt", "zero.h5", "zero.onnx", "zero.npz", "zero.safetensors"):
        (folder / name).write_bytes(b"")
    torch.save(state | {"0.bias": torch.full((5,), math.nan)}, folder / "nan.pt")
    torch.save(state | {"0.bias": torch.full((5,), math.inf)}, folder / "inf.pt")
    torch.save(state | {"0.weight": torch.zeros(5, 3, dtype=torch.int8)}, folder / "int8.pt")
    torch.save(state | {"0.qweight": torch.zeros(5, dtype=torch.int32)}, folder / "gptq.pt")
    torch.save(state | {"0.weight": torch.zeros(5, 3).to(torch.float8_e4m3fn)}, folder / "float8.pt")
    torch.save(state | {"0.weight": torch.zeros(5, 3, dtype=torch.complex64)}, folder / "complex.pt")
    torch.save({"note": 1}, folder / "empty.pt")
    torch.save({"state": {}}, folder / "optimizer.pt")
    (folder / "llm.gguf").write_bytes(b"GGUF1")
    (folder / "text.pt").write_text("not a file of torch")
    (folder / "text.npz").write_text("not a file of arrays")
    (folder / "text.h5").write_text("not HDF5")
    (folder / "text.onnx").write_bytes(b"\xff\xfe not protobuf")
    (folder / "text.zip").write_bytes(b"PK no archive")
    np.savez(folder / "objects.npz", a=np.array([{}], dtype=object))
    (folder / "gone.pt").symlink_to(folder / "nowhere.pt")
    report, zoo = imported(folder, tmp_path)
    found = reasons(report)
    assert zoo.models == ["good"] and zoo.weights()[0].equal(row(module))
    starts = {
        "cut.safetensors": "truncated or damaged", "cut.pt": "truncated or damaged",
        "nan.pt": "NaN or infinite weights: 5", "inf.pt": "NaN or infinite weights: 5 of 32",
        "int8.pt": "quantised weights: '0.weight' is int8",
        "gptq.pt": "quantised weights: '0.qweight'", "float8.pt": "quantised weights: '0.weight' is float8",
        "complex.pt": "tensor '0.weight' is complex", "empty.pt": "it holds no named tensors",
        "optimizer.pt": "the state of a training run", "llm.gguf": "quantised: GGUF",
        "text.pt": "neither a file of torch", "gone.pt": "it is missing, or a link that leads nowhere",
        "text.npz": "not a readable file of arrays", "text.h5": "not a readable Keras file",
        "text.onnx": "not a readable ONNX file", "text.zip": "a truncated or damaged agent",
        "objects.npz": "not a readable file of arrays",
        **{f"zero.{suffix}": "empty: the file has 0 bytes" for suffix in ("pt", "h5", "onnx", "npz", "safetensors")},
    }  # fmt: skip
    assert {name: reason[: len(starts.get(name, ""))] for name, reason in found.items()} == starts


def test_broken_links_and_missing_shards_are_reported(folder, tmp_path):
    torch.save(net().state_dict(), folder / "good.pt")
    (folder / "gone.pt").symlink_to(folder / "nowhere.pt")
    index = {"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}
    (folder / "big").mkdir()
    (folder / "big/model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "outside").mkdir()
    (folder / "odd").mkdir()
    for name, content in (("a", {"weight_map": {"x": "/etc/hostname"}}), ("b", {"weight_map": [1]}), ("c", [])):
        (folder / f"odd/{name}.safetensors.index.json").write_text(json.dumps(content))
    index["weight_map"]["a.weight"] = "../good.pt"
    (folder / "outside/pytorch_model.bin.index.json").write_text(json.dumps(index))
    report, _ = imported(folder, tmp_path)
    found = reasons(report)
    assert found["gone.pt"] == "it is missing, or a link that leads nowhere"
    assert found["big/model.safetensors.index.json"].startswith("shard 'model-00001-of-00001.safetensors'")
    assert found["odd/a.safetensors.index.json"].startswith("shard '/etc/hostname'")
    assert found["odd/b.safetensors.index.json"] == "b.safetensors.index.json has no weight_map"
    assert found["odd/c.safetensors.index.json"] == "c.safetensors.index.json has no weight_map"
    assert "../good.pt" in found["outside/pytorch_model.bin.index.json"]


@pytest.mark.parametrize(("package", "kind"), [("h5py", "keras"), ("onnx", "onnx")])
def test_a_missing_package_is_named(package, kind, folder, tmp_path, monkeypatch):
    write(kind, net(), folder)
    torch.save(net().state_dict(), folder / "other.pt")
    monkeypatch.setitem(sys.modules, package, None)
    report, zoo = imported(folder, tmp_path)
    (reason,) = reasons(report).values()
    assert reason.endswith(f"files needs {package}: pip install 'weightspace[import]'") and zoo.models == ["other"]


def test_hidden_files_and_linked_folders_are_counted(folder, tmp_path):
    torch.save(net().state_dict(), folder / "a.pt")
    torch.save(net().state_dict(), folder / ".b.pt")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    report, _ = imported(folder, tmp_path)
    assert list(report.notes) == ["files that are no weights left alone: 1 hidden, 1 linked folder"]


def test_half_precision_is_kept_and_mixed_is_widened(folder, tmp_path):
    state = net().state_dict()
    torch.save({k: v.half() for k, v in state.items()}, folder / "a.pt")
    torch.save({k: v.bfloat16() for k, v in state.items()}, folder / "b.pt")
    torch.save({k: v.double() for k, v in state.items()}, folder / "c.pt")
    torch.save(state | {"0.bias": state["0.bias"].half()}, folder / "d.pt")
    report, zoo = imported(folder, tmp_path)
    rows = dict(zip(zoo.table["model"], zoo.weights(), strict=True))
    assert rows["a"].equal(row(net()).half().float()) and rows["b"].equal(row(net()).bfloat16().float())
    assert rows["c"].equal(row(net())) and len(report.layouts) == 1
    stored = {safetensors.torch.load_file(f)["rows"].dtype for f in (tmp_path / "zoo/weights").iterdir()}
    assert stored == {torch.float16, torch.bfloat16, torch.float32}
    notes = {
        "kept in float16",
        "kept in bfloat16",
        "float64 rounded to float32",
        "float16 and float32 mixed: stored as float32",
    }
    assert notes <= set(report.notes)


def test_several_architectures_are_several_layouts(folder, tmp_path):
    for width in (4, 5):
        for seed in range(2):
            torch.save(net(seed, width).state_dict(), folder / f"w{width}-{seed}.pt")
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    torch.save(conv.state_dict(), folder / "conv.pt")
    reordered = dict(reversed(net(7, 4).state_dict().items()))
    torch.save(reordered, folder / "w4-7.pt")
    report, zoo = imported(folder, tmp_path)
    assert sorted((x.parameters, x.checkpoints) for x in report.layouts) == [(26, 3), (28, 1), (32, 2)]
    for digest in zoo.table["layout"].unique():
        part = zoo.where(pl.col("layout") == digest)
        if part.layout.parameters == 26:
            weights = dict(zip(part.table["model"], part.weights(), strict=True))
            assert weights["w4-7"].equal(row(net(7, 4)))  # the order of names in a file does not matter
    assert report.notes["integer counters and tables left out: #.num_batches_tracked"] == 1


def test_tied_tensors_are_taken_once(folder, tmp_path):
    module = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    module["head"].weight = module["embed"].weight
    torch.save(module.state_dict(), folder / "tied.pt")
    report, zoo = imported(folder, tmp_path)
    assert list(zoo.layout.by_name) == ["embed.weight"] and report.notes["tied tensors taken once: head.weight"] == 1


def test_order_of_layers_in_sorted_files(folder, tmp_path):
    """safetensors sorts names: 10 before 2, classifier before features."""
    deep = {
        f"{i}.{key}": torch.full(shape, float(i))
        for i in range(12)
        for key, shape in (("weight", (3, 3)), ("bias", (3,)))
    }
    safetensors.torch.save_file(deep, folder / "deep.safetensors")
    vgg = {"features.0.weight": torch.zeros(4, 1, 3, 3), "classifier.0.weight": torch.zeros(5, 36),
           "classifier.2.weight": torch.zeros(2, 5)}  # fmt: skip
    safetensors.torch.save_file(vgg, folder / "vgg.safetensors")
    _, zoo = imported(folder, tmp_path)
    names = {tensors[0]["name"]: [t["name"] for t in tensors] for tensors in zoo.header["layouts"].values()}
    assert names["0.weight"] == list(deep) and names["features.0.weight"] == list(vgg)


def test_runs_and_steps_are_in_the_names(folder, tmp_path):
    for run in ("seed0", "seed1"):
        for step in (500, 1000):
            (folder / run / f"checkpoint-{step}").mkdir(parents=True)
            safetensors.torch.save_file(net(step).state_dict(), folder / run / f"checkpoint-{step}/model.safetensors")
    torch.save(net(1).state_dict(), folder / "seed1/checkpoint-500/pytorch_model.bin")
    torch.save(net(2).state_dict(), folder / "small_epoch=3-step=40.ckpt")
    report, zoo = imported(folder, tmp_path)
    keys = set(zoo.table.select("model", "step").iter_rows())
    assert keys == {("seed0", 500), ("seed0", 1000), ("seed1", 500), ("seed1", 1000), ("small", 3)}
    second, first = "seed1/checkpoint-500/pytorch_model.bin", "seed1/checkpoint-500/model.safetensors"
    assert reasons(report) == {second: f"same model and step as {first}: 'seed1', step 500"}


def test_one_run_alone_is_one_model(folder, tmp_path):
    for step in (1, 2):
        (folder / f"checkpoint-{step}").mkdir()
        torch.save(net(step).state_dict(), folder / f"checkpoint-{step}/model.pt")
    _, zoo = imported(folder, tmp_path)
    assert zoo.models == ["runs"] and zoo.table["step"].to_list() == [1, 2]


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(folder):
    for place in range(4):
        torch.save(net(place).state_dict(), folder / f"net{place}.pt")
    return folder


def test_labels_are_joined_by_name(four, tmp_path):
    files = ["net2.pt", "net0.pt", "net1.pt", "net9.pt"]
    table = pl.DataFrame({"note": ["x", "y", "z", "w"], "file": files, "reward": [2.0, 0.0, 1.0, 9.0],
                          "lr": [0.2, 0.0, 0.1, 0.9], "metric.f1": [1, 2, 3, 4]})  # fmt: skip
    table.write_csv(tmp_path / "labels.csv")
    report, zoo = imported(four, tmp_path, labels=tmp_path / "labels.csv")
    found = {row["model"]: row for row in zoo.table.iter_rows(named=True)}
    assert [found[f"net{i}"]["metric.reward"] for i in range(4)] == [0.0, 1.0, 2.0, None]
    assert [found[f"net{i}"]["config.learning_rate"] for i in range(4)] == [0.0, 0.1, 0.2, None]
    assert found["net1"]["config.note"] == "z" and found["net2"]["metric.f1"] == 1
    assert {k: v for k, v in report.notes.items() if "label" in k} == {
        "labels joined by column 'file'": 3,
        "labels: no line for the checkpoint": 1,
        "labels: lines that name no checkpoint": 1,
    }
    assert all(w.equal(row(net(int(m[-1])))) for m, w in zip(zoo.table["model"], zoo.weights(), strict=True))


def test_labels_can_say_which_run_a_file_is_of(four, tmp_path):
    """So that two checkpoints of one run never stand on two sides of a split."""
    table = pl.DataFrame({"file": [f"net{i}" for i in range(4)], "model": ["a", "a", "b", "b"], "step": [0, 5, 0, 5]})
    table.write_csv(tmp_path / "labels.csv")
    report, zoo = imported(four, tmp_path, labels=tmp_path / "labels.csv")
    assert sorted(zoo.table.select("model", "step").iter_rows()) == [("a", 0), ("a", 5), ("b", 0), ("b", 5)]
    table.with_columns(step=pl.lit(0)).write_csv(tmp_path / "labels.csv")
    with pytest.raises(ZooError, match="two checkpoints the model 'a' and step 0"):
        import_zoo(four, tmp_path / "twice", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "twice").exists() and report.checkpoints == 4


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("name,reward\na,1\nb,2\n", r"no column of .*labels\.csv \(name, reward\) names the checkpoints: .*'net0'"),
        ("name,reward\nnet0,1\nnet0,2\n", "names 'net0' in two lines"),
        ("name,reward\n", "has no lines"),
        ("", "not a readable CSV"),
    ],
)
def test_labels_that_fit_nothing_are_refused(four, tmp_path, lines, sentence):
    (tmp_path / "labels.csv").write_text(lines)
    with pytest.raises(ZooError, match=sentence):
        import_zoo(four, tmp_path / "zoo", labels=tmp_path / "labels.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "runs"]


# --- the import itself -----------------------------------------------------------------------------------------------


def test_sources_that_are_none(folder, tmp_path):
    with pytest.raises(ZooError, match="there is no"):
        import_zoo(tmp_path / "nothing", tmp_path / "zoo")
    with pytest.raises(ZooError, match="looks like none of the known formats"):
        import_zoo(folder, tmp_path / "zoo")
    torch.save(net().state_dict(), folder / "a.pt")
    with pytest.raises(UnknownName, match="did you mean 'files'"):
        import_zoo(folder, tmp_path / "zoo", format="file")
    import_zoo(folder, tmp_path / "zoo")
    with pytest.raises(ZooError, match="is a zoo already"):
        import_zoo(tmp_path / "zoo", tmp_path / "again")
    with pytest.raises(ZooError, match="exists already"):
        import_zoo(folder, tmp_path / "zoo")


def test_equal_folders_give_equal_zoos(four, tmp_path):
    first, second = (imported(four, tmp_path / name)[1] for name in ("x", "y"))
    assert first.digest == second.digest and first.table.equals(second.table)


def test_memory_does_not_grow_with_the_folder(folder, tmp_path, monkeypatch):
    """Rows that wait are bounded over all layouts together; the fullest layout is written first."""
    from weightspace.zoo.importers import write

    for place in range(12):
        torch.save(net(place, hidden=4 + place % 3).state_dict(), folder / f"{place:02d}.pt")
    monkeypatch.setattr(write, "BUFFER_VALUES", 100)
    waiting = []
    keep = write._GrowingZoo._keep

    def watched(self, *arguments):
        keep(self, *arguments)
        waiting.append(self._sizes.total())

    monkeypatch.setattr(write._GrowingZoo, "_keep", watched)
    report, zoo = imported(folder, tmp_path)
    assert max(waiting) <= 100 and len(list((tmp_path / "zoo/weights").iterdir())) > 3
    assert report.checkpoints == 12 == len(zoo)


SLOW_IMPORT = """
import sys, time
from weightspace.zoo.importers import write
from weightspace.zoo import import_zoo
add = write._GrowingZoo.add
write.BUFFER_VALUES = 1
def slow(self, item):
    add(self, item)
    print("one", flush=True)
    time.sleep(0.2)
write._GrowingZoo.add = slow
import_zoo(sys.argv[1], sys.argv[2])
"""


def test_a_killed_import_leaves_no_zoo(four, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, str(four), str(tmp_path / "zoo")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "zoo").exists()
    report, zoo = imported(four, tmp_path)  # and the next one is not in its way
    assert report.checkpoints == 4 and len(zoo) == 4
