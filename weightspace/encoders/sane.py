"""SANE: a transformer autoencoder over windows of weight tokens (Schürholt et al., ICML 2024, arXiv 2406.09997, §3).

A network is a sequence of weight tokens. The autoencoder sees windows of it, each token with its position, so its size
does not grow with the network. Whole networks are processed in overlapping windows (haloing).

Axes: m network, b window in a batch, t token, w weight in token, d model width, z latent.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import training
from weightspace.encoders.preparation import Preparation
from weightspace.encoders.pretrained import Pretrained, provenance
from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, gather_index, random_permutations
from weightspace.training import TrainingConfig
from weightspace.views.architecture import architecture_of
from weightspace.views.tokens import TokenView
from weightspace.zoo import Zoo

Pooling = Literal["mean", "sequence", "layers"]
_LEAST = 1e-3  # magnitude, in standard deviations, below which weights count as zero
_LEAST_VARIANCE = 1e-4  # of hidden states over a layer, whose spread is about one
_EMBEDDED_AT_ONCE = 1024  # networks whose hidden states are held at a time
_TOKENS_AT_ONCE = 2**15  # tokens of a forward pass without gradients: bounds the memory of encoding a zoo


@dataclass(frozen=True, kw_only=True)
class SANEConfig:
    """Sizes and objective of SANE.

    >>> SANEConfig(token_width=73, max_positions=(26, 3, 10), window=26).latent
    48
    """

    token_width: int
    """Weights a token."""
    max_positions: tuple[int, int, int]
    """Size of the position tables: tokens in a network, layers, output channels in a layer."""
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

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if not 0 <= self.contrast < 1:
            raise ConfigError(f"contrast must lie in [0, 1), got {self.contrast}")
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


def cnn() -> SANEConfig:
    """The published size for the CNN zoos: about 0.20 G parameters."""
    return SANEConfig(
        token_width=289, max_positions=(100, 10, 40), window=64, halo=16, width=1024, heads=8, depth=8, latent=128
    )


def resnet18() -> SANEConfig:
    """The published size for the ResNet-18 zoos: about 0.86 G parameters."""
    return SANEConfig(
        token_width=288, max_positions=(55_000, 100, 550), window=256, halo=64,
        width=2048, heads=16, depth=8, latent=128,
    )  # fmt: skip


# --- windows -----------------------------------------------------------------------------------------------------


def halo_windows(count: int, window: int, halo: int) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, " n"]]:
    """Overlapping windows that cover a sequence, and where to read each token's result.

    Every window has the same length; of each, the middle is kept (SANE, appendix on haloing; made to work at all
    lengths).

    Returns:
        Token numbers of each window; for each of the `count` tokens its place in the flattened windows.

    >>> windows, kept = halo_windows(5, window=3, halo=1)
    >>> windows.flatten()[kept]
    tensor([0, 1, 2, 3, 4])
    """
    length = min(window, count)
    step = max(1, window - 2 * halo)
    tokens = torch.arange(count)
    owner = tokens // step if count > window else torch.zeros_like(tokens)
    starts = (torch.arange(int(owner[-1]) + 1) * step - halo).clamp(0, count - length)
    windows = starts[:, None] + torch.arange(length)
    return windows, owner * length + tokens - starts[owner]


# --- loss --------------------------------------------------------------------------------------------------------


def masked_mse(
    predicted: Float[Tensor, "b t w"], true: Float[Tensor, "b t w"], real: Bool[Tensor, "t w"]
) -> Float[Tensor, ""]:
    """Mean squared error over real weights; padding counts neither above nor below the line."""
    error = torch.where(real, predicted - true, 0.0)
    return error.square().sum() / (real.sum() * len(true))


def nt_xent(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, Chen et al., 2020, equation 1)."""
    both = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = both @ both.T / temperature
    similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


# --- module ------------------------------------------------------------------------------------------------------


def log_magnitude(tokens: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
    """Magnitudes of standardised weights on a logarithmic scale: 0 for padding, 1 for one standard deviation.

    Training moves weights by orders of magnitude (those of dead inputs decay towards zero), and the accuracy of a
    network depends on how far. A map that is linear in the weights cannot show it.

    >>> log_magnitude(torch.tensor([0.0, -1.0]))
    tensor([0., 1.])
    """
    return torch.log1p((tokens / _LEAST).square()) / math.log1p(_LEAST**-2)


class Block(nn.Module):
    """Pre-norm transformer block as in GPT-2, without biases, not causal."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Attention, then MLP, each added to its input."""
        qkv = self.attention_in(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # b t 3 h d/h
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # b h t d/h
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class SANEModule(nn.Module):
    """Encoder, decoder and projection head over windows of tokens."""

    def __init__(self, config: SANEConfig, *, device: torch.device | str | None = None):
        super().__init__()
        self.config = c = config
        with torch.device(device or "cpu"):
            self.token_in = nn.Linear(c.token_width * (1 + c.magnitudes), c.width)
            self.token_table, self.layer_table, self.channel_table = (
                nn.Embedding(size, c.width // 2) for size in c.max_positions
            )
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
                through = name.startswith(("token_in", "latent_out", "latent_in", "token_out"))
                std = parameter.shape[1] ** -0.5 if through else 0.02
                std = std / math.sqrt(2 * self.config.depth) if residual else std
                nn.init.normal_(parameter, std=std, generator=generator)

    def position(self, positions: Int64[Tensor, "*b t 3"]) -> Float[Tensor, "*b t d"]:
        """Position embedding: number in the network plus layer, beside output channel."""
        number, layer, channel = positions.unbind(-1)
        return torch.cat([self.token_table(number) + self.layer_table(layer), self.channel_table(channel)], dim=-1)

    def hidden(
        self,
        tokens: Float[Tensor, "b t w"],
        positions: Int64[Tensor, "*b t 3"],
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
        positions: Int64[Tensor, "*b t 3"],
        shown: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t z"]:
        """Latents of windows."""
        return self.latent_out(self.hidden(tokens, positions, shown))

    def decode(self, latents: Float[Tensor, "b t z"], positions: Int64[Tensor, "*b t 3"]) -> Float[Tensor, "b t w"]:
        """Tokens of windows."""
        return self.token_out(self.decoder(self.latent_in(latents) + self.position(positions)))

    def project(self, latents: Float[Tensor, "b t z"]) -> Float[Tensor, "b 30"]:
        """Projection of a window's latents for the contrastive loss; windows shorter than the configured are padded."""
        flat = latents.flatten(1)
        return self.head(F.pad(flat, (0, self.config.window * self.config.latent - flat.shape[1])))

    def forward(
        self, views: Float[Tensor, "2 b t w"], positions: Int64[Tensor, "t 3"], real: Bool[Tensor, "t w"]
    ) -> dict[str, Tensor]:
        """Loss of two views of the same windows: (1 - gamma) reconstruction + gamma contrast."""
        tokens = views.flatten(0, 1)
        # The second view goes without magnitudes: leaning on them, training networks are decoded well and others not.
        shown = torch.arange(len(tokens), device=tokens.device) < len(views[0])
        latents = self.encode(tokens, positions, shown)
        reconstruction = masked_mse(self.decode(latents, positions), tokens, real)
        first, second = self.project(latents).chunk(2)
        contrast = nt_xent(first, second, self.config.temperature)
        share = self.config.contrast
        loss = (1 - share) * reconstruction + share * contrast
        return {"loss": loss, "reconstruction": reconstruction, "contrast": contrast}


# --- the fitted encoder ------------------------------------------------------------------------------------------


class SANE(Pretrained):
    """A trained SANE with the alignment and standardisation of its zoo: embeds networks, and decodes latents.

    Made by `SANE.fit` or `SANE.from_pretrained`; holds everything needed on new networks of the same layout.
    """

    name = "sane"
    Config = SANEConfig
    module: SANEModule

    def __init__(self, config: SANEConfig, preparation: Preparation, header: dict):
        super().__init__(config, preparation, header)
        self.module = SANEModule(config)
        self.view = TokenView(preparation.layout, config.token_width)
        limits = torch.tensor(config.max_positions)
        needed = self.view.positions.amax(0) + 1
        if bool((needed > limits).any()):
            raise ConfigError(
                f"the layout needs positions up to {tuple(needed.tolist())} (tokens, layers, channels), the model has "
                f"tables for {config.max_positions}; enlarge max_positions"
            )
        self.windows, self.kept = halo_windows(self.view.count, config.window, config.halo)

    @classmethod
    def fit(
        cls,
        train: Zoo,
        *,
        validation: Zoo,
        config: SANEConfig | None = None,
        optimisation: TrainingConfig | None = None,
        folder: Path | str | None = None,
    ) -> "SANE":
        """Align and standardise a zoo and train SANE on it.

        Args:
            validation: Other models of the same zoo; their loss chooses the epoch that is kept.
            config: Sizes; `small(train.layout)` when missing.
            folder: Where everything is saved; an interrupted training continues there.

        Raises:
            ZooError: A checkpoint has NaN weights.
            LayoutError: The zoo does not say what its networks compute and they are no plain chain, or layouts differ.
        """
        config = config or small(train.layout)
        optimisation = optimisation or TrainingConfig()
        preparation = Preparation.fit(train, optimisation.seed)
        sane = cls(config, preparation, train.header)
        sane.module.reset(torch.Generator().manual_seed(optimisation.seed))
        rows, held_out = preparation.apply(train), preparation.apply(validation)
        size = min(optimisation.batch_size, len(rows))

        def shuffled(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            order = torch.randperm(len(rows), generator=generator)
            for start in range(0, len(rows) // size * size, size):
                yield sane._views(rows[order[start : start + size]], generator)

        def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for start in range(0, len(held_out), size):
                yield sane._views(held_out[start : start + size], generator)

        with tempfile.TemporaryDirectory() as scratch:
            target = Path(folder or scratch)
            history = training.train(
                sane.module, lambda module, batch: module(*batch), shuffled, len(rows) // size, in_order, optimisation,
                target, label="training SANE", identity=repr((config, train.digest, validation.digest)),
            )  # fmt: skip
            sane.header = train.header | {"fit": provenance(optimisation, train, history)}
            if folder is not None:
                sane.save_pretrained(target)
        return sane

    @cached_property
    def groups(self) -> tuple[PermutationGroup, ...]:
        """Units that may be renumbered in the networks it was fitted on."""
        return architecture_of(self.header, self.view.layout).groups

    def _views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Two noisy views of one random window of standardised rows; the second one permuted if so configured."""
        config, view = self.config, self.view
        second = rows
        groups = self.groups if config.permuted_view else ()
        if groups:  # a network of one layer has no hidden units
            index = gather_index(view.layout, groups, random_permutations(groups, len(rows), generator))
            second = rows.gather(1, index)
        length = min(config.window, view.count)
        start = int(torch.randint(view.count - length + 1, (), generator=generator))
        tokens = torch.arange(start, start + length)
        views = torch.stack([view.tokenise(rows, tokens), view.tokenise(second, tokens)])
        views = views * (1 + config.noise * torch.randn(views.shape, generator=generator))
        return views, view.positions[tokens], view.mask[tokens]

    @torch.no_grad()
    def encode(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m t z"]:
        """Latent sequence of prepared (aligned, standardised) rows."""
        self.module.eval()
        return self._haloed(self.view.tokenise(rows), self.module.encode)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "m t z"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights from latent sequences."""
        self.module.eval()
        tokens = self._haloed(latents, self.module.decode)
        return self.preparation.invert(self.view.detokenise(tokens))

    def latents(self, zoo: Zoo) -> Float[Tensor, "m t z"]:
        """Latent sequence of every checkpoint of a zoo."""
        return self.encode(self.preparation.apply(zoo))

    def embed(self, zoo: Zoo, pooling: Pooling = "mean") -> Float[Tensor, "m e"]:
        """An embedding of every checkpoint.

        Args:
            zoo: Networks of the layout that the encoder was fitted on.
            pooling: `mean` is the mean of the token latents, as published: small, for maps and search. `sequence` is
                all token latents, enough to decode the network. `layers` has, for each layer, mean and logarithm of the
                variance over its tokens of the encoder's states before the bottleneck: what a linear probe needs.

        Returns:
            float32 `[checkpoints, z]`, `[checkpoints, tokens * z]` or `[checkpoints, layers * 2 * d]`.
        """
        rows = self.preparation.apply(zoo)
        parts = [self._pooled(some, pooling) for some in rows.split(_EMBEDDED_AT_ONCE)]
        return torch.cat(parts)

    @torch.no_grad()
    def _pooled(self, rows: Float[Tensor, "m p"], pooling: Pooling) -> Float[Tensor, "m e"]:
        self.module.eval()
        states = self._haloed(self.view.tokenise(rows), self.module.hidden)  # m t d
        if pooling != "layers":
            latents = self.module.latent_out(states)
            return latents.mean(1) if pooling == "mean" else latents.flatten(1)
        layer = self.view.positions[:, 1]
        member = F.one_hot(layer).to(states)
        share = member / member.sum(0)  # t l
        mean = torch.einsum("mtd,tl->mld", states, share)
        variance = torch.einsum("mtd,tl->mld", (states - mean[:, layer]).square(), share)
        return torch.cat([mean.flatten(1), (variance + _LEAST_VARIANCE).log().flatten(1)], dim=1)

    def reconstruct(self, zoo: Zoo) -> Zoo:
        """The zoo after encoding and decoding: the ceiling of what can be generated through the latent space."""
        return zoo.with_weights(self.decode(self.latents(zoo)))

    def _haloed(self, sequence: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply a map of windows to whole sequences `[m, t, x]`."""
        windows, positions = self.windows, self.view.positions[self.windows]
        networks = max(1, _TOKENS_AT_ONCE // windows.numel())
        parts = []
        for some in sequence.split(networks):
            result = apply(some[:, windows].flatten(0, 1), positions.repeat(len(some), 1, 1))  # m·b t x
            result = result.unflatten(0, (len(some), len(windows)))
            parts.append(result.flatten(1, 2)[:, self.kept])
        return torch.cat(parts)
