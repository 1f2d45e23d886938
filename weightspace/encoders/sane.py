"""SANE: a transformer autoencoder over windows of weight tokens (Schürholt et al., ICML 2024, arXiv 2406.09997, §3).

A network is a sequence of weight tokens. The autoencoder sees windows of it, each token with its position, so its size
does not grow with the network. Whole networks are processed in overlapping windows (haloing). One model may read
networks of several layouts, each with its own index map; a batch has windows of one layout.

Axes: m network, b window in a batch, t token, w weight in token, d model width, z latent.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.autoencoder import Autoencoder, Pooling
from weightspace.encoders.behaviour import Behaviour
from weightspace.encoders.preparation import Preparation, of_one_layout, other_layout, prepared, training_reference
from weightspace.encoders.sane_config import SANEConfig, several, size, small
from weightspace.encoders.sequences import Sequences
from weightspace.encoders.transformer import Block, layer_moments, masked_deviation, masked_mse, nt_xent, sinusoids
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, gather_index, random_permutations
from weightspace.training import TrainingConfig
from weightspace.views.architecture import architecture_of
from weightspace.views.tokens import LAYER_CODES, TokenView
from weightspace.zoo import Zoo

_LEAST = 1e-3  # magnitude, in standard deviations, below which weights count as zero
_EMBEDDED_AT_ONCE = 1024  # networks whose hidden states are held at a time


# --- module ------------------------------------------------------------------------------------------------------


def log_magnitude(tokens: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
    """Magnitudes of standardised weights on a logarithmic scale: 0 for padding, 1 for one standard deviation.

    Training moves weights by orders of magnitude (those of dead inputs decay towards zero), and the accuracy of a
    network depends on how far. A map that is linear in the weights cannot show it.

    >>> log_magnitude(torch.tensor([0.0, -1.0]))
    tensor([0., 1.])
    """
    return torch.log1p((tokens / _LEAST).square()) / math.log1p(_LEAST**-2)


class SANEModule(nn.Module):
    """Encoder, decoder and projection head over windows of tokens."""

    def __init__(self, config: SANEConfig, *, device: torch.device | str | None = None):
        super().__init__()
        self.config = c = config
        with torch.device(device or "cpu"):
            self.token_in = nn.Linear(c.token_width * (1 + c.magnitudes), c.width)
            if c.max_positions is None:
                self.position_in = nn.Linear(3 * (c.width // 2), c.width, bias=False)
            else:
                self.token_table, self.layer_table, self.channel_table = (
                    nn.Embedding(size, c.width // 2) for size in c.max_positions
                )
            if c.layer_types:
                self.type_table = nn.Embedding(LAYER_CODES, c.width)
            self.encoder = nn.Sequential(*(Block(c.width, c.heads) for _ in range(c.depth)))
            self.latent_out = nn.Linear(c.width, c.latent)
            self.latent_in = nn.Linear(c.latent, c.width)
            self.decoder = nn.Sequential(*(Block(c.width, c.heads) for _ in range(c.depth)))
            self.token_out = nn.Linear(c.width, c.token_width)
            self.head = nn.Sequential(
                nn.Linear(c.window * c.latent, 30, bias=False), nn.LayerNorm(30), nn.ReLU(),
                nn.Linear(30, 30, bias=False), nn.LayerNorm(30), nn.ReLU(),
            )  # fmt: skip

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights.

        Blocks and position tables as published: N(0, 0.02²), residual outputs narrower by √(2 depth), biases zero. The
        maps between tokens, blocks and latents keep the variance instead (1 / inputs): at 0.02 a token's values reach
        the decoder a hundred times weaker than its position, and most of a short training goes into mending that.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                through = name.startswith(("token_in", "latent_out", "latent_in", "token_out", "position_in"))
                std = parameter.shape[1] ** -0.5 if through else 0.02
                std = std / math.sqrt(2 * self.config.depth) if residual else std
                nn.init.normal_(parameter, std=std, generator=generator)

    def position(self, positions: Int64[Tensor, "*b t c"]) -> Float[Tensor, "*b t d"]:
        """Position embedding: number in the network plus layer, beside output channel; plus the code of the layer.

        Args:
            positions: Number in the network, layer and output channel; the code too if it is shown.
        """
        number, layer, channel = positions[..., :3].unbind(-1)
        if self.config.max_positions is None:
            waves = sinusoids(positions[..., :3], self.config.width // 2)
            where = self.position_in(waves.flatten(-2))
        else:
            where = torch.cat([self.token_table(number) + self.layer_table(layer), self.channel_table(channel)], dim=-1)
        return where + self.type_table(positions[..., 3]) if self.config.layer_types else where

    def hidden(
        self,
        tokens: Float[Tensor, "b t w"],
        positions: Int64[Tensor, "*b t c"],
        shown: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """What the encoder knows of windows before the bottleneck; magnitudes where they are shown, or everywhere."""
        if self.config.magnitudes:
            magnitudes = log_magnitude(tokens)
            if shown is not None:
                magnitudes = magnitudes * shown[:, None, None]
            tokens = torch.cat([tokens, magnitudes], dim=-1)
        return self.encoder(self.token_in(tokens) + self.position(positions))

    def encode(
        self,
        tokens: Float[Tensor, "b t w"],
        positions: Int64[Tensor, "*b t c"],
        shown: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t z"]:
        """Latents of windows."""
        return self.latent_out(self.hidden(tokens, positions, shown))

    def decode(self, latents: Float[Tensor, "b t z"], positions: Int64[Tensor, "*b t c"]) -> Float[Tensor, "b t w"]:
        """Tokens of windows."""
        return self.token_out(self.decoder(self.latent_in(latents) + self.position(positions)))

    def project(self, latents: Float[Tensor, "b t z"]) -> Float[Tensor, "b 30"]:
        """Projection of a window's latents for the contrastive loss; windows shorter than the configured are padded."""
        flat = latents.flatten(1)
        return self.head(F.pad(flat, (0, self.config.window * self.config.latent - flat.shape[1])))

    def forward(
        self,
        views: Float[Tensor, "2 b t w"],
        positions: Int64[Tensor, "t c"],
        real: Bool[Tensor, "t w"],
        behaviour: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss of two views of the same windows: (1 - gamma) reconstruction + gamma contrast.

        Args:
            behaviour: Distance of decoded tokens from the original networks' functions; a share of the reconstruction.
        """
        tokens = views.flatten(0, 1)
        # The second view goes without magnitudes: leaning on them, training networks are decoded well and others not.
        shown = torch.arange(len(tokens), device=tokens.device) < len(views[0])
        latents = self.encode(tokens, positions, shown)
        decoded = self.decode(latents, positions)
        reconstruction = masked_mse(decoded, tokens, real)
        if self.config.normalised_loss:
            reconstruction = reconstruction / masked_deviation(tokens, real).square()
        parts = {"reconstruction": reconstruction}
        if behaviour is not None:
            parts["behaviour"] = behaviour(decoded)
            share = self.config.behaviour
            reconstruction = (1 - share) * reconstruction + share * parts["behaviour"]
        first, second = self.project(latents).chunk(2)
        parts["contrast"] = nt_xent(first, second, self.config.temperature)
        share = self.config.contrast
        return {"loss": (1 - share) * reconstruction + share * parts["contrast"]} | parts


# --- the fitted encoder ------------------------------------------------------------------------------------------


class SANE(Autoencoder):
    """A trained SANE with the alignment and standardisation of its zoos: embeds networks, and decodes latents.

    Made by `SANE.fit` or `SANE.from_pretrained`. Fitted with statistics of layers it reads new networks of the same
    layout. Fitted with one scale for all layouts it reads any layout: those that it was not fitted on are left in their
    own order of units, or aligned among themselves by `adapted`.
    """

    name, title = "sane", "SANE"
    Config = SANEConfig
    published = staticmethod(size)
    module: SANEModule

    def __init__(self, config: SANEConfig, preparation: Preparation | Sequence[Preparation], header: dict):
        super().__init__(config, preparation, header)
        self.module = SANEModule(config)
        self._known = {found.layout.digest: Sequences.of(found, config) for found in self.preparations}
        self._groups: dict[str, tuple[PermutationGroup, ...]] = {}

    @classmethod
    def fit(
        cls,
        train: Zoo | Sequence[Zoo],
        *,
        validation: Zoo | Sequence[Zoo],
        config: SANEConfig | None = None,
        optimisation: TrainingConfig | None = None,
        folder: Path | str | None = None,
        align: bool = True,
        images: Float[Tensor, "n c h w"] | None = None,
    ) -> "SANE":
        """Align and standardise zoos and train SANE on them.

        Batches have networks of one layout; layouts take turns at random, each in proportion to its networks.

        Args:
            train: A zoo, or several; of one layout or several.
            validation: Other models of the same zoos; their loss chooses the epoch that is kept.
            config: Sizes; `small(layout)` when missing, `several(layouts)` for several layouts.
            folder: Where everything is saved; an interrupted training continues there.
            align: Align networks to a reference, one for each layout; otherwise they keep their order of units.
            images: On which the functions of decoded networks are compared, for `config.behaviour`.

        Raises:
            ConfigError: There are several layouts and statistics of layers are wanted; or behaviour is, and there are
                no images or windows do not hold whole networks.
            ZooError: A checkpoint has NaN weights.
            LayoutError: A zoo does not say what its networks compute and they are no plain chain, or layouts differ.
        """
        zoos, held_out = of_one_layout(train), of_one_layout(validation)
        layouts = [some[0].layout for some in zoos]
        config = config or (small(*layouts) if len(layouts) == 1 else several(layouts))
        optimisation = optimisation or cls.optimisation
        sane = cls(config, prepared(zoos, config.scale, optimisation.seed, align=align), _joined_header(zoos))
        sane.module.reset(torch.Generator().manual_seed(optimisation.seed))
        sides = [sane._sides(some, images, optimisation.batch_size) for some in (zoos, held_out)]

        def shuffled(generator: torch.Generator) -> Iterator[tuple]:
            orders = [torch.randperm(len(side.rows), generator=generator) for side in sides[0]]
            turns = torch.cat([torch.full((side.batches,), i) for i, side in enumerate(sides[0])])
            if len(orders) > 1:
                turns = turns[torch.randperm(len(turns), generator=generator)]
            left = [iter(order.split(side.size)) for order, side in zip(orders, sides[0], strict=True)]
            for turn in turns.tolist():
                yield sane._batch(sides[0][turn], next(left[turn]), generator)

        def in_order(generator: torch.Generator) -> Iterator[tuple]:
            for side in sides[1]:
                for some in torch.arange(len(side.rows)).split(sides[0][0].size):
                    yield sane._batch(side, some, generator)

        sane._train(
            [zoo for some in zoos for zoo in some], [zoo for some in held_out for zoo in some], optimisation, folder,
            batches=shuffled, batches_per_epoch=sum(side.batches for side in sides[0]), held_out=in_order,
            options=(align, images is not None),
        )  # fmt: skip
        return sane

    def adapted(self, zoo: Zoo, *, align: bool = True, seed: int = 0) -> "SANE":
        """The same encoder for networks of a layout that it was not fitted on; they are aligned among themselves.

        Nothing is learned but the reference of their alignment, so the zoo should be one of training networks. What is
        made for encoders of one layout (samplers, evaluation) works with it.

        Args:
            zoo: Networks of one layout.
            align: Align to their own `training_reference`.
            seed: Order of the groups in alignment.

        Raises:
            LayoutError: It was fitted with statistics of layers, which other layouts do not have.
        """
        reference = training_reference(zoo, seed) if align else None
        preparation = replace(self._shared(zoo.layout), reference=reference)
        sane = SANE(self.config, preparation, zoo.header | {"fit": self.header.get("fit", {})})
        sane.module = self.module
        return sane

    @property
    def view(self) -> TokenView:
        """Tokens of the first layout."""
        return self._of(None).view

    def _of(self, layout: Layout | None) -> Sequences:
        """Sequences of a layout, of the first where none is given."""
        layout = layout or self.preparation.layout
        if layout.digest not in self._known:
            self._known[layout.digest] = Sequences.of(self._shared(layout), self.config)
        return self._known[layout.digest]

    def _shared(self, layout: Layout) -> Preparation:
        """Preparation of a layout that it was not fitted on."""
        shared = self.preparation.shared
        if shared is None:
            raise other_layout(layout, self.preparation.layout)
        return Preparation(layout, None, shared.of(layout), shared)

    def preparation_of(self, layout: Layout) -> Preparation:
        """Alignment and scale of networks of a layout; those that it was not fitted on keep their order of units.

        Raises:
            LayoutError: It was fitted with statistics of layers and on another layout.
        """
        return self._of(layout).preparation

    def groups_of(self, layout: Layout) -> tuple[PermutationGroup, ...]:
        """Units that may be renumbered in networks of a layout that it was fitted on."""
        if layout.digest not in self._groups:
            self._groups[layout.digest] = architecture_of(self.header, layout).groups
        return self._groups[layout.digest]

    def _sides(self, zoos: Sequence[Sequence[Zoo]], images: Tensor | None, batch_size: int) -> list["_Side"]:
        """Prepared networks of one side of the split, by layout."""
        sides = []
        for some in zoos:
            sequences = self._of(some[0].layout)
            rows = torch.cat([sequences.preparation.apply(zoo) for zoo in some])
            behaviour = None
            if self.config.behaviour:
                if images is None or sequences.view.count > self.config.window:
                    raise ConfigError(
                        f"the behavioural loss runs whole decoded networks: give images, and a window of at least "
                        f"{sequences.view.count} tokens (it is {self.config.window})"
                    )
                behaviour = Behaviour(some, images)
            sides.append(_Side(sequences, rows, behaviour, min(batch_size, len(rows))))
        return sides

    def _batch(self, side: "_Side", some: Int64[Tensor, " b"], generator: torch.Generator) -> tuple:
        """Arguments of the module for some networks."""
        rows, sequences = side.rows[some], side.sequences
        views = self._views(rows, generator, sequences)
        if side.behaviour is None:
            return views
        invert = sequences.preparation.invert
        distance = side.behaviour.loss(some, invert(rows), generator)
        return (*views, lambda tokens: distance(invert(sequences.view.detokenise(tokens))))

    def _views(
        self, rows: Tensor, generator: torch.Generator, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Two noisy views of one random window of prepared rows; the second one permuted if so configured."""
        sequences = sequences or self._of(None)
        config, view = self.config, sequences.view
        second = rows
        groups = self.groups_of(view.layout) if config.permuted_view else ()
        if groups:  # a network of one layer has no hidden units
            index = gather_index(view.layout, groups, random_permutations(groups, len(rows), generator))
            second = rows.gather(1, index)
        length = min(config.window, view.count)
        start = int(torch.randint(view.count - length + 1, (), generator=generator))
        tokens = torch.arange(start, start + length)
        views = view.tokenise(torch.cat([rows, second]), tokens).unflatten(0, (2, -1))
        views = views * (1 + config.noise * torch.randn(views.shape, generator=generator))
        return views, sequences.positions[tokens], view.mask[tokens]

    @torch.no_grad()
    def encode(self, rows: Float[Tensor, "m p"], layout: Layout | None = None) -> Float[Tensor, "m t z"]:
        """Latent sequence of prepared (aligned, standardised) rows."""
        self.module.eval()
        sequences = self._of(layout)
        return sequences.haloed(sequences.view.tokenise(rows), self.module.encode)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "m t z"], layout: Layout | None = None) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights from latent sequences.

        Args:
            layout: What the sequences are of; the layout that it was fitted on, or the first, when missing.

        Raises:
            LayoutError: The layout has another number of tokens, or it was fitted with statistics of layers and on
                another layout.
        """
        self.module.eval()
        sequences = self._of(layout)
        if latents.shape[1] != sequences.view.count:
            raise LayoutError(
                f"got latent sequences of {latents.shape[1]} tokens, networks of layout "
                f"{sequences.view.layout.digest} have {sequences.view.count}; give their layout"
            )
        tokens = sequences.haloed(latents, self.module.decode)
        return sequences.preparation.invert(sequences.view.detokenise(tokens))

    def latents(self, zoo: Zoo) -> Float[Tensor, "m t z"]:
        """Latent sequence of every checkpoint of a zoo of one layout."""
        return self.encode(self._of(zoo.layout).preparation.apply(zoo), zoo.layout)

    def embed(self, zoo: Zoo, pooling: Pooling = "mean") -> Float[Tensor, "m e"]:
        """An embedding of every checkpoint.

        Args:
            zoo: Networks of a layout that the encoder reads; of several only where `pooling` is `mean`.
            pooling: `mean` is the mean of the token latents, as published: small, for maps and search, and of the same
                size for all layouts. `layer_means` has one mean for each layer. `sequence` is all token latents, enough
                to decode the network. `layers` has, for each layer, mean and logarithm of the variance over its tokens
                of the encoder's states before the bottleneck: what a linear probe needs.

        Returns:
            float32 `[checkpoints, z]`, `[checkpoints, layers * z]`, `[checkpoints, tokens * z]` or
            `[checkpoints, layers * 2 * d]`.

        Raises:
            LayoutError: The encoder does not read this layout; or there are several, whose embeddings differ in size.
        """
        digests = zoo.table["layout"].unique(maintain_order=True).to_list()
        if len(digests) > 1 and pooling != "mean":
            raise LayoutError(f"embeddings {pooling!r} of {len(digests)} layouts differ in size; take 'mean'")
        parts, places = [], []
        for digest in digests:
            places.append(torch.from_numpy((zoo.table["layout"] == digest).arg_true().to_numpy().astype("int64")))
            part = zoo if len(digests) == 1 else zoo.take(places[-1])
            sequences = self._of(part.layout)
            rows = sequences.preparation.apply(part)
            parts += [self._pooled(sequences, some, pooling) for some in rows.split(_EMBEDDED_AT_ONCE)]
        return torch.cat(parts)[torch.cat(places).argsort()]

    @torch.no_grad()
    def _pooled(self, sequences: Sequences, rows: Float[Tensor, "m p"], pooling: Pooling) -> Float[Tensor, "m e"]:
        self.module.eval()
        states = sequences.haloed(sequences.view.tokenise(rows), self.module.hidden)  # m t d
        layer = sequences.view.positions[:, 1]
        if pooling == "layers":
            return layer_moments(states, layer)
        latents = self.module.latent_out(states)
        if pooling == "layer_means":
            member = F.one_hot(layer).to(latents)
            return torch.einsum("mtz,tl->mlz", latents, member / member.sum(0)).flatten(1)
        return latents.mean(1) if pooling == "mean" else latents.flatten(1)


@dataclass(frozen=True, eq=False)
class _Side:
    """Networks of one layout on one side of the split."""

    sequences: Sequences
    rows: Float[Tensor, "m p"]
    """Prepared."""
    behaviour: Behaviour | None
    size: int
    """Networks a batch."""

    @property
    def batches(self) -> int:
        """Whole batches an epoch."""
        return len(self.rows) // self.size


def _joined_header(zoos: Sequence[Sequence[Zoo]]) -> dict:
    """The header of the first zoo; with several layouts it has the layouts and networks of all."""
    headers = [some[0].header for some in zoos]
    if len(zoos) == 1:
        return headers[0]
    networks: dict[str, dict] = {}
    for some, header in zip(zoos, headers, strict=True):
        networks |= header.get("networks") or (
            {some[0].layout.digest: header["network"]} if "network" in header else {}
        )
    layouts = {digest: layout for header in headers for digest, layout in header["layouts"].items()}
    rest = {key: value for key, value in headers[0].items() if key != "network"}
    return rest | {"layouts": layouts, "networks": networks}
