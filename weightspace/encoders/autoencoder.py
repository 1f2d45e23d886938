"""What autoencoders of weights have in common: their contract, and how they are trained and saved.

Axes: m network, t token, z latent, p parameter, e size of an embedding.
"""

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace import training
from weightspace.encoders.pretrained import Pretrained, provenance
from weightspace.networks.layout import Layout
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo

Pooling = Literal["mean", "layer_means", "sequence", "layers"]
Batches = Callable[[torch.Generator], Iterable[Any]]


class Autoencoder(Pretrained):
    """A fitted autoencoder: networks to latents, and latents to networks."""

    title: ClassVar[str]
    """What it is called in tables."""
    optimisation: ClassVar[TrainingConfig] = TrainingConfig()
    """How it is trained where the caller says nothing else."""

    @abstractmethod
    def latents(self, zoo: Zoo) -> Float[Tensor, "m t z"]:
        """Latent sequence of every checkpoint of a zoo."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "m t z"], layout: Layout | None = None) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights; of the layout it was fitted on, where no other is given."""

    @abstractmethod
    def embed(self, zoo: Zoo, pooling: Pooling = "mean") -> Float[Tensor, "m e"]:
        """An embedding of every checkpoint."""

    def reconstruct(self, zoo: Zoo) -> Zoo:
        """The zoo after encoding and decoding: the ceiling of what can be generated through the latent space."""
        return zoo.with_weights(self.decode(self.latents(zoo), zoo.layout))

    def _train(
        self,
        train: Sequence[Zoo],
        validation: Sequence[Zoo],
        optimisation: TrainingConfig,
        folder: Path | str | None,
        *,
        batches: Batches,
        batches_per_epoch: int,
        held_out: Batches,
        options: tuple,
    ) -> None:
        """Train the module on batches of its arguments; and save it."""
        digests = [zoo.digest for zoo in [*train, *validation]]
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(folder or scratch)
            history = training.train(
                self.module, lambda module, batch: module(*batch), batches, batches_per_epoch, held_out, optimisation,
                target, label=f"training {self.title}", identity=repr((self.config, *options, *digests)),
            )  # fmt: skip
            self.header = self.header | {"fit": provenance(optimisation, train, history)}
            if folder is not None:
                self.save_pretrained(target)
