"""Files of `torch.save`: named tensors and what was saved with them, without running anything that is in them.

Three containers are known: the zip archives since PyTorch 1.6, whose values stay on disk until used (memory-mapped),
the older sequence of pickles, and a bare pickle.
"""

import io
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.zoo.importers.found import Unreadable
from weightspace.zoo.importers.restricted_pickle import ArrayPieces, Record, RestrictedUnpickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What files of torch.save before PyTorch 1.6 begin with, as a pickle."""


def load(source: Path | bytes) -> Any:
    """The content of a file of `torch.save` or of a pickle: tensors, containers, plain values and `Record`s.

    Tensors of a zip archive on disk are memory maps, private to this process.

    Raises:
        UnsafeFile: The file would execute code.
        Unreadable: It is truncated, damaged or none of the known containers.

    >>> buffer = io.BytesIO()
    >>> torch.save({"weight": torch.ones(2)}, buffer)
    >>> load(buffer.getvalue())
    {'weight': tensor([1., 1.])}
    """
    try:
        start = source[:20] if isinstance(source, bytes) else _head(source)
        if start.startswith(b"PK"):
            return _load_zip(source)
        if start.startswith(b"\x80"):
            stream = _opened(source)
            content = RestrictedUnpickler(stream).load()
            return _load_legacy(stream) if content == LEGACY_MAGIC else _finished(content)
    except Unreadable:
        raise
    except (OSError, zipfile.BadZipFile, struct.error) as error:
        raise Unreadable(f"truncated or damaged: {error}") from error
    except MemoryError as error:
        raise Unreadable("it asks for more memory than there is") from error
    except Exception as error:  # a hostile or damaged pickle can make any operation of the machine fail
        raise Unreadable(f"truncated or damaged: {type(error).__name__}: {error}") from error
    raise Unreadable("neither a file of torch.save nor a pickle")


def mentions(file: Path, names: tuple[bytes, ...]) -> bool:
    """Whether the pickle in a file of `torch.save` has one of these words in it; nothing is unpickled."""
    try:
        with zipfile.ZipFile(file) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(entry) as stream:
                start = stream.read(2**20)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False
    return any(name in start for name in names)


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(20)


def _opened(source: Path | bytes) -> io.BytesIO:
    return io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())


def _load_zip(source: Path | bytes) -> Any:
    raw = np.frombuffer(bytearray(source), np.uint8) if isinstance(source, bytes) else np.memmap(source, mode="c")
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Unreadable("a zip archive, but not one of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in entries and archive.read(order) != sys.byteorder.encode():
            raise Unreadable("its numbers are in the byte order of another machine")

        def storage(key: str, size: int) -> Tensor:
            entry = entries[f"{folder}data/{key}" if f"{folder}data/{key}" in entries else f"{folder}constants/{key}"]
            if entry.compress_type != zipfile.ZIP_STORED:
                data = np.frombuffer(bytearray(archive.read(entry)), np.uint8)
            else:
                local = raw[entry.header_offset : entry.header_offset + 30].tobytes()
                begin = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
                data = raw[begin : begin + entry.file_size]
            if len(data) < size:
                raise Unreadable(f"truncated: storage {key} has {len(data)} of {size} bytes")
            return torch.from_numpy(np.asarray(data[:size]))

        return _finished(RestrictedUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load())


def _load_legacy(stream: io.BytesIO) -> Any:
    """The pickles after the magic number, then the values of the storages."""
    storages: dict[str, Tensor] = {}

    def storage(key: str, size: int) -> Tensor:
        if size > len(stream.getbuffer()):
            raise Unreadable(f"truncated: storage {key} of {size} bytes is larger than the file")
        return storages.setdefault(key, torch.zeros(size, dtype=torch.uint8))

    for _ in range(2):  # protocol, machine
        RestrictedUnpickler(stream).load()
    reader = RestrictedUnpickler(stream, storage)
    content = reader.load()
    for key in RestrictedUnpickler(stream).load():
        count = int.from_bytes(stream.read(8), "little")
        data = stream.read(count * reader.widths[key])
        if key not in storages or len(data) != len(storages[key]):
            raise Unreadable(f"truncated: storage {key} has {len(data)} of {len(storages.get(key, ()))} bytes")
        storages[key].copy_(torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)))
    return _finished(content)


def _finished(content: Any) -> Any:
    """The content with numpy arrays in the place of their pieces."""
    done: dict[int, Any] = {}
    stack = [content]
    while stack:
        value = stack.pop()
        if id(value) in done:
            continue
        done[id(value)] = value
        for key, inner in _inside(value):
            if isinstance(inner, ArrayPieces):
                if isinstance(value, dict | list):
                    value[key] = inner.value
            else:
                stack.append(inner)
        if isinstance(value, Record):
            value.arguments = tuple(x.value if isinstance(x, ArrayPieces) else x for x in value.arguments)
    return content.value if isinstance(content, ArrayPieces) else content


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from list(value.items())
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Record):
        yield from (("state", value.state), ("items", value.items), ("entries", value.entries))
