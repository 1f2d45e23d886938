"""Encoders: views of weights to embeddings, and back for autoencoders. One file a method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightspace.encoders.autoencoder import Autoencoder
from weightspace.encoders.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig, ConvAutoencoderTraining
from weightspace.encoders.deepsets import DeepSets, DeepSetsAny, DeepSetsConfig
from weightspace.encoders.dng import DNG, DNGConfig
from weightspace.encoders.dws import DWS, DWSConfig
from weightspace.encoders.flat import Flat, FlatConfig
from weightspace.encoders.graph_metanet import GMN, GMNConfig
from weightspace.encoders.hyper_representation import HyperRepresentation
from weightspace.encoders.hyper_representation_config import HyperRepresentationConfig
from weightspace.encoders.nar_former import NARFormer, NARFormerConfig, NARFormerDNG, NARFormerDNGConfig
from weightspace.encoders.neural_graph import NGGNN, NGT, NGGNNConfig, NGTConfig
from weightspace.encoders.nfn import NFNHNP, NFNNP, NFNConfig
from weightspace.encoders.nft import NFT, NFTConfig
from weightspace.encoders.predictor import Predictor
from weightspace.encoders.pretrained import read_config
from weightspace.encoders.probe_moments import ProbeMoments, ProbeMomentsConfig
from weightspace.encoders.probing import ProbeGen, ProbeGenConfig
from weightspace.encoders.sane import SANE
from weightspace.encoders.sane_config import SANEConfig
from weightspace.encoders.scale_gmn import BidirectionalScaleGMN, ScaleGMN, ScaleGMNConfig
from weightspace.encoders.sne import SNE, ChunkSet, SNEConfig
from weightspace.encoders.statnn import StatNN, StatNNConfig
from weightspace.encoders.unf import UNF, UNFConfig
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder
from weightspace.errors import ConfigError, unknown_name
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo

__all__ = [
    "DNG",
    "DWS",
    "GMN",
    "NFNHNP",
    "NFNNP",
    "NFT",
    "NGGNN",
    "NGT",
    "SANE",
    "SNE",
    "UNF",
    "Autoencoder",
    "BidirectionalScaleGMN",
    "ChunkSet",
    "ConvAutoencoder",
    "ConvAutoencoderConfig",
    "ConvAutoencoderTraining",
    "DNGConfig",
    "DWSConfig",
    "DeepSets",
    "DeepSetsAny",
    "DeepSetsConfig",
    "Flat",
    "FlatConfig",
    "GMNConfig",
    "HyperRepresentation",
    "HyperRepresentationConfig",
    "NARFormer",
    "NARFormerConfig",
    "NARFormerDNG",
    "NARFormerDNGConfig",
    "NFNConfig",
    "NFTConfig",
    "NGGNNConfig",
    "NGTConfig",
    "Predictor",
    "PredictorTraining",
    "ProbeGen",
    "ProbeGenConfig",
    "ProbeMoments",
    "ProbeMomentsConfig",
    "SANEConfig",
    "SNEConfig",
    "ScaleGMN",
    "ScaleGMNConfig",
    "StatNN",
    "StatNNConfig",
    "TrainingConfig",
    "UNFConfig",
    "WeightEncoder",
    "autoencoders",
    "by_name",
    "default_training",
    "fit",
    "load",
    "load_autoencoder",
    "names",
    "published_size",
    "weight_encoders",
]

_AUTOENCODERS: dict[str, type[SANE] | type[HyperRepresentation] | type[ConvAutoencoder]] = {
    encoder.name: encoder for encoder in (ConvAutoencoder, HyperRepresentation, SANE)
}
_WEIGHT_ENCODERS: tuple[type[WeightEncoder], ...] = (
    BidirectionalScaleGMN,
    DNG,
    Flat,
    SNE,
    ChunkSet,
    StatNN,
    DeepSets,
    DeepSetsAny,
    NFNNP,
    NFNHNP,
    NFT,
    UNF,
    DWS,
    ProbeMoments,
    GMN,
    NARFormer,
    NARFormerDNG,
    NGGNN,
    NGT,
    ProbeGen,
    ScaleGMN,
)  # fmt: skip
_BY_NAME = {encoder.name: encoder for encoder in _WEIGHT_ENCODERS}


def names() -> list[str]:
    """Names of the methods: autoencoders, and encoders that learn from targets.

    >>> "sane" in names(), "flat" in names()
    (True, True)
    """
    return sorted([*_AUTOENCODERS, *_BY_NAME])


def autoencoders() -> list[str]:
    """Names of the methods that learn from weights alone and can decode.

    >>> autoencoders()
    ['conv-autoencoder', 'hyper-representation', 'sane']
    """
    return sorted(_AUTOENCODERS)


def published_size(method: str, name: str) -> SANEConfig | HyperRepresentationConfig | ConvAutoencoderConfig:
    """The configuration of an autoencoder in a published size.

    Raises:
        UnknownName: There is no such autoencoder, or it has no such size.

    >>> published_size("sane", "resnet18").width
    2048
    """
    if method not in _AUTOENCODERS:
        raise unknown_name("autoencoder", method, _AUTOENCODERS)
    return _AUTOENCODERS[method].published(name)


def default_training(method: str) -> TrainingConfig:
    """How a method is trained where nothing else is said.

    Raises:
        UnknownName: There is no such method.

    >>> default_training("conv-autoencoder").batch_size
    50
    """
    methods: dict[str, type[Autoencoder] | type[WeightEncoder]] = {**_AUTOENCODERS, **_BY_NAME}
    if method not in methods:
        raise unknown_name("encoder", method, names())
    return methods[method].optimisation


def weight_encoders() -> tuple[type[WeightEncoder], ...]:
    """Encoders that learn from targets.

    >>> Flat in weight_encoders()
    True
    """
    return _WEIGHT_ENCODERS


def by_name(name: str) -> type[WeightEncoder]:
    """The encoder of that name that learns from targets.

    Raises:
        UnknownName: There is none.
    """
    if name not in _BY_NAME:
        raise unknown_name("encoder", name, _BY_NAME)
    return _BY_NAME[name]


def fit(
    method: str, train: Zoo | Sequence[Zoo], *, validation: Zoo | Sequence[Zoo], **options: Any
) -> Autoencoder | Predictor:
    """Fit an encoder by the name of its method; the options are those of its `fit`, or of `Predictor.fit`.

    Args:
        train: A zoo; autoencoders take several too.

    Raises:
        UnknownName: There is no such method.
    """
    if method in _AUTOENCODERS:
        return _AUTOENCODERS[method].fit(train, validation=validation, **options)
    if method not in _BY_NAME:
        raise unknown_name("encoder", method, names())
    if not (isinstance(train, Zoo) and isinstance(validation, Zoo)):
        raise ConfigError(f"{method} is fitted on one zoo; join several with Zoo.concat")
    return Predictor.fit(_BY_NAME[method], train, validation=validation, **options)


def load(folder: Path | str) -> Autoencoder | Predictor:
    """The fitted encoder in a folder, whatever its method.

    Raises:
        WeightspaceError: There is none, or it cannot be read.
    """
    method = read_config(Path(folder))["method"]
    if method in _AUTOENCODERS:
        return _AUTOENCODERS[method].load(Path(folder))
    if method not in _BY_NAME:
        raise unknown_name("encoder", method, names())
    return Predictor.load(folder, _BY_NAME[method])


def load_autoencoder(folder: Path | str) -> Autoencoder:
    """The fitted autoencoder in a folder, which can also decode.

    Raises:
        WeightspaceError: There is none, or it cannot be read, or its method only encodes.
    """
    fitted = load(folder)
    if not isinstance(fitted, Autoencoder):
        raise ConfigError(
            f"{folder} holds a fitted {fitted.module.name!r}, which cannot decode; fit one of {sorted(_AUTOENCODERS)}"
        )
    return fitted
