"""Several zoos as one, without reading or copying their weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from weightspace.errors import ZooError
from weightspace.zoo.parts import TableParts
from weightspace.zoo.shards import Shards, Source, same

Checkpoints = pl.DataFrame | TableParts
"""A table, or the files it is in."""


def joined_shards(shards: Sequence[Shards], used: Sequence[Sequence[str]]) -> tuple[Shards, list[dict[str, str]]]:
    """The storage of several zoos, with a new name for a shard whose name another zoo has taken.

    Args:
        shards: The storage of each zoo.
        used: Names of the shards that each zoo uses.

    Returns:
        The joint storage, and for each zoo the new name of each shard.
    """
    sources: dict[str, Source] = {}
    renamed = []
    for storage, names in zip(shards, used, strict=True):
        new_names = {}
        for name in names:
            new, copy = name, 1
            while new in sources and not same(sources[new], storage[name]):
                new, copy = f"{copy}/{name}", copy + 1
            new_names[name] = new
            sources[new] = storage[name]
        renamed.append(new_names)
    return Shards(sources), renamed


def joined_tables(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One table; a column that one of them lacks is null there.

    Raises:
        ZooError: A model has the same step in two tables, with other weights.
    """
    table = pl.concat(tables, how="diagonal_relaxed")
    places = table.select("model", "step", "shard", "row").unique()
    clash = places.filter(pl.struct("model", "step").is_duplicated())
    if clash.height:
        model, step = clash.sort("model", "step").select("model", "step").row(0)
        raise ZooError(f"two zoos have a model {model!r} with step {step}: give the models different names")
    return table


def joined_origins(origins: Sequence[Mapping[Path | None, Checkpoints]]) -> dict[Path | None, Checkpoints]:
    """All checkpoints of the zoos that several were selected from."""
    joined: dict[Path | None, Checkpoints] = {}
    for some in origins:
        for folder, whole in some.items():
            joined[folder] = _both(joined[folder], whole) if folder in joined else whole
    return joined


def joined_header(headers: Sequence[dict[str, Any]], layouts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The first header with the layouts of all, without what is not true of all where layouts differ.

    Args:
        headers: The header of each zoo.
        layouts: Digests that each zoo uses.
    """
    first = headers[0]
    if len(set(map(frozenset, layouts))) > 1:
        always = ("format", "version", "name", "layouts")
        first = {k: v for k, v in first.items() if k in always or all(other.get(k) == v for other in headers)}
    return first | {"layouts": {digest: x for header in headers for digest, x in header["layouts"].items()}}


def _both(a: Checkpoints, b: Checkpoints) -> Checkpoints:
    """The checkpoints of one folder that was opened twice, the second time perhaps with more; or of two in memory."""
    if a is b:
        return a
    if isinstance(a, TableParts) and isinstance(b, TableParts):
        return a if len(a.files) > len(b.files) else b
    return pl.concat([x.read() if isinstance(x, TableParts) else x for x in (a, b)], how="diagonal_relaxed")
