"""Train a meta-zoo: small networks of one architecture, each on a task of its own.

    task       some classes of one data set, drawn at random
    training   networks are vectorised, each with its own images
    held out   whole tasks, and all tasks of whole data sets: the column `config.split`

Axes: m network, p parameter, i image of a task.
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from math import comb
from pathlib import Path

import joblib
import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

import weightspace
from weightspace import networks
from weightspace.errors import ConfigError, DatasetError, ZooError, unknown_name
from weightspace.networks.initialisation import INITIALISATIONS, initial_rows
from weightspace.networks.layout import Layout
from weightspace.networks.optimisers import OPTIMISERS, OptimiserName
from weightspace.networks.population import Hyperparameters, own_metrics, train_population
from weightspace.progress import progress_bar
from weightspace.zoo.backends import Backend, Trained, run_units
from weightspace.zoo.store import Zoo, ZooWriter
from weightspace.zoo.store import open as open_zoo
from weightspace.zoo.tasks import CLASSES, DATASET, PARTS, Part, Task, TaskImages, planned_tasks, tasks_of
from weightspace.zoo.units import Unit

SPLIT = "config.split"
"""Column: `train`, `validation` or `test`, by task."""


@dataclass(frozen=True, kw_only=True)
class TaskRecipe:
    """A meta-zoo: which tasks, and how the networks on them are trained.

    >>> TaskRecipe(data=("digits",), tasks=(3,)).classes
    4
    """

    data: tuple[str, ...] = ("mnist", "fashion_mnist", "emnist_letters", "cifar10")
    """Data sets that tasks of all three splits are cut from."""
    tasks: tuple[int, ...] = (150,)
    """Training tasks of each data set, or one number for all."""
    validation_tasks: int = 20
    """Of each data set; never the same set of classes as a training or test task."""
    test_tasks: int = 20
    """Of each data set."""
    validation_data: tuple[str, ...] = ()
    """Data sets of which all tasks are validation tasks: what helps with new data sets is chosen on them."""
    test_data: tuple[str, ...] = ()
    """Data sets of which all tasks are test tasks."""
    classes: int = 4
    """Classes of a task."""
    models_per_task: int = 1
    train_images: int = 200
    """Of each class."""
    validation_images: int = 60
    """Of each class."""
    test_images: int = 140
    """Of each class."""
    side: int = 14
    """Height and width of the images, which are made grey."""
    network: str = "mlp"
    """Name of a network preset."""
    init: str = "kaiming_uniform"
    """Initialisation of the weights; biases begin at zero."""
    common_init: bool = True
    """All networks begin with the same weights, or else each with its own. From one start, the same unit comes to do
    similar things in all of them."""
    optimiser: OptimiserName = "adam"
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    epochs: int = 10
    checkpoints: tuple[int, ...] = ()
    """Epochs to keep, 0 is before training; the first and the last when empty."""
    batch_size: int = 32
    unit_models: int = 64
    """Networks trained together."""
    seed: int = 0
    """Determines tasks, parts of the data, weights and batches."""

    def __post_init__(self):
        if self.network not in networks.names():
            raise unknown_name("network", self.network, networks.names())
        if self.init not in INITIALISATIONS:
            raise unknown_name("initialisation", self.init, INITIALISATIONS)
        if self.optimiser not in OPTIMISERS:
            raise unknown_name("optimiser", self.optimiser, OPTIMISERS)
        if not self.data:
            raise ConfigError("a meta-zoo needs at least one data set")
        if len(set(self.all_data)) < len(self.all_data):
            raise ConfigError(f"a data set is trained on or held out, once: {', '.join(self.all_data)} has one twice")
        if len(self.tasks) not in (1, len(self.data)):
            raise ConfigError(f"tasks must be one number, or one for each of the {len(self.data)} data sets")
        if min(*self.tasks, self.validation_tasks, self.test_tasks) < 0:
            raise ConfigError("numbers of tasks must be at least 0")
        for name in ("models_per_task", "train_images", "validation_images", "test_images", "epochs", "batch_size",
                     "unit_models", "side"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.classes < 2:
            raise ConfigError(f"a task needs at least 2 classes, got {self.classes}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if any(not 0 <= epoch <= self.epochs for epoch in self.checkpoints):
            raise ConfigError(f"checkpoints must lie between 0 and {self.epochs} epochs, got {self.checkpoints}")
        if self.batch_size > self.classes * self.train_images:
            raise ConfigError(f"batch_size {self.batch_size} is larger than the images of a task; make it smaller")

    @property
    def all_data(self) -> tuple[str, ...]:
        """All data sets, those that are held out last."""
        return (*self.data, *self.validation_data, *self.test_data)

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """Epochs at which checkpoints are kept."""
        return tuple(sorted(set(self.checkpoints or (0, self.epochs))))

    def load_images(self, root: Path | None = None) -> TaskImages:
        """The images of all data sets.

        Raises:
            DatasetError: The images cannot be read, or a class has too few.
        """
        return TaskImages.load(
            self.all_data, root, train=self.train_images, validation=self.validation_images,
            test=self.test_images, side=self.side, seed=self.seed,
        )  # fmt: skip

    def plan(self, images: TaskImages) -> pl.DataFrame:
        """One row a network: model, `config.dataset`, `config.classes`, `config.split` and `config.seed`.

        More training tasks leave the held-out tasks, and the training tasks there were, as they are.

        Raises:
            ConfigError: A data set does not have so many tasks.

        >>> recipe = TaskRecipe(data=("digits",), tasks=(3,), validation_tasks=0, test_tasks=1, side=8, test_images=40,
        ...     train_images=50, validation_images=20)
        >>> recipe.plan(recipe.load_images())["config.split"].to_list()
        ['test', 'train', 'train', 'train']
        """
        rows = []
        counts = dict(zip(self.data, self.tasks * (len(self.data) if len(self.tasks) == 1 else 1), strict=True))
        for number, name in enumerate(self.all_data):
            splits = [("validation", self.validation_tasks), ("test", self.test_tasks), ("train", counts.get(name, 0))]
            if name not in counts:  # held out
                splits = [splits[name in self.test_data]]
            drawn = iter(self._drawn(name, images.counts[name], sum(n for _, n in splits), number))
            for split, n in splits:
                tasks = islice(drawn, n)
                rows += [(task, split, copy) for task in tasks for copy in range(self.models_per_task)]
        seeds = [_seed(f"{self.seed} {task.name} {copy}") for task, _, copy in rows]
        return pl.DataFrame(
            {
                "model": [f"{task.name}-{copy}" for task, _, copy in rows],
                DATASET: [task.dataset for task, _, _ in rows],
                CLASSES: [" ".join(map(str, task.classes)) for task, _, _ in rows],
                SPLIT: [split for _, split, _ in rows],
                "config.seed": seeds,
            }
        )

    def _drawn(self, name: str, classes: int, count: int, number: int) -> list[Task]:
        """Different tasks of a data set, in a random order."""
        if count > comb(classes, self.classes):
            raise ConfigError(
                f"data set {name!r} has {comb(classes, self.classes)} tasks of {self.classes} classes, but {count} are "
                "asked for: ask for fewer"
            )
        rng = np.random.default_rng((self.seed, number))
        found: dict[Task, None] = {}
        while len(found) < count:
            some = rng.choice(classes, self.classes, replace=False)
            found[Task(name, tuple(sorted(some.tolist())))] = None
        return list(found)


def _seed(text: str) -> int:
    """A number below 2^53 of the network's own, so that it does not depend on the others of its zoo."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


def train_tasks(
    path: Path | str,
    recipe: TaskRecipe = TaskRecipe(),
    *,
    data_root: Path | str | None = None,
    workers: int | None = None,
    backend: Backend = "processes",
) -> Zoo:
    """Train the recipe's meta-zoo into a folder, or finish it there.

    Args:
        path: Folder of the zoo, new or with a part of this zoo.
        data_root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.
        workers: Processes; one a core when missing, 1 trains in this process.
        backend: `processes` on this machine, or `ray`.

    Raises:
        ZooError: The folder holds another zoo.
        DatasetError: The images cannot be read, or a class has too few.
        ConfigError: A data set does not have so many tasks, or there is no worker.
        MissingExtra: Ray is not installed.

    >>> import tempfile
    >>> recipe = TaskRecipe(data=("digits",), tasks=(3,), validation_tasks=1, test_tasks=1, side=8, test_images=40,
    ...     train_images=50, validation_images=20, epochs=1)
    >>> train_tasks(tempfile.mkdtemp() + "/zoo", recipe, workers=1).table["config.split"].unique().sort().to_list()
    ['test', 'train', 'validation']
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    root = None if data_root is None else Path(data_root).resolve()
    images = recipe.load_images(root)
    plan, network = recipe.plan(images), networks.by_name(recipe.network, images.image_shape, recipe.classes)
    header = {
        "network": networks.to_json(network),
        "dataset": {"name": "tasks", "digest": images.digest, "image_shape": list(images.image_shape)},
        "recipe": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(recipe).items()},
        "created_by": {
            "weightspace": weightspace.__version__, "torch": torch.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip
    layout = Layout.of(network.build())
    writer = ZooWriter.create(Path(path), header, [layout])
    slices = plan.iter_slices(recipe.unit_models)
    pending = [Unit(f"{i:05d}", some) for i, some in enumerate(slices)]
    done = writer.parts()
    pending = [unit for unit in pending if unit.part not in done]
    workers = min(workers or joblib.cpu_count(), max(1, len(pending)))
    if workers > 1 or backend != "processes":
        work = partial(_train_in_worker, recipe, root, images.digest)
    else:
        work = partial(_train_here, recipe, images)
    with progress_bar(f"training {len(plan)} networks on tasks", len(plan)) as advance:
        advance(len(plan) - sum(len(unit.plan) for unit in pending))
        for part, rows, table in run_units(work, pending, backend=backend, workers=workers):
            writer.append(part, torch.tensor(rows), table, layout)  # a copy: arrays of a cluster are read-only
            advance(table["model"].n_unique())
    return open_zoo(path)


def train_task_unit(
    recipe: TaskRecipe, images: TaskImages, plan: pl.DataFrame
) -> tuple[Float[Tensor, "n p"], pl.DataFrame]:
    """Train networks, each on its own task, as one population.

    Args:
        plan: Some rows of the recipe's plan.

    Returns:
        Weights and table of the checkpoints, ordered by network, then epoch.
    """
    network = networks.by_name(recipe.network, images.image_shape, recipe.classes)
    seeds, full = torch.tensor(plan["config.seed"].to_list()), torch.ones(len(plan))
    start = torch.full_like(seeds, recipe.seed) if recipe.common_init else seeds
    rows = initial_rows(network, start, recipe.init, full)
    h = Hyperparameters(
        seeds=seeds, learning_rate=recipe.learning_rate * full, weight_decay=recipe.weight_decay * full,
        dropout=0 * full, train_fraction=full,
    )  # fmt: skip
    tasks, tables, kept = planned_tasks(plan), [], []
    places, labels = images.places(tasks, "train")
    stages = train_population(
        network, rows, h, images.train.flatten(0, 1), labels, places=places, epochs=recipe.epochs,
        batch_size=recipe.batch_size, optimiser=recipe.optimiser, checkpoints=recipe.kept_epochs,
    )  # fmt: skip
    for epoch, trained, _ in stages:
        metrics = task_metrics(network, trained, images, tasks, PARTS)
        tables.append(plan.with_columns(*metrics, step=pl.lit(epoch), order=pl.int_range(len(plan))))
        kept.append(trained)
    table = pl.concat(tables).with_columns(position=pl.int_range(pl.len())).sort("order", "step")
    return torch.cat(kept)[table["position"].to_list()], table.drop("order", "position")


def task_metrics(
    network: networks.Network,
    rows: Float[Tensor, "m p"],
    images: TaskImages,
    tasks: Sequence[Task],
    parts: Sequence[Part],
) -> list[pl.Series]:
    """Columns `metric.*_loss` (nats) and `metric.*_accuracy` of networks, each on the images of its own task."""
    columns = []
    for part in parts:
        measured = own_metrics(network, rows, images.of_part(part).flatten(0, 1), *images.places(tasks, part))
        for name, values in zip(("loss", "accuracy"), measured, strict=True):
            columns.append(pl.Series(f"metric.{part}_{name}", values.tolist()))
    return columns


def fine_tune_on_tasks(
    zoo: Zoo,
    images: TaskImages,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 32,
    seed: int = 0,
    parts: Sequence[Part] = ("validation", "test"),
) -> Zoo:
    """Train the networks of a meta-zoo further, each on the training images of its own task, with Adam.

    Network i of any zoo gets its images in the same order for the same seed, so that zoos can be compared in pairs.

    Args:
        zoo: One checkpoint a model, with columns `config.dataset` and `config.classes`.
        parts: Where to measure.

    Returns:
        A zoo in memory with a row for each network and epoch: `step` is the epoch of the fine-tuning, 0 is before it.

    Raises:
        ZooError: The zoo is no meta-zoo, or has several checkpoints of a model.
        DatasetError: The images are not those of the tasks.

    >>> recipe = TaskRecipe(data=("digits",), tasks=(1,), validation_tasks=0, test_tasks=0, side=8, test_images=40,
    ...     train_images=50, validation_images=20)
    >>> images = recipe.load_images()
    >>> rows, table = train_task_unit(recipe, images, recipe.plan(images))
    >>> network = networks.by_name("mlp", images.image_shape, 4)
    >>> zoo = Zoo.in_memory(rows, Layout.of(network.build()), table, {"network": networks.to_json(network)}).last()
    >>> fine_tune_on_tasks(zoo, images, epochs=1, learning_rate=1e-3).table["step"].to_list()
    [0, 1]
    """
    if len(zoo.models) < len(zoo):
        raise ZooError(f"{zoo!r} has several checkpoints of a model; fine-tune one of each, for example zoo.last()")
    if "network" not in zoo.header:
        raise ZooError(f"{zoo!r} does not say what its network is, so it cannot be run: its header lacks it")
    network, tasks, full = networks.from_json(zoo.header["network"]), tasks_of(zoo), torch.ones(len(zoo))
    h = Hyperparameters(
        seeds=torch.arange(len(zoo)) + (seed << 32), learning_rate=learning_rate * full, weight_decay=0 * full,
        dropout=0 * full, train_fraction=full,
    )  # fmt: skip
    places, labels = images.places(tasks, "train")
    stages = train_population(
        network, zoo.weights(), h, images.train.flatten(0, 1), labels, places=places, epochs=epochs,
        batch_size=batch_size,
    )  # fmt: skip
    config, tables, rows = zoo.table.select("model", pl.col("^config\\..*$")), [], []
    for epoch, trained, _ in stages:
        tables.append(config.with_columns(*task_metrics(network, trained, images, tasks, parts), step=pl.lit(epoch)))
        rows.append(trained)
    return Zoo.in_memory(torch.cat(rows), zoo.layout, pl.concat(tables), zoo.header)


def _train_here(recipe: TaskRecipe, images: TaskImages, unit: Unit) -> Trained:
    # one thread: the pool has a process a core, and small kernels lose more by waiting for each other than they win
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, table = train_task_unit(recipe, images, unit.plan)
    finally:
        torch.set_num_threads(threads)
    return unit.part, rows.numpy(), table


def _train_in_worker(recipe: TaskRecipe, root: Path | None, digest: str, unit: Unit) -> Trained:
    return _train_here(recipe, _images(recipe, root, digest), unit)


@lru_cache(maxsize=1)
def _images(recipe: TaskRecipe, root: Path | None, digest: str) -> TaskImages:
    """Read once a worker; the digest is part of the key, since workers live longer than a zoo and files may change."""
    images = recipe.load_images(root)
    if images.digest != digest:
        raise DatasetError("the images of the tasks changed while the zoo was training; train into a new folder")
    return images
