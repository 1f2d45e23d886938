"""`weightspace predict`, `weightspace evaluate` and the parts of it that need no encoder."""

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from weightspace import datasets, encoders, evaluation
from weightspace.datasets import Dataset
from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.errors import DatasetError, ZooError
from weightspace.evaluation.fine_tuning import LEARNING_RATES
from weightspace.evaluation.transfer import EPOCHS
from weightspace.networks.optimisers import OptimiserName, Schedule
from weightspace.report import layers_picture
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo


def predict(
    encoder: Path,
    zoo: Path,
    *,
    targets: tuple[str, ...] = (),
    others: tuple[Path, ...] = (),
    layers: bool = False,
    out: Path = Path("tables"),
    split_seed: int = 0,
) -> None:
    """Predict properties of the zoo's test models from embeddings and from simple baselines.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo that it was fitted on.
        targets: Columns such as metric.test_accuracy or config.learning_rate; all of them by default.
        others: Folders of other zoos, whose test models are predicted with the same probes, into shifted.csv.
        layers: Also probe each layer alone, into layers.csv and layers.png.
        out: Folder for properties.csv and predictions.csv.
        split_seed: Seed of the split that the encoder was fitted with.
    """
    fitted, population = encoders.load(encoder), open_zoo(zoo)
    scores, predictions = evaluation.properties(fitted, population, targets, seed=split_seed)
    elsewhere = {str(path): open_zoo(path) for path in others}
    shifted = evaluation.shifted_properties(fitted, population, elsewhere, targets, seed=split_seed) if others else None
    by_layer = (
        evaluation.layers(encoders.load_autoencoder(encoder), population, targets, seed=split_seed) if layers else None
    )
    out.mkdir(parents=True, exist_ok=True)
    scores.write_csv(out / "properties.csv")
    predictions.write_csv(out / "predictions.csv")
    if shifted is not None:
        shifted.write_csv(out / "shifted.csv")
        show(shifted.filter(pl.col("metric").is_in(["r2", "kendall_tau", "accuracy"])).drop("n_train"), "in other zoos")
    if by_layer is not None:
        by_layer.write_csv(out / "layers.csv")
        layers_picture(by_layer, out / "layers.png")
    shown = scores.filter(pl.col("metric").is_in(["r2", "kendall_tau", "accuracy", "majority"]))
    wide = shown.pivot("metric", index=["target", "representation", "probe"], values="value")
    show(wide, f"properties of unseen models ({out})")


def evaluate(
    samples: Path,
    encoder: Path,
    zoo: Path,
    *,
    out: Path = Path("tables"),
    epochs: tuple[int, ...] = (0, 1, 5),
    best: float = evaluation.PROMPTS,
    learning_rate: float | None = None,
    data_root: Path | None = None,
    split_seed: int = 0,
) -> None:
    """Measure generated networks beside noise, averages, random initialisation and held-out networks.

    Args:
        samples: Folder of the generated networks.
        encoder: Folder of the encoder that they were generated with.
        zoo: Folder of the zoo that it was fitted on.
        out: Folder for networks.csv, generation.csv, novelty.csv and ensembles.csv.
        epochs: Epochs of fine-tuning after which to measure; 0 is as generated.
        best: Share of the best training models that were the prompts.
        learning_rate: For fine-tuning; chosen on validation images for each source by default.
        data_root: Folder of image data sets.
        split_seed: Seed of the split that the encoder was fitted with.
    """
    population = open_zoo(zoo)
    data = images_of(population, data_root)
    tables = evaluation.generation(
        open_zoo(samples), encoders.load_autoencoder(encoder), population, data, fraction=best, epochs=epochs,
        learning_rate=learning_rate, seed=split_seed,
    )  # fmt: skip
    tables.save(out)
    show(tables.generation.drop("learning_rate"), "test accuracy by epoch of fine-tuning")
    show(tables.novelty.select("source", "distance_ratio_50", "z_u", "max_iou", "sd_ratio", "verdict"), "novelty")


def novelty(
    networks: Path,
    zoo: Path,
    *,
    out: Path = Path("tables"),
    best: float = evaluation.PROMPTS,
    data_root: Path | None = None,
    split_seed: int = 0,
) -> None:
    """Say whether networks are copies or averages of a zoo's training networks, beside held-out networks and noise.

    Args:
        networks: Folder of generated networks, of the zoo's architecture.
        zoo: Folder of the zoo that they are said to be new to; every checkpoint of its training models could have been
            copied.
        out: Folder for novelty_networks.csv and novelty.csv.
        best: Share of the best training and test models that say what is usual.
        data_root: Folder of image data sets.
        split_seed: Seed of the split that the generator was fitted with.
    """
    population = open_zoo(zoo)
    data = images_of(population, data_root)
    tables = evaluation.novelty_audit(open_zoo(networks), population, data, fraction=best, seed=split_seed)
    out.mkdir(parents=True, exist_ok=True)
    tables.novelty.write_csv(out / "novelty.csv")
    tables.networks.write_csv(out / "novelty_networks.csv")
    accuracy = tables.generation.select("source", "accuracy_mean")
    shown = tables.novelty.join(accuracy, on="source", maintain_order="left")
    columns = ("accuracy_mean", "distance_ratio_50", "z_u", "max_iou", "sd_ratio", "nap_50", "verdict")
    show(shown.select("source", *columns), f"novelty ({out})")


def transfer(
    networks: Path,
    zoo: Path,
    *,
    data: str | None = None,
    shots: tuple[int, ...] = (),
    draws: int = 3,
    epochs: tuple[float, ...] = EPOCHS,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    batch_size: int = 32,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    best: float = evaluation.PROMPTS,
    out: Path = Path("tables"),
    data_root: Path | None = None,
    data_seed: int = 0,
    train_limit: int | None = None,
    split_seed: int = 0,
    seed: int = 0,
) -> None:
    """Train generated networks for a task, beside random initialisation, zoo models and their averages.

    Args:
        networks: Folder of generated networks.
        zoo: Folder of the zoo that they were generated from.
        data: Images of the task, in the size of the zoo's; those of the zoo by default.
        shots: Train with so many images of each class, for each of these numbers, instead of with all.
        draws: Sets of images for each number of shots.
        epochs: When to measure; 0 is before training, 0.1 after a tenth of the steps of an epoch, rounded up.
        learning_rates: Each source has the one of these that validation images choose.
        batch_size: Images in a step.
        optimiser: Trains every source; those of zoo train, so that networks can be trained as their zoo was.
        schedule: How the learning rate changes from the start to the last epoch.
        momentum: Of SGD.
        weight_decay: Coefficient of the L2 penalty (of adamw: of its decay).
        best: Share of the best training and test models that are compared.
        out: Folder for the tables: transfer_curves.csv and others, or few_shot.csv.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Seed of the cut of the task's images.
        train_limit: Training images of the task; all by default.
        split_seed: Seed of the split that the generator was fitted with.
        seed: Seed of draws and batches.
    """
    population = open_zoo(zoo)
    recipe = population.header.get("recipe") or {}
    shape = {key: recipe[key] for key in ("grey", "side", "crop") if key in recipe}
    task = (
        images_of(population, data_root)
        if data is None
        else datasets.load(data, data_root, train_limit=train_limit, seed=data_seed, **shape)
    )
    train, _, test = population.split(split_seed)
    prompts, heldout = evaluation.best_prompts(train, best), evaluation.best_prompts(test, best)
    reference = training_reference(train.finite())
    sources = evaluation.initialisations(
        open_zoo(networks), task, prompts=prompts, heldout=heldout, align=lambda some: aligned_rows(some, reference),
        seed=seed,
    )  # fmt: skip
    common: dict[str, Any] = {
        "epochs": epochs, "rates": learning_rates, "batch_size": batch_size, "optimiser": optimiser,
        "schedule": schedule, "momentum": momentum, "weight_decay": weight_decay, "seed": seed,
    }  # fmt: skip
    if shots:
        table = evaluation.few_shot(sources, task, shots=shots, draws=draws, **common)
        out.mkdir(parents=True, exist_ok=True)
        table.write_csv(out / "few_shot.csv")
        means = table.group_by("shots", "source", maintain_order=True).agg(pl.mean("start", "final", "area", "effect"))
        show(means, f"few images of each class ({out})")
        return
    tables = evaluation.transfer(sources, task, **common)
    tables.save(out)
    curve = tables.curves.pivot("epoch", index="source", values="accuracy_mean")
    curve = curve.rename(lambda name: name if name == "source" else f"{float(name):g}")
    show(curve, f"test accuracy by epoch of training on {task.name} ({out})")
    show(tables.summary.drop("threshold"), "summary")


def images_of(zoo: Zoo, data_root: Path | None) -> Dataset:
    """The images that the zoo was trained on."""
    recipe = zoo.header.get("recipe")
    if not isinstance(recipe, dict) or "data" not in recipe:
        raise ZooError(f"zoo {zoo.path} does not say which images it was trained on: its header has no recipe")
    data = datasets.load(
        recipe["data"], data_root, train_limit=recipe.get("train_limit"), seed=recipe.get("seed", 0),
        grey=recipe.get("grey", False), side=recipe.get("side"), crop=recipe.get("crop", False),
    )  # fmt: skip
    require_same(zoo, data)
    return data


def require_same(zoo: Zoo, data: Dataset) -> None:
    """Refuse images other than those that the zoo was trained on: its training images could be test images here."""
    known = zoo.header.get("dataset") or {}
    if known.get("digest") not in (None, data.digest):
        raise DatasetError(
            f"zoo {zoo.path} was trained on other images of {data.name!r}: of shape {known.get('image_shape')} "
            f"and digest {known['digest']}, found {list(data.image_shape)} and {data.digest}; give their --data-root"
        )


def show(frame: pl.DataFrame, title: str) -> None:
    """Print a table with three decimals."""
    table = Table(title=title, title_justify="left")
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in frame.rows():
        table.add_row(*("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    Console().print(table)
