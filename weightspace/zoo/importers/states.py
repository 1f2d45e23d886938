"""Named tensors out of whatever a checkpoint file holds, and out of the tensors what a zoo can store.

A file's content may be a state dict, a dictionary with one inside, or a whole pickled module. Of its tensors a zoo
takes the floating-point ones, each once, in one precision.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.zoo.importers.found import Plain, Unreadable, finite
from weightspace.zoo.importers.restricted_pickle import Record, Unsupported


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """What one file of weights says."""

    state: Mapping[str, Tensor]
    step: int | None = None
    columns: Mapping[str, Plain] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def state_in(content: Any) -> dict[str, Tensor]:
    """The state dict in the content of a file.

    The entry that customarily is one (`state_dict`, `model`, …); else the content itself; else all entries that are,
    under their names. States of optimisers, schedulers and scalers are none.

    Raises:
        Unreadable: There is no named tensor.

    >>> list(state_in({"epoch": 3, "model": {"module.0.weight": torch.zeros(1)}}))
    ['0.weight']
    """
    content = _mapping(content)
    if content is None:
        raise Unreadable("it holds no named tensors")
    found = {str(key): _mapping(value) for key, value in content.items() if not _NO_NETWORK.search(str(key))}
    states = {key: named for key, value in found.items() if value is not None and (named := _tensors(value))}
    for key in _CUSTOMARY:
        if key in states:
            return _plain_names(states[key])
    named = _tensors(content)
    if any(isinstance(value, Unsupported) or value.ndim for value in named.values()):
        return _plain_names(named)
    if len(states) == 1:
        return _plain_names(next(iter(states.values())))
    if states:
        return {f"{key}.{name}": x for key, state in states.items() for name, x in _plain_names(state).items()}
    raise Unreadable("it holds no named tensors")


def step_of(content: Any) -> int | None:
    """The epoch that a dictionary of a training run says it is from, else its step."""
    if isinstance(content, Mapping):
        for key in ("epoch", "global_step", "step", "iteration"):
            if finite(content.get(key)) and content[key] >= 0:
                return int(content[key])
    return None


def _mapping(value: Any) -> Mapping | None:
    if isinstance(value, Record):
        attributes = value.attributes
        if "_parameters" in attributes and "_modules" in attributes:
            return dict(_module_tensors(value, ""))
        return dict(_script_tensors(value, "")) if value.origin.startswith("__torch__") else attributes
    return value if isinstance(value, Mapping) else None


def _module_tensors(module: Record, prefix: str) -> Iterator[tuple[str, Any]]:
    """Tensors of a pickled module in state-dict order, by the attributes that every module has."""
    attributes = module.attributes
    transient = attributes.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in (attributes.get(group) or {}).items():
            if value is not None and name not in transient:
                yield f"{prefix}{name}", value
    for name, child in (attributes.get("_modules") or {}).items():
        if isinstance(child, Record):
            yield from _module_tensors(child, f"{prefix}{name}.")


def _script_tensors(module: Record, prefix: str) -> Iterator[tuple[str, Any]]:
    """Tensors of a TorchScript module, whose children are plain attributes."""
    for name, value in module.attributes.items():
        if isinstance(value, Tensor | Unsupported):
            yield f"{prefix}{name}", value
        elif isinstance(value, Record):
            yield from _script_tensors(value, f"{prefix}{name}.")


def _tensors(values: Mapping) -> dict[str, Any]:
    """The tensors of a mapping whose values are mostly that; empty if it is no state dict."""
    named = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
        if isinstance(value, Tensor | Unsupported) and isinstance(name, str):
            named[name] = value
    return named if any(isinstance(x, Unsupported) or x.is_floating_point() for x in named.values()) else {}


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers that change no network: data-parallel and compiled modules."""
    named = dict(state)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def storable(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a state that a zoo stores, in one precision, and notes on what was changed or left out.

    Half precision stays if all tensors have it; mixed ones and float64 become float32.

    Raises:
        Unreadable: Weights are quantised, complex, sparse or missing, or there are none.

    >>> storable({"w": torch.zeros(2, dtype=torch.float64), "n": torch.tensor(3)})
    ({'w': tensor([0., 0.])}, ['integer counters and tables left out: n', 'float64 rounded to float32'])
    """
    kept: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    seen: set[tuple] = set()
    for name, value in state.items():
        _refuse_special(name, value)
        if not value.is_floating_point():
            left_out.setdefault("integer counters and tables left out", []).append(name)
        elif not value.numel():
            left_out.setdefault("tensors without values left out", []).append(name)
        elif (place := (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())) in seen:
            left_out.setdefault("tied tensors taken once", []).append(name)
        else:
            seen.add(place)
            kept[name] = value
    notes = [f"{reason}: {', '.join(sorted({_family(n) for n in names}))}" for reason, names in left_out.items()]
    dtypes = {value.dtype for value in kept.values()}
    if not dtypes:
        raise Unreadable("it holds no floating-point tensors")
    if torch.float64 in dtypes:
        notes.append("float64 rounded to float32")
        dtypes = {torch.float32 if dtype == torch.float64 else dtype for dtype in dtypes}
    if len(dtypes) > 1:
        notes.append(f"{' and '.join(sorted(map(_dtype, dtypes)))} mixed: stored as float32")
        dtypes = {torch.float32}
    if (dtype := dtypes.pop()) != torch.float32:
        notes.append(f"kept in {_dtype(dtype)}")
    return {name: value.to(dtype) for name, value in kept.items()}, notes


def _refuse_special(name: str, value: Any) -> None:
    if isinstance(value, Unsupported):
        raise Unreadable(f"tensor {name!r} is {value.kind}")
    quantised = _QUANTISED.search(name) and not value.is_floating_point()
    if quantised or (value.dtype in _NARROW and value.ndim >= 2 and name.endswith(("weight", "kernel"))):
        raise Unreadable(f"quantised weights: {name!r} is {_dtype(value.dtype)}; dequantise the network first")
    if value.is_complex():
        raise Unreadable(f"tensor {name!r} is complex")
    if value.is_floating_point() and value.dtype not in _FLOATS:
        raise Unreadable(f"quantised weights: {name!r} is {_dtype(value.dtype)}; convert the network first")
    if value.is_meta or value.layout != torch.strided:
        raise Unreadable(f"tensor {name!r} is without data or sparse")


def _family(name: str) -> str:
    """A tensor's name without the number of its layer, so that a hundred layers make one note."""
    return re.sub(r"\d+", "#", name)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_CUSTOMARY = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params", "policy",
)  # fmt: skip
_NO_NETWORK = re.compile(r"optim|sched|scaler|^rng|_rng|callbacks|loops|^ema_|amp$")
_QUANTISED = re.compile(r"(^|[._])(qweight|qzeros|weight_packed|weight_quantized|_packed_params)([._]|$)")
_NARROW = (torch.int8, torch.uint8, torch.int32)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
