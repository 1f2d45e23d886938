"""The networks that zoos are made of: configurations that build modules, and layouts of their weights."""

from collections.abc import Callable
from dataclasses import asdict, fields

import cattrs

from weightspace.errors import ConfigError, WeightspaceError, unknown_name
from weightspace.networks.cnn import CNN, arch2, cnn, cnn_l, cnn_s
from weightspace.networks.inference import layout_from_state
from weightspace.networks.layout import Layout, TensorSpec
from weightspace.networks.mlp import MLP, mlp
from weightspace.networks.pooled_cnn import PooledCNN, arch1, small_cnn
from weightspace.networks.resnet import ResNet, ResNet18, resnet8, resnet18, resnet32
from weightspace.networks.siren import SIREN, siren, siren_dws, siren_wave
from weightspace.networks.vit import ViT, transformer, vit
from weightspace.networks.wild_park import WildPark, wild_park

__all__ = [
    "CNN",
    "MLP",
    "SIREN",
    "Classifier",
    "Layout",
    "Network",
    "PooledCNN",
    "ResNet",
    "ResNet18",
    "TensorSpec",
    "ViT",
    "WildPark",
    "by_name",
    "from_json",
    "layout_from_state",
    "names",
    "to_json",
    "wild_park",
]

Classifier = CNN | MLP | PooledCNN | ResNet | ResNet18 | ViT | WildPark
Network = Classifier | SIREN

_FAMILIES: dict[str, type[Network]] = {
    "CNN": CNN,
    "MLP": MLP,
    "PooledCNN": PooledCNN,
    "ResNet": ResNet,
    "ResNet18": ResNet18,
    "SIREN": SIREN,
    "ViT": ViT,
    "WildPark": WildPark,
}
_PRESETS: dict[str, Callable[[tuple[int, int, int], int], Network]] = {
    "arch1": arch1,
    "arch2": arch2,
    "cnn": cnn,
    "cnn_s": cnn_s,
    "cnn_l": cnn_l,
    "mlp": mlp,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet32": resnet32,
    "siren": siren,
    "siren_dws": siren_dws,
    "siren_wave": siren_wave,
    "small_cnn": small_cnn,
    "transformer": transformer,
    "vit": vit,
}
_converter = cattrs.Converter(forbid_extra_keys=True)


def names() -> list[str]:
    """Names of the presets.

    >>> "cnn" in names()
    True
    """
    return sorted(_PRESETS)


def by_name(name: str, image_shape: tuple[int, int, int], classes: int) -> Network:
    """A preset, fitted to the images.

    Args:
        image_shape: Channels, height and width.

    Raises:
        ConfigError: The images are too small for it.
        UnknownName: There is no such preset.

    >>> by_name("mlp", (1, 8, 8), 10).hidden
    (14,)
    """
    if name not in _PRESETS:
        raise unknown_name("network", name, _PRESETS)
    return _PRESETS[name](image_shape, classes)


def to_json(network: Network) -> dict:
    """A network's configuration as plain data.

    >>> to_json(MLP())["family"]
    'MLP'
    """
    return {"family": type(network).__name__, **asdict(network)}


def from_json(data: dict) -> Network:
    """The configuration that `to_json` wrote.

    Raises:
        UnknownName: There is no such family, or it has no such setting.
        ConfigError: A setting has a wrong type or value.

    >>> from_json(to_json(CNN())) == CNN()
    True
    """
    settings = dict(data)
    family = settings.pop("family", None)
    if family not in _FAMILIES:
        raise unknown_name("network family", str(family), _FAMILIES)
    known = [field.name for field in fields(_FAMILIES[family])]
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {family}", name, known)
    try:
        return _converter.structure(settings, _FAMILIES[family])
    except cattrs.BaseValidationError as error:
        if ours := error.subgroup(WeightspaceError):  # a value that the family itself refuses
            raise ours.exceptions[0] from error
        raise ConfigError(f"this is not a stored {family}: {'; '.join(cattrs.transform_error(error))}") from error
