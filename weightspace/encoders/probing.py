"""ProbeGen: what networks answer to inputs that are learned for it.

Source: Kahana et al. (2025), "Deep Linear Probe Generators for Weight Space Learning" (ICLR); "Encoders of network
weights", section 10. A linear generator makes probes from learned latents; each network is run on all of them, and a
perceptron reads the answers. Whatever leaves the function of a network unchanged leaves its answers unchanged. Probing
needs the network itself, not only its weights, so compare it as a method that knows more than the others.

Axes: m network, p parameter, n probe, c channel, h height, w width, q value of a coordinate, k output, e value of an
embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder, perceptron
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import SIREN, Layout, Network
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.networks.population import with_activation
from weightspace.views.architecture import UNKNOWN_ACTIVATION, Architecture, Networks


@dataclass(frozen=True, kw_only=True)
class ProbeGenConfig:
    """Sizes of ProbeGen."""

    probes: int = 32
    """Inputs that every network is run on."""
    latent: int = 32
    """Values that a probe is made from."""
    width: int = 256
    """Of the perceptron behind the answers."""
    depth: int = 6
    """Its hidden layers."""

    def __post_init__(self):
        if min(self.probes, self.latent, self.width, self.depth) < 1:
            raise ConfigError(f"all sizes of ProbeGen must be at least 1, got {self}")

    @classmethod
    def published(cls) -> "ProbeGenConfig":
        """The size of the paper's best results."""
        return cls(probes=128)


class ImageProbes(nn.Module):
    """Images from latents by transposed convolutions without activations between them; in [-1, 1] by a last tanh."""

    def __init__(self, config: ProbeGenConfig, image_shape: tuple[int, int, int]):
        super().__init__()
        self.image_shape = image_shape
        self.latents = nn.Parameter(torch.randn(config.probes, config.latent, 1, 1))
        channels, side, width = image_shape[0], 4, 128
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent, width, 4)]
        while side < max(image_shape[1:]):
            layers.append(nn.ConvTranspose2d(width, max(width // 2, 16), 4, stride=2, padding=1))
            side, width = 2 * side, max(width // 2, 16)
        self.generator = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self) -> Float[Tensor, "n c h w"]:
        """The probes: the middle of what the generator makes."""
        images = self.generator(self.latents)
        top, left = ((have - need) // 2 for have, need in zip(images.shape[2:], self.image_shape[1:], strict=True))
        return images[:, :, top : top + self.image_shape[1], left : left + self.image_shape[2]].tanh()


class CoordinateProbes(nn.Module):
    """Coordinates from latents by two linear maps."""

    def __init__(self, config: ProbeGenConfig, inputs: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.probes, config.latent))
        self.generator = nn.Sequential(nn.Linear(config.latent, config.latent), nn.Linear(config.latent, inputs))

    def forward(self) -> Float[Tensor, "n q"]:
        """The probes."""
        return self.generator(self.latents)


class ProbeGen(WeightEncoder):
    """The answers of networks to generated probes, one generator for each shape of inputs.

    >>> from weightspace.networks import CNN
    >>> some = Networks.of(torch.randn(4, 994), Architecture.of(CNN()))
    >>> ProbeGen(ProbeGenConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "probe-gen"
    Config = ProbeGenConfig
    optimisation = PredictorTraining(learning_rate=1e-3)

    def __init__(self, config: ProbeGenConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        known = [_known(architecture) for architecture in architectures]
        self.probes = nn.ModuleDict()
        for network in known:
            if isinstance(network, SIREN):
                self.probes[_inputs(network)] = CoordinateProbes(config, network.inputs)
            else:
                self.probes[_inputs(network)] = ImageProbes(config, network.image_shape)
        self.answers = max(_answers(network) for network in known)
        widths = [config.probes * self.answers, *[config.width] * config.depth]
        self.body = nn.Sequential(perceptron(*widths), nn.ReLU())
        self.head = nn.Linear(config.width, outputs)

    def encode(self, networks: Networks) -> Float[Tensor, "m e"]:
        """Values of the last hidden layer; networks with fewer outputs than usual answer zero there."""
        network = _known(networks.architecture)
        if _inputs(network) not in self.probes:
            raise LayoutError(
                f"the networks read {_inputs(network)}, and there are probes for {sorted(self.probes)} only; train on "
                "networks with such inputs"
            )
        if _answers(network) > self.answers:
            raise LayoutError(f"the networks have {_answers(network)} outputs, the encoder was made for {self.answers}")
        probes = self.probes[_inputs(network)]().to(networks.rows.dtype)
        answers = networks.rows.new_zeros(len(networks), len(probes), self.answers)
        for number in networks.activations.unique().tolist():
            mine = (networks.activations == number).nonzero()[:, 0]
            given = _run(_with(networks.architecture, network, number), networks.rows[mine], probes)
            answers = answers.index_copy(0, mine, F.pad(given, (0, self.answers - given.shape[2])))
        return self.body(answers.flatten(1))


def _known(architecture: Architecture) -> Network:
    if architecture.network is None:
        raise LayoutError(
            "probing runs the networks, and this zoo does not say what its networks compute beside their weights; take "
            "an encoder of weights alone"
        )
    return architecture.network


def _inputs(network: Network) -> str:
    """What the network reads, as the name of its probes."""
    if isinstance(network, SIREN):
        return f"coordinates of {network.inputs} values"
    return "images of " + "x".join(map(str, network.image_shape))


def _answers(network: Network) -> int:
    return network.outputs if isinstance(network, SIREN) else network.classes


def _with(architecture: Architecture, network: Network, activation: int) -> Network:
    """The network with an activation of that number."""
    if activation == architecture.activation:
        return network
    if activation == UNKNOWN_ACTIVATION:
        raise LayoutError(
            "the activation of some networks is not known, so they cannot be run on probes; select others"
        )
    return with_activation(network, list(ACTIVATIONS)[activation])


def _run(network: Network, rows: Float[Tensor, "m p"], probes: Float[Tensor, "n *input"]) -> Float[Tensor, "m n k"]:
    """Outputs of every network on every probe, with gradients."""
    module, layout = _built(network)
    forward = vmap(lambda state, x: functional_call(module, state, (x,)), in_dims=(0, None))
    return forward(layout.unflatten(rows), probes)


@lru_cache(maxsize=128)
def _built(network: Network) -> tuple[nn.Module, Layout]:
    with torch.random.fork_rng(devices=[]):
        module = network.build().eval()
    return module.requires_grad_(False), Layout.of(module)
