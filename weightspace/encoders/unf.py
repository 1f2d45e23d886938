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
from weightspace.encoders.unit_tensors import OrbitScale, UnitTensor, graph_tensors
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError, LayoutError
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


class Codes(nn.Module):
    """Learned codes that tell inputs and outputs of the networks apart, added to the channels of their weights."""

    def __init__(self, tensors: Sequence[UnitTensor], channels: Sequence[int]):
        super().__init__()
        self.places = [number for number, tensor in enumerate(tensors) if any(tensor.fixed)]
        self.values = nn.ParameterList([
            nn.Parameter(torch.randn(*tensors[number].orbits[:-1], channels[number])) for number in self.places
        ])  # fmt: skip

    def forward(self, tensors: Sequence[Float[Tensor, "m ..."]]) -> list[Float[Tensor, "m ..."]]:
        """Tensors with their codes."""
        coded = list(tensors)
        for number, code in zip(self.places, self.values, strict=True):
            coded[number] = coded[number] + code
        return coded


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
        self.kind = _kind(tensors)
        for architecture in architectures[1:]:
            self._tensors(architecture)
        self.outputs = {i for i, nodes in enumerate(architectures[0].graph.nodes) if nodes.kind == "output"}
        self.scale = OrbitScale(tensors)
        axes = [tensor.axes for tensor in tensors]
        values = [tensor.index.shape[-1] for tensor in tensors]
        widths = [values] + [[config.channels] * len(tensors)] * config.layers
        self.codes = nn.ModuleList([Codes(tensors, before) for before in widths[:-1]])
        self.layers = nn.ModuleList([
            EquivariantLinear(axes, before, after) for before, after in pairwise(widths)
        ])  # fmt: skip
        # what is kept apart: each output of the networks; inputs may be thousands, and are told apart by their codes
        self.pooled = [tuple(1 + i for i, axis in enumerate(some) if axis not in self.outputs) for some in axes]
        kept = [
            tensor.index[..., 0].numel() if not lost else
            torch.Size(size for i, size in enumerate(tensor.index.shape[:-1]) if 1 + i not in lost).numel()
            for tensor, lost in zip(tensors, self.pooled, strict=True)
        ]  # fmt: skip
        self.body = nn.Sequential(perceptron(config.channels * sum(kept), config.width, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep statistics of the weights."""
        self.scale.prepare([(some, self._tensors(some.architecture)) for some in training])

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Values of the last hidden layer."""
        x = self.scale(networks, self._tensors(networks.architecture))
        for codes, layer in zip(self.codes, self.layers, strict=True):
            x = [torch.relu(values) for values in layer(codes(x))]
        means = [some.mean(lost) if lost else some for some, lost in zip(x, self.pooled, strict=True)]
        return self.body(torch.cat([some.flatten(1) for some in means], dim=1))

    def _tensors(self, architecture: Architecture) -> list[UnitTensor]:
        tensors = graph_tensors(architecture.graph)
        if _kind(tensors) != self.kind:
            raise LayoutError(
                f"the encoder unf was made for networks of {len(self.kind)} tensors connected in one way, and layout "
                f"{architecture.layout.digest} has {len(tensors)} tensors, or other connections, kernels, inputs or "
                "outputs; take an encoder of sets or graphs"
            )
        return tensors


def _kind(tensors: Sequence[UnitTensor]) -> tuple:
    """What one instance depends on: which tensors share units, their values, numbers of inputs and outputs."""
    return tuple((tensor.axes, tensor.orbits) for tensor in tensors)
