"""Keras weights: `.h5` of Keras 2 and 3, `.weights.h5`, and the `.keras` archive, read with h5py alone."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import MissingExtra
from weightspace.zoo.importers.found import Unreadable
from weightspace.zoo.importers.states import FileContent
from weightspace.zoo.importers.torch_order import forward_order, in_torch_order


def read_keras(file: Path) -> FileContent:
    """The weights of a Keras file in PyTorch's order.

    Raises:
        MissingExtra: h5py is not installed.
        Unreadable: The file is damaged or holds no Keras weights.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("reading Keras files needs h5py: pip install 'weightspace[import]'") from error
    order: list[str] = []
    try:
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive:
                order = _layer_order(json.loads(archive.read("config.json")))
                source: Any = io.BytesIO(archive.read("model.weights.h5"))
        else:
            source = file
        with h5py.File(source, "r") as content:
            root = content.get("model_weights", content)
            attributed = "layer_names" in root.attrs
            state = _by_attributes(root) if attributed else _by_path(root, order)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise Unreadable(f"not a readable Keras file: {error}") from error
    if not state:
        raise Unreadable("the Keras file holds no weights")
    turned, notes = in_torch_order(state)
    if not order and not attributed:  # groups of HDF5 are sorted by name
        turned = {name: turned[name] for name in forward_order({n: tuple(x.shape) for n, x in turned.items()})}
    return FileContent(state=turned, notes=notes)


def _layer_order(config: Mapping[str, Any]) -> list[str]:
    layers = config.get("config", {}).get("layers", []) if isinstance(config.get("config"), dict) else []
    return [_snake(layer.get("class_name", "")) for layer in layers]


def _snake(name: str) -> str:
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _by_attributes(root: Any) -> dict[str, Tensor]:
    """Layers and weights in the order that the file's attributes list."""
    state = {}
    for layer in root.attrs["layer_names"]:
        group = root[_text(layer)]
        for weight in group.attrs["weight_names"]:
            parts = _text(weight).split("/")
            state["/".join(parts[-2:])] = _tensor(group[_text(weight)])
    return state


def _by_path(root: Any, order: list[str]) -> dict[str, Tensor]:
    """Weights of groups `.../<layer>/vars/<number>`, whose roles only shapes tell."""
    found: dict[str, dict[int, Tensor]] = {}

    def visit(path: str, item: Any) -> None:
        match = re.fullmatch(r"(.+)/vars/(\d+)", path)
        if match and hasattr(item, "shape") and not path.startswith("optimizer"):
            layer = match[1].removeprefix("_layer_checkpoint_dependencies/").removeprefix("layers/")
            found.setdefault(layer, {})[int(match[2])] = _tensor(item)

    root.visititems(visit)
    state: dict[str, Tensor] = {}
    for layer in sorted(found, key=lambda name: (_place(name, order), _natural(name))):
        values = [found[layer][number] for number in sorted(found[layer])]
        keys = ["kernel", "bias"] if values[0].ndim > 1 else ["gamma", "beta", "moving_mean", "moving_variance"]
        keys += [f"variable_{number}" for number in range(len(keys), len(values))]
        state |= {f"{layer}/{key}": value for key, value in zip(keys, values, strict=False)}
    return state


def _place(layer: str, order: list[str]) -> int:
    """Where a layer stands in the model: groups are numbered by class, `dense`, `dense_1`, … in the model's order."""
    top = layer.partition("/")[0]
    match = re.fullmatch(r"(.+?)(?:_(\d+))?", top)
    places = [place for place, kind in enumerate(order) if match and kind == match[1]]
    number = int(match[2] or 0) if match else 0
    return places[number] if number < len(places) else len(order)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _tensor(item: Any) -> Tensor:
    value = np.asarray(item)
    if value.dtype.kind not in "fiub":
        raise Unreadable(f"a Keras variable holds {value.dtype}, not numbers")
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
