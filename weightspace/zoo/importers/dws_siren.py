"""INR folders of DWSNets (Navon et al., 2023): `mnist_png_training_5_1234/checkpoints/model.pth`, one folder an image.

The class is the second-to-last field of the image's folder. A JSON file of splits lists paths and labels.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from weightspace.zoo.importers.found import Checkpoint, Found, Item, Plain, Skipped, Unreadable, read_json_file
from weightspace.zoo.importers.weight_files import read_file

_FOLDER = re.compile(r"(.+)_(training|testing|train|test)_(.+)_(\d+)")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def detect(source: Path) -> bool:
    """Whether there is a network of an image."""
    return source.is_dir() and any(_FOLDER.fullmatch(file.parent.parent.name) for file in source.rglob("*.pth"))


def read(source: Path) -> Found:
    """Every network, with the split of the JSON file if there is one."""
    files = sorted(source.rglob("*.pth"))
    splits, notes = _splits(source)
    return Found(items=_items(source, files, splits), notes=notes, count=len(files))


def _splits(source: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The published side of each image's folder, from the first JSON file of splits."""
    for file in sorted(source.rglob("*.json")):
        try:
            table = read_json_file(file)
            if not isinstance(table, dict) or not {"train", "test"} <= table.keys():
                continue
            paths = {side: list(map(str, table[side]["path"])) for side in _SPLITS if side in table}
        except (Unreadable, KeyError, TypeError):
            continue
        sides = {_image(PurePosixPath(path)): _SPLITS[side] for side in paths for path in paths[side]}
        return sides, (f"published split from {file.name}",)
    return {}, ()


def _image(path: PurePosixPath) -> str:
    return next((part for part in reversed(path.parts) if _FOLDER.fullmatch(part)), path.name)


def _items(source: Path, files: list[Path], splits: Mapping[str, str]) -> Iterator[Item]:
    for file in files:
        where = file.relative_to(source).as_posix()
        match = _FOLDER.fullmatch(file.parent.parent.name)
        if not match:
            reason = "statistics of the zoo, not a network" if file.stem == "statistics" else "no folder says its image"
            yield Skipped(source=where, reason=reason)
            continue
        try:
            content = read_file(file)
        except Unreadable as error:
            yield Skipped(source=where, reason=str(error))
            continue
        columns: dict[str, Plain] = {
            "config.image": int(match[4]),
            "config.label": match[3],
            "config.part": "train" if match[2].startswith("train") else "test",
        }
        if splits:
            columns["published_split"] = splits.get(file.parent.parent.name)
        yield Checkpoint(source=where, model=match[0], state=content.state, columns=columns, notes=content.notes)
