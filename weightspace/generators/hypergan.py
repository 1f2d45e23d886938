"""HyperGAN's diversity (Ratzlaff and Li, 2019): codes of layers are held to a prior by a discriminator.

    mixer Q: s to one code a layer;  generators G: a code to all parameters of its layer
    Q, G minimise  cross-entropy + β BCE(D(q), 1);   D minimises  BCE(D(n), 1) + BCE(D(q), 0),  n ~ N(0, I)

Mixer and generators are a `Hypernetwork` with one code for each layer. No discriminator looks at weights. Before
training, mean and covariance of the codes are brought to those of the prior.

Axes: m network, z latent scalar, l layer, c value of a code, p parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.generators.hypernetwork import Hypernetwork

SLOPE = 0.2
"""Of the discriminator's leaky ReLU."""
ENOUGH = 0.1
"""Distance of the codes' moments to the prior's, a value of a code, at which the mixer's pre-training ends."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator of codes, and the pre-training of what makes them.

    >>> AdversarialConfig(weight=-1.0)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: weight of the adversarial loss must be at least 0, got -1.0
    """

    weight: float = 1.0
    """β, of the discriminator's verdict in the mixer's loss."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden widths of the discriminator."""
    pretraining_steps: int = 1000
    """Most steps of the mixer's pre-training; it ends before if the moments are near enough."""
    pretraining_batch: int = 1000
    """Draws in each of these steps."""

    def __post_init__(self):
        if not self.weight >= 0:
            raise ConfigError(f"weight of the adversarial loss must be at least 0, got {self.weight}")
        if min(*self.hidden, self.pretraining_batch) < 1 or self.pretraining_steps < 0:
            raise ConfigError(f"sizes and steps of a discriminator must be at least 1, got {self}")


class Adversary(nn.Module):
    """A hypernetwork and the discriminator of its codes, trained together.

    Raises:
        ConfigError: Codes differ in size.

    >>> from weightspace.generators.gauge import symmetry_of_network
    >>> from weightspace.generators.hypernetwork import HypernetworkConfig
    >>> from weightspace.networks import MLP
    >>> mixed = Hypernetwork(symmetry_of_network(MLP()), HypernetworkConfig(share="layer"))
    >>> rows, losses = Adversary(mixed, AdversarialConfig())(torch.zeros(2, 32), torch.randn(2, 2, 16))
    >>> rows.shape, list(losses)
    (torch.Size([2, 1060]), ['mixer', 'discriminator'])
    """

    def __init__(self, hypernetwork: Hypernetwork, config: AdversarialConfig):
        super().__init__()
        self.hypernetwork = hypernetwork
        self.layers, self.size = code_shape(hypernetwork)
        parts: list[nn.Module] = []
        for width, size in zip(config.hidden, (self.size, *config.hidden), strict=False):
            parts += [nn.Linear(size, width), nn.LeakyReLU(SLOPE)]
        self.discriminator = nn.Sequential(*parts, nn.Linear((self.size, *config.hidden)[-1], 1))

    def reset(self, generator: torch.Generator) -> None:
        """Fresh weights of the discriminator."""
        for module in self.discriminator:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(
        self, latents: Float[Tensor, "m z"], prior: Float[Tensor, "m l c"]
    ) -> tuple[Float[Tensor, "m p"], dict[str, Tensor]]:
        """Rows, and the losses of mixer and discriminator (nats); each has gradients for its own weights alone.

        Args:
            prior: What the codes are held to, drawn from N(0, I).
        """
        rows, codes = self.hypernetwork.rows_and_codes(latents)
        codes = codes.unflatten(1, (self.layers, self.size))
        judge = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        verdict = functional_call(self.discriminator, judge, (codes,))
        real, made = self.discriminator(prior), self.discriminator(codes.detach())
        return rows, {
            "mixer": _cross_entropy(verdict, 1.0),
            "discriminator": _cross_entropy(real, 1.0) + _cross_entropy(made, 0.0),
        }


def code_shape(hypernetwork: Hypernetwork) -> tuple[int, int]:
    """Number and size of the codes of a hypernetwork.

    Raises:
        ConfigError: Codes differ in size, or there are none.
    """
    sizes = {size for _, size in hypernetwork.codes}
    if len(sizes) != 1 or hypernetwork.config.share in ("none", "chunk"):
        raise ConfigError(
            f"a discriminator needs codes of one size, but this hypernetwork has {sorted(sizes)} and "
            f"share={hypernetwork.config.share!r}: use share='layer', or equal unit_code and layer_code"
        )
    return sum(count for count, _ in hypernetwork.codes), sizes.pop()


def moment_distance(codes: Float[Tensor, "m l c"]) -> Float[Tensor, ""]:
    """‖mean‖² + ‖covariance - I‖² of the codes of each layer, averaged over layers and divided by the size of a code.

    >>> normal = torch.randn(4000, 3, 2, generator=torch.Generator().manual_seed(0))
    >>> bool(moment_distance(normal) < 0.01), bool(moment_distance(2 * normal) > 5)
    (True, True)
    """
    mean = codes.mean(0)
    centred = (codes - mean).movedim(1, 0)
    covariance = centred.mT @ centred / (len(codes) - 1)
    distance = mean.square().sum(1) + (covariance - torch.eye(codes.shape[2])).square().sum((1, 2))
    return distance.mean() / codes.shape[2]


def pretrain_mixer(
    hypernetwork: Hypernetwork,
    draw: Callable[[int, torch.Generator], Float[Tensor, "n z"]],
    config: AdversarialConfig,
    *,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """Bring mean and covariance of the codes to those of N(0, I), in place.

    Args:
        draw: Latents from their prior, `draw(n, generator)`.

    Returns:
        Distance of the moments before every step, see `moment_distance`.

    Raises:
        ConfigError: Codes differ in size.
    """
    layers, size = code_shape(hypernetwork)
    optimiser = torch.optim.Adam(hypernetwork.extractor.parameters(), lr=learning_rate)
    hypernetwork.train()
    distances: list[float] = []
    for _ in range(config.pretraining_steps):
        codes = hypernetwork.extractor(draw(config.pretraining_batch, generator)).unflatten(1, (layers, size))
        loss = moment_distance(codes)
        distances.append(float(loss.detach()))
        if distances[-1] < ENOUGH:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return distances


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
