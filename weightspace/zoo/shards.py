"""The weights of a zoo: matrices in memory, or files that are mapped into memory while they are read.

A mapped page counts as memory of this process from its first use until the map is dropped. Maps are kept, because
opening one takes as long as reading some hundred rows; all are dropped when their pages may exceed a bound, so a pass
over a zoo of any size stays in bounded memory. The pages themselves stay in the system's page cache.

Axes: m checkpoint, s shard, n row of a shard or of a block, p parameter, w parameters of a window.
"""

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
from weightspace.zoo.writer import DTYPES

Source = Path | Tensor
"""A safetensors file, or a matrix in memory."""

READ_VALUES = 2**20
"""Values copied at a time: 4 MB."""
RESIDENT_BYTES = 2**29
AROUND_BYTES = 2**16  # the system maps so much around a page that is touched


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


class Shards:
    """Where the weights of a zoo are, by the name in the table's column `shard`; shared by all its selections."""

    def __init__(self, sources: Path | Mapping[str, Source]):
        """A folder of files that are called like the shards, or a source for each shard."""
        self._sources = sources
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        self._touched = 0

    def __getitem__(self, shard: str) -> Source:
        """The source of a shard; of a file, its path, whether it exists or not."""
        if not isinstance(self._sources, Path):
            return self._sources[shard]
        if Path(shard).name != shard:
            raise ZooError(f"the table names a shard {shard!r} outside of {self._sources}: its zoo is damaged")
        return self._sources / shard

    @property
    def _place(self) -> str:
        return str(self._sources) if isinstance(self._sources, Path) else "memory"

    def __getstate__(self) -> dict[str, Any]:
        """Maps stay with the process that made them."""
        return {"_sources": self._sources, "_maps": {}, "_touched": 0}

    def matrix(self, shard: str, layout: Layout) -> np.ndarray:
        """All rows of a shard `[n, p]`, float32, float16 or, for bfloat16, words; read when they are used.

        Raises:
            ZooError: The shard is missing, truncated, or does not fit the layout.
        """
        key = (shard, layout.digest)
        if (kept := self._maps.get(key)) is not None:
            return kept
        source = self[shard]
        try:
            if isinstance(source, Tensor):
                rows = source
            else:
                with safe_open(existing(source), framework="pt") as file:
                    rows = file.get_tensor("rows")
        except SafetensorError as error:
            raise ZooError(f"shard {source} is truncated or damaged ({error}): {mend(Path(shard).stem)}") from error
        if rows.ndim != 2 or rows.shape[1] != layout.parameters or rows.dtype not in DTYPES:
            raise ZooError(
                f"shard {shard if isinstance(source, Tensor) else source} holds {rows.dtype} {tuple(rows.shape)}, "
                f"but its layout {layout.digest} has rows of {layout.parameters} parameters: {mend(Path(shard).stem)}"
            )
        self._maps[key] = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
        return self._maps[key]

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
        size = max(1, READ_VALUES // max(1, layout.parameters))
        for start, stop in pairwise(edges):
            name = where.shards[shard[start]][1]
            for at in range(start, stop, size):
                rows = row[at : min(at + size, stop)]
                first, count = int(rows[0]), len(rows)
                straight = int(rows[-1]) - first == count - 1 and bool((rows[1:] - rows[:-1] == 1).all())
                matrix = self.matrix(name, layout)[:, columns]
                try:
                    values = matrix[first : first + count] if straight else matrix[rows]
                    window[at : at + count] = _half(values) if values.dtype == np.uint16 else values
                except (IndexError, ValueError) as error:  # ValueError: a slice that ends early
                    raise ZooError(
                        f"the table wants row {rows.max()} of shard {name} in {self._place}, which has {len(matrix)} "
                        f"rows: {mend(name.removesuffix('.safetensors'))}"
                    ) from error
                self._touched += window[0].nbytes * count + (0 if straight else AROUND_BYTES * count)
                if self._touched > RESIDENT_BYTES:
                    self._maps.clear()
                    self._touched = 0


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
