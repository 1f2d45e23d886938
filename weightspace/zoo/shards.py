"""The weights of a zoo: matrices in memory, or files of which windows are read.

Reads are positioned reads into the result, not memory maps. A map is faster for a few windows that come again, but
its pages count as memory of the process, and around each page that is touched the system maps up to two megabytes that
are in its cache: a pass in random order over 10 GB was measured at 7 GB resident.

Axes: m checkpoint, s shard, n row of a shard or of a block, p parameter, w parameters of a window.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
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

    begin: int
    """First byte."""
    rows: int
    """Number of rows."""
    dtype: str
    """`F32`, `F16` or `BF16`."""


class OpenFile:
    """A file that is closed when nobody uses it any more, also where another thread has it from a cache."""

    def __init__(self, path: Path):
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
        self._files: dict[str, OpenFile] = {}

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
        source = self[shard]
        return len(source) if isinstance(source, Tensor) else self._where_stored(shard, source, layout).rows

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
        if len(row) and row.min() < 0:
            raise ZooError(f"the table wants row {row.min()} of a shard in {self._place}: its zoo is damaged")
        if (shard[1:] >= shard[:-1]).all():
            self._fill(window, where, layout, shard, row, columns)
            return window
        order = np.lexsort((row, shard))
        size = max(1, READ_VALUES // max(1, width))
        buffer = np.empty((min(size, len(row)), width), dtype=np.float32)
        for some in (order[i : i + size] for i in range(0, len(order), size)):
            self._fill(buffer[: len(some)], where, layout, shard[some], row[some], columns)
            window[some] = buffer[: len(some)]
        return window

    def _fill(
        self,
        window: Float[np.ndarray, "n w"],
        where: Locations,
        layout: Layout,
        shard: Int64[np.ndarray, " n"],
        row: Int64[np.ndarray, " n"],
        columns: slice,
    ) -> None:
        """Copy rows that are sorted by shard into a matrix."""
        edges = [0, *(np.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist(), len(shard)] if len(shard) else []
        size = max(1, READ_VALUES // max(1, window.shape[1]))
        for start, stop in pairwise(edges):
            name = where.shards[shard[start]][1]
            source, held = self[name], self.rows(name, layout)
            if (highest := int(row[start:stop].max())) >= held:
                raise ZooError(
                    f"the table wants row {highest} of shard {name} in {self._place}, which has {held} rows: "
                    f"{mend(Path(name).stem)}"
                )
            for at in range(start, stop, size):
                rows, target = row[at : min(at + size, stop)], window[at : min(at + size, stop)]
                if isinstance(source, Tensor):
                    target[:] = source[:, columns][torch.from_numpy(rows)].float().numpy()
                else:
                    self._fill_from_file(target, name, source, layout, rows, columns)

    def _fill_from_file(
        self,
        target: Float[np.ndarray, "n w"],
        shard: str,
        path: Path,
        layout: Layout,
        rows: Int64[np.ndarray, " n"],
        columns: slice,
    ) -> None:
        stored = self._where_stored(shard, path, layout)
        first, last, step = columns.indices(layout.parameters)
        dtype = np.dtype(DTYPES_ON_DISK[stored.dtype])
        span = max(0, last - first)
        direct = step == 1 and stored.dtype == "F32"
        values = target if direct else np.empty((len(rows), span), dtype)
        line, length = layout.parameters * dtype.itemsize, span * dtype.itemsize
        whole = span == layout.parameters and bool((rows[1:] - rows[:-1] == 1).all())
        begins = (stored.begin + first * dtype.itemsize + rows * line).tolist()
        if whole:
            begins, length = begins[:1], length * len(rows)
        file, buffer, at = self._open(shard, path), values.data.cast("B") if values.size else b"", 0
        # one call a row costs a microsecond, less than a page that is mapped anew
        for begin in begins if values.size else ():
            rest = buffer[at : at + length]
            while rest:  # the system reads at most 2 GB at once
                if not (got := os.preadv(file.descriptor, [rest], begin)):
                    raise ZooError(f"shard {path} is truncated or damaged (it became shorter): {mend(path.stem)}")
                rest, begin = rest[got:], begin + got
            at += length
        if not direct:
            target[:] = (_half(values) if stored.dtype == "BF16" else values)[:, ::step]

    def _where_stored(self, shard: str, path: Path, layout: Layout) -> Stored:
        key = (shard, layout.digest)
        if key not in self._stored:
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
            self._stored[key] = Stored(8 + length + offset, shape[0], dtype)
        return self._stored[key]

    def _open(self, shard: str, path: Path) -> OpenFile:
        if (file := self._files.get(shard)) is None:
            file = OpenFile(existing(path))
            if len(self._files) >= OPEN_FILES:
                self._files.clear()
            self._files[shard] = file
        return file


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
