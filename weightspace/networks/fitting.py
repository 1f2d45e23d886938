"""Populations that fit signals: every network its own image or wave, all of them in one batched regression.

Axes: m network, p parameter, q coordinate, d its dimension, o output.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap

from weightspace.errors import ConfigError
from weightspace.networks import SIREN, streams
from weightspace.networks.compilation import compiled_step
from weightspace.networks.layout import Layout
from weightspace.networks.optimisers import OptimiserName, OptimiserState, Schedule
from weightspace.networks.population import Hyperparameters

_ORDER = 1_000_000  # first stream number of the batches
_VALUES = 2**20  # outputs of a hidden layer at a time without gradients


def fit_population(
    network: SIREN,
    rows: Float[Tensor, "m p"],
    hyperparameters: Hyperparameters,
    coordinates: Float[Tensor, "q d"],
    targets: Float[Tensor, "m q o"],
    *,
    epochs: int,
    batch_size: int,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    checkpoints: Collection[int] | None = None,
    compile: bool = False,
) -> Iterator[tuple[int, Float[Tensor, "m p"], Float[Tensor, " m"]]]:
    """Fit every network to its own values by mean squared error, and yield the population at its checkpoints.

    An epoch is one pass over the coordinates in batches, in each network's own order; with a batch of all coordinates
    it is one step.

    Args:
        rows: Weights to start from; not changed.
        coordinates: The same for all networks.
        targets: What each network's output should be there.
        batch_size: Coordinates a step; more than there are means all.
        checkpoints: Epochs to yield, 0 is before training; all of them when missing.
        compile: Run each step as one compiled program, with CUDA graphs on a GPU. The same numbers up to rounding.

    Yields:
        Epoch, a copy of the rows, and 1.0 for every network that has diverged (its row is its last finite one).

    Raises:
        ConfigError: The batch is empty, or the step cannot be compiled.
        UnknownName: There is no such optimiser or schedule.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    module = network.build().to(rows.device)
    layout = Layout.of(module)
    h, count = hyperparameters, len(coordinates)
    size = min(batch_size, count)
    state = h.optimiser(optimiser, rows, schedule=schedule, steps=epochs * (count // size))
    whole = vmap(lambda weights, x: functional_call(module, weights, (x,)), in_dims=(0, None))
    parts = vmap(lambda weights, x: functional_call(module, weights, (x,)))

    def loss(rows: Tensor, batch: Tensor | None) -> Tensor:
        weights = layout.unflatten(rows)
        if batch is None:
            error = whole(weights, coordinates) - targets
        else:
            error = parts(weights, coordinates[batch]) - targets.take_along_dim(batch[:, :, None], 1)
        return error.square().mean((1, 2)).sum()

    def step(before: OptimiserState, factors: Sequence[float | Tensor], batch: Tensor | None = None) -> OptimiserState:
        return state.advanced(before, grad(loss)(before.rows, batch), factors)

    take = compiled_step(step, state) if compile else step

    if checkpoints is None or 0 in checkpoints:
        yield 0, state.rows.clone(), state.diverged[:, 0].float()
    for epoch in range(1, epochs + 1):
        if size == count:
            state.take(take)
        else:
            order = streams.permutation(h.seeds, _ORDER + epoch, count)
            for batch in order[:, : count // size * size].split(size, dim=1):
                state.take(take, batch)
        if checkpoints is None or epoch in checkpoints:
            yield epoch, state.rows.clone(), state.diverged[:, 0].float()


@torch.no_grad()
def population_signals(
    network: SIREN, rows: Float[Tensor, "m p"], coordinates: Float[Tensor, "q d"]
) -> Float[Tensor, "m q o"]:
    """Values of every network at all coordinates.

    >>> population_signals(SIREN(), torch.zeros(3, 1185), torch.zeros(5, 2)).shape
    torch.Size([3, 5, 1])
    """
    module = network.build().to(rows.device)
    layout = Layout.of(module)
    forward = vmap(lambda weights, x: functional_call(module, weights, (x,)), in_dims=(0, None))
    block = max(1, _VALUES // (len(coordinates) * max(network.hidden)))
    return torch.cat([forward(layout.unflatten(some), coordinates) for some in rows.split(block)])


def signal_errors(
    network: SIREN, rows: Float[Tensor, "m p"], coordinates: Float[Tensor, "q d"], targets: Float[Tensor, "m q o"]
) -> Float[Tensor, " m"]:
    """Mean squared error of every network, in the unit of pixels: outputs of `nfn` are twice as long as that.

    Args:
        targets: What each network's output should be, as in `fit_population`.
    """
    values = population_signals(network, rows, coordinates)
    return (network.to_pixels(values) - network.to_pixels(targets)).square().mean((1, 2))
