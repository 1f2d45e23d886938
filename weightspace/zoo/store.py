"""A zoo as it is read: a table of checkpoints, and where the weights of each row lie.

Opening reads `zoo.json` and the tables; weights are memory-mapped when asked for. A selection is another table over
the same storage. Splits are by model, never by checkpoint: checkpoints of one run on both sides of a split leak.

Axes: m checkpoint (one table row, one weight row), p parameter.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightspace.errors import LayoutError, ZooError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.zoo.writer import (
    DTYPES,
    LOCATION,
    ZooWriter,
    complete_header,
    located,
    read_header,
    read_json,
    write_file,
)

__all__ = ["Zoo", "ZooWriter", "open"]

Side = Literal["train", "validation", "test"]
Source = Path | Tensor

SIDES: tuple[Side, ...] = ("train", "validation", "test")
BLOCK_VALUES = 2**24  # read at a time: 64 MB of float32


@dataclass(frozen=True, eq=False, repr=False)
class Zoo:
    """A population of checkpoints; immutable, and every selection shares the storage.

    >>> table = pl.DataFrame({"model": ["a", "a", "b"], "step": [0, 1, 0], "metric.test_accuracy": [0.1, 0.9, 0.2]})
    >>> zoo = Zoo.in_memory(torch.randn(3, 8), Layout.of(torch.nn.Linear(3, 2)), table, {"name": "tiny"})
    >>> zoo.best(0.3, by="metric.test_accuracy")
    Zoo('tiny': 1 model, 1 checkpoint, 8 parameters, in memory)
    """

    table: pl.DataFrame
    """One row a checkpoint: model, step (epochs), layout, shard, row, config.*, metric.*."""
    header: dict[str, Any]
    """Content of `zoo.json`."""
    shards: Mapping[str, Source]
    """Where the weights are: a file, or a matrix in memory, by the name in the table's `shard` column."""
    origins: Mapping[Path | None, tuple[str, ...]]
    """All models of the zoos this one was selected from, by folder (`None`: in memory); splits are made over them."""

    @classmethod
    def in_memory(cls, rows: Float[Tensor, "m p"], layout: Layout, table: pl.DataFrame, header: dict) -> "Zoo":
        """A zoo that is not on disk, for example of generated networks.

        Args:
            rows: Weights `[m, parameters]`, float32, float16 or bfloat16; copied.
            layout: Layout of the rows.
            table: `m` checkpoints: `model` (text), `step` (whole epochs), and any `config.*` and `metric.*`.
            header: What is known of the zoo: name, network, dataset, recipe, created_by; may be that of another zoo.

        Raises:
            ZooError: Rows, table and layout do not fit together.
        """
        table = located(rows, table, layout, "memory")
        models = tuple(table["model"].unique(maintain_order=True))
        store = rows.detach().cpu().clone(memory_format=torch.contiguous_format)
        return cls(table, complete_header(header, "unnamed", [layout]), {"memory": store}, {None: models})

    @staticmethod
    def concat(zoos: Sequence["Zoo"]) -> "Zoo":
        """Several zoos of the same layouts as one; a column that one of them lacks is null there.

        The header is that of the first. Nothing is read or copied.

        Raises:
            ZooError: Layouts differ, or a model has the same step in two of the zoos.
        """
        if not zoos:
            raise ZooError("concat needs at least one zoo, got none")
        zoos = [zoo for zoo in zoos if len(zoo)] or zoos[:1]
        layouts = [sorted(zoo.table["layout"].unique()) for zoo in zoos]
        if any(found != layouts[0] for found in layouts):
            raise ZooError(f"zoos of different layouts cannot be joined, got {layouts}: select one layout first")
        shards: dict[str, Source] = {}
        origins: dict[Path | None, tuple[str, ...]] = {}
        tables = []
        for zoo in zoos:
            names = {}
            for name, source in zoo.shards.items():
                new, copy = name, 1
                while new in shards and not _same(shards[new], source):
                    new, copy = f"{copy}/{name}", copy + 1
                names[name] = new
                shards[new] = source
            tables.append(zoo.table.with_columns(pl.col("shard").replace(names)))
            for folder, models in zoo.origins.items():
                origins[folder] = tuple(dict.fromkeys(origins.get(folder, ()) + models))
        table = pl.concat(tables, how="diagonal_relaxed")
        places = table.select("model", "step", "shard", "row").unique()
        clash = places.filter(pl.struct("model", "step").is_duplicated())
        if clash.height:
            model, step = clash.sort("model", "step").select("model", "step").row(0)
            raise ZooError(f"two zoos have a model {model!r} with step {step}: give the models different names")
        return Zoo(table, zoos[0].header, shards, origins)

    def __len__(self) -> int:
        """Number of checkpoints."""
        return self.table.height

    def __repr__(self) -> str:
        counts = [(len(self.models), "model"), (len(self), "checkpoint")]
        layouts = self.table["layout"].unique().to_list() or list(self.header["layouts"])
        counts.append((len(layouts), "layout") if len(layouts) > 1 else (self.layout.parameters, "parameter"))
        text = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        return f"Zoo({self.header.get('name')!r}: {text}, in {self.path or self._elsewhere()})"

    def _elsewhere(self) -> str:
        return "memory" if len(self.origins) == 1 else f"{len(self.origins)} places"

    @property
    def path(self) -> Path | None:
        """Folder of the zoo; `None` if it is in memory or in several places."""
        return next(iter(self.origins)) if len(self.origins) == 1 else None

    @property
    def models(self) -> list[str]:
        """Models of the selection, each once, in table order."""
        return self.table["model"].unique(maintain_order=True).to_list()

    @cached_property
    def layout(self) -> Layout:
        """The layout of all selected checkpoints.

        Raises:
            ZooError: The selection has several layouts, or none.
        """
        found = self.table["layout"].unique().to_list() or list(self.header["layouts"])
        if len(found) > 1:
            raise ZooError(
                f"zoo {self.header.get('name')!r} has {len(found)} layouts ({', '.join(sorted(found))}): "
                "select one with zoo.where(pl.col('layout') == ...)"
            )
        return self._layout(found[0])

    @property
    def digest(self) -> str:
        """Short hash of what these weights are: header, shards with their sizes, and the selected rows of them.

        The content of shards on disk is not read; who made the zoo, its name and its metrics do not count.

        Raises:
            ZooError: A shard is missing.
        """
        identity = {key: self.header.get(key) for key in ("layouts", "network", "dataset", "recipe")}
        sha = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for shard in sorted(self.table["shard"].unique()):
            source = self.shards[shard]
            if isinstance(source, Path):
                sha.update(f"{shard} {_existing(source).stat().st_size}\n".encode())
            else:
                sha.update(source.view(torch.uint8).numpy().data)
        sha.update(self.table.select("shard", "row").write_csv().encode())
        return sha.hexdigest()[:12]

    def weights(self) -> Float[Tensor, "m p"]:
        """Weights of the selected checkpoints, in table order; only their bytes are read.

        Returns:
            A new float32 matrix `[checkpoints, parameters]`; NaN and infinite values are kept as they are.

        Raises:
            ZooError: The selection has several layouts, or a shard is missing, truncated or does not fit.
        """
        weights = torch.empty(len(self), self.layout.parameters)
        for places, rows in self._blocks():
            weights[places] = rows.float()
        return weights

    def where(self, *predicates: pl.Expr) -> "Zoo":
        """The checkpoints for which all polars expressions hold, for example `pl.col("step") > 5`.

        Raises:
            UnknownName: A column does not exist.
        """
        try:
            return replace(self, table=self.table.filter(*predicates))
        except pl.exceptions.ColumnNotFoundError as error:
            names = [name for predicate in predicates for name in predicate.meta.root_names()]
            missing = next((name for name in names if name not in self.table.columns), str(error))
            raise unknown_name("column", missing, self.table.columns) from error

    def take(self, rows: Sequence[int] | np.ndarray | Int64[Tensor, " n"]) -> "Zoo":
        """The checkpoints at these table positions, in this order; repeats allowed.

        Raises:
            ZooError: A position is outside the table, or not a whole number.
        """
        places = np.asarray(rows)
        if places.size and places.dtype.kind not in "iu":
            raise ZooError(f"take wants whole row numbers, got {places.dtype}: conditions go into zoo.where(...)")
        places = places.astype(np.int64)
        if outside := places[(places < 0) | (places >= len(self))].tolist():
            raise ZooError(f"checkpoint {outside[0]} does not exist: {self!r} counts from 0 to {len(self) - 1}")
        return replace(self, table=self.table[places])

    def best(self, fraction: float, by: str) -> "Zoo":
        """The `ceil(fraction * n)` checkpoints with the highest value of a column, in table order.

        NaN and null are the lowest; among equals the earlier row wins.

        Raises:
            UnknownName: The column does not exist.
            ZooError: The fraction is not in (0, 1], or the column is not numeric.
        """
        if by not in self.table.columns:
            raise unknown_name("column", by, self.table.columns)
        if not 0 < fraction <= 1:
            raise ZooError(f"the best fraction must be above 0 and at most 1, got {fraction}")
        if not (self.table.schema[by].is_numeric() or self.table.schema[by] == pl.Boolean):
            raise ZooError(f"column {by!r} has no highest value: it is {self.table.schema[by]}, not a number")
        count = math.ceil(round(fraction * len(self), 9))  # 0.07 * 100 is 7.000000000000001
        values = self.table[by].cast(pl.Float64).fill_nan(None)
        ranked = pl.DataFrame({"value": values, "place": np.arange(len(self))}).sort(
            "value", "place", descending=[True, False], nulls_last=True
        )
        return self.take(ranked["place"].head(count).sort().to_numpy())

    def last(self) -> "Zoo":
        """The last checkpoint of every model."""
        return self.where(pl.col("step") == pl.col("step").max().over("model"))

    def finite(self) -> "Zoo":
        """The checkpoints without NaN or infinite weights; reads all selected weights once."""
        return replace(self, table=self.table.filter(pl.Series(self._is_finite().numpy())))

    def require_finite(self, what: str) -> None:
        """Refuse NaN and infinite weights before something that they would spoil.

        Args:
            what: The task that needs finite weights, for the message: `"fitting an encoder"`.

        Raises:
            ZooError: Names the first such checkpoint.
        """
        bad = self.table.filter(pl.Series(~self._is_finite().numpy()))
        if bad.height:
            raise ZooError(
                f"{what} needs finite weights, but in zoo {self.header.get('name')!r} model {bad['model'][0]!r} "
                f"at step {bad['step'][0]} has NaN or infinite ones ({bad.height} of {len(self)} checkpoints): "
                "use .finite()"
            )

    def split(self, seed: int = 0) -> tuple["Zoo", "Zoo", "Zoo"]:
        """Train, validation and test checkpoints: 70, 15 and 15 % of the models.

        The sides are made over all models of the zoo, so a selection splits like the whole. A zoo on disk keeps them in
        `splits.json` (not if it is read-only), and models appended later leave the others where they are. A saved copy
        of a selection is a zoo of its own.

        Args:
            seed: Ranks the models, through a hash of seed and model name.

        Raises:
            ZooError: There are fewer than three models.
        """
        sides: dict[str, Side] = {}
        for folder, models in sorted(self.origins.items(), key=lambda item: (item[0] is None, str(item[0]))):
            new = [model for model in models if model not in sides]
            sides |= _sides(seed, new, {}) if folder is None else _stored_sides(folder, seed, new)
        if set(sides.values()) != set(SIDES):
            raise ZooError(f"a split needs at least 3 models, {self!r} was selected from {len(sides)}")
        side = self.table["model"].replace_strict(sides, return_dtype=pl.String)
        train, validation, test = (replace(self, table=self.table.filter(side == name)) for name in SIDES)
        return train, validation, test

    def with_columns(self, **columns: Any) -> "Zoo":
        """The zoo with more or changed columns: values in table order, one value for all, or polars expressions.

        Raises:
            ZooError: The column says which checkpoint it is or where its weights lie, or has another length.
        """
        if fixed := [name for name in columns if name in ("model", "step", *LOCATION)]:
            raise ZooError(f"column {fixed[0]!r} tells the checkpoints of a zoo apart and cannot be changed")
        values = {}
        for name, value in columns.items():
            if isinstance(value, Sequence | np.ndarray | Tensor | pl.Series) and not isinstance(value, str):
                if len(value) != len(self):
                    raise ZooError(f"column {name!r} has {len(value)} values for {len(self)} checkpoints")
                value = pl.Series(name, value.tolist() if isinstance(value, Tensor) else value)
            values[name] = pl.lit(value) if isinstance(value, str) else value  # polars takes text for a column's name
        return replace(self, table=self.table.with_columns(**values))

    def with_weights(self, rows: Float[Tensor, "m p"]) -> "Zoo":
        """The same checkpoints with other weights, in memory.

        Raises:
            ZooError: The rows do not fit the layout or the number of checkpoints.
        """
        return Zoo.in_memory(rows, self.layout, self.table.drop(LOCATION), self.header)

    def save(self, path: str | os.PathLike[str]) -> "Zoo":
        """Write the selected checkpoints, as float32, into a new zoo folder, which appears when it is complete.

        Returns:
            The zoo opened from there.

        Raises:
            ZooError: The folder exists or cannot be written, or there is nothing to write.
        """
        path = Path(path).resolve()
        if path.exists():
            raise ZooError(f"{path} exists already: a zoo is saved into a new folder")
        if not len(self):
            raise ZooError(f"{self!r} has no checkpoints to save")
        header = self.header | {"name": self.header.get("name", path.name)}
        layouts = {digest: self._layout(digest) for digest in self.table["layout"].unique(maintain_order=True)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            writer = ZooWriter.create(temporary, header, list(layouts.values()))
            part = 0
            for run in self.table.with_columns(run=pl.col("layout").rle_id()).partition_by("run", include_key=False):
                layout = layouts[run["layout"][0]]
                for piece in run.iter_slices(max(1, BLOCK_VALUES // max(1, layout.parameters))):
                    rows = replace(self, table=piece).weights()
                    writer.append(f"{part:06d}", rows, piece.drop(LOCATION), layout)
                    part += 1
            os.rename(temporary, path)
        except OSError as error:
            raise ZooError(f"cannot save a zoo in {path}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return open(path)

    def _layout(self, digest: str) -> Layout:
        try:
            return Layout.from_json(self.header["layouts"][digest])
        except LayoutError as error:
            raise ZooError(f"zoo.json of {self.path} is damaged at layout {digest}: {error}") from error

    def _is_finite(self) -> Bool[Tensor, " m"]:
        finite = torch.empty(len(self), dtype=torch.bool)
        with progress_bar("checking weights", len(self)) as advance:
            for places, rows in self._blocks():
                finite[places] = rows.isfinite().all(dim=1)
                advance(len(places))
        return finite

    def _blocks(self) -> Iterator[tuple[Int64[Tensor, " n"], Float[Tensor, "n p"]]]:
        """Table positions and their weights in the dtype of the store, a bounded number of values at a time."""
        index = self.table.select("layout", "shard", "row").with_row_index("place")
        for key, selected in index.group_by("layout", "shard", maintain_order=True):
            digest, shard = map(str, key)
            layout = self._layout(digest)
            matrix = _matrix(self.shards[shard], layout)
            wanted = torch.from_numpy(selected["row"].to_numpy().copy())
            if wanted.min() < 0 or wanted.max() >= len(matrix):
                raise ZooError(
                    f"the table wants row {wanted.max()} of shard {shard} in {self.path or 'memory'}, "
                    f"which has {len(matrix)} rows: {_mend(shard)}"
                )
            places = torch.from_numpy(selected["place"].cast(pl.Int64).to_numpy().copy())
            size = max(1, BLOCK_VALUES // max(1, layout.parameters))
            for place, rows in zip(places.split(size), wanted.split(size), strict=True):
                first, contiguous = int(rows[0]), bool((rows.diff() == 1).all())
                yield place, matrix[first : first + len(rows)] if contiguous else matrix[rows]


def open(path: str | os.PathLike[str]) -> Zoo:
    """Open a zoo folder; reads its header and tables, no weights.

    Args:
        path: The folder with `zoo.json`.

    Raises:
        ZooError: There is no zoo, it is empty or damaged, or a newer version made it.

    >>> open("no/such/zoo")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    weightspace.errors.ZooError: there is no folder ...zoo: give the folder of a zoo, the one that contains zoo.json
    """
    path = Path(path).resolve()
    header = read_header(path)
    files = sorted((path / "checkpoints").glob("*.parquet"), key=lambda file: file.stem)
    if not files:
        raise ZooError(f"zoo {path} is empty: no checkpoints were committed yet, run its training command (again)")
    table = _read_tables(files)
    needed = {"model": pl.String, "step": pl.Int64, "layout": pl.String, "shard": pl.String, "row": pl.Int64}
    for column, dtype in needed.items():
        if table.schema.get(column) != dtype:
            raise ZooError(f"the tables in {path / 'checkpoints'} need a column {column!r} of type {dtype}")
    if unknown := sorted(set(table["layout"].unique()) - header["layouts"].keys()):
        raise ZooError(f"{path / 'zoo.json'} lacks layout {unknown[0]}, which its checkpoints have: restore the file")
    shards = {shard: path / "weights" / shard for shard in table["shard"].unique(maintain_order=True)}
    return Zoo(table, header, shards, {path: tuple(table["model"].unique(maintain_order=True))})


def _read_tables(files: list[Path]) -> pl.DataFrame:
    try:
        return pl.scan_parquet(files, glob=False).collect()
    except pl.exceptions.PolarsError:
        pass  # parts with different columns, which the slower way joins, or a damaged one, which it finds
    tables = []
    for file in files:
        try:
            tables.append(pl.read_parquet(file, glob=False))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ZooError(f"{file} is truncated or damaged: {_mend(f'{file.stem}.safetensors')}") from error
    return pl.concat(tables, how="diagonal_relaxed")


def _matrix(source: Source, layout: Layout) -> Float[Tensor, "n p"]:
    """The rows of a shard; of a file, a memory map whose pages are read when they are used."""
    if isinstance(source, Tensor):
        return source
    try:
        with safe_open(_existing(source), framework="pt") as file:
            matrix = file.get_tensor("rows")
    except SafetensorError as error:
        raise ZooError(f"shard {source} is truncated or damaged ({error}): {_mend(source.name)}") from error
    if matrix.ndim != 2 or matrix.shape[1] != layout.parameters or matrix.dtype not in DTYPES:
        raise ZooError(
            f"shard {source} holds {matrix.dtype} {tuple(matrix.shape)}, but its layout {layout.digest} has rows of "
            f"{layout.parameters} parameters: {_mend(source.name)}"
        )
    return matrix


def _existing(shard: Path) -> Path:
    if not shard.is_file():
        raise ZooError(f"shard {shard} is missing: {_mend(shard.name)}")
    return shard


def _mend(shard: str) -> str:
    part = shard.removesuffix(".safetensors")
    return (
        f"delete checkpoints/{part}.parquet and weights/{part}.safetensors of the zoo "
        "and run its training command again, which makes this part anew"
    )


def _same(a: Source, b: Source) -> bool:
    return a is b or (isinstance(a, Path) and isinstance(b, Path) and a == b)


def _sides(seed: int, models: Sequence[str], stored: Mapping[str, Side]) -> dict[str, Side]:
    """A side for every model: the stored one, or by rank, so that validation and test have 15 % of all models each."""
    kept = {model: stored[model] for model in models if model in stored}
    new = sorted(set(models) - kept.keys(), key=lambda model: hashlib.sha256(f"{seed}/{model}".encode()).digest())
    wanted = max(round(0.15 * len(models)), int(len(models) >= 3))
    have = Counter(kept.values())
    for side in ("validation", "test"):
        count = max(0, wanted - have[side])
        kept |= dict.fromkeys(new[:count], side)
        new = new[count:]
    return kept | dict.fromkeys(new, "train")


def _stored_sides(folder: Path, seed: int, models: Sequence[str]) -> dict[str, Side]:
    """The sides of a zoo's models, from its `splits.json` as far as they are there, and stored there."""
    file = folder / "splits.json"
    splits = read_json(file) if file.exists() else {}
    stored = splits.get(str(seed), {}) if isinstance(splits, dict) else None
    if not isinstance(stored, dict) or any(side not in SIDES for side in stored.values()):
        raise ZooError(f"{file} is not a record of splits: restore it, or delete it to split anew")
    sides = _sides(seed, models, stored)
    if len(sides) >= len(SIDES) and not sides.keys() <= stored.keys():  # fewer models are no split yet
        splits[str(seed)] = stored | sides
        try:
            write_file(file, json.dumps(splits, indent=1).encode())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise ZooError(f"could not write {file}: {error.strerror}") from error
    return sides
