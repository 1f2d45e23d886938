"""Features of images, learned from the images of training tasks: what a data set is described by.

Principal components, or the last hidden layer of a small convolutional classifier of all training classes. Both are
modules `images -> features` with features of mean 0 and deviation 1; any other function of that kind does, too.

Axes: n image, g class, e, v image of a class for training and validation, c channel, h height, w width, f feature.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import training
from weightspace.errors import ConfigError, DatasetError, unknown_name
from weightspace.generators.denoisers import draw_weights
from weightspace.training import TrainingConfig

Features = Callable[[Tensor], Tensor]
"""`images [n, c, h, w] -> [n, f]`."""
LEAST = 0.01
"""Of the largest deviation: features that hardly vary in training images are not blown up in others."""
_AT_ONCE = 2048


class _Scaled(nn.Module, ABC):
    """Features with the mean and deviation of training images taken out."""

    kind: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, image_shape: tuple[int, int, int], size: int):
        super().__init__()
        if min(*image_shape, size) < 1:
            raise ConfigError(f"features need images and a size of at least 1, got {image_shape} and {size}")
        self.image_shape, self.size = image_shape, size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @abstractmethod
    def raw(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features before they are scaled."""

    def scale_to(self, images: Float[Tensor, "n c h w"]) -> None:
        """Take mean and deviation from training images."""
        self.mean.zero_()
        self.std.fill_(1.0)
        values = self(images)
        self.mean.copy_(values.mean(0))
        spread = values.std(0)
        self.std.copy_(spread.clamp(min=LEAST * float(spread.max())))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features.

        Raises:
            DatasetError: The images have another shape than those of the training tasks.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise DatasetError(
                f"features were learned on images of shape {self.image_shape}, got {tuple(images.shape[1:])}: load "
                "the data with the same side, in grey"
            )
        values = torch.cat([self.raw(some) for some in images.split(_AT_ONCE)])
        return (values - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """What `features_from_json` needs, without tensors."""
        return {"kind": self.kind, "image_shape": list(self.image_shape), "size": self.size}


class ComponentFeatures(_Scaled):
    """Scores on the first principal components of training images.

    >>> features = ComponentFeatures.fit(torch.randn(20, 1, 4, 4), 3)
    >>> features(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2, 3])
    """

    kind = "components"
    components: Tensor

    def __init__(self, image_shape: tuple[int, int, int], size: int):
        super().__init__(image_shape, size)
        self.register_buffer("components", torch.zeros(prod(image_shape), size))

    @classmethod
    def fit(cls, images: Float[Tensor, "n c h w"], size: int = 32, *, seed: int = 0) -> "ComponentFeatures":
        """Principal components of images of training tasks.

        Raises:
            ConfigError: There are not so many components.
        """
        pixels = images.flatten(1)
        if not 1 <= size <= min(pixels.shape):
            raise ConfigError(f"{len(pixels)} images of {pixels.shape[1]} pixels do not have {size} components")
        channels, height, width = images.shape[1:]
        features = cls((channels, height, width), size)
        found = PCA(size, random_state=seed).fit(pixels.numpy())
        features.components.copy_(torch.from_numpy(found.components_.T))
        features.scale_to(images)
        return features

    def raw(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Scores, not yet centred."""
        return images.flatten(1) @ self.components


class ConvolutionalFeatures(_Scaled):
    """The last hidden layer of a small convolutional classifier.

    >>> ConvolutionalFeatures((1, 8, 8), 16)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 16])
    """

    kind = "convolutional"
    CHANNELS = (16, 32)

    def __init__(self, image_shape: tuple[int, int, int], size: int):
        super().__init__(image_shape, size)
        first, second = self.CHANNELS
        self.body = nn.Sequential(
            nn.Conv2d(image_shape[0], first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(16 * second, size),
        )  # fmt: skip

    @classmethod
    def fit(
        cls,
        images: Float[Tensor, "g e c h w"],
        validation: Float[Tensor, "g v c h w"],
        size: int = 32,
        *,
        optimisation: TrainingConfig = TrainingConfig(epochs=5, batch_size=128, accelerator="cpu"),  # noqa: B008 - frozen
    ) -> "ConvolutionalFeatures":
        """Learn to tell all training classes apart, and keep what that takes.

        Args:
            images: Of the classes of training tasks, as many of each.
            validation: Others of the same classes; they choose the epoch that is kept.
        """
        channels, height, width = images.shape[2:]
        features = cls((channels, height, width), size)
        module = nn.Sequential(features.body, nn.ReLU(), nn.Linear(size, len(images)))
        draw_weights(module, torch.Generator().manual_seed(optimisation.seed))
        for part in features.body:
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, generator=torch.Generator().manual_seed(optimisation.seed))
        flat, held_out = images.flatten(0, 1), validation.flatten(0, 1)
        labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
        held_labels = torch.arange(len(images)).repeat_interleave(validation.shape[1])
        batch = min(optimisation.batch_size, len(flat))

        def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(flat), generator=generator)[: len(flat) // batch * batch]
            for places in order.split(batch):
                yield flat[places], labels[places]

        def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            yield held_out, held_labels

        with tempfile.TemporaryDirectory() as scratch:
            training.train(
                module, lambda module, pair: {"loss": F.cross_entropy(module(pair[0]), pair[1])}, batches,
                len(flat) // batch, in_order, optimisation, Path(scratch), label="learning features of images",
            )  # fmt: skip
        features.scale_to(flat)
        return features.requires_grad_(False).eval()

    def raw(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """The layer's values before its activation."""
        return self.body(images)


_KINDS: dict[str, type[_Scaled]] = {kind.kind: kind for kind in (ComponentFeatures, ConvolutionalFeatures)}


def features_from_json(data: dict[str, Any]) -> nn.Module:
    """The features that `to_json` described, to be filled with their tensors.

    Raises:
        UnknownName: There are none of this kind.
    """
    if data.get("kind") not in _KINDS:
        raise unknown_name("kind of features", str(data.get("kind")), _KINDS)
    channels, height, width = data["image_shape"]
    return _KINDS[data["kind"]]((channels, height, width), data["size"])
