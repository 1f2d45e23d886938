"""Any folder of files with weights, or a single file."""

from pathlib import Path

from weightspace.zoo.importers.found import Found
from weightspace.zoo.importers.weight_files import is_weight_file, read_folder


def detect(source: Path) -> bool:
    """Whether there is any file of weights."""
    files = [source] if source.is_file() else source.rglob("*")
    return any(is_weight_file(file) for file in files if file.is_file())


def read(source: Path) -> Found:
    """Every file of weights in the folder and below."""
    return read_folder(source)
