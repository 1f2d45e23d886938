"""Sizes of SANE: the configuration, the published sizes, and ours for small networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weightspace.encoders.preparation import Scale
from weightspace.errors import ConfigError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.views.tokens import TokenView


@dataclass(frozen=True, kw_only=True)
class SANEConfig:
    """Sizes and objective of SANE.

    >>> SANEConfig(token_width=73, max_positions=(26, 3, 10), window=26).latent
    48
    """

    token_width: int
    """Weights a token."""
    max_positions: tuple[int, int, int] | None
    """Size of the position tables: tokens in a network, layers, output channels in a layer (tokens in a layer where
    tokens are dense). `None`: sines and cosines of these numbers, which have no largest."""
    window: int
    """Tokens the autoencoder sees at once; shorter networks are seen whole."""
    halo: int = 0
    """Tokens at each side of a window that are seen and not kept when whole networks are processed."""
    width: int = 128
    heads: int = 4
    depth: int = 2
    """Transformer blocks of the encoder, and as many of the decoder."""
    latent: int = 48
    """Latent size of a token; networks suffer where it is much below the token width."""
    contrast: float = 0.05
    """Share of the contrastive loss (gamma)."""
    temperature: float = 0.1
    noise: float = 0.1
    """Multiplicative noise on the tokens of both views, as a standard deviation."""
    permuted_view: bool = True
    """Permute the hidden units of the second view at random, afresh for each network and step."""
    magnitudes: bool = False
    """Show the encoder, beside each weight, its magnitude on a logarithmic scale (not published)."""
    scale: Scale = "layer"
    """How weights are scaled: by statistics of each layer, which needs one layout; or by one number for all layouts,
    never seen ones too: as it is (`global`), or divided by the root of the layer's fan-in."""
    normalised_loss: bool = False
    """Divide the error by the deviation of the batch's real weights (masked loss normalisation)."""
    dense: bool = False
    """Cut whole layers into tokens instead of output channels."""
    layer_types: bool = False
    """Add to positions what kind of layer a token is of, and whether it is the first or the last."""
    behaviour: float = 0.0
    """Share, in the reconstruction loss, of the distance between logits of decoded and original networks; needs images
    and windows that hold whole networks."""

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if not 0 <= self.contrast < 1:
            raise ConfigError(f"contrast must lie in [0, 1), got {self.contrast}")
        if not 0 <= self.behaviour < 1:
            raise ConfigError(f"behaviour must lie in [0, 1), got {self.behaviour}")
        if not 0 <= 2 * self.halo < self.window:
            raise ConfigError(f"two halos of {self.halo} do not fit into a window of {self.window}")


def small(layout: Layout) -> SANEConfig:
    """A size for networks of about a thousand parameters: the token holds any output channel whole."""
    view = TokenView(layout, max(layer.width for layer in TokenView(layout, 1).layers))
    positions = view.positions.amax(0) + 1
    window = min(view.count, 64)
    return SANEConfig(
        token_width=view.width,
        max_positions=tuple(positions.tolist()),
        window=window,
        halo=0 if window == view.count else window // 4,
        latent=max(16, round(view.width * 7 / 8)),
        magnitudes=True,
    )


def several(layouts: Sequence[Layout]) -> SANEConfig:
    """A size for small networks of several architectures, and of others that it has never seen.

    Tokens of 64 weights; positions without a largest number, kinds of layers beside them, and no statistics of layers.
    """
    config = SANEConfig(
        token_width=64, max_positions=None, window=64, latent=56, magnitudes=True, scale="fan_in",
        normalised_loss=True, layer_types=True,
    )  # fmt: skip
    longest = max((TokenView(layout, config.token_width).count for layout in layouts), default=0)
    return config if longest <= config.window else replace(config, halo=config.window // 4)


def cnn() -> SANEConfig:
    """The size in the published code for the CNN zoos: about 0.20 G parameters."""
    return SANEConfig(
        token_width=289, max_positions=(100, 10, 40), window=64, halo=16, width=1024, heads=8, depth=8, latent=128
    )


def cnn_paper() -> SANEConfig:
    """The size in the paper for the CNN zoos: table 8, with the larger of its numbers of heads."""
    return replace(cnn(), max_positions=(50, 10, 40), window=32, halo=8, depth=4)


def resnet18() -> SANEConfig:
    """The size in the published code for the ResNet-18 zoos: about 0.86 G parameters."""
    return SANEConfig(
        token_width=288, max_positions=(55_000, 100, 550), window=256, halo=64,
        width=2048, heads=16, depth=8, latent=128,
    )  # fmt: skip


def resnet18_paper() -> SANEConfig:
    """The size in the paper for the ResNet-18 zoos: table 8, with the larger of its windows and numbers of heads."""
    return replace(resnet18(), window=512, heads=8)


def multizoo() -> SANEConfig:
    """MultiZoo-SANE (Falk et al., 2025, arXiv 2504.10141); its token width and latent are those of the ResNets."""
    return replace(resnet18(), max_positions=(60_000, 150, 600), scale="global", normalised_loss=True)


def geosane() -> SANEConfig:
    """GeoSANE (Hanna et al., 2026, arXiv 2603.23408): about 0.9 G parameters, dense tokens, 512 kept tokens a window.

    Blocks are those of MultiZoo-SANE; the sizes of its tables are not published, so positions are sinusoidal.
    """
    return replace(multizoo(), max_positions=None, dense=True, layer_types=True, window=640, halo=64)


def weightclip_cnn() -> SANEConfig:
    """The autoencoder of WeightCLIP for CNNs (Asefaw et al., 2026, arXiv 2607.03551)."""
    return replace(
        cnn(), token_width=201, window=118, halo=0, heads=16, depth=16, contrast=0.0, normalised_loss=True,
        max_positions=(118, 10, 40),
    )  # fmt: skip


def weightclip_resnet() -> SANEConfig:
    """The autoencoder of WeightCLIP for ResNet-18 of half width, without its dropout."""
    return replace(
        resnet18(), window=512, halo=64, width=1600, heads=20, depth=12, latent=192, contrast=0.0, normalised_loss=True
    )


SIZES: dict[str, Callable[[], SANEConfig]] = {
    size.__name__.replace("_", "-"): size
    for size in (cnn, cnn_paper, resnet18, resnet18_paper, multizoo, geosane, weightclip_cnn, weightclip_resnet)
}
"""Published sizes by name."""


def size(name: str) -> SANEConfig:
    """The published size of that name.

    Raises:
        UnknownName: There is none.

    >>> size("cnn").width
    1024
    """
    if name not in SIZES:
        raise unknown_name("size of SANE", name, SIZES)
    return SIZES[name]()
