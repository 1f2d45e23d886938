"""p-diff's autoencoder: convolutions along a whole row (Wang et al., 2024, arXiv 2402.13144, §2 and appendix).

The row, less the mean of the training networks, is one channel of a signal. Five strided convolutions and a linear map
make a latent vector of it, their mirror image a row. Noise on the row and on the latent makes the decoder smooth; the
target is the row without noise. (The published code does not subtract the mean, and spends most of its steps on it.)
With `kl` it is a variational autoencoder (Kingma and Welling, 2014), as D2NWG's first stage: it learns how much noise
each latent bears.

Axes: m network, b network in a batch, p parameter, d padded parameter, z latent.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.autoencoder import Autoencoder, Pooling
from weightspace.encoders.preparation import Preparation, other_layout, prepared
from weightspace.errors import ConfigError, unknown_name
from weightspace.networks.layout import Layout
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo

MULTIPLE = 64
"""Rows are padded with zeros to a multiple of this."""
KERNEL, SLOPE = 7, 0.01
LARGEST = 20.0
"""Logarithm of a latent's variance, up and down."""
_AT_ONCE = 512  # networks in one evaluation


@dataclass(frozen=True, kw_only=True)
class ConvAutoencoderConfig:
    """Sizes and noise of the autoencoder.

    >>> ConvAutoencoderConfig().latent
    128
    """

    channels: tuple[int, ...] = (64, 128, 256, 256, 32)
    """Of the encoder's convolutions, each of which halves the length."""
    latent: int = 128
    row_noise: float = 1e-3
    """Deviation of the noise on standardised weights."""
    latent_noise: float = 0.1
    """Deviation of the noise on latents, where it is not learned."""
    kl: float = 0.0
    """Weight of the divergence of latents from a standard normal law, a network; their noise is learned if above 0."""
    epoch_steps: int = 50
    """Steps from one validation to the next."""

    def __post_init__(self):
        if not 1 <= len(self.channels) <= math.log2(MULTIPLE) or min(self.channels) < 1:
            raise ConfigError(f"channels must be one to six numbers of at least 1, got {self.channels}")
        if min(self.latent, self.epoch_steps) < 1:
            raise ConfigError(f"latent and epoch_steps must be at least 1, got {self.latent}, {self.epoch_steps}")
        if min(self.row_noise, self.latent_noise, self.kl) < 0:
            raise ConfigError(f"noise and kl must be at least 0, got {self.row_noise}, {self.latent_noise}, {self.kl}")


@dataclass(frozen=True, kw_only=True)
class ConvAutoencoderTraining(TrainingConfig):
    """How it is trained: the paper's 500 steps, at a rate that reaches something in them.

    >>> ConvAutoencoderTraining().batch_size
    50
    """

    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1


class ConvAutoencoderModule(nn.Module):
    """Encoder and decoder of padded rows."""

    centre: Tensor

    def __init__(self, config: ConvAutoencoderConfig, parameters: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(parameters))
        self.config, self.row = config, parameters
        self.size = math.ceil(parameters / MULTIPLE) * MULTIPLE
        c = config.channels
        short, half = self.size // 2 ** len(c), KERNEL // 2
        self.encoder = nn.Sequential(
            *(_halved(a, b) for a, b in zip((1, *c[:-1]), c, strict=True)), nn.Flatten(),
            nn.Linear(c[-1] * short, config.latent),
        )  # fmt: skip
        self.mean = nn.Linear(config.latent, config.latent)
        self.log_variance = nn.Linear(config.latent, config.latent) if config.kl else None
        back = (*c[::-1], c[0])
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, c[-1] * short), nn.Unflatten(1, (c[-1], short)),
            *(_doubled(a, b) for a, b in pairwise(back)),
            nn.Conv1d(c[0], 1, KERNEL, padding=half),
        )  # fmt: skip

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights that keep the variance; biases zero."""
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
                inputs = part.weight[0].numel()
                if isinstance(part, nn.ConvTranspose1d):  # half of the taps meet an output
                    inputs = part.weight.shape[0] * part.weight.shape[2] // 2
                nn.init.normal_(part.weight, std=inputs**-0.5, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def encode(self, rows: Float[Tensor, "b p"]) -> Float[Tensor, "b z"]:
        """Latents of standardised rows, without noise."""
        return self.mean(self._features(rows))

    def _features(self, rows: Float[Tensor, "b p"]) -> Float[Tensor, "b z"]:
        return self.encoder(F.pad(rows - self.centre, (0, self.size - self.row))[:, None])

    def decode(self, latents: Float[Tensor, "b z"]) -> Float[Tensor, "b p"]:
        """Standardised rows."""
        return self.decoder(latents)[:, 0, : self.row] + self.centre

    def forward(
        self, rows: Float[Tensor, "b p"], row_noise: Float[Tensor, "b p"], latent_noise: Float[Tensor, "b z"]
    ) -> dict[str, Tensor]:
        """Mean squared error of reconstruction from noisy rows and latents; and the divergence, where it counts."""
        features = self._features(rows + self.config.row_noise * row_noise)
        latents = self.mean(features)
        if self.log_variance is None:
            return {"loss": self._error(latents + self.config.latent_noise * latent_noise, rows)}
        log_variance = self.log_variance(features).clamp(-LARGEST, LARGEST)
        error = self._error(latents + (log_variance / 2).exp() * latent_noise, rows)
        divergence = (latents.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
        return {"loss": error + self.config.kl * divergence, "reconstruction": error, "divergence": divergence}

    def _error(self, latents: Float[Tensor, "b z"], rows: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
        return (self.decode(latents) - rows).square().mean()


def _halved(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(a, b, KERNEL, stride=2, padding=KERNEL // 2), nn.BatchNorm1d(b), nn.LeakyReLU(SLOPE))


def _doubled(a: int, b: int) -> nn.Sequential:
    wide = nn.ConvTranspose1d(a, b, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)
    return nn.Sequential(wide, nn.BatchNorm1d(b), nn.ELU())


def size(name: str) -> ConvAutoencoderConfig:
    """A published size: `subset` for the last layers of a network, `whole` for networks of up to 80 000 parameters.

    Raises:
        UnknownName: There is no such size.

    >>> size("whole").latent
    768
    """
    sizes = {"subset": ConvAutoencoderConfig(), "whole": ConvAutoencoderConfig(latent=768)}
    if name not in sizes:
        raise unknown_name("size", name, sizes)
    return sizes[name]


class ConvAutoencoder(Autoencoder):
    """A trained autoencoder with the preparation of its zoo: one latent token a network.

    Made by `ConvAutoencoder.fit` or `ConvAutoencoder.from_pretrained`.
    """

    name, title = "conv-autoencoder", "convolutional autoencoder"
    Config = ConvAutoencoderConfig
    optimisation = ConvAutoencoderTraining()
    published = staticmethod(size)
    module: ConvAutoencoderModule

    def __init__(self, config: ConvAutoencoderConfig, preparation: Preparation | Sequence[Preparation], header: dict):
        super().__init__(config, preparation, header)
        self.module = ConvAutoencoderModule(config, self.preparation.layout.parameters)

    @classmethod
    def fit(
        cls,
        train: Zoo | Sequence[Zoo],
        *,
        validation: Zoo | Sequence[Zoo],
        config: ConvAutoencoderConfig | None = None,
        optimisation: TrainingConfig | None = None,
        folder: Path | str | None = None,
        align: bool = True,
    ) -> "ConvAutoencoder":
        """Prepare a zoo, or several of one layout, and train the autoencoder on it.

        Args:
            validation: Other networks of the same zoo; their loss chooses the epoch that is kept.
            optimisation: An epoch has `config.epoch_steps` steps; `ConvAutoencoderTraining()` when missing.
            folder: Where everything is saved; an interrupted training continues there.
            align: Align networks to a reference; checkpoints of a single run are aligned as they are.

        Raises:
            ZooError: A checkpoint has NaN weights.
            LayoutError: Networks are to be aligned and cannot be, or layouts differ.
        """
        config, optimisation = config or ConvAutoencoderConfig(), optimisation or cls.optimisation
        sides = [[zoos] if isinstance(zoos, Zoo) else list(zoos) for zoos in (train, validation)]
        [preparation] = prepared(sides[:1], seed=optimisation.seed, align=align)
        fitted = cls(config, preparation, sides[0][0].header)
        fitted.module.reset(torch.Generator().manual_seed(optimisation.seed))
        rows, held_out = (torch.cat([preparation.apply(zoo) for zoo in side]) for side in sides)
        fitted.module.centre.copy_(rows.mean(0))

        def with_noise(some: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            latent = torch.randn(len(some), config.latent, generator=generator)
            return some, torch.randn(some.shape, generator=generator), latent

        def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for _ in range(config.epoch_steps):
                chosen = torch.randint(len(rows), (optimisation.batch_size,), generator=generator)
                yield with_noise(rows[chosen], generator)

        def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for some in held_out.split(_AT_ONCE):
                yield with_noise(some, generator)

        fitted._train(
            sides[0], sides[1], optimisation, folder,
            batches=batches, batches_per_epoch=config.epoch_steps, held_out=in_order, options=(align,),
        )  # fmt: skip
        return fitted

    @torch.no_grad()
    def latents(self, zoo: Zoo) -> Float[Tensor, "m 1 z"]:
        """Latent of every checkpoint, as a sequence of one token."""
        self.module.eval()
        parts = [self.module.encode(some) for some in self.preparation.apply(zoo).split(_AT_ONCE)]
        return torch.cat(parts)[:, None]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "m 1 z"], layout: Layout | None = None) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights.

        Raises:
            LayoutError: The layout is not the one that it was fitted on.
        """
        if layout is not None and layout != self.preparation.layout:
            raise other_layout(layout, self.preparation.layout)
        self.module.eval()
        parts = [self.module.decode(some) for some in latents[:, 0].split(_AT_ONCE)]
        return self.preparation.invert(torch.cat(parts))

    def embed(self, zoo: Zoo, pooling: Pooling = "mean") -> Float[Tensor, "m z"]:
        """The latent of every checkpoint; as it is a single token of the whole network, all poolings are the same."""
        return self.latents(zoo)[:, 0]
