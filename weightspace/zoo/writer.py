"""The zoo folder, and how parts are added to it so that a crash loses nothing that was committed.

    my-zoo/
      zoo.json                     format, version, name, layouts by digest, network, dataset, recipe, created_by
      checkpoints/<part>.parquet   a row a checkpoint: model, step, layout, shard, row, config.*, metric.*
      weights/<part>.safetensors   one matrix [checkpoints, parameters] under the key "rows"
      hashes/<part>.sha256         SHA-256 of the two files, as `sha256sum --check` reads it
      splits.json                  {"<seed>": {model: "train" | "validation" | "test"}}

A part is first written whole, synced, under hidden names. Then its files are renamed, the table last, and that is the
commit: weights without a table are invisible, and a rerun overwrites them. Only the renames hold the zoo's lock, so
several processes append at once; of two that append the same part the second is refused.

Axes: n checkpoint of a part, p parameter.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import LayoutError, ZooError
from weightspace.networks.layout import Layout

FORMAT = "weightspace-zoo"
VERSION = 1
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FOLDERS = ("weights", "hashes", "checkpoints")
LOCATION = ("layout", "shard", "row")
"""Columns that say where a checkpoint's weights lie; the zoo makes them."""

_PART = re.compile(r"[A-Za-z0-9_-]+")
_IDENTITY = ("layouts", "network", "dataset", "recipe")
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_LOCK_SECONDS = 60.0


def read_json(file: Path) -> Any:
    """The content of a JSON file of a zoo.

    Raises:
        ZooError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ZooError(f"{file} is not readable JSON ({error}): restore it, or make the zoo again") from error


def read_header(path: Path) -> dict[str, Any]:
    """The checked content of a zoo's `zoo.json`.

    Raises:
        ZooError: There is no zoo in this folder, it is damaged, or a newer version made it.
    """
    file = path / "zoo.json"
    if not path.exists():
        raise ZooError(f"there is no folder {path}: give the folder of a zoo, the one that contains zoo.json")
    if not file.is_file():
        raise ZooError(f"{path} is not a zoo: expected a folder with zoo.json, checkpoints/ and weights/")
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("version"), int):
        raise ZooError(f'{file} does not describe a zoo: expected "format": "{FORMAT}" and a whole "version"')
    if header["version"] > VERSION:
        raise ZooError(
            f"{file} was made by format version {header['version']}, this weightspace reads up to {VERSION}: "
            "update weightspace"
        )
    if not isinstance(header.get("layouts"), dict) or not header["layouts"]:
        raise ZooError(f'{file} lists no "layouts", so its weights cannot be read: restore it, or make the zoo again')
    return header


def complete_header(header: dict[str, Any], name: str, layouts: Sequence[Layout]) -> dict[str, Any]:
    """A header with format, version, layouts and, if it has none, a name; as JSON gives it back.

    Raises:
        ZooError: The header is not plain JSON data.
    """
    full = {"format": FORMAT, "version": VERSION, "name": name} | header
    full |= {"format": FORMAT, "version": VERSION, "layouts": {x.digest: x.to_json() for x in layouts}}
    try:
        return json.loads(json.dumps(full, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ZooError(f"the header of zoo {name!r} must be plain JSON data, but {error}") from error


def located(rows: Float[Tensor, "n p"], table: pl.DataFrame, layout: Layout, shard: str) -> pl.DataFrame:
    """The table with the columns that say where each checkpoint's weights lie.

    Args:
        rows: Weights `[n, parameters]`, float32, float16 or bfloat16.
        table: A row a checkpoint, with `model` and `step`, in the order of the rows.
        layout: Layout of the rows.
        shard: Name under which the rows are stored.

    Raises:
        ZooError: Rows, table and layout do not fit together.
    """
    if rows.dtype not in DTYPES:
        raise ZooError(f"a zoo stores float32, float16 or bfloat16, got {rows.dtype}: convert the rows first")
    if rows.shape[1] != layout.parameters:
        raise ZooError(f"rows have {rows.shape[1]} values, their layout {layout.digest} has {layout.parameters}")
    if rows.shape[0] != table.height:
        raise ZooError(f"got {rows.shape[0]} rows of weights for a table of {table.height} checkpoints")
    if taken := [name for name in LOCATION if name in table.columns]:
        raise ZooError(f"the zoo makes the columns {', '.join(taken)} itself: drop them from the table")
    types = table.schema
    if types.get("model") != pl.String or not types.get("step", pl.Null()).is_integer():
        raise ZooError(
            f"a table of checkpoints needs a text column 'model' and a whole-number column 'step', "
            f"got model: {types.get('model')} and step: {types.get('step')}"
        )
    key = table.select("model", pl.col("step").cast(pl.Int64))
    if key.null_count().sum_horizontal().item():
        raise ZooError("every checkpoint needs a model and a step, but some are null")
    if key.is_duplicated().any():
        model, step = key.filter(key.is_duplicated()).row(0)
        raise ZooError(f"model {model!r} has step {step} twice: a checkpoint appears once in a table")
    where = [
        pl.lit(layout.digest).alias("layout"),
        pl.lit(shard).alias("shard"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
    ]
    return key.with_columns(where).hstack(table.drop("model", "step"))


def write_file(target: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Raises:
        FileExistsError: The file exists and `replace` is false.
        OSError: It cannot be written; nothing is left behind.
    """
    temporary = _staged(target, data)
    try:
        _publish(temporary, target, replace=replace)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a zoo's lock, which ends with the process; for moments only, since others wait for it.

    A file system without locks gives none; there one part must belong to one process.

    Raises:
        ZooError: Another process has not let go of the lock for a minute.
        OSError: The zoo cannot be written.
    """
    file = os.open(path / "zoo.json", os.O_RDWR)  # network file systems lock only what is open for writing
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    break
                if not isinstance(error, BlockingIOError):
                    raise
                if time.monotonic() > deadline:
                    raise ZooError(
                        f"another process has held the lock of {path} for {_LOCK_SECONDS:.0f} seconds: "
                        "end it, then run the command again"
                    ) from error
            time.sleep(0.001)
        yield
    finally:
        os.close(file)


def _staged(target: Path, data: bytes) -> Path:
    """The data in a synced file with a hidden name beside its place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish(temporary: Path, target: Path, *, replace: bool) -> None:
    """Rename a file into its place, and sync the folder so that the new name outlives a power cut."""
    if replace:
        os.replace(temporary, target)
    else:
        _rename_to_new(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rename_to_new(source: Path, target: Path) -> None:
    """A rename that fails if the target exists, which a hard link does in one step."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(source, target)


@dataclass(frozen=True)
class ZooWriter:
    """Appends parts to a zoo folder; a part is visible whole or not at all.

    >>> import tempfile
    >>> layout = Layout.of(torch.nn.Linear(3, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ZooWriter.create(Path(folder), {"name": "tiny"}, [layout])
    ...     writer.append("00000", torch.zeros(2, 8), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]}))
    ...     writer.parts()
    {'00000'}
    """

    path: Path
    header: dict[str, Any]
    layouts: tuple[Layout, ...]

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: dict[str, Any], layouts: Sequence[Layout]) -> "ZooWriter":
        """Begin a zoo, or resume the one that has the same layouts, network, data set and recipe.

        Args:
            path: Folder of the zoo; made if missing. Several processes may create the same zoo at once.
            header: Content of `zoo.json`: name, network, dataset, recipe, created_by. Plain JSON data.
            layouts: Every layout that the zoo will hold.

        Raises:
            ZooError: The folder holds another zoo or other files, or cannot be written.
        """
        path = Path(path).resolve()
        if not layouts:
            raise ZooError(f"a zoo needs at least one layout, got none for {path}")
        wanted = complete_header(header, path.name, layouts)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if fresh := not (path / "zoo.json").exists():
                _refuse_foreign_files(path)
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            if fresh:
                write_file(path / "zoo.json", json.dumps(wanted, indent=1).encode(), replace=False)
        except FileExistsError as error:
            if not (path / "zoo.json").is_file():  # a file stands where a folder must be
                raise ZooError(f"cannot make a zoo in {path}: {error.strerror}: {error.filename}") from error
        except OSError as error:
            raise ZooError(f"cannot make a zoo in {path}: {error.strerror}") from error
        writer = cls.open(path)  # also after writing: another process may have been first
        if different := [key for key in _IDENTITY if writer.header.get(key) != wanted.get(key)]:
            raise ZooError(
                f"{path} already holds another zoo (different {', '.join(different)}): "
                "choose another folder, or delete that one"
            )
        return writer

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ZooWriter":
        """The writer of a zoo that exists, for example in a worker process.

        Raises:
            ZooError: There is no zoo in this folder, it is damaged, or a newer version made it.
        """
        path = Path(path).resolve()
        header = read_header(path)
        return cls(path, header, tuple(map(Layout.from_json, header["layouts"].values())))

    def parts(self) -> set[str]:
        """Names of the committed parts."""
        return {file.stem for file in (self.path / "checkpoints").glob("*.parquet")}

    def append(self, part: str, rows: Float[Tensor, "n p"], table: pl.DataFrame, layout: Layout | None = None) -> None:
        """Commit a part: its weights and its table become visible together.

        Args:
            part: Name, of letters, digits, `-` and `_`; reading goes through the parts in the order of their names.
            rows: Weights `[n, parameters]`, float32, float16 or bfloat16; keep a part below 2 GB.
            table: `n` checkpoints: `model` (text), `step` (whole epochs), and any `config.*` and `metric.*`.
            layout: Layout of the rows; needed only if the zoo has several.

        Raises:
            ZooError: The part exists, does not fit, or the disk is full; then nothing of it is visible.
        """
        if layout is None and len(self.layouts) > 1:
            raise ZooError(f"{self.path} has {len(self.layouts)} layouts: say which one part {part!r} has")
        layout = layout or self.layouts[0]
        if layout.digest not in self.header["layouts"]:
            raise LayoutError(f"layout {layout.digest} is not one of this zoo's: {', '.join(self.header['layouts'])}")
        if not _PART.fullmatch(part):
            raise ZooError(f"a part is named with letters, digits, '-' and '_', got {part!r}")
        if not table.height:
            raise ZooError(f"part {part!r} has no checkpoints: a part holds at least one")
        weights_file, hash_file, table_file = part_files(self.path, part)
        buffer = io.BytesIO()
        located(rows, table, layout, weights_file.name).write_parquet(buffer)
        content = {
            weights_file: safetensors.torch.save({"rows": rows.detach().cpu().contiguous()}),
            table_file: buffer.getvalue(),
        }
        content[hash_file] = "".join(
            f"{hashlib.sha256(data).hexdigest()}  {file.parent.name}/{file.name}\n" for file, data in content.items()
        ).encode()
        committed = ZooError(f"part {part!r} of {self.path} is already committed and is never overwritten")
        if table_file.exists():
            raise committed
        staged: list[Path] = []
        try:
            hash_file.parent.mkdir(exist_ok=True)  # a zoo of a version without hashes lacks the folder
            for file in (weights_file, hash_file, table_file):
                staged.append(_staged(file, content[file]))
            with locked(self.path):
                if table_file.exists():
                    raise committed
                try:
                    for temporary, file in zip(staged, (weights_file, hash_file, table_file), strict=True):
                        _publish(temporary, file, replace=file != table_file)
                except OSError:
                    if not table_file.exists():
                        weights_file.unlink(missing_ok=True)
                        hash_file.unlink(missing_ok=True)
                    raise
                self._remove_leftovers(part)
        except FileExistsError as error:
            raise committed from error
        except OSError as error:
            raise ZooError(
                f"could not write part {part!r} of {self.path} ({error.strerror}): nothing of it was kept; "
                "make room and run the command again"
            ) from error
        finally:
            for temporary in staged:
                temporary.unlink(missing_ok=True)

    def _remove_leftovers(self, part: str) -> None:
        """Hidden files of a committed part: of a killed run, or of a process that will be refused."""
        for folder in FOLDERS:
            for leftover in (self.path / folder).glob(f".{part}.*.tmp"):
                leftover.unlink(missing_ok=True)


def part_files(path: Path, part: str) -> tuple[Path, Path, Path]:
    """The files of a part in the order in which they are published: weights, hashes, table."""
    return (
        path / "weights" / f"{part}.safetensors",
        path / "hashes" / f"{part}.sha256",
        path / "checkpoints" / f"{part}.parquet",
    )


def _refuse_foreign_files(path: Path) -> None:
    """Hidden files may be those of another process that makes the same zoo right now."""
    ours = {*FOLDERS, "zoo.json"}
    if foreign := sorted(f.name for f in path.iterdir() if f.name not in ours and not f.name.startswith(".")):
        raise ZooError(f"{path} is no zoo and is not empty (it has {foreign[0]!r}): choose a new folder")
