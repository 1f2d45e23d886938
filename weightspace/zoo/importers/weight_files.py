"""Files of weights: one reader a suffix, sharded Hugging Face checkpoints, and any folder of them.

The folder reader takes every file whose suffix it knows, whatever the architectures; what a run's other files say of a
checkpoint (metrics, hyper-parameters) is added by the importers of those formats, through `describe`.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightspace.errors import MissingExtra
from weightspace.zoo.importers.found import (
    Checkpoint,
    Found,
    Item,
    Plain,
    Skipped,
    Unreadable,
    configuration,
    read_json_file,
    step_in,
)
from weightspace.zoo.importers.keras import read_keras
from weightspace.zoo.importers.onnx import read_onnx
from weightspace.zoo.importers.stable_baselines import read_agent
from weightspace.zoo.importers.states import FileContent, state_in, step_of
from weightspace.zoo.importers.torch_file import load
from weightspace.zoo.importers.torch_order import forward_order, in_torch_order

ORDER = "tensors"
"""Key of a safetensors file's metadata with the names in the network's order, a line each."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the files around a checkpoint say of it; what is left out is taken from its path."""

    model: str | None = None
    step: int | None = None
    columns: Mapping[str, Plain] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Describe = Callable[[Path, FileContent], Description]


def read_folder(source: Path, describe: Describe | None = None) -> Found:
    """Every file of weights in a folder and below, or one file.

    Args:
        describe: What is known of a file besides; of its path and content nothing more by default.
    """
    root = source.parent if source.is_file() else source
    left_alone: Counter[str] = Counter()
    files = []
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            left_alone["hidden"] += not path.is_dir()
        elif not path.is_dir():
            files.append(path)
        elif path.is_symlink():
            left_alone["linked folder"] += 1
    left_alone += Counter()  # without what is counted 0 times
    shards = {shard for file in files if _INDEX.search(file.name) for shard in _shards(file)}
    weights = []
    for file in files:
        if is_weight_file(file) and file not in shards:
            weights.append(file)
        elif file not in shards:
            left_alone[file.suffix or file.name] += 1
    notes = [
        f"files that are no weights left alone: {', '.join(f'{n} {kind}' for kind, n in left_alone.most_common())}"
    ]
    common = _common(weights, root)
    items = (_checkpoint(file, root, common, describe) for file in weights)
    return Found(items=items, notes=tuple(notes if left_alone else []), count=len(weights))


def is_weight_file(file: Path) -> bool:
    """Whether the name is that of a file with weights, readable or not."""
    if file.name.endswith(".index.json"):
        return bool(_INDEX.search(file.name))
    return file.suffix.lower() in READERS or file.suffix.lower() in _REFUSED


def read_file(file: Path) -> FileContent:
    """The tensors of one file of weights, and what the file itself says of the run.

    Raises:
        Unreadable: The file is empty, damaged, unsafe or of a kind that is not read.
        MissingExtra: A package is missing that this kind of file needs.
    """
    suffix = file.suffix.lower()
    if not file.exists():
        raise Unreadable("it is missing, or a link that leads nowhere")
    if not file.stat().st_size:
        raise Unreadable("empty: the file has 0 bytes")
    if _NO_NETWORK.match(file.stem.lower()):
        raise Unreadable("the state of a training run, not a network")
    if file.name.endswith(".index.json"):
        return _read_sharded(file)
    if suffix in _REFUSED:
        raise Unreadable(_REFUSED[suffix])
    if suffix not in READERS:
        raise Unreadable(f"files called {file.suffix or file.name} are not read")
    return READERS[suffix](file)


def read_torch(file: Path) -> FileContent:
    """A file of `torch.save`: a state dict, something with one inside, a module, or a checkpoint of Lightning."""
    content = load(file)
    columns: dict[str, Plain] = {}
    if isinstance(content, Mapping):
        for key in ("hyper_parameters", "hparams", "config", "args"):
            value = content.get(key)
            attributes = getattr(value, "attributes", value)
            if isinstance(attributes, Mapping):
                columns |= configuration(attributes)
    return FileContent(state=state_in(content), step=step_of(content), columns=columns)


def _read_safetensors(file: Path) -> FileContent:
    try:
        with safe_open(file, framework="pt") as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            order = (content.metadata() or {}).get(ORDER)
    except (SafetensorError, OSError) as error:
        raise Unreadable(f"truncated or damaged: {error}") from error
    turned, notes = in_torch_order(state)
    return FileContent(state=_ordered(turned, order), notes=notes)


def _ordered(state: Mapping[str, Tensor], order: str | None) -> dict[str, Tensor]:
    """The network's own order if the file says it: safetensors sorts names."""
    names = order.split("\n") if order else []
    if set(names) != state.keys():
        names = forward_order({name: tuple(value.shape) for name, value in state.items()})
    return {name: state[name] for name in names}


def _read_npz(file: Path) -> FileContent:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise Unreadable(f"not a readable file of arrays: {error}") from error
    if not arrays:
        raise Unreadable("it holds no arrays")
    state = {
        name: torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        for name, value in arrays.items()
        if value.dtype.kind in "fiub"
    }
    named, notes = _numbered_layers(state)
    turned, more = in_torch_order(named)
    return FileContent(state=turned, notes=(*notes, *more))


def _numbered_layers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`W0, b0, …`, `coefs_0, intercepts_0, …` or `arr_0, arr_1, …` as `0.weight, 0.bias, …`, outputs first.

    Matrices have inputs first there if their biases, or the sizes of the next matrix, say so.
    """
    named: dict[str, Tensor] = {}
    names = list(state)
    positional = all(re.fullmatch(r"arr_\d+", name) for name in names)
    for place, name in enumerate(names):
        key, number = ("weight" if state[name].ndim > 1 else "bias", place // 2) if positional else _numbered(name)
        if number is None or f"{number}.{key}" in named:
            return dict(state), ()
        named[f"{number}.{key}"] = state[name]
    matrices = {n: x for n, x in named.items() if n.endswith("weight") and x.ndim == 2}
    biases = {n: named.get(n.replace("weight", "bias")) for n in matrices}
    rows, columns = (
        sum(b is not None and len(b) == matrices[n].shape[side] for n, b in biases.items()) for side in (0, 1)
    )
    if columns <= rows:
        return named, ()
    return {n: x.T if n in matrices else x for n, x in named.items()}, (
        "matrices turned from inputs first to PyTorch's order",
    )


def _numbered(name: str) -> tuple[str, int | None]:
    for key, words in (("weight", r"w|weights?|coefs?|kernels?"), ("bias", r"b|bias(?:es)?|intercepts?")):
        if match := re.fullmatch(rf"_?(?:{words})_?[._]?(\d+)", name, re.IGNORECASE):
            return key, int(match[1])
    return "", None


def _read_sharded(index: Path) -> FileContent:
    """All shards that an index of the Hugging Face format lists, as one network."""
    table = read_json_file(index)
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places:
        raise Unreadable(f"{index.name} has no weight_map")
    state: dict[str, Tensor] = {}
    for name in dict.fromkeys(places.values()):
        shard = index.parent / str(name)
        if Path(str(name)).name != str(name) or not shard.is_file():
            raise Unreadable(f"shard {name!r} of {index.name} is missing")
        try:
            state |= read_file(shard).state
        except Unreadable as error:
            raise Unreadable(f"shard {name}: {error}") from error
    if missing := [name for name in places if name not in state]:
        raise Unreadable(f"{index.name} lists {missing[0]!r}, which no shard holds ({len(missing)} such tensors)")
    order = forward_order({name: tuple(state[name].shape) for name in places})
    return FileContent(state={name: state[name] for name in order}, notes=("shards joined",))


def _shards(index: Path) -> set[Path]:
    """The files beside an index that it names; they are read through it."""
    try:
        table = read_json_file(index)
    except Unreadable:
        return set()
    places = table.get("weight_map") if isinstance(table, dict) else None
    names = set(map(str, places.values())) if isinstance(places, dict) else set()
    return {index.with_name(name) for name in names if name and Path(name).name == name}


def _common(files: list[Path], root: Path) -> Path:
    """The deepest folder with all files in it: the part of their paths that tells nothing apart."""
    folders = [file.parent.relative_to(root).parts for file in files]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1 or step_in(Path(parts[0]))[1] is not None:
            break
        shared.append(parts[0])
    return root.joinpath(*shared)


def _checkpoint(file: Path, root: Path, common: Path, describe: Describe | None) -> Item:
    source = file.relative_to(root).as_posix()
    try:
        content = read_file(file)
        said = describe(file, content) if describe else Description()
    except (Unreadable, MissingExtra) as error:
        return Skipped(source=source, reason=str(error))
    name = _without_suffix(file.relative_to(common))
    model, step = step_in(name) if name.parts else ("", None)
    step = step if step is not None else content.step
    return Checkpoint(
        source=source,
        model=said.model or model or common.name,
        step=said.step if said.step is not None else step or 0,
        state=content.state,
        columns={**content.columns, **said.columns},
        notes=(*content.notes, *said.notes),
    )


def _without_suffix(path: Path) -> Path:
    """Also without the name that every checkpoint of a library has, if the folder names the network."""
    name = path.name.removesuffix(".index.json")
    stem = re.sub(r"(\.weights)?(\.pth)?\.\w+$", "", name)
    if stem.lower() in _USUAL:
        return path.parent
    return path.with_name(stem)


READERS: dict[str, Callable[[Path], FileContent]] = {
    ".safetensors": _read_safetensors,
    ".pt": read_torch, ".pth": read_torch, ".ckpt": read_torch, ".bin": read_torch, ".tar": read_torch,
    ".pkl": read_torch,
    ".npz": _read_npz,
    ".h5": read_keras, ".hdf5": read_keras, ".keras": read_keras,
    ".onnx": read_onnx,
    ".zip": read_agent,
}  # fmt: skip
"""Suffixes of files with weights, and how they are read."""
_REFUSED = {
    ".gguf": "quantised: GGUF files are not read; convert the network to safetensors",
    ".tflite": "TensorFlow Lite files are not read; convert the network to Keras or ONNX",
    ".pb": "TensorFlow graphs are not read; save the network as Keras or ONNX",
    ".msgpack": "Flax files of msgpack are not read; save the parameters as safetensors or .npz",
}
_INDEX = re.compile(r"\.(safetensors|bin)\.index\.json$")
_NO_NETWORK = re.compile(
    r"(optimi[sz]er|optim|scheduler|scaler|rng_state(_\d+)?|training_args|trainer_state|evaluations)$"
)
_USUAL = {"model", "pytorch_model", "checkpoint", "checkpoints", "weights", "state_dict", "best_model", "adapter_model"}
