"""Preprocessed data of SANE (Schürholt et al., 2024): networks as standardised tokens, turned back into rows.

    dataset_torch.<split>/sample_<i>.pt      {w: tokens, m: mask, p: positions, props}: a network, or a window of one
    dataset_<split>.pt                       or a pickled `DatasetTokens`: whole networks, one of them also by names
    dataset_info_<split>.json                number of networks, epochs, names of the properties, largest positions
    dataset_normalization_<split>.json       {layer: {mean, std} or {min, max}, mode}

A position is (token, layer, output channel). The tokens of a channel follow each other, its bias is the last value
before the padding. Shapes are those of the pickled network, or of the published one whose layers have as many channels
of the same length; otherwise a layer stays the matrix `[outputs, values of a channel]`.

Axes: t token, w value in token, p parameter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace import networks
from weightspace.errors import ZooError
from weightspace.networks.inference import layout_from_shapes
from weightspace.networks.layout import Layout
from weightspace.zoo.importers.found import (
    Block,
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

Shapes = Mapping[str, tuple[int, ...]]
_CLASS = (b"DatasetTokens",)
_SPLITS = {"val": "validation"}
_NORM = re.compile(r"bn|downsample\.1|batchnorm")
"""In names of layers that the published preprocessing leaves out when told to ignore batch normalisation."""
_AFFINE = {"standardize": ("std", "mean"), "minmax": ("max", "min")}
"""Normalisations that can be undone, and what is stored of a layer."""


def detect(source: Path) -> bool:
    """Whether there is a split in one of the two forms."""
    return bool(_splits(source))


def read(source: Path) -> Found:
    """Every network of every split, with the published split in the column `published_split`.

    Raises:
        ZooError: There is no split.
    """
    splits = _splits(source)
    if not splits:
        raise ZooError(f"{source} has neither a folder dataset_torch.<split> nor a dataset_<split>.pt of tokens")
    items = chain.from_iterable(_items(split, place) for split, place in splits.items())
    before: list[Item] = []
    for item in items:
        before.append(item)
        if isinstance(item, Block):
            break
    network = known_network(before[-1].layout) if before and isinstance(before[-1], Block) else None
    header = {"network": networks.to_json(network)} if network else {}
    return Found(items=chain(before, items), header=header)


def _splits(source: Path) -> dict[str, Path]:
    """Where each split is: its pickle, which has names, or else the folder of its samples."""
    if source.is_file():
        return {source.stem.removeprefix("dataset_"): source} if mentions(source, _CLASS) else {}
    folders = {path.suffix[1:]: path for path in sorted(source.glob("dataset_torch.*")) if path.is_dir()}
    pickles = {path.stem.removeprefix("dataset_"): path for path in sorted(source.glob("dataset_*.pt"))}
    return folders | {split: path for split, path in pickles.items() if mentions(path, _CLASS)}


def _items(split: str, place: Path) -> Iterator[Item]:
    try:
        info = _json(place.parent / f"dataset_info_{split}.json")
        norms = _json(place.parent / f"dataset_normalization_{split}.json")
        yield from _pickled(split, place, norms) if place.is_file() else _sampled(split, place, info, norms)
    except Unreadable as error:
        yield Skipped(source=place.name, reason=str(error))


def _json(file: Path) -> dict[str, Any]:
    content = read_json_file(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise Unreadable(f"{file.name} holds no dictionary")
    return content


# ---- From tokens to rows


@dataclass(frozen=True)
class _Layer:
    """A weight with its bias, or a running statistic, as tokens see it."""

    name: str
    shape: tuple[int, ...]
    bias: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """Output channels, and values of each."""
        return self.shape[0] if self.shape else 1, prod(self.shape[1:]) + self.bias


@dataclass(frozen=True)
class _RowMap:
    """Which value of the tokens is which parameter, and the affine map that undoes the normalisation."""

    layout: Layout
    places: Int64[Tensor, " p"]
    scale: Float[Tensor, " p"]
    shift: Float[Tensor, " p"]
    notes: tuple[str, ...]

    def row(self, tokens: Float[Tensor, "t w"]) -> Float[Tensor, " p"]:
        return tokens.reshape(-1)[self.places].float() * self.scale + self.shift


def _row_map(
    mask: Bool[Tensor, "t w"], positions: Int64[Tensor, "t 3"], norms: Mapping[str, Any], reference: Shapes | None
) -> _RowMap:
    """The map of all networks with these masks and positions.

    Raises:
        Unreadable: Mask and positions are not those of a tokenised network, or the normalisation has other layers.
    """
    begins, sizes = _sizes(mask, positions)
    mode = norms.get("mode")
    stored = [name for name in norms if name != "mode"]
    layers, notes = _layers(sizes, reference, stored if len(stored) == len(sizes) else None)
    shapes: dict[str, tuple[int, ...]] = {}
    places, scales, shifts = [], [], []
    for number, (layer, begin) in enumerate(zip(layers, begins, strict=True)):
        outputs, width = layer.sizes
        padded = -(-width // mask.shape[1]) * mask.shape[1]
        values = begin * mask.shape[1] + torch.arange(outputs * padded).view(outputs, padded)[:, :width]
        parts = [values[:, : width - layer.bias], values[:, width - layer.bias :]]
        shapes[layer.name] = layer.shape
        if layer.bias:
            shapes[_bias(layer.name)] = (outputs,)
        places += [part.reshape(-1) for part in parts]
        scale, shift = _affine(mode, norms, stored, number, layer.name, len(sizes))
        scales.append(torch.full((outputs * width,), scale))
        shifts.append(torch.full((outputs * width,), shift))
    if mode not in _AFFINE:
        notes = (*notes, "the files keep no normalisation: weights are as they were stored, perhaps normalised")
    return _RowMap(layout_from_shapes(shapes), torch.cat(places), torch.cat(scales), torch.cat(shifts), notes)


def _sizes(mask: Tensor, positions: Tensor) -> tuple[list[int], list[tuple[int, int]]]:
    """First token, output channels and values a channel of each layer."""
    if mask.ndim != 2 or positions.shape != (len(mask), 3):
        raise Unreadable(f"a mask of shape {tuple(mask.shape)} with positions of shape {tuple(positions.shape)}")
    if not positions[:, 0].equal(torch.arange(len(mask))) or bool((positions[:, 1].diff() < 0).any()):
        raise Unreadable("positions that are not in the order of tokens and layers")
    _, counts = positions[:, 1].unique_consecutive(return_counts=True)
    ends = [0, *counts.cumsum(0).tolist()]
    sizes = []
    for begin, end in pairwise(ends):
        channels = positions[begin:end, 2]
        outputs = int(channels[-1]) + 1
        chunks = (end - begin) // outputs
        if outputs < 1 or not channels.equal(torch.arange(outputs).repeat_interleave(max(chunks, 1))):
            raise Unreadable(f"layer {int(positions[begin, 1])} whose positions are not those of its channels")
        real = mask[begin:end].reshape(outputs, -1)
        width = int(real[0].sum())
        if not width or not real.equal((torch.arange(real.shape[1]) < width).expand_as(real)):
            raise Unreadable(f"layer {int(positions[begin, 1])} whose mask is not that of padded channels")
        sizes.append((outputs, width))
    return ends[:-1], sizes


def _layers(
    sizes: Sequence[tuple[int, int]], reference: Shapes | None, stored: Sequence[str] | None
) -> tuple[list[_Layer], tuple[str, ...]]:
    """Names and shapes of the layers that have these sizes."""
    for shapes in (reference,) if reference is not None else _published():
        for skip_norm in (False, True):
            layers = _tokenised(shapes, skip_norm)
            if [layer.sizes for layer in layers] == list(sizes):
                left_out = skip_norm and len(layers) < len(_tokenised(shapes, False))
                return layers, ("normalisation layers are not among the tokens",) if left_out else ()
    if reference is not None:
        raise Unreadable("tokens of other layers than those of the reference network in the file")
    names = stored or [f"layer{number}.weight" for number in range(len(sizes))]
    layers = [_Layer(name, size, bias=False) for name, size in zip(names, sizes, strict=True)]
    return layers, ("shapes are not in the files: a layer is the matrix of its channels, with the bias as last value",)


def _tokenised(shapes: Shapes, skip_norm: bool) -> list[_Layer]:
    """What becomes tokens of a network, in its order."""
    kept = [name for name in shapes if not (skip_norm and _NORM.search(name))]
    ends = ("weight", "running_mean", "running_var")
    return [_Layer(name, shapes[name], _bias(name) in shapes) for name in kept if name.endswith(ends)]


def _bias(name: str) -> str:
    """The bias of a weight; of a running statistic, a name that there is not."""
    return f"{name.removesuffix('weight')}bias" if name.endswith("weight") else ""


@cache
def _published() -> tuple[Shapes, ...]:
    """Networks of the Model Zoos."""
    presets = [("cnn_s", (1, 28, 28), 10), ("cnn_s", (3, 28, 28), 10), ("cnn_l", (3, 32, 32), 10)]
    presets += [("resnet18", (3, 32, 32), classes) for classes in (10, 100)] + [("resnet18", (3, 64, 64), 200)]
    with torch.device("meta"):
        modules = [networks.by_name(*preset).build() for preset in presets]
    return tuple({name: tuple(x.shape) for name, x in module.state_dict().items() if x.ndim} for module in modules)


def _affine(
    mode: Any, norms: Mapping[str, Any], stored: Sequence[str], number: int, name: str, count: int
) -> tuple[float, float]:
    """Factor and summand that undo a layer's normalisation; min-max leaves running statistics as they are."""
    if mode not in _AFFINE:
        return 1.0, 0.0
    key = stored[number] if len(stored) == count else name
    if key not in norms and mode == "minmax" and "running" in name:
        return 1.0, 0.0
    try:
        high, low = (float(norms[key][entry]) for entry in _AFFINE[mode])
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"the normalisation has {len(stored)} layers and not the {count} of the tokens") from error
    return (high, low) if mode == "standardize" else ((high - low) / 2, (high + low) / 2)


# ---- The two forms of a split


def _sampled(split: str, folder: Path, info: Mapping[str, Any], norms: Mapping[str, Any]) -> Iterator[Item]:
    """Networks of a folder of samples; sample i, i + n, i + 2n, … are windows of network i of n."""
    files = {
        int(match[1]): file for file in folder.iterdir() if (match := re.fullmatch(r"sample_(\d+)\.pt", file.name))
    }
    count = info.get("num_samples", len(files))
    if not files or not isinstance(count, int) or count < 1:
        raise Unreadable("no samples, or an info file without their number")
    properties = info.get("properties") or []
    model, last, known = -1, None, None
    for number in range(count):
        source = f"{folder.name}/sample_{number}"
        try:
            whole = _whole([files[i] for i in range(number, max(files) + 1, count) if i in files], info)
            tokens, mask, positions, values, notes = whole
            if known is None or not (known[0].equal(mask) and known[1].equal(positions)):
                known = mask, positions, _row_map(mask, positions, norms, None)
        except Unreadable as error:
            yield Skipped(source=source, reason=str(error))
            continue
        columns = dict(zip(properties, values, strict=False))
        step = columns.pop("training_iteration", None)
        # networks follow each other by model and then by epoch
        model += last is None or step is None or step <= last
        last = step
        unknown = () if step is not None else ("the files name no models: every checkpoint is one",)
        rows = known[2].row(tokens)
        name = f"{split}-{model:05d}"
        yield _block(source, known[2], rows, name, step, metrics(columns), split, (*notes, *unknown))


def _whole(
    files: Sequence[Path], info: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, list[float], tuple[str, ...]]:
    """Tokens, mask and positions of a network put together from its windows, and its properties.

    Raises:
        Unreadable: A file is none of a sample, or the windows leave a token out.
    """
    largest = info.get("max_positions")
    count = int(largest[0]) + 1 if isinstance(largest, list) and largest else 0
    found: tuple[Tensor, Tensor, Tensor] | None = None
    properties: list[float] = []
    notes: tuple[str, ...] = ()
    there = torch.zeros(count, dtype=torch.bool)
    for file in files:
        sample = load(file)
        parts = [sample.get(key) for key in ("w", "m", "p")] if isinstance(sample, Mapping) else []
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) != 3:
            raise Unreadable("a sample without tokens, mask and positions")
        tokens, mask, positions = tensors[0], tensors[1].bool(), tensors[2].long()
        if tokens.ndim == 3:  # the network as it is, then permuted copies
            tokens, notes = tokens[0], ("permuted copies left out",)
        if tokens.ndim != 2 or mask.shape != tokens.shape or positions.shape != (len(tokens), 3) or not len(tokens):
            raise Unreadable(f"tokens of shape {tuple(tensors[0].shape)} with another mask or other positions")
        place = positions[:, 0]
        if not count:
            count = int(place.max()) + 1
            there = torch.zeros(count, dtype=torch.bool)
        if int(place.min()) < 0 or int(place.max()) >= count:
            raise Unreadable(f"a token beyond the {count} of a network")
        if found is None:
            shape = (count, tokens.shape[1])
            found = tokens.new_zeros(shape), mask.new_zeros(shape), positions.new_zeros(count, 3)
        for whole, part in zip(found, (tokens, mask, positions), strict=True):
            whole[place] = part
        there[place] = True
        if isinstance(sample.get("props"), Tensor):
            properties = sample["props"].reshape(-1).tolist()
    if found is None:
        raise Unreadable("the sample is missing")
    if not bool(there.all()):
        raise Unreadable(f"windows that do not cover the network: {int(there.sum())} of {count} tokens")
    return *found, properties, notes


def _pickled(split: str, file: Path, norms: Mapping[str, Any]) -> Iterator[Item]:
    """Networks of a pickled data set, which are lists of epochs by model."""
    dataset = load(file)
    values = dataset.attributes if isinstance(dataset, Record) else {}
    mask, positions, models = values.get("mask"), values.get("positions"), values.get("data")
    if not isinstance(mask, Tensor) or not isinstance(positions, Tensor) or not isinstance(models, list):
        raise Unreadable("it holds no tokens with mask and positions")
    if isinstance(values.get("layers"), Mapping) and values.get("standardize") in (True, "minmax"):
        norms = {**values["layers"], "mode": "minmax" if values["standardize"] == "minmax" else "standardize"}
    reference = None
    if isinstance(values.get("reference_checkpoint"), Mapping):
        state, _ = counted_layers(state_in(values["reference_checkpoint"]))
        reference = {name: tuple(value.shape) for name, value in state.items()}
    row_map = _row_map(mask.bool(), positions.long(), norms, reference)
    properties, keys = values.get("properties") or {}, values.get("property_keys") or {}
    settings = keys.get("config_keys") or []
    for place, epochs in enumerate(models):
        for epoch, tokens in enumerate(epochs):
            source = f"{file.name}[{place}][{epoch}]"
            if not isinstance(tokens, Tensor) or tokens.shape != mask.shape:
                yield Skipped(source=source, reason="not as many tokens as the mask has")
                continue
            path = _entry(values.get("paths"), place, epoch)
            model = PurePosixPath(str(path)).name if path is not None else f"{split}-{place:05d}"
            measured = {str(key): _entry(entries, place, epoch) for key, entries in properties.items()}
            chosen = {key: measured.pop(key) for key in settings if key in measured}
            iteration = measured.pop("training_iteration", None)
            step = _entry(values.get("epochs"), place, epoch)
            yield _block(
                source, row_map, row_map.row(tokens), model, step if finite(step) else iteration,
                configuration(chosen) | metrics(measured), split,
            )  # fmt: skip


def _entry(lists: Any, place: int, epoch: int) -> Any:
    try:
        return lists[place][epoch]
    except (TypeError, IndexError, KeyError):
        return None


def _block(
    source: str, row_map: _RowMap, row: Tensor, model: str, step: Any, values: Mapping[str, Plain], split: str,
    notes: tuple[str, ...] = (),
) -> Block:  # fmt: skip
    columns: dict[str, Plain] = {"model": model, "step": int(step) if finite(step) else 0, **values}
    columns["published_split"] = _SPLITS.get(split, split)
    table = pl.DataFrame({name: [value] for name, value in columns.items()})
    return Block(source=source, layout=row_map.layout, rows=row[None], table=table, notes=(*row_map.notes, *notes))
