"""A warm start: samples at the latents of a zoo are its networks, and training begins where they are."""

import pytest
import torch

from weightspace import datasets, networks
from weightspace.errors import ConfigError, ZooError
from weightspace.evaluation.ensembles import Ensemble
from weightspace.generators import HypernetworkConfig, Manifold, ManifoldConfig, WarmStart
from weightspace.generators.gauge import Gauge
from weightspace.networks import MLP
from weightspace.networks.population import Hyperparameters, initial_rows, population_metrics, train_population
from weightspace.symmetry import align, gather_index, random_permutations
from weightspace.training import TrainingConfig

ONE_STEP = TrainingConfig(epochs=1, batch_size=4, learning_rate=1e-2, weight_decay=0.0, accelerator="cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def trained(data):
    """Twelve networks that are right about more than 90 % of the validation images."""
    one, seeds = torch.ones(12), torch.arange(12)
    settings = Hyperparameters(
        seeds=seeds, learning_rate=5e-3 * one, weight_decay=0 * one, dropout=0 * one, train_fraction=one
    )
    rows = initial_rows(MLP(), seeds, "kaiming_uniform", 0.4 * one)
    stages = train_population(
        MLP(), rows, settings, data.train_images, data.train_labels, epochs=12, batch_size=50, checkpoints=[12]
    )
    return Ensemble.of_rows(next(stages)[1], MLP()).zoo


def started(zoo, steps: int) -> tuple[Manifold, list[float]]:
    generator = Manifold(MLP(), ManifoldConfig(hypernetwork=HypernetworkConfig(extractor=(128,))), {})
    generator.module.reset(seeded())
    start = WarmStart(zoo=zoo, steps=steps)
    errors = start.fit(generator.module, generator.gauge, generator.latents, learning_rate=1e-2, generator=seeded(1))
    return generator, errors


def test_a_hypernetwork_learns_a_zoo(trained, data):
    """At the latents of the networks it makes networks that are right where they are, between them mixtures."""
    generator, errors = started(trained, 300)
    assert sum(errors[-20:]) < 0.2 * sum(errors[:20])
    state, rows = seeded(1), trained.weights()
    align(rows, rows[0], generator.layout, generator.gauge.groups, state)  # draws before the latents are drawn
    at, between = (
        generator.rows(latents) for latents in (generator.latents(12, state), generator.latents(20, seeded(5)))
    )
    images, labels = data.validation_images, data.validation_labels
    own, known, mixed = (
        float(population_metrics(MLP(), some, images, labels)[1].mean()) for some in (rows, at, between)
    )
    assert known > own - 0.05 and 0.3 < mixed < known
    assert torch.equal(started(trained, 5)[0].sample(2).weights(), started(trained, 5)[0].sample(2).weights())


def test_renumbered_networks_cost_nothing(trained):
    """Units are aligned first, so that networks in random orders are as easy to learn as they are in their own."""
    gauge = Gauge.of(MLP())
    orders = random_permutations(gauge.groups, len(trained), seeded(9))
    shuffled = trained.weights().gather(1, gather_index(gauge.layout, gauge.groups, orders))
    shuffled[0] = trained.weights()[0]  # what the others are aligned to
    own, other = started(trained, 30)[1], started(trained.with_weights(shuffled), 30)[1]
    assert own == pytest.approx(other, rel=1e-4)


def test_training_begins_there(trained, data):
    """After one step of training, samples are far better than without the warm start."""
    cold, warm = (
        Manifold.fit(MLP(), data, config=ManifoldConfig(epoch_steps=1), optimisation=ONE_STEP, warm_start=start)
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
