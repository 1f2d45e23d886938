"""Work units: networks of a recipe that train as one vectorised population, and what training them gives.

A unit holds networks of one architecture, activation and optimiser, and is a function of the recipe and its number
alone, wherever and however often it is trained.

Axes: n checkpoint, p parameter, q coordinate, o output.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace import datasets, networks
from weightspace.datasets import Dataset, Pixels
from weightspace.errors import ConfigError
from weightspace.networks.fitting import fit_population, signal_errors
from weightspace.networks.initialisation import initial_rows
from weightspace.networks.layout import Layout
from weightspace.networks.population import (
    Hyperparameters,
    population_metrics,
    subset_weights,
    train_population,
    with_activation,
)
from weightspace.networks.siren import pixel_grid
from weightspace.zoo.recipe import WAVES, WILD_PARK, Recipe

Data = Dataset | Pixels | None
"""What a recipe's networks are trained on: images to classify, images to fit, or waves, which need no files."""
WAVE_POINTS = 2000
"""Coordinates of a wave, from -π to π."""
PSNR_LIMIT = 100.0
"""Decibels that stand for an error of zero."""


@dataclass(frozen=True)
class Unit:
    """Networks trained as one population, and the name of the part they are committed as."""

    part: str
    plan: pl.DataFrame


def units(recipe: Recipe) -> list[Unit]:
    """The recipe's networks in groups of one architecture, activation and optimiser.

    >>> sum(len(unit.plan) for unit in units(Recipe(models=50)))
    50
    """
    found, plan = [], recipe.plan()
    keys = [key for key in ("network", "config.activation", "config.optimiser") if key in plan.columns]
    for _, group in sorted(plan.group_by(keys), key=lambda item: item[0]):
        group = group.sort("model")
        count = -(-len(group) // recipe.unit_models)
        for i in range(count):
            some = group[len(group) * i // count : len(group) * (i + 1) // count]
            found.append(some)
    return [Unit(f"{number:05d}", plan) for number, plan in enumerate(found)]


def load_data(recipe: Recipe, root: Path | None = None) -> Data:
    """What the recipe's networks are trained on.

    Args:
        root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.

    Raises:
        DatasetError: The images cannot be read.
        ConfigError: The batch is larger than the data.
    """
    if recipe.data == WAVES:
        return None
    name, grey, side, crop = recipe.data, recipe.grey, recipe.side, recipe.crop
    if recipe.fits_signals:
        return datasets.load_pixels(name, root, limit=recipe.train_limit, grey=grey, side=side, crop=crop)
    data = datasets.load(name, root, train_limit=recipe.train_limit, seed=recipe.seed, grey=grey, side=side, crop=crop)
    if recipe.batch_size > len(data.train_images):
        raise ConfigError(
            f"batch_size {recipe.batch_size} is larger than the {len(data.train_images)} training images of "
            f"{recipe.data}; make it smaller"
        )
    return data


def unit_network(recipe: Recipe, data: Data, plan: pl.DataFrame) -> networks.Network:
    """The architecture, with the activation, of a unit's networks.

    Raises:
        ConfigError: The images are too small for it.

    >>> unit_network(Recipe(), datasets.load("digits"), Recipe().plan()[:1]).hidden
    (14,)
    """
    shape, classes = ((1, 1, 1) if data is None else data.image_shape), getattr(data, "classes", 1)
    if recipe.network == WILD_PARK:
        seed = plan["config.architecture_seed"][0]
        return networks.wild_park(shape, classes, seed=seed, activations=recipe.activation)
    network = networks.by_name(recipe.network, shape, classes)
    return with_activation(network, plan["config.activation"][0]) if "config.activation" in plan.columns else network


def train_unit(
    recipe: Recipe, data: Data, plan: pl.DataFrame, device: str = "cpu", *, compile: bool = False
) -> tuple[Float[Tensor, "n p"], pl.DataFrame]:
    """Train networks of one architecture, activation and optimiser as one population.

    Args:
        data: What `load_data` gives for the recipe.
        plan: Some rows of the recipe's plan.
        device: Where to train; what comes back lies on the CPU.
        compile: Run each step as one compiled program.

    Returns:
        Weights and table of the checkpoints, ordered by network, then epoch.

    >>> recipe = Recipe(models=2, epochs=1, activation=("relu",))
    >>> rows, table = train_unit(recipe, datasets.load("digits"), recipe.plan())
    >>> rows.shape, table["step"].to_list()
    (torch.Size([4, 1060]), [0, 1, 0, 1])
    """
    network = unit_network(recipe, data, plan)
    h = _hyperparameters(plan, device)
    rows = planned_rows(network, plan, h.seeds, bias=recipe.init_bias)
    # one thread: the pool has a process a core, and small kernels lose more by waiting for each other than they win
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(network, networks.SIREN):
            if data is not None and not isinstance(data, Pixels):
                raise ConfigError(f"a {recipe.network} fits pixels: give it what load_data loads")
            plan, stages = _fitted(recipe, network, data, plan, rows, h, compile)
        elif isinstance(data, Dataset):
            stages = _classified(recipe, network, data, plan, rows, h, compile)
        else:
            raise ConfigError(f"a {recipe.network} classifies images: give it what load_data loads")
        tables, kept = [], []
        for epoch, trained, diverged, metrics in stages:
            columns = {"step": [epoch] * len(plan), "metric.diverged": (diverged > 0).tolist()} | metrics
            tables.append(plan.with_columns(pl.DataFrame(columns)).with_columns(order=pl.int_range(len(plan))))
            kept.append(trained.cpu())
    finally:
        torch.set_num_threads(threads)
    table = pl.concat(tables).with_columns(position=pl.int_range(pl.len())).sort("order", "step")
    return torch.cat(kept)[table["position"].to_list()], table.drop("order", "position")


def _hyperparameters(plan: pl.DataFrame, device: str) -> Hyperparameters:
    def column(name: str, default: float | int) -> Tensor:
        values = plan[name].to_list() if name in plan.columns else [default] * len(plan)
        return torch.tensor(values, device=device)

    return Hyperparameters(
        seeds=column("config.seed", 0),
        learning_rate=column("config.learning_rate", 0.0),
        weight_decay=column("config.weight_decay", 0.0).float(),
        dropout=column("config.dropout", 0.0).float(),
        train_fraction=column("config.train_fraction", 1.0),
        momentum=column("config.momentum", 0.9),
    )


def planned_rows(
    network: networks.Network, plan: pl.DataFrame, seeds: Int64[Tensor, " m"], *, bias: float = 0.0
) -> Float[Tensor, "m p"]:
    """Initial weights of networks as their plan says.

    Args:
        plan: `config.init`, `config.init_scale` and, where deviations differ, `config.init_std` of each network.
        bias: Value of all biases.

    >>> plan = pl.DataFrame({"config.init": ["normal"], "config.init_scale": [1.0], "config.init_std": [0.01]})
    >>> bool(planned_rows(networks.MLP(), plan, torch.tensor([1])).abs().max() < 0.1)
    True
    """
    scales = torch.tensor(plan["config.init_scale"].to_list(), dtype=torch.float32)
    stds = torch.tensor(plan["config.init_std"].to_list()) if "config.init_std" in plan.columns else None
    rows = torch.empty(len(plan), Layout.of(network.build()).parameters, device=seeds.device)
    for init in plan["config.init"].unique():
        place = torch.from_numpy((plan["config.init"] == init).to_numpy())
        scale = scales[place]
        if stds is not None and init in ("normal", "truncated_normal"):
            scale = scale * stds[place]
        own = seeds[place.to(seeds.device)]
        rows[place.to(seeds.device)] = initial_rows(network, own, init, scale.to(seeds.device), bias=bias)
    return rows


def _options(recipe: Recipe, plan: pl.DataFrame, compile: bool) -> dict:
    """What both kinds of training are told."""
    return {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "optimiser": plan["config.optimiser"][0],
        "schedule": recipe.schedule, "checkpoints": recipe.kept_epochs, "compile": compile,
    }  # fmt: skip


def _classified(
    recipe: Recipe,
    network: networks.Network,
    data: Dataset,
    plan: pl.DataFrame,
    rows: Tensor,
    h: Hyperparameters,
    compile: bool,
) -> Iterator[tuple[int, Tensor, Tensor, dict[str, list]]]:
    """Checkpoints of classifiers, with losses and accuracies on all parts of the data."""
    device = rows.device
    sides = {
        side: (getattr(data, f"{side}_images").to(device), getattr(data, f"{side}_labels").to(device))
        for side in ("train", "validation", "test")
    }
    seen = subset_weights(h, len(data.train_images), data.classes)
    stages = train_population(network, rows, h, *sides["train"], **_options(recipe, plan, compile))
    for epoch, trained, diverged in stages:
        metrics: dict[str, list] = {}
        for side, (images, labels) in sides.items():
            loss, accuracy = population_metrics(network, trained, images, labels, seen if side == "train" else None)
            metrics |= {f"metric.{side}_loss": loss.tolist(), f"metric.{side}_accuracy": accuracy.tolist()}
        pairs = zip(metrics["metric.train_accuracy"], metrics["metric.test_accuracy"], strict=True)
        metrics["metric.generalisation_gap"] = [train - test for train, test in pairs]
        yield int(epoch), trained, diverged, metrics


def _fitted(
    recipe: Recipe,
    network: networks.SIREN,
    data: Pixels | None,
    plan: pl.DataFrame,
    rows: Tensor,
    h: Hyperparameters,
    compile: bool,
) -> tuple[pl.DataFrame, Iterable[tuple[int, Tensor, Tensor, dict[str, list]]]]:
    """The plan with what each network fits, and the checkpoints with their errors in pixels."""
    if data is None:
        coordinates, targets = waves(plan)
    else:
        # network i fits image i; more networks than images means several an image, from other seeds
        images = [int(model) % len(data.images) for model in plan["model"]]
        labels = [str(label) for label in data.labels[images].tolist()]
        plan = plan.with_columns(pl.Series("config.image_id", images), pl.Series("config.label", labels))
        coordinates = pixel_grid(*data.image_shape[1:])
        targets = network.from_pixels(data.images[images].flatten(2).mT)
    coordinates, targets = coordinates.to(rows.device), targets.to(rows.device)

    def stages() -> Iterator[tuple[int, Tensor, Tensor, dict[str, list]]]:
        for epoch, trained, diverged in fit_population(
            network, rows, h, coordinates, targets, **_options(recipe, plan, compile)
        ):
            errors = signal_errors(network, trained, coordinates, targets).cpu()
            metrics = {"metric.mse": errors.tolist()}
            if data is not None:  # a wave has no range of values to compare with
                metrics["metric.psnr"] = (-10 * errors.log10()).clamp(max=PSNR_LIMIT).tolist()
            yield epoch, trained, diverged, metrics

    return plan, stages()


def waves(plan: pl.DataFrame) -> tuple[Float[Tensor, "q 1"], Float[Tensor, "m q 1"]]:
    """Coordinates from -π to π, and every network's wave there.

    >>> waves(pl.DataFrame({"config.amplitude": [2.0], "config.frequency": [1.0]}))[1].max().round()
    tensor(2.)
    """
    x = torch.linspace(-pi, pi, WAVE_POINTS + 1)[:-1]  # the end is left out, as published
    amplitude, frequency = (torch.tensor(plan[f"config.{name}"].to_list()) for name in ("amplitude", "frequency"))
    return x[:, None], (amplitude[:, None] * torch.sin(frequency[:, None] * x))[:, :, None]
