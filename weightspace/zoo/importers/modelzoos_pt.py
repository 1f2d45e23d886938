"""Preprocessed Model Zoos (Schürholt et al., 2021, 2022): a `.pt` file of three pickled data sets, one a split.

The pickles are of classes of their authors' package (`ModelDatasetBase`, `SimCLRDataset`), which is not needed: their
attributes are read from inert records. Entries are state dicts, or vectors whose layers `index_dict.json` lists:
weights, then biases, layer by layer. Of that file only sizes are used; where a published one states a wrong start, the
sizes still add up.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace import networks
from weightspace.errors import ZooError
from weightspace.networks.inference import layout_from_shapes
from weightspace.networks.layout import Layout
from weightspace.zoo.importers.found import (
    Checkpoint,
    Found,
    Item,
    Plain,
    Skipped,
    Unreadable,
    configuration,
    finite,
    metrics,
    read_json_file,
)
from weightspace.zoo.importers.ray import counted_layers, known_network
from weightspace.zoo.importers.restricted_pickle import Record
from weightspace.zoo.importers.states import state_in
from weightspace.zoo.importers.torch_file import load, mentions

_CLASSES = (b"ModelDatasetBase", b"SimCLRDataset", b"checkpoints_to_datasets")
_SPLITS = {"trainset": "train", "valset": "validation", "testset": "test"}
_SETTING = re.compile(r"::|^(nlin|init_type|optimizer|dropout|lr|wd|seed|batchsize)$")
_SETTING_NAMES = {"nlin": "activation", "init_type": "init", "batchsize": "batch_size"}


def detect(source: Path) -> bool:
    """Whether a `.pt` file is of one of the classes of preprocessed zoos."""
    return any(mentions(file, _CLASSES) for file in _files(source))


def read(source: Path) -> Found:
    """Every entry of every data set, with the published split in the column `published_split`.

    Raises:
        ZooError: No file is of this format, or the index is no index.
    """
    files = [file for file in _files(source) if mentions(file, _CLASSES)]
    if not files:
        raise ZooError(f"{source} has no preprocessed .pt file of the Model Zoos")
    index = (source if source.is_dir() else source.parent) / "index_dict.json"
    layout, notes = _indexed_layout(index) if index.is_file() else (None, ())
    header: dict[str, Any] = {}
    if layout is not None and (network := known_network(layout)):
        header["network"] = networks.to_json(network)
    items = (item for file in files for item in _items(file, layout))
    return Found(items=items, header=header, notes=notes)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in (".pt", ".pth") else []
    return sorted(source.glob("*.pt"))


def _indexed_layout(file: Path) -> tuple[Layout, tuple[str, ...]]:
    """The layout that an index describes, from the sizes of its layers."""
    try:
        index = read_json_file(file)
        shapes: dict[str, tuple[int, ...]] = {}
        starts, counts = [0], {"conv": 0, "fc": 0}
        columns = [index[key] for key in ("layer", "idx_length", "kernel_no", "kernel_size", "channels_in")]
        for (_, kind), length, outputs, area, inputs in zip(*columns, strict=True):
            name = "conv" if kind.startswith("conv") else "fc"
            counts[name] += 1
            side = math.isqrt(area)
            shape = (outputs, inputs, side, side) if name == "conv" else (outputs, inputs)
            shapes[f"{name}{counts[name]}.weight"] = shape
            if length - math.prod(shape) not in (0, outputs):
                raise ValueError(f"layer {name}{counts[name]} has {length} values for a weight of {shape}")
            if length > math.prod(shape):
                shapes[f"{name}{counts[name]}.bias"] = (outputs,)
            starts.append(starts[-1] + length)
    except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ZooError(f"{file} is not an index of a preprocessed zoo: {error}") from error
    stated = index.get("idx_start", starts[:-1])
    notes = ("index_dict.json states wrong starts; its lengths were used",) if list(stated) != starts[:-1] else ()
    return layout_from_shapes(shapes), notes


def _items(file: Path, layout: Layout | None) -> Iterator[Item]:
    try:
        content = load(file)
    except Unreadable as error:
        yield Skipped(source=file.name, reason=str(error))
        return
    sets = content if isinstance(content, Mapping) else {"": content}
    for name, dataset in sets.items():
        where = f"{file.name}/{name}" if name else file.name
        if not isinstance(dataset, Record) or not isinstance(dataset.attributes.get("data_in"), Sequence):
            yield Skipped(source=where, reason="no data set of checkpoints: it has no data_in")
            continue
        split = _SPLITS.get(str(name), str(name) or None)
        yield from _entries(dataset.attributes, where, split, layout)


def _entries(dataset: Mapping[str, Any], where: str, split: str | None, layout: Layout | None) -> Iterator[Item]:
    entries = dataset["data_in"]
    properties = dataset.get("properties") or {}
    paths, epochs = dataset.get("paths") or [], dataset.get("epochs") or []
    aligned = {key: values for key, values in properties.items() if _length(values) == len(entries)}
    for key in sorted(properties.keys() - aligned.keys()):
        reason = f"the property has {_length(properties[key])} values for {len(entries)} checkpoints: not taken"
        yield Skipped(source=f"{where}/{key}", reason=reason)
    for place, entry in enumerate(entries):
        source = f"{where}[{place}]"
        values = {key: aligned[key][place] for key in aligned}
        step = epochs[place] if _length(epochs) == len(entries) else values.get("training_iteration", 0)
        named = _length(paths) == len(entries)
        try:
            state, notes = _state(entry, layout)
        except Unreadable as error:
            yield Skipped(source=source, reason=str(error))
            continue
        yield Checkpoint(
            source=source,
            model=_model(str(paths[place])) if named else f"{split or 'model'}-{place:05d}",
            step=int(step) if finite(step) else 0,
            state=state,
            columns=_columns(values) | ({"published_split": split} if split else {}),
            notes=notes if named else (*notes, "the file names no models: every checkpoint is one"),
        )


def _columns(values: Mapping[str, Any]) -> dict[str, Plain]:
    settings = {_SETTING_NAMES.get(k, k): v for k, v in values.items() if _SETTING.search(k)}
    measured = {k: v for k, v in values.items() if not _SETTING.search(k) and k != "training_iteration"}
    return configuration(settings) | metrics(measured)


def _model(path: str) -> str:
    """The model's folder: the path without the checkpoint's own folder and file."""
    parts = [p for p in PurePosixPath(path.replace("\\", "/")).parts if p not in ("/", "checkpoints")]
    while len(parts) > 1 and re.fullmatch(r"checkpoint_\d+", parts[-1]):
        parts.pop()
    return parts[-1] if parts else path


def _state(entry: Any, layout: Layout | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if isinstance(entry, Mapping | Record):
        state, renamed = counted_layers(state_in(entry))
        return state, ("layers of module_list counted anew",) if renamed else ()
    if isinstance(entry, np.ndarray):
        entry = torch.from_numpy(entry)
    if not isinstance(entry, Tensor) or not entry.is_floating_point():
        raise Unreadable(f"neither a state dict nor a vector of weights: {type(entry).__name__}")
    vector = entry.reshape(-1)
    layout = layout or _published(len(vector))
    if layout is None:
        raise Unreadable(f"a vector of {len(vector)} values, and no index_dict.json that says what they are")
    if len(vector) != layout.parameters:
        raise Unreadable(
            f"wrong length: a vector of {len(vector)} values, its layout has {layout.parameters}; the published reader "
            "truncates models with dropout"
        )
    return layout.unflatten(vector), ()


def _published(length: int) -> Layout | None:
    """The layout of the published CNN with so many parameters."""
    for name, shape in (("cnn_s", (1, 28, 28)), ("cnn_s", (3, 28, 28)), ("cnn_l", (3, 32, 32))):
        layout = Layout.of(networks.by_name(name, shape, 10).build())
        if layout.parameters == length:
            return layout
    return None


def _length(values: Any) -> int:
    return len(values) if isinstance(values, Sequence | np.ndarray | Tensor) else -1
