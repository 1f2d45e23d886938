"""A warm start: samples at the latents of a zoo are its networks, and training begins where they are."""

import polars as pl
import pytest
import torch

from weightspace import datasets, networks
from weightspace.errors import ConfigError, ZooError
from weightspace.generators import HypernetworkConfig, Manifold, ManifoldConfig, WarmStart
from weightspace.generators.gauge import Gauge
from weightspace.networks import MLP
from weightspace.networks.population import population_metrics
from weightspace.symmetry import align, gather_index, random_permutations
from weightspace.training import TrainingConfig

ONE_STEP = TrainingConfig(epochs=1, batch_size=4, learning_rate=3e-3, weight_decay=0.0, accelerator="cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(digits_zoo):
    return digits_zoo.last().where(pl.col("config.activation") == "relu")


def started(zoo, steps: int, seed: int = 0) -> tuple[Manifold, list[float]]:
    generator = Manifold(MLP(), ManifoldConfig(hypernetwork=HypernetworkConfig(extractor=(128,))), {})
    generator.module.reset(seeded(seed))
    errors = WarmStart(zoo=zoo, steps=steps, batch=8).fit(
        generator.module, generator.gauge, generator.latents, learning_rate=1e-2, generator=seeded(seed + 1)
    )
    return generator, errors


def test_a_hypernetwork_learns_a_zoo(trained):
    """It sees 10 networks and makes, at the latents of these, networks that are right where they are."""
    data = datasets.load("digits")
    generator, errors = started(trained, 400)
    assert sum(errors[-20:]) < 0.2 * sum(errors[:20])
    generator.module.eval()
    latents = generator.latents(len(trained), _after_alignment(generator, trained))
    made = generator.rows(latents)
    images, labels = data.validation_images, data.validation_labels
    _, own = population_metrics(MLP(), trained.weights(), images, labels)
    _, learned = population_metrics(MLP(), made, images, labels)
    assert float(learned.mean()) > float(own.mean()) - 0.15
    assert torch.equal(started(trained, 5)[0].sample(2).weights(), started(trained, 5)[0].sample(2).weights())


def _after_alignment(generator: Manifold, zoo) -> torch.Generator:
    """The random state in which a warm start draws the latents: alignment draws before."""
    state, rows = seeded(1), zoo.weights()
    align(rows, rows[0], generator.layout, generator.gauge.groups, state)
    return state


def test_renumbered_networks_cost_nothing(trained):
    """Units are aligned first, so that networks in random orders are as easy to learn as they are in their own."""
    gauge = Gauge.of(MLP())
    orders = random_permutations(gauge.groups, len(trained), seeded(9))
    shuffled = trained.weights().gather(1, gather_index(gauge.layout, gauge.groups, orders))
    shuffled[0] = trained.weights()[0]  # what the others are aligned to
    own, other = started(trained, 60)[1], started(trained.with_weights(shuffled), 60)[1]
    assert own == pytest.approx(other, rel=1e-4)


def test_training_begins_there(trained):
    """After one further step of training, samples are far better than without the warm start."""
    data = datasets.load("digits")
    config = ManifoldConfig(epoch_steps=1)
    cold, warm = (
        Manifold.fit(MLP(), data, config=config, optimisation=ONE_STEP, warm_start=start)
        for start in (None, WarmStart(zoo=trained, steps=300))
    )
    accuracy = [fitted.header["fit"]["last"]["validation_accuracy"] for fitted in (cold, warm)]
    assert accuracy[1] > accuracy[0] + 0.2


def test_bad_input_is_one_sentence(trained):
    other = Manifold(MLP(hidden=(5,)), ManifoldConfig(), {"network": networks.to_json(MLP(hidden=(5,)))})
    with pytest.raises(ZooError, match="another layout"):
        WarmStart(zoo=trained).fit(other.module, other.gauge, other.latents, learning_rate=1e-3, generator=seeded())
    broken = trained.with_weights(trained.weights() * float("nan"))
    with pytest.raises(ZooError, match="NaN"):
        started(broken, 1)
    with pytest.raises(ConfigError, match="batch"):
        WarmStart(zoo=trained, batch=1)
