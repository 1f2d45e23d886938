"""The weights of a zoo: matrices in memory, or files of which windows are read.

Reads are positioned reads into the result, not memory maps. A map is faster for a few windows that come again, but
its pages count as memory of the process, and around each page that is touched the system maps up to two megabytes that
are in its cache: a pass in random order over 10 GB was measured at 7 GB resident.

Axes: m checkpoint, s shard, n row wanted, p parameter, w parameters of a window.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightspace.errors import ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo.parts import mend

Source = Path | Tensor
"""A safetensors file, or a matrix in memory."""

DTYPES_ON_DISK = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
READ_VALUES = 2**20
"""Values copied at a time: 4 MB."""
OPEN_FILES = 200
"""Files kept open; systems allow about a thousand."""


@dataclass(frozen=True)
class Locations:
    """Where the weights of the checkpoints lie, as arrays."""

    shards: list[tuple[str, str]]
    """Layout and shard, each pair once."""
    shard: Int64[np.ndarray, " m"]
    """Position of each checkpoint's pair."""
    row: Int64[np.ndarray, " m"]
    """Line in the shard's matrix."""

    @classmethod
    def of(cls, table: pl.DataFrame) -> "Locations":
        """The columns `layout`, `shard` and `row` of a table.

        >>> Locations.of(pl.DataFrame({"layout": [*"xxx"], "shard": [*"aba"], "row": [1, 0, 0]})).shard
        array([0, 1, 0])
        """
        pair = table.select("layout", "shard")
        # tables are long runs of one shard each, and text is slow: only the first of each run is looked at
        begins = pair.select(pl.any_horizontal(pl.all() != pl.all().shift()).fill_null(True)).to_series()
        heads = pair.filter(begins)
        known = heads.unique(maintain_order=True)
        number = {key: i for i, key in enumerate(known.iter_rows())}
        of_run = np.array([number[key] for key in heads.iter_rows()], dtype=np.int64)
        run = np.cumsum(begins.to_numpy()) - 1
        return cls(known.rows(), of_run[run], table["row"].to_numpy(writable=True))


@dataclass(frozen=True)
class Stored:
    """Where the matrix of a shard lies in its file."""

    path: Path
    """The file."""
    begin: int
    """First byte of the matrix."""
    rows: int
    """Number of rows."""
    dtype: str
    """`F32`, `F16` or `BF16`."""


class OpenFile:
    """A file that is closed when nobody uses it any more, also where another thread has it from a cache."""

    def __init__(self, path: Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Shards:
    """Where the weights of a zoo are, by the name in the table's column `shard`; shared by all its selections."""

    def __init__(self, sources: Path | Mapping[str, Source]):
        """A folder of files that are called like the shards, or a source for each shard."""
        self._sources = sources
        self._stored: dict[tuple[str, str], Stored] = {}
        self._files: dict[Path, OpenFile] = {}

    def __getitem__(self, shard: str) -> Source:
        """The source of a shard; of a file, its path, whether it exists or not."""
        if not isinstance(self._sources, Path):
            return self._sources[shard]
        if Path(shard).name != shard:
            raise ZooError(f"the table names a shard {shard!r} outside of {self._sources}: its zoo is damaged")
        return self._sources / shard

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay with the process that opened them."""
        return {"_sources": self._sources, "_stored": self._stored, "_files": {}}

    @property
    def _place(self) -> str:
        return str(self._sources) if isinstance(self._sources, Path) else "memory"

    def rows(self, shard: str, layout: Layout) -> int:
        """Number of rows of a shard.

        Raises:
            ZooError: It is missing, truncated, or does not fit the layout.
        """
        found = self._find(shard, layout)
        return len(found) if isinstance(found, Tensor) else found.rows

    def read(
        self,
        where: Locations,
        layout: Layout,
        places: Int64[np.ndarray, " n"] | None = None,
        columns: slice = slice(None),
    ) -> Float[np.ndarray, "n w"]:
        """Weights of checkpoints of one layout as a new float32 matrix; only their bytes are read.

        Args:
            where: Where the weights of all checkpoints lie.
            layout: Layout of those that are read.
            places: Positions among all checkpoints, in the order wanted; all when missing.
            columns: Parameters.

        Raises:
            ZooError: A shard is missing, truncated, does not fit the layout, or lacks a row.
        """
        shard, row = (where.shard, where.row) if places is None else (where.shard[places], where.row[places])
        width = len(range(*columns.indices(layout.parameters)))
        # numpy asks the system for huge pages, which makes filling a large new matrix several times faster
        window = np.empty((len(row), width), dtype=np.float32)
        used = np.flatnonzero(np.bincount(shard, minlength=len(where.shards)))
        held = np.zeros(len(where.shards), dtype=np.int64)
        found = {number: self._find(where.shards[number][1], layout) for number in used.tolist()}
        held[used] = [len(x) if isinstance(x, Tensor) else x.rows for x in found.values()]
        if (outside := (row < 0) | (row >= held[shard])).any():
            at = outside.argmax()
            name = where.shards[shard[at]][1]
            raise ZooError(
                f"the table wants row {row[at]} of shard {name} in {self._place}, which has {held[shard[at]]} rows: "
                f"{mend(Path(name).stem)}"
            )
        for number, source in found.items():
            if isinstance(source, Tensor):
                some = slice(None) if len(used) == 1 else np.flatnonzero(shard == number)
                window[some] = source[:, columns][torch.from_numpy(row[some])].float().numpy()
        files = {number: stored for number, stored in found.items() if isinstance(stored, Stored)}
        for group in _alike(files):
            some = slice(None) if len(group) == len(used) else np.flatnonzero(np.isin(shard, list(group)))
            self._read_files(window, some, group, shard[some], row[some], layout.parameters, columns)
        return window

    def _read_files(
        self,
        window: Float[np.ndarray, "m w"],
        some: slice | np.ndarray,
        stored: Mapping[int, Stored],
        shard: Int64[np.ndarray, " n"],
        row: Int64[np.ndarray, " n"],
        parameters: int,
        columns: slice,
    ) -> None:
        """Read rows of files of one type into some lines of a matrix."""
        kind = next(iter(stored.values())).dtype
        dtype = np.dtype(DTYPES_ON_DISK[kind])
        first, last, step = columns.indices(parameters)
        span = max(0, last - first)
        if not span or not len(row):
            return
        begin = np.zeros(max(stored) + 1, dtype=np.int64)
        begin[list(stored)] = [x.begin for x in stored.values()]
        files = {number: self._open(x.path) for number, x in stored.items()}
        begins = begin[shard] + (row * parameters + first) * dtype.itemsize
        new_run = np.ones(len(row) + 1, dtype=bool)
        if span == parameters:  # neighbours in the file are read together
            new_run[1:-1] = (shard[1:] != shard[:-1]) | (row[1:] != row[:-1] + 1)
        if kind == "F32" and step == 1 and isinstance(some, slice):
            _read_runs(window, files, shard, begins, new_run)
            return
        size = max(1, READ_VALUES // span)
        values = np.empty((min(size, len(row)), span), dtype)
        places = np.arange(len(window))[some]
        for at in range(0, len(row), size):
            here = slice(at, min(at + size, len(row)))
            read = values[: here.stop - at]
            _read_runs(read, files, shard[here], begins[here], np.append(True, new_run[at + 1 : here.stop + 1]))
            window[places[here]] = (_half(read) if kind == "BF16" else read)[:, ::step]

    def _find(self, shard: str, layout: Layout) -> Stored | Tensor:
        """The matrix in memory, or where it lies in its file, whose header is read once."""
        key = (shard, layout.digest)
        if (stored := self._stored.get(key)) is not None:
            return stored
        path = self[shard]
        if isinstance(path, Tensor):
            return path
        try:
            with safe_open(existing(path), framework="np") as file:  # checks the header against the file's size
                found = file.get_slice("rows")
                dtype, shape = found.get_dtype(), tuple(found.get_shape())
        except SafetensorError as error:
            raise ZooError(f"shard {path} is truncated or damaged ({error}): {mend(path.stem)}") from error
        if len(shape) != 2 or shape[1] != layout.parameters or dtype not in DTYPES_ON_DISK:
            raise ZooError(
                f"shard {path} holds {dtype} {shape}, but its layout {layout.digest} has rows of "
                f"{layout.parameters} parameters: {mend(path.stem)}"
            )
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            offset = json.loads(content.read(length))["rows"]["data_offsets"][0]
        self._stored[key] = Stored(path, 8 + length + offset, shape[0], dtype)
        return self._stored[key]

    def _open(self, path: Path) -> OpenFile:
        if (file := self._files.get(path)) is None:
            file = OpenFile(existing(path))
            if len(self._files) >= OPEN_FILES:
                self._files.clear()
            self._files[path] = file
        return file


def _alike(stored: Mapping[int, Stored]) -> Iterator[dict[int, Stored]]:
    """Groups of shards that are read together: of one type, and not more than may be open."""
    kinds: dict[str, dict[int, Stored]] = {}
    for number, x in stored.items():
        kinds.setdefault(x.dtype, {})[number] = x
    for group in kinds.values():
        numbers = list(group)
        for i in range(0, len(numbers), OPEN_FILES):
            yield {number: group[number] for number in numbers[i : i + OPEN_FILES]}


def _read_runs(
    target: np.ndarray,
    files: Mapping[int, OpenFile],
    shard: Int64[np.ndarray, " n"],
    begins: Int64[np.ndarray, " n"],
    new_run: Bool[np.ndarray, " n_and_1"],
) -> None:
    """Read lines of a contiguous matrix, several with one call where they are neighbours in a file.

    A call takes a microsecond, less than a page that is mapped anew.
    """
    new_run[-1] = True
    heads = np.flatnonzero(new_run[:-1])
    buffer, line = target.data.cast("B"), target.strides[0]
    edges = (np.append(heads, len(target)) * line).tolist()
    for number, begin, start, stop in zip(
        shard[heads].tolist(), begins[heads].tolist(), edges, edges[1:], strict=False
    ):
        file, rest = files[number], buffer[start:stop]
        while rest:  # the system reads at most 2 GB at once
            if not (got := os.preadv(file.descriptor, [rest], begin)):
                raise ZooError(f"shard {file.path} is truncated or damaged (it became shorter): {mend(file.path.stem)}")
            rest, begin = rest[got:], begin + got


def _half(words: np.ndarray) -> Float[np.ndarray, "n w"]:
    """Values of bfloat16 words, which numpy does not know: the upper half of a float32."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def existing(shard: Path) -> Path:
    """The path of a shard that is there.

    Raises:
        ZooError: It is missing.
    """
    if not shard.is_file():
        raise ZooError(f"shard {shard} is missing: {mend(shard.stem)}")
    return shard


def same(a: Source, b: Source) -> bool:
    """Whether two sources are one storage."""
    return a is b or (isinstance(a, Path) and isinstance(b, Path) and a == b)
