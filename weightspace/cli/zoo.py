"""`weightspace zoo`: train a zoo, look into one, check one."""

from pathlib import Path
from typing import Annotated

import polars as pl
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightspace.cli.recipes import OPTION
from weightspace.errors import ZooError
from weightspace.networks import Layout
from weightspace.zoo import Zoo
from weightspace.zoo import check as check_zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo.backends import Backend
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train as train_zoo

SCORES = {"metric.test_accuracy": ("test accuracy", 1, 3), "metric.psnr": ("PSNR in decibels", 50, 1)}
"""Metrics shown with their distribution: name, end of the scale, digits."""
BINS = 20
SHOWN_LAYOUTS = 4
"""Layouts that are listed; of more only the range of sizes is said."""
BARS = " ▁▂▃▄▅▆▇█"


def train(
    path: Path,
    *,
    published: Annotated[str | None, Parameter(name=OPTION)] = None,
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 - frozen
    data_root: Path | None = None,
    workers: int | None = None,
    backend: Backend = "processes",
    device: str = "cpu",
    compile: bool = False,
) -> None:
    """Train a zoo into a folder, or finish one that was interrupted.

    Args:
        path: Folder of the zoo.
        published: Name of a published zoo (`weightspace zoo recipes` lists them): its values where no option is given.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        workers: Processes; one a core by default.
        backend: Processes of this machine, or the Ray cluster of RAY_ADDRESS.
        device: cpu, or a GPU as PyTorch names it.
        compile: Train in compiled steps, on a GPU with CUDA graphs; with large units (--unit-models 512).
    """
    # `published` has filled `recipe` before this function is called
    zoo = train_zoo(path, recipe, data_root=data_root, workers=workers, backend=backend, device=device, compile=compile)
    Console().print(f"{len(zoo.models)} networks, {len(zoo)} checkpoints: {path}", highlight=False)


def info(path: Path) -> None:
    """Say what is in a zoo.

    Args:
        path: Folder of the zoo.
    """
    console = Console()
    zoo = open_zoo(path)
    console.print(_facts(zoo))
    factors = _factors(zoo.table)
    if factors.row_count:
        console.print(factors)


def check(path: Path) -> None:
    """Read a zoo whole and compare it with what was committed: hashes, tables against weights, counts, NaN.

    Exits with 2 if it is damaged.

    Args:
        path: Folder of the zoo.
    """
    found = check_zoo(path)
    table = Table(title=str(path), show_header=False, title_justify="left")
    table.add_row("parts", f"{found.parts}, {found.without_hashes} of them without hashes")
    table.add_row("models", str(found.models))
    table.add_row("checkpoints", str(found.checkpoints))
    table.add_row("weights", f"{found.size / 1e6:,.1f} MB")
    table.add_row("NaN or infinite weights", f"{found.not_finite} checkpoints")
    table.add_row("unused files", ", ".join(found.unused[:3]) + (" ..." if len(found.unused) > 3 else "") or "none")
    table.add_row("damage", str(len(found.damage)) if found.damage else "none")
    console = Console()
    console.print(table)
    for sentence in found.damage[1:]:
        console.print(Text(sentence), soft_wrap=True)
    if found.damage:
        raise ZooError(found.damage[0])


def _facts(zoo: Zoo) -> Table:
    table = Table(title=str(zoo.header.get("name", zoo.path)), show_header=False, title_justify="left")
    steps = sorted(zoo.table["step"].unique())
    table.add_row("models", str(len(zoo.models)))
    table.add_row("checkpoints", f"{zoo.table.height}, at epochs {', '.join(map(str, steps))}")
    table.add_row("parameters", _parameters(zoo))
    several = zoo.header.get("networks")
    table.add_row("network", f"{len(several)} architectures" if several else _plain(zoo.header.get("network")))
    table.add_row("data set", _plain(zoo.header.get("dataset")))
    table.add_row("made by", _plain(zoo.header.get("created_by")))
    table.add_row("NaN or infinite weights", f"{_damaged(zoo)} checkpoints")
    last = zoo.last().table
    for column, (label, scale, digits) in SCORES.items():
        values = last.get_column(column, default=pl.Series([], dtype=pl.Float64)).drop_nulls().drop_nans()
        if len(values):
            table.add_row(f"last {label}", Text(f"0 [{histogram(values / scale)}] {scale}"))
            low, middle, high = (float(values.quantile(q, "linear") or 0) for q in (0, 0.5, 1))
            table.add_row("", f"lowest {low:.{digits}f}, median {middle:.{digits}f}, highest {high:.{digits}f}")
    return table


def _factors(checkpoints: pl.DataFrame) -> Table:
    """The generating factors with their ranges, or their values where they are few or words."""
    table = Table("factor", "values", title="generating factors", title_justify="left")
    for column in (c for c in checkpoints.columns if c.startswith("config.")):
        values = checkpoints[column].drop_nulls().unique().sort()
        if values.dtype.is_numeric() and len(values) > 6:
            spread = f"{values[0]:.4g} to {values[-1]:.4g}"
        else:
            spread = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[:6])
            spread += f" and {len(values) - 6} more" if len(values) > 6 else ""
        table.add_row(column.removeprefix("config."), spread)
    return table


def histogram(shares: pl.Series) -> str:
    """A bar for each twentieth of the range 0 to 1; every bin with a value shows.

    >>> histogram(pl.Series([0.0, 0.99, 1.0]))
    '▄                  █'
    """
    bins = (shares * BINS).floor().clip(0, BINS - 1).cast(pl.Int64)
    counts = [int((bins == i).sum()) for i in range(BINS)]
    return "".join(BARS[-(-count * (len(BARS) - 1) // max(*counts, 1))] for count in counts)


def _parameters(zoo: Zoo) -> str:
    sizes = {
        digest: Layout.from_json(zoo.header["layouts"][digest]).parameters for digest in zoo.table["layout"].unique()
    }
    if len(sizes) > SHOWN_LAYOUTS:
        return f"{min(sizes.values()):,} to {max(sizes.values()):,} in {len(sizes)} layouts"
    return ", ".join(sorted(f"{size:,} (layout {digest})" for digest, size in sizes.items()))


def _damaged(zoo: Zoo) -> int:
    layouts = zoo.table["layout"].unique()
    return zoo.table.height - sum(zoo.where(pl.col("layout") == one).finite().table.height for one in layouts)


def _plain(value: object) -> str:
    """Header data as `key value` pairs, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "unknown" if value is None else str(value)
