"""Chunks: every tensor flattened, padded and cut into pieces of one size (Andreis et al., 2023, equation 1).

Axes: m network, q chunk, c value of a chunk.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name
from weightspace.networks.layout import Layout, TensorSpec

Granularity = Literal["tensor", "neuron", "kernel"]


@dataclass(frozen=True, eq=False)
class ChunkView:
    """The index map from rows of one layout to chunks.

    >>> from weightspace.networks import PooledCNN
    >>> layout = Layout.of(PooledCNN().build())
    >>> [ChunkView(layout, size).count for size in (16, 32, 64, 144)]
    [311, 158, 82, 39]
    """

    layout: Layout
    size: int
    """Values of a chunk."""
    granularity: Granularity = "tensor"
    """What is flattened and padded on its own: a tensor, the weights of each neuron, or each kernel; vectors such as
    biases are flattened whole."""

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"chunks have at least one value, got {self.size}")
        if self.granularity not in get_args(Granularity):
            raise unknown_name("granularity", self.granularity, get_args(Granularity))

    def _lines(self, spec: TensorSpec) -> int:
        """Number of pieces that the tensor is flattened into."""
        if self.granularity == "tensor" or spec.output_axis is None or spec.input_axis is None:
            return 1
        if self.granularity == "neuron" or spec.layer != "conv":
            return spec.shape[0]
        return spec.shape[0] * spec.shape[1]

    @property
    def count(self) -> int:
        """Number of chunks of a network."""
        return sum(self.counts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks of each tensor, in layout order."""
        lines = [self._lines(spec) for spec in self.layout.tensors]
        return tuple(
            n * -(-(prod(spec.shape) // n) // self.size) for n, spec in zip(lines, self.layout.tensors, strict=True)
        )

    @cached_property
    def index(self) -> Int64[Tensor, "q c"]:
        """Where each value lies in a row; padding points one past the row's end."""
        parts = []
        for spec, place in zip(self.layout.tensors, self.layout.slices.values(), strict=True):
            values = torch.arange(place.start, place.stop).view(self._lines(spec), -1)
            short = -values.shape[1] % self.size
            padded = torch.nn.functional.pad(values, (0, short), value=self.layout.parameters)
            parts.append(padded.view(-1, self.size))
        return torch.cat(parts)

    @cached_property
    def mask(self) -> Bool[Tensor, "q c"]:
        """True for weights, false for padding."""
        return self.index < self.layout.parameters

    def chunks(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m q c"]:
        """Chunks of each network; padding is zero.

        >>> ChunkView(Layout.of(torch.nn.Linear(3, 1)), 2).chunks(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[[1., 2.],
                 [3., 0.],
                 [4., 0.]]])
        """
        return torch.nn.functional.pad(rows, (0, 1))[:, self.index.to(rows.device)]
