"""Train a zoo: a recipe becomes work units, each a vectorised population, run in this process or in a process pool.

A unit holds networks of one activation and optimiser. It is a function of the recipe and its number alone, and it is
committed to the store as one part: a killed run repeats the units in flight and ends with the same zoo. Workers train
and this process commits: one that outlives a killed run writes nothing.
"""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

import weightspace
from weightspace import datasets, networks
from weightspace.errors import ConfigError, DatasetError
from weightspace.networks.layout import Layout
from weightspace.networks.population import (
    Hyperparameters,
    initial_rows,
    population_metrics,
    subset_weights,
    train_population,
    with_activation,
)
from weightspace.progress import progress_bar
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.store import Zoo, ZooWriter
from weightspace.zoo.store import open as open_zoo

UNIT_MODELS = 24
"""Networks trained together: enough to fill a core's vector units, few enough to lose little in a crash."""

Trained = tuple[str, np.ndarray, pl.DataFrame]
"""Part, rows and table of a unit."""


@dataclass(frozen=True)
class Unit:
    """Networks trained as one population, and the name of the part they are committed as."""

    part: str
    plan: pl.DataFrame


def units(recipe: Recipe) -> list[Unit]:
    """The recipe's networks in groups of one activation and optimiser.

    >>> sum(len(unit.plan) for unit in units(Recipe(models=50)))
    50
    """
    found = []
    for _, group in sorted(recipe.plan().group_by("config.activation", "config.optimiser")):
        group = group.sort("model")
        count = -(-len(group) // UNIT_MODELS)
        for i in range(count):
            some = group[len(group) * i // count : len(group) * (i + 1) // count]
            found.append(some)
    return [Unit(f"{number:05d}", plan) for number, plan in enumerate(found)]


def train(
    path: Path | str,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    *,
    data_root: Path | str | None = None,
    workers: int | None = None,
) -> Zoo:
    """Train the recipe's zoo into a folder, or finish it there.

    Args:
        path: Folder of the zoo, new or with a part of this zoo.
        data_root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.
        workers: Processes; one a core when missing, 1 trains in this process.

    Raises:
        ZooError: The folder holds another zoo.
        DatasetError: The images cannot be read.
        ConfigError: The network cannot be trained as a population, the batch is larger than the data, or there is no
            worker.

    >>> import tempfile
    >>> zoo = train(tempfile.mkdtemp() + "/zoo", Recipe(models=2, epochs=1, train_limit=64), workers=1)
    >>> len(zoo)
    4
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    root = None if data_root is None else Path(data_root).resolve()
    data = datasets.load(recipe.data, root, train_limit=recipe.train_limit, seed=recipe.seed)
    network = networks.by_name(recipe.network, data.image_shape, data.classes)
    layout = Layout.of(network.build())
    if recipe.batch_size > len(data.train_images):
        raise ConfigError(
            f"batch_size {recipe.batch_size} is larger than the {len(data.train_images)} training images of "
            f"{recipe.data}; make it smaller"
        )
    header = {
        "network": networks.to_json(network),
        "dataset": {"name": data.name, "digest": data.digest, "image_shape": list(data.image_shape)},
        "recipe": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(recipe).items()},
        "created_by": {
            "weightspace": weightspace.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    writer = ZooWriter.create(Path(path), header, [layout])
    done = writer.parts()
    pending = [unit for unit in units(recipe) if unit.part not in done]
    workers = min(workers or joblib.cpu_count(), len(pending))
    with progress_bar(f"training {recipe.models} networks", recipe.models) as advance:
        advance(recipe.models - sum(len(unit.plan) for unit in pending))
        for part, rows, table in _trained(recipe, data, root, pending, workers):
            writer.append(part, torch.from_numpy(rows), table)
            final = table.filter(pl.col("step") == pl.col("step").max())
            advance(len(final), f"test accuracy {final['metric.test_accuracy'].to_numpy().mean():.3f}")
    return open_zoo(path)


def _trained(
    recipe: Recipe, data: datasets.Dataset, root: Path | None, pending: Iterable[Unit], workers: int
) -> Iterator[Trained]:
    """The units as they are finished."""
    if workers > 1:
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
        yield from pool(joblib.delayed(_train_in_worker)(recipe, root, data.digest, unit) for unit in pending)
    else:
        for unit in pending:
            rows, table = train_unit(recipe, data, unit.plan)
            yield unit.part, rows.numpy(), table


def _train_in_worker(recipe: Recipe, root: Path | None, digest: str, unit: Unit) -> Trained:
    data = _dataset(recipe.data, root, recipe.train_limit, recipe.seed, digest)
    rows, table = train_unit(recipe, data, unit.plan)
    return unit.part, rows.numpy(), table


@lru_cache(maxsize=1)
def _dataset(name: str, root: Path | None, train_limit: int | None, seed: int, digest: str) -> datasets.Dataset:
    """Read once a worker; the digest is part of the key, since workers live longer than a zoo and files may change."""
    data = datasets.load(name, root, train_limit=train_limit, seed=seed)
    if data.digest != digest:
        raise DatasetError(f"the images of {name} changed while the zoo was training; train into a new folder")
    return data


def train_unit(recipe: Recipe, data: datasets.Dataset, plan: pl.DataFrame) -> tuple[Float[Tensor, "n p"], pl.DataFrame]:
    """Train networks of one activation and optimiser as one population.

    Args:
        plan: Some rows of the recipe's plan.

    Returns:
        Weights and table of the checkpoints, ordered by network, then epoch.

    >>> recipe = Recipe(models=2, epochs=1, activation=("relu",))
    >>> rows, table = train_unit(recipe, datasets.load("digits"), recipe.plan())
    >>> rows.shape, table["step"].to_list()
    (torch.Size([4, 1060]), [0, 1, 0, 1])
    """
    network = networks.by_name(recipe.network, data.image_shape, data.classes)
    network = with_activation(network, plan["config.activation"][0])
    factors = {name: torch.tensor(plan[f"config.{name}"].to_list()) for name in _PER_NETWORK}
    h = Hyperparameters(seeds=torch.tensor(plan["config.seed"].to_list()), **factors)
    rows = torch.empty(len(plan), Layout.of(network.build()).parameters)
    for init in plan["config.init"].unique():
        place = torch.from_numpy((plan["config.init"] == init).to_numpy())
        scale = torch.tensor(plan["config.init_scale"].to_list())[place]
        rows[place] = initial_rows(network, h.seeds[place], init, scale)
    seen = subset_weights(h, len(data.train_images), data.classes)
    tables, kept = [], []
    # one thread: the pool has a process a core, and small kernels lose more by waiting for each other than they win
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages = train_population(
            network, rows, h, data.train_images, data.train_labels, epochs=recipe.epochs,
            batch_size=recipe.batch_size, optimiser=plan["config.optimiser"][0], checkpoints=recipe.kept_epochs,
        )  # fmt: skip
        for epoch, trained, diverged in stages:
            metrics = {"step": [epoch] * len(plan), "metric.diverged": (diverged > 0).tolist()}
            for part, weights in (("train", seen), ("validation", None), ("test", None)):
                images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
                loss, accuracy = population_metrics(network, trained, images, labels, weights)
                metrics |= {f"metric.{part}_loss": loss.tolist(), f"metric.{part}_accuracy": accuracy.tolist()}
            tables.append(plan.with_columns(pl.DataFrame(metrics)).with_columns(order=pl.int_range(len(plan))))
            kept.append(trained)
    finally:
        torch.set_num_threads(threads)
    table = pl.concat(tables).with_columns(
        (pl.col("metric.train_accuracy") - pl.col("metric.test_accuracy")).alias("metric.generalisation_gap"),
        pl.int_range(pl.len()).alias("position"),
    )
    table = table.sort("order", "step")
    return torch.cat(kept)[table["position"].to_list()], table.drop("order", "position")


_PER_NETWORK = ("learning_rate", "weight_decay", "dropout", "train_fraction")
