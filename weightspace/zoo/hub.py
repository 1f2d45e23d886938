"""Zoos on the Hugging Face Hub: pushed with a card, pulled, and any repository's files for an import.

Everything goes through `huggingface_hub`: tokens, its cache and its offline mode (HF_HUB_OFFLINE) work as usual there.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from weightspace.errors import ZooError
from weightspace.zoo.card import card
from weightspace.zoo.store import Zoo
from weightspace.zoo.store import open as open_zoo

RepositoryType = Literal["model", "dataset"]

MOST_FILES = 10_000
"""Files that the Hub allows in a folder."""
_PARTS = ("zoo.json", "splits.json", "import.json", "checkpoints/*.parquet", "weights/*.safetensors", "hashes/*.sha256")
_FAILURES = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)


def snapshot(repository: str, *, endpoint: str | None = None) -> Path:
    """The files of a repository, from the Hub or, without network, from the cache of `huggingface_hub`.

    Args:
        repository: `owner/name`, of a data set `datasets/owner/name`, either with `@revision`.
        endpoint: Another hub than the public one.

    Raises:
        ZooError: The repository does not exist, may not be read, or is neither reachable nor in the cache.
    """
    name, _, revision = repository.partition("@")
    kind: RepositoryType = "dataset" if name.startswith("datasets/") else "model"
    name = name.removeprefix("datasets/")
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision or None, endpoint=endpoint))
    except _FAILURES as error:
        raise ZooError(f"the Hub gave nothing under {repository!r}: {_first_line(error)}") from error


def upload_plan(zoo: Zoo) -> list[CommitOperationAdd]:
    """What a push uploads: the zoo's files as they are, and a card made from the zoo.

    Raises:
        ZooError: The zoo is not one whole folder, or has more parts than the Hub allows in a folder.
    """
    folder = zoo.path
    if folder is None or len(zoo) != len(whole := open_zoo(folder)):
        raise ZooError(f"{zoo!r} is not a whole zoo on disk: save it into a folder, then push that")
    files = sorted(file for pattern in _PARTS for file in folder.glob(pattern))
    if sum(file.suffix == ".parquet" for file in files) > MOST_FILES:
        raise ZooError(f"{folder} has more than {MOST_FILES} parts, the Hub's limit: save it anew, which joins parts")
    plan = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    return [*plan, CommitOperationAdd("README.md", card(whole).encode())]


def push_zoo(
    zoo: Zoo, repository: str, *, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Upload a zoo into a data set repository, which is made if missing, as one commit.

    Args:
        zoo: A whole zoo on disk.
        repository: `owner/name`.
        private: Whether a new repository is private.
        token: Of an account that may write there; the stored one by default.
        endpoint: Another hub than the public one.

    Returns:
        Address of the commit.

    Raises:
        ZooError: The zoo cannot be uploaded, or the Hub refuses it or cannot be reached.
    """
    plan = upload_plan(zoo)
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        name = zoo.header.get("name", "zoo")
        commit = api.create_commit(repository, plan, repo_type="dataset", commit_message=f"Upload the zoo {name}")
    except _FAILURES as error:
        raise ZooError(f"could not push {zoo.path} to {repository!r}: {_first_line(error)}") from error
    return str(commit.commit_url)


def pull_zoo(repository: str, target: str | os.PathLike[str], *, endpoint: str | None = None) -> Zoo:
    """Copy a zoo that was pushed into a new folder, which appears when it is complete.

    Args:
        repository: `owner/name`, with `@revision` if not the newest.
        target: New folder.
        endpoint: Another hub than the public one.

    Raises:
        ZooError: The repository holds no zoo or cannot be had, or the folder exists.
    """
    target = Path(target).absolute()
    if target.exists():
        raise ZooError(f"{target} exists already: a zoo is pulled into a new folder")
    name, _, revision = repository.partition("@")
    try:
        found = Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[*_PARTS, "README.md"],
                endpoint=endpoint,
            )
        )
    except _FAILURES as error:
        raise ZooError(f"the Hub gave nothing under {repository!r}: {_first_line(error)}") from error
    if not (found / "zoo.json").is_file():
        raise ZooError(f"the data set repository {repository!r} holds no zoo: import hub:datasets/{repository} instead")
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        shutil.copytree(found, temporary)  # the files themselves: the cache holds links to them
        open_zoo(temporary)
        os.rename(temporary, target)
    except (OSError, shutil.Error) as error:
        raise ZooError(f"cannot pull into {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_zoo(target)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
