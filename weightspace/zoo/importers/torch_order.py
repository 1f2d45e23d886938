"""Tensors in PyTorch's order: axes of frameworks with inputs first (Keras, Flax, plain numpy), layers of sorted files.

A convolution's kernel is stored as height, width, inputs, outputs (HWIO) and becomes outputs, inputs, height, width; a
dense kernel as inputs, outputs and is transposed. Values are moved, never changed.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

from torch import Tensor

_NAMES = {
    "gamma": "weight", "beta": "bias", "scale": "weight", "moving_mean": "running_mean",
    "moving_variance": "running_var", "embeddings": "weight", "embedding": "weight",
}  # fmt: skip


def kernel_in_torch_order(kernel: Tensor, *, depthwise: bool = False) -> Tensor:
    """A kernel `[*window, inputs, outputs]` as `[outputs, inputs, *window]`.

    Args:
        depthwise: Outputs counts the filters of each input; becomes `[inputs * filters, 1, *window]`.

    >>> import torch
    >>> kernel_in_torch_order(torch.zeros(3, 3, 1, 16)).shape
    torch.Size([16, 1, 3, 3])
    """
    turned = kernel.movedim((-1, -2), (0, 1))
    return turned.transpose(0, 1).flatten(0, 1).unsqueeze(1) if depthwise else turned


def in_torch_order(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state with kernels turned and parameters renamed, and a note if anything was.

    Only tensors called `kernel` and what lies beside one, or beside a scale, are touched.

    >>> import torch
    >>> list(in_torch_order({"dense/kernel:0": torch.zeros(3, 2), "dense/bias:0": torch.zeros(2)})[0])
    ['dense.weight', 'dense.bias']
    """
    names = {name: re.sub(r":\d+$", "", name).replace("/", ".") for name in state}
    keys = {name.rpartition(".")[2] for name in names.values()}
    if keys.isdisjoint({"kernel", "depthwise_kernel", "gamma", "embeddings"}):
        return dict(state), ()
    biases = {name.rpartition(".")[0]: len(state[old]) for old, name in names.items() if name.endswith(".bias")}
    turned, flat, channels = {}, [], None
    for old, value in state.items():
        layer, _, key = names[old].rpartition(".")
        if key in ("kernel", "depthwise_kernel") and value.ndim >= 2:
            value, key = kernel_in_torch_order(value, depthwise=_is_depthwise(layer, key, value, biases)), "weight"
            if value.ndim == 2 and channels is not None and value.shape[1] != channels:
                flat.append(layer)
            channels = value.shape[0] if value.ndim > 2 else None
        turned[f"{layer}.{_NAMES.get(key, key)}".lstrip(".")] = value
    notes = ["kernels turned from inputs first to PyTorch's order"]
    if flat:
        notes.append("a dense layer after flattened images keeps the channels-last order of its inputs")
    return turned, tuple(notes)


def _is_depthwise(layer: str, key: str, kernel: Tensor, biases: Mapping[str, int]) -> bool:
    """By its name, or because the bias counts all filters of all inputs together."""
    if key == "depthwise_kernel" or kernel.ndim < 3 or "transpose" in layer:
        return key == "depthwise_kernel"
    inputs, filters = kernel.shape[-2:]
    return "depthwise" in layer or (biases.get(layer) == inputs * filters != filters)


def forward_order(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of tensors in the order of a forward pass, as far as numbers in names and shapes tell.

    Numbers count as numbers, a weight stands before its bias. Where the layers are no chain that way, as when
    `classifier` sorts before `features`, the first order of the top-level modules that makes them one is taken.

    >>> forward_order({"10.bias": [2], "10.weight": [2, 3], "2.bias": [3], "2.weight": [3, 5]})
    ['2.weight', '2.bias', '10.weight', '10.bias']
    """
    names = sorted(shapes, key=_forward_key)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    if 1 < len(groups) <= _MOST_GROUPS:
        for order in permutations(groups):
            candidate = [name for group in order for name in groups[group]]
            if _is_chain([shapes[name] for name in candidate]):
                return candidate
    return names


def _is_chain(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether each matrix or kernel takes what the one before it gives, flattened images included."""
    weights = [shape for shape in shapes if len(shape) > 1]
    return all(
        after[1] == before[0] or (len(before) > len(after) == 2 and after[1] % before[0] == 0)
        for before, after in pairwise(weights)
    )


def _forward_key(name: str) -> tuple:
    layer, _, key = name.rpartition(".")
    natural = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", layer)]
    return natural, _KEYS.get(key, len(_KEYS)), key


_KEYS = {"weight": 0, "bias": 1, "running_mean": 2, "running_var": 3}
_MOST_GROUPS = 5
