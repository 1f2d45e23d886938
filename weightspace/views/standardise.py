"""Per-layer standardisation of rows (SANE, §2.3 of its reference pipeline): an affine map by position, and its inverse.

Statistics of layers exist only for layouts seen in training. What one model reads in all layouts is divided by one
number, or by what the fan-in of a layer lets expect times one number (as in all customary initialisations).

Axes: m network, p parameter, l layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.networks.layout import Layout
from weightspace.views.tokens import tokenised_layers


def layer_of_parameter(layout: Layout) -> Int64[Tensor, " p"]:
    """Number of the layer that each parameter belongs to; a bias belongs to its weight's layer.

    Raises:
        LayoutError: A bias has no weight beside it.

    >>> layer_of_parameter(Layout.of(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 2))))
    tensor([0, 0, 0, 1, 1, 1, 1])
    """
    number = torch.empty(layout.parameters, dtype=torch.int64)
    for i, layer in enumerate(tokenised_layers(layout)):
        number[layer.start : layer.start + layer.outputs * layer.columns] = i
        if layer.bias is not None:
            number[layer.bias : layer.bias + layer.outputs] = i
    return number


@dataclass(frozen=True)
class Standardisation:
    """(w - mean of its layer) / (standard deviation of its layer), statistics of the training zoo.

    >>> from weightspace.networks import CNN
    >>> rows = torch.randn(20, 994)
    >>> scale = Standardisation.fit(rows, Layout.of(CNN().build()))
    >>> torch.allclose(scale.invert(scale.apply(rows)), rows, atol=1e-6)
    True
    """

    mean: Float[Tensor, " p"]
    std: Float[Tensor, " p"]

    @classmethod
    def fit(cls, rows: Float[Tensor, "m p"], layout: Layout) -> "Standardisation":
        """Mean over networks of the layer mean, and root of the mean over networks of the layer variance."""
        layer = layer_of_parameter(layout)
        layers = int(layer.max()) + 1
        size = layer.bincount().double()

        def layer_mean(values: Tensor) -> Tensor:
            sums = torch.zeros(len(values), layers, dtype=torch.float64).index_add_(1, layer, values)
            return sums / size

        values = rows.double()
        means = layer_mean(values)
        variances = layer_mean((values - means[:, layer]).square())
        std = variances.mean(0).sqrt()
        std = torch.where(std > 0, std, 1.0)  # a layer that never varies stays as it is
        return cls(means.mean(0)[layer].float(), std[layer].float())

    def apply(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Standardised rows."""
        return (rows - self.mean.to(rows)) / self.std.to(rows)

    def invert(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights."""
        return rows * self.std.to(rows) + self.mean.to(rows)

    @classmethod
    def none(cls, layout: Layout) -> "Standardisation":
        """Weights as they are."""
        return cls(torch.zeros(layout.parameters), torch.ones(layout.parameters))


SharedKind = Literal["fan_in", "global"]


@dataclass(frozen=True, kw_only=True)
class SharedScale:
    """A standard deviation for the weights of any layout, with mean zero.

    >>> layout = Layout.of(torch.nn.Linear(4, 2))
    >>> SharedScale(kind="fan_in", unit=1.0).of(layout).std[0]
    tensor(0.5000)
    """

    kind: SharedKind
    """`fan_in`: unit / sqrt(weights an output has in this layer); `global`: unit, so weights stay as in the paper."""
    unit: float
    """Root mean square over the training networks of all weights, each times the root of its fan-in for `fan_in`."""

    @classmethod
    def fit(cls, kind: SharedKind, populations: Sequence[tuple[Float[Tensor, "_ _"], Layout]]) -> "SharedScale":
        """The unit of networks of several layouts, a matrix of rows a layout."""
        total, count = 0.0, 0
        for rows, layout in populations:
            total += float(rows.square().mean(0).double() @ _relative(kind, layout).double().pow(-2)) * len(rows)
            count += rows.numel()
        return cls(kind=kind, unit=(total / count) ** 0.5 or 1.0)

    def of(self, layout: Layout) -> Standardisation:
        """The map for networks of one layout."""
        std = self.unit * _relative(self.kind, layout)
        return Standardisation(torch.zeros_like(std), std)


def _relative(kind: SharedKind, layout: Layout) -> Float[Tensor, " p"]:
    """Expected deviation of each parameter, up to the unit."""
    if kind == "global":
        return torch.ones(layout.parameters)
    columns = torch.tensor([layer.columns for layer in tokenised_layers(layout)])
    return columns[layer_of_parameter(layout)].float().rsqrt()
