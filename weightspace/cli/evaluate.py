"""`weightspace predict` and `weightspace evaluate`."""

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from weightspace import datasets, encoders, evaluation
from weightspace.datasets import Dataset
from weightspace.errors import DatasetError, ZooError
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo


def predict(
    encoder: Path, zoo: Path, *, targets: tuple[str, ...] = (), out: Path = Path("tables"), split_seed: int = 0
) -> None:
    """Predict properties of the zoo's test models from embeddings and from simple baselines.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo that it was fitted on.
        targets: Columns such as metric.test_accuracy or config.learning_rate; all of them by default.
        out: Folder for properties.csv and predictions.csv.
        split_seed: Seed of the split that the encoder was fitted with.
    """
    scores, predictions = evaluation.properties(encoders.load(encoder), open_zoo(zoo), targets, seed=split_seed)
    out.mkdir(parents=True, exist_ok=True)
    scores.write_csv(out / "properties.csv")
    predictions.write_csv(out / "predictions.csv")
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
