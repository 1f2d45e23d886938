"""Encoders: views of weights to embeddings, and back for autoencoders. One file a method."""

from pathlib import Path
from typing import Any

from weightspace.encoders.pretrained import read_config
from weightspace.encoders.sane import SANE, SANEConfig
from weightspace.errors import unknown_name
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo

__all__ = ["SANE", "SANEConfig", "TrainingConfig", "fit", "load", "names"]

_ENCODERS: dict[str, type[SANE]] = {"sane": SANE}


def names() -> list[str]:
    """Names of the methods.

    >>> names()
    ['sane']
    """
    return sorted(_ENCODERS)


def fit(method: str, train: Zoo, *, validation: Zoo, **options: Any) -> SANE:
    """Fit an encoder by the name of its method; the options are those of its `fit`.

    Raises:
        UnknownName: There is no such method.
    """
    if method not in _ENCODERS:
        raise unknown_name("encoder", method, _ENCODERS)
    return _ENCODERS[method].fit(train, validation=validation, **options)


def load(folder: Path | str) -> SANE:
    """The fitted encoder in a folder, whatever its method.

    Raises:
        WeightspaceError: There is none, or it cannot be read.
    """
    method = read_config(Path(folder))["method"]
    if method not in _ENCODERS:
        raise unknown_name("encoder", method, _ENCODERS)
    return _ENCODERS[method].load(Path(folder))
