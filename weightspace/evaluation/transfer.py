"""Networks as initialisations: curves of training on the images of any task, all of them or a few of each class.

Protocol of "Evaluating generators", section 7: every source has its own learning rate, from one grid, by validation
images; network i of every source sees the same batches; epochs, batch size and optimiser are the same for all; test
images give every number in the tables and choose nothing.

Axes: m network, n image, k class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from os import PathLike

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from weightspace import networks
from weightspace.datasets import Dataset
from weightspace.errors import ConfigError, ZooError, unknown_name
from weightspace.evaluation.ensembles import scores
from weightspace.evaluation.fine_tuning import LEARNING_RATES, best_learning_rate
from weightspace.evaluation.probabilities import population_probabilities
from weightspace.evaluation.tables import save_tables
from weightspace.generators import baselines, with_head
from weightspace.networks.optimisers import OptimiserName, Schedule
from weightspace.networks.population import Epoch
from weightspace.zoo import Zoo, behaviour

EPOCHS = (0.0, 0.1, 1.0, 2.0, 5.0, 10.0, 25.0)
REFERENCE = "random initialisation"
SHOTS = (1, 5, 20)
"""Images of each class."""
CONFIDENCE = 0.95
MIXED = 4
"""Prompts in an average."""


@dataclass(frozen=True, kw_only=True)
class TransferTables:
    """What was measured on test images, as tidy tables; a value that does not exist is null."""

    networks: pl.DataFrame
    """A row a source, network and epoch: source, model, epoch (a float: 0.1 is a tenth of one), accuracy, nll."""
    curves: pl.DataFrame
    """A row a source and epoch: n, accuracy_mean, _std, _low and _high (95 % interval of the mean, Student's t), nll
    and ece (means over networks), the same of the ensemble of all networks of the source (mean softmax) as ensemble_*,
    and the learning_rate that validation images chose."""
    summary: pl.DataFrame
    """A row a source: learning_rate, start and final accuracy, area (mean accuracy over the epochs, by the trapezoidal
    rule), epochs_to_threshold (first measured epoch at which the mean reaches the threshold), threshold, and against
    the reference at the last epoch: effect (probability that one of its networks is better, ties counted half) and
    p_value (Mann-Whitney, two-sided)."""

    def save(self, folder: str | PathLike[str], prefix: str = "transfer") -> None:
        """Write each table as CSV, `transfer_curves.csv` and so on; existing ones are replaced.

        Raises:
            ConfigError: The folder cannot be written.
        """
        save_tables({f"{prefix}_{table.name}": getattr(self, table.name) for table in fields(self)}, folder)


def few_images(data: Dataset, per_class: int, *, seed: int = 0, validation: int | None = None) -> Dataset:
    """A data set with a few training images of each class; the test images stay as they are.

    Args:
        per_class: Training images of a class.
        seed: Which ones.
        validation: Validation images of a class; all when missing, which is more than a task of few images has, and
            the same for every source.

    Raises:
        ConfigError: A class has fewer images, or none are wanted.

    >>> from weightspace import datasets
    >>> few = few_images(datasets.load("digits"), 5)
    >>> few.train_labels.bincount().tolist() == [5] * 10
    True
    """
    generator = torch.Generator().manual_seed(seed)

    def chosen(labels: Tensor, count: int, part: str) -> Tensor:
        least = int(labels.bincount(minlength=data.classes).min())
        if not 1 <= count <= least:
            raise ConfigError(
                f"{count} {part} images of each class cannot be taken from {data.name!r}, whose rarest class has "
                f"{least}: give a number from 1 to {least}"
            )
        shuffled = torch.randperm(len(labels), generator=generator)
        by_class = shuffled[labels[shuffled].argsort(stable=True)]
        counts = labels.bincount(minlength=data.classes)
        starts = counts.cumsum(0) - counts
        return by_class[(starts[:, None] + torch.arange(count)).flatten()]

    train = chosen(data.train_labels, per_class, "training")
    few = replace(data, train_images=data.train_images[train], train_labels=data.train_labels[train])
    if validation is None:
        return few
    kept = chosen(data.validation_labels, validation, "validation")
    return replace(few, validation_images=data.validation_images[kept], validation_labels=data.validation_labels[kept])


def initialisations(
    generated: Zoo,
    data: Dataset,
    *,
    prompts: Zoo,
    heldout: Zoo,
    align: Callable[[Zoo], Float[Tensor, "m p"]] = Zoo.weights,
    seed: int = 0,
) -> dict[str, Zoo]:
    """Generated networks and what they have to be compared with, as many of each, with a head for the task.

    Args:
        data: The task; where it has another number of classes than the networks, every source gets a new last layer.
        prompts: The networks that the generated ones were made from.
        heldout: Networks that the generator has not seen, one checkpoint a model.
        align: Aligned rows of a zoo, for averages.
        seed: Of all draws.

    Returns:
        generated; random initialisation; zoo models (random ones); best zoo models (of the task's validation images
        before any training; of their own task's where the head is new); average of 4, aligned; held-out models.

    Raises:
        ZooError: There are no prompts, too few of an activation, or they do not say how they were initialised.
    """
    n, generator = len(generated), torch.Generator().manual_seed(seed)
    network = networks.from_json(prompts.header["network"]) if "network" in prompts.header else None
    new_head = network is not None and getattr(network, "classes", data.classes) != data.classes
    aligned = prompts.with_weights(align(prompts))
    judged = "metric.validation_accuracy"
    ranked = prompts
    if not new_head:
        accuracy = behaviour.metrics(prompts, data.validation_images, data.validation_labels)[1]
        ranked = prompts.with_columns(**{judged: accuracy})
    order = ranked.table[judged].arg_sort(descending=True).to_list()
    sources = {
        "generated": generated,
        REFERENCE: baselines.random_initialisation(prompts, n, generator),
        "zoo models": prompts.take(torch.randperm(len(prompts), generator=generator)[:n]),
        "best zoo models": prompts.take(order[:n]),
        "average of 4": baselines.average(aligned, n, generator, k=MIXED),
        "held-out models": heldout.take(torch.randperm(len(heldout), generator=generator)[:n]),
    }
    if not new_head:
        return sources
    return {name: with_head(zoo, data.classes, seed=seed) for name, zoo in sources.items()}


def transfer(
    sources: Mapping[str, Zoo],
    data: Dataset,
    *,
    epochs: Sequence[Epoch] = EPOCHS,
    rates: Sequence[float] = LEARNING_RATES,
    batch_size: int = 32,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    reference: str = REFERENCE,
    threshold: float | None = None,
    seed: int = 0,
) -> TransferTables:
    """Train sources of networks on a task, all networks of a source at once, and measure them on the way.

    Args:
        sources: Networks by the name of what made them, one checkpoint a model, with as many classes as the task.
        data: The task; with few training images, of `few_images`, a batch has at most all of them.
        epochs: When to measure, 0 is before training. A fraction of an epoch is that of its steps, rounded up: at least
            one step, so that with few images a tenth of an epoch and a whole one can be the same.
        rates: Learning rates to choose from, for each source by its mean validation accuracy at those of the
            epochs that are at least 1, or at all after 0 where none is.
        batch_size: Images in a step.
        optimiser: As in a `Recipe`, and so are the next three: a zoo's own ones train its networks as it was trained.
            The default rates are meant for Adam.
        schedule: Of the learning rate, from the start to the last epoch: in the middle of `one_cycle` or `cosine`
            networks are worse than a shorter run would have made them.
        momentum: Of `sgd`.
        weight_decay: Coefficient of the L2 penalty, of `adamw` of its decay.
        reference: The source that others are compared with, if it is among them.
        threshold: Accuracy whose epoch is wanted; the final one of the reference when missing.
        seed: Of the batches, the same for every source.

    Raises:
        ConfigError: There is no source or no epoch after 0, or networks have another number of classes.
        UnknownName: A reference was named that is not among the sources, or there is no such optimiser or schedule.
        ZooError: A source is empty, has several checkpoints of a model, or NaN weights.
        DatasetError: Networks are made for images of another shape.
    """
    measured = sorted(set(epochs))
    usable = all(0 <= epoch < inf for epoch in measured) and any(measured)
    if not sources or not usable or not rates:
        raise ConfigError(
            f"a transfer needs sources, learning rates and an epoch after 0, got {len(sources)} sources, "
            f"{list(rates)} and {measured}"
        )
    if reference != REFERENCE and reference not in sources:
        raise unknown_name("reference", reference, sources)
    for name, zoo in sources.items():
        _check(name, zoo, data)
    size = min(batch_size, len(data.train_labels))
    # by whole epochs where there are some, so that a look at a tenth of one changes no learning rate
    judged = [epoch for epoch in measured if epoch >= 1] or [epoch for epoch in measured if epoch]
    rows, curves, rate = [], [], {}
    for name, zoo in sources.items():
        rate[name] = best_learning_rate(
            name, zoo, data, epochs=judged, rates=rates, batch_size=size, optimiser=optimiser, schedule=schedule,
            momentum=momentum, weight_decay=weight_decay, seed=seed,
        )  # fmt: skip
        stages = behaviour.training_stages(
            zoo, data, epochs=measured[-1], learning_rate=rate[name], batch_size=size, checkpoints=measured,
            optimiser=optimiser, schedule=schedule, momentum=momentum, weight_decay=weight_decay, seed=seed,
            label=f"training {name}",
        )  # fmt: skip
        for epoch, weights in stages:
            stage = zoo.with_weights(weights)
            probabilities = population_probabilities(stage, data.test_images)
            single = scores(probabilities, data.test_labels)
            together = scores(probabilities.mean(0, keepdim=True), data.test_labels)
            about = {"source": name, "epoch": float(epoch)}
            rows.append(
                stage.table.select("model").with_columns(
                    pl.lit(name).alias("source"), pl.lit(epoch, pl.Float64).alias("epoch"),
                    accuracy=pl.Series(single["accuracy"].tolist()), nll=pl.Series(single["nll"].tolist()),
                ).select("source", "model", "epoch", "accuracy", "nll")
            )  # fmt: skip
            curves.append(
                about
                | _mean(single["accuracy"].double().numpy())
                | {metric: float(single[metric].mean()) for metric in ("nll", "ece")}
                | {f"ensemble_{metric}": float(together[metric]) for metric in ("accuracy", "nll", "ece")}
                | {"learning_rate": rate[name]}
            )
    found, curve = pl.concat(rows), pl.DataFrame(curves, infer_schema_length=None)
    return TransferTables(networks=found, curves=curve, summary=_summary(found, curve, reference, threshold))


def few_shot(
    sources: Mapping[str, Zoo],
    data: Dataset,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 3,
    seed: int = 0,
    epochs: Sequence[Epoch] = EPOCHS,
    rates: Sequence[float] = LEARNING_RATES,
    batch_size: int = 32,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> pl.DataFrame:
    """Transfer with few images of each class, for several numbers and draws of them.

    Args:
        shots: Training images of a class.
        draws: Sets of images for each number.
        seed: Of the first draw; the others follow.
        epochs: As `transfer`, and so is all that follows; the learning rate is chosen anew for every set.

    Returns:
        A row a number of shots, draw and source: the summary of `transfer`, with `shots` and `draw`.

    Raises:
        ConfigError: There are not so many images, or as `transfer`.
    """
    if draws < 1:
        raise ConfigError(f"few-shot needs at least 1 draw of images, got {draws}")
    tables = []
    for count in shots:
        for number in range(draws):
            some = few_images(data, count, seed=seed + number)
            made = transfer(
                sources, some, epochs=epochs, rates=rates, batch_size=batch_size, optimiser=optimiser,
                schedule=schedule, momentum=momentum, weight_decay=weight_decay, seed=seed + number,
            )  # fmt: skip
            about = [pl.lit(count, pl.Int64).alias("shots"), pl.lit(number, pl.Int64).alias("draw")]
            tables.append(made.summary.select(*about, pl.all()))
    return pl.concat(tables)


def _check(name: str, zoo: Zoo, data: Dataset) -> None:
    if not len(zoo):
        raise ZooError(f"the source {name!r} has no networks to train")
    zoo.require_finite("training further")
    network, _ = next(behaviour.by_activation(zoo))
    classes = getattr(network, "classes", None)
    if classes != data.classes:
        raise ConfigError(
            f"networks of {name!r} have {classes} classes and the task {data.name!r} has {data.classes}: give them a "
            "new last layer with generators.with_head"
        )


def _mean(accuracy: np.ndarray) -> dict[str, float | int | None]:
    n, mean = len(accuracy), float(accuracy.mean())
    std = float(accuracy.std(ddof=1)) if n > 1 else None
    half = None if std is None else float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / n**0.5
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"n": n, "accuracy_mean": mean, "accuracy_std": std, "accuracy_low": low, "accuracy_high": high}


def _summary(found: pl.DataFrame, curves: pl.DataFrame, reference: str, threshold: float | None) -> pl.DataFrame:
    last = found["epoch"].max()
    final = {name: found.filter(source=name, epoch=last)["accuracy"].to_numpy() for name in found["source"].unique()}
    if threshold is None and reference in final:
        threshold = float(final[reference].mean())
    rows = []
    for (name,), curve in curves.group_by("source", maintain_order=True):
        epochs, mean = curve["epoch"].to_numpy(), curve["accuracy_mean"].to_numpy()
        reached = None if threshold is None else curve.filter(pl.col("accuracy_mean") >= threshold)["epoch"].min()
        span = epochs[-1] - epochs[0]
        row = {
            "source": name,
            "learning_rate": curve["learning_rate"][0],
            "start": float(mean[0]),
            "final": float(mean[-1]),
            "area": float(np.trapezoid(mean, epochs) / span) if span else float(mean[0]),
            "threshold": threshold,
            "epochs_to_threshold": reached,
            "effect": None,
            "p_value": None,
        }
        if reference in final and name != reference:
            test = stats.mannwhitneyu(final[str(name)], final[reference])
            row["effect"] = float(test.statistic / (len(final[str(name)]) * len(final[reference])))
            row["p_value"] = float(test.pvalue)
        rows.append(row)
    maybe = {"threshold": pl.Float64, "epochs_to_threshold": pl.Float64, "effect": pl.Float64, "p_value": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=maybe, infer_schema_length=None)
