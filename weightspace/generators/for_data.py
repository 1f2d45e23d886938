"""Networks for data sets that no network was trained on: D2NWG on a meta-zoo of small networks.

    meta-zoo → principal components → diffusion around the networks that a ridge regression predicts, under a condition
        made of labelled examples
    a data set → its examples → candidates → those that do best on its validation images

Source: Soro et al., ICLR 2025, arXiv 2402.18153; the best of the candidates are chosen on validation images here, where
the paper chose on test images.

Axes: n network, g class of all training data sets, e, v image of a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.encoders.pretrained import structure
from weightspace.errors import ConfigError, ZooError
from weightspace.generators.anchored import AnchoredDenoiser
from weightspace.generators.dataset_conditioner import (
    DatasetConditioner,
    DatasetEncoderConfig,
    align_with_weights,
)
from weightspace.generators.denoisers import MLPDenoiser
from weightspace.generators.denoising import DDPM
from weightspace.generators.diffusion import Diffusion, DiffusionConfig, DiffusionTraining
from weightspace.generators.image_features import ComponentFeatures, Features
from weightspace.generators.spaces import Components, Space
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo, behaviour
from weightspace.zoo.task_zoo import SPLIT, TaskRecipe
from weightspace.zoo.tasks import TaskImages, tasks_of, with_class_orders

FEATURES = 64
"""Principal components of images."""


def recipe_of(zoo: Zoo) -> TaskRecipe:
    """The recipe that a meta-zoo was trained by.

    Raises:
        ZooError: It is no meta-zoo.
    """
    content = zoo.header.get("recipe")
    if not isinstance(content, dict) or "train_images" not in content:
        raise ZooError(f"{zoo!r} is no meta-zoo: make one with `weightspace tasks train`")
    return structure(content, TaskRecipe)


def training_images(zoo: Zoo, images: TaskImages) -> tuple[Float[Tensor, "g e c h w"], Float[Tensor, "g v c h w"]]:
    """Training and validation images of the classes that some networks were trained on, by class."""
    classes = images.numbers(tasks_of(zoo)).unique()
    return images.train[classes], images.validation[classes]


def task_images(
    generator: Diffusion, name: str, root: Path | None = None, *, seed: int = 0, classes: Sequence[int] = ()
) -> Dataset:
    """A data set as the networks of a generator see images: in grey, and in the size of the meta-zoo.

    Args:
        name: As `datasets.load` knows it: a name, a folder or a file.
        root: Folder of image data sets.
        seed: Seed of the cut into training, validation and test images.
        classes: Which classes, in the order of the outputs; all when empty.

    Raises:
        DatasetError: The images cannot be read, or lack a class.
        ConfigError: The generator was not fitted on data sets.
    """
    require_data_sets(generator)
    data = datasets.load(name, root, seed=seed, grey=True, side=generator.header["dataset"]["image_shape"][1])
    return datasets.some_classes(data, classes) if classes else data


def require_data_sets(generator: Diffusion) -> None:
    """Refuse a generator whose condition is something else.

    Raises:
        ConfigError: It was not fitted on data sets.
    """
    if not isinstance(generator.conditioner, DatasetConditioner):
        raise ConfigError(
            "this generator was not fitted on data sets, so it cannot make networks for one: `weightspace tasks fit` "
            "makes one that can"
        )


def for_data_config() -> DiffusionConfig:
    """Diffusion of moderate size around the networks that a regression predicts, for a few thousand parameters."""
    return DiffusionConfig(
        process=DDPM(target="data", schedule="cosine", eta=0.0, sampling_steps=20),
        denoiser=AnchoredDenoiser(denoiser=MLPDenoiser(width=128, depth=2)),
        average=0.99,
        dropped=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class ForDataTraining(DiffusionTraining):
    """How denoiser and encoder of data sets are trained: defaults of 1000 steps.

    >>> ForDataTraining().epochs
    10
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3


def fit_for_data(
    zoo: Zoo,
    images: TaskImages,
    *,
    features: Features | None = None,
    encoder: DatasetEncoderConfig = DatasetEncoderConfig(),  # noqa: B008 - frozen
    space: Space | None = None,
    penalty: float = 1.0,
    class_orders: int = 1,
    alignment: bool = False,
    config: DiffusionConfig | None = None,
    optimisation: TrainingConfig = ForDataTraining(),
    folder: Path | str | None = None,
) -> Diffusion:
    """Learn which networks data sets have, from the training tasks of a meta-zoo; validation tasks choose the epoch.

    Args:
        zoo: A meta-zoo; the last checkpoint of each network is used.
        images: Of its tasks, `recipe_of(zoo).load_images(root)`.
        features: What images are described by; principal components of the training classes' images when missing.
        space: Where networks are generated, fitted on training tasks; principal components when missing.
        penalty: Of the regression that predicts where networks lie, in means of the diagonal of the covariance of class
            means: about 1 for new data sets, less for new tasks of known ones.
        class_orders: How often each network is learned from, with its classes in so many orders.
        alignment: First train the encoder of data sets to agree with weights, as CLIP does, with the same optimisation.
        config: `for_data_config()` when missing.
        folder: Where everything is saved; an interrupted training continues there.

    Returns:
        A generator whose condition is a data set: `fitted.sample(8, condition=data)`.

    Raises:
        ZooError: The zoo has no training or no validation tasks.
    """
    if SPLIT not in zoo.table.columns:
        raise ZooError(f"{zoo!r} is no meta-zoo: make one with `weightspace tasks train`")
    final = zoo.last()
    train, validation = (final.where(pl.col(SPLIT) == split) for split in ("train", "validation"))
    if not len(train) or not len(validation):
        raise ZooError(f"{zoo!r} needs training tasks and validation tasks to learn from, and has only one of them")
    own, _ = training_images(train, images)
    common = recipe_of(zoo).common_init
    if class_orders > 1:
        train = with_class_orders(train, class_orders, torch.Generator().manual_seed(optimisation.seed))
    if features is None:
        pixels = own.flatten(0, 1)
        features = ComponentFeatures.fit(pixels, min(FEATURES, *pixels.flatten(1).shape))
    if space is None:
        # units that began alike are alike already
        space = Components.fit(train, whiten=False, align=not common, seed=optimisation.seed)
    config = config or for_data_config()
    anchor = prod(space.shape) if isinstance(config.denoiser, AnchoredDenoiser) else 0
    conditioner = DatasetConditioner(
        features, images, classes=recipe_of(zoo).classes, config=encoder, anchor=anchor,
        seed=optimisation.seed,
    )  # fmt: skip
    if anchor:
        conditioner.anchor_to(train, space.encode(train).flatten(1), penalty=penalty)
    if alignment:
        align_with_weights(conditioner, train, validation=validation, space=space, optimisation=optimisation)
    return Diffusion.fit(
        train, validation=validation, space=space, condition=conditioner, config=config, optimisation=optimisation,
        folder=folder,
    )  # fmt: skip


def sample_for_data(
    generator: Diffusion,
    data: Dataset,
    n: int,
    *,
    candidates: int | None = None,
    guidance: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
) -> Zoo:
    """Generate networks for a data set, and keep those that do best on its validation images.

    Args:
        generator: Of `fit_for_data`.
        data: Any data set with as many classes as the tasks of the meta-zoo, in images of the same shape.
        candidates: Networks to draw; four times `n` when missing, `n` chooses nothing.

    Returns:
        A zoo in memory, the best first, with `metric.validation_accuracy` and `metric.validation_loss`.

    Raises:
        ConfigError: There are fewer candidates than networks, or the generator was not fitted on data sets.
        DatasetError: The data set does not fit the generator.
    """
    require_data_sets(generator)
    candidates = 4 * n if candidates is None else candidates
    if candidates < n:
        raise ConfigError(f"{n} networks cannot be chosen from {candidates} candidates: draw more")
    drawn = generator.sample(candidates, condition=data, guidance=guidance, steps=steps, seed=seed)
    loss, accuracy = behaviour.metrics(drawn, data.validation_images, data.validation_labels)
    drawn = drawn.with_columns(
        **{
            "config.dataset": [data.name] * len(drawn),
            "config.candidates": [candidates] * len(drawn),
            "metric.validation_accuracy": accuracy.tolist(),
            "metric.validation_loss": loss.tolist(),
        }
    )
    order = sorted(range(candidates), key=lambda i: (-float(accuracy[i]), float(loss[i])))
    return drawn.take(order[:n])
