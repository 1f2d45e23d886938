"""A user's table of labels, joined to imported checkpoints by the names of files or models."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from weightspace.errors import ZooError
from weightspace.zoo.importers.found import label_columns, read_csv_file

Key = tuple[str, int]
"""Model and step of a checkpoint."""


@dataclass(frozen=True)
class Labels:
    """Lines of a CSV file, one a checkpoint or one a model.

    A column whose values are the names of most checkpoints joins: paths below the source, with or without suffix, file
    names, or models. Columns called `model` and `step`, if they do not join, say which run and epoch a file is of.
    """

    file: Path
    table: pl.DataFrame

    @classmethod
    def read(cls, file: Path) -> "Labels":
        """The table in a CSV file.

        Raises:
            ZooError: It cannot be read, or has no lines.
        """
        table = read_csv_file(file)
        if not table.height:
            raise ZooError(f"{file} has no lines: give a table with one line a checkpoint")
        return cls(file, table)

    def join(
        self, tables: Sequence[pl.DataFrame], sources: Mapping[Key, str]
    ) -> tuple[list[pl.DataFrame], Counter[str]]:
        """The tables of checkpoints with the columns of this one, and notes on what had no partner.

        Args:
            tables: Checkpoints with `model` and `step`.
            sources: Which file or folder each checkpoint is from.

        Raises:
            ZooError: No column names the checkpoints, a name appears twice, or models and steps are not unique.
        """
        names = _names(sources)
        column, lines = self._joining(names)
        keys = pl.DataFrame(
            {"model": [key[0] for key in lines], "step": [key[1] for key in lines], "line": list(lines.values())},
            schema={"model": pl.String, "step": pl.Int64, "line": pl.Int64},
        )
        told = self._told(column, names)
        joined = []
        for table in tables:
            part = table.join(keys, on=["model", "step"], how="left", maintain_order="left")
            part = part.drop([n for n in told.columns if n in part.columns and n not in ("model", "step", "line")])
            part = part.join(told, on="line", how="left", suffix=" told", maintain_order="left").drop("line")
            for name in ("model", "step"):
                if f"{name} told" in part.columns:
                    part = part.with_columns(pl.coalesce(f"{name} told", name).alias(name)).drop(f"{name} told")
            joined.append(part)
        self._require_unique(joined)
        notes = Counter({f"labels joined by column {column!r}": len(lines)})
        if without := sum(table.height for table in joined) - len(lines):
            notes["labels: no line for the checkpoint"] = without
        if unused := self.table.height - len(set(lines.values())):
            notes["labels: lines that name no checkpoint"] = unused
        return joined, notes

    def _joining(self, names: Mapping[str, list[Key]]) -> tuple[str, dict[Key, int]]:
        """The column that names most checkpoints, and the line of each checkpoint."""
        best, lines, twice = "", dict[Key, int](), ""
        for column in self.table.columns:
            found: dict[Key, int] = {}
            repeated = ""
            for line, value in enumerate(self.table[column].cast(pl.String, strict=False)):
                for key in names.get(PurePosixPath(value).as_posix() if value else "", ()):
                    repeated = repeated or (value if key in found else "")
                    found[key] = line
            if len(found) > len(lines):
                best, lines, twice = column, found, repeated
        if twice:
            raise ZooError(f"{self.file} names {twice!r} in two lines of column {best!r}: keep one")
        if not lines:
            example = min((n for n in names), default="")
            raise ZooError(
                f"no column of {self.file} ({', '.join(self.table.columns)}) names the checkpoints: "
                f"one must hold their files or models, such as {example!r}"
            )
        return best, lines

    def _told(self, joining: str, names: Mapping[str, list[Key]]) -> pl.DataFrame:
        """The columns to add, by line; those that only repeat the names are left out."""
        dropped = {joining}
        for column in self.table.columns:
            values = self.table[column].drop_nulls()
            if values.dtype == pl.String and len(values) and all(value in names for value in values):
                dropped.add(column)
        own = [name for name in ("model", "step") if name in self.table.columns and name not in dropped]
        rest = self.table.drop([*dropped, *own])
        columns = [pl.col("model").cast(pl.String)] if "model" in own else []
        columns += [pl.col("step").cast(pl.Int64, strict=False)] if "step" in own else []
        return label_columns(rest).hstack(self.table.select(columns)).with_row_index("line").cast({"line": pl.Int64})

    def _require_unique(self, tables: Sequence[pl.DataFrame]) -> None:
        keys = pl.concat([table.select("model", "step") for table in tables])
        if (twice := keys.filter(keys.is_duplicated())).height:
            model, step = twice.row(0)
            raise ZooError(f"{self.file} gives two checkpoints the model {model!r} and step {step}: tell steps apart")


def _names(sources: Mapping[Key, str]) -> dict[str, list[Key]]:
    """Checkpoints by everything that may name them; a name that several files share names none of them."""
    names: dict[str, list[Key]] = {}
    for key, source in sources.items():
        path = PurePosixPath(source)
        for name in {source, path.with_suffix("").as_posix(), path.name, path.stem}:
            names.setdefault(name, []).append(key)
    unique = {name: keys for name, keys in names.items() if len({sources[key] for key in keys}) == 1}
    models: dict[str, list[Key]] = {}
    for key in sources:
        models.setdefault(key[0], []).append(key)
    return models | unique
