"""A small GAN over latents (Schürholt et al., NeurIPS 2022, S_GAN, whose architecture is not published).

Latents of a few dozen prompts span a few dozen directions, so the networks work on the prompts' principal components,
each scaled to variance one. The loss compares real and made latents in pairs, with gradient penalties on both (Huang et
al., NeurIPS 2024, "The GAN is dead; long live the GAN!"): it converges where the plain loss circles.

Axes: m prompt, n network drawn, t token, z latent, k principal component, b latent in a batch, e noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.generators.latent_sampler import Density, Draw, LatentSampler

SLOPE = 0.2  # of the leaky ReLU
BETAS = (0.0, 0.99)  # of Adam: momentum makes two players circle


@dataclass(frozen=True, kw_only=True)
class LatentGANConfig:
    """Sizes and training of both networks.

    >>> LatentGANConfig(steps=10).batch
    64
    """

    components: int = 32
    """Principal components of the prompts, at most one less than there are prompts; variance outside is lost."""
    noise: int = 8
    """Size of what the generator is fed with."""
    width: int = 64
    """Of the two hidden layers of both networks."""
    steps: int = 1000
    batch: int = 64
    """Prompts in a step, drawn with replacement."""
    learning_rate: float = 2e-3
    """Of Adam, falling to zero over the steps by half a cosine."""
    penalty: float = 0.05
    """Weight of the discriminator's squared gradients at real and at made latents."""
    average: float = 0.98
    """The generator that is kept is a moving average over steps, of this weight on what was."""

    def __post_init__(self):
        if min(self.components, self.noise, self.width, self.steps, self.batch) < 1:
            raise ConfigError("components, noise, width, steps and batch of a latent GAN must be at least 1")
        if not self.learning_rate > 0 or self.penalty < 0 or not 0 <= self.average < 1:
            raise ConfigError("a latent GAN needs a learning_rate above 0, a penalty from 0 on, an average in [0, 1)")


def perceptron(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with leaky ReLUs between them, drawn anew."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, a=SLOPE, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


def squared_gradient(judge: nn.Module, points: Float[Tensor, "b k"]) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
    """A discriminator's verdicts, and the mean squared length of their gradients (R1 and R2 of the source)."""
    points = points.detach().requires_grad_()
    verdict = judge(points).squeeze(1)
    (gradient,) = torch.autograd.grad(verdict.sum(), points, create_graph=True)
    return verdict, gradient.square().sum(1).mean()


def train_generator(real: Float[Tensor, "m k"], config: LatentGANConfig, generator: torch.Generator) -> nn.Module:
    """A generator whose outputs are distributed as some points.

    This is not `training.train`: two networks with opposite losses are trained in turn, and there is no validation
    loss that could choose between epochs.
    """
    k = real.shape[1]
    maker = perceptron((config.noise, config.width, config.width, k), generator)
    judge = perceptron((k, config.width, config.width, 1), generator)
    kept = torch.optim.swa_utils.AveragedModel(
        maker, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    optimisers = [
        torch.optim.Adam(player.parameters(), lr=config.learning_rate, betas=BETAS) for player in (judge, maker)
    ]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps) for optimiser in optimisers]

    def pair() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(real), (config.batch,), generator=generator)
        return real[chosen], maker(torch.randn(config.batch, config.noise, generator=generator))

    for _ in range(config.steps):
        (verdict, at_real), (made_verdict, at_made) = (squared_gradient(judge, points) for points in pair())
        loss = F.softplus(made_verdict - verdict).mean() + config.penalty / 2 * (at_real + at_made)
        _step(optimisers[0], loss)
        points, made = pair()
        _step(optimisers[1], F.softplus(judge(points) - judge(made)).mean())
        for schedule in schedules:
            schedule.step()
        kept.update_parameters(maker)
    return kept.module.eval()


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


class LatentGAN(LatentSampler):
    """A GAN over the principal components of the prompts' latents, one for each activation."""

    name = "gan"
    Config = LatentGANConfig
    config: LatentGANConfig
    least = 2

    def density(self, latents: Float[Tensor, "m t z"], generator: torch.Generator) -> Density:
        """Train on given latents."""
        shape, mean = latents.shape[1:], latents.mean(0).flatten()
        scores, strength, direction = torch.linalg.svd(latents.flatten(1) - mean, full_matrices=False)
        k = min(self.config.components, len(latents) - 1, int((strength > 1e-5 * strength[0]).sum()))
        scale = len(latents) ** 0.5
        maker = train_generator(scores[:, :k] * scale, self.config, generator)
        back = strength[:k, None] / scale * direction[:k]

        @torch.no_grad()
        def drawn(n: int, source: torch.Generator) -> Draw:
            made = maker(torch.randn(n, self.config.noise, generator=source))
            return (mean + made @ back).unflatten(1, shape), None

        return drawn
