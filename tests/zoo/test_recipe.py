"""Recipes: the law of every factor, and plans that only grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats

from weightspace.errors import ConfigError, UnknownName
from weightspace.zoo.recipe import Recipe

MANY = 4000
WIDE = Recipe(
    models=MANY, learning_rate=(3e-4, 3e-2), weight_decay=(1e-6, 1e-2), init_scale=(0.3, 2.0), dropout=(0.1, 0.4),
    activation=("relu", "tanh", "gelu"), optimiser=("adam", "sgd"), seed=3,
)  # fmt: skip
PLAN = WIDE.plan()


@settings(deadline=None, max_examples=30)
@given(small=st.integers(1, 60), more=st.integers(0, 60), seed=st.integers(0, 2**63 - 1))
def test_a_larger_zoo_begins_with_the_smaller_one(small, more, seed):
    larger = Recipe(models=small + more, seed=seed).plan()
    assert_frame_equal(larger.head(small), Recipe(models=small, seed=seed).plan())


def test_another_seed_is_another_zoo_and_seeds_are_distinct():
    first, second = (Recipe(models=MANY, seed=seed).plan()["config.seed"] for seed in (0, 1))
    assert first.n_unique() == second.n_unique() == MANY and not set(first) & set(second)
    assert first.min() >= 0 and first.max() < 2**53
    assert first.max() > 2**52  # so many seeds that even a zoo of millions has no twins
    assert PLAN["model"].to_list() == [f"{i:05d}" for i in range(MANY)]


@pytest.mark.parametrize(
    ("factor", "bounds"), [("learning_rate", (3e-4, 3e-2)), ("weight_decay", (1e-6, 1e-2)), ("init_scale", (0.3, 2.0))]
)
def test_ranges_are_log_uniform(factor, bounds):
    values = PLAN[f"config.{factor}"].to_numpy()
    low, high = bounds
    assert low <= values.min() and values.max() <= high
    assert stats.kstest(values, stats.loguniform(low, high).cdf).pvalue > 1e-4


def test_dropout_is_uniform():
    values = PLAN["config.dropout"].to_numpy()
    assert values.min() >= 0.1 and values.max() <= 0.4
    assert stats.kstest(values, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-4


@pytest.mark.parametrize("factor", ["train_fraction", "init", "activation", "optimiser"])
def test_choices_are_equally_likely(factor):
    options = getattr(WIDE, factor)
    counts = [int((PLAN[f"config.{factor}"] == option).sum()) for option in options]
    assert sum(counts) == MANY and stats.chisquare(counts).pvalue > 1e-4


def test_factors_are_independent():
    codes = PLAN.drop("model").select(column.rank("dense") for column in PLAN.drop("model")).to_numpy()
    correlation = np.corrcoef(codes.T)[np.triu_indices(codes.shape[1], 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(MANY)


def test_a_range_of_one_value_is_that_value():
    fixed = Recipe(models=50, learning_rate=(1e-3, 1e-3), weight_decay=(5e-4, 5e-4), dropout=(0.2, 0.2)).plan()
    assert set(fixed["config.learning_rate"]) == {1e-3} and set(fixed["config.weight_decay"]) == {5e-4}
    assert set(fixed["config.dropout"]) == {0.2}


@given(epochs=st.integers(1, 200))
def test_kept_epochs_run_from_the_start_to_the_end(epochs):
    kept = Recipe(epochs=epochs).kept_epochs
    assert kept[0] == 0 and kept[-1] == epochs and list(kept) == sorted(set(kept)) and len(kept) <= 9


def test_kept_epochs_can_be_chosen():
    assert Recipe(epochs=5, checkpoints=(5, 0, 3, 3)).kept_epochs == (0, 3, 5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": "cnn_ss"}, "did you mean 'cnn_s'"),
        ({"activation": ("relo",)}, "did you mean 'relu'"),
        ({"init": ("kaiming_unifrm",)}, "did you mean 'kaiming_uniform'"),
        ({"activation": ()}, "activation must name at least one"),
        ({"optimiser": ()}, "optimiser must name at least one"),
        ({"train_fraction": ()}, "train_fraction must name at least one"),
        ({"train_fraction": (0.0,)}, r"shares in \(0, 1\]"),
        ({"models": 0}, "models must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"learning_rate": (1e-2, 1e-3)}, "learning_rate must be a range"),
        ({"weight_decay": (0.0, 1e-3)}, "weight_decay must be a range"),
        ({"init_scale": (float("nan"), 1.0)}, "init_scale must be a range"),
        ({"dropout": (0.2, 1.0)}, "dropout must be a range"),
        ({"epochs": 25, "checkpoints": (0, 26)}, "between 0 and 25 epochs"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": 2**63}, "seed must lie between"),
    ],
)
def test_impossible_recipes_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        Recipe(**change)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises((UnknownName, TypeError), match="optimiser"):
        Recipe(optimiser=("adm",))
