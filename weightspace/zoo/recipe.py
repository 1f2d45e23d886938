"""Recipes: what a zoo is made of, and the plan that a recipe and a seed determine."""

from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch

from weightspace.errors import ConfigError, unknown_name
from weightspace.networks import names as network_names
from weightspace.networks import streams
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.networks.population import INITIALISATIONS


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A population: one architecture, one data set, and the factors in which its networks differ.

    Ranges `(low, high)` are drawn log-uniformly (dropout uniformly), choices with equal probability, every network
    from its own stream: a larger zoo of the same recipe begins with the smaller one.

    >>> Recipe(models=3).plan()["model"].to_list()
    ['00000', '00001', '00002']
    """

    data: str = "digits"
    """Name of a data set, or a path to one."""
    network: str = "mlp"
    """Name of a network preset."""
    models: int = 1536
    """Networks to train."""
    epochs: int = 16
    """Passes over the training images."""
    checkpoints: tuple[int, ...] = ()
    """Epochs to keep, 0 is before training; eight of them, denser at the start, when empty."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: tuple[float, float] = (1e-3, 1e-2)
    """Range of the learning rate."""
    weight_decay: tuple[float, float] = (1e-6, 1e-3)
    """Range of the coefficient of the L2 penalty."""
    dropout: tuple[float, float] = (0.0, 0.2)
    """Range of the dropout rate."""
    init_scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the initial weights."""
    train_fraction: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """Shares of the training images."""
    init: tuple[str, ...] = ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
    """Initialisations of the weights."""
    activation: tuple[str, ...] = ("relu", "gelu")
    """Activations of the hidden layers."""
    optimiser: tuple[Literal["adam", "sgd"], ...] = ("adam",)
    """Optimisers; SGD has momentum 0.9."""
    train_limit: int | None = None
    """Use only so many training images."""
    seed: int = 0
    """Determines every factor, weight, batch and mask of the zoo."""

    def __post_init__(self):
        if self.network not in network_names():
            raise unknown_name("network", self.network, network_names())
        for name in self.activation:
            if name not in ACTIVATIONS:
                raise unknown_name("activation", name, ACTIVATIONS)
        for name in self.init:
            if name not in INITIALISATIONS:
                raise unknown_name("initialisation", name, INITIALISATIONS)
        for name in self.optimiser:
            if name not in ("adam", "sgd"):
                raise unknown_name("optimiser", name, ("adam", "sgd"))
        for name in ("activation", "init", "optimiser", "train_fraction"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must name at least one choice")
        for name in ("models", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "init_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name} must be a range 0 < low <= high, got ({low}, {high})")
        if not 0 <= self.dropout[0] <= self.dropout[1] < 1:
            raise ConfigError(f"dropout must be a range within [0, 1), got {self.dropout}")
        if not all(0 < f <= 1 for f in self.train_fraction):
            raise ConfigError(f"train_fraction must be shares in (0, 1], got {self.train_fraction}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie between 0 and 2^63 - 1, got {self.seed}")
        if any(not 0 <= epoch <= self.epochs for epoch in self.checkpoints):
            raise ConfigError(f"checkpoints must lie between 0 and {self.epochs} epochs, got {self.checkpoints}")

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """Epochs at which checkpoints are kept.

        >>> Recipe().kept_epochs
        (0, 1, 2, 3, 5, 8, 11, 16)
        """
        if self.checkpoints:
            return tuple(sorted(set(self.checkpoints)))
        shares = (0.0, 0.04, 0.08, 0.12, 0.2, 0.32, 0.48, 0.68, 1.0)
        return tuple(sorted({round(share * self.epochs) for share in shares}))

    def plan(self) -> pl.DataFrame:
        """One row a network: its name and its `config.*` factors.

        >>> Recipe(models=2, learning_rate=(0.01, 0.01)).plan()["config.learning_rate"].to_list()
        [0.01, 0.01]
        """
        base = torch.tensor([self.seed])
        seeds = streams.bits(base, 0, self.models)[0] >> 11 & (2**53 - 1)  # exact in float64 and JSON too
        draws = streams.uniform(seeds, 0, 8).double()

        def log_uniform(column: int, bounds: tuple[float, float]) -> list[float]:
            low, high = torch.tensor(bounds, dtype=torch.float64).log()
            return (low + (high - low) * draws[:, column]).exp().clamp(*bounds).tolist()  # exp(log(x)) may miss x

        def choice(column: int, options: tuple) -> list:
            return [options[i] for i in (draws[:, column] * len(options)).long().tolist()]

        low, high = self.dropout
        return pl.DataFrame(
            {
                "model": [f"{i:05d}" for i in range(self.models)],
                "config.learning_rate": log_uniform(0, self.learning_rate),
                "config.weight_decay": log_uniform(1, self.weight_decay),
                "config.dropout": (low + (high - low) * draws[:, 2]).tolist(),
                "config.init_scale": log_uniform(3, self.init_scale),
                "config.train_fraction": choice(4, self.train_fraction),
                "config.init": choice(5, self.init),
                "config.activation": choice(6, self.activation),
                "config.optimiser": choice(7, self.optimiser),
                "config.seed": seeds.tolist(),
            }
        )
