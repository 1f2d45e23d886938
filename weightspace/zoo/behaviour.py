"""What the networks of a zoo do: logits and metrics of all checkpoints, and fine-tuning, vectorised.

A zoo may mix activations; its weights are then one matrix, and forward passes run once per activation.

Axes: m checkpoint, n image, k class.
"""

from collections.abc import Collection, Iterator
from math import ceil, floor

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace import networks
from weightspace.datasets import Dataset
from weightspace.errors import ConfigError, ZooError
from weightspace.networks.optimisers import OptimiserName, Schedule
from weightspace.networks.population import (
    Epoch,
    Hyperparameters,
    population_logits,
    population_metrics,
    train_population,
    with_activation,
)
from weightspace.progress import progress_bar
from weightspace.zoo.store import Zoo


def by_activation(zoo: Zoo) -> Iterator[tuple[networks.Network, Int64[Tensor, " i"]]]:
    """The network and the positions of its checkpoints, for every activation or architecture of the zoo.

    Raises:
        ZooError: The zoo has no checkpoints, or does not say what its network is.
    """
    if not len(zoo):
        raise ZooError(f"{zoo!r} has no checkpoints to run; select some")
    several = zoo.header.get("networks")
    if several and "network" in zoo.table.columns:
        for name, place in _places(zoo.table["network"]):
            yield networks.from_json(several[name]), place
        return
    if "network" not in zoo.header:
        raise ZooError(f"{zoo!r} does not say what its network is, so it cannot be run: its header lacks it")
    network = networks.from_json(zoo.header["network"])
    if "config.activation" not in zoo.table.columns:
        yield network, torch.arange(len(zoo))
        return
    for name, place in _places(zoo.table["config.activation"]):
        yield with_activation(network, name), place


def _places(names: pl.Series) -> Iterator[tuple[str, Int64[Tensor, " i"]]]:
    for name in names.unique().sort():
        yield name, torch.from_numpy((names == name).arg_true().to_numpy().astype("int64"))


def logits(zoo: Zoo, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m n k"]:
    """Logits of every checkpoint on every image, in table order.

    Raises:
        ZooError: The zoo has no checkpoints.
        DatasetError: The images have another shape than those the zoo was trained on.
    """
    rows = zoo.weights()
    parts, places = [], []
    for network, place in by_activation(zoo):
        parts.append(population_logits(network, rows[place], images))
        places.append(place)
    return torch.cat(parts)[torch.cat(places).argsort()]


def metrics(
    zoo: Zoo, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Mean cross-entropy (nats) and accuracy (share) of every checkpoint, in table order.

    Raises:
        ZooError: The zoo has no checkpoints.
        DatasetError: The images have another shape than those the zoo was trained on.
    """
    rows = zoo.weights()
    loss, accuracy = torch.empty(len(zoo)), torch.empty(len(zoo))
    for network, place in by_activation(zoo):
        loss[place], accuracy[place] = population_metrics(network, rows[place], images, labels)
    return loss, accuracy


def training_stages(
    zoo: Zoo,
    data: Dataset,
    *,
    epochs: Epoch,
    learning_rate: float,
    batch_size: int = 32,
    checkpoints: Collection[Epoch] | None = None,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    cycles: int = 1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    label: str = "fine-tuning",
) -> Iterator[tuple[Epoch, Float[Tensor, "m p"]]]:
    """Train all checkpoints of a zoo further, without dropout, on all training images, and yield them on the way.

    Network i of any zoo gets the same batches for the same seed, so that zoos can be compared in pairs; at which epochs
    they are yielded changes nothing in their batches.

    Args:
        zoo: One checkpoint a model.
        epochs: Passes over the training images, over which the schedule goes.
        checkpoints: Epochs to yield, 0 is before training; all whole ones when missing. A fraction of an epoch is that
            of its steps, rounded up: at least one step.
        optimiser: As in a `Recipe`; so are the schedule, the momentum (of `sgd`) and the weight decay.
        cycles: Of the schedule `cosine`.

    Yields:
        Epoch, and the weights of all networks in table order.

    Raises:
        ZooError: The zoo has no checkpoints, or several of one model.
        ConfigError: The batch is larger than the data, the momentum is not in [0, 1), or the schedule cannot have so
            many cycles.
        UnknownName: There is no such optimiser or schedule.
        DatasetError: The images have another shape than those the zoo was trained on.
    """
    if len(zoo.models) < len(zoo):
        raise ZooError(f"{zoo!r} has several checkpoints of a model; fine-tune one of each, for example zoo.last()")
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum must lie in [0, 1), got {momentum}")
    kept = set(range(floor(epochs) + 1) if checkpoints is None else checkpoints)
    rows = zoo.weights()
    batches = torch.arange(len(zoo)) + (seed << 32)
    places, runs = [], []
    for network, place in by_activation(zoo):
        full = torch.ones(len(place))
        h = Hyperparameters(
            seeds=batches[place],
            learning_rate=full * learning_rate,
            weight_decay=full * weight_decay,
            dropout=full * 0,
            train_fraction=full,
            momentum=full * momentum,
        )
        places.append(place)
        runs.append(
            train_population(
                network, rows[place], h, data.train_images, data.train_labels, epochs=epochs, batch_size=batch_size,
                optimiser=optimiser, schedule=schedule, cycles=cycles, checkpoints=kept | set(range(ceil(epochs))),
            )
        )  # fmt: skip
    order = torch.cat(places).argsort()
    with progress_bar(label, ceil(epochs)) as advance:
        for stages in zip(*runs, strict=True):
            epoch = stages[0][0]
            advance(int(epoch in range(1, ceil(epochs))))
            if epoch in kept:
                yield epoch, torch.cat([trained for _, trained, _ in stages])[order]
        advance()


def fine_tune(
    zoo: Zoo,
    data: Dataset,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 32,
    checkpoints: Collection[int] | None = None,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    label: str = "fine-tuning",
) -> Zoo:
    """Train all checkpoints of a zoo further and measure them on the way, see `training_stages`.

    Args:
        zoo: One checkpoint a model.
        checkpoints: Epochs to keep, 0 is before training; all of them when missing. Whole ones, as in every zoo;
            `training_stages` has fractions, too.
        optimiser: As in a `Recipe`; so are the schedule, which goes over all epochs, the momentum (of `sgd`) and the
            weight decay.

    Returns:
        A zoo in memory with a row for each kept epoch and network: `step` is the fine-tuning epoch, `metric.*` are
        measured on validation and test images.

    Raises:
        ZooError: The zoo has no checkpoints, or several of one model.
        ConfigError: A kept epoch is never reached, or the batch is larger than the data.
        UnknownName: There is no such optimiser or schedule.
        DatasetError: The images have another shape than those the zoo was trained on.
    """
    kept = range(epochs + 1) if checkpoints is None else sorted(checkpoints)
    if not kept or not 0 <= kept[0] <= kept[-1] <= epochs:
        raise ConfigError(f"checkpoints must lie between 0 and {epochs} epochs, got {list(kept)}")
    if broken := [epoch for epoch in kept if epoch != int(epoch)]:
        raise ConfigError(f"checkpoints of a zoo are whole epochs, got {broken[0]}: take training_stages for fractions")
    config = zoo.table.select("model", pl.col("^config\\..*$"))
    tables, results = [], []
    for epoch, tuned in training_stages(
        zoo, data, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, checkpoints=kept,
        optimiser=optimiser, schedule=schedule, momentum=momentum, weight_decay=weight_decay, seed=seed, label=label,
    ):  # fmt: skip
        stage = zoo.with_weights(tuned)
        columns: dict[str, list[float]] = {}
        for part in ("validation", "test"):
            loss, accuracy = metrics(stage, getattr(data, f"{part}_images"), getattr(data, f"{part}_labels"))
            columns |= {f"metric.{part}_loss": loss.tolist(), f"metric.{part}_accuracy": accuracy.tolist()}
        tables.append(config.with_columns(pl.DataFrame(columns), step=pl.lit(int(epoch), pl.Int64)))
        results.append(tuned)
    return Zoo.in_memory(torch.cat(results), zoo.layout, pl.concat(tables), zoo.header)
