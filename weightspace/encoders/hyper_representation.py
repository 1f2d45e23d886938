"""Hyper-representations: a transformer autoencoder with one latent a network (Schürholt et al., 2021 and 2022).

"Self-Supervised Representation Learning on Neural Network Weights" (NeurIPS 2021, arXiv 2110.15288): a token a neuron,
a token that collects them, a bounded latent, a decoder, a contrastive head. "Hyper-Representations as Generative
Models" (NeurIPS 2022, arXiv 2209.14733): errors are divided by the variance of their layer, so that none is neglected.

Axes: m network, v both views of all networks, t token, n token of a layer, d width, z latent, p parameter.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.autoencoder import Autoencoder, Pooling
from weightspace.encoders.hyper_representation_config import HyperRepresentationConfig, size
from weightspace.encoders.preparation import Preparation, other_layout, prepared
from weightspace.encoders.transformer import Block, layer_moments, nt_xent
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, gather_index, random_permutations
from weightspace.training import TrainingConfig
from weightspace.views.architecture import architecture_of
from weightspace.views.neurons import LayerTokens
from weightspace.views.standardise import Standardisation, layer_of_parameter
from weightspace.zoo import Zoo

ERASED = (0.02, 0.33)
"""Least and largest share of the weights that are erased."""
_LEAST_DEVIATION = 1e-4  # of a layer, as published
_POSITION = 0.1  # deviation of initial positions: weaker than tokens, strong enough to tell the decoder's tokens apart
_AT_ONCE = 512  # networks of a forward pass without gradients


# --- views -------------------------------------------------------------------------------------------------------


def erased(rows: Float[Tensor, "m p"], share: float, generator: torch.Generator) -> Float[Tensor, "m p"]:
    """Rows of which a share has one stretch of zeros, of a length in `ERASED`, anywhere.

    >>> rows = erased(torch.ones(1000, 100), 0.5, torch.Generator().manual_seed(0))
    >>> round(float((rows == 0).any(1).float().mean()), 1)
    0.5
    """
    chosen, length, start = torch.rand(3, len(rows), 1, generator=generator).to(rows.device)
    least, most = ERASED
    size = ((least + (most - least) * length) * rows.shape[1]).round()
    first = (start * (rows.shape[1] - size + 1)).floor()
    place = torch.arange(rows.shape[1], device=rows.device)
    return rows.masked_fill((chosen < share) & (place >= first) & (place < first + size), 0.0)


def layer_weights(rows: Float[Tensor, "m p"], layout: Layout, config: HyperRepresentationConfig) -> Float[Tensor, " p"]:
    """What the squared error of each parameter counts in the reconstruction loss (layer-wise loss normalisation)."""
    if config.loss_normalisation == "none":
        return torch.full((layout.parameters,), 1 / layout.parameters)
    layer = layer_of_parameter(layout)
    size = layer.bincount().double()

    def mean(values: Tensor) -> Tensor:
        return torch.zeros_like(size).index_add_(0, layer, values.double().mean(0)) / size

    variance = (mean(rows.square()) - mean(rows).square()).clamp(min=_LEAST_DEVIATION**2)
    count = size if config.loss_normalisation == "layer_mean" else torch.full_like(size, layout.parameters)
    return (1 / (variance * count))[layer].float()


# --- module ------------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Layer normalisation as in the reference code: by the unbiased deviation, with the constant outside the root."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "v t d"]) -> Float[Tensor, "v t d"]:
        """Normalised over the last axis."""
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / (deviation + 1e-6) + self.bias


def _blocks(c: HyperRepresentationConfig) -> nn.Sequential:
    return nn.Sequential(
        *(
            Block(
                c.width, c.heads, feedforward=c.feedforward, bias=True, dropout=c.dropout, activation=F.relu, norm=Norm
            )
            for _ in range(c.depth)
        )
    )


class TokenEncoder(nn.Module):
    """Tokens of each layer to hidden states and one latent."""

    def __init__(self, config: HyperRepresentationConfig, shapes: Sequence[tuple[int, int]]):
        super().__init__()
        self.config = c = config
        count = sum(n for n, _ in shapes)
        collects = c.compression == "token"
        self.maps = nn.ModuleList(nn.Linear(values, c.width) for _, values in shapes)
        self.collector = nn.Parameter(torch.empty(c.width)) if collects else None
        self.positions = nn.Parameter(torch.empty(count + collects, c.width))
        self.blocks = _blocks(c)
        inputs = count * c.width if c.compression == "linear" else c.width
        hidden = [nn.Linear(inputs, c.width), nn.ReLU()] if c.bottleneck == "mlp" else []
        self.bottleneck = nn.Sequential(*hidden, nn.Linear(c.width if hidden else inputs, c.latent))

    def states(self, tokens: Sequence[Float[Tensor, "v _ _"]]) -> Float[Tensor, "v t d"]:
        """What the blocks make of tokens; the collecting one, if there is one, comes first."""
        # a map a layer, as each has its own number of inputs: one padded map would be several times the work
        x = torch.cat([read(part) for read, part in zip(self.maps, tokens, strict=True)], dim=1)
        if self.collector is not None:
            x = torch.cat([self.collector.expand(len(x), 1, -1), x], dim=1)
        return self.blocks(x + self.positions)

    def compress(self, states: Float[Tensor, "v t d"]) -> Float[Tensor, "v z"]:
        """The latent of a network."""
        kind = self.config.compression
        whole = states[:, 0] if kind == "token" else states.mean(1) if kind == "average" else states.flatten(1)
        latent = self.bottleneck(whole)
        return latent.tanh() if self.config.bottleneck == "tanh" else latent


class TokenDecoder(nn.Module):
    """A latent to tokens of each layer."""

    def __init__(self, config: HyperRepresentationConfig, shapes: Sequence[tuple[int, int]]):
        super().__init__()
        self.config = c = config
        self.counts = [n for n, _ in shapes]
        count = sum(self.counts)
        self.decompress = nn.Linear(c.latent, c.width * (count if c.decompression == "linear" else 1))
        self.positions = nn.Parameter(torch.empty(count, c.width))
        self.blocks = _blocks(c)
        self.maps = nn.ModuleList(nn.Linear(c.width, values) for _, values in shapes)

    def forward(self, latents: Float[Tensor, "v z"]) -> list[Float[Tensor, "v _ _"]]:
        """Tokens of each layer."""
        x = self.decompress(latents).unflatten(1, (-1, self.config.width))  # v t d, or v 1 d for all tokens
        parts = self.blocks(x + self.positions).split(self.counts, dim=1)
        return [write(part) for write, part in zip(self.maps, parts, strict=True)]


def _projection_head(c: HyperRepresentationConfig) -> nn.Sequential:
    layers, width, outputs = c.projection
    hidden = [
        part
        for inputs, size in pairwise([c.latent, *[width] * layers])
        for part in (nn.Linear(inputs, size), nn.BatchNorm1d(size), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(width if layers else c.latent, outputs), nn.BatchNorm1d(outputs))


class HyperRepresentationModule(nn.Module):
    """Encoder, decoder and projection head.

    Args:
        layout: Of the networks.
        groups: For tokens that have outgoing weights too.
    """

    def __init__(
        self,
        config: HyperRepresentationConfig,
        layout: Layout,
        groups: Sequence[PermutationGroup] = (),
        *,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        self.read = LayerTokens.of(layout, config.tokens, groups)
        self.written = self.read if config.tokens != "neuron_in_out" else LayerTokens.of(layout)
        with torch.device(device or "cpu"):
            self.encoder = TokenEncoder(config, self.read.shapes)
            self.decoder = TokenDecoder(config, self.written.shapes)
            self.head = _projection_head(config)

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights: Kaiming normal, biases zero, those of the head 0.01; the collecting token N(0, 1).

        Published is Kaiming normal everywhere. Where no rectifier follows, the variance is kept instead, residual
        outputs are narrower by √(2 depth), and the map to the latent is halved: else tanh is saturated from the start.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("positions"):
                nn.init.normal_(parameter, std=_POSITION, generator=generator)
            elif name.endswith("collector"):
                nn.init.normal_(parameter, generator=generator)
            elif parameter.ndim > 1:
                gain = math.sqrt(2) if name.startswith("head") or name.endswith("mlp_in.weight") else 1.0
                if name.endswith(("attention_out.weight", "mlp_out.weight")):
                    gain = 1 / math.sqrt(2 * self.config.depth)
                elif "bottleneck" in name:
                    gain = 0.5
                nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for part in self.head:
            if isinstance(part, nn.Linear):
                nn.init.constant_(part.bias, 0.01)

    def states(self, rows: Float[Tensor, "v p"]) -> Float[Tensor, "v t d"]:
        """Hidden states of the encoder."""
        return self.encoder.states(self.read.tokenise(rows))

    def encode(self, rows: Float[Tensor, "v p"]) -> Float[Tensor, "v z"]:
        """The latent of each network."""
        return self.encoder.compress(self.states(rows))

    def decode(self, latents: Float[Tensor, "v z"]) -> Float[Tensor, "v p"]:
        """Rows."""
        return self.written.rows(self.decoder(latents))

    def forward(
        self, views: Float[Tensor, "2 m p"], targets: Float[Tensor, "2 m p"], weights: Float[Tensor, " p"]
    ) -> dict[str, Tensor]:
        """Loss of two views of the same networks: (1 - gamma) reconstruction + gamma contrast.

        Args:
            targets: What is to be reconstructed.
            weights: What each parameter's squared error counts, see `layer_weights`.
        """
        latents = self.encode(views.flatten(0, 1))
        error = self.decode(latents) - targets.flatten(0, 1)
        reconstruction = (error.square() @ weights).mean()
        first, second = self.head(latents).chunk(2)
        if self.config.contrast_kind == "positive":
            contrast = (1 - F.cosine_similarity(first, second)).mean()
        else:
            contrast = nt_xent(first, second, self.config.temperature)
        share = self.config.contrast
        loss = (1 - share) * reconstruction + share * contrast
        return {"loss": loss, "reconstruction": reconstruction, "contrast": contrast}


# --- the fitted encoder ------------------------------------------------------------------------------------------


class HyperRepresentation(Autoencoder):
    """A trained hyper-representation autoencoder: one latent a network, and networks from latents.

    Made by `HyperRepresentation.fit` or `from_pretrained`; for networks of the layout that it was fitted on.
    """

    name, title = "hyper-representation", "hyper-representation"
    Config = HyperRepresentationConfig
    published = staticmethod(size)
    module: HyperRepresentationModule

    def __init__(
        self, config: HyperRepresentationConfig, preparation: Preparation | Sequence[Preparation], header: dict
    ):
        super().__init__(config, preparation, header)
        layout = self.preparation.layout
        groups = architecture_of(header, layout).groups if config.tokens == "neuron_in_out" else ()
        self.module = HyperRepresentationModule(config, layout, groups)

    @classmethod
    def fit(
        cls,
        train: Zoo | Sequence[Zoo],
        *,
        validation: Zoo | Sequence[Zoo],
        config: HyperRepresentationConfig | None = None,
        optimisation: TrainingConfig | None = None,
        folder: Path | str | None = None,
        align: bool = False,
    ) -> "HyperRepresentation":
        """Train a hyper-representation on a zoo, or on several of one layout.

        Args:
            validation: Other models of the same zoo; their loss chooses the epoch that is kept.
            folder: Where everything is saved; an interrupted training continues there.
            align: Align networks first; the papers do not.

        Raises:
            ZooError: A checkpoint has NaN weights.
            LayoutError: The zoo does not say what its networks compute and they are no plain chain, or layouts differ.
        """
        config = config or HyperRepresentationConfig()
        optimisation = optimisation or cls.optimisation
        sides = [[zoos] if isinstance(zoos, Zoo) else zoos for zoos in (train, validation)]
        preparation = prepared(sides[:1], seed=optimisation.seed, align=align)[0]
        layout, header = preparation.layout, sides[0][0].header
        if not config.standardise:
            preparation = replace(preparation, scale=Standardisation.none(layout))
        fitted = cls(config, preparation, header)
        fitted.module.reset(torch.Generator().manual_seed(optimisation.seed))
        groups = architecture_of(header, layout).groups if config.permute else ()
        rows, held_out = (torch.cat([preparation.apply(zoo) for zoo in side]) for side in sides)
        weights = layer_weights(rows, layout, config)
        size = min(optimisation.batch_size, len(rows))

        def shuffled(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            order = torch.randperm(len(rows), generator=generator)
            for some in order[: len(rows) // size * size].split(size):
                yield (*fitted._views(rows[some], groups, generator), weights)

        def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for some in held_out.split(size):
                yield (*fitted._views(some, groups, generator), weights)

        fitted._train(
            sides[0], sides[1], optimisation, folder,
            batches=shuffled, batches_per_epoch=len(rows) // size, held_out=in_order, options=(align,),
        )  # fmt: skip
        return fitted

    def _views(
        self, rows: Float[Tensor, "m p"], groups: Sequence[PermutationGroup], generator: torch.Generator
    ) -> tuple[Float[Tensor, "2 m p"], Float[Tensor, "2 m p"]]:
        """Two augmented views of prepared rows, and what is to be reconstructed of each."""
        config, layout = self.config, self.preparation.layout
        targets = torch.cat([rows, rows])
        if groups:
            index = gather_index(layout, groups, random_permutations(groups, len(targets), generator))
            targets = targets.gather(1, index)
        views = targets
        if config.noise:
            noise = config.noise * torch.randn(views.shape, generator=generator)
            views = views + (views * noise if config.multiplicative_noise else noise)
        if config.erase:
            views = erased(views, config.erase, generator)
        pair = (2, len(rows))
        return views.unflatten(0, pair), (targets if config.denoise else views).unflatten(0, pair)

    @torch.no_grad()
    def encode(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m 1 z"]:
        """Latent of prepared rows."""
        self.module.eval()
        return torch.cat([self.module.encode(some) for some in rows.split(_AT_ONCE)])[:, None]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "m 1 z"], layout: Layout | None = None) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights.

        Args:
            layout: The one that it was fitted on; others have no decoder.

        Raises:
            LayoutError: It was fitted on another layout.
        """
        if layout is not None and layout != self.preparation.layout:
            raise other_layout(layout, self.preparation.layout)
        self.module.eval()
        rows = torch.cat([self.module.decode(some[:, 0]) for some in latents.split(_AT_ONCE)])
        return self.preparation.invert(rows)

    def latents(self, zoo: Zoo) -> Float[Tensor, "m 1 z"]:
        """Latent of every checkpoint of a zoo."""
        return self.encode(self.preparation.apply(zoo))

    @torch.no_grad()
    def embed(self, zoo: Zoo, pooling: Pooling = "mean") -> Float[Tensor, "m e"]:
        """An embedding of every checkpoint.

        Args:
            pooling: `mean` and `sequence` are the latent, as published. `layer_means` and `layers` are means, and means
                and logarithms of the variance, of the encoder's states over the tokens of each layer.

        Returns:
            float32 `[checkpoints, z]`, `[checkpoints, layers * d]` or `[checkpoints, layers * 2 * d]`.
        """
        rows = self.preparation.apply(zoo)
        if pooling in ("mean", "sequence"):
            return self.encode(rows)[:, 0]
        self.module.eval()
        layer = self.module.read.layers
        states = [self.module.states(some)[:, -len(layer) :] for some in rows.split(_AT_ONCE)]
        moments = torch.cat([layer_moments(some, layer) for some in states])
        return moments[:, : moments.shape[1] // 2] if pooling == "layer_means" else moments
