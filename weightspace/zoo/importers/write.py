"""The import: from the items of an importer to a zoo folder and a report, a bounded number of values at a time.

The zoo is written beside its place and renamed when it is complete. Rows wait in a buffer a layout and precision; when
all buffers together are full, the fullest becomes a part.

Axes: n checkpoint, p parameter.
"""

import json
import os
import shutil
import uuid
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from weightspace.errors import ZooError
from weightspace.networks.inference import layout_from_state
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.zoo.importers.found import Block, Checkpoint, Found, Item, Plain, Skipped, Unreadable
from weightspace.zoo.importers.labels import Labels
from weightspace.zoo.importers.report import FILE, ImportedLayout, ImportReport
from weightspace.zoo.importers.states import storable
from weightspace.zoo.writer import LOCATION, ZooWriter, complete_header, write_file

BUFFER_VALUES = 2**24
"""Values that wait for being written: 64 MB of float32."""


def write_zoo(
    found: Found,
    target: Path,
    *,
    source: str,
    format: str,
    labels: Path | None = None,
    max_weight: float | None = None,
    keep_nonfinite: bool = False,
) -> ImportReport:
    """Write what an importer finds into a new zoo folder; arguments and errors as of `import_zoo`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        zoo = _GrowingZoo(temporary, max_weight=max_weight, keep_nonfinite=keep_nonfinite)
        labelled = Labels.read(labels) if labels is not None else None
        with progress_bar("importing", found.count) as advance:
            for item in found.items:
                zoo.add(item)
                advance(1)
        zoo.finish()
        if not zoo.checkpoints:
            raise ZooError(_nothing(source, format, zoo.skipped))
        notes = Counter(found.notes) + zoo.notes
        if labelled is not None:
            notes += _label(temporary, labelled, zoo)
        report = ImportReport(
            source=source,
            format=format,
            zoo=target,
            checkpoints=zoo.checkpoints,
            models=len(zoo.models),
            layouts=tuple(
                ImportedLayout(
                    digest=layout.digest,
                    tensors=len(layout.tensors),
                    parameters=layout.parameters,
                    checkpoints=zoo.counts[layout.digest],
                )
                for layout in zoo.layouts
            ),
            skipped=tuple(zoo.skipped),
            notes=dict(notes),
        )
        made_by = {"import": {"source": source, "format": format}, "weightspace": version("weightspace")}
        header = {"name": target.name, "created_by": made_by} | dict(found.header)
        _write_header(temporary, header, zoo.layouts)
        write_file(temporary / FILE, json.dumps(report.to_json(), indent=1).encode())
        os.rename(temporary, target)
    except OSError as error:
        raise ZooError(f"cannot import into {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _label(folder: Path, labels: Labels, zoo: "_GrowingZoo") -> Counter[str]:
    """Write the zoo once more, with labels: which column joins is known only when all names are."""
    plain = folder.with_name(f"{folder.name}-unlabelled")
    os.rename(folder, plain)
    try:
        files = sorted((plain / "checkpoints").glob("*.parquet"))
        tables, notes = labels.join([pl.read_parquet(file) for file in files], zoo.sources)
        layouts = {layout.digest: layout for layout in zoo.layouts}
        writer = ZooWriter.create(folder, {}, zoo.layouts)
        for file, table in zip(files, tables, strict=True):
            rows = load_file(plain / "weights" / f"{file.stem}.safetensors")["rows"]
            writer.append(file.stem, rows, table.drop(LOCATION), layouts[table["layout"][0]])
        zoo.models = {model for table in tables for model in table["model"]}
    finally:
        shutil.rmtree(plain, ignore_errors=True)
    return notes


class _GrowingZoo:
    """A zoo in a folder that nobody else knows, whose layouts are found on the way."""

    def __init__(self, folder: Path, *, max_weight: float | None, keep_nonfinite: bool):
        self.folder = folder
        self.max_weight = float("inf") if max_weight is None else max_weight
        self.keep_nonfinite = keep_nonfinite
        self.layouts: list[Layout] = []
        self.counts: Counter[str] = Counter()
        self.models: set[str] = set()
        self.skipped: list[Skipped] = []
        self.notes: Counter[str] = Counter()
        self.sources: dict[tuple[str, int], str] = {}
        """Source of each model and step that was taken."""
        self._by_shapes: dict[frozenset, Layout] = {}
        self._waiting: dict[tuple[str, torch.dtype], list[tuple[Tensor, pl.DataFrame | dict]]] = {}
        self._sizes: Counter[tuple[str, torch.dtype]] = Counter()
        self._writer: ZooWriter | None = None
        self._parts = 0

    @property
    def checkpoints(self) -> int:
        return self.counts.total()

    def add(self, item: Item) -> None:
        """Take one item of an importer, or say in the report why not."""
        if isinstance(item, Skipped):
            self.skipped.append(item)
        elif isinstance(item, Block):
            self._add_block(item)
        else:
            self._add_checkpoint(item)

    def _add_checkpoint(self, item: Checkpoint) -> None:
        try:
            state, notes = storable(item.state)
        except Unreadable as error:
            self.skipped.append(Skipped(source=item.source, reason=str(error)))
            return
        shapes = frozenset((name, tuple(value.shape)) for name, value in state.items())
        layout = self._by_shapes.get(shapes)
        if layout is None:
            layout = self._by_shapes[shapes] = self._known(layout_from_state(state))
        row = torch.cat([state[spec.name].detach().reshape(-1) for spec in layout.tensors])
        if reason := self._reason(row[None])[0] or self._taken(item.model, item.step):
            self.skipped.append(Skipped(source=item.source, reason=reason))
            return
        self.sources[item.model, item.step] = item.source
        entry = {"model": item.model, "step": item.step, **item.columns}
        self._keep(layout, row[None], entry, [item.model], (*item.notes, *notes))

    def _known(self, layout: Layout) -> Layout:
        return next((known for known in self.layouts if known.digest == layout.digest), layout)

    def _add_block(self, item: Block) -> None:
        keep = []
        places = zip(item.table["model"], item.table["step"], self._reason(item.rows), strict=True)
        for place, (model, step, reason) in enumerate(places):
            if reason := reason or self._taken(model, step):
                self.skipped.append(Skipped(source=f"{item.source}, {model}, step {step}", reason=reason))
            else:
                self.sources[model, step] = item.source
                keep.append(place)
        if keep:
            whole = len(keep) == len(item.rows)
            rows, table = (item.rows, item.table) if whole else (item.rows[keep], item.table[keep])
            self._keep(self._known(item.layout), rows, table, table["model"].to_list(), item.notes)

    def _reason(self, rows: Tensor) -> list[str | None]:
        """Why each row is not taken, by its values."""
        largest = rows.abs().amax(dim=1)  # NaN if any value is
        reasons: list[str | None] = [None] * len(rows)
        for place in (~largest.isfinite() | (largest > self.max_weight)).nonzero().flatten().tolist():
            count = int((~rows[place].isfinite()).sum())
            if count and not self.keep_nonfinite:
                reasons[place] = f"NaN or infinite weights: {count} of {rows.shape[1]} values"
            elif not count:
                reasons[place] = f"a weight beyond {self.max_weight:g}: {float(largest[place]):.3g} in absolute value"
        return reasons

    def _taken(self, model: str, step: int) -> str | None:
        """Why a second checkpoint of a model and step is not taken."""
        if (model, step) not in self.sources:
            return None
        return f"same model and step as {self.sources[model, step]}: {model!r}, step {step}"

    def _keep(
        self, layout: Layout, rows: Tensor, table: pl.DataFrame | dict, models: list[str], notes: tuple[str, ...]
    ) -> None:
        self.notes.update(dict.fromkeys(notes, len(rows)))
        self.models.update(models)
        if not self.counts[layout.digest]:
            self.layouts.append(layout)
        self.counts[layout.digest] += len(rows)
        key = (layout.digest, rows.dtype)
        self._waiting.setdefault(key, []).append((rows, table))
        self._sizes[key] += rows.numel()
        while self._sizes.total() > BUFFER_VALUES:
            self._write(self._sizes.most_common(1)[0][0])

    def _write(self, key: tuple[str, torch.dtype]) -> None:
        pieces = self._waiting.pop(key)
        del self._sizes[key]
        if self._writer is None or key[0] not in self._writer.header["layouts"]:
            if self._writer is None:
                ZooWriter.create(self.folder, {}, self.layouts)
            else:
                _write_header(self.folder, {}, self.layouts)
            self._writer = ZooWriter.open(self.folder)
        layout = next(layout for layout in self.layouts if layout.digest == key[0])
        table = _joined([table for _, table in pieces])
        self._writer.append(f"{self._parts:06d}", torch.cat([rows for rows, _ in pieces]), table, layout)
        self._parts += 1

    def finish(self) -> None:
        """Write what still waits, in the order in which layouts were found."""
        for key in list(self._waiting):
            self._write(key)


def _joined(tables: list[pl.DataFrame | dict]) -> pl.DataFrame:
    """One table of blocks and single checkpoints; a column of several types becomes the one that holds all."""
    whole = [table for table in tables if isinstance(table, pl.DataFrame)]
    if entries := [table for table in tables if isinstance(table, dict)]:
        names = list(dict.fromkeys(name for entry in entries for name in entry))
        columns = {name: [entry.get(name) for entry in entries] for name in names}
        whole.append(pl.DataFrame({n: _series(n, values) for n, values in columns.items()}))
    return pl.concat(whole, how="diagonal_relaxed")


def _series(name: str, values: list[Plain]) -> pl.Series:
    if name == "step":
        return pl.Series(name, values, dtype=pl.Int64)
    kinds = {type(value) for value in values if value is not None}
    if str in kinds and len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return pl.Series(name, values, strict=False)


def _write_header(folder: Path, header: dict, layouts: list[Layout]) -> None:
    """Replace `zoo.json`; only while the folder has no other user."""
    write_file(folder / "zoo.json", json.dumps(complete_header(header, folder.name, layouts), indent=1).encode())


def _nothing(source: str, format: str, skipped: list[Skipped]) -> str:
    """The error when not one checkpoint could be taken."""
    if not skipped:
        return f"{source} has no checkpoints that the format {format!r} knows"
    (reason, count), *others = Counter(item.reason for item in skipped).most_common()
    first = next(item.source for item in skipped if item.reason == reason)
    more = f" (and {sum(n for _, n in others)} for other reasons)" if others else ""
    return f"nothing of {source} could be imported as {format!r}: {count} skipped, as {first}: {reason}{more}"
