"""Files of torch.save are read as torch reads them, and nothing in a file is ever executed."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.zoo.importers.found import Unreadable
from weightspace.zoo.importers.restricted_pickle import Record, UnsafeFile, Unsupported
from weightspace.zoo.importers.states import state_in
from weightspace.zoo.importers.torch_file import load

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def same(a, b) -> None:
    """Equal in structure and values, NaN included."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        flat = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        assert flat[0].equal(flat[1])
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


@st.composite
def contents(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    state = OrderedDict()
    for place in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        value = (100 * torch.randn(shape, generator=generator)).to(draw(st.sampled_from(DTYPES)))
        state[f"{place}.weight"] = value.T if value.ndim == 2 and draw(st.booleans()) else value
    return {"state": state, "epoch": draw(st.integers(-5, 2**70)), "names": draw(st.lists(st.text(max_size=3))),
            "rate": draw(st.floats(allow_nan=False))}  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(contents(), st.booleans())
def test_the_same_as_torch_reads(content, zipped):
    data = saved(content, _use_new_zipfile_serialization=zipped)
    same(load(data), torch.load(io.BytesIO(data), weights_only=True))


def test_a_file_is_mapped_and_stays_as_it_is(tmp_path):
    state = {"a": torch.randn(30, 40), "shared": torch.arange(5.0)}
    state["view"] = state["shared"][1:4]
    torch.save(state, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    found = load(tmp_path / "state.pt")
    same(found, state)
    assert found["view"].untyped_storage().data_ptr() != 0
    found["a"].zero_()
    assert (tmp_path / "state.pt").read_bytes() == before


def test_arrays_and_plain_objects():
    content = {
        "array": np.arange(6.0).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">f4"), "number": np.float64(0.5), "path": Path("a/b"), "set": {1, 2},
        "bytes": b"\x00\xff", "counts": defaultdict(int, a=1), "parameter": nn.Parameter(torch.ones(2)),
        "complex": 1 + 2j,
    }  # fmt: skip
    for data in (saved(content), *(pickle.dumps({"array": content["array"]}, p) for p in range(2, 6))):
        found = load(data)
        for key in found.keys() - {"path", "parameter", "counts"}:
            np.testing.assert_array_equal(found[key], content[key])
    found = load(saved(content))
    assert found["path"] == PurePosixPath("a/b") and found["counts"] == {"a": 1}
    assert found["parameter"].equal(torch.ones(2))


class Settings:
    """A class that a reader does not have."""

    def __init__(self):
        self.lr, self.layers = 0.1, [1, 2]

    def __setstate__(self, state):
        raise AssertionError("a method of a stored class was called")


class Bag(dict):
    """A kind of dictionary that a reader does not have."""


def test_instances_become_inert_records():
    bag = Bag(a=1)
    bag.note = "x"
    found = load(
        saved({"settings": Settings(), "bag": bag, "arguments": Namespace(lr=1), "when": datetime(2020, 1, 1)})
    )
    settings_record = found["settings"]
    assert isinstance(settings_record, Record) and settings_record.origin.endswith("Settings")
    assert settings_record.attributes == {"lr": 0.1, "layers": [1, 2]}
    assert found["bag"].attributes == {"a": 1, "note": "x"}
    assert found["arguments"].attributes == {"lr": 1}
    assert isinstance(found["when"], Record)
    assert not hasattr(settings_record, "__dict__") or "lr" not in vars(settings_record)


def test_a_whole_module_is_read_without_its_class():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module[0].register_buffer("transient", torch.zeros(1), persistent=False)
    same(state_in(load(saved(module))), dict(module.state_dict()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_read_without_running_it(tmp_path):
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    torch.jit.script(module).save(tmp_path / "script.pt")
    same(state_in(load(tmp_path / "script.pt")), dict(module.state_dict()))


# --- files that would execute code -----------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(canary: Path) -> dict[str, object]:
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    return {
        "posix.system": Calls(os.system, touch),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(canary)]),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.getattr": Calls(getattr, os, "system"),
        "builtins.open": Calls(open, str(canary), "w"),
        "pathlib.Path.touch": Calls(Path.touch, canary),
        "torch.hub.load": Calls(torch.hub.load, "a/b", "c"),
        "numpy.load": Calls(np.load, str(canary)),
    }


@pytest.mark.parametrize("kind", hostile(Path("canary")))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_are_refused_by_name_and_not_made(tmp_path, kind, protocol):
    canary = tmp_path / "canary"
    payload = {"weight": [hostile(canary)[kind]]}
    if kind == "builtins.getattr":
        payload = {"weight": [Calls(getattr, "text", "upper")]}  # a module cannot be pickled
    named = "(touch|getattr)" if "Path" in kind else kind.rpartition(".")[2]  # older protocols get methods that way
    files = [pickle.dumps(payload, protocol)]
    files += [saved(payload, pickle_protocol=max(2, protocol), _use_new_zipfile_serialization=z) for z in (True, False)]
    for data in files:
        if not data.startswith((b"\x80", b"PK")):
            with pytest.raises(Unreadable, match="neither"):
                load(data)
            continue
        with pytest.raises(UnsafeFile, match=rf"would execute code: unpickling calls .*{named}; nothing of it was run"):
            load(data)
    assert not canary.exists()


def test_the_payloads_are_live(tmp_path):
    """The control: the standard unpickler does execute them."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(hostile(canary)["posix.system"]))
    assert canary.exists()


RAW = {
    "a function is changed": b"\x80\x02ccollections\nOrderedDict\n}X\x06\x00\x00\x00_buildK\x01s\x86b.",
    "instance by the old opcode": b"\x80\x02(S'touch x'\nios\nsystem\n.",
    "object by the old opcode": b"\x80\x02(cos\nsystem\nX\x07\x00\x00\x00touch xo.",
    "a dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93\x8c\x01x\x85R.",
    "a class is changed": b"\x80\x02csome.package\nThing\n}X\x01\x00\x00\x00aK\x01sb.",
    "extension registry": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("kind", RAW)
def test_hand_made_pickles_do_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    try:
        content = load(RAW[kind])
    except Unreadable:
        content = None
    assert content is None or isinstance(content, Record)
    assert not list(tmp_path.iterdir()) and set(sys.modules) == modules
    assert load(saved(OrderedDict(a=torch.ones(1))))["a"].item() == 1  # the reader is as it was


def test_a_dtype_that_everybody_shares_cannot_be_changed():
    state = b"(K\x03X\x01\x00\x00\x00>NNNK\x02K\x02K\x00t"
    load(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R" + state + b"b.")
    assert np.dtype("f4").itemsize == 4 and np.dtype("f4").isnative


def test_no_module_is_imported():
    name = "antigravity"
    assert name not in sys.modules
    content = load(f"\x80\x02c{name}\nfly\n.".encode("latin1"))
    assert name not in sys.modules and content.origin == "antigravity.fly"


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_at_every_length(zipped):
    data = saved({"weight": torch.randn(7, 5), "more": torch.randn(3)}, _use_new_zipfile_serialization=zipped)
    for length in range(0, len(data) - 1, 37):
        with pytest.raises(Unreadable):
            load(data[:length])


def test_a_tensor_beyond_its_storage_is_refused():
    zipped = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(4)}))) as old, zipfile.ZipFile(zipped, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"K\x04\x85", b"K\xc8\x85")  # its size, 4, becomes 200
            new.writestr(entry, data)
    with pytest.raises(Unreadable, match="damaged: a tensor reaches value 199 of a storage of 4"):
        load(zipped.getvalue())


def test_other_files_are_named():
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(Unreadable, match=r"zip archive, but not one of torch\.save"):
        load(zipped.getvalue())
    with pytest.raises(Unreadable, match=r"neither a file of torch\.save nor a pickle"):
        load(b"GGUF and more")
    with pytest.raises(Unreadable, match="Python objects"):
        load(pickle.dumps(np.array([object], dtype=object)))


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_sparse_tensors_are_marked():
    quantised = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    found = load(saved({"q": quantised, "s": torch.eye(2).to_sparse()}))
    assert (found["q"].kind, found["s"].kind) == ("quantised", "sparse")
    assert isinstance(found["q"], Unsupported)
