"""Distilling an ensemble into one network (Hinton et al., 2015; "Manifold hypernetwork", section 8).

    loss = τ² KL(p̄_τ ‖ p_student,τ) + a CE(labels)

with p̄ the mean of the members' probabilities and p_τ ∝ p^(1/τ). Its control is the same student, from the same start,
with the same batches and steps, on labels alone.

Axes: n image, k class.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import training
from weightspace.datasets import Dataset
from weightspace.errors import ConfigError
from weightspace.evaluation.calibration import tempered
from weightspace.evaluation.ensembles import Ensemble, scores
from weightspace.training import History, TrainingConfig

_IMAGES_AT_ONCE = 1000

Batch = tuple[Tensor, Tensor, Tensor]
"""Images, labels, and the teacher's probabilities."""


@dataclass(frozen=True, kw_only=True)
class StudentTraining(TrainingConfig):
    """How students are trained, those of labels alone included.

    >>> StudentTraining().epochs
    60
    """

    epochs: int = 60
    batch_size: int = 48
    learning_rate: float = 3e-3
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What the student learns from.

    >>> DistillationConfig(temperature=0.0)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: temperature must be positive, got 0.0
    """

    temperature: float = 2.0
    """τ: above 1, the less likely classes count more."""
    label_weight: float = 0.1
    """a, of the cross-entropy with the labels."""
    members: int | None = 16
    """Members that are drawn anew for each batch; all of them, in one pass before training, when missing."""

    def __post_init__(self):
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")
        if self.label_weight < 0:
            raise ConfigError(f"label_weight must be at least 0, got {self.label_weight}")
        if self.members is not None and self.members < 1:
            raise ConfigError(f"members must be at least 1, got {self.members}")


def distillation_loss(
    logits: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    config: DistillationConfig,
) -> dict[str, Float[Tensor, ""]]:
    """Loss of the equation above, and its parts.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> alike = distillation_loss(logits, logits.softmax(1), torch.tensor([1]), DistillationConfig(label_weight=0.0))
    >>> abs(float(alike["loss"])) < 1e-6
    True
    """
    tau = config.temperature
    target = tempered(teacher, tau)
    divergence = tau**2 * F.kl_div((logits / tau).log_softmax(1), target, reduction="batchmean")
    cross_entropy = F.cross_entropy(logits, labels)
    loss = divergence + config.label_weight * cross_entropy
    return {"loss": loss, "divergence": divergence, "cross_entropy": cross_entropy}


def distill(
    ensemble: Ensemble,
    student: nn.Module,
    data: Dataset,
    *,
    config: DistillationConfig = DistillationConfig(),
    optimisation: TrainingConfig = StudentTraining(),
    folder: Path | str | None = None,
) -> History:
    """Train a student in place on what an ensemble says about the training images.

    The epoch with the fewest wrong predictions on validation images is kept.

    Args:
        ensemble: The teacher.
        student: Any module from images to logits, as it is to start.
        folder: Where the training is logged, and continued if it was interrupted.

    Returns:
        A dictionary an epoch.

    Raises:
        ConfigError: A batch is larger than the training images.
        DatasetError: The images have another shape than the ensemble's.

    >>> from weightspace import datasets, networks
    >>> teacher = Ensemble.of_rows(torch.randn(5, 1060), networks.MLP())
    >>> short = TrainingConfig(epochs=1, accelerator="cpu")
    >>> len(distill(teacher, networks.CNN().build(), datasets.load("digits"), optimisation=short))
    1
    """
    everything = ensemble.predict(data.train_images) if config.members is None else None

    def teach(generator: torch.Generator, chosen: Tensor) -> Tensor:
        if everything is not None:
            return everything[chosen]
        drawn = torch.randint(len(ensemble), (config.members or len(ensemble),), generator=generator)
        fresh = replace(ensemble, zoo=ensemble.zoo.take(drawn))
        return fresh.predict(data.train_images[chosen])

    identity = repr((config, data.digest, ensemble.zoo.digest, ensemble.temperature))
    return _train(
        student, data, teach, lambda logits, batch: distillation_loss(logits, batch[2], batch[1], config),
        optimisation, folder, identity,
    )  # fmt: skip


def train_on_labels(
    student: nn.Module,
    data: Dataset,
    *,
    optimisation: TrainingConfig = StudentTraining(),
    folder: Path | str | None = None,
) -> History:
    """Train a network in place on labels alone, with the batches, steps and choice of the epoch of `distill`.

    Raises:
        ConfigError: A batch is larger than the training images.
    """

    def nothing(generator: torch.Generator, chosen: Tensor) -> Tensor:
        return torch.zeros(len(chosen), data.classes)

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(logits, batch[1])}

    return _train(student, data, nothing, loss, optimisation, folder, repr(("labels", data.digest)))


def distillation(
    ensemble: Ensemble,
    build: Callable[[], nn.Module],
    data: Dataset,
    *,
    seeds: Sequence[int] = range(5),
    config: DistillationConfig = DistillationConfig(),
    optimisation: TrainingConfig = StudentTraining(),
) -> pl.DataFrame:
    """The protocol: single members, their ensemble, students distilled from it, and students of labels alone.

    Args:
        build: Makes a student; called under each seed for its initial weights, twice with equal ones.
        seeds: Of the students' initial weights and batches.

    Returns:
        A row a network on test images: model, seed (null for members and ensemble), accuracy, nll, brier, ece; single
        members are averaged.
    """
    images, labels = data.test_images, data.test_labels
    rules = ensemble.evaluate(images, labels).filter(pl.col("rule").is_in(["single", "mean"]))
    names = {"single": "single member", "mean": f"ensemble of {len(ensemble)}"}
    rows = [{"model": names[row.pop("rule")], "seed": None} | row for row in rules.drop("members").to_dicts()]
    for seed in seeds:
        seeded = replace(optimisation, seed=seed)
        for name in ("distilled", "labels alone"):
            with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from torch's own generator
                torch.manual_seed(seed)
                student = build()
            if name == "distilled":
                distill(ensemble, student, data, config=config, optimisation=seeded)
            else:
                train_on_labels(student, data, optimisation=seeded)
            found = scores(_probabilities(student, images)[None], labels)
            rows.append({"model": name, "seed": seed} | {key: float(value) for key, value in found.items()})
    return pl.DataFrame(rows, schema_overrides={"seed": pl.Int64}, infer_schema_length=None)


@torch.no_grad()
def _probabilities(student: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    student.eval()
    return torch.cat([student(x).softmax(1) for x in images.split(_IMAGES_AT_ONCE)])


def _train(
    student: nn.Module,
    data: Dataset,
    teach: Callable[[torch.Generator, Tensor], Tensor],
    loss: Callable[[Tensor, Batch], dict[str, Tensor]],
    optimisation: TrainingConfig,
    folder: Path | str | None,
    identity: str,
) -> History:
    """Train on batches of shuffled training images; wrong predictions on validation images choose the epoch."""
    size = optimisation.batch_size
    if size > len(data.train_labels):
        raise ConfigError(f"batch_size must be at most the {len(data.train_labels)} training images, got {size}")
    count = len(data.train_labels) // size

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(data.train_labels), generator=generator)
        # what a teacher draws must not change the order of the next epoch, which the control has, too
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for chosen in order[: count * size].split(size):
            yield data.train_images[chosen], data.train_labels[chosen], teach(own, chosen)

    def validation(generator: torch.Generator) -> Iterator[Batch]:
        # one batch: parts of unequal size would not average to the share of all images
        yield data.validation_images, data.validation_labels, torch.empty(0)

    def parts(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = module(batch[0])
        if module.training:
            return loss(logits, batch)
        wrong = (logits.argmax(1) != batch[1]).float().mean()
        return {"loss": wrong, "cross_entropy": F.cross_entropy(logits, batch[1])}

    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(optimisation.seed)  # of the student's dropout, which draws from torch's own generator
        return training.train(
            student, parts, batches, count, validation, optimisation, Path(folder or scratch),
            label="training the student", identity=identity,
        )  # fmt: skip
