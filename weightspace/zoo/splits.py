"""Which models train, validate and test. By model, never by checkpoint; a function of seed and names, and stored.

Plain splits rank the models by a hash. Stratified ones walk through the models sorted by what they are stratified by
and take every k-th (systematic sampling: W. G. Cochran, Sampling Techniques, 1977, chapter 8), so that any run of
neighbours, a stratum or a range of accuracies, has its share of each side.
"""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from weightspace.errors import ZooError, unknown_name
from weightspace.zoo.joining import Checkpoints
from weightspace.zoo.parts import TableParts
from weightspace.zoo.writer import locked, read_json, write_file

Side = Literal["train", "validation", "test"]

SIDES: tuple[Side, ...] = ("train", "validation", "test")
SHARE = 0.15
"""Of the models, for validation and for testing each."""


def draw(seed: int, strata: Mapping[str, int], stored: Mapping[str, Side]) -> dict[str, Side]:
    """A side for every model: the stored one, or a new one, so that validation and test have their share of all.

    Args:
        seed: Ranks the models within a stratum.
        strata: The models, each with the rank of its stratum; all 0 for a plain split.
        stored: Sides that are kept.

    >>> Counter(draw(0, {f"m{i}": i % 2 for i in range(40)}, {}).values()) == {"train": 28, "validation": 6, "test": 6}
    True
    """
    kept = {model: stored[model] for model in strata if model in stored}
    new = sorted(strata.keys() - kept.keys(), key=lambda model: (strata[model], _rank(seed, model)))
    wanted = max(round(SHARE * len(strata)), int(len(strata) >= 3))
    have = Counter(kept.values())
    if len(set(strata.values())) <= 1:
        for side in ("validation", "test"):
            count = max(0, wanted - have[side])
            kept |= dict.fromkeys(new[:count], side)
            new = new[count:]
        return kept | dict.fromkeys(new, "train")
    phase = int.from_bytes(_rank(seed, "")[:8]) % max(1, len(new))
    test, validation = (min(max(0, wanted - have[side]), len(new)) for side in ("test", "validation"))
    side_of = np.full(len(new), "train", dtype=object)
    side_of[_every(test, len(new), phase)] = "test"
    if validation == test <= len(new) // 2:  # half a stride later: the two never meet
        side_of[_every(validation, len(new), phase + len(new) // 2)] = "validation"
    else:  # models came to a zoo whose stored sides are uneven, or only one or two came
        rest = np.flatnonzero(side_of == "train")
        side_of[rest[_every(min(validation, len(rest)), len(rest), phase)]] = "validation"
    return kept | dict(zip(new, side_of.tolist(), strict=True))


def sides(origins: Mapping[Path | None, Checkpoints], seed: int, by: Sequence[str]) -> dict[str, Side]:
    """A side for every model of some zoos; those on disk keep them.

    Args:
        origins: All checkpoints of each zoo, by folder (`None`: in memory).
        seed: Ranks the models within a stratum.
        by: Columns to stratify by.

    Raises:
        ZooError: A record of splits is damaged or cannot be written.
        UnknownName: A zoo lacks a column.
    """
    name = f"{seed} by {', '.join(by)}" if by else str(seed)
    found: dict[str, Side] = {}
    for folder, whole in sorted(origins.items(), key=lambda item: (item[0] is None, str(item[0]))):
        strata = {model: rank for model, rank in _strata(whole, by).items() if model not in found}
        found |= draw(seed, strata, {}) if folder is None else _stored(folder, name, seed, strata)
    return found


def whole_models(table: pl.DataFrame, chosen: pl.DataFrame) -> list[str]:
    """The models of some chosen checkpoints, which must be all that the table has of these models.

    Raises:
        ZooError: They are not.
    """
    total, held = (x.select("model", "step").unique().group_by("model").len() for x in (table, chosen))
    cut = held.join(total, on="model", suffix="_all").filter(pl.col("len") < pl.col("len_all"))
    if cut.height:
        model, some, count = cut.sort("model").row(0)
        raise ZooError(
            f"the condition holds for {some} of the {count} checkpoints of model {model!r}, and a model is held "
            "out whole: use zoo.where(...) to select checkpoints"
        )
    return held["model"].to_list()


def read(folder: Path) -> dict[str, dict[str, Side]]:
    """The stored splits of a zoo.

    Raises:
        ZooError: The file is damaged.
    """
    file = folder / "splits.json"
    splits = read_json(file) if file.exists() else {}
    if not isinstance(splits, dict) or not all(
        isinstance(split, dict) and all(side in SIDES for side in split.values()) for split in splits.values()
    ):
        raise ZooError(f"{file} is not a record of splits: restore it, or delete it to split anew")
    return splits


def _strata(whole: Checkpoints, by: Sequence[str]) -> dict[str, int]:
    """Every model with the rank of its stratum: equal for equal values of its last checkpoint, null and NaN last."""
    names = ["model", "step", *by] if by else ["model"]
    table = whole.read(names) if isinstance(whole, TableParts) else whole
    if missing := [name for name in by if name not in table.columns]:
        raise unknown_name("column", missing[0], (whole.read() if isinstance(whole, TableParts) else whole).columns)
    if not by:
        return dict.fromkeys(table["model"].unique(), 0)
    last = table.group_by("model").agg(pl.col(name).sort_by("step").last().alias(f"by {name}") for name in by)
    values = pl.exclude("model")
    ranked = last.sort(values, nulls_last=True).select("model", rank=pl.struct(values).rle_id())
    return dict(zip(ranked["model"], ranked["rank"], strict=True))


def _stored(folder: Path, name: str, seed: int, strata: Mapping[str, int]) -> dict[str, Side]:
    """The sides of a zoo's models, from its `splits.json` as far as they are there, and stored there."""
    known = read(folder).get(name, {})
    if strata.keys() <= known.keys() or len(strata) < len(SIDES):  # fewer models are no split yet
        return draw(seed, strata, known)
    try:
        with locked(folder):  # another process may store a split at this moment
            splits = read(folder)
            drawn = draw(seed, strata, splits.get(name, {}))
            splits[name] = splits.get(name, {}) | drawn
            write_file(folder / "splits.json", json.dumps(splits, indent=1).encode())
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ZooError(f"could not write {folder / 'splits.json'}: {error.strerror}") from error
        return draw(seed, strata, known)
    return drawn


def _every(count: int, total: int, phase: int) -> np.ndarray:
    """Positions among `total`, evenly spaced, in whole numbers: any run of n has its share up or down to the next."""
    if not count:
        return np.empty(0, dtype=np.int64)
    marks = (np.arange(total + 1, dtype=np.int64) * count + phase) // total
    return np.flatnonzero(np.diff(marks))


def _rank(seed: int, model: str) -> bytes:
    return hashlib.sha256(f"{seed}/{model}".encode()).digest()
