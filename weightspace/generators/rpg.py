"""RPG: recurrent generation of weights (Wang et al., 2025, arXiv 2501.11587; "Diffusion generators", section 2.2).

    position of a token (+ condition) → recurrent network over the tokens → prototype a token
    noisy token, time, its prototype  → denoiser of single tokens         → prediction

Tokens never straddle layers (`token_space`). A GRU of moderate width stands for the published Mamba. Without
recurrence a token knows its own number and the condition alone: generation chunk by chunk, for large networks.

Axes: b network, t token, z value of a token, c condition, w width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, ClassVar, Literal, get_args

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import ConfigError, unknown_name
from weightspace.generators.conditions import CONDITIONERS
from weightspace.generators.denoisers import ConvDenoiser, MLPDenoiser

Recurrence = Literal["gru", "none"]
TokenDenoiser = MLPDenoiser | ConvDenoiser


@dataclass(frozen=True, kw_only=True)
class RecurrentDenoiser:
    """A recurrent network makes a prototype of each token, which a denoiser of single tokens has as its condition.

    >>> RecurrentDenoiser(width=16).build((3, 5))(torch.zeros(2, 3, 5), torch.zeros(2)).shape
    torch.Size([2, 3, 5])
    """

    recurrence: Recurrence = "gru"
    """Tokens are made in a row, each knowing what comes before it, or each by itself from its number."""
    width: int = 128
    """Of prototypes and of the recurrent network."""
    layers: int = 2
    """Of the recurrent network."""
    token: TokenDenoiser = field(default_factory=lambda: MLPDenoiser(width=256, depth=2))
    """Denoiser of single tokens; published are convolutions along the token, (1, 32, 64, 128, 64, 32, 1)."""

    def __post_init__(self):
        if self.recurrence not in get_args(Recurrence):
            raise unknown_name("recurrence", self.recurrence, get_args(Recurrence))
        if min(self.width, self.layers) < 1 or self.width % 4:
            raise ConfigError(f"width must be a multiple of 4 and layers at least 1, got {self.width}, {self.layers}")

    def build(self, shape: tuple[int, ...], condition: int | None = None) -> "RecurrentModule":
        """The module for points `[t, z]` and conditions of so many values.

        Raises:
            ConfigError: Points have no tokens.
        """
        return RecurrentModule(self, shape, condition)


def position_code(count: int, width: int) -> Float[Tensor, "t w"]:
    """Cosines and sines of the number of each token, at frequencies from 1 to 1/10000.

    >>> position_code(2, 4)[0]
    tensor([1., 1., 0., 0.])
    """
    frequencies = torch.exp(-log(10_000.0) * torch.arange(width // 2) / (width // 2))
    angle = torch.arange(count)[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class RecurrentModule(nn.Module):
    """The module of `RecurrentDenoiser`."""

    codes: Tensor

    def __init__(self, config: RecurrentDenoiser, shape: tuple[int, ...], condition: int | None):
        super().__init__()
        if len(shape) != 2:
            raise ConfigError(f"a recurrent denoiser makes tokens [t, z], these points have shape {shape}: use Tokens")
        self.config = config
        tokens, size = shape
        self.register_buffer("codes", position_code(tokens, config.width), persistent=False)
        self.places = nn.Parameter(torch.zeros(tokens, config.width))
        self.told = None
        if condition is not None:
            self.told = nn.Sequential(
                nn.Linear(condition, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
            self.none = nn.Parameter(torch.zeros(config.width))
        if config.recurrence == "gru":
            self.recurrent = nn.GRU(config.width, config.width, config.layers, batch_first=True)
        self.token = config.token.build((size,), config.width)

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights; the prediction starts at zero."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=generator)
                nn.init.zeros_(part.bias)
            if isinstance(part, nn.GRU):
                for name, value in part.named_parameters():
                    if "bias" in name:
                        nn.init.zeros_(value)
                    else:
                        nn.init.normal_(value, std=value.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.places, std=0.02, generator=generator)
        self.token.reset(generator)

    def prototypes(self, count: int, condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b t w"]:
        """One vector a token, the same for all noise and times."""
        x = (self.codes + self.places).expand(count, -1, -1)
        if self.told is not None and condition is None:
            x = x + self.none
        elif self.told is not None and condition is not None:
            given = ~condition.isnan().any(1, keepdim=True)
            told = torch.where(given, self.told(condition.nan_to_num()), self.none)
            x = x + told[:, None]
        return x if self.config.recurrence == "none" else x + self.recurrent(x)[0]

    def forward(
        self, noisy: Float[Tensor, "b t z"], time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b t z"]:
        """The prediction."""
        made = self.prototypes(1 if condition is None else len(noisy), condition).expand(len(noisy), -1, -1)
        single = self.token(noisy.flatten(0, 1), time.repeat_interleave(noisy.shape[1]), made.flatten(0, 1))
        return single.unflatten(0, noisy.shape[:2])


class PermutationState(nn.Module):
    """The published "permutation state": a learned vector a training network, and at sampling that of a random one.

    It was meant against the symmetries of weights, and amounts to asking for a copy of a certain training network; off
    by default, here to be ablated. Networks that were not trained on have none.

    >>> state = PermutationState(["a", "b"], size=3)
    >>> state(state.given(pl.DataFrame({"model": ["b", "x"]}))).isnan().all(1)
    tensor([False,  True])
    """

    name: ClassVar[str] = "permutation_state"

    def __init__(self, models: Sequence[str], size: int = 16, seed: int = 0):
        super().__init__()
        self.models = tuple(models)
        self.states = nn.Parameter(torch.randn(len(models), size, generator=torch.Generator().manual_seed(seed)))

    @property
    def width(self) -> int:
        """Values in a condition."""
        return self.states.shape[1]

    def given(self, table: pl.DataFrame) -> Float[Tensor, " b"]:
        """The number of each network, NaN for those that were not trained on."""
        number = {model: float(i) for i, model in enumerate(self.models)}
        return torch.tensor([number.get(model, float("nan")) for model in table["model"]])

    def asked(self, wanted: int | str, n: int) -> Float[Tensor, " b"]:
        """States of `n` networks.

        Args:
            wanted: The name of a training network, or a seed that draws one for each.

        Raises:
            UnknownName: There is no such training network.
        """
        if isinstance(wanted, int):
            generator = torch.Generator().manual_seed(wanted)
            return torch.randint(len(self.models), (n,), generator=generator).float()
        if wanted not in self.models:
            raise unknown_name("training network", wanted, self.models)
        return torch.full((n,), float(self.models.index(wanted)))

    def forward(self, given: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The states."""
        states = self.states[given.nan_to_num().long()]
        return torch.where(given.isnan()[:, None], torch.nan, states)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs."""
        return {"models": list(self.models), "size": self.width}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PermutationState":
        """The states that `to_json` wrote, to be filled."""
        return cls(data["models"], data["size"])


CONDITIONERS[PermutationState.name] = PermutationState
