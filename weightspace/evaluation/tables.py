"""Tidy tables as files."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import polars as pl

from weightspace.errors import ConfigError
from weightspace.zoo.writer import write_file


def save_tables(tables: Mapping[str, pl.DataFrame], folder: str | PathLike[str]) -> None:
    """Write each table as `NAME.csv` into a folder; existing ones are replaced.

    Raises:
        ConfigError: The folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_file(folder / f"{name}.csv", table.write_csv().encode())
    except OSError as error:
        raise ConfigError(
            f"the tables cannot be written into {folder} ({error.strerror}): give another folder"
        ) from error
