"""Layouts: the ordered list of a network's tensors, and rows: all of them flattened in that order.

Axes: m network, p parameter.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import LayoutError

LayerKind = Literal["linear", "conv", "norm", "other"]
Role = Literal["weight", "bias", "running_mean", "running_var"]
RUNNING: tuple[Role, ...] = ("running_mean", "running_var")
"""Statistics that batch normalisation keeps: values of a checkpoint, no weights."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a network: plain data, no values.

    >>> TensorSpec(name="0.weight", shape=(8, 1, 3, 3), layer="conv", role="weight", output_axis=0, input_axis=1).size
    72
    """

    name: str
    """Key in the state dict, for example `conv1.weight`."""
    shape: tuple[int, ...]
    layer: LayerKind
    """Kind of the layer that owns the tensor."""
    role: Role
    output_axis: int | None = None
    """Axis that counts the layer's output units; `None` if the tensor has none."""
    input_axis: int | None = None
    """Axis that counts the layer's input units; `None` for biases and norms."""

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def layer_name(self) -> str:
        """Name of the module that owns the tensor, for example `conv1`."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """The ordered tensors of a network; a checkpoint is one row of their values.

    >>> layout = Layout.of(nn.Linear(3, 2))
    >>> layout.parameters, list(layout.slices)
    (8, ['weight', 'bias'])
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self):
        names = [t.name for t in self.tensors]
        if len(set(names)) != len(names):
            raise LayoutError(f"tensor names must be unique, got {names}")

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """Layout of a module: parameters and floating-point buffers in state-dict order.

        Counters such as `num_batches_tracked` are left out; tied parameters appear once, under their first name.
        """
        owners = dict(module.named_modules())
        seen: set[int] = set()
        tensors = []
        for name, value in module.state_dict(keep_vars=True).items():
            if not value.is_floating_point() or id(value) in seen:
                continue
            seen.add(id(value))
            tensors.append(_spec(name, tuple(value.shape), owners[name.rpartition(".")[0]]))
        return cls(tuple(tensors))

    @property
    def parameters(self) -> int:
        """Length of a row."""
        return sum(t.size for t in self.tensors)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in a row."""
        ends = list(accumulate(t.size for t in self.tensors))
        return {t.name: slice(end - t.size, end) for t, end in zip(self.tensors, ends, strict=True)}

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        """Tensor specifications by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def digest(self) -> str:
        """Short hash of names, shapes and kinds: equal layouts have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def flatten(self, state: Mapping[str, Tensor]) -> Float[Tensor, " p"]:
        """One row from a state dict; extra keys such as counters are ignored.

        Raises:
            LayoutError: A tensor is missing or has another shape.
        """
        parts = []
        for spec in self.tensors:
            if spec.name not in state:
                raise LayoutError(f"the state dict lacks {spec.name!r}, which its layout needs")
            value = state[spec.name]
            if tuple(value.shape) != spec.shape:
                raise LayoutError(f"{spec.name!r} has shape {tuple(value.shape)}, its layout says {spec.shape}")
            parts.append(value.detach().reshape(-1))
        return torch.cat(parts).float()

    def unflatten(self, rows: Float[Tensor, "*m p"]) -> dict[str, Tensor]:
        """Views of the rows as named tensors `[*m, *shape]`; nothing is copied.

        Raises:
            LayoutError: The rows have another length than the layout.
        """
        if rows.shape[-1] != self.parameters:
            raise LayoutError(f"rows have {rows.shape[-1]} values, their layout has {self.parameters} parameters")
        lead = rows.shape[:-1]
        return {
            spec.name: rows[..., place].unflatten(-1, spec.shape) if spec.shape else rows[..., place].reshape(lead)
            for spec, place in zip(self.tensors, self.slices.values(), strict=True)
        }

    def to_json(self) -> list[dict]:
        """Plain data, as stored in `zoo.json`."""
        return [asdict(spec) | {"shape": list(spec.shape)} for spec in self.tensors]

    @classmethod
    def from_json(cls, data: list[dict]) -> "Layout":
        """The layout that `to_json` wrote.

        Raises:
            LayoutError: A key is missing or unknown.
        """
        try:
            return cls(tuple(TensorSpec(**spec | {"shape": tuple(spec["shape"])}) for spec in data))
        except (TypeError, KeyError) as error:
            raise LayoutError(f"this is not a stored layout: {error}") from error


def _spec(name: str, shape: tuple[int, ...], owner: nn.Module) -> TensorSpec:
    key = name.rpartition(".")[2]
    if isinstance(owner, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        layer: LayerKind = "norm"
    elif isinstance(owner, nn.modules.conv._ConvNd):
        layer = "conv"
    elif isinstance(owner, nn.Linear):
        layer = "linear"
    else:
        layer = "other"
    role: Role = key if key in ("bias", "running_mean", "running_var") else "weight"  # type: ignore[assignment]
    transposed = isinstance(owner, nn.modules.conv._ConvTransposeNd)
    matrix = layer in ("linear", "conv") and role == "weight"
    output_axis = int(transposed) if matrix else (0 if shape and layer != "other" else None)
    input_axis = 1 - int(transposed) if matrix else None
    return TensorSpec(name=name, shape=shape, layer=layer, role=role, output_axis=output_axis, input_axis=input_axis)
