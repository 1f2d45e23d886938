"""DWSNets: equivariant layers over the weights of multi-layer perceptrons.

Navon et al., "Equivariant Architectures for Learning in Deep Weight Spaces" (2023). Inputs and outputs of the networks
are channels; a layer has a map for every ordered pair of tensors, which pools what the pair does not share, with the
maximum. Their sum over pairs is computed as one product for each set of units (`basis`).

Axes: m network, c channel, d value of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.encoders.basis import EquivariantLinear, Reduce
from weightspace.encoders.unit_tensors import OrbitScale, UnitTensor, chain_tensors, structure
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder
from weightspace.errors import ConfigError, LayoutError
from weightspace.views.architecture import Architecture, Networks

_BIAS = 1e-4  # biases start between minus and plus this


@dataclass(frozen=True, kw_only=True)
class DWSConfig:
    """Sizes of a DWSNet; those of the published SIREN classifier."""

    channels: int = 32
    """Of every weight after each layer."""
    layers: int = 4
    """Equivariant layers."""
    reduce: Reduce = "max"
    """How units that two tensors do not share are pooled."""
    dropout: float = 0.0
    """Between layers."""

    def __post_init__(self):
        if min(self.channels, self.layers) < 1:
            raise ConfigError(f"all sizes of a DWSNet must be at least 1, got {self}")
        if self.reduce not in ("mean", "max"):
            raise ConfigError(f"reduce of a DWSNet is mean or max, got {self.reduce!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")


class _Norm(nn.BatchNorm1d):
    """Batch normalisation of the channels of a tensor of any axes."""

    def forward(self, x: Float[Tensor, "m ... c"]) -> Float[Tensor, "m ... c"]:
        values = x.flatten(0, -2)
        # one network of an architecture in a batch has no spread: its channels are read with the running statistics
        batch = self.training and len(values) > 1
        rows = nn.functional.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, batch, self.momentum or 0.0, self.eps
        )
        return rows.view_as(x)


class _Layer(nn.Module):
    """Maps between all pairs of tensors, divided by the number of tensors, batch normalisation and ReLU.

    Initial values are the published ones.
    """

    def __init__(self, axes: Sequence[tuple[int, ...]], inputs: Sequence[int], outputs: Sequence[int], reduce: Reduce):
        super().__init__()
        self.maps = EquivariantLinear(axes, inputs, outputs, reduce)
        with torch.no_grad():
            for _, weight in self.maps.maps():
                weight.copy_(nn.init.xavier_normal_(torch.empty_like(weight)))
            for bias in self.maps.biases:
                bias.uniform_(-_BIAS, _BIAS)
        self.norms = nn.ModuleList([_Norm(width) for width in outputs])

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        sums = zip(self.norms, self.maps(tensors), strict=True)
        return [torch.relu(norm(x / len(tensors))) for norm, x in sums]


class DWS(WeightEncoder):
    """Equivariant layers with batch normalisation and ReLU, pooling over hidden units, and a linear head.

    Reads multi-layer perceptrons of one number of layers, inputs and outputs, and of any hidden widths.

    >>> from weightspace.networks import SIREN
    >>> siren = Architecture.of(SIREN())
    >>> DWS(DWSConfig(), [siren], outputs=10)(Networks.of(torch.randn(4, siren.layout.parameters), siren)).shape
    torch.Size([4, 10])
    """

    name = "dws"
    Config = DWSConfig
    optimisation = PredictorTraining(learning_rate=5e-3, weight_decay=5e-4)

    def __init__(self, config: DWSConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.reduce = config.reduce
        tensors = _folded(architectures[0])
        self.structure = structure(tensors)
        for architecture in architectures[1:]:
            self._tensors(architecture)
        self.scale = OrbitScale(tensors)
        axes = [tensor.axes for tensor in tensors]
        values = [max(tensor.index.shape[-1], 1) for tensor in tensors]  # a bias that is not there is one zero
        wide = [fixed * config.channels for fixed in values]
        widths = [values] + [wide] * config.layers
        self.layers = nn.ModuleList([_Layer(axes, *some, config.reduce) for some in pairwise(widths)])
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(sum(wide), outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep statistics of the weights."""
        self.scale.prepare([(some, self._tensors(some.architecture)) for some in training])

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Channels pooled over hidden units; those of inputs and outputs of the networks are kept."""
        x = self.scale(networks, self._tensors(networks.architecture))
        for layer in self.layers:
            x = [self.dropout(values) for values in layer(x)]
        pooled = []
        for values in x:
            hidden = tuple(range(1, values.ndim - 1))
            if hidden:
                values = values.amax(hidden) if self.reduce == "max" else values.mean(hidden)
            pooled.append(values)
        return torch.cat(pooled, dim=1)

    def _tensors(self, architecture: Architecture) -> list[UnitTensor]:
        tensors = _folded(architecture)
        if structure(tensors) != self.structure:
            raise LayoutError(
                f"the encoder dws was made for perceptrons of {len(self.structure) // 2} layers and the same inputs "
                f"and outputs, which layout {architecture.layout.digest} does not have; take an encoder of sets or "
                "graphs"
            )
        return tensors


def _folded(architecture: Architecture) -> list[UnitTensor]:
    tensors = chain_tensors(architecture.graph, DWS.name)
    if any(len(tensor.axes) == 2 and tensor.index.shape[-1] != 1 for tensor in tensors):
        raise LayoutError(
            f"the encoder dws reads multi-layer perceptrons, and layout {architecture.layout.digest} has kernels or "
            "flattened channels; take nfn-hnp, or an encoder of sets or graphs"
        )
    return [tensor.folded for tensor in tensors]
