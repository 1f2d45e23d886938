"""Simple ways to make networks for a task that a meta-zoo has never seen, which a learned generator has to beat.

Tasks are described by numbers, such as the means of their classes in head order. All functions give one network a
wanted task, with its task in the table; each knows the images of the wanted task through its description only.

Axes: m network of the meta-zoo, t wanted task, k class, f feature, d number of a description, p parameter.
"""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Float
from sklearn.linear_model import Ridge
from torch import Tensor

from weightspace import networks
from weightspace.errors import ConfigError
from weightspace.generators.image_features import Features
from weightspace.networks.initialisation import initial_rows
from weightspace.zoo.store import Zoo
from weightspace.zoo.tasks import CLASSES, DATASET, Task, TaskImages


def class_means(images: TaskImages, tasks: Sequence[Task], features: Features) -> Float[Tensor, "t d"]:
    """Mean features of the training images of each class, side by side in head order.

    >>> images = TaskImages.load(["digits"], train=50, validation=20, test=40, side=8)
    >>> class_means(images, [Task("digits", (3, 5))], lambda x: x.flatten(1)).shape
    torch.Size([1, 128])
    """
    means = features(images.train.flatten(0, 1)).unflatten(0, images.train.shape[:2]).mean(1)
    return means[images.numbers(tasks)].flatten(1)


def random_start(train: Zoo, tasks: Sequence[Task], generator: torch.Generator) -> Zoo:
    """Untrained networks, each with its own weights, initialised as those of the meta-zoo.

    Raises:
        ConfigError: The zoo was not made by a recipe of tasks.
    """
    recipe = train.header.get("recipe") or {}
    if "init" not in recipe or "network" not in train.header:
        raise ConfigError(f"{train!r} does not say how its networks were initialised: give the meta-zoo as trained")
    network, n = networks.from_json(train.header["network"]), len(tasks)
    seeds = torch.randint(2**53, (n,), generator=generator)
    return networks_for(initial_rows(network, seeds, recipe["init"], torch.ones(n)), train, tasks, "random")


def common_start(zoo: Zoo, tasks: Sequence[Task]) -> Zoo:
    """The weights that all networks of a meta-zoo with a common start began with.

    Raises:
        ConfigError: They began with different weights, or the zoo has no checkpoint before training.
    """
    first = zoo.where(pl.col("step") == 0)
    rows = first.weights()
    if not len(rows) or not torch.equal(rows, rows[:1].expand_as(rows)):
        raise ConfigError(f"the networks of {zoo!r} have no common start among their checkpoints")
    return networks_for(rows[:1].expand(len(tasks), -1), zoo, tasks, "start")


def nearest_task(
    train: Zoo, known: Float[Tensor, "m d"], wanted: Float[Tensor, "t d"], tasks: Sequence[Task], *, k: int | None = 1
) -> Zoo:
    """The network of the task that resembles the wanted one most, or the mean of the networks of the `k` nearest.

    Args:
        train: Networks of the meta-zoo; with class orders, the order that fits best is found too.
        known: Descriptions of their tasks.
        wanted: Descriptions of the wanted tasks.
        tasks: The wanted tasks.
        k: Networks in a mean; `None` takes all, whatever the task.

    Raises:
        ConfigError: `k` is below 1, or there are fewer networks.
    """
    if k is not None and not 1 <= k <= len(train):
        raise ConfigError(f"the nearest tasks to average must be between 1 and {len(train)}, got {k}")
    rows = train.weights()
    if k is None:
        return networks_for(rows.mean(0).expand(len(tasks), -1), train, tasks, "mean")
    near = torch.cdist(wanted, known).topk(k, largest=False).indices
    return networks_for(rows[near].mean(1), train, tasks, f"nearest-{k}")


class WeightRegression:
    """Ridge regression from descriptions of tasks to weights, as WeightCLIP's LM (Asefaw et al., 2026).

    >>> from weightspace.networks import Layout
    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> zoo = Zoo.in_memory(torch.tensor([[0.0] * 8, [2.0] * 8]), Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> fitted = WeightRegression(penalty=0.0).fit(zoo, torch.tensor([[0.0], [1.0]]))
    >>> fitted.networks(torch.tensor([[0.5]]), [Task("mnist", (1, 2))]).weights()[0, 0]
    tensor(1.)
    """

    def __init__(self, penalty: float = 1e-4):
        if penalty < 0:
            raise ConfigError(f"the penalty must be at least 0, got {penalty}")
        self.penalty = penalty
        """In means of the diagonal of the covariance."""

    def fit(self, train: Zoo, known: Float[Tensor, "m d"]) -> "WeightRegression":
        """Fit weights to descriptions."""
        self.train = train
        diagonal = float((known - known.mean(0)).square().sum(0).mean())
        self.ridge = Ridge(alpha=self.penalty * diagonal, solver="cholesky" if self.penalty else "svd")
        self.ridge.fit(known.double().numpy(), train.weights().double().numpy())
        return self

    def networks(self, wanted: Float[Tensor, "t d"], tasks: Sequence[Task]) -> Zoo:
        """A network for each wanted task."""
        rows = torch.from_numpy(self.ridge.predict(wanted.double().numpy())).float()
        return networks_for(rows, self.train, tasks, "ridge")


def networks_for(rows: Float[Tensor, "t p"], train: Zoo, tasks: Sequence[Task], name: str) -> Zoo:
    """A zoo in memory of one network a task, with the tasks in its table."""
    table = pl.DataFrame(
        {
            "model": [f"{name}-{i:04d}" for i in range(len(tasks))],
            "step": [0] * len(tasks),
            DATASET: [task.dataset for task in tasks],
            CLASSES: [" ".join(map(str, task.classes)) for task in tasks],
        }
    )
    kept = {key: train.header[key] for key in ("network", "dataset", "recipe") if key in train.header}
    return Zoo.in_memory(rows, train.layout, table, {"name": name} | kept)
