"""The manifold hypernetwork on digits: what training does, vectorised against one by one, files."""

import json
import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightspace import datasets, networks
from weightspace.errors import ConfigError, DatasetError, UnknownName, WeightspaceError
from weightspace.evaluation.generation import evaluate_generation
from weightspace.generators import HypernetworkConfig, Manifold, ManifoldConfig
from weightspace.generators.batch_norm import with_running_statistics
from weightspace.generators.entropy import entropy
from weightspace.networks import CNN, MLP, Layout, ResNet
from weightspace.networks.population import population_logits, population_metrics
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo

TARGET = MLP(hidden=(16,))
SHORT = TrainingConfig(epochs=3, batch_size=12, learning_rate=3e-3, weight_decay=0.0, accelerator="cpu")
NORMED = CNN(channels=(4, 4), batch_norm=True)
RESIDUAL = ResNet(image_shape=(1, 8, 8), widths=(4, 6), blocks=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


def fit(data, network=TARGET, *, epochs=3, **changes) -> Manifold:
    return Manifold.fit(network, data, config=ManifoldConfig(**changes), optimisation=replace(SHORT, epochs=epochs))


@pytest.fixture(scope="module")
def fitted(data):
    return fit(data)


@pytest.fixture(scope="module")
def normed(data):
    optimisation = replace(SHORT, epochs=1, batch_size=16, learning_rate=0.03)
    config = ManifoldConfig(epoch_steps=120, images=16, accuracy_weight=1e4)
    return Manifold.fit(NORMED, data, config=config, optimisation=optimisation)


def test_samples_are_accurate_after_a_short_training(fitted, data):
    fresh = Manifold(TARGET, ManifoldConfig(), {})
    fresh.module.reset(seeded())
    before, _ = population_metrics(TARGET, fresh.sample(20).weights(), data.test_images, data.test_labels)
    after, accuracy = population_metrics(TARGET, fitted.sample(20).weights(), data.test_images, data.test_labels)
    assert float(after.mean()) < 0.3 * float(before.mean())
    assert float(accuracy.mean()) > 0.9
    history = fitted.header["fit"]["last"]
    assert history["validation_accuracy_min"] <= history["validation_accuracy"]
    assert 0 < history["validation_disagreement"] < 0.2
    assert history["validation_loss"] == pytest.approx(1 - history["validation_accuracy"])


def test_entropy_spreads_networks(data):
    """λ = 30 against accuracy alone, from the same start and the same batches."""
    diverse, alone = (fit(data, epochs=2, accuracy_weight=weight) for weight in (30.0, math.inf))
    last, plain = diverse.header["fit"]["last"], alone.header["fit"]["last"]
    assert last["validation_separation"] > 1.2 * plain["validation_separation"]
    assert last["validation_entropy"] > plain["validation_entropy"]
    assert last["validation_disagreement"] > plain["validation_disagreement"]


def test_rescaling_raises_the_entropy_of_weights_but_not_that_of_gauged_weights(fitted):
    rows = fitted.sample(24).weights().double()
    state = fitted.layout.unflatten(rows)
    scaled = state | {name: state[name] / 8 for name in ("fc1.weight", "fc1.bias")}
    scaled["fc2.weight"] = state["fc2.weight"] * 8
    scaled["fc2.bias"] = state["fc2.bias"] + 3
    others = torch.cat([scaled[spec.name].flatten(1) for spec in fitted.layout.tensors], dim=1)
    assert float(entropy(others, dimension=32)) > float(entropy(rows, dimension=32)) + 10
    gauged = [float(entropy(fitted.gauge.fixed(some), dimension=32)) for some in (rows, others)]
    assert gauged[0] == pytest.approx(gauged[1], abs=1e-3)  # 1e-8 below the root of smaller weights


@pytest.mark.parametrize("network", [TARGET, CNN(channels=(4, 6), hidden=(7,)), NORMED, RESIDUAL])
def test_vectorised_forward_equals_one_by_one(network, data):
    generator = Manifold(network, ManifoldConfig(), {}, data.train_images[:50])
    generator.module.reset(seeded())
    rows = generator.rows(generator.latents(5, seeded()))
    images = data.train_images[torch.randint(1000, (5, 7), generator=seeded(1))]
    found = generator.logits(rows, images)
    for i in range(5):
        module = network.build()
        module.load_state_dict(generator.layout.unflatten(rows[i]), strict=False)
        module.eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.train()  # statistics of the network's own images
        # float32 sums in another order
        torch.testing.assert_close(found[i], module(images[i]), rtol=1e-4, atol=1e-4)


def test_objective_is_the_equation(data):
    generator = Manifold(TARGET, ManifoldConfig(accuracy_weight=50.0, diversity_warmup=0.5), {})
    generator.module.reset(seeded())
    generator.module.train()
    images, labels = data.train_images[:48].reshape(4, 12, 1, 8, 8), data.train_labels[:48].reshape(4, 12)
    latents = generator.latents(4, seeded())
    parts = generator.objective(generator.module, latents, images, labels, steps=8)
    generator.module.steps -= 1
    logits = generator.logits(generator.module(latents), images)
    torch.testing.assert_close(parts["cross_entropy"], F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    # the first of four steps of the warm-up
    expected = parts["cross_entropy"] - parts["entropy"] / 50 / 4
    torch.testing.assert_close(parts["loss"], expected, rtol=1e-5, atol=0)
    for _ in range(5):
        parts = generator.objective(generator.module, latents, images, labels, steps=8)
    torch.testing.assert_close(parts["loss"], parts["cross_entropy"] - parts["entropy"] / 50, rtol=1e-5, atol=0)


def test_a_prior_adds_its_negative_logarithm(data):
    """Up to the constant of the density, which torch knows."""
    plain, bayes = (Manifold(TARGET, ManifoldConfig(accuracy_weight=50.0, prior_std=std), {}) for std in (None, 0.3))
    images, labels = data.train_images[:48].reshape(4, 12, 1, 8, 8), data.train_labels[:48].reshape(4, 12)
    found = []
    for generator in (plain, bayes):
        generator.module.reset(seeded())
        parts = generator.objective(generator.module, generator.latents(4, seeded()), images, labels, steps=8)
        found.append(parts["loss"].detach())
    rows = bayes.module(bayes.latents(4, seeded())).detach()
    density = torch.distributions.Normal(0.0, 0.3)
    surprise = (density.log_prob(torch.tensor(0.0)) - density.log_prob(rows)).sum(1).mean()
    torch.testing.assert_close(50 * (found[1] - found[0]), surprise, rtol=1e-3, atol=1e-2)


def test_an_infinite_weight_leaves_no_gradient_of_the_entropy(data):
    generator = Manifold(TARGET, ManifoldConfig(accuracy_weight=math.inf), {})
    generator.module.reset(seeded())
    images, labels = data.train_images[:48].reshape(4, 12, 1, 8, 8), data.train_labels[:48].reshape(4, 12)
    parts = generator.objective(generator.module, generator.latents(4, seeded()), images, labels, steps=8)
    assert torch.equal(parts["loss"], parts["cross_entropy"]) and not parts["entropy"].requires_grad


@pytest.mark.parametrize(
    "changes",
    [
        {"prior": "normal"},
        {"norm": "L1"},
        {"neighbour": 3},
        {"dimension": 4},
        {"fix_scale": False},
        {"fix_shift": False},
        {"network": MLP(activation="tanh"), "fix_sign": True},
        {"fix_order": "sort"},
        {"fix_order": "align"},
        {"diversity_warmup": 1.0},
        {"prior_std": 0.3},
        {"images": 20},
        {"hypernetwork": HypernetworkConfig(share="layer")},
        {"hypernetwork": HypernetworkConfig(unit_code=4)},
        {"hypernetwork": HypernetworkConfig(layer_code=4)},
        {"hypernetwork": HypernetworkConfig(generators=())},
        {"hypernetwork": HypernetworkConfig(extractor=(32,))},
    ],
    ids=repr,
)
def test_every_option_changes_the_result(changes, data):
    """Three steps are enough to see it."""
    network = {"network": changes["network"]} if "network" in changes else {}
    plain, other = (fit(data, epochs=1, epoch_steps=3, **options) for options in (network, changes))
    assert not torch.equal(plain.sample(2).weights(), other.sample(2).weights())


def test_equal_seeds_equal_everything(data):
    first, second = fit(data, epochs=1, epoch_steps=5), fit(data, epochs=1, epoch_steps=5)
    assert torch.equal(first.sample(3, seed=4).weights(), second.sample(3, seed=4).weights())
    assert not torch.equal(first.sample(3, seed=4).weights(), first.sample(3, seed=5).weights())
    again = Manifold.fit(
        TARGET, data, config=ManifoldConfig(epoch_steps=5), optimisation=replace(SHORT, epochs=1, seed=1)
    )
    assert not torch.equal(again.sample(3, seed=4).weights(), first.sample(3, seed=4).weights())


def test_samples_do_not_depend_on_their_number(fitted):
    torch.testing.assert_close(
        fitted.sample(2, seed=7).weights(), fitted.sample(5, seed=7).weights()[:2], rtol=1e-5, atol=1e-6
    )


def test_samples_are_a_zoo_that_can_be_saved(fitted, tmp_path):
    drawn = fitted.sample(4, seed=1)
    kept = drawn.save(tmp_path / "zoo")
    assert isinstance(drawn, Zoo) and torch.equal(kept.weights(), drawn.weights())
    assert networks.from_json(kept.header["network"]) == TARGET and kept.header["dataset"]["name"] == "digits"


def test_files_keep_everything(normed, tmp_path):
    normed.save_pretrained(tmp_path / "a")
    loaded = Manifold.from_pretrained(tmp_path / "a")
    assert loaded.config == normed.config and loaded.header == normed.header and loaded.network == NORMED
    assert torch.equal(loaded.sample(3, seed=2).weights(), normed.sample(3, seed=2).weights())
    infinite = Manifold(TARGET, ManifoldConfig(accuracy_weight=math.inf), {"network": networks.to_json(TARGET)})
    infinite.save_pretrained(tmp_path / "b")
    json.loads((tmp_path / "b" / "config.json").read_text(), parse_constant=pytest.fail)
    assert Manifold.from_pretrained(tmp_path / "b").config == infinite.config


def test_a_folder_continues_and_keeps_the_fit(data, tmp_path):
    config = ManifoldConfig(epoch_steps=4, diversity_warmup=0.5)
    whole = Manifold.fit(TARGET, data, config=config, optimisation=SHORT, folder=tmp_path / "whole")
    loaded = Manifold.from_pretrained(tmp_path / "whole")
    assert torch.equal(loaded.sample(3).weights(), whole.sample(3).weights())
    again = Manifold.fit(TARGET, data, config=config, optimisation=SHORT, folder=tmp_path / "whole")
    assert torch.equal(again.sample(3).weights(), whole.sample(3).weights())
    with pytest.raises(ConfigError, match="other settings"):
        Manifold.fit(TARGET, data, config=replace(config, norm="L1"), optimisation=SHORT, folder=tmp_path / "whole")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "does not describe"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "cannot read the weights"),
        (lambda folder: edit(folder, version=99), "update weightspace"),
        (lambda folder: edit(folder, header=None), "lacks 'header'"),
        (lambda folder: edit(folder, config={"priors": "normal"}), "prior"),
        (lambda folder: edit(folder, config={"hypernetwork": {"latent": 5}}), "does not fit the sizes"),
    ],
)
def test_damaged_folders_are_one_sentence(fitted, tmp_path, damage, says):
    fitted.save_pretrained(tmp_path / "g")
    damage(tmp_path / "g")
    with pytest.raises(WeightspaceError, match=says):
        Manifold.from_pretrained(tmp_path / "g")


def edit(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_running_statistics_are_those_of_the_images(data):
    layout = Layout.of(NORMED.build())
    rows = torch.randn(3, layout.parameters, generator=seeded())
    made = with_running_statistics(NORMED, rows, data.train_images[:100])
    state = layout.unflatten(made)
    first = layout.unflatten(rows)
    for i in range(3):
        seen = F.conv2d(data.train_images[:100], first["conv1.weight"][i], first["conv1.bias"][i], padding=1)
        torch.testing.assert_close(state["norm1.running_mean"][i], seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state["norm1.running_var"][i], seen.var((0, 2, 3)), rtol=1e-4, atol=1e-4)
    weights = [name for name in state if "running" not in name]
    assert all(torch.equal(state[name], first[name]) for name in weights)


def test_networks_with_batch_normalisation_are_learned(normed, data):
    rows = normed.sample(10).weights()
    _, accuracy = population_metrics(NORMED, rows, data.test_images, data.test_labels)
    assert float(accuracy.mean()) > 0.5
    assert (normed.layout.unflatten(rows)["norm1.running_mean"].abs() > 0).all()


def test_residual_networks_are_learned(data):
    optimisation = replace(SHORT, epochs=1, batch_size=16, learning_rate=0.1)
    config = ManifoldConfig(epoch_steps=150, images=16, accuracy_weight=1e4)
    fitted = Manifold.fit(RESIDUAL, data, config=config, optimisation=optimisation)
    rows = fitted.sample(10).weights()
    _, accuracy = population_metrics(RESIDUAL, rows, data.test_images, data.test_labels)
    assert float(accuracy.mean()) > 0.25  # untrained ones have .1
    assert fitted.header["fit"]["last"]["validation_disagreement"] > 0


def test_paths_start_and_end_at_their_networks(fitted, normed):
    for generator in (fitted, normed):
        start, end = generator.latents(3, seeded(1)), generator.latents(3, seeded(2))
        learned, straight = generator.path(start, end, points=5)
        ends = generator.rows(torch.cat([start, end])).unflatten(0, (2, 3))
        for path in (learned, straight):
            assert path.shape == (5, 3, generator.layout.parameters)
            torch.testing.assert_close(path[[0, -1]], ends, rtol=1e-4, atol=1e-5)
        assert (learned[2] - straight[2]).abs().max() > 1e-3
    torch.testing.assert_close(
        straight[2][:, normed._free], straight[[0, -1]].mean(0)[:, normed._free], rtol=1e-4, atol=1e-5
    )


def test_bad_input_is_one_sentence(fitted, data):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        fitted.sample(0)
    with pytest.raises(DatasetError, match=r"\(1, 28, 28\)"):
        Manifold.fit(MLP(image_shape=(1, 28, 28)), data)
    with pytest.raises(ConfigError, match="neighbours"):
        Manifold.fit(TARGET, data, optimisation=replace(SHORT, batch_size=1))
    with pytest.raises((UnknownName, TypeError), match="L1"):
        ManifoldConfig(norm="L3")
    for wrong in (
        {"diversity_warmup": 2.0},
        {"images": 0},
        {"dimension": 0},
        {"accuracy_weight": 0.0},
        {"prior_std": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ManifoldConfig(**wrong)


def test_logits_of_samples_are_those_of_the_population(fitted, data):
    rows = fitted.sample(3).weights()
    images = data.test_images[:9]
    own = fitted.logits(rows, images.expand(3, *images.shape))
    torch.testing.assert_close(own.detach(), population_logits(TARGET, rows, images), rtol=1e-5, atol=1e-5)


def test_samples_are_audited_beside_a_zoo(digits_zoo, data):
    """The existing protocol takes them as any generator's."""
    zoo = digits_zoo.last().where(pl.col("config.activation") == "relu")
    generator = Manifold(MLP(), ManifoldConfig(), {"network": networks.to_json(MLP())})
    generator.module.reset(seeded())
    training, heldout = zoo.take(range(len(zoo) - 2)), zoo.take(range(len(zoo) - 2, len(zoo)))
    sources = {"manifold": generator.sample(6), "copies": training}
    tables = evaluate_generation(
        sources, data, training=training, heldout=heldout, align=generator_rows(generator), epochs=[0]
    )
    found = dict(tables.novelty.select("source", "verdict").rows())
    assert "inaccurate" in found["manifold"] and "replica" not in found["manifold"]
    assert "replica" in found["copies"]


def generator_rows(generator: Manifold):
    return lambda zoo: generator.gauge.fixed(zoo.weights())
