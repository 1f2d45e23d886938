"""Denoising diffusion and flow matching: how data become noise, what is learned from that, and the way back.

    diffusion   x_t = √ᾱ_t x + √(1 - ᾱ_t) ε      t = 0 ... T - 1     (Ho, Jain and Abbeel, 2020)
    flow        x_s = (1 - s) x + s ε            0 ≤ s ≤ 1           (Lipman et al., 2023)

with ε ~ N(0, I). A denoiser is any function `(noisy, time, condition)`; for it, time is the share of the process, from
0 (data) to 1 (noise), whatever the process. It predicts the target of the process; its loss is a plain mean square.

Axes: b network, ... the shape of one point (`[d]`, or `[t, z]` for tokens), c condition, s step of a sampler.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name

Schedule = Literal["linear", "scaled_linear", "cosine"]
Target = Literal["noise", "data", "velocity"]
Variance = Literal["posterior", "fixed_large"]
Solver = Literal["euler", "heun"]
Denoiser = Callable[..., Tensor]
"""`(noisy [b, ...], time [b], condition [b, c] or None) -> prediction [b, ...]`; a NaN in a condition means none."""
Prediction = Callable[[Tensor, Tensor], Tensor]
"""A denoiser with its condition and guidance settled: `(noisy [b, ...], time [b])`."""

_LINEAR = (1e-4, 2e-2)
_SCALED = (1.5e-3, 1.55e-2)
_OFFSET = 8e-3  # of the cosine schedule: its first steps would add no noise otherwise


class Noised(NamedTuple):
    """Training data of a denoiser."""

    noisy: Float[Tensor, "b *d"]
    time: Float[Tensor, " b"]
    target: Float[Tensor, "b *d"]


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Gaussian diffusion in discrete steps, sampled as DDPM or DDIM (Song, Meng and Ermon, 2021).

    >>> DDPM(steps=1000).alpha_bars[-1]
    tensor(4.0358e-05, dtype=torch.float64)
    """

    steps: int = 1000
    """Noise levels of training, T."""
    schedule: Schedule = "linear"
    """How noise grows: β linear from 1e-4 to 0.02, √β linear from √0.0015 to √0.0155, or ᾱ a squared cosine."""
    target: Target = "noise"
    """What is predicted: ε, the data x, or the velocity v = √ᾱ ε - √(1 - ᾱ) x (Salimans and Ho, 2022)."""
    eta: float = 1.0
    """Fresh noise in a sampling step, as a share of the posterior deviation: 1 is DDPM, 0 the deterministic DDIM."""
    variance: Variance = "posterior"
    """Of fresh noise: β̃ = β (1 - ᾱ_s) / (1 - ᾱ_t), or the larger β itself."""
    sampling_steps: int = 100
    """Steps of a sampler, evenly among the noise levels, where none are asked for."""

    def __post_init__(self):
        for name, known in (("schedule", Schedule), ("target", Target), ("variance", Variance)):
            if getattr(self, name) not in get_args(known):
                raise unknown_name(name, getattr(self, name), get_args(known))
        if self.steps < 2:
            raise ConfigError(f"steps must be at least 2, got {self.steps}")
        if not 1 <= self.sampling_steps <= self.steps:
            raise ConfigError(f"sampling_steps must lie between 1 and {self.steps}, got {self.sampling_steps}")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta must lie between 0 and 1, got {self.eta}")
        if self.variance == "fixed_large" and self.eta != 1:
            raise ConfigError(f"the variance fixed_large belongs to DDPM, eta 1, but eta is {self.eta}")

    @cached_property
    def alpha_bars(self) -> Tensor:
        """Share of the data in the variance at each noise level, ᾱ `[T]`, float64."""
        if self.schedule == "cosine":
            share = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            signal = ((share + _OFFSET) / (1 + _OFFSET) * math.pi / 2).cos().square()
            betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        elif self.schedule == "linear":
            betas = torch.linspace(*_LINEAR, self.steps, dtype=torch.float64)
        else:
            first, last = (math.sqrt(beta) for beta in _SCALED)
            betas = torch.linspace(first, last, self.steps, dtype=torch.float64).square()
        return (1 - betas).cumprod(0)

    def mixed(
        self, clean: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], level: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """x_t: data with noise of the given levels."""
        signal, rest = self._shares(level, clean)
        return signal * clean + rest * noise

    def to_target(
        self, clean: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], level: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """What a denoiser should say of a mixture."""
        if self.target != "velocity":
            return noise if self.target == "noise" else clean
        signal, rest = self._shares(level, clean)
        return signal * noise - rest * clean

    def from_target(
        self, noisy: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"], level: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
        """Data and noise that a mixture and its target imply.

        >>> process, level = DDPM(target="velocity"), torch.tensor([300])
        >>> clean, noise = torch.randn(2, 1, 5)
        >>> noisy, target = process.mixed(clean, noise, level), process.to_target(clean, noise, level)
        >>> found = process.from_target(noisy, target, level)
        >>> torch.allclose(found[0], clean, atol=1e-5), torch.allclose(found[1], noise, atol=1e-5)
        (True, True)
        """
        signal, rest = self._shares(level, noisy)
        if self.target == "noise":
            return (noisy - rest * target) / signal, target
        if self.target == "data":
            return target, (noisy - signal * target) / rest
        return signal * noisy - rest * target, rest * noisy + signal * target

    def noised(self, clean: Float[Tensor, "b *d"], generator: torch.Generator) -> Noised:
        """Data with noise of random levels, and what is to be predicted."""
        level = torch.randint(self.steps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        return Noised(self.mixed(clean, noise, level), self._time(level), self.to_target(clean, noise, level))

    @torch.no_grad()
    def sample(
        self,
        predict: Prediction,
        shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        steps: int | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Draw points, all at once.

        Args:
            predict: The target of `(noisy, time)`.
            shape: Number of points, and the shape of one.
            steps: Noise levels that are visited; `sampling_steps` when missing.

        Raises:
            ConfigError: There are fewer noise levels than steps.

        >>> DDPM().sample(lambda noisy, time: torch.zeros_like(noisy), (3, 2), torch.Generator(), steps=10).shape
        torch.Size([3, 2])
        """
        steps = self.sampling_steps if steps is None else steps
        if not 1 <= steps <= self.steps:
            raise ConfigError(f"the steps of a sampler must lie between 1 and {self.steps}, got {steps}")
        levels = torch.linspace(self.steps - 1, 0, steps).round().long()
        kept = torch.cat([self.alpha_bars[levels], torch.ones(1, dtype=torch.float64)])
        x = torch.randn(shape, generator=generator)
        for level, now, later in zip(levels, kept.tolist(), kept[1:].tolist(), strict=False):
            at = level.expand(len(x))
            clean, noise = self.from_target(x, predict(x, self._time(at)), at)
            posterior = (1 - later) / (1 - now) * (1 - now / later)
            fresh = self.eta * math.sqrt(posterior)
            x = math.sqrt(later) * clean + math.sqrt(max(1 - later - fresh**2, 0.0)) * noise
            if later < 1:
                std = math.sqrt(1 - now / later) if self.variance == "fixed_large" else fresh
                x = x + std * torch.randn(shape, generator=generator)
        return x

    def _time(self, level: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        return level / (self.steps - 1)

    def _shares(self, level: Int64[Tensor, " b"], like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), shaped to be multiplied with points."""
        kept = self.alpha_bars[level.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().to(like), (1 - kept).sqrt().to(like)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Flow matching along straight lines: the denoiser predicts the velocity x - ε, from noise to data.

    >>> Flow().sample(lambda noisy, time: -noisy, (3, 2), torch.Generator(), steps=10).shape
    torch.Size([3, 2])
    """

    solver: Solver = "euler"
    """Of the differential equation; `heun` asks the denoiser twice a step and errs in second order."""
    sampling_steps: int = 100
    """Steps of a sampler where none are asked for."""

    def __post_init__(self):
        if self.solver not in get_args(Solver):
            raise unknown_name("solver", self.solver, get_args(Solver))
        if self.sampling_steps < 1:
            raise ConfigError(f"sampling_steps must be at least 1, got {self.sampling_steps}")

    def noised(self, clean: Float[Tensor, "b *d"], generator: torch.Generator) -> Noised:
        """Data with noise of random shares, and the velocity."""
        time = torch.rand(len(clean), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        share = time.reshape(-1, *[1] * (clean.ndim - 1))
        return Noised((1 - share) * clean + share * noise, time, clean - noise)

    @torch.no_grad()
    def sample(
        self,
        predict: Prediction,
        shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        steps: int | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Draw points, all at once; arguments as of `DDPM.sample`.

        Raises:
            ConfigError: `steps` is below 1.
        """
        steps = self.sampling_steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"the steps of a sampler must be at least 1, got {steps}")
        x = torch.randn(shape, generator=generator)
        for step in range(steps, 0, -1):
            velocity = predict(x, torch.full((len(x),), step / steps))
            if self.solver == "heun":
                ahead = predict(x + velocity / steps, torch.full((len(x),), (step - 1) / steps))
                velocity = (velocity + ahead) / 2
            x = x + velocity / steps
        return x


Process = DDPM | Flow


def denoising_loss(
    denoiser: Denoiser,
    noised: Noised,
    condition: Float[Tensor, "b c"] | None = None,
    real: Bool[Tensor, "*d"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of a denoiser's prediction.

    Args:
        real: False for padding, which counts neither above nor below the line; all values are real when missing.

    >>> noised = Flow().noised(torch.zeros(4, 3), torch.Generator().manual_seed(0))
    >>> denoising_loss(lambda noisy, time, condition: -noisy / time[:, None], noised) < 1e-8
    tensor(True)
    """
    error = (denoiser(noised.noisy, noised.time, condition).float() - noised.target).square()
    return error.mean() if real is None else error[:, real].mean()


def guided(
    denoiser: Denoiser, condition: Float[Tensor, "b c"] | None, guidance: float = 1.0, *, at_once: int = 4096
) -> Prediction:
    """A denoiser's prediction under a condition, with classifier-free guidance (Ho and Salimans, 2022).

        prediction(none) + guidance · (prediction(condition) - prediction(none))

    Args:
        condition: One a point, or none.
        guidance: 1 is the plain conditional prediction and costs one evaluation, 0 ignores the condition.
        at_once: Points in one evaluation, for the memory.

    Raises:
        ConfigError: There is guidance other than 1 and no condition.

    >>> guided(lambda noisy, time, condition: noisy, None)(torch.ones(2, 3), torch.zeros(2)).shape
    torch.Size([2, 3])
    """
    if condition is None and guidance != 1:
        raise ConfigError(f"guidance {guidance:g} needs a condition to guide to, and none is given")

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        parts = []
        for block in torch.arange(len(noisy)).split(at_once):
            x, t = noisy[block], time[block]
            if condition is None or guidance == 1:
                parts.append(denoiser(x, t, None if condition is None else condition[block]))
                continue
            asked = torch.cat([condition[block], torch.full_like(condition[block], math.nan)])
            given, none = denoiser(torch.cat([x, x]), torch.cat([t, t]), asked).chunk(2)
            parts.append(none + guidance * (given - none))
        return torch.cat(parts)

    return predict
