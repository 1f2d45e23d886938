"""The tables of a zoo folder, read when they are needed and only in the columns that are asked for.

A million checkpoints have a hundred megabytes of tables; most uses want three columns of them, or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from weightspace.errors import ZooError

NEEDED = pl.Schema({"model": pl.String, "step": pl.Int64, "layout": pl.String, "shard": pl.String, "row": pl.Int64})
"""Columns that every table has, and their types."""


@dataclass(frozen=True)
class TableParts:
    """The tables that were committed when the zoo was opened; parts appended later do not show."""

    files: tuple[Path, ...]
    """Parquet files, in the order of their rows."""
    layouts: frozenset[str]
    """Digests that the header knows."""

    def read(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """One table of all parts; a column that a part lacks is null there, one that all lack is left out.

        Args:
            columns: Names to read; all when missing.

        Raises:
            ZooError: A table is missing or damaged, lacks a needed column, or has a layout that the header lacks.
        """
        try:
            scan = pl.scan_parquet(list(self.files), glob=False)
            table = (scan if columns is None else scan.select(columns)).collect()
        except (pl.exceptions.PolarsError, OSError):  # parts differ, which the slower way joins, or one is damaged
            table = pl.concat([_read(file, columns) for file in self.files], how="diagonal_relaxed")
        for column, dtype in NEEDED.items():
            if (columns is None or column in columns) and (
                table.schema.get(column) != dtype or table[column].null_count()
            ):
                raise ZooError(
                    f"the tables in {self.files[0].parent} need a column {column!r} of type {dtype} without nulls"
                )
        if "layout" in table.columns and (unknown := sorted(set(table["layout"].unique()) - self.layouts)):
            zoo = self.files[0].parents[1] / "zoo.json"
            raise ZooError(f"{zoo} lacks layout {unknown[0]}, which its checkpoints have: restore the file")
        return table

    def check_first(self) -> None:
        """Read the columns of the first table: enough to see at once that a folder holds something else.

        Raises:
            ZooError: The table is damaged, or lacks a needed column.
        """
        try:
            schema = pl.scan_parquet(self.files[0], glob=False).collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _damaged(self.files[0]) from error
        for column, dtype in NEEDED.items():
            if schema.get(column) != dtype:
                raise ZooError(f"the tables in {self.files[0].parent} need a column {column!r} of type {dtype}")


def mend(part: str) -> str:
    """What to do about a damaged part."""
    return (
        f"delete checkpoints/{part}.parquet and weights/{part}.safetensors of the zoo "
        "and run its training command again, which makes this part anew"
    )


def _read(file: Path, columns: Sequence[str] | None) -> pl.DataFrame:
    try:
        table = pl.scan_parquet(file, glob=False)
        if columns is not None:
            table = table.select(name for name in columns if name in table.collect_schema())
        return table.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> ZooError:
    if not file.exists():
        return ZooError(f"{file} was there when the zoo was opened and is gone: open the zoo again")
    return ZooError(f"{file} is truncated or damaged: {mend(file.stem)}")
