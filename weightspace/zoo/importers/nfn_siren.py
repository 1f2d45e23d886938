"""SIREN folders of NFN (Zhou et al., 2023): `siren_mnist_wts/randinit_test_5s/net123.pth`, one network an image.

The image's index is the number in the file's name, its class that in the folder's; order and published split are by
index.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from weightspace.zoo.importers.found import Checkpoint, Found, Item, Skipped, Unreadable
from weightspace.zoo.importers.weight_files import read_file

_FOLDER = re.compile(r"(.*)_(\d)s")
_FILE = re.compile(r"net(\d+)\.pth")
_TRAIN, _VALIDATION = 45000, 50000
"""Indices below the first are training images, below the second validation images (MNIST, CIFAR-10, classification)."""


def detect(source: Path) -> bool:
    """Whether there is a network of an image."""
    return source.is_dir() and next(_networks(source), None) is not None


def read(source: Path) -> Found:
    """Every network, in the order of the images."""
    files = sorted((_image(file), file.parent.name, file) for file in _networks(source))
    others = sorted(set(path for path in source.rglob("*.pth")) - {file for *_, file in files})
    return Found(items=_items(source, [file for *_, file in files], others), count=len(files) + len(others))


def _networks(source: Path) -> Iterator[Path]:
    return (
        file for file in source.rglob("net*.pth") if _FILE.fullmatch(file.name) and _FOLDER.fullmatch(file.parent.name)
    )


def _image(file: Path) -> int:
    match = _FILE.fullmatch(file.name)
    return int(match[1]) if match else -1


def _items(source: Path, files: list[Path], others: list[Path]) -> Iterator[Item]:
    for file in others:
        yield Skipped(
            source=file.relative_to(source).as_posix(), reason="not called net<index>.pth in <prefix>_<label>s"
        )
    for file in files:
        where = file.relative_to(source)
        index = _image(file)
        prefix, label = file.parent.name[: -len("_0s")], file.parent.name[-2]
        split = "train" if index < _TRAIN else "validation" if index < _VALIDATION else "test"
        try:
            content = read_file(file)
        except Unreadable as error:
            yield Skipped(source=where.as_posix(), reason=str(error))
            continue
        yield Checkpoint(
            source=where.as_posix(),
            model=where.with_suffix("").as_posix(),
            state=content.state,
            columns={
                "config.image": index,
                "config.label": label,
                "config.initialisation": prefix,
                "published_split": split,
            },
            notes=content.notes,
        )
