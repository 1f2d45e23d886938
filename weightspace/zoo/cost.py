"""What training a published zoo costs on this machine, measured on a few steps.

A rough figure: a few steps of one unit stand for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import joblib
import torch

from weightspace.datasets import Dataset, Pixels
from weightspace.errors import DatasetError
from weightspace.progress import progress_bar
from weightspace.zoo import recipes
from weightspace.zoo.recipe import WAVES, WILD_PARK, Recipe
from weightspace.zoo.units import Data, Unit, load_data, train_unit, unit_network, units

SHAPES = {
    "digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "usps": (1, 16, 16),
    "svhn": (3, 32, 32), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "stl10": (3, 96, 96),
    "eurosat": (3, 64, 64), "tiny_imagenet": (3, 64, 64), WAVES: (1, 1, 1),
}  # fmt: skip
"""Of the image sets that recipes name, whose files may not be here."""
CLASSES = {"cifar100": 100, "tiny_imagenet": 200}
STEPS = 3
"""Steps timed at first; more where they take less than `SECONDS` together."""
SECONDS = 0.2
FEW = 16
"""Images a step that are timed of networks that train alone, as those are large; the time is scaled to the batch."""
EVALUATED = 200
"""Images on which evaluation is timed, at least."""
PARKS = 4
"""Architectures of the Wild Park that are timed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A recipe's size and speed.

    >>> Cost(name="mnist-cnn-seed", parameters="2,464", models=1000, models_per_minute=10.0).hours
    1.6666666666666667
    """

    name: str
    parameters: str
    """Number of parameters; the smallest and largest of some where they differ."""
    models: int
    models_per_minute: float | None
    """On all cores, with checkpoints evaluated; `None` if not measured."""

    @property
    def hours(self) -> float | None:
        """For all models of the recipe."""
        return None if self.models_per_minute is None else self.models / self.models_per_minute / 60


def costs(names: Sequence[str], *, measure: bool = True, root: Path | None = None) -> Iterator[Cost]:
    """Sizes of published recipes and, where their images are at hand, measured speed.

    Recipes that differ only in values of factors are measured once.

    Args:
        root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing.

    >>> [cost.parameters for cost in costs(["mnist-cnn-seed"], measure=False)]
    ['2,464']
    """
    measured: dict[Recipe, float | None] = {}
    with progress_bar("measuring", len(names)) as advance:
        for name in names:
            recipe = recipes.by_name(name)
            same = replace(
                recipe, models=PARKS if recipe.network == WILD_PARK else recipe.unit_models, sampling="grid",
                learning_rate=(1e-3,), weight_decay=(0.0,), dropout=recipe.dropout[-1:], init=recipe.init[:1],
                init_scale=(1.0,), init_std=(1.0,), activation=recipe.activation[:1], optimiser=recipe.optimiser[:1],
                momentum=(0.9,), train_fraction=(1.0,), init_bias=0.0, repeat_seeds=False,
            )  # fmt: skip
            if measure and same not in measured:
                measured[same] = _models_per_minute(same, root)
            advance(note=name)
            yield Cost(
                name=name, parameters=_parameters(recipe), models=recipe.models, models_per_minute=measured.get(same)
            )


def _parameters(recipe: Recipe) -> str:
    few = replace(recipe, models=50 if recipe.network == WILD_PARK else 1)
    channels, height, width = SHAPES[recipe.data]
    shape = (1 if recipe.grey else channels, recipe.side or height, recipe.side or width)
    images = torch.zeros(1, *shape)
    data: Data = None
    if recipe.fits_signals and recipe.data != WAVES:
        data = Pixels(name=recipe.data, images=images, labels=torch.zeros(1).long())
    elif recipe.data != WAVES:
        data = _dataset(recipe.data, CLASSES.get(recipe.data, 10), images, torch.zeros(1).long())
    found = []
    for unit in units(few):
        network = unit_network(recipe, data, unit.plan)  # the Wild Park draws it, which needs real tensors
        with torch.device("meta"):
            module = network.build()
        found.append(sum(p.numel() for p in module.parameters()))  # running statistics are none
    return f"{found[0]:,}" if len(set(found)) == 1 else f"{min(found):,} to {max(found):,}"


def _dataset(name: str, classes: int, images: torch.Tensor, labels: torch.Tensor) -> Dataset:
    """The same images in all three parts."""
    return Dataset(
        name=name, classes=classes, train_images=images, train_labels=labels, validation_images=images,
        validation_labels=labels, test_images=images, test_labels=labels,
    )  # fmt: skip


def _models_per_minute(recipe: Recipe, root: Path | None) -> float | None:
    """Speed with all cores, from one core's seconds for a step, and for an image evaluated, of a network."""
    try:
        data = load_data(recipe, root)
    except DatasetError:
        return None
    made = units(recipe)
    return 60 * joblib.cpu_count() * recipe.models / sum(_unit_seconds(recipe, data, unit) for unit in made)


def _unit_seconds(recipe: Recipe, data: Data, unit: Unit) -> float:
    """One core's own seconds for a unit: its steps, and the evaluation of its checkpoints."""
    alone = recipe.unit_models == 1 and recipe.network != WILD_PARK
    batch = min(recipe.batch_size, FEW) if alone else recipe.batch_size
    steps, most = recipe.epochs, recipe.epochs
    if isinstance(data, Dataset):
        steps, most = recipe.epochs * (len(data.train_images) // recipe.batch_size), len(data.train_images) // batch
    count = min(STEPS, most)
    step, evaluation = _timed(recipe, data, unit, batch, count)
    while step * count < SECONDS and count < most:  # too short to be told from chance
        count = min(8 * count, most)
        step, evaluation = _timed(recipe, data, unit, batch, count)
    return steps * step * recipe.batch_size / batch + len(recipe.kept_epochs) * evaluation


def _timed(recipe: Recipe, data: Data, unit: Unit, batch: int, steps: int) -> tuple[float, float]:
    """Seconds of a step, and of the evaluation of one checkpoint on all images."""
    sample, epochs, share = data, steps, 1.0
    if isinstance(data, Dataset):  # one epoch is that many steps
        seen, few = slice(max(batch * steps, data.classes)), slice(EVALUATED)
        sample = replace(
            data, train_images=data.train_images[seen], train_labels=data.train_labels[seen],
            validation_images=data.validation_images[:1], validation_labels=data.validation_labels[:1],
            test_images=data.test_images[few], test_labels=data.test_labels[few],
        )  # fmt: skip
        epochs, share = 1, _images(data) / _images(sample)

    def seconds(rounds: int, *checkpoints: int) -> float:
        short = replace(recipe, epochs=rounds * epochs, checkpoints=checkpoints, batch_size=batch, train_limit=None)
        begin = process_time()
        train_unit(short, sample, unit.plan)
        return process_time() - begin

    once = min(seconds(1, epochs) for _ in range(2))  # the first one warms up
    step = max(seconds(2, 2 * epochs) - once, 1e-6) / steps
    return step, max(seconds(1, 0, epochs) - once, 0.0) * share


def _images(data: Dataset) -> int:
    return len(data.train_images) + len(data.validation_images) + len(data.test_images)
