"""Many networks of one architecture at once: forward, metrics, initialisation and training, vectorised by torch.func.

Every network has its own learning rate, weight decay, dropout, training subset and seed, and draws random numbers from
its own seed alone (`streams`), so a network does not depend on those it trains beside. A network whose loss or weights
become infinite stops where it was last finite; the others never notice.

Axes: m network, p parameter, b image in a batch, n image, k class.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from weightspace.errors import ConfigError, DatasetError, unknown_name
from weightspace.networks import Network, streams
from weightspace.networks.blocks import Dropout
from weightspace.networks.layout import Layout

INITIALISATIONS = ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "uniform", "normal")
_SUBSET, _INIT, _ORDER, _DROPOUT = 1, 1_000, 1_000_000, 1_000_000_000  # first stream number of each use
_MODELS, _IMAGES = 32, 125  # block of a forward pass without gradients: larger ones leave the processor cache


@torch.no_grad()
def population_logits(
    network: Network, rows: Float[Tensor, "m p"], images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "m n k"]:
    """Logits of every network on every image, in evaluation mode.

    Raises:
        DatasetError: The images have another shape than the network's.

    >>> from weightspace.networks import MLP
    >>> population_logits(MLP(), torch.zeros(3, 1060), torch.zeros(5, 1, 8, 8)).shape
    torch.Size([3, 5, 10])
    """
    _check_images(network, images)
    module = network.build().to(rows.device).eval()
    layout = Layout.of(module)
    forward = vmap(lambda state, x: functional_call(module, state, (x,)), in_dims=(0, None))
    blocks = []
    for some in rows.split(_MODELS):
        state = layout.unflatten(some)
        blocks.append(torch.cat([forward(state, x) for x in images.split(_IMAGES)], dim=1))
    return torch.cat(blocks)


def population_metrics(
    network: Network,
    rows: Float[Tensor, "m p"],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    weights: Float[Tensor, "m n"] | None = None,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Mean cross-entropy (nats) and accuracy (share) of every network.

    Args:
        weights: How much each image counts for each network; all the same when missing.

    Raises:
        DatasetError: The images have another shape than the network's.

    >>> from weightspace.networks import MLP
    >>> population_metrics(MLP(), torch.zeros(2, 1060), torch.zeros(4, 1, 8, 8), torch.zeros(4).long())[1]
    tensor([1., 1.])
    """
    losses, hits = [], []
    for some in rows.split(_MODELS):
        logits = population_logits(network, some, images)
        losses.append(F.cross_entropy(logits.movedim(2, 1), labels.expand(len(some), -1), reduction="none"))
        hits.append((logits.argmax(2) == labels).float())
    share = torch.full((1, len(labels)), 1 / len(labels)) if weights is None else weights / weights.sum(1, keepdim=True)
    share = share.to(rows.device)
    return (torch.cat(losses) * share).sum(1), (torch.cat(hits) * share).sum(1).clamp(0, 1)


def initial_rows(
    network: Network, seeds: Int64[Tensor, " m"], init: str, scale: Float[Tensor, " m"]
) -> Float[Tensor, "m p"]:
    """Fresh weights; biases are zero, norms are ones.

    Args:
        init: `kaiming_*` and `xavier_*` follow He et al. (2015, gain √2) and Glorot and Bengio (2010); `uniform` is
            U(0, 1) and `normal` N(0, 1), as in the Model Zoos (Schürholt et al., 2022).
        scale: Factor on all weights, per network.

    Raises:
        UnknownName: There is no such initialisation.

    >>> from weightspace.networks import MLP
    >>> initial_rows(MLP(), torch.tensor([1, 2]), "kaiming_uniform", torch.ones(2)).shape
    torch.Size([2, 1060])
    """
    if init not in INITIALISATIONS:
        raise unknown_name("initialisation", init, INITIALISATIONS)
    layout = Layout.of(network.build())
    rows = torch.zeros(len(seeds), layout.parameters, device=seeds.device)
    for number, (spec, place) in enumerate(zip(layout.tensors, layout.slices.values(), strict=True)):
        if spec.layer == "norm":
            rows[:, place] = float(spec.role in ("weight", "running_var"))
        elif spec.role == "weight":
            fan_out, fan_in = spec.shape[0] * prod(spec.shape[2:]), prod(spec.shape[1:])
            std = {"kaiming": sqrt(2 / fan_in), "xavier": sqrt(2 / (fan_in + fan_out))}.get(init.split("_")[0], 1.0)
            if init.endswith("normal"):
                values = std * streams.normal(seeds, _INIT + number, spec.size)
            elif init == "uniform":
                values = streams.uniform(seeds, _INIT + number, spec.size)
            else:
                values = sqrt(3) * std * (2 * streams.uniform(seeds, _INIT + number, spec.size) - 1)
            rows[:, place] = values * scale[:, None]
    return rows


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What each network of a population is trained with; tensors `[m]`.

    >>> one = torch.ones(1)
    >>> Hyperparameters(seeds=torch.tensor([7]), learning_rate=one, weight_decay=one, dropout=one, train_fraction=one)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: dropout must lie in [0, 1)
    """

    seeds: Int64[Tensor, " m"]
    learning_rate: Float[Tensor, " m"]
    weight_decay: Float[Tensor, " m"]
    """Coefficient of the L2 penalty, added to the gradient as in `torch.optim.Adam`."""
    dropout: Float[Tensor, " m"]
    train_fraction: Float[Tensor, " m"]
    """Share of the training images that the network sees."""

    def __post_init__(self):
        if bool((self.train_fraction <= 0).any()) or bool((self.train_fraction > 1).any()):
            raise ConfigError("train_fraction must lie in (0, 1]")
        if bool((self.dropout < 0).any()) or bool((self.dropout >= 1).any()):
            raise ConfigError("dropout must lie in [0, 1)")


def subset_sizes(fraction: Float[Tensor, " m"], images: int, classes: int) -> Int64[Tensor, " m"]:
    """Number of training images that each network sees: the rounded share, but at least as many as classes.

    >>> subset_sizes(torch.tensor([0.25, 0.001]), 1000, 10)
    tensor([250,  10])
    """
    return (fraction.double() * images).round().long().clamp(min(classes, images), images)


def train_population(
    network: Network,
    rows: Float[Tensor, "m p"],
    hyperparameters: Hyperparameters,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    epochs: int,
    batch_size: int,
    optimiser: Literal["adam", "sgd"] = "adam",
    checkpoints: Collection[int] | None = None,
) -> Iterator[tuple[int, Float[Tensor, "m p"], Float[Tensor, " m"]]]:
    """Train a population and yield it at its checkpoints.

    An epoch is `n // batch_size` steps for every network; one with a smaller `train_fraction` sees its own images
    several times in an epoch, so equal epochs mean equal compute. SGD has momentum 0.9; Adam is Kingma and Ba (2015)
    with PyTorch's defaults.

    Args:
        rows: Weights to start from; not changed.
        checkpoints: Epochs to yield, 0 is before training; all of them when missing.

    Yields:
        Epoch, a copy of the rows, and 1.0 for every network that has diverged (its row is its last finite one).

    Raises:
        ConfigError: The network has batch normalisation, or the batch is larger than the data.
        UnknownName: There is no such optimiser.
        DatasetError: The images have another shape than the network's.
    """
    if optimiser not in ("adam", "sgd"):
        raise unknown_name("optimiser", optimiser, ("adam", "sgd"))
    if not 1 <= batch_size <= len(images):
        raise ConfigError(f"batch_size must lie between 1 and the {len(images)} training images, got {batch_size}")
    _check_images(network, images)
    module = network.build().to(rows.device).eval()
    layout = Layout.of(module)
    check_trainable(layout)
    h = hyperparameters
    keep_shapes = _dropout_shapes(module, images[:1]) if bool((h.dropout > 0).any()) else {}
    forward = vmap(lambda state, x: functional_call(module, state, (x,)))
    sizes = subset_sizes(h.train_fraction, len(images), network.classes)
    subset = streams.permutation(h.seeds, _SUBSET, len(images))
    learning_rate, weight_decay = h.learning_rate[:, None], h.weight_decay[:, None]
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    rows, diverged = rows.clone(), torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
    steps_per_epoch, step = len(images) // batch_size, 0

    def wanted(epoch: int) -> bool:
        return checkpoints is None or epoch in checkpoints

    if wanted(0):
        yield 0, rows.clone(), diverged[:, 0].float()
    for epoch in range(1, epochs + 1):
        order = subset.gather(1, streams.permutation(h.seeds, _ORDER + epoch, len(images)) % sizes[:, None])
        for batch in order[:, : steps_per_epoch * batch_size].split(batch_size, dim=1):
            step += 1
            rows.requires_grad_(True)
            state = layout.unflatten(rows) | _dropout_masks(h, keep_shapes, batch_size, step)
            logits = forward(state, images[batch])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="sum") / batch_size
            (gradient,) = torch.autograd.grad(loss, rows)
            with torch.no_grad():
                rows = rows.detach()
                gradient = gradient + weight_decay * rows
                if optimiser == "adam":
                    first = torch.lerp(gradient, first, 0.9)
                    second = torch.lerp(gradient.square(), second, 0.999)
                    scale = (second / (1 - 0.999**step)).sqrt().add_(1e-8)
                    update = first / (1 - 0.9**step) / scale
                else:
                    first = 0.9 * first + gradient
                    update = first
                proposed = rows - learning_rate * update
                diverged |= ~proposed.isfinite().all(dim=1, keepdim=True)
                rows = torch.where(diverged, rows, proposed)
        if wanted(epoch):
            yield epoch, rows.clone(), diverged[:, 0].float()


def check_trainable(layout: Layout) -> None:
    """Refuse what `train_population` cannot train.

    Raises:
        ConfigError: The network has batch normalisation, whose running statistics the optimiser does not make.
    """
    if any(spec.layer == "norm" for spec in layout.tensors):
        raise ConfigError("population training does not support batch normalisation; choose a network without it")


def subset_weights(hyperparameters: Hyperparameters, images: int, classes: int) -> Float[Tensor, "m n"]:
    """One for each training image that a network sees, zero for the others; for metrics on its own training data."""
    h = hyperparameters
    sizes = subset_sizes(h.train_fraction, images, classes)
    subset = streams.permutation(h.seeds, _SUBSET, images)
    seen = (torch.arange(images, device=sizes.device) < sizes[:, None]).float()
    return torch.zeros_like(seen).scatter_(1, subset, seen)


def with_activation(network: Network, name: str) -> Network:
    """The same network with another activation; its layout does not change.

    >>> from weightspace.networks import MLP
    >>> with_activation(MLP(), "tanh").activation
    'tanh'
    """
    return replace(network, activation=name)


def _check_images(network: Network, images: Tensor) -> None:
    if tuple(images.shape[1:]) != network.image_shape:
        raise DatasetError(
            f"the network is made for images of shape {network.image_shape}, got {tuple(images.shape[1:])}: "
            "use the data set that it was trained on"
        )


def _dropout_shapes(module: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of the features at each dropout, without the batch axis, by the name of its buffer."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, args, key=f"{name}.keep": shapes.update({key: args[0].shape[1:]}))
        for name, part in module.named_modules()
        if isinstance(part, Dropout)
    ]
    with torch.no_grad():
        module(image)
    for hook in hooks:
        hook.remove()
    return shapes


def _dropout_masks(
    h: Hyperparameters, shapes: dict[str, tuple[int, ...]], batch_size: int, step: int
) -> dict[str, Tensor]:
    masks = {}
    for number, (key, shape) in enumerate(shapes.items()):
        draws = streams.uniform(h.seeds, _DROPOUT + step * len(shapes) + number, batch_size * prod(shape))
        kept = (draws >= h.dropout[:, None]) / (1 - h.dropout[:, None])
        masks[key] = kept.unflatten(1, (batch_size, *shape))
    return masks
