"""Whether a zoo is what was committed: hashes, tables against shards, counts, NaN.

Axes: n checkpoint of a part, p parameter.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from weightspace.errors import LayoutError, ZooError
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.zoo import splits
from weightspace.zoo.parts import TableParts, mend
from weightspace.zoo.shards import READ_VALUES, Locations, Shards
from weightspace.zoo.writer import FOLDERS, part_files, read_header


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `check` found in a zoo folder."""

    models: int
    """Runs in the readable tables."""
    checkpoints: int
    """Rows of the readable tables."""
    parts: int
    """Committed parts, damaged ones included."""
    size: int
    """Bytes of weights."""
    not_finite: int
    """Checkpoints with NaN or infinite weights; networks that diverged are no damage."""
    without_hashes: int
    """Parts of which no hashes were stored, as by versions before hashes; their content cannot be verified."""
    unused: tuple[str, ...]
    """Files that belong to no committed part: of a killed run, or of one that is writing now."""
    damage: tuple[str, ...]
    """A sentence for everything that is wrong; empty for a sound zoo."""


def check(path: str | os.PathLike[str]) -> Inspection:
    """Read a zoo folder whole and compare it with what was committed; changes nothing.

    Args:
        path: The folder with `zoo.json`.

    Raises:
        ZooError: There is no zoo, its header is damaged, or a newer version made it.

    >>> import tempfile, torch
    >>> from weightspace.zoo import Zoo
    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    >>> zoo = Zoo.in_memory(torch.zeros(2, 8), Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> check(zoo.save(tempfile.mkdtemp() + "/zoo").path).damage
    ()
    """
    path = Path(path).resolve()
    header = read_header(path)
    written = sorted(file for folder in FOLDERS for file in (path / folder).glob("*") if file.suffix != ".parquet")
    parts = sorted(file.stem for file in (path / "checkpoints").glob("*.parquet"))  # after the others: it is the commit
    layouts, damage = _layouts(path, header["layouts"])
    owned, keys = set[Path](), []
    without_hashes = not_finite = 0
    with progress_bar("checking parts", len(parts)) as advance:
        for part in parts:
            files = part_files(path, part)
            owned.update(files)
            without_hashes += not files[1].exists()
            found = [*_hash_damage(path, part)]
            try:
                table = TableParts(files[2:], frozenset(layouts)).read()
                keys.append(table.select("model", "step"))
                owned.update(path / "weights" / shard for shard in table["shard"].unique())
                not_finite += _not_finite(path, table, layouts)
            except ZooError as error:
                if not found:  # the hash has said it already, without a doubt
                    found.append(str(error))
            damage += found
            advance()
    key = pl.concat(keys) if keys else pl.DataFrame(schema={"model": pl.String, "step": pl.Int64})
    if (twice := key.filter(key.is_duplicated())).height:
        model, step = twice.row(0)
        damage.append(
            f"model {model!r} has step {step} in two parts, as {twice.unique().height} checkpoints have: delete one"
        )
    try:
        splits.read(path)
    except ZooError as error:
        damage.append(str(error))
    return Inspection(
        models=key["model"].n_unique(),
        checkpoints=key.height,
        parts=len(parts),
        size=sum(file.stat().st_size for file in owned if file.suffix == ".safetensors" and file.exists()),
        not_finite=not_finite,
        without_hashes=without_hashes,
        unused=tuple(str(file.relative_to(path)) for file in written if file not in owned),
        damage=tuple(damage),
    )


def _layouts(path: Path, described: Mapping[str, list[dict]]) -> tuple[dict[str, Layout], list[str]]:
    layouts, damage = {}, []
    for digest, tensors in described.items():
        try:
            layouts[digest] = Layout.from_json(tensors)
        except LayoutError as error:
            damage.append(f"{path / 'zoo.json'} is damaged at layout {digest}: {error}")
            continue
        if layouts[digest].digest != digest:
            damage.append(f"{path / 'zoo.json'} calls a layout {digest} whose content is {layouts[digest].digest}")
    return layouts, damage


def _hash_damage(path: Path, part: str) -> Iterator[str]:
    """Sentences about the files of a part that are not those that were committed."""
    weights_file, hash_file, table_file = part_files(path, part)
    if not hash_file.exists():
        return
    lines = (line.partition("  ") for line in hash_file.read_text(errors="replace").splitlines())
    hashes = {name: digest for digest, _, name in lines}
    files = {f"{file.parent.name}/{file.name}": file for file in (weights_file, table_file)}
    if hashes.keys() != files.keys():
        yield f"{hash_file} does not list the hashes of its two files: restore it, or delete it to go without"
        return
    for name, file in files.items():
        if not file.is_file():
            yield f"{file} is missing: {mend(part)}"
            continue
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != hashes[name]:
                yield f"{file} is not what was committed (its SHA-256 differs): {mend(part)}"


def _not_finite(path: Path, table: pl.DataFrame, layouts: Mapping[str, Layout]) -> int:
    """Checkpoints of a part with NaN or infinite weights.

    Raises:
        ZooError: Table and shards do not agree.
    """
    shards, where, bad = Shards(path / "weights"), Locations.of(table), 0
    for number, (digest, shard) in enumerate(where.shards):
        rows = np.sort(where.row[where.shard == number])
        held = shards.rows(shard, layouts[digest])
        if len(rows) != held or (rows != np.arange(held)).any():
            raise ZooError(
                f"shard {path / 'weights' / shard} has {held} rows and its table names {len(np.unique(rows))} of them, "
                f"{len(rows)} in all: {mend(shard.removesuffix('.safetensors'))}"
            )
        size = max(1, READ_VALUES // max(1, layouts[digest].parameters))
        places = np.flatnonzero(where.shard == number)
        for some in (places[i : i + size] for i in range(0, held, size)):
            bad += int((~np.isfinite(shards.read(where, layouts[digest], some)).all(axis=1)).sum())
    return bad
