"""ONNX models: the initialisers of the graph, named and turned by the operators that use them; no inference."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import MissingExtra
from weightspace.zoo.importers.found import Unreadable
from weightspace.zoo.importers.states import FileContent

_KEYS = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "InstanceNormalization": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
}
"""Which input of an operator is which parameter."""


def read_onnx(file: Path) -> FileContent:
    """The parameters of an ONNX model in PyTorch's order, those of a layer under one name.

    Raises:
        MissingExtra: onnx is not installed.
        Unreadable: The file is damaged, its external data are missing, or it is quantised.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtra("reading ONNX files needs onnx: pip install 'weightspace[import]'") from error
    try:
        graph = onnx.load(str(file)).graph
        values = {item.name: _tensor(numpy_helper.to_array(item)) for item in graph.initializer}
    except Exception as error:  # protobuf's errors have no common base
        raise Unreadable(f"not a readable ONNX file: {error}") from error
    uses = _uses(graph, values)
    state, notes = {}, []
    for name, value in values.items():
        new, turned = uses.get(name, (name, False))
        if name not in uses and (not value.is_floating_point() or not value.ndim):
            notes.append("constants that are no parameters left out")
            continue
        new = name if new in state else new  # two operators of one name
        if turned:
            notes.append("matrices turned from inputs first to PyTorch's order")
        state[new] = value.T if turned else value
    return FileContent(state=state, notes=tuple(dict.fromkeys(notes)))


def _uses(graph: Any, values: dict[str, Tensor]) -> dict[str, tuple[str, bool]]:
    """New name of each parameter, and whether it has inputs first."""
    uses: dict[str, tuple[str, bool]] = {}
    products: dict[str, str] = {}
    for number, node in enumerate(graph.node):
        keys = _KEYS.get(node.op_type, {})
        if node.op_type == "MatMul" and len(node.input) == 2 and node.input[1] in values:
            keys = {1: "weight"}
        if node.op_type == "Add":
            for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
                if product in products and bias in values and values[bias].ndim == 1:
                    uses.setdefault(bias, (f"{products[product]}.bias", False))
            continue
        if node.op_type in ("QLinearConv", "QLinearMatMul", "DequantizeLinear") and node.input[0] in values:
            raise Unreadable(f"quantised weights: {node.input[0]!r} is dequantised in the graph")
        inputs = {key: node.input[place] for place, key in keys.items() if place < len(node.input)}
        parameters = {key: name for key, name in inputs.items() if name in values}
        if "weight" not in parameters:
            continue
        layer = _layer(node, parameters, number)
        inputs_first = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
        for key, name in parameters.items():
            uses.setdefault(name, (f"{layer}.{key}", inputs_first and key == "weight"))
        if node.op_type == "MatMul":
            products[node.output[0]] = layer
    return uses


def _layer(node: Any, parameters: dict[str, str], number: int) -> str:
    """The name that the parameters have in common with PyTorch's, else the operator's name in the graph."""
    for key, name in parameters.items():
        if name.endswith(f".{key}"):
            return name.removesuffix(f".{key}")
    named = re.sub(r"[/:]+", ".", node.name).strip(".")
    return named.removesuffix(f".{node.op_type}") if named else f"{node.op_type.lower()}_{number}"


def _attribute(node: Any, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _tensor(value: np.ndarray) -> Tensor:
    if value.dtype.kind in "fiubc":
        return torch.from_numpy(np.array(value))
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.zeros(0, dtype=torch.uint8) if value.dtype.kind in "OUS" else torch.from_numpy(value.view(np.uint8))
