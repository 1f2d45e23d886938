"""Sizes of hyper-representation autoencoders: the configuration and the published sizes."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from weightspace.errors import ConfigError, unknown_name
from weightspace.views.neurons import Tokens


@dataclass(frozen=True, kw_only=True)
class HyperRepresentationConfig:
    """Sizes, parts and objective of a hyper-representation autoencoder.

    >>> HyperRepresentationConfig().decompression
    'repeat'
    """

    width: int = 128
    heads: int = 4
    depth: int = 2
    """Transformer blocks of the encoder, and as many of the decoder."""
    feedforward: int = 256
    """Width inside the blocks."""
    latent: int = 256
    """Size of the embedding of a network."""
    dropout: float = 0.0
    tokens: Tokens = "neuron"
    """What a token is: the weights of a neuron, those and the weights that read it, a weight, a whole network."""
    compression: Literal["token", "average", "linear"] = "token"
    """What becomes the latent: a token of its own, the mean of all, or all of them side by side."""
    bottleneck: Literal["tanh", "linear", "mlp"] = "tanh"
    """The map to the latent: bounded by tanh, linear, or with a hidden layer."""
    decompression: Literal["repeat", "linear"] = "repeat"
    """How the latent becomes tokens: one map, and the position of each (ours, far fewer parameters); or as published,
    an own map for each token."""
    projection: tuple[int, int, int] = (2, 64, 32)
    """Projection head of the contrastive loss: hidden layers, their width, outputs."""
    contrast: float = 0.1
    """Share of the contrastive loss (gamma)."""
    contrast_kind: Literal["nt_xent", "positive"] = "nt_xent"
    """`positive` only attracts the two views of a network: mean of 1 - cosine."""
    temperature: float = 0.1
    loss_normalisation: Literal["none", "global_mean", "layer_mean"] = "global_mean"
    """Divide errors by the variance of their layer over the training zoo (2022); with `layer_mean` every layer counts
    equally, however large it is."""
    standardise: bool = True
    """Standardise the weights of each layer; the papers read them as they are."""
    permute: bool = True
    """Permute the hidden units of both views at random, afresh for each network and step."""
    erase: float = 0.5
    """Share of views in which one stretch of 2 to 33 % of the weights is zero."""
    noise: float = 0.0
    """Standard deviation of noise on the weights of a view, in the units that the encoder reads."""
    multiplicative_noise: bool = False
    """Noise in proportion to each weight."""
    denoise: bool = False
    """Reconstruct the view as it was before erasing and noise."""

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of the {self.heads} heads")
        for name in ("contrast", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.erase <= 1:
            raise ConfigError(f"erase must lie in [0, 1], got {self.erase}")
        for field in fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if isinstance(value, str) and value not in choices:
                raise unknown_name(field.name, value, choices)


# Blocks, width, heads, feed-forward width, latent, projection head, gamma: table of the specification.
_PUBLISHED = {
    "tetris-seed": (2, 256, 4, 512, 50, (3, 50, 20), 0.5),
    "tetris-hyp": (2, 256, 4, 900, 50, (3, 50, 20), 0.5),
    "mnist-seed": (2, 800, 4, 900, 700, (4, 400, 50), 0.1),
    "fashion-mnist-seed": (2, 800, 4, 900, 700, (4, 400, 50), 0.1),
    "mnist-hyp-1-fix-seed": (4, 800, 2, 1000, 700, (4, 400, 50), 0.5),
    "mnist-hyp-1-rand-seed": (4, 800, 2, 900, 700, (4, 400, 20), 0.15),
    "mnist-hyp-5-fix-seed": (2, 800, 4, 900, 700, (4, 400, 20), 0.5),
    "mnist-hyp-5-rand-seed": (4, 800, 2, 900, 500, (2, 400, 50), 0.5),
    "mnist-hyp": (4, 512, 4, 1000, 1200, (4, 400, 50), 0.1),
    "fashion-mnist-hyp": (4, 512, 4, 1000, 1200, (4, 400, 50), 0.85),
    "svhn-hyp": (4, 512, 4, 1000, 1200, (4, 400, 50), 0.85),
    "cifar10-hyp": (4, 512, 4, 1000, 1200, (4, 400, 50), 0.5),
}
SIZES = tuple(_PUBLISHED)
"""Published sizes, by the zoo that they were for."""


def size(name: str) -> HyperRepresentationConfig:
    """The size published in 2021 for a zoo; with it the published decoder, loss and reading of weights.

    Raises:
        UnknownName: There is none.

    >>> size("mnist-seed").latent
    700
    """
    if name not in _PUBLISHED:
        raise unknown_name("size of hyper-representations", name, _PUBLISHED)
    depth, width, heads, feedforward, latent, projection, contrast = _PUBLISHED[name]
    return HyperRepresentationConfig(
        depth=depth, width=width, heads=heads, feedforward=feedforward, latent=latent, projection=projection,
        contrast=contrast, contrast_kind="positive" if name == "cifar10-hyp" else "nt_xent", dropout=0.1,
        decompression="linear", loss_normalisation="none", standardise=False,
    )  # fmt: skip
