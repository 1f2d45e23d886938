"""Saving and loading of fitted encoders: safetensors and JSON, locally and on the Hugging Face Hub.

```
config.json               method, configuration, layouts, header of the zoo, provenance
model.safetensors         learned weights
preparation.safetensors   reference row and standardisation of each layout
README.md                 a card for the Hub; never read
```
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import cattrs
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from weightspace.encoders.preparation import Preparation
from weightspace.errors import ConfigError, WeightspaceError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.training import History, TrainingConfig
from weightspace.views.standardise import SharedScale, Standardisation
from weightspace.zoo import Zoo
from weightspace.zoo.writer import write_file

FORMAT, FORMAT_VERSION = "weightspace-encoder", 1
CONFIG, MODEL, PREPARATION = "config.json", "model.safetensors", "preparation.safetensors"
CARD = """---
{{ card_data }}
---

An encoder of neural networks' weights, fitted with weightspace; `config.json` says by which method, on which zoo and
how. Read it with `weightspace.encoders.load(folder)`, or with `from_pretrained` of its method's class.
"""
Fitted = TypeVar("Fitted", bound="Pretrained")  # typing.Self is refused by run-time type checks
_converter = cattrs.Converter(forbid_extra_keys=True)


class Pretrained(ModelHubMixin, library_name="weightspace", model_card_template=CARD):
    """What every fitted encoder is: a configuration, a module, a preparation, and where they come from."""

    name: ClassVar[str]
    Config: ClassVar[type]
    module: nn.Module

    def __init__(self, config: Any, preparation: Preparation | Sequence[Preparation], header: dict):
        self.config = config
        self.preparations = (preparation,) if isinstance(preparation, Preparation) else tuple(preparation)
        """Of each layout that it was fitted on."""
        self.header = header
        """Header of the zoo that it was fitted on; with `fit`, how."""

    @property
    def preparation(self) -> Preparation:
        """Of the only layout that it was fitted on, or of the first."""
        return self.preparations[0]

    def _save_pretrained(self, save_directory: Path) -> None:
        first, *others = self.preparations
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "method": self.name,
            "config": asdict(self.config),
            "layout": first.layout.to_json(),
            "header": self.header,
        }
        if others:
            content["other_layouts"] = [preparation.layout.to_json() for preparation in others]
        if first.shared is not None:
            content["shared_scale"] = asdict(first.shared)
        tensors: dict[str, Tensor] = {}
        for prefix, preparation in zip(_prefixes(len(self.preparations)), self.preparations, strict=True):
            tensors |= {f"{prefix}mean": preparation.scale.mean, f"{prefix}std": preparation.scale.std}
            if preparation.reference is not None:
                tensors[f"{prefix}reference"] = preparation.reference
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        write_file(save_directory / MODEL, save(state))
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        write_file(save_directory / PREPARATION, save(tensors))
        write_file(save_directory / CONFIG, json.dumps(content, indent=1).encode())

    @classmethod
    def from_pretrained(cls: type[Fitted], pretrained_model_name_or_path: str | Path, **options: Any) -> Fitted:
        """The encoder in a folder, or in a repository on the Hugging Face Hub.

        Args:
            options: For the Hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            WeightspaceError: There is no such folder or repository, or as in `load`.
        """
        return cls.load(local_folder(pretrained_model_name_or_path, [CONFIG, MODEL, PREPARATION], **options))

    @classmethod
    def load(cls: type[Fitted], folder: Path) -> Fitted:
        """The encoder in a folder written by `save_pretrained`.

        Raises:
            WeightspaceError: The folder is not there, damaged, of a newer version or of another method.
        """
        content = read_config(folder)
        if content["method"] != cls.name:
            raise ConfigError(f"{folder} holds a fitted {content['method']!r}, not {cls.name!r}")
        if "layout" not in content:
            raise WeightspaceError(f"{folder / CONFIG} lacks 'layout'; fit the encoder again")
        config = structure(content["config"], cls.Config)
        try:
            tensors = load_file(folder / PREPARATION)
            state = load_file(folder / MODEL)
        except (OSError, SafetensorError) as error:
            raise WeightspaceError(f"cannot read the weights in {folder}: {error}; fit the encoder again") from error
        layouts = [Layout.from_json(layout) for layout in [content["layout"], *content.get("other_layouts", [])]]
        shared = structure(content["shared_scale"], SharedScale) if "shared_scale" in content else None
        preparations = []
        for prefix, layout in zip(_prefixes(len(layouts)), layouts, strict=True):
            names = [f"{prefix}{name}" for name in ("reference", "mean", "std")]
            found = {name: tuple(tensors[name].shape) for name in names if name in tensors}
            # encoders of networks in their own order have no reference
            if not {names[1], names[2]} <= found.keys() or set(found.values()) != {(layout.parameters,)}:
                raise WeightspaceError(
                    f"{folder / PREPARATION} holds {found} instead of reference, mean and std of {layout.parameters} "
                    "parameters; fit the encoder again"
                )
            scale = Standardisation(tensors[names[1]], tensors[names[2]])
            preparations.append(Preparation(layout, tensors.get(names[0]), scale, shared))
        encoder = cls(config, preparations, content["header"])
        try:
            encoder.module.load_state_dict(state)
        except RuntimeError as error:
            raise WeightspaceError(
                f"{folder / MODEL} does not fit the sizes in {CONFIG} ({error}); fit the encoder again"
            ) from error
        return encoder


def _prefixes(count: int) -> list[str]:
    """Of the tensors of each layout; the first has none, as where there is one alone."""
    return ["", *(f"{i}." for i in range(1, count))]


def local_folder(name: str | Path, files: list[str], **options: Any) -> Path:
    """A folder of that name, or a copy of the repository of that name on the Hugging Face Hub.

    Raises:
        WeightspaceError: There is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name), allow_patterns=files, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise WeightspaceError(
            f"there is no folder {folder}, and the Hugging Face Hub gave nothing under that name: {error}"
        ) from error


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
    except (OSError, ValueError) as error:
        raise WeightspaceError(f"{path} is not readable JSON ({error}); fit the encoder again") from error
    version_found = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version_found, int) or content.get("format") != FORMAT:
        raise WeightspaceError(f'{path} does not describe a fitted encoder: expected "format": "{FORMAT}"')
    if version_found > FORMAT_VERSION:
        raise WeightspaceError(
            f"{path} has format version {version_found}, this weightspace reads up to {FORMAT_VERSION}: "
            "update weightspace"
        )
    if missing := [key for key in ("method", "config", "header") if key not in content]:
        raise WeightspaceError(f"{path} lacks {missing[0]!r}; fit the encoder again")
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


def provenance(optimisation: TrainingConfig, train: Zoo | Sequence[Zoo], history: History) -> dict:
    """What is recorded with a learned model: how, from what, with which versions, on what, how long."""
    zoos = [train] if isinstance(train, Zoo) else train
    packages = ("weightspace", "torch", "lightning-fabric", "numpy")
    return {
        "optimisation": asdict(optimisation),
        "zoo": "+".join(zoo.digest for zoo in zoos),
        "checkpoints": sum(map(len, zoos)),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seconds": round(sum(record["seconds"] for record in history), 1),
        "epochs": len(history),
    }
