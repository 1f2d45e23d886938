"""Probes beyond one zoo and one embedding: other zoos, single layers, combinations, networks drawn for a property."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from weightspace import datasets
from weightspace.errors import ConfigError, UnknownName
from weightspace.evaluation import (
    combined,
    layer_embeddings,
    layer_statistics,
    layers,
    obtained,
    out_of_distribution,
    probe_layers,
    representations_of,
    shifted_properties,
)
from weightspace.evaluation.properties import flat_weights, predict_properties, statistics
from weightspace.generators import Gaussian, Region, Targeted
from weightspace.networks.layout import Layout
from weightspace.report import layers_picture
from weightspace.views.statistics import weight_statistics
from weightspace.zoo import Zoo, behaviour

LAYOUT = Layout.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)))
DIGITS = datasets.load("digits", train_limit=200, seed=3)


def make_zoo(seed: int, models: int = 150, shift: float = 0.0, **columns) -> Zoo:
    """`metric.spread` is the spread of the middle layer's weights, `config.kind` its sign; all others are noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(models, LAYOUT.parameters)).astype(np.float32)
    place = LAYOUT.slices["2.weight"]
    spread = rng.uniform(0.5, 2, models)
    kind = rng.choice(["low", "high"], models)
    rows[:, place] = rows[:, place] * spread[:, None] + np.where(kind == "high", 3.0, 0.0)[:, None]
    table = {
        "model": [f"m{i:03d}" for i in range(models)],
        "step": np.zeros(models, int),
        "metric.spread": spread + shift,
        "config.kind": kind,
    }
    return Zoo.in_memory(torch.from_numpy(rows), LAYOUT, pl.DataFrame(table | columns), {"name": f"zoo {seed}"})


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Two zoos of one distribution and one whose property is higher for the same weights; all with the same names."""
    folder = tmp_path_factory.mktemp("zoos")
    zoos = [make_zoo(1, 300), make_zoo(2, 300), make_zoo(3, 300, shift=5.0)]
    return [zoo.save(folder / f"{number}") for number, zoo in enumerate(zoos)]


def value(scores, metric, **where) -> float:
    return scores.filter(pl.col("metric") == metric, **where)["value"].item()


# --- other zoos -------------------------------------------------------------------------------------------------------


def test_another_zoo_of_the_same_distribution_is_predicted_as_well(on_disk):
    zoo, same, shifted = on_disk
    targets = ["metric.spread", "config.kind"]
    scores = out_of_distribution(zoo, {"same": same, "shifted": shifted}, {"statistics": statistics}, targets)
    assert scores.columns[:2] == ["fitted_on", "tested_on"]
    assert scores["tested_on"].unique(maintain_order=True).to_list() == ["zoo 1", "same", "shifted"]
    inside, outside = (value(scores, "r2", tested_on=name, probe="ridge") for name in ("zoo 1", "same"))
    # 36 values tell a spread up to a twelfth, so R² is below .88; with 45 test models its standard error is about .05
    assert inside > 0.7 and abs(inside - outside) < 0.2
    assert value(scores, "r2", tested_on="shifted", probe="ridge") < 0  # levels are off,
    assert value(scores, "kendall_tau", tested_on="shifted") > 0.6  # ranks are not
    assert value(scores, "accuracy", tested_on="same") == 1.0


def test_probes_of_other_zoos_are_those_of_the_first(on_disk):
    """Fitted on one zoo, tested on another: the same as `predict_properties` with these three sides."""
    zoo, other, _ = on_disk
    scores = out_of_distribution(zoo, {"other": other}, {"flat": flat_weights}, ["metric.spread"], seed=1)
    train, validation, _ = zoo.split(1)
    wanted, _ = predict_properties(train, validation, other.split(1)[2], {"flat": flat_weights}, ["metric.spread"])
    assert scores.filter(tested_on="other").drop("fitted_on", "tested_on").equals(wanted)


def test_models_of_one_zoo_are_not_those_of_another(on_disk):
    """Names agree and networks do not, unless they come from the same folder."""
    zoo, other, _ = on_disk
    train, validation, test = zoo.split(0)
    predict_properties(train, validation, other.split(0)[0], {"flat": flat_weights}, ["metric.spread"])
    with pytest.raises(ConfigError, match="split by model"):
        predict_properties(train, validation, train, {"flat": flat_weights}, ["metric.spread"])
    with pytest.raises(ConfigError, match="another name"):
        out_of_distribution(zoo, {"zoo 1": other}, {"flat": flat_weights}, ["metric.spread"])
    assert len(test)


def test_a_fitted_encoder_in_another_zoo(digits_sane, digits_zoo, tmp_path):
    other = digits_zoo.save(tmp_path / "other")
    scores = shifted_properties(digits_sane, digits_zoo, {"copy": other}, ["metric.test_accuracy", "step"])
    here, there = (scores.filter(tested_on=name).drop("tested_on") for name in (digits_zoo.header["name"], "copy"))
    assert here.equals(there) and len(here)  # the same networks under another path


# --- boosting and combinations ----------------------------------------------------------------------------------------


def test_boosting_predicts_categories():
    """A parity that no line separates: the share of right classes of a line stays near one half."""
    zoo = make_zoo(4, models=400)
    rows = zoo.weights()
    parity = np.where((rows[:, 0] > 0).numpy() ^ (rows[:, 1] > 0).numpy(), "odd", "even")
    zoo = zoo.with_columns(**{"config.parity": parity.tolist()})
    shown = {"two": lambda some: some.weights()[:, :2].numpy()}
    scores, _ = predict_properties(*zoo.split(0), shown, ["config.parity"], boosting=("config.parity",))
    # 60 test models: a standard error of .065 at one half
    assert value(scores, "accuracy", probe="boosting") > 0.85
    assert value(scores, "accuracy", probe="logistic") < 0.75


def test_combined_representations_know_what_either_knows():
    zoo = make_zoo(5)
    rows = zoo.weights()
    zoo = zoo.with_columns(**{"metric.sum": rows[:, 0].numpy() + zoo.table["metric.spread"].to_numpy()})
    first = lambda some: some.weights()[:, :1].numpy()  # noqa: E731
    shown = {"first": first, "statistics": statistics, "first + statistics": combined(first, statistics)}
    scores, _ = predict_properties(*zoo.split(0), shown, ["metric.sum"])
    alone = [value(scores, "r2", representation=name) for name in ("first", "statistics")]
    assert value(scores, "r2", representation="first + statistics") > 0.1 + max(alone)


def test_what_is_combined_says_so(digits_sane, digits_zoo):
    train = digits_zoo.split(0)[0]
    shown = representations_of(digits_sane, train)
    name = "SANE, mean token + weight statistics"
    both = shown[name](train)
    assert np.array_equal(both, np.concatenate([shown["SANE, mean token"](train), statistics(train)], axis=1))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_planted_layer_is_found():
    zoo = make_zoo(6)
    found = probe_layers(*zoo.split(0), {"statistics": layer_statistics(LAYOUT)}, ["metric.spread", "config.kind"])
    assert found["layer"].unique(maintain_order=True).to_list() == ["0", "2", "4", "all layers"]
    for target, metric, least in (("metric.spread", "r2", 0.85), ("config.kind", "accuracy", 0.95)):
        one = found.filter(target=target, metric=metric)
        told = dict(one.select("layer", "value").iter_rows())
        assert told["2"] > least and told["all layers"] > least - 0.1
        assert max(told["0"], told["4"]) < least - 0.15
    assert found.filter(layer="2")["layer_number"].unique().to_list() == [1]


def test_layers_are_parts_of_the_whole():
    zoo = make_zoo(7, models=4)
    parts = [represent(zoo) for represent in layer_statistics(LAYOUT).values()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), weight_statistics(zoo.weights(), LAYOUT).numpy())


def test_embeddings_of_layers_are_parts_of_the_pooled_one(digits_sane, digits_zoo):
    parts = layer_embeddings(digits_sane)
    assert list(parts) == ["fc1", "fc2"]
    whole = digits_sane.embed(digits_zoo, "layers").numpy()
    width = digits_sane.config.width
    for number, represent in enumerate(parts.values()):
        mean, spread = whole[:, number * width :][:, :width], whole[:, (2 + number) * width :][:, :width]
        np.testing.assert_array_equal(represent(digits_zoo), np.concatenate([mean, spread], axis=1))


def test_a_picture_of_layers(digits_sane, digits_zoo, tmp_path):
    table = layers(digits_sane, digits_zoo, ["metric.test_accuracy", "step", "config.activation"])
    assert table["representation"].unique(maintain_order=True).to_list() == ["SANE", "weight statistics"]
    assert layers_picture(table, tmp_path / "layers.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="no values"):
        layers_picture(table.clear(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_no_layers():
    with pytest.raises(ConfigError, match="no layers"):
        probe_layers(*make_zoo(8).split(0), {"nothing": {}}, ["metric.spread"])


# --- networks drawn for a property ------------------------------------------------------------------------------------


def test_obtained_accuracies_are_measured(digits_sane, digits_zoo):
    train = digits_zoo.split(0)[0]
    column = "metric.validation_accuracy"
    region = Region(column=column, low=float(train.table[column].median()))
    made = Targeted(Gaussian(digits_sane), region).fit(train).sample(6)
    found = obtained(made, region, train=train, data=DIGITS)
    accuracy = behaviour.metrics(made, DIGITS.validation_images, DIGITS.validation_labels)[1]
    assert found["obtained"].to_list() == pytest.approx(accuracy.tolist())
    assert found["predicted"].equals(made.table[f"predicted.{column}"]) and set(found["measured_by"]) == {
        "validation images"
    }
    assert found["wanted"].to_list() == (accuracy.double().numpy() >= region.low).tolist()
    with pytest.raises(ConfigError, match="give the data set"):
        obtained(made, region, train=train)


def test_other_properties_are_read_by_somebody_else():
    """Boosted statistics know a planted property of networks that nothing was predicted of."""
    train, networks = make_zoo(9, models=300), make_zoo(10, models=40)
    found = obtained(networks, Region(column="metric.spread", low=1.0), train=train)
    assert np.corrcoef(found["obtained"], networks.table["metric.spread"])[0, 1] > 0.9
    assert found["predicted"].is_null().all() and set(found["measured_by"]) == {"boosted weight statistics"}
    kinds = obtained(networks, Region(column="config.kind", category="high"), train=train)
    assert (kinds["obtained"] == networks.table["config.kind"]).mean() == 1.0
    assert kinds["wanted"].to_list() == (networks.table["config.kind"] == "high").to_list()
    with pytest.raises(UnknownName, match=r"metric\.spread"):
        obtained(networks, Region(column="metric.spred", low=1.0), train=train)
