"""Probe moments: how networks answer to noise, and how large their weights are, in numbers that mean the same anywhere.

Ours, not published. ProbeGen reads raw answers, and is the best where it was trained and the worst elsewhere: which
class answers what is a matter of the data set. Weight statistics are the best of simple features, but seven numbers a
tensor, in layout order, mean something else in another architecture. Here both are made comparable:

* classifiers are run on images of noise of several scales, and only symmetric functions of their answers are kept:
  confidence, entropy, how large logits are and how much they depend on the image; the order of classes has no part;
* weights are read layer by layer by the logarithm of their root mean square and by how it spreads over output units,
  input units and places of a kernel; of all layers the first, the last, mean and deviation are kept.

All of it is unchanged by renumbering hidden units. Standardised features go to several small perceptrons, each trained
on its own loss, which answer together. Needs classifiers that can be run.

Axes: m network, n probe, k class, d feature, e ensemble member, o output, t target node, s source node, f value of an
edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.probing import answers, known_network
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import SIREN, Classifier
from weightspace.views.architecture import Architecture, Networks, in_chunks
from weightspace.views.graph import ParameterGraph

SCALES = (2, 3, 5, 7, 14)
"""Cells along a side of the noise that probes are interpolated from."""
_LEAST = 1e-6
_FARTHEST = 4.0  # deviations from the training mean: beyond, an unknown architecture would lead anywhere
_AT_ONCE = 64
_LARGEST = 1e6  # networks that have blown up answer infinities


@dataclass(frozen=True, kw_only=True)
class ProbeMomentsConfig:
    """Sizes of the encoder."""

    probes: int = 8
    """Images of each scale."""
    answers: bool = True
    """Run the networks; without, only weights are read."""
    members: int = 8
    """Perceptrons that answer together."""
    width: int = 64
    """Of their two hidden layers."""
    dropout: float = 0.1

    def __post_init__(self):
        if min(self.probes, self.members, self.width) < 1:
            raise ConfigError(f"all sizes of ProbeMoments must be at least 1, got {self}")


class Members(nn.Module):
    """Several perceptrons of one shape."""

    def __init__(self, members: int, widths: Sequence[int], dropout: float):
        super().__init__()
        self.dropout = dropout
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([torch.randn(members, i, o) * math.sqrt(2 / i) for i, o in pairs])
        self.biases = nn.ParameterList([torch.zeros(members, 1, o) for _, o in pairs])

    def forward(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "*e m o"]:
        """Outputs of every member in training, their mean afterwards."""
        values = x.expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, values, weight)
            if i < len(self.weights) - 1:
                values = F.dropout(F.silu(values), self.dropout, self.training)
        return values if self.training else values.mean(0)


class ProbeMoments(WeightEncoder):
    """Symmetric moments of answers and weights, and an ensemble of perceptrons.

    >>> from weightspace.networks import CNN, MLP
    >>> cnn = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> encoder = ProbeMoments(ProbeMomentsConfig(), [cnn.architecture], outputs=1).eval()
    >>> other = Networks.of(torch.randn(3, 1210), Architecture.of(MLP(hidden=(16,))))
    >>> encoder(cnn).shape, encoder(other).shape
    (torch.Size([4, 1]), torch.Size([3, 1]))
    """

    name = "probe-moments"
    Config = ProbeMomentsConfig
    optimisation = PredictorTraining(epochs=60, batch_size=64, learning_rate=3e-3, weight_decay=1e-2)
    noise: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: ProbeMomentsConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.config = config
        if config.answers:
            for architecture in architectures:
                _classifier(architecture)
        # one noise for all shapes of images: as many channels as there may be, in cells that are interpolated
        self.register_buffer("noise", torch.randn(len(SCALES), config.probes, 3, max(SCALES), max(SCALES)))
        features = 4 * LAYER_MOMENTS + 4 * BIAS_MOMENTS + config.answers * (len(SCALES) * SCALE_MOMENTS + 3)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.head = Members(config.members, [features, config.width, config.width, outputs], config.dropout)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep mean and deviation of every feature."""
        found = torch.cat([self.features(some) for some in in_chunks(training, _AT_ONCE)])
        self.mean.copy_(found.mean(0))
        self.std.copy_(found.std(0).clamp_min(_LEAST))

    def probes(self, image_shape: tuple[int, int, int]) -> Float[Tensor, "n c h w"]:
        """Noise of every scale as images of a shape, of mean square 1."""
        channels, *size = image_shape
        noise = self.noise[:, :, torch.arange(channels) % self.noise.shape[2]]
        images = [
            F.interpolate(some[..., :cells, :cells], size=tuple(size), mode="bilinear", align_corners=False)
            for cells, some in zip(SCALES, noise, strict=True)
        ]
        together = torch.cat(images)
        return together / together.square().mean((1, 2, 3), keepdim=True).sqrt()

    @torch.no_grad()
    def features(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Moments of weights, then of answers; nothing is learned here."""
        found = [weight_moments(networks.rows, networks.architecture.graph)]
        if self.config.answers:
            network = _classifier(networks.architecture)
            probes = self.probes(network.image_shape).to(networks.rows.dtype)
            found.append(answer_moments(answers(networks, probes), len(SCALES)))
        return torch.cat(found, dim=1).nan_to_num(0.0, _LARGEST, -_LARGEST)

    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Standardised moments; none is further from the training mean than four deviations."""
        return ((self.features(networks) - self.mean) / self.std).clamp(-_FARTHEST, _FARTHEST)


def _classifier(architecture: Architecture) -> Classifier:
    network = known_network(architecture)
    if isinstance(network, SIREN):
        raise LayoutError("probe-moments reads classifiers of images, and these networks are images themselves")
    return network


# --- moments -----------------------------------------------------------------------------------------------------

LAYER_MOMENTS, BIAS_MOMENTS, SCALE_MOMENTS = 8, 2, 6
"""Numbers of a layer's weights, of its biases, and of the answers to probes of one scale."""


def weight_moments(rows: Float[Tensor, "m p"], graph: ParameterGraph) -> Float[Tensor, "m d"]:
    """Of all layers the first, the last, mean and deviation of: logarithmic size, size times the root of the fan-in,
    mean and largest value and fourth moment in units of the size, and spread of the logarithmic size over output units,
    input units and places; of biases logarithmic size and mean.

    >>> from weightspace.networks import CNN
    >>> weight_moments(torch.randn(2, 994), Architecture.of(CNN()).graph).shape
    torch.Size([2, 40])
    """
    layers = torch.stack([_layer_moments(rows[:, edges.index]) for edges in graph.edges], dim=1)
    vectors = [rows[:, values.index].flatten(1) for values in graph.values if values.role == "bias"]
    vectors = vectors or [rows.new_zeros(len(rows), 1)]
    biases = torch.stack([torch.stack([_log_size(vector, 1), vector.mean(1)], dim=1) for vector in vectors], dim=1)
    return torch.cat([_over_layers(layers), _over_layers(biases)], dim=1)


def _over_layers(moments: Float[Tensor, "m layer d"]) -> Float[Tensor, "m d4"]:
    parts = moments[:, 0], moments[:, -1], moments.mean(1), moments.std(1, correction=0)
    return torch.cat(parts, dim=1)


def _layer_moments(weights: Float[Tensor, "m t s f"]) -> Float[Tensor, "m d"]:
    size = _log_size(weights, (1, 2, 3))
    scaled = weights / size.exp()[:, None, None, None]
    fan_in = math.log(weights.shape[2] * weights.shape[3]) / 2
    spreads = [_log_size(weights, axes).std(1, correction=0) for axes in ((2, 3), (1, 3), (1, 2))]
    moments = [
        size, size + fan_in, scaled.mean((1, 2, 3)), scaled.abs().amax((1, 2, 3)).clamp_min(_LEAST).log(),
        scaled.square().square().mean((1, 2, 3)).clamp_min(_LEAST).log(), *spreads,
    ]  # fmt: skip
    return torch.stack(moments, dim=1)


def _log_size(values: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    return values.square().mean(axes).clamp_min(_LEAST**2).log() / 2


def answer_moments(logits: Float[Tensor, "m n k"], scales: int) -> Float[Tensor, "m d"]:
    """Symmetric functions of the answers to probes of each scale, and of all.

    Of each scale: mean confidence, mean and deviation of the entropy (as a share of the most there can be), logarithmic
    size of logits and of their part that depends on the image, entropy of the mean answer. Of all: logarithmic size of
    the part that depends on the image, and in how many directions it varies, over images and as a share.

    >>> answer_moments(torch.randn(3, 10, 4), scales=5).shape
    torch.Size([3, 33])
    """
    logits = logits.nan_to_num(0.0).clamp(-_LARGEST, _LARGEST)
    logits = logits - logits.mean(2, keepdim=True)
    most = math.log(logits.shape[2])
    moments = []
    for some in logits.chunk(scales, dim=1):
        shares = some.softmax(2)
        entropy = _entropy(shares) / most
        varying = some - some.mean(1, keepdim=True)
        moments += [
            shares.amax(2).mean(1), entropy.mean(1), entropy.std(1, correction=0), _log_size(some, (1, 2)),
            _log_size(varying, (1, 2)), _entropy(shares.mean(1)) / most,
        ]  # fmt: skip
    varying = logits - logits.mean(1, keepdim=True)
    gram = varying.transpose(1, 2) @ varying
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    directions = trace.square() / gram.square().sum((1, 2)).clamp_min(_LEAST**2)
    moments += [_log_size(varying, (1, 2)), directions, directions / logits.shape[2]]
    return torch.stack(moments, dim=1)


def _entropy(shares: Float[Tensor, "*m k"]) -> Float[Tensor, "*m"]:
    return -(shares * shares.clamp_min(1e-12).log()).sum(-1)
