"""Samplers that choose, by likelihood, images or a predicted property; running statistics and heads for a task."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.neighbors import KernelDensity
from sklearn.tree import DecisionTreeRegressor

from weightspace import datasets, networks
from weightspace.errors import ConfigError, UnknownName, ZooError
from weightspace.generators import (
    KDE,
    Gaussian,
    GaussianConfig,
    KDEConfig,
    Region,
    Selected,
    SelectionConfig,
    Targeted,
    conditioned,
    with_head,
)
from weightspace.generators.bandwidth import BANDWIDTHS, leave_one_out, on_validation
from weightspace.generators.batch_norm import calibration_images
from weightspace.generators.head import head_tensors
from weightspace.networks import Layout
from weightspace.zoo import Zoo, behaviour

DIGITS = datasets.load("digits", train_limit=400, seed=3)
VALIDATION = "metric.validation_accuracy"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- bandwidth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "groups"), [("joint", [[0, 1, 2, 3]]), ("token", [[0, 1], [2, 3]]),
                                              ("independent", [[0], [1], [2], [3]])])  # fmt: skip
def test_likelihood_is_that_of_scikit_learn(mode, groups):
    latents = torch.randn(12, 2, 2, generator=seeded(1)) * torch.tensor([1.0, 5.0])
    found = leave_one_out(latents, mode, [0.2, 0.7])
    points = latents.flatten(1).double().numpy()
    std = points.std(0)
    for number, h in enumerate([0.2, 0.7]):
        wanted = 0.0
        for group in groups:
            scaled = (points / std)[:, group]
            for left in range(12):
                rest = np.delete(scaled, left, axis=0)
                wanted += KernelDensity(bandwidth=h).fit(rest).score_samples(scaled[left : left + 1])[0] / 12
            wanted -= np.log(std[group]).sum()
        assert float(found[number]) == pytest.approx(wanted, rel=1e-5)


def test_prompts_of_one_run_are_left_out_together():
    """Twins of a run would ask for the narrowest kernel."""
    latents = torch.randn(30, 1, 2, generator=seeded(2)).repeat_interleave(2, 0)
    apart = leave_one_out(latents, "joint")
    together = leave_one_out(latents, "joint", models=torch.arange(30).repeat_interleave(2))
    assert apart.argmax() == 0 and BANDWIDTHS[int(together.argmax())] >= 0.2


def test_likelihoods_that_do_not_exist():
    latents = torch.randn(4, 1, 2)
    with pytest.raises(ConfigError, match="no density"):
        leave_one_out(latents, "smooth")
    with pytest.raises(ConfigError, match="2 runs"):
        leave_one_out(latents, "joint", models=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="positive"):
        leave_one_out(latents, "joint", [0.0])


@pytest.fixture(scope="module")
def train(digits_zoo):
    return digits_zoo.split(0)[0]


def test_bandwidths_are_judged_on_validation_images(digits_sane, train):
    kde = KDE(digits_sane, KDEConfig(mode="joint")).fit(train.last())
    table = on_validation(kde, DIGITS, n=8, bandwidths=[0.0, 3.0])
    made = KDE(digits_sane, KDEConfig(mode="joint", bandwidth=3.0)).fit(train.last()).sample(8)
    accuracy = behaviour.metrics(made, DIGITS.validation_images, DIGITS.validation_labels)[1]
    assert table["bandwidth"].to_list() == [0.0, 3.0]
    assert table["accuracy"][1] == pytest.approx(float(accuracy.mean()), abs=1e-6)


# --- the best of many draws -------------------------------------------------------------------------------------------


def test_the_best_of_many_draws_are_kept(digits_sane, train):
    plain = Gaussian(digits_sane).fit(train.last())
    selected = Selected(Gaussian(digits_sane), DIGITS, SelectionConfig(candidates=4)).fit(train.last())
    made = selected.sample(5, seed=2)
    seed = int(torch.randint(2**62, (1,), generator=seeded(2)))
    everything = plain.sample(20, seed)
    accuracy = behaviour.metrics(everything, DIGITS.validation_images, DIGITS.validation_labels)[1]
    assert made.table[VALIDATION].to_list() == pytest.approx(accuracy.sort(descending=True).values[:5].tolist())
    distance = torch.cdist(made.weights(), everything.weights()).amin(1)
    assert distance.max() < 1e-3 and made.header["selection"]["candidates"] == 20
    assert torch.equal(selected.sample(5, seed=2).weights(), made.weights())


def test_bootstrapping_never_loses_its_best_and_improves(digits_sane, train):
    sampler = Gaussian(digits_sane, GaussianConfig(sigma=2.0))  # blind to begin with; further rounds know the best
    once, more = (
        Selected(KDE(digits_sane, KDEConfig(mode="joint", bandwidth=0.5)), DIGITS,
                 SelectionConfig(candidates=4, rounds=rounds)).fit(train.where(pl.col("step") == 1))
        for rounds in (1, 4)
    )  # fmt: skip
    first, made = once.sample(6, seed=1), more.sample(6, seed=1)
    history = more.history
    assert history["round"].to_list() == [0, 1, 2, 3] and history["best"].is_sorted() and history["mean"].is_sorted()
    assert made.table[VALIDATION].max() >= first.table[VALIDATION].max()
    assert history["mean"][3] > history["mean"][0]
    assert made.table[VALIDATION].is_sorted(descending=True) and made.models[0] == "generated-0000"
    measured = behaviour.metrics(made, DIGITS.validation_images, DIGITS.validation_labels)[1]
    assert made.table[VALIDATION].to_list() == pytest.approx(measured.tolist(), abs=1e-6)
    assert torch.equal(more.sample(6, seed=1).weights(), made.weights())  # the prompts were not forgotten
    assert sampler.config.sigma == 2.0


@pytest.mark.parametrize("options", [{"candidates": 0}, {"rounds": 0}])
def test_selections_out_of_range(options):
    with pytest.raises(ConfigError, match="at least 1"):
        SelectionConfig(**options)


# --- a wanted property ------------------------------------------------------------------------------------------------


def test_targeted_draws_have_the_higher_predicted_property(digits_sane, train):
    threshold = float(train.table[VALIDATION].quantile(0.6))
    targeted = Targeted(Gaussian(digits_sane), Region(column=VALIDATION, low=threshold)).fit(train)
    made = targeted.sample(12, seed=1)
    predicted = made.table[f"predicted.{VALIDATION}"].to_numpy()
    assert (predicted >= threshold).all()
    untargeted = targeted.predict(Gaussian(digits_sane).fit(train).draw(200)[0])
    assert predicted.mean() > untargeted.mean() + 2 * untargeted.std() / math.sqrt(200)
    assert 0 < made.header["target"]["share_of_draws"] < 1
    assert torch.equal(targeted.sample(12, seed=1).weights(), made.weights())
    latents = digits_sane.latents(train)  # the predictor has learned something
    truth = train.table[VALIDATION].to_numpy()
    assert np.corrcoef(targeted.predict(latents), truth)[0, 1] > 0.5


def test_categories_and_logarithms(digits_sane, train):
    column = "config.size"
    latents = digits_sane.latents(train).flatten(1)
    along = torch.linalg.svd(latents - latents.mean(0)).U[:, 0] * math.sqrt(len(latents))  # what latents surely tell
    size, kind = 10.0 ** (along + 2), np.where(along > 0, "plus", "minus")
    marked = train.with_columns(**{column: size, "config.kind": kind.tolist()})
    chosen = Targeted(Gaussian(digits_sane), Region(column=column, high=100.0, logarithm=True)).fit(marked).sample(5)
    assert (chosen.table[f"predicted.{column}"] <= 100).all() and (chosen.table[f"predicted.{column}"] > 0).all()
    chosen = Targeted(Gaussian(digits_sane), Region(column="config.kind", category="plus")).fit(marked).sample(5)
    assert set(chosen.table["predicted.config.kind"]) == {"plus"}


def test_any_estimator_predicts(digits_sane, train):
    region = Region(column="step", low=2.0, high=4.0)
    made = Targeted(Gaussian(digits_sane), region, estimator=DecisionTreeRegressor(random_state=0)).fit(train).sample(4)
    assert set(made.table["predicted.step"]) <= {3.0}  # a tree predicts nothing but what it has seen


def test_what_cannot_be_targeted(digits_sane, train):
    sampler = Gaussian(digits_sane)
    with pytest.raises(ConfigError, match="test images"):
        Region(column="metric.test_accuracy", low=0.9)
    with pytest.raises(ConfigError, match="in order"):
        Region(column="step", low=2.0, high=1.0)
    with pytest.raises(ConfigError, match="category"):
        Region(column="step")
    with pytest.raises(UnknownName, match="validation_accuracy"):
        Targeted(sampler, Region(column="metric.validation_acuracy", low=0.1)).fit(train)
    with pytest.raises(UnknownName, match="relu"):
        Targeted(sampler, Region(column="config.activation", category="rleu")).fit(train)
    with pytest.raises(ConfigError, match="no numbers"):
        Targeted(sampler, Region(column="config.activation", low=1.0)).fit(train)
    with pytest.raises(ConfigError, match="the same in all"):
        Targeted(sampler, Region(column="config.x", low=0.5)).fit(train.with_columns(**{"config.x": 1.0}))
    with pytest.raises(ConfigError, match=r"only 0 of 12 draws .* ask for less"):
        Targeted(sampler, Region(column=VALIDATION, low=50.0), candidates=3).fit(train).sample(4)
    with pytest.raises(ConfigError, match="call fit"):
        Targeted(sampler, Region(column="step", low=0.0)).sample(1)


# --- running statistics and heads -------------------------------------------------------------------------------------


def zoo_of(network, rows, **columns) -> Zoo:
    table = pl.DataFrame({"model": [f"m{i}" for i in range(len(rows))], "step": [0] * len(rows)} | columns)
    return Zoo.in_memory(rows, Layout.of(network.build()), table, {"network": networks.to_json(network), "name": "z"})


def test_conditioning_changes_running_statistics_alone():
    network = networks.CNN(batch_norm=True)
    layout = Layout.of(network.build())
    rows = 0.3 * torch.randn(3, layout.parameters, generator=seeded(1))
    zoo = zoo_of(network, rows, **{"config.activation": ["relu", "tanh", "relu"]})
    made = conditioned(zoo, DIGITS).weights()
    for name, place in layout.slices.items():
        if "running" in name:
            assert not torch.equal(made[:, place], rows[:, place])
        else:
            assert torch.equal(made[:, place], rows[:, place])
    first = next(name for name in layout.slices if name.endswith("running_mean"))
    other = conditioned(zoo, DIGITS, seed=9).weights()
    assert not torch.equal(made[:, layout.slices[first]], other[:, layout.slices[first]])  # other images


def test_statistics_are_those_of_what_each_norm_sees():
    """A conditioned network in evaluation mode: mean and variance in front of every norm are its running statistics."""
    network = networks.CNN(batch_norm=True)
    rows = 0.3 * torch.randn(1, Layout.of(network.build()).parameters, generator=seeded(1)).abs()
    made = conditioned(zoo_of(network, rows), DIGITS)
    module = network.build().eval()
    module.load_state_dict(made.layout.unflatten(made.weights()[0]), strict=False)  # but for counters
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    entered: dict = {}
    for norm in norms:
        norm.register_forward_hook(lambda part, inputs, _: entered.update({part: inputs[0]}))
    with torch.no_grad():
        module(calibration_images(network, DIGITS, 0))
    assert len(norms) == len(entered) >= 2
    for norm, values in entered.items():
        channels = values.movedim(1, 0).flatten(1)
        # the batch's own variance is divided by n, the running one by n - 1, with n in the thousands
        torch.testing.assert_close(norm.running_mean, channels.mean(1), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(norm.running_var, channels.var(1), rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("family", [networks.MLP(), networks.CNN(), networks.PooledCNN(), networks.ResNet()])
def test_a_new_head_leaves_the_rest_bit_for_bit(family):
    rows = torch.randn(3, Layout.of(family.build()).parameters, generator=seeded(2))
    zoo = zoo_of(family, rows)
    made = with_head(zoo, 26, keep={0: 3, 25: 9})
    head = head_tensors(family)
    assert 1 <= len(head) <= 2
    old, new = zoo.layout.unflatten(zoo.weights()), made.layout.unflatten(made.weights())
    assert old.keys() == new.keys()
    for name in old:
        if name in head:
            assert new[name].shape[1] == 26 and new[name].isfinite().all()
            assert torch.equal(new[name][:, [0, 25]], old[name][:, [3, 9]])
            assert not torch.equal(new[name][:, 1:2], old[name][:, 1:2])
        else:
            assert torch.equal(old[name], new[name])
    network = networks.from_json(made.header["network"])
    assert network.classes == 26 and "dataset" not in made.header
    assert torch.equal(with_head(zoo, 26, keep={0: 3, 25: 9}).weights(), made.weights())
    assert not torch.equal(with_head(zoo, 26, seed=1).weights(), made.weights())


def test_a_new_head_is_drawn_as_the_zoo_initialises(digits_zoo):
    """Kaiming-uniform times a scale: within its bound, of its standard deviation."""
    zoo = digits_zoo.last().with_columns(**{"config.init": "kaiming_uniform", "config.init_scale": 0.5})
    made = with_head(zoo, 10)  # as many classes, and yet a new layer
    weight, bias = (made.layout.unflatten(made.weights())[name] for name in head_tensors(networks.MLP()))
    bound = 0.5 * math.sqrt(6 / 14)
    assert weight.abs().max() <= bound
    values = weight.flatten()
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(2 * len(values)))
    assert bias.abs().max() == 0


def test_heads_that_cannot_be():
    zoo = zoo_of(networks.MLP(), torch.zeros(1, 1060))
    with pytest.raises(ConfigError, match="2 classes"):
        with_head(zoo, 1)
    with pytest.raises(UnknownName, match="unknown old class"):
        with_head(zoo, 5, keep={0: 10})
    with pytest.raises(UnknownName, match="unknown new class"):
        with_head(zoo, 5, keep={5: 0})
    with pytest.raises(ConfigError, match="SIREN"):
        head_tensors(networks.SIREN())
    nameless = Zoo.in_memory(zoo.weights(), zoo.layout, zoo.table.drop("layout", "shard", "row"), {})
    with pytest.raises(ZooError, match="what its network is"):
        with_head(nameless, 5)
