"""Readers of foreign populations: which formats there are, how a source is recognised, and the import itself.

Each format is one file with two functions, `detect(source) -> bool` and `read(source) -> Found`. Formats are tried in
the order of `FORMATS`, the special before the general. Nothing that a file contains is executed.
"""

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from weightspace.errors import ZooError, unknown_name
from weightspace.zoo.importers.found import Block, Checkpoint, Found, Item, Skipped
from weightspace.zoo.importers.report import ImportReport

__all__ = ["FORMATS", "Block", "Checkpoint", "Found", "ImportReport", "Skipped", "detect", "import_zoo"]

FORMATS = {
    "small-cnn": ("small_cnn_zoo", "weights.npy, metrics.csv.gz and layout.csv (Unterthiner et al., 2020)"),
    "modelzoos-pt": ("modelzoos_pt", "preprocessed .pt of the Model Zoos, with or without index_dict.json"),
    "sane": ("sane", "preprocessed tokens of SANE: dataset_torch.<split>/sample_*.pt or dataset_<split>.pt"),
    "ray": ("ray", "result.json, params.json and checkpoint_*: raw Model Zoos, Ray Tune"),
    "nfn-siren": ("nfn_siren", "SIREN folders of NFN: <prefix>_<label>s/net<index>.pth"),
    "dws-siren": ("dws_siren", "INR folders of DWSNets: mnist_png_<split>_<label>_<index>/.../*.pth"),
    "lightning": ("lightning", "logs of PyTorch Lightning: hparams.yaml, metrics.csv, *.ckpt"),
    "hf-trainer": ("hf_trainer", "output folders of the Hugging Face Trainer: checkpoint-*/trainer_state.json"),
    "optuna": ("optuna", "an Optuna study in SQLite beside checkpoints named by trial"),
    "files": ("files", "any folder of .safetensors, .pt, .pth, .ckpt, .bin, .npz, .h5, .keras, .onnx or agents (.zip)"),
}
"""Names of the formats: their module here, and what they look like."""


def detect(source: Path) -> str:
    """The format of a folder or file.

    Raises:
        ZooError: It does not exist, is a zoo already, or looks like no format.
    """
    if not source.exists():
        raise ZooError(f"there is no {source} to import: give a folder, or a file of weights")
    if (source / "zoo.json").is_file():
        raise ZooError(f"{source} is a zoo already: open it, nothing needs to be imported")
    for name in FORMATS:
        if _module(name).detect(source):
            return name
    known = "; ".join(text for _, text in FORMATS.values())
    raise ZooError(f"{source} looks like none of the known formats ({known})")


def import_zoo(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str = "auto",
    labels: str | os.PathLike[str] | None = None,
    max_weight: float | None = None,
    keep_nonfinite: bool = False,
) -> ImportReport:
    """Make a zoo of somebody's checkpoints, of any known format.

    The zoo appears when it is complete; a killed import leaves nothing at its place. One checkpoint, or a part of the
    zoo, is in memory at a time. Equal sets of names and shapes become one layout, different ones several.

    Args:
        source: Folder or file; `hub:owner/name` for a repository on the Hugging Face Hub, or its cache when offline.
        target: Folder of the new zoo.
        format: A name from `FORMATS`, or `auto`.
        labels: CSV with a line a checkpoint, joined by the column that names files or models.
        max_weight: Skip checkpoints with a larger absolute weight; the reference reader of the Model Zoos uses 5.
        keep_nonfinite: Take checkpoints with NaN or infinite weights, which are skipped otherwise.

    Returns:
        What was taken, what was skipped and why; also stored as `import.json` in the zoo.

    Raises:
        ZooError: Nothing can be read, the target exists, or the labels fit nothing.
        UnknownName: There is no such format.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(torch.nn.Linear(3, 2).state_dict(), f"{folder}/net.pt")
    ...     import_zoo(folder, f"{folder}/zoo").checkpoints
    1
    """
    from weightspace.zoo.importers.write import write_zoo

    if format not in ("auto", *FORMATS):
        raise unknown_name("format", format, ("auto", *FORMATS))
    place, name = _local(source)
    target = Path(target).absolute()
    if target.exists():
        raise ZooError(f"{target} exists already: a zoo is imported into a new folder")
    format = detect(place) if format == "auto" else format
    found: Found = _module(format).read(place)
    return write_zoo(
        replace(found, items=(_renamed(item, place.name, name) for item in found.items)),
        target,
        source=name,
        format=format,
        labels=Path(labels) if labels is not None else None,
        max_weight=max_weight,
        keep_nonfinite=keep_nonfinite,
    )


def _local(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """Where the source lies, and what it is called."""
    text = os.fspath(source)
    if text.startswith("hub:"):
        from weightspace.zoo.hub import snapshot

        return snapshot(text.removeprefix("hub:")), text
    place = Path(text).absolute()
    return place, place.name


def _renamed(item: Item, place: str, name: str) -> Item:
    """A repository's cache is a folder called by its commit; a model called by its folder is the repository's."""
    return (
        replace(item, model=name.removeprefix("hub:")) if isinstance(item, Checkpoint) and item.model == place else item
    )


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{FORMATS[name][0]}")
