"""Data sets as conditions of generated networks (D2NWG, Soro et al., ICLR 2025, arXiv 2402.18153, made order-aware).

    examples of a class → features → set encoder → class vector
    class vectors in the order of the head, each with a code of its place → condition

The published encoder ignores the order of the classes, but a head does not: without the order its outputs mean nothing.
Examples are drawn afresh in every step of training. "Diffusion generators", sections 4.2 and 6.

Axes: b network, k class of a task in head order, e example, f feature, g class of all training data sets, w width,
c condition, d value of a point.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import polars as pl
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import training
from weightspace.datasets import Dataset
from weightspace.encoders.pretrained import structure
from weightspace.errors import ConfigError, DatasetError, unknown_name
from weightspace.generators.conditions import CONDITIONERS
from weightspace.generators.image_features import Features, features_from_json
from weightspace.generators.set_transformer import AttentionBlock, InducedBlock, Pooling, draw_set_weights
from weightspace.generators.spaces import Space
from weightspace.networks import streams
from weightspace.training import History, TrainingConfig
from weightspace.zoo import Zoo
from weightspace.zoo.tasks import TaskImages, class_images, planned_tasks

SetEncoder = Literal["attention", "moments"]
LENGTH = 3.0
"""Of the vectors that are aligned: the largest difference of two logits is twice its square."""
_DRAW = 77  # stream of the examples


@dataclass(frozen=True, kw_only=True)
class DatasetEncoderConfig:
    """Sizes of the encoder of data sets.

    >>> DatasetEncoderConfig(width=5)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: width 5 must be a multiple of the 2 heads
    """

    sets: SetEncoder = "moments"
    """What becomes of the examples of a class: attention through inducing points beside their mean, or their mean and
    the logarithm of their deviation alone."""
    examples: int = 100
    """Of each class, in training and when networks are asked for; all where there are fewer."""
    width: int = 64
    heads: int = 2
    inducing: int = 16
    """Inducing points."""
    depth: int = 2
    """Blocks of attention among the examples of a class."""
    ordered: bool = True
    """Tell classes apart by their place in the head; otherwise as published, where their order is lost."""
    output: int = 64
    """Values of the condition, beside an anchor."""

    def __post_init__(self):
        if self.sets not in get_args(SetEncoder):
            raise unknown_name("set encoder", self.sets, get_args(SetEncoder))
        if min(self.examples, self.width, self.heads, self.inducing, self.depth, self.output) < 1:
            raise ConfigError(f"all sizes of an encoder of data sets must be at least 1, got {self}")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of the {self.heads} heads")


class DatasetEncoder(nn.Module):
    """Features of labelled examples to a condition.

    >>> encoder = DatasetEncoder(DatasetEncoderConfig(output=8), features=5, classes=4)
    >>> encoder(torch.zeros(2, 4, 20, 5)).shape
    torch.Size([2, 8])
    """

    def __init__(self, config: DatasetEncoderConfig, *, features: int, classes: int):
        super().__init__()
        self.config = config
        width = config.width
        self.moments = nn.Linear(2 * features if config.sets == "moments" else features, width)
        if config.sets == "attention":
            self.enter = nn.Linear(features, width)
            self.within = nn.Sequential(
                *(InducedBlock(width, config.heads, config.inducing) for _ in range(config.depth))
            )
            self.pool = Pooling(width, config.heads)
        self.across = AttentionBlock(width, config.heads)
        if config.ordered:
            self.places = nn.Parameter(torch.zeros(classes, width))
            self.leave = nn.Linear(classes * width, config.output)
        else:
            self.gather = Pooling(width, config.heads)
            self.leave = nn.Linear(width, config.output)

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights."""
        draw_set_weights(self, generator)
        if self.config.ordered:
            nn.init.normal_(self.places, generator=generator)

    def class_vectors(self, examples: Float[Tensor, "b k e f"]) -> Float[Tensor, "b k w"]:
        """A vector a class, of its examples alone; their order does not count."""
        mean = examples.mean(2)
        if self.config.sets == "moments":
            spread = (examples.square().mean(2) - mean.square()).clamp(min=1e-6).log() / 2
            return self.moments(torch.cat([mean, spread], dim=2))
        pooled = self.pool(self.within(self.enter(examples.flatten(0, 1))))  # b·k e w
        return self.moments(mean) + pooled.unflatten(0, mean.shape[:2])

    def forward(self, examples: Float[Tensor, "b k e f"]) -> Float[Tensor, "b c"]:
        """Conditions."""
        vectors = self.class_vectors(examples)
        if not self.config.ordered:
            return self.leave(self.gather(self.across(vectors, vectors)))
        seen = vectors + self.places
        return self.leave((vectors + self.across(seen, seen)).flatten(1))


class DatasetConditioner(nn.Module):
    """The conditioner of `Diffusion` for networks of a meta-zoo, and then for any data set of as many classes.

    Args:
        features: `images -> features`; one of `image_features` if the generator is to be saved.
        images: Those of the training tasks; `None` when a saved generator is read.
        classes: Of a task.
        size: Number of features, where there are no images to try.
        anchor: Values of a point that a regression puts before the learned condition, see `anchor_to`; 0 for none.

    >>> images = TaskImages.load(["digits"], train=50, validation=20, test=40, side=8)
    >>> conditioner = DatasetConditioner(lambda x: x.flatten(1), images, classes=4)
    >>> tasks = pl.DataFrame({"config.dataset": ["digits"], "config.classes": ["3 1 4 9"]})
    >>> conditioner(conditioner.given(tasks)).shape
    torch.Size([1, 64])
    """

    name: ClassVar[str] = "data_set"
    drawn: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(
        self,
        features: Features,
        images: TaskImages | None,
        *,
        classes: int,
        config: DatasetEncoderConfig = DatasetEncoderConfig(),
        size: int | None = None,
        anchor: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.classes, self.images, self.features = config, classes, images, features
        bank = None if images is None else features(images.train.flatten(0, 1)).unflatten(0, images.train.shape[:2])
        width = size if bank is None else bank.shape[2]
        if width is None:
            raise ConfigError("without images, the number of features must be given as size")
        self.size = width
        self.bank = bank
        """Features of the training images `[g, e, f]`."""
        self.encoder = DatasetEncoder(config, features=width, classes=classes)
        self.encoder.reset(torch.Generator().manual_seed(seed))
        self.register_buffer("slope", torch.zeros(classes * width, anchor))
        self.register_buffer("offset", torch.zeros(anchor))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))  # steps of training: a resumed one goes on

    @property
    def width(self) -> int:
        """Values in a condition."""
        return self.slope.shape[1] + self.config.output

    def anchor_to(self, train: Zoo, points: Float[Tensor, "b d"], *, penalty: float = 1e-2, draws: int = 4) -> None:
        """Fit the anchor: a ridge regression from the means of the examples of each class to points.

        Args:
            train: Networks of the meta-zoo.
            points: Where they lie in the space of the generator.
            penalty: In means of the diagonal of the covariance.
            draws: How often examples are drawn for each network.
        """
        given = self.given(train.table)
        seeds = torch.arange(draws * len(given)).unflatten(0, (draws, -1))
        means = torch.cat([self._examples(given, some).mean(2).flatten(1) for some in seeds])
        alpha = penalty * float((means - means.mean(0)).square().sum(0).mean())
        found = Ridge(alpha=alpha).fit(means.double().numpy(), points.repeat(draws, 1).double().numpy())
        self.slope.copy_(torch.from_numpy(found.coef_.T))
        self.offset.copy_(torch.from_numpy(found.intercept_))

    def given(self, table: pl.DataFrame) -> Int64[Tensor, "b k"]:
        """The classes of the networks of a meta-zoo, counted over all data sets.

        Raises:
            UnknownName: A task is of a data set that the images lack.
            DatasetError: A task has another number of classes.
        """
        if self.images is None:
            raise ConfigError("a generator that was read from a folder has no images of its tasks: ask for a data set")
        numbers = self.images.numbers(planned_tasks(table))
        if numbers.shape[1] != self.classes:
            raise DatasetError(f"tasks of {self.classes} classes are expected, these have {numbers.shape[1]}")
        return numbers

    def asked(self, wanted: Dataset, n: int) -> Float[Tensor, "b k e f"]:
        """Features of training images of a data set, other ones for each of `n` networks.

        Raises:
            DatasetError: The data set has another number of classes, or images of another shape.
        """
        if wanted.classes != self.classes:
            raise DatasetError(
                f"the generator makes networks for {self.classes} classes, data set {wanted.name!r} has "
                f"{wanted.classes}: choose {self.classes} of them with --classes"
            )
        fewest = int(wanted.train_labels.bincount(minlength=wanted.classes).min())
        features = self.features(class_images(wanted, "train", fewest).flatten(0, 1)).unflatten(0, (self.classes, -1))
        return features[:, self._chosen(torch.arange(n), fewest)].movedim(1, 0)

    def forward(self, given: Int64[Tensor, "b k"] | Float[Tensor, "b k e f"]) -> Float[Tensor, "b c"]:
        """Conditions of classes of the training images, in training from examples drawn at random; or of features."""
        if given.is_floating_point():
            examples = given
        elif self.training:
            self.drawn += 1
            examples = self._examples(given, torch.arange(len(given)) + (self.drawn.cpu() << 20))
        else:
            examples = self._examples(given, torch.zeros(len(given), dtype=torch.int64))
        learned = self.encoder(examples)
        if not len(self.offset):
            return learned
        return torch.cat([examples.mean(2).flatten(1) @ self.slope + self.offset, learned], dim=1)

    def _examples(self, given: Int64[Tensor, "b k"], seeds: Int64[Tensor, " b"]) -> Float[Tensor, "b k e f"]:
        """Features of random training images of the classes of each network."""
        assert self.bank is not None
        return self.bank[given[:, :, None], self._chosen(seeds, self.bank.shape[1])[:, None]]

    def _chosen(self, seeds: Int64[Tensor, " b"], count: int) -> Int64[Tensor, "b e"]:
        """Numbers of the examples of each network, without replacement, or all; the same for all its classes."""
        return streams.permutation(seeds, _DRAW, count)[:, : self.config.examples]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs, without weights.

        Raises:
            ConfigError: The features are a function that a file cannot hold.
        """
        if not hasattr(self.features, "to_json"):
            raise ConfigError(
                "a generator whose features are any function cannot be saved: use ComponentFeatures or "
                "ConvolutionalFeatures"
            )
        return {
            "config": asdict(self.config), "classes": self.classes, "size": self.size,
            "features": self.features.to_json(), "anchor": len(self.offset),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "DatasetConditioner":
        """The conditioner that `to_json` wrote, to be filled with its weights and those of its features."""
        config = structure(data["config"], DatasetEncoderConfig)
        return cls(
            features_from_json(data["features"]), None, classes=data["classes"], config=config, size=data["size"],
            anchor=data["anchor"],
        )  # fmt: skip


CONDITIONERS[DatasetConditioner.name] = DatasetConditioner


# --- alignment with weights --------------------------------------------------------------------------------------


def alignment_loss(
    weights: Float[Tensor, "b c"], data: Float[Tensor, "b c"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy, both ways, between similarities of networks to data sets and what each says among itself.

    Targets are softmax((W Wᵀ + D Dᵀ) / 2 · τ), without gradient: tasks that resemble each other are no opposites. The
    published code transposes the targets for the second direction, whose rows then do not sum to 1; here the softmax is
    taken again.

    >>> alignment_loss(10 * torch.eye(3), 10 * torch.eye(3)) < 1e-6
    tensor(True)
    """
    logits = weights @ data.T / temperature
    with torch.no_grad():
        alike = (weights @ weights.T + data @ data.T) / 2 * temperature
    forth = F.cross_entropy(logits, alike.softmax(1))
    back = F.cross_entropy(logits.T, alike.T.softmax(1))
    return (forth + back) / 2


class _Pair(nn.Module):
    """Networks and their data sets as vectors of one length in one space."""

    def __init__(self, conditioner: DatasetConditioner, projection: nn.Linear):
        super().__init__()
        self.conditioner, self.projection = conditioner, projection

    def forward(
        self, points: Float[Tensor, "b d"], given: Int64[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        """Projected networks, and conditions."""
        pair = self.projection(points), self.conditioner(given)
        return LENGTH * F.normalize(pair[0], dim=1), LENGTH * F.normalize(pair[1], dim=1)


def align_with_weights(
    conditioner: DatasetConditioner,
    train: Zoo,
    *,
    validation: Zoo,
    space: Space,
    optimisation: TrainingConfig = TrainingConfig(epochs=10, batch_size=128, learning_rate=1e-3, accelerator="cpu"),  # noqa: B008 - frozen
    epoch_steps: int = 100,
    temperature: float = 1.0,
) -> History:
    """Train the encoder of data sets, in place, so that its conditions agree with networks that solve them.

    A step before `Diffusion.fit`: networks are projected to conditions, and the two must find each other.

    Args:
        space: Where networks are points.

    Returns:
        Losses an epoch.
    """
    points, held_out = space.encode(train).flatten(1), space.encode(validation).flatten(1)
    given, held_given = conditioner.given(train.table), conditioner.given(validation.table)
    projection = nn.Linear(points.shape[1], conditioner.width)
    draw_set_weights(projection, torch.Generator().manual_seed(optimisation.seed))
    module = _Pair(conditioner, projection)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epoch_steps):
            chosen = torch.randint(len(points), (min(optimisation.batch_size, len(points)),), generator=generator)
            yield points[chosen], given[chosen]

    def loss(module: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        weights, data = module(*pair)
        return {"loss": alignment_loss(weights, data, temperature)}

    def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        yield held_out, held_given

    with tempfile.TemporaryDirectory() as scratch:
        return training.train(
            module, loss, batches, epoch_steps, in_order, optimisation, Path(scratch),
            label="aligning data sets with weights",
        )  # fmt: skip
