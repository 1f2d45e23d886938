"""Recipes: what a zoo is made of, and the plan that a recipe and a seed determine."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import polars as pl
import torch

from weightspace.errors import ConfigError, unknown_name
from weightspace.networks import names as network_names
from weightspace.networks import streams
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.networks.initialisation import INITIALISATIONS
from weightspace.networks.optimisers import OPTIMISERS, SCHEDULES, OptimiserName, Schedule
from weightspace.networks.wild_park import wild_park

WILD_PARK = "wild_park"
"""The network of a recipe whose networks have architectures of their own."""
WAVES = "sines"
"""The data of a recipe whose networks fit waves: a·sin(b·x), a and b uniform in `WAVE_RANGE`."""
WAVE_RANGE = (0.0, 10.0)
_RANGES = ("learning_rate", "weight_decay", "init_scale", "init_std")
_CHOICES = ("train_fraction", "init", "activation", "optimiser", "momentum")
_FACTORS = (
    *("learning_rate", "weight_decay", "dropout", "init_scale", "train_fraction", "init", "activation", "optimiser"),
    *("momentum", "init_std"),
)
"""In the order of their draws and columns."""
_UNUSUAL = ("momentum", "init_std")
"""Factors that have a column only if the recipe sets them."""
_ORDER = 1  # stream of the order of a grid's cells; 0 is that of the seeds


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A population: one architecture, one data set, and the factors in which its networks differ.

    A random recipe draws every network's factors from the network's own stream: ranges `(low, high)` log-uniformly
    (dropout uniformly), choices with equal probability. A grid takes every value given and trains each combination
    `models / combinations` times, whole repetitions first and each in a random order of the combinations. Either way a
    larger zoo of the same recipe begins with the smaller one.

    >>> Recipe(models=3).plan()["model"].to_list()
    ['00000', '00001', '00002']
    """

    data: str = "digits"
    """Name of a data set, or a path to one; `sines` for networks that fit waves."""
    network: str = "mlp"
    """Name of a network preset, or `wild_park`: every network its own."""
    models: int = 1536
    """Networks to train."""
    epochs: int = 16
    """Passes over the training images, or over the coordinates of a signal."""
    checkpoints: tuple[int, ...] = ()
    """Epochs to keep, 0 is before training; eight of them, denser at the start, when empty."""
    batch_size: int = 32
    """Images a step, or coordinates of a signal."""
    sampling: Literal["random", "grid"] = "random"
    """Draw each network's factors from ranges and choices, or train all combinations of the values given."""
    learning_rate: tuple[float, ...] = (1e-3, 1e-2)
    """Range of the learning rate, or its values in a grid."""
    weight_decay: tuple[float, ...] = (1e-6, 1e-3)
    """Range of the coefficient of the L2 penalty (of `adamw`: of its decay), or its values in a grid."""
    dropout: tuple[float, ...] = (0.0, 0.2)
    """Range of the dropout rate, or its values in a grid."""
    init_scale: tuple[float, ...] = (1.0, 1.0)
    """Range of the factor on the initial weights, or its values in a grid."""
    train_fraction: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """Shares of the training images."""
    init: tuple[str, ...] = ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
    """Initialisations of the weights."""
    activation: tuple[str, ...] = ("relu", "gelu")
    """Activations of the hidden layers; in the Wild Park every layer has its own."""
    optimiser: tuple[OptimiserName, ...] = ("adam",)
    """Optimisers."""
    momentum: tuple[float, ...] = (0.9,)
    """Momenta of SGD."""
    init_std: tuple[float, ...] = (1.0, 1.0)
    """Range of the deviation of the initialisations `normal` and `truncated_normal`, or its values in a grid."""
    init_bias: float = 0.0
    """Initial value of all biases."""
    schedule: Schedule = "constant"
    """How the learning rate changes over the steps."""
    repeat_seeds: bool = False
    """Give the repetitions of every combination of a grid the same seeds."""
    models_per_architecture: int = 1
    """Networks of the Wild Park that share an architecture."""
    grey: bool = False
    """Make colour images grey."""
    side: int | None = None
    """Height and width of the images; as they are in the files when left out."""
    crop: bool = False
    """Cut the middle out instead of resizing."""
    train_limit: int | None = None
    """Use only so many training images."""
    unit_models: int = 24
    """Networks trained together: 24 fill the vector units of a core and lose little in a crash, a GPU takes more."""
    seed: int = 0
    """Determines every factor, weight, batch and mask of the zoo."""

    def __post_init__(self):
        if self.network != WILD_PARK and self.network not in network_names():
            raise unknown_name("network", self.network, [*network_names(), WILD_PARK])
        known: dict[str, Sequence[str]] = {
            "activation": tuple(ACTIVATIONS), "init": INITIALISATIONS, "optimiser": OPTIMISERS,
        }  # fmt: skip
        for kind, options in known.items():
            for name in getattr(self, kind):
                if name not in options:
                    raise unknown_name({"init": "initialisation"}.get(kind, kind), name, options)
        for kind, name, options in (
            ("schedule", self.schedule, SCHEDULES),
            ("sampling", self.sampling, ("random", "grid")),
        ):
            if name not in options:
                raise unknown_name(kind, name, options)
        for name in ("models", "epochs", "batch_size", "models_per_architecture", "unit_models"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_factors()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie between 0 and 2^63 - 1, got {self.seed}")
        if any(not 0 <= epoch <= self.epochs for epoch in self.checkpoints):
            raise ConfigError(f"checkpoints must lie between 0 and {self.epochs} epochs, got {self.checkpoints}")
        if self.data == WAVES and not self.fits_signals:
            raise ConfigError(f"{WAVES} are signals, not images to classify: use the network siren_wave")

    def _check_factors(self) -> None:
        for name in _FACTORS:
            if not getattr(self, name):
                raise ConfigError(f"{name} must name at least one choice")
        for name in _RANGES:
            values = getattr(self, name)
            if self.sampling == "random" and not (len(values) == 2 and 0 < values[0] <= values[1]):
                raise ConfigError(f"{name} must be a range 0 < low <= high, got {values}")
            lowest = 0.0 if name in ("weight_decay", "learning_rate") else 1e-30
            if not all(lowest <= value < float("inf") for value in values):
                raise ConfigError(f"{name} must be finite values of at least 0, got {values}")
        if not all(0 <= rate < 1 for rate in self.dropout):
            raise ConfigError(f"dropout must be a range within [0, 1), got {self.dropout}")
        if self.sampling == "random" and not (len(self.dropout) == 2 and self.dropout[0] <= self.dropout[1]):
            raise ConfigError(f"dropout must be a range within [0, 1), got {self.dropout}")
        if not all(0 <= share < 1 for share in self.momentum):
            raise ConfigError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not all(0 < f <= 1 for f in self.train_fraction):
            raise ConfigError(f"train_fraction must be shares in (0, 1], got {self.train_fraction}")

    @property
    def fits_signals(self) -> bool:
        """Whether each network fits one signal, instead of classifying images.

        >>> Recipe(network="siren").fits_signals
        True
        """
        return self.network.startswith("siren")

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

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors that the plan has a column `config.*` for.

        >>> Recipe(network="siren").factors
        ('learning_rate', 'weight_decay', 'init_scale', 'init', 'optimiser')
        """
        left_out = {name for name in _UNUSUAL if getattr(self, name) == type(self).__dataclass_fields__[name].default}
        if self.fits_signals:
            left_out |= {"dropout", "train_fraction", "activation"}
        if self.network == WILD_PARK:
            left_out |= {"dropout", "activation"}
        return tuple(name for name in _FACTORS if name not in left_out)

    def plan(self) -> pl.DataFrame:
        """One row a network: its name and its `config.*` factors; in the Wild Park also the `network`.

        >>> Recipe(models=2, learning_rate=(0.01, 0.01)).plan()["config.learning_rate"].to_list()
        [0.01, 0.01]
        """
        base = torch.tensor([self.seed])
        seeds = streams.bits(base, 0, self.models)[0] >> 11 & (2**53 - 1)  # exact in float64 and JSON too
        columns: dict[str, list] = {"model": [f"{i:05d}" for i in range(self.models)]}
        if self.sampling == "grid":
            cells = list(product(*(dict.fromkeys(getattr(self, name)) for name in self.factors)))
            order = streams.permutation(base, _ORDER, len(cells))[0].tolist()
            chosen = [cells[order[i % len(cells)]] for i in range(self.models)]
            columns |= {f"config.{name}": [cell[k] for cell in chosen] for k, name in enumerate(self.factors)}
            if self.repeat_seeds:
                seeds = seeds[torch.arange(self.models) // len(cells)]
        else:
            draws = streams.uniform(seeds, 0, len(_FACTORS)).double()
            columns |= {f"config.{name}": self._drawn(name, draws[:, _FACTORS.index(name)]) for name in self.factors}
        if self.network == WILD_PARK:
            columns |= self._architectures(seeds.tolist())
        if self.data == WAVES:
            low, high = WAVE_RANGE
            draws = low + (high - low) * streams.uniform(seeds, 0, len(_FACTORS) + 2).double()[:, -2:]
            columns |= {"config.amplitude": draws[:, 0].tolist(), "config.frequency": draws[:, 1].tolist()}
        return pl.DataFrame(columns | {"config.seed": seeds.tolist()})

    def _drawn(self, name: str, draws: torch.Tensor) -> list:
        """A factor of every network from uniform numbers."""
        options = getattr(self, name)
        if name in _CHOICES:
            return [options[i] for i in (draws * len(options)).long().tolist()]
        if name in _RANGES:
            low, high = torch.tensor(options, dtype=torch.float64).log()
            return (low + (high - low) * draws).exp().clamp(*options).tolist()  # exp(log(x)) may miss x
        low, high = options
        return (low + (high - low) * draws).tolist()

    def _architectures(self, seeds: list[int]) -> dict[str, list]:
        """Columns of the Wild Park; a network's architecture comes from the first seed of its group."""
        group = self.models_per_architecture
        own = [seeds[i // group * group] for i in range(self.models)]
        drawn = {
            seed: wild_park((3, 32, 32), 10, seed=seed, activations=self.activation) for seed in dict.fromkeys(own)
        }
        parks = [drawn[seed] for seed in own]
        return {
            "network": [park.name for park in parks],
            "config.depth": [len(park.channels) for park in parks],
            "config.width": [sum(park.channels) / len(park.channels) for park in parks],
            "config.kernel": [sum(park.kernels) / len(park.kernels) for park in parks],
            "config.skips": [sum(skip is not None for skip in park.skips) for park in parks],
            "config.architecture_seed": own,
        }
