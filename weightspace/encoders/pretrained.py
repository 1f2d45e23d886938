"""Saving and loading of fitted encoders: safetensors and JSON, locally and on the Hugging Face Hub.

```
config.json               method, configuration, layout, header of the zoo, provenance
model.safetensors         learned weights, independent of the layout
preparation.safetensors   reference row and standardisation, of this layout
```
"""

import json
import platform
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import cattrs
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from weightspace.encoders.preparation import Preparation
from weightspace.errors import ConfigError, WeightspaceError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.training import TrainingConfig
from weightspace.views.standardise import Standardisation
from weightspace.zoo import Zoo

FORMAT_VERSION = 1
CONFIG, MODEL, PREPARATION = "config.json", "model.safetensors", "preparation.safetensors"
_converter = cattrs.Converter(forbid_extra_keys=True)


class Pretrained(ModelHubMixin):
    """What every fitted encoder is: a configuration, a module, a preparation, and where they come from."""

    name: ClassVar[str]
    Config: ClassVar[type]
    module: nn.Module

    def __init__(self, config: Any, preparation: Preparation, header: dict):
        self.config = config
        self.preparation = preparation
        self.header = header
        """Header of the zoo that it was fitted on; with `fit`, how."""

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {
            "format": "weightspace-encoder",
            "version": FORMAT_VERSION,
            "method": self.name,
            "config": asdict(self.config),
            "layout": self.preparation.layout.to_json(),
            "header": self.header,
        }
        scale = self.preparation.scale
        tensors = {"reference": self.preparation.reference, "mean": scale.mean, "std": scale.std}
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, save_directory / MODEL)
        save_file({name: value.contiguous() for name, value in tensors.items()}, save_directory / PREPARATION)
        (save_directory / CONFIG).write_text(json.dumps(content, indent=1))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            hub = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            folder = Path(snapshot_download(model_id, **{key: options[key] for key in hub if key in options}))
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The encoder in a folder written by `save_pretrained`.

        Raises:
            WeightspaceError: The folder is not there, damaged, of a newer version or of another method.
        """
        content = read_config(folder)
        if content["method"] != cls.name:
            raise ConfigError(f"{folder} holds a fitted {content['method']!r}, not {cls.name!r}")
        config = structure(content["config"], cls.Config)
        try:
            tensors = load_file(folder / PREPARATION)
            state = load_file(folder / MODEL)
        except (OSError, SafetensorError) as error:
            raise WeightspaceError(f"cannot read the weights in {folder}: {error}; fit the encoder again") from error
        scale = Standardisation(tensors["mean"], tensors["std"])
        preparation = Preparation(Layout.from_json(content["layout"]), tensors["reference"], scale)
        encoder = cls(config, preparation, content["header"])
        encoder.module.load_state_dict(state)
        return encoder


def read_config(folder: Path) -> dict:
    """Content of `config.json` of a fitted encoder.

    Raises:
        WeightspaceError: It is not there, damaged or of a newer version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise WeightspaceError(
            f"{folder} holds no fitted encoder ({CONFIG} is missing); make one with `weightspace fit`"
        )
    try:
        content = json.loads(path.read_text())
        version_found = int(content["version"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise WeightspaceError(f"{path} is not the configuration of a fitted encoder: {error}") from error
    if version_found > FORMAT_VERSION:
        raise WeightspaceError(
            f"{path} has format version {version_found}, this weightspace reads up to {FORMAT_VERSION}: "
            "update weightspace"
        )
    return content


def structure(data: dict, kind: type) -> Any:
    """A configuration from plain data; strict.

    Raises:
        ConfigError: A key is unknown, missing or has a wrong type.
    """
    known = [field.name for field in fields(kind)]
    for key in data:
        if key not in known:
            raise unknown_name(f"setting of {kind.__name__}", key, known)
    try:
        return _converter.structure(data, kind)
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        raise ConfigError(
            f"this is not a stored {kind.__name__}: {'; '.join(cattrs.transform_error(error))}"
        ) from error


def provenance(optimisation: TrainingConfig, train: Zoo, history: list[dict[str, float]]) -> dict:
    """What is recorded with a learned model: how, from what, with which versions, on what, how long."""
    packages = ("weightspace", "torch", "lightning-fabric", "numpy")
    return {
        "optimisation": asdict(optimisation),
        "zoo": train.digest,
        "checkpoints": len(train),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seconds": round(sum(record["seconds"] for record in history), 1),
        "epochs": len(history),
    }
