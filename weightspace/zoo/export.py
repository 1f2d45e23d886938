"""Export: a zoo as files that other programs read.

Axes: n checkpoint, p parameter.
"""

import gzip
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import polars as pl
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import LayoutError, ZooError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.zoo.importers.weight_files import ORDER
from weightspace.zoo.store import Zoo
from weightspace.zoo.writer import LOCATION

ExportFormat = Literal["safetensors", "small-cnn"]

PIECE_VALUES = 2**22
"""Values in memory at a time."""


def export_zoo(zoo: Zoo, target: str | os.PathLike[str], *, format: str = "safetensors") -> Path:
    """Write the selected checkpoints as files of another format, in float32; what is written can be imported again.

    Args:
        zoo: May have several layouts if the format is `safetensors`.
        target: New folder; it appears when it is complete.
        format: `safetensors`: `<model>/step-<step>.safetensors`, a network each, and `labels.csv` with a line each.
            `small-cnn`: the three files of the Small CNN Zoo (Unterthiner et al., 2020), for networks of
            convolutions and linear layers.

    Returns:
        The folder.

    Raises:
        ZooError: The folder exists or cannot be written, or a column cannot be a column of text.
        LayoutError: The format cannot express the layout.
        UnknownName: There is no such format.

    >>> import tempfile
    >>> table = pl.DataFrame({"model": ["a"], "step": [3]})
    >>> zoo = Zoo.in_memory(torch.zeros(1, 8), Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in export_zoo(zoo, f"{folder}/new").rglob("*.*"))
    ['labels.csv', 'step-000003.safetensors']
    """
    if format not in _WRITERS:
        raise unknown_name("format", format, _WRITERS)
    if not len(zoo):
        raise ZooError(f"{zoo!r} has no checkpoints to export")
    if nested := [name for name, dtype in zoo.table.schema.items() if dtype.is_nested()]:
        raise ZooError(f"column {nested[0]!r} holds lists, which a CSV file cannot: drop it first")
    target = Path(target).absolute()
    if target.exists():
        raise ZooError(f"{target} exists already: a zoo is exported into a new folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        _WRITERS[format](zoo, temporary)
        os.rename(temporary, target)
    except OSError as error:
        raise ZooError(f"cannot export into {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_safetensors(zoo: Zoo, folder: Path) -> None:
    files = []
    for layout, table, rows in _pieces(zoo):
        names = "\n".join(spec.name for spec in layout.tensors)
        for (model, step), row in zip(table.select("model", "step").iter_rows(), rows, strict=True):
            file = folder / _file_name(model, step)
            file.parent.mkdir(parents=True, exist_ok=True)
            state = {name: value.contiguous() for name, value in layout.unflatten(row).items()}
            safetensors.torch.save_file(state, file, metadata={"format": "pt", ORDER: names})
        files.append(
            table.drop(LOCATION).with_columns(
                file=pl.Series([_file_name(*key) for key in table.select("model", "step").iter_rows()], dtype=pl.String)
            )
        )
    labels = pl.concat(files)
    labels.select("file", pl.exclude("file")).write_csv(folder / "labels.csv")


def _file_name(model: str, step: int) -> str:
    """Below the folder, whatever the model is called."""
    parts = [quote(part, safe=" =+,@()") for part in model.split("/")]
    parts = [part.replace(".", "%2E") if part.strip(".") == "" else part for part in parts]
    return "/".join([*(part or "%00" for part in parts), f"step-{step:06d}.safetensors"])


def _write_small_cnn(zoo: Zoo, folder: Path) -> None:
    order, table = small_cnn_order(zoo.layout)
    table.write_csv(folder / "layout.csv")
    shape = (len(zoo), zoo.layout.parameters)
    matrix = np.lib.format.open_memmap(folder / "weights.npy", mode="w+", dtype=np.float32, shape=shape)
    start, tables = 0, []
    for _, part, rows in _pieces(zoo):
        matrix[start : start + len(rows)] = rows[:, order].numpy()
        start += len(rows)
        tables.append(part.drop(LOCATION))
    matrix.flush()
    metrics = pl.concat(tables)
    names = {name: name.removeprefix("metric.") for name in metrics.columns if name.startswith("metric.")}
    with gzip.open(folder / "metrics.csv.gz", "wb") as file:
        file.write(metrics.rename({"model": "modeldir", **names}).write_csv().encode())


def small_cnn_order(layout: Layout) -> tuple[Int64[Tensor, " p"], pl.DataFrame]:
    """Where each value of a row of the Small CNN Zoo lies in a row of this layout, and the table `layout.csv`.

    Raises:
        LayoutError: A tensor is no weight or bias of a convolution or a linear layer.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for spec in layout.tensors:
        if spec.layer not in ("conv", "linear") or spec.output_axis != 0:
            raise LayoutError(
                f"{spec.name!r} ({spec.layer}) has no place in a Small CNN Zoo, which holds weights and biases of "
                "convolutions and linear layers: export to safetensors"
            )
        place = layout.slices[spec.name]
        index = torch.arange(place.start, place.stop).reshape(spec.shape)
        if spec.role == "weight":
            index = index.movedim((0, 1), (-1, -2))
        layers.setdefault(spec.layer_name, {})["kernel" if spec.role == "weight" else "bias"] = index
    order, lines, end = [], [], 0
    for layer, parts in layers.items():
        for key in ("bias", "kernel"):
            if key in parts:
                size = parts[key].numel()
                shape = str(tuple(parts[key].shape))
                lines.append((f"{layer.replace('.', '/') or 'layer'}/{key}:0", end, end + size, shape))
                order.append(parts[key].reshape(-1))
                end += size
    return torch.cat(order), pl.DataFrame(lines, schema=["varname", "start_idx", "end_idx", "shape"], orient="row")


def _pieces(zoo: Zoo) -> Iterator[tuple[Layout, pl.DataFrame, Float[Tensor, "n p"]]]:
    """The zoo in table order within each layout, a bounded number of values at a time."""
    positions = zoo.table.with_row_index("place")
    with progress_bar("exporting", len(zoo)) as advance:
        for part in positions.partition_by("layout", maintain_order=True):
            selected = zoo.take(part["place"].to_numpy())
            size = max(1, PIECE_VALUES // max(1, selected.layout.parameters))
            for start in range(0, len(selected), size):
                piece = selected.take(np.arange(start, min(start + size, len(selected))))
                yield selected.layout, piece.table, piece.weights()
                advance(len(piece))


_WRITERS: dict[str, Callable[[Zoo, Path], None]] = {
    "safetensors": _write_safetensors,
    "small-cnn": _write_small_cnn,
}
