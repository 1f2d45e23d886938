"""Encoders that learn from targets: what is learned, kept, saved and refused."""

import math
from dataclasses import dataclass

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import encoders
from weightspace.encoders import Flat, FlatConfig, Predictor, PredictorTraining, WeightEncoder
from weightspace.encoders.predictor import Target
from weightspace.encoders.weight_encoder import ScalarScale
from weightspace.errors import ConfigError, LayoutError, UnknownName, WeightspaceError
from weightspace.networks import CNN, MLP, Layout, to_json
from weightspace.views.architecture import Architecture, Networks
from weightspace.zoo import Zoo

SHORT = PredictorTraining(epochs=12, accelerator="cpu")


def population(network=MLP(hidden=(16,)), count=120, seed=0, prefix="m"):  # noqa: B008 - frozen
    """Networks whose targets are functions of their weights that no order of units changes."""
    layout = Layout.of(network.build())
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 1, generator=g) * 2 - 1
    rows = torch.exp(size) * torch.randn(count, layout.parameters, generator=g)
    table = pl.DataFrame({
        "model": [f"{prefix}{i}" for i in range(count)],
        "step": [0] * count,
        "metric.test_accuracy": torch.sigmoid(3 * size[:, 0]).tolist(),
        "config.learning_rate": (10 ** (2 * size[:, 0])).tolist(),
        "config.optimiser": ["adam" if value > 0 else "sgd" for value in size[:, 0].tolist()],
    })  # fmt: skip
    return Zoo.in_memory(rows, layout, table, {"network": to_json(network)})


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    width: int = 8


class Size(WeightEncoder):
    """Reads the mean square of all weights: any architecture, no order."""

    name = "size"
    Config = SizeConfig

    def __init__(self, config, architectures, outputs):
        super().__init__(config, architectures, outputs)
        self.scale = ScalarScale()
        self.head = nn.Sequential(nn.Linear(1, config.width), nn.GELU(), nn.Linear(config.width, outputs))

    def prepare(self, training):
        self.scale.prepare(training)

    def encode(self, networks):
        return self.scale(networks.rows).square().mean(1, keepdim=True).log()


@pytest.fixture(scope="module")
def zoos():
    zoo = population()
    return zoo.take(range(90)), zoo.take(range(90, 120))


@pytest.fixture(scope="module")
def fitted(zoos):
    wanted = ["metric.test_accuracy", "config.learning_rate", "config.optimiser"]
    longer = PredictorTraining(epochs=60, learning_rate=2e-2, accelerator="cpu")
    return Predictor.fit(Size, zoos[0], validation=zoos[1], targets=wanted, optimisation=longer)


def test_several_targets_are_learned_at_once(fitted):
    test = population(seed=1, prefix="t")
    predicted = fitted.predict(test)
    true = test.table
    assert predicted.columns == ["metric.test_accuracy", "config.learning_rate", "config.optimiser"]
    assert (predicted["metric.test_accuracy"] - true["metric.test_accuracy"]).abs().mean() < 0.03
    ratio = (predicted["config.learning_rate"] / true["config.learning_rate"]).log(10).abs().mean()
    assert ratio < 0.2  # it spans four orders of magnitude
    assert (predicted["config.optimiser"] == true["config.optimiser"]).mean() > 0.9
    assert [target.kind for target in fitted.targets] == ["share", "number", "class"]
    assert fitted.targets[1].log10
    assert fitted.outputs(test).shape == (120, 4)


def test_networks_of_several_architectures_are_read_together(zoos, fitted):
    other = population(CNN(), 30, seed=2, prefix="c")
    mixed = Zoo.concat([zoos[0].take(range(10)), other.take(range(10)), zoos[1].take(range(10))])
    together = fitted.outputs(mixed)
    alone = torch.cat([fitted.outputs(mixed.take([i])) for i in range(len(mixed))])
    torch.testing.assert_close(together, alone)
    trained = Predictor.fit(
        Size, Zoo.concat([zoos[0], other.take(range(20))]), validation=zoos[1], targets=["metric.test_accuracy"],
        optimisation=SHORT,
    )  # fmt: skip
    assert {len(a.layout.tensors) for a in trained.architectures} == {4, 6}


def test_the_flat_encoder_reads_one_layout(zoos):
    fitted = Predictor.fit(Flat, zoos[0], validation=zoos[1], config=FlatConfig(width=16), optimisation=SHORT)
    other = population(CNN(), 4, prefix="c")
    with pytest.raises(LayoutError, match="flat was made for layout"):
        fitted.outputs(other)
    with pytest.raises(LayoutError, match="reads one layout"):
        Predictor.fit(Flat, Zoo.concat([zoos[0], other]), validation=zoos[1], optimisation=SHORT)


def test_a_constant_function_of_the_order_has_no_invariance_gap(zoos, fitted):
    assert fitted.invariance_gap(zoos[1]) < 1e-4
    flat = Predictor.fit(Flat, zoos[0], validation=zoos[1], config=FlatConfig(width=16), optimisation=SHORT)
    assert flat.invariance_gap(zoos[1]) > 0.1


def test_the_regulariser_is_half_the_squared_gap(zoos):
    config = FlatConfig(width=16)
    both = [
        Predictor.fit(
            Flat, zoos[0], validation=zoos[1], config=config,
            optimisation=PredictorTraining(epochs=30, invariance=value, accelerator="cpu"),
        ) for value in (0.0, 30.0)
    ]  # fmt: skip
    changes = []
    for fitted in both:
        some = Networks.of(zoos[0].weights(), fitted.architectures[0])
        with torch.no_grad():
            moved = fitted.module(some.permuted(torch.Generator().manual_seed(0))) - fitted.module(some)
        changes.append(float(moved.abs().mean()))
    assert changes[1] < changes[0] / 2


def test_a_saved_predictor_is_the_same(zoos, fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = Predictor.load(tmp_path, Size)
    assert torch.equal(loaded.outputs(zoos[1]), fitted.outputs(zoos[1]))
    assert loaded.targets == fitted.targets
    assert loaded.header["fit"]["zoo"] == zoos[0].digest
    with pytest.raises(ConfigError, match="holds a fitted 'size', not 'flat'"):
        Predictor.load(tmp_path, Flat)
    with pytest.raises(UnknownName, match="unknown encoder 'size'"):
        encoders.load(tmp_path)


def test_equal_seeds_give_equal_predictors_and_others_do_not(zoos):
    options = {"validation": zoos[1], "config": FlatConfig(width=8)}
    random = torch.random.get_rng_state()
    first, again = (Predictor.fit(Flat, zoos[0], optimisation=SHORT, **options) for _ in range(2))
    assert torch.equal(random, torch.random.get_rng_state())
    other = Predictor.fit(
        Flat, zoos[0], optimisation=PredictorTraining(epochs=12, seed=1, accelerator="cpu"), **options
    )
    assert torch.equal(first.outputs(zoos[1]), again.outputs(zoos[1]))
    assert not torch.equal(first.outputs(zoos[1]), other.outputs(zoos[1]))


def test_models_on_both_sides_are_refused(zoos):
    with pytest.raises(ConfigError, match="split by model"):
        Predictor.fit(Flat, zoos[0], validation=zoos[0], optimisation=SHORT)


def test_targets_that_cannot_be_learned(zoos):
    with pytest.raises(ConfigError, match="does not vary"):
        Predictor.fit(Flat, zoos[0], validation=zoos[1], targets=["step"], optimisation=SHORT)
    with pytest.raises(UnknownName, match=r"metric\.test_accuracy"):
        Predictor.fit(Flat, zoos[0], validation=zoos[1], targets=["metric.test_acuracy"], optimisation=SHORT)


def test_an_autoencoder_is_asked_for_where_networks_are_made(zoos, tmp_path):
    Predictor.fit(Flat, zoos[0], validation=zoos[1], config=FlatConfig(width=8), optimisation=SHORT, folder=tmp_path)
    assert isinstance(encoders.load(tmp_path), Predictor)
    with pytest.raises(WeightspaceError, match="cannot decode"):
        encoders.load_autoencoder(tmp_path)


def test_the_loss_of_a_share_is_its_cross_entropy():
    target = Target(column="metric.test_accuracy", kind="share")
    outputs, values = torch.tensor([[0.0], [2.0], [1.0]]), torch.tensor([0.25, 1.0, float("nan")])
    wanted = (-math.log(0.5) - math.log(1 / (1 + math.exp(-2)))) / 2
    assert float(target.loss(outputs, values)) == pytest.approx(wanted, rel=1e-6)


def test_values_that_are_missing_have_no_part_in_the_loss():
    number = Target(column="step", kind="number")
    assert float(number.loss(torch.zeros(2, 1), torch.full((2,), float("nan")))) == 0
    classes = Target(column="config.optimiser", kind="class", classes=("adam", "sgd"))
    assert classes.read(pl.DataFrame({"config.optimiser": ["sgd", None, "lion"]})).isnan().tolist() == [
        False, True, True,
    ]  # fmt: skip


def test_one_scale_for_all_architectures():
    g = torch.Generator().manual_seed(0)
    some = []
    for network in (MLP(hidden=(16,)), CNN()):
        architecture = Architecture.of(network)
        some.append(Networks.of(2 * torch.randn(5, architecture.layout.parameters, generator=g) + 1, architecture))
    scale = ScalarScale()
    scale.prepare(some)
    together = torch.cat([scale(part.rows).flatten() for part in some])
    assert float(together.mean()) == pytest.approx(0, abs=1e-5)
    assert float(together.std(correction=0)) == pytest.approx(1, rel=1e-5)
