"""p-diff: diffusion of a few layers of one network (Wang et al., 2024, arXiv 2402.13144).

One trained network is trained on, all but some layers frozen, and kept after every step. An autoencoder learns these
checkpoints, a DDPM its latents; samples are put back into the network. The checkpoints are a cloud around one solution:
compare with their average, a Gaussian and copies with noise before anything is claimed.

Axes: m checkpoint, p parameter of the network, q parameter of the subset.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from weightspace.datasets import Dataset
from weightspace.encoders.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from weightspace.errors import ConfigError, unknown_name
from weightspace.generators.denoisers import ConvDenoiser
from weightspace.generators.denoising import DDPM
from weightspace.generators.diffusion import Diffusion, DiffusionConfig, DiffusionTraining
from weightspace.generators.spaces import Latents, require_layout
from weightspace.networks import Layout
from weightspace.networks.population import as_classifier
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

CHECKPOINTS = 300


@dataclass(frozen=True)
class Subset:
    """A trained network of which only some layers may differ.

    >>> from weightspace import networks
    >>> layout, table = Layout.of(networks.MLP().build()), pl.DataFrame({"model": ["a"], "step": [9]})
    >>> network = Zoo.in_memory(torch.ones(1, 1060), layout, table, {"network": networks.to_json(networks.MLP())})
    >>> subset = Subset(network, ("fc2",))
    >>> subset.cut(network).weights().shape
    torch.Size([1, 150])
    """

    network: Zoo
    """One checkpoint."""
    layers: tuple[str, ...]
    """Names of layers, such as `fc2`, in any order."""

    def __post_init__(self):
        if len(self.network) != 1:
            raise ConfigError(f"p-diff starts from one trained network, got {len(self.network)} checkpoints")
        known = dict.fromkeys(spec.layer_name for spec in self.network.layout.tensors)
        for name in self.layers:
            if name not in known:
                raise unknown_name("layer", name, known)

    @cached_property
    def layout(self) -> Layout:
        """Of the subset."""
        return Layout(tuple(spec for spec in self.network.layout.tensors if spec.layer_name in self.layers))

    @cached_property
    def places(self) -> Int64[Tensor, " q"]:
        """Where the subset's parameters are in a row of the network."""
        slices = self.network.layout.slices
        parts = [slices[spec.name] for spec in self.layout.tensors]
        return torch.cat([torch.arange(part.start, part.stop) for part in parts])

    def cut(self, zoo: Zoo) -> Zoo:
        """The subset's layers of whole networks; the header keeps no network, as they are none."""
        require_layout(zoo, self.network.layout)
        return Zoo.in_memory(zoo.weights()[:, self.places], self.layout, _plain(zoo), {"name": "subset"})

    def insert(self, zoo: Zoo) -> Zoo:
        """Whole networks, with these layers in them."""
        require_layout(zoo, self.layout)
        rows = self.network.weights().repeat(len(zoo), 1)
        rows[:, self.places] = zoo.weights()
        network = Zoo.in_memory(rows, self.network.layout, _plain(zoo), self.network.header)
        activation = "config.activation"
        if activation in self.network.table.columns:
            network = network.with_columns(**{activation: self.network.table[activation][0]})
        return network


def consecutive_checkpoints(
    subset: Subset,
    data: Dataset,
    *,
    count: int = CHECKPOINTS,
    learning_rate: float = 3e-2,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    seed: int = 0,
) -> Zoo:
    """Train the subset on, with AdamW, and keep it after every step.

    Args:
        data: The training images of the network.
        count: Steps, and so checkpoints.
        seed: Of the batches.

    Returns:
        Subsets of a single run, in memory, as models `checkpoint-0000`, ...; together about one independent network.

    Raises:
        ConfigError: `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"p-diff needs at least 1 checkpoint, got {count}")
    ((network, _),) = by_activation(subset.network)
    module = as_classifier(network, data.train_images).build().train()
    frozen = subset.network.layout.unflatten(subset.network.weights()[0].float())
    moving = {spec.name: frozen[spec.name].clone().requires_grad_(True) for spec in subset.layout.tensors}
    optimiser = torch.optim.AdamW(moving.values(), lr=learning_rate, weight_decay=weight_decay)
    generator, kept = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        chosen = torch.randint(len(data.train_labels), (batch_size,), generator=generator)
        logits = functional_call(module, {**frozen, **moving}, (data.train_images[chosen],))
        loss = F.cross_entropy(logits, data.train_labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        kept.append(subset.layout.flatten({name: value.detach().clone() for name, value in moving.items()}))
    table = pl.DataFrame({"model": [f"checkpoint-{i:04d}" for i in range(count)], "step": [0] * count})
    return Zoo.in_memory(torch.stack(kept), subset.layout, table, {"name": "consecutive checkpoints"})


def fit(
    train: Zoo,
    *,
    validation: Zoo,
    autoencoder: ConvAutoencoderConfig | None = None,
    denoiser: ConvDenoiser | None = None,
    autoencoder_training: TrainingConfig | None = None,
    optimisation: TrainingConfig | None = None,
    folder: Path | str | None = None,
    align: bool = True,
) -> Diffusion:
    """p-diff's autoencoder and latent DDPM, with the published sizes and steps where nothing else is said.

    Latents are standardised for each dimension, and the autoencoder is in evaluation mode wherever it is used; both are
    otherwise in the published code, and known causes of failure.

    Args:
        train: Checkpoints to learn: subsets of one network, or whole networks.
        validation: Others of them; their losses choose the epochs that are kept.
        folder: Where everything is saved; an interrupted training continues there.
        align: Align networks to a reference; subsets of one network are left as they are.

    Raises:
        ZooError: A checkpoint has NaN weights.
    """
    align = align and "network" in train.header
    encoder = ConvAutoencoder.fit(
        train, validation=validation, config=autoencoder, optimisation=autoencoder_training, align=align,
        folder=None if folder is None else Path(folder) / "training-autoencoder",
    )  # fmt: skip
    return Diffusion.fit(
        train,
        validation=validation,
        space=Latents.fit(train, encoder),
        config=DiffusionConfig(
            process=DDPM(sampling_steps=1000), denoiser=denoiser or ConvDenoiser(), epoch_steps=50, average=0.99
        ),
        optimisation=optimisation or DiffusionTraining(epochs=20, batch_size=50, learning_rate=1e-4),
        folder=folder,
    )


def _plain(zoo: Zoo) -> pl.DataFrame:
    return zoo.table.select("model", "step")
