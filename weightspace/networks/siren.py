"""SIREN: small networks with sine activations, each of which is one signal (Sitzmann et al., 2020).

Two published conventions differ in key names, initialisation and what the output means:

    nfn   Zhou et al. (2023): keys `net.0.linear.weight`, output in [-1, 1], a pixel is (output + 1) / 2
    dws   Navon et al. (2023): keys `seq.0.weight`, the module adds 0.5, a pixel is the output

Axes: q coordinate, d its dimension, h height, w width.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SIREN:
    """Linear layers with a sine after all but the last: coordinates in, values of one signal out.

    >>> sum(p.numel() for p in SIREN().build().parameters())
    1185
    """

    inputs: int = 2
    """Dimensions of a coordinate."""
    outputs: int = 1
    """Values at a coordinate: channels of a pixel."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers."""
    omega: float = 30.0
    """Frequency factor before every sine."""
    convention: Literal["nfn", "dws"] = "nfn"
    """Whose key names, initialisation and output scale; see the head of this file."""

    def __post_init__(self):
        if not self.hidden or min(self.inputs, self.outputs, *self.hidden) < 1:
            raise ConfigError(f"a SIREN needs a hidden layer, and all its sizes at least 1, got {self}")
        if self.convention not in ("nfn", "dws"):
            raise ConfigError(f"the convention of a SIREN is nfn or dws, got {self.convention!r}")

    @property
    def activation(self) -> str:
        """Always a sine."""
        return "sine"

    def build(self) -> nn.Module:
        """The module, from coordinates `[q, inputs]` to values `[q, outputs]`."""
        return _SIREN(self)

    def init_bounds(self) -> dict[str, float]:
        """Half-width of the uniform law that each tensor is initialised with, 0 for biases that begin at zero.

        The released code of `dws` treats the first layer like the others; the original paper's law for it is `nfn`'s.
        """
        bounds: dict[str, float] = {}
        widths = (self.inputs, *self.hidden)
        for number, (layer, width) in enumerate(zip(self._layers(), widths, strict=True)):
            sine = sqrt(6 / width) / self.omega
            if self.convention == "nfn":
                bounds[f"{layer}.weight"] = 1 / width if number == 0 else sine
                bounds[f"{layer}.bias"] = 1 / sqrt(width)
            else:
                last = number == len(self.hidden)
                bounds[f"{layer}.weight"] = 1 / sqrt(width) if last else sine
                bounds[f"{layer}.bias"] = 1 / sqrt(width) if last else 0.0
        return bounds

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """The output that stands for pixels in [0, 1]."""
        return 2 * pixels - 1 if self.convention == "nfn" else pixels

    def to_pixels(self, values: Tensor) -> Tensor:
        """Pixels in [0, 1] from outputs, not clipped."""
        return (values + 1) / 2 if self.convention == "nfn" else values

    def _layers(self) -> list[str]:
        if self.convention == "dws":
            return [f"seq.{i}" for i in range(len(self.hidden) + 1)]
        return [f"net.{i}.linear" for i in range(len(self.hidden))] + [f"net.{len(self.hidden)}"]


class _Sine(nn.Module):
    def __init__(self, omega: float):
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


class _SineLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, omega: float):
        super().__init__(inputs, outputs)
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * super().forward(x))


class _SIREN(nn.Module):
    def __init__(self, config: SIREN):
        super().__init__()
        widths = list(zip((config.inputs, *config.hidden), config.hidden, strict=False))
        last = nn.Linear(config.hidden[-1], config.outputs)
        if config.convention == "nfn":
            layers: list[nn.Module] = [
                nn.Sequential(OrderedDict(linear=nn.Linear(i, o), sine=_Sine(config.omega))) for i, o in widths
            ]
            self.net = nn.Sequential(*layers, last)
            self.shift = 0.0
        else:
            self.seq = nn.Sequential(*(_SineLinear(i, o, config.omega) for i, o in widths), last)
            self.shift = 0.5

    def forward(self, coordinates: Tensor) -> Tensor:
        return (self.seq if self.shift else self.net)(coordinates) + self.shift


def pixel_grid(height: int, width: int) -> Float[Tensor, "q d"]:
    """Coordinates of an image's pixels, row by row, from -1 to 1 in both directions: `[height * width, 2]`.

    >>> pixel_grid(2, 3)[:2].tolist()
    [[-1.0, -1.0], [-1.0, 0.0]]
    """
    axes = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def siren(image_shape: tuple[int, int, int], classes: int) -> SIREN:
    """The SIREN of the NFN zoos: 1185 parameters on grey images, 1251 on colour images; `classes` plays no part."""
    return SIREN(outputs=image_shape[0])


def siren_dws(image_shape: tuple[int, int, int], classes: int) -> SIREN:
    """The SIREN of the DWSNets zoos: the same sizes in the other convention."""
    return SIREN(outputs=image_shape[0], convention="dws")


def siren_wave(image_shape: tuple[int, int, int], classes: int) -> SIREN:
    """The SIREN of the sine-wave zoo (Navon et al., 2023): one input, 1153 parameters."""
    return SIREN(inputs=1, convention="dws")
