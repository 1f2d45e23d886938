"""Networks for tasks that were never seen: how good as they are, and after a little training.

Every source makes networks for the same tasks and is measured alike ("Evaluating generators", sections 1 and 7): its
learning rate is chosen on its networks for validation tasks, the images of a task that decide are its test images, and
the number of candidates that a network was chosen from is part of the result.

Axes: m network.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from weightspace.errors import ConfigError
from weightspace.zoo import Zoo
from weightspace.zoo.task_zoo import fine_tune_on_tasks
from weightspace.zoo.tasks import DATASET, TaskImages

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Grid for the training after generation, the same for every source."""


def best_learning_rate(
    zoo: Zoo, images: TaskImages, *, epochs: int = 1, rates: Sequence[float] = LEARNING_RATES, seed: int = 0
) -> float:
    """The learning rate after which networks for validation tasks do best on validation images.

    Args:
        zoo: Networks of one source for validation tasks.
    """
    reached = {
        rate: fine_tune_on_tasks(zoo, images, epochs=epochs, learning_rate=rate, seed=seed, parts=("validation",))
        .last()
        .table["metric.validation_accuracy"]
        .mean()
        for rate in rates
    }
    return max(reached, key=lambda rate: float(reached[rate]))  # type: ignore[arg-type]


def evaluate_on_tasks(
    sources: Mapping[str, Zoo],
    images: TaskImages,
    *,
    tuning: Mapping[str, Zoo],
    epochs: int = 1,
    rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
) -> pl.DataFrame:
    """Measure sources of networks for tasks, as made and after each of some epochs.

    Args:
        sources: Networks by the name of what made them, each with its task in the table.
        images: Of the tasks.
        tuning: Networks of the same sources for validation tasks, which choose the learning rate.
        seed: Batches, the same for every source.

    Returns:
        A row a network and epoch (0: as made): source, dataset, classes, model, epoch, learning_rate, accuracy and
        loss (nats) on test images.

    Raises:
        ConfigError: A source has no networks for validation tasks.
        ZooError: A source is no meta-zoo, or has several checkpoints of a model.
    """
    tables = []
    for name, zoo in sources.items():
        if name not in tuning:
            raise ConfigError(f"source {name!r} needs networks for validation tasks too, to choose its learning rate")
        rate = best_learning_rate(tuning[name], images, epochs=epochs, rates=rates, seed=seed)
        stages = fine_tune_on_tasks(zoo, images, epochs=epochs, learning_rate=rate, seed=seed, parts=("test",))
        tables.append(
            stages.table.select(
                pl.lit(name).alias("source"),
                pl.col(DATASET).alias("dataset"),
                pl.col("config.classes").alias("classes"),
                "model",
                pl.col("step").alias("epoch"),
                pl.lit(rate).alias("learning_rate"),
                pl.col("metric.test_accuracy").alias("accuracy"),
                pl.col("metric.test_loss").alias("loss"),
            )
        )
    return pl.concat(tables)
