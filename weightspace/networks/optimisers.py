"""Optimisers of populations: one step of every network with its own learning rate, weight decay and momentum.

    adam      Kingma and Ba (2015) with PyTorch's defaults; weight decay is an L2 penalty
    adamw     Loshchilov and Hutter (2019): weight decay apart from the gradient
    sgd       with momentum, as in PyTorch
    rmsprop   Tieleman and Hinton (2012) with the constants of Keras: decay 0.9, epsilon 1e-7

Axes: m network, p parameter.
"""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, cos, pi
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name

OptimiserName = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["constant", "one_cycle", "cosine"]
OPTIMISERS: tuple[OptimiserName, ...] = get_args(OptimiserName)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
_WARM_UP, _START, _END = 0.3, 25, 1e4


def schedule_factor(schedule: Schedule, step: int, steps: int, cycles: int = 1) -> float:
    """Factor on the learning rate at a step.

    `one_cycle` rises from 1/25 to 1 in the first 30 % of the steps and falls to 1/250 000 (Smith and Topin, 2019, with
    PyTorch's cosines and defaults; momentum stays as it is). `cosine` falls from 1 almost to 0 along half a cosine, and
    does so anew in every cycle (Loshchilov and Hutter, 2017): (cos(π mod(t - 1, ⌈T/M⌉) / ⌈T/M⌉) + 1) / 2 at step t of T
    steps with M cycles.

    Args:
        step: Counted from 1 to `steps`.
        cycles: Of `cosine`.

    >>> [round(schedule_factor("one_cycle", step, 20), 3) for step in (1, 6, 20)]
    [0.04, 1.0, 0.0]
    >>> [round(schedule_factor("cosine", step, 8, cycles=2), 3) for step in (1, 3, 4, 5)]
    [1.0, 0.5, 0.146, 1.0]
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        length = ceil(steps / cycles)
        return (cos(pi * ((step - 1) % length) / length) + 1) / 2
    peak = _WARM_UP * steps - 1
    low, high, share = (1 / _START, 1.0, (step - 1) / peak) if step - 1 <= peak else (
        1 / (_START * _END), 1.0, (steps - step) / max(1e-9, steps - 1 - peak)
    )  # fmt: skip
    return low + (high - low) * (1 - cos(pi * share)) / 2


class OptimiserState(NamedTuple):
    """Where a population is."""

    rows: Float[Tensor, "m p"]
    first: Float[Tensor, "m p"]
    """Momentum of `sgd`, mean of the gradients of Adam."""
    second: Float[Tensor, "m p"]
    """Mean of the squared gradients."""
    diverged: Bool[Tensor, "m 1"]


Step = Callable[..., OptimiserState]
"""From a state, the factors of the step and its data, to the next state."""


class PopulationOptimiser:
    """Rows on their way down; a network whose proposed row is not finite stays where it is, for good.

    Args:
        rows: Where the networks start; not changed.
        learning_rate: Per network, `[m]`; so are weight decay and momentum.
        momentum: Of `sgd`; the others do not have it.
        steps: Steps of the whole run, for the schedule.
        cycles: Of the schedule `cosine`.

    Raises:
        UnknownName: There is no such optimiser or schedule.
        ConfigError: There is no cycle, or there are several of another schedule than `cosine`.

    >>> one = torch.ones(1)
    >>> sgd = PopulationOptimiser("sgd", torch.ones(1, 2), one / 2, one * 0, one * 0, schedule="constant", steps=1)
    >>> sgd.step(torch.ones(1, 2))
    >>> sgd.rows
    tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        name: OptimiserName,
        rows: Float[Tensor, "m p"],
        learning_rate: Float[Tensor, " m"],
        weight_decay: Float[Tensor, " m"],
        momentum: Float[Tensor, " m"],
        *,
        schedule: Schedule,
        steps: int,
        cycles: int = 1,
    ):
        if name not in OPTIMISERS:
            raise unknown_name("optimiser", name, OPTIMISERS)
        if schedule not in SCHEDULES:
            raise unknown_name("schedule", schedule, SCHEDULES)
        if cycles < 1 or (cycles > 1 and schedule != "cosine"):
            raise ConfigError(f"the schedule {schedule!r} cannot have {cycles} cycles: only cosine has more than one")
        self.name, self.schedule, self.steps, self.cycles, self.steps_done = name, schedule, steps, cycles, 0
        diverged = torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
        self.state = OptimiserState(rows.clone(), torch.zeros_like(rows), torch.zeros_like(rows), diverged)
        self._learning_rate, self._weight_decay = learning_rate[:, None], weight_decay[:, None]
        self._momentum = momentum[:, None]

    @property
    def rows(self) -> Float[Tensor, "m p"]:
        """The networks as they are now."""
        return self.state.rows

    @property
    def diverged(self) -> Bool[Tensor, "m 1"]:
        """Which networks stay where they are."""
        return self.state.diverged

    def step(self, gradient: Float[Tensor, "m p"], fixed: Iterable[tuple[slice, Tensor]] = ()) -> None:
        """One step of every network that has not diverged.

        Args:
            fixed: New values of the parts of the rows that no gradient makes, running statistics for example.
        """
        self.steps_done += 1
        self.state = self.advanced(self.state, gradient, self.factors(self.steps_done), fixed)

    def take(self, step: Step, *data: object) -> None:
        """Go to the state that a step of the whole population, gradient included, leads to."""
        self.steps_done += 1
        self.state = step(self.state, self.factors(self.steps_done), *data)

    def factors(self, step: int) -> tuple[float, float, float]:
        """What changes from step to step: the factor on learning rates, and the weights of Adam's two means.

        Args:
            step: Counted from 1.
        """
        return schedule_factor(self.schedule, step, self.steps, self.cycles), 1 - 0.9**step, 1 - 0.999**step

    @torch.no_grad()
    def advanced(
        self,
        state: OptimiserState,
        gradient: Float[Tensor, "m p"],
        factors: Sequence[float | Float[Tensor, ""]],
        fixed: Iterable[tuple[slice, Tensor]] = (),
    ) -> OptimiserState:
        """The state one step later, a function of the arguments alone.

        Args:
            factors: As of `factors`, or tensors of the same values for a compiled program.
        """
        rate, first_weight, second_weight = factors
        learning_rate = self._learning_rate if self.schedule == "constant" else self._learning_rate * rate
        proposed, first, second = state.rows, state.first, state.second
        if self.name == "adamw":
            proposed = proposed * (1 - learning_rate * self._weight_decay)
        else:
            gradient = gradient + self._weight_decay * state.rows
        if self.name == "sgd":
            first = self._momentum * first + gradient
            update = first
        elif self.name == "rmsprop":
            second = torch.lerp(gradient.square(), second, 0.9)
            update = gradient / (second.sqrt() + 1e-7)
        else:
            first = torch.lerp(gradient, first, 0.9)
            second = torch.lerp(gradient.square(), second, 0.999)
            update = first / first_weight / (second / second_weight).sqrt().add_(1e-8)
        proposed = proposed - learning_rate * update
        for place, values in fixed:
            proposed[:, place] = values
        diverged = state.diverged | ~proposed.isfinite().all(dim=1, keepdim=True)
        return OptimiserState(torch.where(diverged, state.rows, proposed), first, second, diverged)
