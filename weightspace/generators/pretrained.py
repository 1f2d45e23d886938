"""What is beside the weights of a fitted generator: its `config.json`, and how it was made."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from weightspace.datasets import Dataset
from weightspace.errors import WeightspaceError
from weightspace.training import History, TrainingConfig

FORMAT, FORMAT_VERSION = "weightspace-generator", 1
CONFIG, MODEL = "config.json", "model.safetensors"
CARD = """---
{{ card_data }}
---

A generator of neural networks, fitted with weightspace; `config.json` says by which method, for which network, on which
data and how. Read it with `weightspace.generators.load(folder)`.
"""


def method_of(folder: Path) -> str | None:
    """Name of the method of the fitted generator in a folder; `None` if it holds none."""
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.get("format") == FORMAT
    return str(content.get("method")) if known else None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Everything in the safetensors file of a fitted generator.

    Raises:
        WeightspaceError: It is missing or damaged.
    """
    try:
        return load_file(folder / MODEL)
    except (OSError, SafetensorError) as error:
        raise WeightspaceError(f"cannot read the weights in {folder}: {error}; fit the generator again") from error


def fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load the tensors `module.*` of a fitted generator, and set the module to evaluation.

    Raises:
        WeightspaceError: They are not those of the module.
    """
    try:
        module.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items()})
    except RuntimeError as error:
        raise WeightspaceError(
            f"{folder / MODEL} does not fit the sizes in {CONFIG} ({error}); fit the generator again"
        ) from error
    module.eval()


def read_config(path: Path, method: str) -> dict:
    """Content of `config.json` of a fitted generator.

    Raises:
        WeightspaceError: It is not there, damaged, of another method or of a newer version.
    """
    if not path.is_file():
        raise WeightspaceError(f"{path.parent} holds no fitted generator: {path.name} is missing")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightspaceError(f"{path} is not readable JSON ({error}); fit the generator again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("method") != method:
        raise WeightspaceError(f'{path} does not describe a fitted generator: expected "format": "{FORMAT}"')
    if not isinstance(content.get("version"), int) or content["version"] > FORMAT_VERSION:
        raise WeightspaceError(
            f"{path} has format version {content.get('version')}, this weightspace reads up to {FORMAT_VERSION}: "
            "update weightspace"
        )
    if missing := [key for key in ("config", "header") if not isinstance(content.get(key), dict)]:
        raise WeightspaceError(f"{path} lacks {missing[0]!r}; fit the generator again")
    return content


def provenance(optimisation: TrainingConfig, data: Dataset, history: History) -> dict:
    """What is recorded with a fitted generator: how, on what data, with which versions, on what machine, how long."""
    packages = ("weightspace", "torch", "lightning-fabric", "numpy")
    return {
        "optimisation": asdict(optimisation),
        "images": len(data.train_images),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "seconds": round(sum(record["seconds"] for record in history), 1),
        "epochs": len(history),
        "last": history[-1],
    }
