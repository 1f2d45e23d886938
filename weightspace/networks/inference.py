"""Layouts of networks whose code is not there: names and shapes decide what each tensor is.

A state dict does not say which module owns a tensor. Most modules can be told from the tensors they own together: a
vector beside a bias of its own shape scales units, a matrix beside a bias of one of its sides maps to that side. Where
shapes leave it open, modules of the same name in the same network decide, then what the name says. What is still open
is "other", or a linear layer in PyTorch's order.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from weightspace.networks.layout import RUNNING, LayerKind, Layout, Role, TensorSpec

_NORM = re.compile(r"norm|(^|[._])(bn|ln|gn|rms)\d*([._]|$)", re.IGNORECASE)
_TABLE = re.compile(r"embed|(^|[._])(wte|wpe|token_type|relative_position)", re.IGNORECASE)
_TRANSPOSED = re.compile(r"transpose|deconv|upconv|convt", re.IGNORECASE)


def layout_from_state(state: Mapping[str, Tensor]) -> Layout:
    """The layout of a network of which only named tensors are known, in their order.

    For modules of linear, convolutional and normalisation layers it is the layout that `Layout.of` finds, as far as
    names and shapes can say: an embedding without a telling name looks like a linear layer without bias, a transposed
    convolution without bias and name like an ordinary one.

    Args:
        state: Floating-point tensors by name, `<layer>.<weight|bias|running_mean|running_var>` where they follow
            PyTorch's custom; integer counters are left out.

    >>> import torch
    >>> layout = layout_from_state({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "log_std": torch.zeros(1)})
    >>> [(t.name, t.layer, t.output_axis) for t in layout.tensors]
    [('a.weight', 'linear', 0), ('a.bias', 'linear', 0), ('log_std', 'other', None)]
    """
    return layout_from_shapes({name: tuple(x.shape) for name, x in state.items() if x.is_floating_point()})


def layout_from_shapes(shapes: Mapping[str, Sequence[int]]) -> Layout:
    """The layout of named shapes, as `layout_from_state`; nothing needs to be loaded.

    >>> layout_from_shapes({"weight": (2, 3), "bias": (2,)}).parameters
    8
    """
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, key = name.rpartition(".")
        layers.setdefault(layer, {})[key] = tuple(shape)
    transposed = _transposed_layers(layers)
    tensors = []
    for name, shape in shapes.items():
        layer, _, key = name.rpartition(".")
        tensors.append(_spec(name, key, tuple(shape), _kind(layer, layers[layer]), layer in transposed))
    return Layout(tuple(tensors))


def _kind(layer: str, shapes: Mapping[str, tuple[int, ...]]) -> LayerKind:
    """What kind of module owns these tensors together."""
    weight, bias = shapes.get("weight"), shapes.get("bias")
    if any(key in shapes for key in RUNNING):
        return "norm"
    if weight is None:
        return "other"
    if bias == weight or (len(weight) == 1 and bias is None and _NORM.search(layer)):
        return "norm"
    if bias is not None and (len(bias) != 1 or bias[0] not in weight[:2]):
        return "other"
    if len(weight) == 2:
        return "other" if bias is None and _TABLE.search(layer) else "linear"
    return "conv" if 3 <= len(weight) <= 5 else "other"


def _transposed_layers(layers: Mapping[str, Mapping[str, tuple[int, ...]]]) -> set[str]:
    """Layers whose weight has inputs first, as transposed convolutions and GPT-2's linear layers have.

    The bias tells unless both sides are equal; then the other layers of that name do, digits aside.
    """
    votes: dict[tuple[str, int], Counter] = {}
    open_layers, found = [], set()
    for layer, shapes in layers.items():
        weight, bias = shapes.get("weight", ()), shapes.get("bias")
        if len(weight) < 2 or weight == bias:
            continue
        name = (re.sub(r"\d+", "#", layer.rpartition(".")[2]), len(weight))
        outputs = [side for side in (0, 1) if bias == (weight[side],)]
        if len(outputs) == 1:
            votes.setdefault(name, Counter())[outputs[0]] += 1
            found |= {layer} if outputs == [1] else set()
        elif len(outputs) == 2 or bias is None:
            open_layers.append((layer, name))
    for layer, name in open_layers:
        said = votes.get(name, Counter())
        if said[1] > said[0] or (not said and name[1] > 2 and _TRANSPOSED.search(layer)):
            found.add(layer)
    return found


def _spec(name: str, key: str, shape: tuple[int, ...], layer: LayerKind, transposed: bool) -> TensorSpec:
    role: Role = key if key in ("bias", *RUNNING) else "weight"
    if key not in ("weight", "bias", *RUNNING):
        layer = "other"  # in_proj_weight, log_std: no part of a plain layer
    matrix = layer in ("linear", "conv") and role == "weight"
    output_axis = int(transposed) if matrix else (0 if shape and layer != "other" else None)
    input_axis = 1 - int(transposed) if matrix else None
    return TensorSpec(name=name, shape=shape, layer=layer, role=role, output_axis=output_axis, input_axis=input_axis)
