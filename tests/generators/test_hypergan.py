"""HyperGAN: who learns from which loss, the pre-training of the mixer, and training on digits."""

import math

import pytest
import torch
from torch.nn import functional as F

from weightspace import datasets
from weightspace.errors import ConfigError
from weightspace.generators import AdversarialConfig, HypernetworkConfig, Manifold, ManifoldConfig
from weightspace.generators.gauge import symmetry_of_network
from weightspace.generators.hypergan import ENOUGH, Adversary, code_shape, moment_distance, pretrain_mixer
from weightspace.generators.hypernetwork import Hypernetwork
from weightspace.networks import MLP
from weightspace.networks.population import population_metrics
from weightspace.training import TrainingConfig

TARGET = MLP(hidden=(16,))
MIXER = HypernetworkConfig(latent=24, extractor=(48,), layer_code=8, generators=((32,),), share="layer")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, MIXER.latent, generator=generator)


@pytest.fixture
def mixed() -> Hypernetwork:
    module = Hypernetwork(symmetry_of_network(TARGET), MIXER)
    module.reset(seeded())
    return module


def test_one_code_makes_a_layer(mixed):
    assert code_shape(mixed) == (2, 8)
    rows, codes = mixed.rows_and_codes(normal(4, seeded()))
    assert torch.equal(mixed.rows(codes), rows) and codes.shape == (4, 16)


def test_each_loss_teaches_its_own_weights(mixed):
    """The mixer does not learn to be recognised, the discriminator does not learn to be deceived."""
    adversary = Adversary(mixed, AdversarialConfig(hidden=(16,)))
    adversary.reset(seeded(1))
    latents, prior = normal(12, seeded(2)), torch.randn(12, 2, 8, generator=seeded(3))
    _, losses = adversary(latents, prior)
    mixer, judge = list(mixed.extractor.parameters()), list(adversary.discriminator.parameters())
    for loss, own, other in (("mixer", mixer, judge), ("discriminator", judge, mixer)):
        gradients = torch.autograd.grad(losses[loss], own, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        strange = torch.autograd.grad(losses[loss], other, retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.abs().sum() == 0 for gradient in strange)
    # the losses of the paper, with a sigmoid once and not twice
    codes = mixed.rows_and_codes(latents)[1].unflatten(1, (2, 8))
    made, real = (adversary.discriminator(some).sigmoid() for some in (codes, prior))
    torch.testing.assert_close(losses["mixer"], -made.log().mean())
    torch.testing.assert_close(losses["discriminator"], -real.log().mean() - (1 - made).log().mean())


def test_a_discriminator_learns_and_a_mixer_deceives_it(mixed):
    """Codes far from the prior are recognised; a mixer that follows the verdict comes nearer to the prior."""
    adversary = Adversary(mixed, AdversarialConfig(hidden=(32,)))
    adversary.reset(seeded(1))
    with torch.no_grad():
        mixed.extractor[-1].weight *= 4  # codes are four times too wide
    generator = seeded(4)
    for learner, key, steps in ((adversary.discriminator, "discriminator", 80), (adversary, "both", 150)):
        optimiser = torch.optim.Adam(learner.parameters(), lr=3e-3)
        for _ in range(steps):
            _, losses = adversary(normal(100, generator), torch.randn(100, 2, 8, generator=generator))
            loss = losses["discriminator"] + (losses["mixer"] if key == "both" else 0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if key == "discriminator":
            recognised = float(losses["discriminator"].detach())
            before = float(
                moment_distance(mixed.rows_and_codes(normal(1000, seeded(5)))[1].unflatten(1, (2, 8))).detach()
            )
    after = float(moment_distance(mixed.rows_and_codes(normal(1000, seeded(5)))[1].unflatten(1, (2, 8))).detach())
    assert recognised < 1.0 < 2 * math.log(2)  # two coins cost 1.39
    assert after < 0.3 * before


def test_pretraining_brings_mean_and_covariance_to_the_prior(mixed):
    with torch.no_grad():
        mixed.extractor[-1].weight *= 2
    config = AdversarialConfig(pretraining_steps=300, pretraining_batch=500)
    distances = pretrain_mixer(mixed, normal, config, learning_rate=3e-3, generator=seeded(6))
    assert distances[0] > 10 * ENOUGH and distances[-1] < ENOUGH and len(distances) < 300
    codes = mixed.extractor(normal(2000, seeded(7))).detach().unflatten(1, (2, 8))
    for layer in range(2):
        assert codes[:, layer].mean(0).abs().max() < 0.3
        torch.testing.assert_close(torch.cov(codes[:, layer].T), torch.eye(8), rtol=0, atol=0.45)


def test_moments_of_each_layer_count_apart():
    """Two layers whose mixture has the prior's moments, but neither of them has."""
    codes = torch.randn(4000, 2, 3, generator=seeded())
    assert moment_distance(codes) < 0.02
    apart = codes[..., :1] * 0.1 + torch.tensor([[0.995], [-0.995]])
    assert moment_distance(apart.flatten(0, 1)[:, None]) < 0.02
    assert moment_distance(apart) > 1.9


def test_hypergan_learns_digits():
    data = datasets.load("digits")
    config = ManifoldConfig(
        hypernetwork=MIXER, prior="normal", accuracy_weight=math.inf, epoch_steps=100,
        adversarial=AdversarialConfig(pretraining_steps=50, pretraining_batch=200),
    )  # fmt: skip
    short = TrainingConfig(epochs=2, batch_size=12, learning_rate=3e-3, weight_decay=0.0, accelerator="cpu")
    fitted = Manifold.fit(TARGET, data, config=config, optimisation=short)
    _, accuracy = population_metrics(TARGET, fitted.sample(20).weights(), data.test_images, data.test_labels)
    assert float(accuracy.mean()) > 0.7  # untrained ones have .1
    last = fitted.header["fit"]["last"]
    assert last["validation_disagreement"] > 0 and 0 < last["train_mixer"] < 5
    assert last["train_loss"] == pytest.approx(
        last["train_cross_entropy"] + last["train_mixer"] + last["train_discriminator"], rel=1e-4
    )


def test_saved_without_the_discriminator(tmp_path):
    config = ManifoldConfig(hypernetwork=MIXER, adversarial=AdversarialConfig(hidden=(5,)))
    fitted = Manifold(TARGET, config, {"network": {"family": "MLP", "hidden": [16]}})
    fitted.module.reset(seeded())
    fitted.save_pretrained(tmp_path)
    loaded = Manifold.from_pretrained(tmp_path)
    assert loaded.config == config and torch.equal(loaded.sample(2).weights(), fitted.sample(2).weights())


def test_bad_input_is_one_sentence(mixed):
    for wrong, says in (
        ({"hidden": (0,)}, "sizes"),
        ({"weight": -1.0}, "weight"),
        ({"pretraining_steps": -1}, "steps"),
    ):
        with pytest.raises(ConfigError, match=says):
            AdversarialConfig(**wrong)
    for share in ("unit", "none", "chunk"):
        other = Hypernetwork(symmetry_of_network(TARGET), HypernetworkConfig(share=share))
        with pytest.raises(ConfigError, match="codes of one size"):
            Adversary(other, AdversarialConfig())
    verdict = F.binary_cross_entropy_with_logits(torch.zeros(1), torch.ones(1))
    assert float(verdict) == pytest.approx(math.log(2))
