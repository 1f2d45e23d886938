"""Weight tokens: every output channel of every layer, cut into pieces of one width (SANE, Schürholt et al., 2024, §3).

A layer is a weight with its bias as last column, or a running statistic. Its tensor `[outputs, …]` becomes a matrix
`[outputs, columns]`; each line is padded to a multiple of the token width and cut. A token's position is (its number in
the network, its layer, its output channel). Dense tokens cut whole layers instead of output channels, so that only a
layer's last token is padded (GeoSANE, Hanna et al., 2026); the last part of the position is the token's number in it.

Axes: m network, p parameter, t token, w weight in token.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout, TensorSpec

LAYER_CODES = 18
"""Codes that `TokenView.codes` may have: six kinds of layers, first, last or between."""


@dataclass(frozen=True)
class TokenisedLayer:
    """A weight matrix `[outputs, columns]` in a row, its bias column and its tokens."""

    name: str
    outputs: int
    columns: int
    """Columns of the weight, without the bias."""
    start: int
    """Where the weight begins in the row."""
    bias: int | None
    """Where the bias begins in the row."""

    @property
    def width(self) -> int:
        """Values of one output channel, its bias included."""
        return self.columns + (self.bias is not None)


def tokenised_layers(layout: Layout, *, skip_norm: bool = False) -> list[TokenisedLayer]:
    """The layers that become tokens, in layout order.

    Args:
        skip_norm: Leave out normalisation layers.

    Raises:
        LayoutError: A bias has no weight beside it or another number of outputs, or nothing is left.
    """
    biases = {spec.layer_name: spec for spec in layout.tensors if spec.role == "bias"}
    layers = []
    for spec in layout.tensors:
        if spec.role == "bias" or (skip_norm and spec.layer == "norm"):
            continue
        bias = biases.pop(spec.layer_name, None) if spec.role == "weight" else None
        outputs = spec.shape[0] if spec.shape else 1
        if bias is not None and (bias.size != outputs or spec.output_axis == 1):
            raise LayoutError(
                f"cannot tokenise {spec.name!r}: the first axis of {spec.shape} does not count the outputs "
                f"that {bias.name!r} {bias.shape} belongs to"
            )
        start = layout.slices[spec.name].start
        bias_start = None if bias is None else layout.slices[bias.name].start
        layers.append(TokenisedLayer(spec.name, outputs, spec.size // outputs, start, bias_start))
    lonely = [spec.name for spec in biases.values() if not (skip_norm and spec.layer == "norm")]
    if lonely:
        raise LayoutError(f"cannot tokenise {lonely[0]!r}: a bias without a weight in the same layer")
    if not layers:
        raise LayoutError(f"there is nothing to tokenise among {[spec.name for spec in layout.tensors]}")
    return layers


_KINDS = ("linear", "conv", "norm", "running_mean", "running_var", "other")


def _kind(spec: TensorSpec) -> int:
    return _KINDS.index(spec.role if spec.role in _KINDS else spec.layer)


class TokenView:
    """The index map between rows and tokens of one layout.

    Args:
        width: Values a token.
        skip_norm: Leave normalisation layers out of the tokens.
        dense: Cut whole layers instead of output channels.

    >>> from weightspace.networks import CNN
    >>> view = TokenView(Layout.of(CNN().build()), width=73)
    >>> view.count, view.tokenise(torch.zeros(5, 994)).shape
    (26, torch.Size([5, 26, 73]))
    >>> TokenView(Layout.of(CNN().build()), width=73, dense=True).count
    15
    """

    def __init__(self, layout: Layout, width: int, *, skip_norm: bool = False, dense: bool = False):
        if width < 1:
            raise ConfigError(f"token width must be at least 1, got {width}")
        self.layout, self.width = layout, width
        self.layers = tokenised_layers(layout, skip_norm=skip_norm)
        lines = np.array([1 if dense else layer.outputs for layer in self.layers])
        lengths = np.array([layer.outputs * layer.width if dense else layer.width for layer in self.layers])
        chunks = -(-lengths // width)
        self.dense = dense
        self._lengths, self._chunks = torch.from_numpy(lengths), torch.from_numpy(chunks)
        self._starts = torch.from_numpy(np.cumsum(chunks * lines) - chunks * lines)
        self._ends = torch.from_numpy(np.cumsum(chunks * lines))

    @property
    def count(self) -> int:
        """Number of tokens of a network."""
        return int(self._ends[-1])

    def _places(self, tokens: Int64[Tensor, " t"]) -> tuple[Tensor, Tensor, Tensor]:
        """Layer, line (output channel, or the whole layer) and piece of the line of each token."""
        layer = torch.searchsorted(self._ends, tokens, right=True)
        local, chunks = tokens - self._starts[layer], self._chunks[layer]
        return layer, local // chunks, local % chunks

    def index(self, tokens: Int64[Tensor, " t"]) -> Int64[Tensor, "t w"]:
        """Where each value of the given tokens lies in a row; padding points one past the row's end.

        Computed from the layout for these tokens alone, so a window of a huge network costs only its own size.
        """
        layer, line, piece = (x[:, None] for x in self._places(tokens))
        of_layers = [
            (part.columns, part.width, part.start, -1 if part.bias is None else part.bias) for part in self.layers
        ]
        columns, widths, starts, biases = torch.tensor(of_layers)[layer].unbind(-1)
        place = piece * self.width + torch.arange(self.width)  # in the line
        value = line * self._lengths[layer] + place  # in the layer
        channel, column = value // widths, value % widths
        found = torch.where(column < columns, starts + channel * columns + column, biases + channel)
        return torch.where(place < self._lengths[layer], found, self.layout.parameters)

    @cached_property
    def full_index(self) -> Int64[Tensor, "t w"]:
        """`index` of all tokens."""
        return self.index(torch.arange(self.count))

    @cached_property
    def mask(self) -> Bool[Tensor, "t w"]:
        """True for weights, false for padding."""
        return self.full_index < self.layout.parameters

    @cached_property
    def positions(self) -> Int64[Tensor, "t 3"]:
        """Number in the network, layer and output channel of each token; of dense tokens the number in the layer."""
        tokens = torch.arange(self.count)
        layer, channel, piece = self._places(tokens)
        return torch.stack([tokens, layer, piece if self.dense else channel], dim=1)

    @cached_property
    def codes(self) -> Int64[Tensor, " t"]:
        """What kind of layer each token is of, and whether it is the first or last with weights: below `LAYER_CODES`.

        Says what a layer's number does not when networks are deeper than those of training.
        """
        specs = [self.layout.by_name[layer.name] for layer in self.layers]
        weighted = [i for i, spec in enumerate(specs) if spec.layer in ("linear", "conv")] or [0]
        ends = {weighted[0]: 1, weighted[-1]: 2}
        codes = torch.tensor([_kind(spec) + len(_KINDS) * ends.get(i, 0) for i, spec in enumerate(specs)])
        return codes[self.positions[:, 1]]

    @cached_property
    def _inverse(self) -> Int64[Tensor, " p"]:
        """Where each parameter lies in the flattened tokens; -1 for parameters that are not tokenised."""
        inverse = torch.full((self.layout.parameters + 1,), -1)
        inverse[self.full_index.flatten()] = torch.arange(self.full_index.numel())
        return inverse[:-1]

    def tokenise(self, rows: Float[Tensor, "m p"], tokens: Int64[Tensor, " t"] | None = None) -> Float[Tensor, "m t w"]:
        """Tokens of each row, padding is zero; all tokens, or those asked for.

        Raises:
            LayoutError: The rows have another length than the layout.
        """
        if rows.shape[1] != self.layout.parameters:
            raise LayoutError(f"rows have {rows.shape[1]} values, their layout has {self.layout.parameters} parameters")
        index = self.full_index if tokens is None else self.index(tokens)
        index = index.to(rows.device)
        end = self.layout.parameters
        values = rows.index_select(1, index.clamp(max=end - 1).flatten()).unflatten(1, index.shape)
        return values.masked_fill_(index == end, 0.0)

    def detokenise(
        self, tokens: Float[Tensor, "m t w"], base: Float[Tensor, "m p"] | None = None
    ) -> Float[Tensor, "m p"]:
        """Rows from all tokens of each network, the exact inverse of `tokenise`.

        Args:
            base: Rows that supply the parameters which are not tokenised.

        Raises:
            LayoutError: The tokens are of another layout or width, or parameters are not tokenised and no base is
                given.
        """
        if tokens.shape[1:] != (self.count, self.width):
            raise LayoutError(
                f"got tokens of shape {tuple(tokens.shape[1:])}, this layout has {self.count} tokens of {self.width}"
            )
        inverse = self._inverse.to(tokens.device)
        missing = inverse < 0
        rows = tokens.flatten(1)[:, inverse.clamp(min=0)]
        if not bool(missing.any()):
            return rows
        if base is None:
            raise LayoutError(
                f"{int(missing.sum())} parameters (normalisation) are not tokenised; give base rows that supply them"
            )
        return torch.where(missing, base, rows)
