"""Recipes: the law of every factor, and plans that only grow."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats

from weightspace.errors import ConfigError, UnknownName
from weightspace.networks import wild_park
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
        ({"network": "wild_pork"}, "did you mean 'wild_park'"),
        ({"sampling": "grid", "learning_rate": ()}, "learning_rate must name at least one"),
        ({"sampling": "grid", "weight_decay": (-1.0,)}, "weight_decay must be finite values"),
        ({"learning_rate": (1e-3,)}, "learning_rate must be a range"),
        ({"dropout": (0.1,)}, "dropout must be a range"),
        ({"momentum": (1.0,)}, r"momentum must lie in \[0, 1\)"),
        ({"unit_models": 0}, "unit_models must be at least 1"),
        ({"data": "sines"}, "use the network siren_wave"),
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


# ---- Grids


GRID = Recipe(
    sampling="grid", models=50, learning_rate=(1e-3, 1e-2, 1e-1), weight_decay=(0.0, 1e-3), dropout=(0.0, 0.5),
    init_scale=(1.0,), train_fraction=(1.0,), init=("uniform",), activation=("relu", "tanh"), optimiser=("sgd",),
)  # fmt: skip
CELL = [f"config.{name}" for name in GRID.factors]


def test_a_grid_has_every_combination_once_a_repetition():
    plan = GRID.plan()
    whole = plan.head(24).select(CELL)
    assert whole.n_unique() == 24 == 3 * 2 * 2 * 2
    assert_frame_equal(plan[24:48].select(CELL), whole), "the next repetition"
    assert plan["config.seed"].n_unique() == 50
    assert not whole.head(12)["config.learning_rate"].is_sorted(), "a part of a grid is spread over it"


def test_repeated_seeds_are_those_of_the_repetition():
    plan = replace(GRID, repeat_seeds=True).plan()
    assert plan["config.seed"].to_list() == [plan["config.seed"][i // 24 * 24] for i in range(50)]
    assert plan["config.seed"].n_unique() == 3
    assert_frame_equal(plan.drop("config.seed"), GRID.plan().drop("config.seed"))


@settings(deadline=None, max_examples=20)
@given(small=st.integers(1, 60), more=st.integers(0, 60), seed=st.integers(0, 2**63 - 1), repeat=st.booleans())
def test_a_larger_grid_begins_with_the_smaller_one(small, more, seed, repeat):
    grid = replace(GRID, seed=seed, repeat_seeds=repeat)
    larger = replace(grid, models=small + more).plan()
    assert_frame_equal(larger.head(small), replace(grid, models=small).plan())


def test_a_value_given_twice_is_one_value():
    assert_frame_equal(replace(GRID, init_scale=(1.0, 1.0)).plan(), GRID.plan())


def test_momentum_and_deviation_have_columns_only_where_they_are_set():
    assert not {"config.momentum", "config.init_std"} & set(PLAN.columns)
    wide = Recipe(models=MANY, momentum=(0.0, 0.5, 0.9), init_std=(1e-3, 0.5)).plan()
    counts = wide["config.momentum"].value_counts()["count"].to_list()
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.kstest(wide["config.init_std"].to_numpy(), stats.loguniform(1e-3, 0.5).cdf).pvalue > 1e-4
    usual = Recipe(models=MANY).plan()
    assert_frame_equal(wide.select(usual.columns), usual), "the other factors do not notice"


# ---- Networks of their own, and signals


def test_the_wild_park_says_what_each_network_is():
    recipe = Recipe(network="wild_park", models=60, activation=("relu", "tanh"), models_per_architecture=3)
    plan = recipe.plan()
    assert plan["network"].to_list() == [plan["network"][i // 3 * 3] for i in range(60)]
    assert plan["network"].n_unique() == 20 and plan["config.seed"].n_unique() == 60
    assert not {"config.activation", "config.dropout"} & set(plan.columns)
    for row in plan.iter_rows(named=True):
        park = wild_park((3, 32, 32), 10, seed=row["config.architecture_seed"], activations=("relu", "tanh"))
        assert (park.name, len(park.channels)) == (row["network"], row["config.depth"])
        assert row["config.skips"] == sum(skip is not None for skip in park.skips)


def test_waves_are_uniform():
    plan = Recipe(data="sines", network="siren_wave", models=MANY, init=("siren",)).plan()
    for factor in ("amplitude", "frequency"):
        assert stats.kstest(plan[f"config.{factor}"].to_numpy(), stats.uniform(0, 10).cdf).pvalue > 1e-4
    codes = plan.select("config.amplitude", "config.frequency", "config.learning_rate").to_numpy()
    assert np.abs(np.corrcoef(codes.T)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(MANY)
    assert not {"config.activation", "config.dropout", "config.train_fraction"} & set(plan.columns)
