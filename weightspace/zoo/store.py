"""A zoo as it is read: a table of checkpoints, and where the weights of each row lie.

Opening reads `zoo.json` and the columns of one table. The tables are read when asked for, and a read of weights touches
only its bytes. A selection is another table over the same storage.

Axes: m checkpoint (one table row, one weight row), n some of them, p parameter, w parameters of a window.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import LayoutError, ZooError, unknown_name
from weightspace.networks.layout import RUNNING, Layout
from weightspace.progress import progress_bar
from weightspace.zoo import splits
from weightspace.zoo.duplicates import first_of_identical
from weightspace.zoo.joining import Checkpoints, joined_header, joined_origins, joined_shards, joined_tables
from weightspace.zoo.parts import TableParts
from weightspace.zoo.shards import READ_VALUES, Locations, Shards, existing
from weightspace.zoo.writer import LOCATION, ZooWriter, complete_header, located, read_header

__all__ = ["Zoo", "ZooWriter", "open"]

Places = Sequence[int] | np.ndarray | Int64[Tensor, " n"]

PART_VALUES = 2**24
"""Values in a part of a saved zoo: 64 MB."""


@dataclass(frozen=True, eq=False, repr=False)
class Zoo:
    """A population of checkpoints; immutable, and every selection shares the storage.

    >>> table = pl.DataFrame({"model": ["a", "a", "b"], "step": [0, 1, 0], "metric.test_accuracy": [0.1, 0.9, 0.2]})
    >>> zoo = Zoo.in_memory(torch.randn(3, 8), Layout.of(torch.nn.Linear(3, 2)), table, {"name": "tiny"})
    >>> zoo.best(0.3, by="metric.test_accuracy")
    Zoo('tiny': 1 model, 1 checkpoint, 8 parameters, in memory)
    """

    checkpoints: Checkpoints
    """The table, or the files it is in; read it as `table`."""
    header: dict[str, Any]
    """Content of `zoo.json`."""
    shards: Shards
    """Where the weights are, by the name in the table's column `shard`."""
    origins: Mapping[Path | None, Checkpoints]
    """All checkpoints of the zoos this one was selected from, by folder (`None`: in memory); splits are over them."""

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
        store = rows.detach().cpu().clone(memory_format=torch.contiguous_format)
        return cls(table, complete_header(header, "unnamed", [layout]), Shards({"memory": store}), {None: table})

    @staticmethod
    def concat(zoos: Sequence["Zoo"]) -> "Zoo":
        """Several zoos as one; a column that one of them lacks is null there. Nothing is read or copied.

        The header is that of the first, with the layouts of all. Of zoos with different layouts, what else their
        headers disagree on (network, dataset, recipe) is left out: it would be wrong for some of the checkpoints.

        Raises:
            ZooError: A model has the same step in two of the zoos.
        """
        if not zoos:
            raise ZooError("concat needs at least one zoo, got none")
        zoos = [zoo for zoo in zoos if len(zoo)] or zoos[:1]
        used = [[shard for _, shard in zoo._locations.shards] for zoo in zoos]
        shards, names = joined_shards([zoo.shards for zoo in zoos], used)
        tables = [zoo.table.with_columns(pl.col("shard").replace(new)) for zoo, new in zip(zoos, names, strict=True)]
        header = joined_header([zoo.header for zoo in zoos], [zoo._layout_digests for zoo in zoos])
        return Zoo(joined_tables(tables), header, shards, joined_origins([zoo.origins for zoo in zoos]))

    def __len__(self) -> int:
        """Number of checkpoints."""
        table = self.__dict__.get("table", self.checkpoints)  # not read only to be counted
        return table.height if isinstance(table, pl.DataFrame) else len(self._locations.row)

    def __repr__(self) -> str:
        counts = [(len(self.models), "model"), (len(self), "checkpoint")]
        layouts = self._layout_digests
        counts.append((len(layouts), "layout") if len(layouts) > 1 else (self.layout.parameters, "parameter"))
        text = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        return f"Zoo({self.header.get('name')!r}: {text}, in {self.path or self._elsewhere()})"

    def _elsewhere(self) -> str:
        return "memory" if len(self.origins) == 1 else f"{len(self.origins)} places"

    @property
    def path(self) -> Path | None:
        """Folder of the zoo; `None` if it is in memory or in several places."""
        return next(iter(self.origins)) if len(self.origins) == 1 else None

    @cached_property
    def table(self) -> pl.DataFrame:
        """One row a checkpoint: model, step (epochs), layout, shard, row, config.*, metric.*; read when first used.

        Raises:
            ZooError: A table is damaged.
        """
        return self.checkpoints if isinstance(self.checkpoints, pl.DataFrame) else self.checkpoints.read()

    def _columns(self, *names: str) -> pl.DataFrame:
        """Some columns, read alone where the table has not been read."""
        if isinstance(self.checkpoints, TableParts) and "table" not in self.__dict__:
            return self.checkpoints.read(names)
        return self.table.select(names)

    @cached_property
    def _locations(self) -> Locations:
        return Locations.of(self._columns(*LOCATION))

    @property
    def models(self) -> list[str]:
        """Models of the selection, each once, in table order."""
        return list(self._models)

    @cached_property
    def _models(self) -> tuple[str, ...]:
        return tuple(self._columns("model")["model"].unique(maintain_order=True))

    @property
    def _layout_digests(self) -> list[str]:
        return list(dict.fromkeys(digest for digest, _ in self._locations.shards)) or list(self.header["layouts"])

    @cached_property
    def layout(self) -> Layout:
        """The layout of all selected checkpoints.

        Raises:
            ZooError: The selection has several layouts, or none.
        """
        found = self._layout_digests
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
        for shard in sorted({shard for _, shard in self._locations.shards}):
            source = self.shards[shard]
            if isinstance(source, Path):
                sha.update(f"{shard} {existing(source).stat().st_size}\n".encode())
            else:
                sha.update(source.view(torch.uint8).numpy().data)
        sha.update(self._columns("shard", "row").write_csv().encode())
        return sha.hexdigest()[:12]

    def weights(self) -> Float[Tensor, "m p"]:
        """Weights of the selected checkpoints, in table order; only their bytes are read.

        Returns:
            A new float32 matrix `[checkpoints, parameters]`; NaN and infinite values are kept as they are.

        Raises:
            ZooError: The selection has several layouts, or a shard is missing, truncated or does not fit.
        """
        return self.read()

    def read(
        self,
        rows: Places | None = None,
        columns: slice = slice(None),
    ) -> Float[Tensor, "n w"]:
        """A window of the weights: some checkpoints, some parameters; only their bytes are read.

        Args:
            rows: Table positions, in the order wanted, repeats allowed; all when missing.
            columns: Parameters; all when missing. Those of one tensor are `zoo.layout.slices[name]`.

        Returns:
            A new float32 matrix `[len(rows), parameters in the slice]`.

        Raises:
            ZooError: A position is outside the table, the slice runs backwards, the selection has several layouts,
                or a shard is missing, truncated or does not fit.

        >>> zoo = Zoo.in_memory(torch.arange(6.0).reshape(3, 2), Layout.of(torch.nn.Linear(1, 1)),
        ...     pl.DataFrame({"model": ["a", "b", "c"], "step": [0, 0, 0]}), {})
        >>> zoo.read([2, 0], slice(1, 2)).tolist()
        [[5.0], [1.0]]
        """
        places = None if rows is None else self._positions(rows)
        if columns.step is not None and columns.step < 1:
            raise ZooError(f"read wants parameters in ascending order, got {columns}: flip the result instead")
        return torch.from_numpy(self.shards.read(self._locations, self.layout, places, columns))

    def batches(
        self,
        size: int,
        *,
        columns: slice = slice(None),
        seed: int | None = None,
    ) -> Iterator[tuple[Int64[Tensor, " n"], Float[Tensor, "n w"]]]:
        """Pass once over the weights in bounded memory.

        Args:
            size: Checkpoints in a batch; the last may be smaller.
            columns: Parameters, as in `read`.
            seed: Shuffles the checkpoints; table order when missing.

        Yields:
            Table positions `[n]`, and the weights there.

        Raises:
            ZooError: The size is not positive; else as `read`.

        >>> zoo = Zoo.in_memory(torch.zeros(3, 2), Layout.of(torch.nn.Linear(1, 1)),
        ...     pl.DataFrame({"model": ["a", "b", "c"], "step": [0, 0, 0]}), {})
        >>> [rows.shape for _, rows in zoo.batches(2)]
        [torch.Size([2, 2]), torch.Size([1, 2])]
        """
        if size < 1:
            raise ZooError(f"a batch has at least one checkpoint, got size {size}")
        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for places in order.split(size) if len(self) else ():
            yield places, self.read(places, columns)

    def _positions(self, rows: Places) -> Int64[np.ndarray, " n"]:
        places = np.asarray(rows)
        if places.size and places.dtype.kind not in "iu":
            raise ZooError(
                f"table positions are whole row numbers, got {places.dtype}: conditions go into zoo.where(...)"
            )
        places = places.astype(np.int64)
        if places.size and (places.min() < 0 or places.max() >= len(self)):
            outside = places[(places < 0) | (places >= len(self))][0]
            raise ZooError(f"checkpoint {outside} does not exist: {self!r} counts from 0 to {len(self) - 1}")
        return places

    def where(self, *predicates: pl.Expr) -> "Zoo":
        """The checkpoints for which all polars expressions hold, for example `pl.col("step") > 5`.

        Raises:
            UnknownName: A column does not exist.
        """
        try:
            return self._with(self.table.filter(*predicates))
        except pl.exceptions.ColumnNotFoundError as error:
            names = [name for predicate in predicates for name in predicate.meta.root_names()]
            missing = next((name for name in names if name not in self.table.columns), str(error))
            raise unknown_name("column", missing, self.table.columns) from error

    def take(self, rows: Places) -> "Zoo":
        """The checkpoints at these table positions, in this order; repeats allowed.

        Raises:
            ZooError: A position is outside the table, or not a whole number.
        """
        return self._with(self.table[self._positions(rows)])

    def _with(self, table: pl.DataFrame) -> "Zoo":
        return replace(self, checkpoints=table)

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

    def finite(self, largest: float = math.inf) -> "Zoo":
        """The checkpoints without NaN or infinite weights; reads all selected weights once.

        Args:
            largest: Also leave out those with a weight of a larger magnitude: trainings that were about to diverge.
                The Model Zoos' notebooks take 5. Running statistics are no weights.
        """
        return self._with(self.table.filter(pl.Series(self._is_finite(largest).numpy())))

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

    def deduplicate(self) -> "Zoo":
        """Without checkpoints whose weights are, bit for bit as float32, those of an earlier one of the same layout.

        Reads all selected weights once, and those of the duplicates once more.
        """
        first = np.arange(len(self))
        for digest in self._layout_digests:
            layout, places = self._layout(digest), self._of_layout(digest)

            def read(some: np.ndarray, layout: Layout = layout, places: np.ndarray = places) -> np.ndarray:
                return self.shards.read(self._locations, layout, places[some])

            first[places] = places[first_of_identical(read, len(places), layout.parameters)]
        return self.take(np.flatnonzero(first == np.arange(len(self))))

    def split(self, seed: int = 0, *, stratify: str | Sequence[str] = ()) -> tuple["Zoo", "Zoo", "Zoo"]:
        """Train, validation and test checkpoints: 70, 15 and 15 % of the models.

        The sides are made over all models of the zoo, so a selection splits like the whole. A zoo on disk keeps them in
        `splits.json` (not if it is read-only), and models appended later leave the others where they are. A saved copy
        of a selection is a zoo of its own.

        Args:
            seed: Ranks the models, through a hash of seed and model name.
            stratify: Columns of the zoo. Of the models with equal values in a model's last checkpoint, and of those
                in any range of a numeric column, test and validation have their share up or down to the next model.

        Raises:
            ZooError: There are fewer than three models.
            UnknownName: The zoo has no such column.
        """
        sides = splits.sides(self.origins, seed, [stratify] if isinstance(stratify, str) else stratify)
        if set(sides.values()) != set(splits.SIDES):
            raise ZooError(f"a split needs at least 3 models, {self!r} was selected from {len(sides)}")
        side = self.table["model"].replace_strict(sides, return_dtype=pl.String)
        train, validation, test = (self._with(self.table.filter(side == name)) for name in splits.SIDES)
        return train, validation, test

    def hold_out(self, *predicates: pl.Expr) -> tuple["Zoo", "Zoo"]:
        """The zoo without the models for which all polars expressions hold, and these models.

        For unseen values of a factor: `zoo.hold_out(pl.col("config.activation") == "tanh")`; several expressions hold
        out a cell of the grid. The two sides can be split further; `split` gives each model the side that it has in
        the whole zoo.

        Raises:
            ZooError: The expressions hold for some checkpoints of a model only, or leave one side empty.
            UnknownName: A column does not exist.
        """
        models = splits.whole_models(self.table, self.where(*predicates).table)
        held_out = pl.col("model").is_in(models)
        rest, held_zoo = self.where(~held_out), self.where(held_out)
        if not len(rest) or not len(held_zoo):
            raise ZooError(f"the condition holds for {'all' if len(held_zoo) else 'none'} of the models of {self!r}")
        return rest, held_zoo

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
        return self._with(self.table.with_columns(**values))

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
                for piece in run.iter_slices(max(1, PART_VALUES // max(1, layout.parameters))):
                    rows = self._with(piece).weights()
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

    def _of_layout(self, digest: str) -> Int64[np.ndarray, " n"]:
        """Positions of the checkpoints of one layout."""
        numbers = [number for number, (layout, _) in enumerate(self._locations.shards) if layout == digest]
        return np.flatnonzero(np.isin(self._locations.shard, numbers))

    def _is_finite(self, largest: float = math.inf) -> Bool[Tensor, " m"]:
        finite = np.empty(len(self), dtype=bool)
        with progress_bar("checking weights", len(self)) as advance:
            for digest in self._layout_digests:
                layout, places = self._layout(digest), self._of_layout(digest)
                size = max(1, READ_VALUES // max(1, layout.parameters))
                limit = np.repeat(
                    [math.inf if spec.role in RUNNING else largest for spec in layout.tensors],
                    [spec.size for spec in layout.tensors],
                )
                for some in (places[i : i + size] for i in range(0, len(places), size)):
                    values = self.shards.read(self._locations, layout, some)
                    finite[some] = (np.isfinite(values) & (np.abs(values) <= limit)).all(axis=1)
                    advance(len(some))
        return torch.from_numpy(finite)


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
    parts = TableParts(tuple(files), frozenset(header["layouts"]))
    parts.check_first()
    return Zoo(parts, header, Shards(path / "weights"), {path: parts})
