"""Pickles, read without running anything that is in them.

A pickle is a program. It may name any function of any module and have it called. This reader imports no module that a
file names. Tensors, arrays and plain containers are rebuilt by functions of its own, listed in `_BUILDERS`; instances
of other classes become inert `Record`s of what was stored; a call of anything else is refused, and names the callee.
"""

import io
import math
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names that the older protocols give to modules
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.zoo.importers.found import Unreadable


class UnsafeFile(Unreadable):
    """The file would execute code on loading."""


class RecordType(type):
    """Makes the stand-in of one class; calling it is what a pickle does to execute code."""

    origin: str

    def __call__(cls, *arguments: Any) -> "Record":
        """An inert record where a class of another package would be called, and a refusal for everything else."""
        module, _, name = cls.origin.rpartition(".")
        package = cls.origin.partition(".")[0]
        foreign_class = package not in sys.stdlib_module_names and name[:1].isupper()
        if cls.origin not in _HARMLESS and not foreign_class:
            raise UnsafeFile(
                f"it would execute code: unpickling calls {module}.{name}; nothing of it was run. If you trust its "
                "origin, load it yourself and save the state dict with safetensors"
            )
        return _new_record(cls, *arguments)


class Record(metaclass=RecordType):
    """What was stored of an instance of a class that is not loaded: no method of that class exists here."""

    origin = "unknown"
    """Dotted name of the class."""
    arguments: tuple
    state: Any
    items: list
    """What was put into it, if it is a kind of list."""
    entries: dict
    """What was put into it, if it is a kind of dictionary."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Record":
        """Without a constructor of the class."""
        return _new_record(cls, *arguments, **named)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        """Called while reading, for kinds of lists."""
        self.items.append(item)

    def __str__(self) -> str:
        return f"{self.origin}{self.arguments}" if self.arguments else self.origin

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the instance and entries of the dictionary, as far as either was stored."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # a dictionary and slots
            state = {**(state[0] or {}), **(state[1] or {})}
        return {**self.entries, **(state if isinstance(state, dict) else {})}


def _new_record(kind: Any, *arguments: Any, **named: Any) -> Record:
    record = object.__new__(kind)
    record.arguments, record.state, record.items, record.entries = arguments, {}, [], dict(named)
    return record


class Unsupported:
    """A tensor of a kind that zoos do not hold: quantised, sparse, without data."""

    def __init__(self, kind: str):
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        pass


class _Builder:
    """A function of this module under the name of the one that a file asks for; it cannot be changed by the file."""

    __slots__ = ("_build",)
    _build: Callable

    def __init__(self, build: Callable):
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafeFile("it would execute code: it changes a function; nothing of it was run")

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("it would execute code: it changes a function; nothing of it was run")


class _Storage:
    """Values of one storage, flat and untyped."""

    def __init__(self, dtype: torch.dtype | None, data: Tensor):
        self.dtype, self.data = dtype, data


class ArrayPieces:
    """A numpy array while its pieces arrive."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _DType:
    """A numpy dtype while its pieces arrive: numpy's own are shared by everybody, and a file could change them."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any):
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    @property
    def numpy(self) -> np.dtype:
        """The dtype, of plain numbers or text."""
        dtype = np.dtype(self.name)
        if dtype.hasobject or dtype.names:
            raise Unreadable(f"it holds a numpy array of {self.name}")
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class RestrictedUnpickler(pickle.Unpickler):
    """The standard machine, which gets only what `_BUILDERS` lists and inert records.

    Args:
        stream: Where the pickle begins.
        storage: The bytes `[size]` of a storage by its key; none are kept elsewhere by default.
    """

    def __init__(self, stream: io.BytesIO, storage: Callable[[str, int], Tensor] | None = None):
        super().__init__(stream, encoding="latin1")
        self._storage = storage
        self.widths: dict[str, int] = {}
        """Bytes of a value in each storage that the pickle named."""
        self._records: dict[str, type] = {}
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Never the named object itself, and nothing is imported."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        origin = f"{module}.{name}"
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return _Builder(lambda: name)
        if origin in _BUILDERS:
            return _BUILDERS[origin]
        if origin not in self._records:
            self._records[origin] = RecordType(name.rpartition(".")[2] or "unnamed", (Record,), {"origin": origin})
        return self._records[origin]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage by its key; of a view on a storage only the whole is known here."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Builder):
            raise Unreadable("its tensors are kept in a way that is not known")
        if self._storage is None:
            raise Unreadable("a pickle of tensors whose values are kept elsewhere")
        kind, key, count = pid[1](), str(pid[2]), pid[4]
        if len(pid) > 5 and pid[5] is not None:
            raise Unreadable("its tensors are views of another storage, as only very old PyTorch wrote them")
        if not isinstance(count, int) or count < 0:
            raise Unreadable("damaged: a storage of no size")
        if key not in self._storages:
            dtype = _STORAGES.get(kind)
            if kind != "UntypedStorage" and dtype is None:
                self._storages[key] = _Storage(None, torch.empty(0, dtype=torch.uint8))
                return self._storages[key]
            width = 1 if dtype is None else dtype.itemsize
            self.widths[key] = width
            self._storages[key] = _Storage(dtype, self._storage(key, count * width))
        return self._storages[key]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    return _tensor(storage, storage.dtype if isinstance(storage, _Storage) else None, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    return _tensor(storage, dtype, offset, size, stride)


def _tensor(storage: Any, dtype: torch.dtype | None, offset: int, size: tuple, stride: tuple) -> Any:
    if not isinstance(storage, _Storage):
        raise Unreadable("damaged: a tensor without a storage")
    if dtype is None:
        return Unsupported("quantised")
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((*size, *stride, offset), default=0) < 0:
        raise Unreadable(f"damaged: a tensor of size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else -1
    available = len(storage.data) // dtype.itemsize
    if math.prod(size) > max(available, 2**20):
        raise Unreadable(f"damaged: a tensor of size {size} out of a storage of {available} values")
    if last >= available:
        raise Unreadable(f"damaged: a tensor reaches value {last} of a storage of {available}")
    flat = storage.data[: available * dtype.itemsize]
    if flat.storage_offset() * flat.element_size() % dtype.itemsize:
        flat = flat.clone()
    return torch.as_strided(flat.view(dtype), size, stride, flat.view(dtype).storage_offset() + offset)


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray | str):
        raise Unreadable("it holds a numpy array of Python objects")
    raw = data.encode("latin1") if isinstance(data, str) else data
    values = np.frombuffer(bytearray(raw), dtype.numpy).reshape(shape, order=order)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _scalar(dtype: Any, data: Any = None) -> Any:
    return _array(data, dtype, ()).item()


def _reconstructed(kind: Any, *_: Any) -> Record | None:
    return _new_record(kind) if isinstance(kind, RecordType) else None


def _container(kind: Callable) -> _Builder:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple | dict | set | frozenset):
            raise Unreadable("damaged: a container of something that is none")
        return kind(items)

    return _Builder(build)


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise Unreadable("damaged: bytes in an unknown encoding")
    return text.encode("latin1")


_DTYPES = {name: kind for name in dir(torch) if isinstance(kind := getattr(torch, name), torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64,
}  # fmt: skip
_HARMLESS = {
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "argparse.Namespace", "types.SimpleNamespace",
}  # fmt: skip
"""Classes of the standard library that files of results often hold; they, too, become records."""


def _unsupported(kind: str) -> _Builder:
    return _Builder(lambda *_: Unsupported(kind))


_BUILDERS = {
    "collections.OrderedDict": _container(OrderedDict),
    "collections.Counter": _container(dict),
    "collections.defaultdict": _Builder(lambda *_: {}),
    "collections.deque": _container(lambda items: list(items)),
    "copyreg._reconstructor": _Builder(_reconstructed),
    "_codecs.encode": _Builder(_encode),
    "torch.Size": _Builder(lambda size=(): tuple(size)),
    "torch.device": _Builder(lambda *parts: ":".join(map(str, parts))),
    "torch._utils._rebuild_tensor": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": _Builder(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _Builder(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Builder(lambda data, *_: data),
    "torch._utils._rebuild_qtensor": _unsupported("quantised"),
    "torch._utils._rebuild_sparse_tensor": _unsupported("sparse"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unsupported("without data"),
    "torch._utils._rebuild_wrapper_subclass": _unsupported("of a special kind"),
    **{f"torch.jit._pickle.build_{kind}list": _container(list) for kind in ("int", "double", "bool", "tensor")},
    "torch.serialization._get_layout": _Builder(lambda name: name),
    "numpy.ndarray": _Builder(lambda *_: None),
    "numpy.dtype": _Builder(_DType),
    **{f"{module}.{name}": _Builder(build)
       for module in ("numpy.core.multiarray", "numpy._core.multiarray")
       for name, build in (("_reconstruct", lambda *_: ArrayPieces()), ("scalar", _scalar))},
    **{f"{module}._frombuffer": _Builder(_array) for module in ("numpy.core.numeric", "numpy._core.numeric")},
    **{f"pathlib.{name}": _Builder(lambda *parts: PurePosixPath(*map(str, parts)))
       for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")},
    **{f"pathlib._local.{name}": _Builder(lambda *parts: PurePosixPath(*map(str, parts)))
       for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")},
    **{f"pathlib.{name}": _Builder(lambda *parts: PureWindowsPath(*map(str, parts)))
       for name in ("WindowsPath", "PureWindowsPath")},
    **{f"builtins.{kind.__name__}": _container(kind) for kind in (set, frozenset, list, tuple, dict)},
    **{f"builtins.{kind.__name__}": _Builder(kind) for kind in (int, float, bool, str, complex, slice, range)},
    **{f"builtins.{kind.__name__}": _Builder(lambda text="", *encoding, kind=kind: kind(_encode(text, *encoding)))
       for kind in (bytes, bytearray)},
}  # fmt: skip
"""Everything that a file may have called: functions of this module, under the names that files use."""
