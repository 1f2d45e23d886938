"""Ensembles of zoos: streamed against all at once, rules, selection, calibration, and copies that gain nothing."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from weightspace import datasets
from weightspace.errors import ConfigError, DatasetError, UnknownName
from weightspace.evaluation import ensembles
from weightspace.evaluation.calibration import best_temperature, predictive_entropy, tempered
from weightspace.evaluation.ensembles import Ensemble, ensemble_curve, paired_bootstrap, scores
from weightspace.evaluation.probabilities import population_probabilities
from weightspace.generators.gauge import Gauge
from weightspace.networks import CNN, MLP
from weightspace.networks.population import Hyperparameters, initial_rows, population_logits, train_population
from weightspace.zoo import Zoo, behaviour

TARGET = MLP(hidden=(16,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def trained(data) -> Ensemble:
    """Twelve networks after five epochs."""
    ones = torch.ones(12)
    rows = initial_rows(TARGET, torch.arange(12), "kaiming_uniform", ones / 2)
    settings = Hyperparameters(
        seeds=torch.arange(12), learning_rate=3e-3 * ones, weight_decay=0 * ones, dropout=0 * ones, train_fraction=ones
    )
    stages = train_population(
        TARGET, rows, settings, data.train_images, data.train_labels, epochs=5, batch_size=50, checkpoints=[5]
    )
    return Ensemble.of_rows(next(stages)[1], TARGET)


def probabilities(ensemble: Ensemble, images: torch.Tensor) -> torch.Tensor:
    return population_logits(TARGET, ensemble.zoo.weights(), images).softmax(2)


@pytest.mark.parametrize("block", [1, 700, 2**22])
def test_streamed_rules_equal_all_at_once(trained, data, block, monkeypatch):
    """Blocks of one member and a few images, of some, and everything."""
    monkeypatch.setattr(ensembles, "_AT_ONCE", block * 32)
    monkeypatch.setattr(ensembles, "_LEAST_MEMBERS", 5)
    images = data.test_images[:60]
    everything = probabilities(trained, images)
    found = trained.combine(images)
    torch.testing.assert_close(found.mean, everything.mean(0), rtol=1e-5, atol=1e-6)
    predicted = everything.argmax(2)
    votes = torch.nn.functional.one_hot(predicted, 10).sum(0)
    assert torch.equal(found.votes, votes)
    sure = everything.amax(2).argmax(0)
    torch.testing.assert_close(found.confident, everything[sure, torch.arange(60)], rtol=1e-5, atol=1e-6)
    pairs = [(predicted[i] != predicted[j]).float().mean() for i in range(12) for j in range(i)]
    assert found.disagreement == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    torch.testing.assert_close(trained.predict(images, "vote"), votes / 12)
    torch.testing.assert_close(found.right(data.test_labels[:60]), (predicted == data.test_labels[:60]).float().mean(0))


@pytest.mark.parametrize(
    "network",
    [TARGET, MLP(hidden=(7, 5), activation="tanh"), MLP(hidden=(), classes=4), MLP(bias=False), CNN()],
    ids=["one layer", "two layers", "none", "no bias", "cnn"],
)
def test_products_of_units_and_images_equal_the_module(network):
    """More networks and images than fit into a block."""
    count = sum(p.numel() for p in network.build().parameters())
    rows = torch.randn(35, count, generator=seeded()) / 4
    images = torch.randn(510, *network.image_shape, generator=seeded(1))
    found = population_probabilities(Ensemble.of_rows(rows, network).zoo, images)
    torch.testing.assert_close(found, population_logits(network, rows, images).softmax(2), rtol=1e-4, atol=1e-6)


def test_a_zoo_on_disk_with_several_activations(digits_zoo, data):
    zoo = digits_zoo.last()
    assert zoo.table["config.activation"].n_unique() == 2
    expected = behaviour.logits(zoo, data.test_images).softmax(2)
    torch.testing.assert_close(population_probabilities(zoo, data.test_images), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(Ensemble(zoo).predict(data.test_images), expected.mean(0), rtol=1e-4, atol=1e-6)
    chosen = zoo.where(pl.col("config.activation") == "relu")
    assert len(Ensemble(chosen)) == len(chosen)


def test_streamed_curve_equals_the_one_in_memory(trained, data):
    images, labels = data.test_images[:100], data.test_labels[:100]
    streamed = trained.curve(images, labels, generator=seeded(3), members=(1, 4, 12))
    whole = ensemble_curve(probabilities(trained, images), labels, generator=seeded(3), members=(1, 4, 12))
    assert streamed["members"].to_list() == [1, 4, 12]
    for name in ("accuracy", "nll", "brier", "ece"):
        np.testing.assert_allclose(streamed[name].to_numpy(), whole[name].to_numpy(), atol=1e-5)


def test_evaluation_is_the_scores_of_each_rule(trained, data):
    images, labels = data.test_images[:100], data.test_labels[:100]
    found = trained.evaluate(images, labels)
    assert found["rule"].to_list() == ["single", "mean", "vote", "confident"]
    single = {name: float(value.mean()) for name, value in scores(probabilities(trained, images), labels).items()}
    for rule in ("mean", "vote", "confident"):
        expected = scores(trained.predict(images, rule)[None], labels)
        row = found.row(by_predicate=pl.col("rule") == rule, named=True)
        assert row["brier"] == pytest.approx(float(expected["brier"]), abs=1e-6)
        assert row["members"] == 12
    assert found["accuracy"][0] == pytest.approx(single["accuracy"], abs=1e-6)
    assert found["nll"][0] > found["nll"][1] and found["nll"][2] is None  # Jensen


def test_copies_by_symmetry_gain_exactly_nothing(trained, data):
    """The control of section 8; rows differ, answers do not."""
    one = trained.zoo.take([3]).weights()
    copies = Gauge.of(TARGET).equivalents(one.expand(40, -1), seeded())
    assert (copies - one).norm(dim=1).min() > 1
    combined = Ensemble.of_rows(copies, TARGET).combine(data.test_images)
    right = (combined.mean.argmax(1) == data.test_labels).float()
    assert combined.disagreement == 0
    assert torch.equal(right, combined.right(data.test_labels))
    assert paired_bootstrap(right, combined.right(data.test_labels)) == (0.0, 0.0, 0.0)
    other = trained.combine(data.test_images)  # and different networks do gain
    gain, low, _ = paired_bootstrap((other.mean.argmax(1) == data.test_labels).float(), other.right(data.test_labels))
    assert other.disagreement > 0.02 and gain > 0 and low > 0


def test_greedy_selection_by_a_loop(trained, data):
    images, labels = data.validation_images, data.validation_labels
    found = trained.selected(images, labels, members=4)
    true = probabilities(trained, images).gather(2, labels.expand(12, -1)[..., None])[..., 0].double()
    chosen: list[int] = []
    for _ in range(4):
        nll = {i: -true[[*chosen, i]].mean(0).log().mean() for i in range(12) if i not in chosen}
        best = min(nll, key=nll.__getitem__)
        if chosen and nll[best] >= -true[chosen].mean(0).log().mean():
            break
        chosen.append(best)
    assert torch.equal(found.zoo.weights(), trained.zoo.weights()[chosen])
    assert len(trained.selected(images, labels, members=1)) == 1


def test_greedy_selection_stops_when_nothing_improves(trained, data):
    same = Ensemble(trained.zoo.take([2, 2, 2]))
    assert len(same.selected(data.validation_images, data.validation_labels, members=3)) == 1


def test_temperature_of_known_answers():
    """Labels drawn from p^(1/T): the temperature comes back, and the tempered probabilities are calibrated."""
    honest = (2 * torch.randn(20_000, 4, generator=seeded())).softmax(1)
    labels = torch.multinomial(honest, 1, generator=seeded(1))[:, 0]
    for t in (0.5, 1.0, 3.0):
        sure = tempered(honest, 1 / t)
        assert best_temperature(sure, labels) == pytest.approx(t, rel=0.05)
        torch.testing.assert_close(tempered(sure, t), honest, rtol=1e-3, atol=1e-4)


def test_calibration_lowers_the_nll_and_keeps_the_classes(trained, data):
    images, labels = data.validation_images, data.validation_labels
    calibrated = trained.calibrated(images, labels)
    assert calibrated.temperature != 1.0
    before, after = (scores(e.predict(images)[None], labels)["nll"] for e in (trained, calibrated))
    assert float(after) < float(before)
    assert torch.equal(calibrated.predict(images).argmax(1), trained.predict(images).argmax(1))
    assert torch.equal(calibrated.predict(images, "vote"), trained.predict(images, "vote"))


def test_outliers_are_told_by_their_entropy(trained, data):
    images = data.test_images[:200]
    noise = torch.randn(200, 1, 8, 8, generator=seeded(5))
    found = trained.outlier_auroc(images, noise)
    known, other = (predictive_entropy(trained.predict(x)) for x in (images, noise))
    above = (other[:, None] > known).float().mean() + (other[:, None] == known).float().mean() / 2
    assert found == pytest.approx(float(above), abs=1e-5)
    assert found > 0.7 and trained.outlier_auroc(images, images) == pytest.approx(0.5)


def test_entropy_of_classes():
    assert float(predictive_entropy(torch.full((1, 10), 0.1))) == pytest.approx(math.log(10), rel=1e-5)


def test_interval_of_a_paired_difference():
    """Mean .1, deviation of the mean .3 / √900: the interval of 95 % is ± 1.96 of it."""
    second = torch.zeros(900)
    first = (torch.arange(900) % 10 == 0).float()
    gain, low, high = paired_bootstrap(first, second)
    assert gain == pytest.approx(0.1)
    assert low == pytest.approx(0.1 - 1.96 * 0.01, abs=0.003) and high == pytest.approx(0.1 + 1.96 * 0.01, abs=0.003)
    assert paired_bootstrap(first, second) == (gain, low, high) != paired_bootstrap(first, second, seed=1)


def test_ten_thousand_members_leave_only_sums(data):
    """All probabilities would be 10 000 x 500 x 10; blocks hold a fortieth of them."""
    rows = torch.randn(10_000, 1060, generator=seeded()) / 4
    found = Ensemble.of_rows(rows, MLP()).combine(data.test_images[:100])
    assert found.members == 10_000 and int(found.votes.sum()) == 10_000 * 100
    torch.testing.assert_close(found.mean.sum(1), torch.ones(100))


def test_bad_input_is_one_sentence(trained, data):
    zoo: Zoo = trained.zoo
    with pytest.raises(ConfigError, match="at least 1 network"):
        Ensemble(zoo.take([]))
    with pytest.raises(ConfigError, match="temperature"):
        Ensemble(zoo, temperature=0.0)
    with pytest.raises((UnknownName, TypeError), match="mean"):
        trained.predict(data.test_images, "means")
    with pytest.raises(DatasetError, match="28"):
        trained.predict(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ConfigError, match="at least 1 member"):
        trained.selected(data.test_images, data.test_labels, members=0)
    with pytest.raises(ConfigError, match="there are none"):
        best_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
