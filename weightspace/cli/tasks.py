"""`weightspace tasks`: a meta-zoo of many tasks, and a generator that makes networks for data sets never seen."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from weightspace import datasets
from weightspace.generators import DiffusionTraining
from weightspace.generators.dataset_conditioner import DatasetEncoderConfig
from weightspace.generators.diffusion import Diffusion
from weightspace.generators.for_data import fit_for_data, recipe_of, sample_for_data
from weightspace.zoo import open as open_zoo
from weightspace.zoo.backends import Backend
from weightspace.zoo.task_zoo import TaskRecipe, train_tasks


def train(
    path: Path,
    *,
    recipe: Annotated[TaskRecipe, Parameter(name="*")] = TaskRecipe(),  # noqa: B008 - frozen
    data_root: Path | None = None,
    workers: int | None = None,
    backend: Backend = "processes",
) -> None:
    """Train a meta-zoo into a folder, or finish one that was interrupted.

    Args:
        path: Folder of the zoo.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        workers: Processes; one a core by default.
        backend: Processes of this machine, or the Ray cluster of RAY_ADDRESS.
    """
    zoo = train_tasks(path, recipe, data_root=data_root, workers=workers, backend=backend)
    Console().print(f"{len(zoo.models)} networks, each on its own task: {path}", highlight=False)


def fit(
    zoo: Path,
    *,
    out: Path = Path("for-data"),
    encoder: Annotated[DatasetEncoderConfig, Parameter(name="*")] = DatasetEncoderConfig(),  # noqa: B008 - frozen
    optimisation: Annotated[DiffusionTraining, Parameter(name="*")] = DiffusionTraining(),  # noqa: B008 - frozen
    class_orders: int = 1,
    alignment: bool = False,
    data_root: Path | None = None,
) -> None:
    """Learn from a meta-zoo which networks data sets have; `sample --for-data` then makes networks for new ones.

    Args:
        zoo: Folder of a meta-zoo.
        out: Folder of the generator; an interrupted training is continued there.
        class_orders: Learn from each network with its classes in so many orders.
        alignment: First train the encoder of data sets to agree with weights.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
    """
    opened = open_zoo(zoo)
    fitted = fit_for_data(
        opened, recipe_of(opened).load_images(data_root), encoder=encoder, class_orders=class_orders,
        alignment=alignment, optimisation=optimisation, folder=out,
    )  # fmt: skip
    Console().print(f"learned from {fitted.header['fit']['checkpoints']} networks: {out}", highlight=False)


def sample(
    generator: Path,
    for_data: str,
    *,
    out: Path,
    classes: tuple[int, ...] = (),
    n: int = 16,
    candidates: int | None = None,
    guidance: float = 1.0,
    data_root: Path | None = None,
    data_seed: int = 0,
    seed: int = 0,
) -> None:
    """Generate networks for a data set, keep the best on its validation images, and save them as a zoo.

    Args:
        generator: Folder of a generator that `weightspace tasks fit` made.
        for_data: Folder of images, or a data set in the data root; read in grey and at the size of the meta-zoo.
        out: Folder of the new zoo.
        classes: Which of its classes the networks tell apart, in the order of their outputs; all by default.
        n: Networks to keep.
        candidates: Networks to draw; four times as many by default.
        guidance: How far to go towards the data set: 1 as learned, more beyond.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Seed of the cut into training, validation and test images.
        seed: Seed of the draws.
    """
    fitted = Diffusion.from_pretrained(generator)
    side = fitted.header["dataset"]["image_shape"][1]
    data = datasets.load(for_data, data_root, seed=data_seed, grey=True, side=side)
    data = datasets.some_classes(data, classes) if classes else data
    drawn = sample_for_data(fitted, data, n, candidates=candidates, guidance=guidance, seed=seed)
    drawn.save(out)
    accuracy = drawn.table["metric.validation_accuracy"]
    Console().print(
        f"{n} networks, right about {accuracy.mean():.3f} of the validation images of {data.name}: {out}",
        highlight=False,
    )
