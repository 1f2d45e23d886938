"""`weightspace tasks`: a meta-zoo of many tasks, and a generator that learns from it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from weightspace.generators.dataset_conditioner import DatasetEncoderConfig
from weightspace.generators.for_data import ForDataTraining, fit_for_data, recipe_of
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
    optimisation: Annotated[ForDataTraining, Parameter(name="*")] = ForDataTraining(),  # noqa: B008 - frozen
    penalty: float = 1.0,
    class_orders: int = 1,
    alignment: bool = False,
    data_root: Path | None = None,
) -> None:
    """Learn from a meta-zoo which networks data sets have; `sample --for-data` then makes networks for new ones.

    Args:
        zoo: Folder of a meta-zoo.
        out: Folder of the generator; an interrupted training is continued there.
        penalty: Of the regression that predicts where networks lie: about 1 for new data sets, less for new tasks of
            known ones.
        class_orders: Learn from each network with its classes in so many orders.
        alignment: First train the encoder of data sets to agree with weights.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
    """
    opened = open_zoo(zoo)
    fitted = fit_for_data(
        opened, recipe_of(opened).load_images(data_root), encoder=encoder, penalty=penalty, class_orders=class_orders,
        alignment=alignment, optimisation=optimisation, folder=out,
    )  # fmt: skip
    Console().print(f"learned from {fitted.header['fit']['checkpoints']} networks: {out}", highlight=False)
