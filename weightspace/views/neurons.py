"""Tokens of one layer each: neurons with their weights, single weights, or whole networks (hyper-representations, §3).

Axes: m network, p parameter, n token of a layer, c value of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup
from weightspace.symmetry.groups import unit_view
from weightspace.views.standardise import layer_of_parameter
from weightspace.views.tokens import tokenised_layers

Tokens = Literal["neuron", "neuron_in_out", "weight", "flat"]


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """The index maps between rows of one layout and tokens, a matrix of tokens for each layer.

    >>> from weightspace.networks import CNN
    >>> tokens = LayerTokens.of(Layout.of(CNN().build()))
    >>> tokens.shapes
    [(8, 10), (8, 73), (10, 33)]
    >>> tokens.rows(tokens.tokenise(torch.ones(5, 994))).shape
    torch.Size([5, 994])
    """

    indices: tuple[Int64[Tensor, "_ _"], ...]
    """Where the values of each layer's tokens lie in a row."""
    layers: Int64[Tensor, " t"]
    """Number of the layer of each token."""

    @classmethod
    def of(cls, layout: Layout, kind: Tokens = "neuron", groups: Sequence[PermutationGroup] = ()) -> "LayerTokens":
        """Tokens of a layout.

        Args:
            kind: `neuron`: the weights of an output and its bias. `neuron_in_out`: those, and the weights that read it.
                `weight`: one value a token, all with one map. `flat`: a network is one token.
            groups: For `neuron_in_out`: which weights read which outputs.

        Raises:
            LayoutError: A bias has no weight beside it.
        """
        everything = torch.arange(layout.parameters)
        if kind == "flat":
            return cls((everything[None],), torch.zeros(1, dtype=torch.int64))
        if kind == "weight":
            return cls((everything[:, None],), layer_of_parameter(layout))
        readers = {group.name: _readers(layout, group) for group in groups} if kind == "neuron_in_out" else {}
        indices = []
        for layer in tokenised_layers(layout):
            parts = [everything[layer.start : layer.start + layer.outputs * layer.columns].view(layer.outputs, -1)]
            if layer.bias is not None:
                parts.append(everything[layer.bias : layer.bias + layer.outputs, None])
            parts += readers.get(layout.by_name[layer.name].layer_name, [])
            indices.append(torch.cat(parts, dim=1))
        counts = torch.tensor([len(index) for index in indices])
        return cls(tuple(indices), torch.arange(len(indices)).repeat_interleave(counts))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Tokens of each layer, and values of each."""
        return [(len(index), index.shape[1]) for index in self.indices]

    @cached_property
    def _flat(self) -> Int64[Tensor, " q"]:
        return torch.cat([index.flatten() for index in self.indices])

    @cached_property
    def _inverse(self) -> Int64[Tensor, " p"]:
        inverse = torch.empty(int(self._flat.max()) + 1, dtype=torch.int64)
        inverse[self._flat] = torch.arange(len(self._flat))
        return inverse

    def tokenise(self, rows: Float[Tensor, "m p"]) -> list[Float[Tensor, "m _ _"]]:
        """Tokens of each layer."""
        values = rows.index_select(1, self._flat.to(rows.device))
        sizes = [index.numel() for index in self.indices]
        return [part.unflatten(1, shape) for part, shape in zip(values.split(sizes, 1), self.shapes, strict=True)]

    def rows(self, tokens: Sequence[Float[Tensor, "m _ _"]]) -> Float[Tensor, "m p"]:
        """Rows from the tokens of each layer; of values that are in two tokens, one is taken."""
        values = torch.cat([part.flatten(1) for part in tokens], dim=1)
        return values.index_select(1, self._inverse.to(values.device))


def _readers(layout: Layout, group: PermutationGroup) -> list[Int64[Tensor, "n _"]]:
    """Where the weights lie that read the units of a group."""
    row = torch.arange(layout.parameters)[None]
    places = [place for place in group.places if place.axis == layout.by_name[place.tensor].input_axis]
    return [unit_view(row, layout, group, place)[0].permute(2, 0, 1, 3).flatten(1) for place in places]
