"""The weights of a zoo: matrices in memory, or files that are mapped into memory while they are read.

A mapped page counts as memory of this process from its first use until the map is dropped. Maps are kept, because
opening one takes as long as reading some hundred rows; all are dropped when their pages may exceed a bound, so a pass
over a zoo of any size stays in bounded memory. The pages themselves stay in the system's page cache.

Axes: m checkpoint, s shard, n row of a shard or of a block, p parameter, w parameters of a window.
"""

from collections.abc import Iterator, Mapping
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
Block = tuple[slice | Int64[Tensor, " n"], Float[Tensor, "n w"]]
"""Where some rows stand among those wanted, and the rows: to be used at once, as they may be overwritten."""

RESIDENT_BYTES = 2**27
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
        self._maps: dict[str, Tensor] = {}
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

    def matrix(self, shard: str, layout: Layout) -> Float[Tensor, "n p"]:
        """All rows of a shard, in the dtype of the store; their bytes are read when they are used.

        Raises:
            ZooError: The shard is missing, truncated, or does not fit the layout.
        """
        if (kept := self._maps.get(shard)) is not None and kept.shape[1] == layout.parameters:
            return kept
        source = self[shard]
        if isinstance(source, Tensor):
            return source
        try:
            with safe_open(existing(source), framework="pt") as file:
                matrix = file.get_tensor("rows")
        except SafetensorError as error:
            raise ZooError(f"shard {source} is truncated or damaged ({error}): {mend(source.stem)}") from error
        if matrix.ndim != 2 or matrix.shape[1] != layout.parameters or matrix.dtype not in DTYPES:
            raise ZooError(
                f"shard {source} holds {matrix.dtype} {tuple(matrix.shape)}, but its layout {layout.digest} has rows "
                f"of {layout.parameters} parameters: {mend(source.stem)}"
            )
        self._maps[shard] = matrix
        return matrix

    def blocks(
        self,
        where: Locations,
        layouts: Mapping[str, Layout],
        places: Int64[np.ndarray, " n"] | None,
        columns: slice,
        values: int,
    ) -> Iterator[Block]:
        """Weights in the dtype of the store, a bounded number of values at a time, in the order of the files.

        Args:
            where: Where the weights of all checkpoints lie.
            layouts: By digest.
            places: Positions among the checkpoints; all when missing.
            columns: Parameters wanted.
            values: At most so many at a time, counting whole rows.

        Raises:
            ZooError: A shard is missing, truncated, does not fit its layout, or lacks a row.
        """
        shard, row, order = where.shard, where.row, None
        if places is not None:
            shard, row = shard[places], row[places]
        if (np.diff(shard) < 0).any():
            order = np.lexsort((row, shard))
            shard, row = shard[order], row[order]
        edges = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(shard)] if len(shard) else []
        for start, stop in pairwise(edges):
            digest, name = where.shards[shard[start]]
            layout = layouts[digest]
            self._check(name, layout, row[start:stop])
            size, buffer = max(1, values // max(1, layout.parameters)), None
            for at in range(start, stop, size):
                rows = row[at : min(at + size, stop)]
                window = self.matrix(name, layout)[:, columns]
                scattered = bool((np.diff(rows) != 1).any())
                if scattered:
                    if buffer is None:
                        buffer = window.new_empty(min(size, stop - start), window.shape[1])
                    block = torch.index_select(window, 0, torch.from_numpy(rows), out=buffer[: len(rows)])
                else:
                    block = window[rows[0] : rows[0] + len(rows)]
                place = slice(at, at + len(rows))
                yield place if order is None else torch.from_numpy(order[place]), block
                self._used(block, scattered)

    def _check(self, name: str, layout: Layout, rows: Int64[np.ndarray, " n"]) -> None:
        count = len(self.matrix(name, layout))
        if outside := [row for row in (rows.min(), rows.max()) if not 0 <= row < count]:
            raise ZooError(
                f"the table wants row {outside[0]} of shard {name} in {self._place}, "
                f"which has {count} rows: {mend(name.removesuffix('.safetensors'))}"
            )

    def _used(self, rows: Tensor, scattered: bool) -> None:
        """Count what a read of these rows has brought into memory, and drop the maps before it becomes too much."""
        self._touched += rows.numel() * rows.element_size() + scattered * len(rows) * AROUND_BYTES
        if self._touched > RESIDENT_BYTES:
            self._maps.clear()
            self._touched = 0


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
