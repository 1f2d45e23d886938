"""Universal neural functionals: equivariant maps between the weights of networks of any one kind.

Zhou, Finn and Harrison, "Universal Neural Functionals" (2024). Layers are all linear maps that commute with renumbering
of units (`basis`), found from the sets of units that the axes of the tensors count, so residual streams, norms and
attention are read like plain chains.

Axes: m network, c channel, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.basis import EquivariantLinear
from weightspace.encoders.unit_tensors import (
    Codes,
    OrbitScale,
    OutputPool,
    UnitTensor,
    graph_tensors,
    structure,
    tensors_like,
)
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError
from weightspace.views.architecture import Architecture, Networks


@dataclass(frozen=True, kw_only=True)
class UNFConfig:
    """Sizes of a universal neural functional."""

    channels: int = 16
    """Of every weight after each layer."""
    layers: int = 3
    """Equivariant layers."""
    width: int = 256
    """Of each of the two hidden layers that read the pooled channels."""

    def __post_init__(self):
        if min(self.channels, self.layers, self.width) < 1:
            raise ConfigError(f"all sizes of an UNF must be at least 1, got {self}")


class UNF(WeightEncoder):
    """Equivariant layers with ReLU between them, means over hidden units, a perceptron.

    One instance reads any hidden widths of one kind of network, that is, the same layers connected in the same way.

    >>> from weightspace.networks import ViT
    >>> vit = Architecture.of(ViT(image_shape=(1, 8, 8), width=8, depth=1, heads=2))
    >>> some = Networks.of(torch.randn(4, vit.layout.parameters), vit)
    >>> UNF(UNFConfig(), [vit], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "unf"
    Config = UNFConfig
    optimisation = PredictorTraining(learning_rate=1e-3)

    def __init__(self, config: UNFConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        tensors = graph_tensors(architectures[0].graph)
        self.structure = structure(tensors)
        for architecture in architectures[1:]:
            tensors_like(self.structure, architecture, self.name)
        self.scale = OrbitScale(tensors)
        axes = [tensor.axes for tensor in tensors]
        values = [tensor.index.shape[-1] for tensor in tensors]
        widths = [values] + [[config.channels] * len(tensors)] * config.layers
        self.codes = nn.ModuleList([Codes(tensors, before) for before in widths[:-1]])
        self.layers = nn.ModuleList([
            EquivariantLinear(axes, before, after) for before, after in pairwise(widths)
        ])  # fmt: skip
        self.pool = OutputPool(tensors, architectures[0].graph)
        self.body = nn.Sequential(perceptron(config.channels * self.pool.size, config.width, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep statistics of the weights."""
        self.scale.prepare([(some, self._tensors(some)) for some in training])

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        x = self.scale(networks, self._tensors(networks))
        for codes, layer in zip(self.codes, self.layers, strict=True):
            x = [torch.relu(values) for values in layer(codes(x))]
        return self.body(self.pool(x))

    def _tensors(self, networks: Networks) -> list[UnitTensor]:
        return tensors_like(self.structure, networks.architecture, self.name)
