"""Property prediction: populations whose properties are formulas of their weights, and what must never leak."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import kendalltau
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from weightspace.errors import ConfigError, UnknownName
from weightspace.evaluation.properties import (
    LOGISTIC_PENALTIES,
    RIDGE_PENALTIES,
    Hyperparameters,
    flat_weights,
    predict_properties,
    ridge,
    standardise,
    statistics,
)
from weightspace.networks.layout import Layout
from weightspace.zoo.store import Zoo

LAYOUT = Layout.of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
MODELS, STEPS = 60, 3


def make_zoo(seed: int = 0, **columns) -> Zoo:
    """60 models x 3 checkpoints; `metric.linear` is a weighted sum of weights, `metric.noise` knows nothing of them."""
    rng = np.random.default_rng(seed)
    count = MODELS * STEPS
    rows = rng.normal(size=(count, LAYOUT.parameters)).astype(np.float32)
    rate = np.repeat(10 ** rng.uniform(-4, -1, MODELS), STEPS)
    activation = np.repeat(rng.choice(["relu", "tanh", "gelu"], MODELS), STEPS)
    rows[:, 0] = np.log10(rate)
    rows[:, 1:4] = np.array(["gelu", "relu", "tanh"]) == activation[:, None]
    table = {
        "model": np.repeat([f"m{i:02d}" for i in range(MODELS)], STEPS),
        "step": np.tile(np.arange(STEPS), MODELS),
        "config.learning_rate": rate,
        "config.dropout": np.repeat(rng.choice([0.0, 0.1, 0.5], MODELS), STEPS),
        "config.activation": activation,
        "config.nesterov": np.repeat(rng.random(MODELS) < 0.5, STEPS),
        "config.optimiser": ["adam"] * count,
        "config.seed": np.repeat(np.arange(MODELS), STEPS),
        "metric.linear": rows.astype(np.float64) @ rng.normal(size=LAYOUT.parameters) + 7.0,
        "metric.noise": rng.normal(size=count),
        "metric.test_accuracy": 1 / (1 + np.exp(-rows.std(axis=1) * 3 + rows[:, 0])),
    }
    return Zoo.in_memory(torch.from_numpy(rows), LAYOUT, pl.DataFrame(table | columns), {"name": "formulas"})


def predict(zoo: Zoo, targets: list[str], representations=None, **options) -> tuple[pl.DataFrame, pl.DataFrame]:
    return predict_properties(*zoo.split(0), representations or {"flat": flat_weights}, targets, **options)


def value(scores: pl.DataFrame, metric: str, **where) -> float:
    return scores.filter(pl.col("metric") == metric, **where)["value"].item()


# ---- Known answers


def test_a_linear_property_is_found_and_noise_is_not():
    scores, predictions = predict(make_zoo(), ["metric.linear", "metric.noise"])
    # the smallest penalty, 1e-5 a checkpoint, shrinks by about 1e-5: 1 - R2 is about 1e-10, on correlated weights more
    assert value(scores, "r2", target="metric.linear") > 1 - 1e-6
    assert value(scores, "kendall_tau", target="metric.linear") > 0.999
    # 27 test checkpoints of pure noise: R2 of the best constant has a standard error of about 1 / sqrt(27) = 0.19
    assert value(scores, "r2", target="metric.noise") < 0.2
    assert abs(value(scores, "kendall_tau", target="metric.noise")) < 0.45  # 3.3 standard errors of .136
    assert predictions.height == 2 * scores["n_test"][0] == 54


def test_a_permuted_target_is_not_found():
    zoo = make_zoo()
    order = np.random.default_rng(5).permutation(len(zoo))
    scores, _ = predict(
        zoo.with_columns(**{"metric.linear": zoo.table["metric.linear"].to_numpy()[order]}), ["metric.linear"]
    )
    assert value(scores, "r2") < 0.2  # as for noise


def test_orders_of_magnitude_are_predicted_in_log10_and_the_label_says_so():
    scores, predictions = predict(make_zoo(), ["config.learning_rate", "config.dropout", "metric.linear"])
    assert set(scores["target"]) == {"log10 config.learning_rate", "config.dropout", "metric.linear"}
    assert value(scores, "r2", target="log10 config.learning_rate") > 1 - 1e-6  # weight 0 is log10 of the rate
    assert predictions.filter(target="log10 config.learning_rate")["true"].is_between(-4, -1).all()


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([1.0, 100.0], "config.decay"),  # a factor of exactly 100 is not more than 100
        ([1.0, 101.0], "log10 config.decay"),
        ([0.0, 1000.0], "config.decay"),  # not strictly positive
    ],
)
def test_the_rule_for_logarithms(values, label):
    decay = np.repeat(np.resize(values, MODELS), STEPS)
    scores, _ = predict(
        make_zoo(**{"config.decay": decay, "metric.loss": decay + 1e-3}), ["config.decay", "metric.loss"]
    )
    assert set(scores["target"]) == {label, "metric.loss"}  # metrics are never transformed


def test_classes_are_found_and_the_majority_share_stands_beside():
    zoo = make_zoo()
    scores, predictions = predict(zoo, ["config.activation", "config.nesterov"])
    train, _, test = zoo.split(0)
    assert value(scores, "accuracy", target="config.activation") == 1.0  # weights 1 to 3 name it
    most = train.table["config.activation"].mode(maintain_order=True)[0]
    assert value(scores, "majority", target="config.activation") == (test.table["config.activation"] == most).mean()
    assert value(scores, "accuracy", target="config.nesterov") < 0.9  # weights do not know it
    assert set(scores["probe"]) == {"logistic"}
    assert predictions.height == 0  # numeric targets only


def test_a_class_that_training_lacks_counts_as_wrong():
    train, validation, test = make_zoo().split(0)
    test = test.with_columns(**{"config.activation": pl.lit("softsign")})
    scores, _ = predict_properties(train, validation, test, {"flat": flat_weights}, ["config.activation"])
    assert value(scores, "accuracy") == value(scores, "majority") == 0


def test_boosting_finds_what_a_line_cannot():
    zoo = make_zoo()
    zoo = zoo.with_columns(**{"metric.test_accuracy": zoo.weights()[:, 5].abs()})
    scores, predictions = predict(zoo, ["metric.test_accuracy", "metric.linear"])
    assert (
        value(scores, "r2", probe="boosting")
        > 0.7
        > 0.3
        > value(scores, "r2", probe="ridge", target="metric.test_accuracy")
    )
    assert set(scores.filter(probe="boosting")["target"]) == {"metric.test_accuracy"}
    assert predictions.group_by("probe").len().sort("probe").rows() == [("boosting", 27), ("ridge", 54)]
    train, validation, test = zoo.split(0)
    inverted = validation.with_columns(**{"metric.test_accuracy": -validation.table["metric.test_accuracy"]})
    sooner = predict_properties(train, inverted, test, {"flat": flat_weights}, ["metric.test_accuracy"])[0]
    # the validation split stops it: where every tree makes matters worse, early
    assert value(sooner, "r2", probe="boosting") < value(scores, "r2", probe="boosting") - 0.2
    wide, _ = predict(zoo, ["metric.test_accuracy"], {"wide": lambda z: np.tile(flat_weights(z), 20)})
    assert set(wide["probe"]) == {"ridge"}  # 520 features are too many


def test_scores_are_those_of_the_predictions():
    zoo = make_zoo()
    scores, predictions = predict(zoo, ["metric.test_accuracy"], {"statistics": statistics})
    assert scores.columns == ["representation", "probe", "target", "metric", "value", "n_train", "n_test"]
    assert predictions.columns == ["representation", "probe", "target", "model", "step", "true", "predicted"]
    test = zoo.split(0)[2].table
    for probe in ("ridge", "boosting"):
        frame = predictions.filter(probe=probe)
        assert frame.select("model", "step").equals(test.select("model", "step"))
        true, predicted = frame["true"].to_numpy(), frame["predicted"].to_numpy()
        assert np.array_equal(true, test["metric.test_accuracy"].to_numpy())
        expected = {
            "r2": 1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum(),
            "kendall_tau": kendalltau(true, predicted).statistic,
            "mae": np.abs(true - predicted).mean(),
        }
        for metric, number in expected.items():
            assert value(scores, metric, probe=probe) == pytest.approx(number, rel=1e-12)


# ---- Two ways


@pytest.mark.parametrize(("count", "width"), [(80, 12), (20, 50)])
def test_ridge_equals_scikit_learn(count, width):
    rng = np.random.default_rng(count)
    x, checked_x = rng.normal(size=(count, width)), rng.normal(size=(15, width))
    x, checked_x = standardise(x, checked_x)
    weights = rng.normal(size=(width, 3))
    y, checked_y = (f @ weights + rng.normal(size=(len(f), 3)) * [0, 1, 9] + [5, 0, -2] for f in (x, checked_x))
    for penalty in RIDGE_PENALTIES[::4]:
        coefficients, intercept, chosen = ridge(x, y, checked_x, checked_y, np.array([penalty]))
        plain = Ridge(alpha=count * penalty, solver="svd").fit(x, y)
        # float64, normal equations of at most 1e5 condition after the penalty: 1e-11; asked for 1e-6
        np.testing.assert_allclose(coefficients.T, plain.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(intercept, plain.intercept_, rtol=1e-6, atol=1e-9)
        assert (chosen == penalty).all()
    *_, chosen = ridge(x, y, checked_x, checked_y)
    for target in range(3):  # each target has the penalty with its own lowest validation error
        errors = [
            np.square(
                Ridge(alpha=count * p, solver="svd").fit(x, y[:, target]).predict(checked_x) - checked_y[:, target]
            ).sum()
            for p in RIDGE_PENALTIES
        ]
        assert chosen[target] == RIDGE_PENALTIES[np.argmin(errors)]


def test_the_logistic_penalty_is_that_of_a_plain_loop():
    zoo = make_zoo()
    noise = np.random.default_rng(1).normal(size=len(zoo))
    label = (zoo.weights().numpy()[:, 5] + zoo.weights().numpy()[:, 6] + noise > 0).astype(str)
    zoo = zoo.with_columns(**{"config.sign": label})
    scores, _ = predict(zoo, ["config.sign"])
    splits = zoo.split(0)
    train, validation, test = standardise(*(flat_weights(split) for split in splits))
    labels = [split.table["config.sign"].to_numpy() for split in splits]
    fits = [LogisticRegression(C=1 / (len(train) * p), tol=1e-6).fit(train, labels[0]) for p in LOGISTIC_PENALTIES]
    chosen = max(fits, key=lambda fit: fit.score(validation, labels[1]))  # the first, strongest, among equals
    found = [fit.score(test, labels[2]) for fit in (chosen, fits[-1], fits[0])]
    assert found[0] not in found[1:]  # or this test could not fail
    assert value(scores, "accuracy") == found[0]


def test_targets_do_not_influence_each_other():
    zoo = make_zoo()
    wanted = ["metric.linear", "step", "config.learning_rate", "config.activation"]
    together, _ = predict(zoo, wanted)
    twice, _ = predict(zoo, wanted + wanted[:2])
    assert twice.equals(together)  # a target that is asked twice is answered once
    for target in wanted:
        alone, _ = predict(zoo, [target])
        same = together.filter(pl.col("target").str.ends_with(target))
        # a column of a matrix product is summed in another order when it stands alone: float64 rounding
        np.testing.assert_allclose(alone["value"].to_numpy(), same["value"].to_numpy(), rtol=1e-9)


def test_standardisation_uses_the_training_split_only():
    train, other = np.array([[0.1, 1.0], [0.1, 3.0]]), np.array([[0.7, 7.0]])
    scaled, moved = standardise(train, other)
    assert scaled.tolist() == [[0, -1], [0, 1]]
    assert moved.tolist() == [[0, 5]]  # what is constant in training says nothing, even if it moves later


# ---- Leaks


def test_a_model_on_two_sides_is_refused():
    zoo = make_zoo()
    train, validation, test = zoo.split(0)
    stray = zoo.where(pl.col("model") == train.models[0]).take([0])
    with pytest.raises(ConfigError, match=f"'{train.models[0]}' is in the training and in the test split"):
        predict_properties(train, validation, Zoo.concat([test, stray]), {"flat": flat_weights}, ["step"])
    with pytest.raises(ConfigError, match="in the validation and in the test split"):
        predict_properties(train, test, test, {"flat": flat_weights}, ["step"])


@pytest.mark.parametrize(
    "target", ["step", "config.learning_rate", "config.dropout", "config.activation", "config.nesterov"]
)
def test_the_hyperparameter_baseline_never_contains_its_target(target):
    zoo = make_zoo()
    values = np.random.default_rng(3).permutation(zoo.table[target].to_numpy())
    if target == "step":  # a model has a step once
        values = 10 - zoo.table["step"].to_numpy()
    changed = Zoo.in_memory(
        zoo.weights(), LAYOUT, zoo.table.drop("layout", "shard", "row").with_columns(pl.Series(target, values)), {}
    )
    before, after = Hyperparameters(zoo)(zoo, exclude=target), Hyperparameters(changed)(changed, exclude=target)
    assert np.array_equal(before, after)
    # the twin: asked for something else, the column is there
    assert not np.array_equal(
        Hyperparameters(zoo)(zoo, exclude="metric.noise"), Hyperparameters(changed)(changed, exclude="metric.noise")
    )


def test_predict_properties_tells_the_baseline_each_target():
    zoo = make_zoo()
    train = zoo.split(0)[0]
    targets = ["metric.noise", "step", "config.learning_rate", "config.activation"]
    scores, _ = predict(
        zoo, targets, {"hyper-parameters": Hyperparameters(train)}, boosting=("config.learning_rate", "step")
    )
    # hyper-parameters are drawn independently and every model has every step: nothing can be known
    assert scores.filter(metric="r2")["value"].max() < 0.3
    assert value(scores, "accuracy") < 0.8
    copied, _ = predict(
        zoo.with_columns(**{"metric.noise": zoo.table["step"]}), ["metric.noise"], {"known": Hyperparameters(train)}
    )
    assert value(copied, "r2") > 1 - 1e-6  # for a metric, the step is a feature


def test_seeds_are_neither_features_nor_targets():
    zoo = make_zoo()
    other = zoo.with_columns(**{"config.seed": zoo.table["config.seed"].to_numpy() * 7})
    assert np.array_equal(Hyperparameters(zoo)(zoo, exclude="step"), Hyperparameters(other)(other, exclude="step"))
    with pytest.raises(ConfigError, match="names a run"):
        predict(zoo, ["config.seed"])


def test_categories_and_logarithms_of_the_baseline_come_from_training():
    zoo = make_zoo()
    train, _, test = zoo.split(0)
    encode = Hyperparameters(train)
    width = encode(train, exclude="step").shape[1]
    assert width == 1 + 1 + 1 + 3 + 2 + 1  # constant, log rate, dropout, activation, nesterov, optimiser
    rate = encode(train, exclude="step")[:, 1]
    np.testing.assert_allclose(rate, np.log10(train.table["config.learning_rate"].to_numpy()), rtol=1e-12)
    strange = encode(test.with_columns(**{"config.activation": pl.lit("softsign")}), exclude="step")
    assert strange.shape == (len(test), width)
    assert (strange[:, 3:6] == 0).all()
    with pytest.raises(UnknownName, match=r"config\.dropout"):
        encode(
            Zoo.in_memory(test.weights(), LAYOUT, test.table.select("model", "step", "config.learning_rate"), {}),
            "step",
        )


def test_missing_hyperparameters_become_the_training_mean():
    momentum = np.repeat(np.resize([0.5, 0.9, np.nan], MODELS), STEPS)
    zoo = make_zoo(**{"config.momentum": momentum})
    features = Hyperparameters(zoo)(zoo, exclude="step")
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[np.isnan(momentum), -1], 0.7, rtol=1e-12)


# ---- What is left out


def test_constant_targets_have_a_row_without_a_value():
    scores, _ = predict(make_zoo(**{"metric.same": 0.1}), ["config.optimiser", "metric.same", "step"])
    constant = scores.filter(metric="constant")
    assert sorted(constant["target"]) == ["config.optimiser", "metric.same"]
    assert constant["value"].null_count() == 2
    assert set(scores.filter(pl.col("metric") != "constant")["target"]) == {"step"}


def test_a_target_that_does_not_vary_on_test_has_no_r2_but_an_error():
    train, validation, test = make_zoo().split(0)
    test = test.with_columns(**{"metric.linear": 0.1})
    scores, _ = predict_properties(train, validation, test, {"flat": flat_weights}, ["metric.linear"])
    assert value(scores, "r2") is None
    assert value(scores, "kendall_tau") is None
    assert value(scores, "mae") > 0


def test_nan_weights_and_targets_are_left_out_and_counted():
    zoo = make_zoo()
    whole, _ = predict(zoo, ["metric.linear", "step"])
    train, _, test = zoo.split(0)
    rows = zoo.weights()
    broken = (zoo.table["model"] == train.models[0]).to_numpy() & (zoo.table["step"] == 1).to_numpy()
    rows[torch.from_numpy(broken)] = float("nan")
    metric = zoo.table["metric.linear"].to_numpy().copy()
    lost = zoo.table["model"].is_in(train.models[3:5]).to_numpy()
    metric[lost] = np.nan
    metric[zoo.table["model"].is_in(test.models[:2]).to_numpy()] = np.inf
    table = zoo.table.drop("layout", "shard", "row").with_columns(pl.Series("metric.linear", metric))
    scores, predictions = predict(Zoo.in_memory(rows, LAYOUT, table, {}), ["metric.linear", "step"])
    counts = whole.select("n_train", "n_test").row(0)
    assert counts == (len(train), len(test))
    found = {target: (a, b) for target, a, b in scores.select("target", "n_train", "n_test").rows()}
    assert found == {
        "metric.linear": (counts[0] - 1 - 2 * STEPS, counts[1] - 2 * STEPS),
        "step": (counts[0] - 1, counts[1]),
    }
    assert predictions.filter(target="metric.linear").height == counts[1] - 2 * STEPS
    assert value(scores, "r2", target="metric.linear") > 1 - 1e-6  # what is left lies on its line


def test_missing_classes_are_left_out_and_counted():
    zoo = make_zoo()
    train, _, _ = zoo.split(0)
    gone = pl.when(pl.col("model") == train.models[0]).then(None).otherwise(pl.col("config.activation"))
    scores, _ = predict(zoo.with_columns(**{"config.activation": gone}), ["config.activation"])
    assert scores["n_train"].unique().to_list() == [len(train) - STEPS]


# ---- Refusals


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["metric.lineer"], {}, r"did you mean 'metric\.linear'"),
        (["model"], {}, "unknown target 'model'"),
        (["metric.linear"], {"boosting": ("metric.noise",)}, "unknown boosting target"),
        ([], {}, "nothing to predict"),
    ],
)
def test_what_cannot_be_predicted_is_refused(targets, options, message):
    with pytest.raises(ConfigError, match=message):
        predict(make_zoo(), targets, **options)


@pytest.mark.parametrize(
    ("represent", "message"),
    [
        (lambda zoo: flat_weights(zoo)[:-1], "shapes"),
        (lambda zoo: flat_weights(zoo)[:, 0], "shapes"),
        (lambda zoo: flat_weights(zoo)[:, : len(zoo) % 5 + 1], "shapes"),
        (lambda zoo: flat_weights(zoo) * np.nan, "'mine' gives NaN"),
    ],
)
def test_bad_representations_are_named(represent, message):
    with pytest.raises(ConfigError, match=message):
        predict(make_zoo(), ["step"], {"mine": represent})


def test_too_few_values_are_refused():
    train, validation, test = make_zoo().split(0)
    empty = test.with_columns(**{"metric.linear": float("nan")})
    with pytest.raises(ConfigError, match=r"0 usable of 27 checkpoints in the test split"):
        predict_properties(train, validation, empty, {"flat": flat_weights}, ["metric.linear"])
