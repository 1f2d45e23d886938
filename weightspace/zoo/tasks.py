"""Tasks: some classes of one data set. Many of them, cut from a few data sets, are what a meta-zoo is trained on.

Output i of a network stands for the i-th class of its task. Which images a task has is a function of its name and of
the seed of the data: the first ones of each class, in the order in which `datasets.load` cuts the parts.

Axes: g class, counted over all data sets, e, v, u image of a class in each part, t task, k class of a task, i image of
a task, n image, c channel, h height, w width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.errors import DatasetError, ZooError, unknown_name
from weightspace.zoo.store import Zoo

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
DATASET, CLASSES = "config.dataset", "config.classes"
"""Columns of a meta-zoo: the data set of each network's task, and its classes in the order of the head: `0 3 7`."""


@dataclass(frozen=True, order=True)
class Task:
    """Tell some classes of a data set apart.

    >>> Task("mnist", (0, 3, 7)).name
    'mnist-0-3-7'
    """

    dataset: str
    classes: tuple[int, ...]
    """In the order of the head."""

    @property
    def name(self) -> str:
        """Data set and classes."""
        return "-".join((self.dataset, *map(str, self.classes)))


def tasks_of(zoo: Zoo) -> list[Task]:
    """The task of every checkpoint, in table order.

    Raises:
        ZooError: The zoo does not say it.
    """
    if missing := [column for column in (DATASET, CLASSES) if column not in zoo.table.columns]:
        raise ZooError(
            f"{zoo!r} has no column {missing[0]!r}, so it does not say which task its networks solve: give a meta-zoo, "
            "as `weightspace tasks train` makes it"
        )
    return planned_tasks(zoo.table)


def planned_tasks(plan: pl.DataFrame) -> list[Task]:
    """The tasks that the columns `config.dataset` and `config.classes` of a table name.

    >>> planned_tasks(pl.DataFrame({DATASET: ["mnist"], CLASSES: ["3 0"]}))
    [Task(dataset='mnist', classes=(3, 0))]
    """
    pairs = zip(plan[DATASET], plan[CLASSES], strict=True)
    return [Task(dataset, tuple(map(int, classes.split()))) for dataset, classes in pairs]


@dataclass(frozen=True, eq=False, repr=False)
class TaskImages:
    """Standardised images of several data sets: of each class as many, in three parts."""

    counts: Mapping[str, int]
    """Classes of each data set; class j of the second one has the number `counts[first] + j`."""
    train: Float[Tensor, "g e c h w"]
    validation: Float[Tensor, "g v c h w"]
    test: Float[Tensor, "g u c h w"]

    @classmethod
    def load(
        cls,
        names: Sequence[str],
        root: Path | None = None,
        *,
        train: int = 200,
        validation: int = 60,
        test: int = 140,
        side: int | None = 14,
        seed: int = 0,
    ) -> "TaskImages":
        """Grey images of some data sets in one size.

        Args:
            names: As `datasets.load` knows them.
            root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.
            train: Images of each class in the training part.
            validation: The same of the validation part.
            test: The same of the test part.
            side: Height and width.
            seed: Seed of the cut into parts.

        Raises:
            DatasetError: The images cannot be read, or a class has too few.
            UnknownName: There is no such data set.

        >>> TaskImages.load(["digits"], train=50, validation=20, test=40, side=8).train.shape
        torch.Size([10, 50, 1, 8, 8])
        """
        loaded = {name: datasets.load(name, root, seed=seed, grey=True, side=side) for name in dict.fromkeys(names)}
        return cls.of(loaded, train=train, validation=validation, test=test)

    @classmethod
    def of(cls, loaded: Mapping[str, Dataset], *, train: int, validation: int, test: int) -> "TaskImages":
        """The first images of each class of data sets that are in memory.

        Raises:
            DatasetError: A class has too few images, or the sets have images of different shapes.
        """
        if shapes := sorted({data.image_shape for data in loaded.values()})[1:]:
            raise DatasetError(
                f"all data sets of a meta-zoo need images of one shape, got {shapes[0]} too: give a side"
            )
        parts = {}
        for part, count in zip(PARTS, (train, validation, test), strict=True):
            parts[part] = torch.cat([class_images(data, part, count) for data in loaded.values()])
        return cls({name: data.classes for name, data in loaded.items()}, **parts)

    @cached_property
    def starts(self) -> dict[str, int]:
        """Number of the first class of each data set."""
        ends = torch.tensor(list(self.counts.values())).cumsum(0)
        return dict(zip(self.counts, (ends - torch.tensor(list(self.counts.values()))).tolist(), strict=True))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.shape[2:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Short hash of all images."""
        sha = hashlib.sha256(repr(self.counts).encode())
        for part in PARTS:
            sha.update(self.of_part(part).contiguous().numpy().data)
        return sha.hexdigest()[:12]

    def of_part(self, part: Part) -> Float[Tensor, "g e c h w"]:
        """Images of a part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    def numbers(self, tasks: Sequence[Task]) -> Int64[Tensor, "t k"]:
        """The classes of tasks, counted over all data sets.

        Raises:
            UnknownName: A task is of a data set that is not here.
            DatasetError: A data set lacks a class, or tasks have different numbers of classes.
        """
        found = []
        for task in tasks:
            if task.dataset not in self.counts:
                raise unknown_name("data set of a task", task.dataset, self.counts)
            if not all(0 <= c < self.counts[task.dataset] for c in task.classes):
                raise DatasetError(f"data set {task.dataset!r} lacks a class of the task {task.name}")
            found.append([self.starts[task.dataset] + c for c in task.classes])
        if len(set(map(len, found))) > 1:
            raise DatasetError("all tasks of a meta-zoo need the same number of classes, these have different ones")
        return torch.tensor(found)

    def places(self, tasks: Sequence[Task], part: Part) -> tuple[Int64[Tensor, "t i"], Int64[Tensor, "t i"]]:
        """Where the images of each task lie in `of_part(part).flatten(0, 1)`, and their labels, class by class."""
        each = self.of_part(part).shape[1]
        numbers = self.numbers(tasks)
        labels = torch.arange(numbers.shape[1]).repeat_interleave(each).expand(len(tasks), -1)
        return (numbers[:, :, None] * each + torch.arange(each)).flatten(1), labels

    def data(self, task: Task) -> Dataset:
        """The images of one task as a data set of its own.

        >>> images = TaskImages.load(["digits"], train=50, validation=20, test=40, side=8)
        >>> images.data(Task("digits", (3, 5))).train_labels.bincount()
        tensor([50, 50])
        """
        parts: dict[str, Tensor] = {}
        for part in PARTS:
            places, labels = self.places([task], part)
            parts |= {
                f"{part}_images": self.of_part(part).flatten(0, 1)[places[0]],
                f"{part}_labels": labels[0].clone(),
            }
        return Dataset(name=task.name, classes=len(task.classes), **parts)


def class_images(data: Dataset, part: Part, count: int) -> Float[Tensor, "k e c h w"]:
    """The first images of each class of a data set, in the order of the classes.

    Raises:
        DatasetError: A class has too few.

    >>> class_images(datasets.load("digits"), "train", 50).shape
    torch.Size([10, 50, 1, 8, 8])
    """
    images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
    fewest = int(labels.bincount(minlength=data.classes).min())
    if fewest < count:
        raise DatasetError(
            f"a class of data set {data.name!r} has {fewest} {part} images, but {count} are asked for: ask for fewer"
        )
    order = labels.argsort(stable=True)
    starts = labels.bincount(minlength=data.classes).cumsum(0) - labels.bincount(minlength=data.classes)
    return images[order[starts[:, None] + torch.arange(count)]]


def with_class_orders(zoo: Zoo, orders: int, generator: torch.Generator) -> Zoo:
    """A meta-zoo and its networks again with their outputs, and so the classes of their tasks, in other random orders.

    A network with permuted outputs solves the task with permuted classes. Networks that learned classes in ascending
    order thus teach what to do with the classes of a data set that has an order of its own.

    Args:
        zoo: Networks that end in a linear layer with an output a class.
        orders: How often each network is there, the first time as it is.
        generator: Draws the orders.

    Returns:
        A zoo in memory; the column `config.class_order` tells the copies apart.

    Raises:
        ZooError: The zoo is no meta-zoo, or its networks do not end in a linear layer with an output a class.
    """
    tasks, rows = tasks_of(zoo), zoo.weights()
    k = len(tasks[0].classes)
    last = [spec for spec in zoo.layout.tensors if spec.role == "weight" and spec.layer == "linear"][-1:]
    head = [spec for spec in zoo.layout.tensors if last and spec.layer_name == last[0].layer_name]
    if not head or any(spec.shape[0] != k for spec in head):
        raise ZooError(f"{zoo!r} has networks that do not end in a linear layer with {k} outputs, one a class")
    tables, made = [], []
    for copy in range(orders):
        order = torch.rand(len(zoo), k, generator=generator).argsort(1) if copy else torch.arange(k).expand(len(zoo), k)
        new = rows.clone()
        for spec in head:
            values = rows[:, zoo.layout.slices[spec.name]].unflatten(1, (k, -1))
            new[:, zoo.layout.slices[spec.name]] = values.gather(1, order[:, :, None].expand_as(values)).flatten(1)
        classes = [
            " ".join(str(task.classes[j]) for j in some) for task, some in zip(tasks, order.tolist(), strict=True)
        ]
        table = zoo.table.drop("layout", "shard", "row")
        if copy:
            table = table.with_columns(model=pl.col("model") + f"-order-{copy}")
        tables.append(table.with_columns(pl.Series(CLASSES, classes), pl.lit(copy).alias("config.class_order")))
        made.append(new)
    return Zoo.in_memory(torch.cat(made), zoo.layout, pl.concat(tables), zoo.header)
