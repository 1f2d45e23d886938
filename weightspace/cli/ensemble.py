"""`weightspace ensemble` and `weightspace distill`."""

from pathlib import Path
from typing import Annotated

import polars as pl
import torch
from cyclopts import Parameter
from rich.console import Console

from weightspace import datasets, networks
from weightspace.cli.evaluate import images_of, require_same, show
from weightspace.datasets import Dataset
from weightspace.errors import ZooError
from weightspace.evaluation.distillation import DistillationConfig, StudentTraining, distillation
from weightspace.evaluation.ensembles import MEMBERS, Ensemble
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo


def ensemble(
    zoo: Path,
    *,
    data: str | None = None,
    out: Path = Path("tables"),
    members: tuple[int, ...] = MEMBERS,
    select: int | None = None,
    outliers: tuple[str, ...] = (),
    data_root: Path | None = None,
    seed: int = 0,
) -> None:
    """Let the networks of a zoo answer together: accuracy, calibration, disagreement, on test images.

    Args:
        zoo: Folder of a zoo, of trained or of generated networks; the last checkpoint of each model answers.
        data: Images; those that the zoo was trained on by default.
        out: Folder for ensemble.csv and ensemble_curve.csv.
        members: Sizes of the ensembles on the curve.
        select: Choose so many members greedily on validation images first.
        outliers: Data sets of another kind, which the ensemble should be uncertain about.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        seed: Seed of the members on the curve, and of the cut of images that no recipe gives.
    """
    population = open_zoo(zoo)
    images = _images(population, data, data_root, seed)
    whole = Ensemble(population.last().finite())
    if select is not None:
        whole = whole.selected(images.validation_images, images.validation_labels, select)
    whole = whole.calibrated(images.validation_images, images.validation_labels)
    table = whole.evaluate(images.test_images, images.test_labels).with_columns(
        pl.lit(whole.temperature).alias("temperature"),
        pl.lit(whole.combine(images.test_images).disagreement).alias("disagreement"),
    )
    for name in outliers:
        others = datasets.load(name, data_root).test_images
        auroc = whole.outlier_auroc(images.test_images, others)
        table = table.with_columns(pl.lit(auroc).alias(f"auroc_{name}"))
    curve = whole.curve(
        images.test_images, images.test_labels, generator=torch.Generator().manual_seed(seed), members=members
    )
    out.mkdir(parents=True, exist_ok=True)
    table.write_csv(out / "ensemble.csv")
    curve.write_csv(out / "ensemble_curve.csv")
    facts = [name for name in table.columns if name not in ("rule", "members", "accuracy", "nll", "brier", "ece")]
    show(table.select("rule", "accuracy", "nll", "brier", "ece"), f"{len(whole)} networks ({out})")
    Console().print(", ".join(f"{name} {table[name][0]:.3f}" for name in facts), highlight=False)
    show(curve, "mean of more and more members")


def distill(
    zoo: Path,
    *,
    student: str = "mlp",
    data: str | None = None,
    out: Path = Path("tables"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    config: Annotated[DistillationConfig, Parameter(name="*")] = DistillationConfig(),  # noqa: B008 - frozen
    optimisation: Annotated[StudentTraining, Parameter(name="*")] = StudentTraining(),  # noqa: B008 - frozen
    data_root: Path | None = None,
    data_seed: int = 0,
) -> None:
    """Train one network on what the networks of a zoo say together, beside the same network trained on labels.

    Args:
        zoo: Folder of a zoo, of trained or of generated networks; the last checkpoint of each model teaches.
        student: Preset of the student: mlp, cnn, cnn_s, cnn_l or resnet18.
        data: Images; those that the zoo was trained on by default.
        out: Folder for distillation.csv.
        seeds: Seeds of students: initial weights and batches; they take the place of `--seed`.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Seed of the cut into training, validation and test images.
    """
    population = open_zoo(zoo)
    images = _images(population, data, data_root, data_seed)
    network = networks.by_name(student, images.image_shape, images.classes)
    teacher = Ensemble(population.last().finite())
    table = distillation(teacher, network.build, images, seeds=seeds, config=config, optimisation=optimisation)
    out.mkdir(parents=True, exist_ok=True)
    table.write_csv(out / "distillation.csv")
    summary = table.group_by("model", maintain_order=True).agg(pl.mean("accuracy", "nll", "brier", "ece"))
    show(summary, f"on test images ({out})")


def _images(zoo: Zoo, name: str | None, data_root: Path | None, seed: int) -> Dataset:
    """The images of a name, or else those that a zoo was made with."""
    known = (zoo.header.get("dataset") or {}).get("name")
    if name is None and "recipe" in zoo.header:
        return images_of(zoo, data_root)
    name = name or known
    if name is None:
        raise ZooError(f"zoo {zoo.path} does not say which images it was made with: name them with --data")
    data = datasets.load(name, data_root, seed=seed)
    if known == data.name:
        require_same(zoo, data)
    return data
