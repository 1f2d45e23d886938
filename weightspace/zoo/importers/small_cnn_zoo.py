"""The Small CNN Zoo of Unterthiner et al. (2020): one matrix of weights, one table of metrics, one of the layout.

    weights.npy      [checkpoints, 4970] float32, memory-mapped
    metrics.csv.gz   a line a checkpoint: config.*, modeldir, step, test_accuracy, …
    layout.csv       varname, start_idx, end_idx, shape; of each layer the bias, then the kernel

Rows are turned into PyTorch's order by one gather: kernels HWIO to OIHW, dense matrices transposed, weight before bias.
The published layout has a known network, so that such a zoo can be run; its images are grey, with values in [-1, 1].

Axes: n checkpoint, p parameter.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor

from weightspace import networks
from weightspace.errors import ZooError
from weightspace.networks.inference import layout_from_shapes
from weightspace.networks.layout import Layout
from weightspace.zoo.importers.found import Block, Found, metric_name, read_csv_file
from weightspace.zoo.importers.torch_order import kernel_in_torch_order

BLOCK_VALUES = 2**22
"""Values read at a time."""
SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "svhn_cropped": 32}
"""Height and width of the images of each published set, which the layout does not tell."""


def detect(source: Path) -> bool:
    """Whether the three files are there."""
    return source.is_dir() and all(
        (source / name).is_file() for name in ("weights.npy", "metrics.csv.gz", "layout.csv")
    )


def read(source: Path) -> Found:
    """Every row, a model a `modeldir`.

    Raises:
        ZooError: A file is missing or damaged, or they do not fit together.
    """
    places, layout = torch_order(read_csv_file(source / "layout.csv"), source / "layout.csv")
    try:
        matrix = np.load(source / "weights.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ZooError(f"{source / 'weights.npy'} is truncated or damaged: {error}") from error
    table = _table(read_csv_file(source / "metrics.csv.gz"), source)
    if matrix.ndim != 2 or matrix.shape != (table.height, layout.parameters) or matrix.dtype.kind != "f":
        raise ZooError(
            f"{source / 'weights.npy'} holds {matrix.dtype} {matrix.shape}, but metrics.csv.gz has {table.height} "
            f"lines and layout.csv {layout.parameters} parameters: these files do not belong together"
        )
    size = max(1, BLOCK_VALUES // layout.parameters)
    network = _network(layout, table)
    return Found(
        items=_blocks(source / "weights.npy", places, layout, table, size),
        header={} if network is None else {"network": networks.to_json(network)},
        count=-(-len(matrix) // size),
    )


def _network(layout: Layout, table: pl.DataFrame) -> networks.Network | None:
    """The published network, if this is its layout; each row's activation is in the table."""
    names = table.get_column("config.dataset", default=pl.Series(["mnist"])).drop_nulls().unique()
    sides = {SIDES.get(str(name)) for name in names}
    side = sides.pop() if len(sides) == 1 else None
    if side is None:
        return None
    network = networks.by_name("small_cnn", (1, side, side), 10)
    return network if Layout.of(network.build()) == layout else None


def torch_order(table: pl.DataFrame, file: Path) -> tuple[Int64[Tensor, " p"], Layout]:
    """Where each value of a PyTorch row lies in a row of the zoo, and the layout of PyTorch rows.

    Layers are named `conv1`, …, `fc1`, … in the order of the file, whatever they were called.

    Raises:
        ZooError: The table is no such layout.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    end = 0
    try:
        for name, start, stop, shape in table.select("varname", "start_idx", "end_idx", "shape").iter_rows():
            layer, _, key = re.sub(r":\d+$", "", str(name)).rpartition("/")
            sizes = (
                tuple(ast.literal_eval(str(shape)))
                if "," in str(shape)
                else tuple(map(int, re.findall(r"\d+", str(shape))))
            )
            if key not in ("kernel", "bias") or start != end:
                raise ValueError(f"{name} is not a kernel or bias that begins where the one before it ends, at {end}")
            layers.setdefault(layer, {})[key] = torch.arange(start, stop).reshape(sizes)
            end = stop
        if not layers or any("kernel" not in parts for parts in layers.values()):
            raise ValueError("a layer has no kernel")
    except (ValueError, TypeError, SyntaxError, RuntimeError, pl.exceptions.PolarsError) as error:
        raise ZooError(f"{file} is not a layout of the Small CNN Zoo: {error}") from error
    parts, counts = {}, {"conv": 0, "fc": 0}
    for tensors in layers.values():
        kind = "conv" if tensors["kernel"].ndim > 2 else "fc"
        counts[kind] += 1
        parts[f"{kind}{counts[kind]}.weight"] = kernel_in_torch_order(tensors["kernel"])
        if "bias" in tensors:
            parts[f"{kind}{counts[kind]}.bias"] = tensors["bias"]
    layout = layout_from_shapes({name: tuple(places.shape) for name, places in parts.items()})
    return torch.cat([places.reshape(-1) for places in parts.values()]), layout


def _table(metrics: pl.DataFrame, source: Path) -> pl.DataFrame:
    if missing := [name for name in ("modeldir", "step") if name not in metrics.columns]:
        raise ZooError(f"{source / 'metrics.csv.gz'} lacks the column {missing[0]!r}")
    names = {"modeldir": "model"}
    for name in metrics.columns:
        if name not in ("modeldir", "step") and not name.startswith(("config.", "metric.")):
            names[name] = f"metric.{metric_name(name)}"
    return metrics.rename(names).with_columns(pl.col("model").cast(pl.String), pl.col("step").cast(pl.Int64))


def _blocks(file: Path, places: Tensor, layout: Layout, table: pl.DataFrame, size: int) -> Iterator[Block]:
    """The rows in blocks, mapped anew for each, so that pages that were read do not stay with this process."""
    for start in range(0, table.height, size):
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
        rows = torch.from_numpy(np.array(matrix[start : start + size], dtype=np.float32))
        del matrix
        yield Block(source=file.name, layout=layout, rows=rows[:, places], table=table[start : start + size])
