"""The flat baseline: standardised weights of one architecture into a multi-layer perceptron.

"Encoders of network weights", section 3. Knows no symmetry: it has to learn every order of the hidden units.

Axes: m network, p parameter, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.weight_encoder import WeightEncoder, perceptron
from weightspace.errors import LayoutError
from weightspace.views.architecture import Architecture, Networks


@dataclass(frozen=True, kw_only=True)
class FlatConfig:
    """Sizes of the flat baseline."""

    width: int = 256
    """Of each hidden layer."""
    depth: int = 3
    """Hidden layers."""


class Flat(WeightEncoder):
    """Every weight standardised by its own mean and deviation over training networks, then an MLP.

    >>> from weightspace.networks import MLP
    >>> some = Networks.of(torch.randn(4, 1210), Architecture.of(MLP(hidden=(16,))))
    >>> Flat(FlatConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "flat"
    Config = FlatConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: FlatConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        layouts = {architecture.layout.digest: architecture.layout for architecture in architectures}
        if len(layouts) != 1:
            raise LayoutError(f"the encoder flat reads one layout, the training networks have {len(layouts)}")
        [self.layout] = layouts.values()
        size = self.layout.parameters
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.body = nn.Sequential(perceptron(size, *[config.width] * config.depth), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep mean and deviation of every weight."""
        rows = torch.cat([some.rows for some in training]).double()
        std = rows.std(0)
        self.mean.copy_(rows.mean(0))
        self.std.copy_(torch.where(std > 1e-8, std, 1.0))

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        if networks.architecture.layout != self.layout:
            raise LayoutError(
                f"the encoder flat was made for layout {self.layout.digest} and cannot read "
                f"{networks.architecture.layout.digest}; take an encoder of sets or graphs"
            )
        return self.body((networks.rows - self.mean) / self.std)
