"""Networks as sequences of tokens that never straddle layers: the space of RPG and of generation chunk by chunk.

A layer's tensors, one after the other, are padded to a multiple of the token size and cut ("Diffusion generators",
section 2.1). Padding is zero in a point and does not count in a loss.

Axes: m network, p parameter, t token, z value of a token.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.generators.spaces import Rows, Scale
from weightspace.networks import Layout
from weightspace.zoo import Zoo


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Standardised rows, cut into tokens layer by layer."""

    rows: Rows
    size: int
    """Values of a token."""

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"the size of a token must be at least 1, got {self.size}")

    @classmethod
    def fit(cls, train: Zoo, size: int, *, scale: Scale = "tensor", align: bool = True, seed: int = 0) -> "Tokens":
        """Statistics of training networks; arguments and errors as of `Rows.fit`.

        >>> import polars as pl
        >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
        >>> space = Tokens.fit(Zoo.in_memory(torch.randn(2, 8), layout, table, {}), 5)
        >>> space.shape, space.real.sum()
        ((2, 5), tensor(8))
        """
        return cls(rows=Rows.fit(train, scale=scale, align=align, seed=seed), size=size)

    @property
    def layout(self) -> Layout:
        """Of the networks."""
        return self.rows.layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens of a network, and values of a token."""
        return tuple(self._index.shape)

    @cached_property
    def _index(self) -> Int64[Tensor, "t z"]:
        """Where each value lies in a row; padding points one past the row's end."""
        end, parts = self.layout.parameters, []
        for places in self._layers:
            padded = torch.nn.functional.pad(places, (0, -len(places) % self.size), value=end)
            parts.append(padded.view(-1, self.size))
        return torch.cat(parts)

    @cached_property
    def _layers(self) -> list[Int64[Tensor, " v"]]:
        """Parameters of each layer, in layout order."""
        names = list(dict.fromkeys(spec.layer_name for spec in self.layout.tensors))
        return [
            torch.cat(
                [
                    torch.arange(place.start, place.stop)
                    for spec, place in zip(self.layout.tensors, self.layout.slices.values(), strict=True)
                    if spec.layer_name == name
                ]
            )
            for name in names
        ]

    @cached_property
    def real(self) -> Bool[Tensor, "t z"]:
        """True for weights, false for padding."""
        return self._index < self.layout.parameters

    @cached_property
    def positions(self) -> Int64[Tensor, "t 2"]:
        """Layer of each token, and its number in the layer."""
        counts = torch.tensor([-(-len(places) // self.size) for places in self._layers])
        layer = torch.arange(len(counts)).repeat_interleave(counts)
        return torch.stack([layer, torch.arange(len(layer)) - (counts.cumsum(0) - counts)[layer]], dim=1)

    def encode(self, zoo: Zoo) -> Float[Tensor, "m t z"]:
        """Points of networks; padding is zero."""
        return torch.nn.functional.pad(self.rows.encode(zoo), (0, 1))[:, self._index]

    def decode(self, points: Float[Tensor, "m t z"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights; what stands in the padding is dropped."""
        inverse = torch.empty(self.layout.parameters + 1, dtype=torch.int64)
        inverse[self._index.flatten()] = torch.arange(self._index.numel())
        return self.rows.decode(points.flatten(1)[:, inverse[:-1]])
