"""Train a zoo: a recipe becomes work units, each a vectorised population, run in this process or in a process pool.

A unit holds networks of one activation and optimiser. It is a function of the recipe and its number alone, and it is
committed to the store as one part: a killed run repeats the units in flight and ends with the same zoo.
"""

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import joblib
import polars as pl
import torch
from torch import Tensor

import weightspace
from weightspace import datasets, networks
from weightspace.errors import ConfigError
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

UNIT_MODELS = (
    24  # networks trained together: enough to fill a core's vector units, few enough to lose little in a crash
)


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
        data_root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.
        workers: Processes; one a core when missing, 1 trains in this process.

    Raises:
        ZooError: The folder holds another zoo.
        DatasetError: The images cannot be read.
        ConfigError: The network cannot be trained as a population.

    >>> import tempfile
    >>> zoo = train(tempfile.mkdtemp() + "/zoo", Recipe(models=2, epochs=1, train_limit=64), workers=1)
    >>> len(zoo)
    4
    """
    root = None if data_root is None else Path(data_root)
    data = _dataset(recipe.data, root, recipe.train_limit, recipe.seed)
    network = networks.by_name(recipe.network, data.image_shape, data.classes)
    layout = Layout.of(network.build())
    if recipe.batch_size > len(data.train_images):
        raise ConfigError(
            f"batch_size {recipe.batch_size} is larger than the {len(data.train_images)} training images of "
            f"{recipe.data}; make it smaller"
        )
    header = {
        "name": Path(path).name,
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
    jobs = (joblib.delayed(_train_unit)(Path(path), recipe, root, unit) for unit in pending)
    with progress_bar(f"training {recipe.models} networks", recipe.models) as advance:
        advance(recipe.models - sum(len(unit.plan) for unit in pending))
        for trained, accuracy in _run(jobs, workers):
            advance(trained, f"test accuracy {accuracy:.3f}")
    return open_zoo(path)


def _run(jobs: Iterator, workers: int) -> Iterator[tuple[int, float]]:
    if workers > 1:
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
        yield from pool(jobs)
    else:
        yield from (function(*args, **kwargs) for function, args, kwargs in jobs)


@lru_cache(maxsize=2)
def _dataset(name: str, root: Path | None, train_limit: int | None, seed: int) -> datasets.Dataset:
    return datasets.load(name, root, train_limit=train_limit, seed=seed)


def _train_unit(path: Path, recipe: Recipe, root: Path | None, unit: Unit) -> tuple[int, float]:
    """Train one unit, commit it, and return its size and mean final test accuracy."""
    data = _dataset(recipe.data, root, recipe.train_limit, recipe.seed)
    rows, table = train_unit(recipe, data, unit.plan)
    ZooWriter.open(path).append(unit.part, rows, table)
    final = table.filter(pl.col("step") == table["step"].max())
    return len(unit.plan), float(final["metric.test_accuracy"].mean())  # type: ignore[arg-type]


def train_unit(recipe: Recipe, data: datasets.Dataset, plan: pl.DataFrame) -> tuple[Tensor, pl.DataFrame]:
    """Train networks of one activation and optimiser; rows and table of their checkpoints, ordered by network."""
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
