"""Many networks of one architecture at once: forward, metrics, initialisation and training, vectorised by torch.func.

Every network has its own learning rate, weight decay, dropout, training subset and seed, and draws random numbers from
its own seed alone (`streams`), so a network does not depend on those it trains beside. A network whose loss or weights
become infinite stops where it was last finite; the others never notice.

Axes: m network, p parameter, b image in a batch, n image, i image of one network's own, k class.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from weightspace.errors import ConfigError, DatasetError
from weightspace.networks import SIREN, Classifier, Network, WildPark, streams
from weightspace.networks.blocks import Dropout
from weightspace.networks.compilation import compiled_step
from weightspace.networks.initialisation import INITIALISATIONS, initial_rows
from weightspace.networks.layout import RUNNING, Layout
from weightspace.networks.optimisers import OptimiserName, OptimiserState, PopulationOptimiser, Schedule, Step

__all__ = [
    "INITIALISATIONS",
    "Epoch",
    "Hyperparameters",
    "initial_rows",
    "own_metrics",
    "population_logits",
    "population_metrics",
    "steps_until",
    "subset_sizes",
    "subset_weights",
    "train_population",
    "with_activation",
]

Epoch = float | int
"""Passes over the training images: whole ones, or a fraction of one."""
_SUBSET, _ORDER, _DROPOUT = 1, 1_000_000, 1_000_000_000  # first stream number of each use
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
    network = as_classifier(network, images)
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


@torch.no_grad()
def own_metrics(
    network: Network,
    rows: Float[Tensor, "m p"],
    images: Float[Tensor, "n c h w"],
    places: Int64[Tensor, "m i"],
    labels: Int64[Tensor, "m i"],
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Mean cross-entropy (nats) and accuracy (share) of every network on images of its own.

    Args:
        places: Which of the images are each network's.
        labels: What the network should say of them.

    Raises:
        DatasetError: The images have another shape than the network's.

    >>> from weightspace.networks import MLP
    >>> images, places = torch.zeros(4, 1, 8, 8), torch.tensor([[0, 3]])
    >>> own_metrics(MLP(), torch.zeros(1, 1060), images, places, torch.tensor([[0, 5]]))[1]
    tensor([0.5000])
    """
    module = as_classifier(network, images).build().to(rows.device).eval()
    layout = Layout.of(module)
    forward = vmap(lambda state, x: functional_call(module, state, (x,)))
    losses, hits = [], []
    for some, place, truth in zip(rows.split(_MODELS), places.split(_MODELS), labels.split(_MODELS), strict=True):
        state = layout.unflatten(some)
        logits = torch.cat([forward(state, images[part]) for part in place.split(_IMAGES, dim=1)], dim=1)
        losses.append(F.cross_entropy(logits.movedim(2, 1), truth, reduction="none").mean(1))
        hits.append((logits.argmax(2) == truth).float().mean(1))
    return torch.cat(losses), torch.cat(hits)


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
    momentum: Float[Tensor, " m"] | None = None
    """Of SGD; 0.9 for all when missing."""

    def __post_init__(self):
        if bool((self.train_fraction <= 0).any()) or bool((self.train_fraction > 1).any()):
            raise ConfigError("train_fraction must lie in (0, 1]")
        if bool((self.dropout < 0).any()) or bool((self.dropout >= 1).any()):
            raise ConfigError("dropout must lie in [0, 1)")

    def optimiser(
        self, name: OptimiserName, rows: Float[Tensor, "m p"], *, schedule: Schedule, steps: int, cycles: int = 1
    ) -> PopulationOptimiser:
        """The optimiser of these networks, at its start.

        Raises:
            UnknownName: There is no such optimiser or schedule.
        """
        momentum = torch.full_like(self.learning_rate, 0.9) if self.momentum is None else self.momentum
        return PopulationOptimiser(
            name, rows, self.learning_rate, self.weight_decay, momentum, schedule=schedule, steps=steps, cycles=cycles
        )


def subset_sizes(fraction: Float[Tensor, " m"], images: int, classes: int) -> Int64[Tensor, " m"]:
    """Number of training images that each network sees: the rounded share, but at least as many as classes.

    >>> subset_sizes(torch.tensor([0.25, 0.001]), 1000, 10)
    tensor([250,  10])
    """
    return (fraction.double() * images).round().long().clamp(min(classes, images), images)


def steps_until(epoch: Epoch, steps_per_epoch: int) -> int:
    """Steps of a number of epochs: rounded up, so that a fraction above 0 is at least one step.

    >>> [steps_until(epoch, 15) for epoch in (0, 1e-9, 0.1, 0.2, 1, 2.5)]
    [0, 1, 2, 3, 15, 38]
    """
    steps = ceil(round(epoch * steps_per_epoch, 6))  # 0.07 of 100 steps is a little more than 7 in binary
    return max(steps, int(epoch > 0))


def train_population(
    network: Network,
    rows: Float[Tensor, "m p"],
    hyperparameters: Hyperparameters,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | Int64[Tensor, "m i"],
    *,
    epochs: Epoch,
    batch_size: int,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    cycles: int = 1,
    checkpoints: Collection[Epoch] | None = None,
    places: Int64[Tensor, "m i"] | None = None,
    compile: bool = False,
) -> Iterator[tuple[Epoch, Float[Tensor, "m p"], Float[Tensor, " m"]]]:
    """Train a population and yield it at its checkpoints.

    An epoch is `n // batch_size` steps for every network; one with a smaller `train_fraction` sees its own images
    several times in an epoch, so equal epochs mean equal compute. A fraction of an epoch is that of its steps, rounded
    up, and has the first batches of the whole epoch: which checkpoints are kept changes nothing. Running statistics of
    batch normalisation follow each network's own batches with momentum 0.1. All tensors lie on one device.

    Args:
        rows: Weights to start from; not changed.
        cycles: Of the schedule `cosine`.
        checkpoints: Epochs to yield, 0 is before training; all whole ones when missing.
        places: Which of the images are each network's own, where they do not all learn the same; an epoch is a pass
            over these, and `labels` says for each network what it should say of them.
        compile: Run each step as one compiled program, with CUDA graphs on a GPU. The same numbers up to rounding.

    Yields:
        Epoch, a copy of the rows, and 1.0 for every network that has diverged (its row is its last finite one); in the
        order of epochs, those that fall on the same step one after the other.

    Raises:
        ConfigError: The batch is larger than the data, the schedule cannot have so many cycles, or the step cannot be
            compiled.
        UnknownName: There is no such optimiser or schedule.
        DatasetError: The images have another shape than the network's.
    """
    count = len(images) if places is None else places.shape[1]
    if not 1 <= batch_size <= count:
        raise ConfigError(f"batch_size must lie between 1 and the {count} training images, got {batch_size}")
    network = as_classifier(network, images)
    module = network.build().to(rows.device).eval()
    layout = Layout.of(module)
    h = hyperparameters
    steps_per_epoch = count // batch_size
    steps = steps_until(epochs, steps_per_epoch)
    state = h.optimiser(optimiser, rows, schedule=schedule, steps=steps, cycles=cycles)
    keep_shapes = _dropout_shapes(module, images[:1]) if bool((h.dropout > 0).any()) else {}
    step = _population_step(module, layout, state, batch_size, compiled=compile)
    take = compiled_step(step, state) if compile else step
    sizes = subset_sizes(h.train_fraction, count, network.classes)
    subset = streams.permutation(h.seeds, _SUBSET, count)

    due: dict[int, list[Epoch]] = {}
    for kept in sorted(set(range(floor(epochs) + 1) if checkpoints is None else checkpoints)):
        due.setdefault(steps_until(kept, steps_per_epoch), []).append(kept)

    def reached() -> Iterator[tuple[Epoch, Tensor, Tensor]]:
        for epoch in due.get(state.steps_done, ()):
            yield epoch, state.rows.clone(), state.diverged[:, 0].float()

    yield from reached()
    while state.steps_done < steps:
        epoch = state.steps_done // steps_per_epoch + 1
        order = subset.gather(1, streams.permutation(h.seeds, _ORDER + epoch, count) % sizes[:, None])
        left = min(steps_per_epoch, steps - state.steps_done)
        for batch in order[:, : left * batch_size].split(batch_size, dim=1):
            masks = _dropout_masks(h, keep_shapes, batch_size, state.steps_done + 1)
            if places is None:
                state.take(take, masks, images[batch], labels[batch])
            else:
                state.take(take, masks, images[places.gather(1, batch)], labels.gather(1, batch))
            yield from reached()


def _population_step(
    module: nn.Module,
    layout: Layout,
    optimiser: PopulationOptimiser,
    batch_size: int,
    *,
    compiled: bool,
) -> Step:
    """A step of all networks, as a function of their state, dropout masks and each network's own batch."""
    statistics = {s.name: layout.slices[s.name] for s in layout.tensors if s.role in RUNNING}
    counters = [name for name, _ in module.named_buffers() if name.endswith("num_batches_tracked")]
    for part in module.modules():
        part.training = isinstance(part, nn.modules.batchnorm._BatchNorm)
    forward = vmap(lambda state, x: functional_call(module, state, (x,)))

    def loss(
        rows: Tensor, start: Tensor, masks: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # the forward pass of a norm writes into its statistics and counters, so it gets copies
        running = {name: start[:, place].clone() for name, place in statistics.items()}
        counts = {name: torch.zeros(len(start), dtype=torch.long, device=start.device) for name in counters}
        logits = forward(layout.unflatten(rows) | running | counts | masks, images)
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / batch_size, running

    def step(
        state: OptimiserState,
        factors: Sequence[float | Tensor],
        masks: dict[str, Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> OptimiserState:
        if compiled:
            gradient, running = grad(loss, has_aux=True)(state.rows, state.rows, masks, images, labels)
        else:  # half as long for small networks
            rows = state.rows.detach().requires_grad_(True)
            total, running = loss(rows, state.rows, masks, images, labels)
            (gradient,) = torch.autograd.grad(total, rows)
        fixed = [(place, running[name]) for name, place in statistics.items()]
        return optimiser.advanced(state, gradient, factors, fixed)

    return step


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

    Raises:
        ConfigError: The network does not have one activation for all its layers.
    """
    if isinstance(network, SIREN | WildPark):
        raise ConfigError(f"a {type(network).__name__} does not have one activation that could be another")
    return replace(network, activation=name)


def as_classifier(network: Network, images: Float[Tensor, "n c h w"]) -> Classifier:
    """The network, if it classifies such images.

    Raises:
        ConfigError: It is a SIREN.
        DatasetError: The images have another shape than the network's.

    >>> from weightspace.networks import MLP
    >>> as_classifier(MLP(), torch.zeros(0, 1, 8, 8)).classes
    10
    """
    if isinstance(network, SIREN):
        raise ConfigError("a SIREN is one signal and classifies no images; fit it with fit_population")
    if tuple(images.shape[1:]) != network.image_shape:
        raise DatasetError(
            f"the network is made for images of shape {network.image_shape}, got {tuple(images.shape[1:])}: "
            "use the data set that it was trained on"
        )
    return network


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
