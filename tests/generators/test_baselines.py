"""Baselines: what is mixed can be read off from unit vectors as prompts; statistics within stated standard errors."""

import math
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace import networks
from weightspace.errors import ConfigError, ZooError
from weightspace.generators.baselines import (
    average,
    diagonal_gaussian,
    interpolation,
    noise,
    random_initialisation,
)
from weightspace.networks.layout import Layout
from weightspace.networks.population import initial_rows
from weightspace.zoo import Zoo

LAYOUT = Layout.of(nn.Linear(15, 4))  # 64 parameters
ACTIVATIONS = ["tanh", "relu", "relu", "tanh", "gelu", "relu", "relu", "gelu", "relu", "tanh"]
MIXERS = {
    "noise": partial(noise, sigma=0.1),
    "interpolation": interpolation,
    "average 2": partial(average, k=2),
    "average all": partial(average, k=None),
    "gaussian": diagonal_gaussian,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts(rows: torch.Tensor, activations: list[str] | None = None) -> Zoo:
    table = pl.DataFrame({"model": [f"{i:04d}" for i in range(len(rows))], "step": [7] * len(rows)})
    if activations is not None:
        table = table.with_columns(pl.Series("config.activation", activations))
    return Zoo.in_memory(rows, LAYOUT, table, {"name": "prompts", "recipe": {"models": 10}})


def unit_prompts() -> Zoo:
    """Prompt i is the i-th unit vector, so that a mixture tells its shares."""
    return prompts(torch.eye(64)[: len(ACTIVATIONS)], ACTIVATIONS)


def gaussian_prompts(seed: int = 0) -> Zoo:
    return prompts(torch.randn(len(ACTIVATIONS), 64, generator=seeded(seed)), ACTIVATIONS)


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
def test_a_zoo_of_new_networks_comes_back(mix):
    zoo = gaussian_prompts()
    before = zoo.weights()
    made = mix(zoo, 7, seeded())
    assert len(made.models) == len(made) == (3 if mix is MIXERS["average all"] else 7)
    assert all(name.endswith(f"-{i:03d}") for i, name in enumerate(made.models))
    assert made.table["step"].unique().to_list() == [0]
    assert made.layout == LAYOUT and "recipe" not in made.header
    assert set(made.table["config.activation"]) <= set(ACTIVATIONS)
    assert torch.equal(zoo.weights(), before)  # averages of averages: a published baseline changed its prompts
    assert "config.activation" not in mix(prompts(before), 7, seeded()).table.columns


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
def test_seeds_decide(mix):
    zoo = gaussian_prompts()
    first, again, other = (mix(zoo, 9, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.weights(), again.weights()) and first.table.equals(again.table)
    if mix is not MIXERS["average all"]:
        assert not torch.equal(first.weights(), other.weights())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(0, 1000))
def test_groups_are_in_proportion(n, seed):
    made = noise(unit_prompts(), n, seeded(seed), sigma=0.0)
    for name in set(ACTIVATIONS):
        share = n * ACTIVATIONS.count(name) / len(ACTIVATIONS)
        assert abs((made.table["config.activation"] == name).sum() - share) < 1 + 1e-9
    copies = made.weights().sum(0)[: len(ACTIVATIONS)]  # how often each prompt was copied
    assert copies.max() - copies.min() <= 1
    labels = [ACTIVATIONS[i] for i in made.weights().argmax(1)]
    assert made.table["config.activation"].to_list() == labels


def test_prompts_are_equally_likely_and_order_is_random():
    draws = torch.stack([noise(unit_prompts(), 3, seeded(s), sigma=0.0).weights()[:, :10] for s in range(300)])
    # 300 draws in each of 3 places: counts of a prompt in one place are binomial(300, .1), deviation 5.2; 5 of them
    assert (draws.sum(0) - 30).abs().max() < 5 * math.sqrt(300 * 0.1 * 0.9)
    relu = draws.sum(1)[:, [i for i, a in enumerate(ACTIVATIONS) if a == "relu"]]
    assert ((relu.T @ relu) > 0).all()  # any two of a large group can come together, also neighbours in the zoo


def test_noise_has_the_deviation_of_its_group():
    scales = {"relu": 1.0, "tanh": 3.0, "gelu": 0.1}
    rows = torch.randn(10, 64, generator=seeded()) * torch.tensor([[scales[a]] for a in ACTIVATIONS])
    zoo = prompts(rows, ACTIVATIONS)
    made = noise(zoo, 2000, seeded(1), sigma=1e-3)  # small: the prompt is the nearest
    origin = torch.cdist(made.weights(), rows).argmin(1)
    groups = torch.tensor([sorted(scales).index(a) for a in ACTIVATIONS])
    spread = torch.stack([rows[groups == g].std(0) for g in range(3)])[groups[origin]]
    z = (made.weights().double() - rows[origin]) / (1e-3 * spread)
    # 128000 standard normal values: standard errors 1 / √128000 = .0028 and 1 / √256000 = .0020; 5 of them. Rounding
    # of the weights adds 1e-7 · 3 / 1e-3 / .1 = .003 to a value, nothing to these
    assert abs(z.mean()) < 0.014 and abs(z.std() - 1) < 0.01
    assert made.table["config.sigma"].to_list() == [1e-3] * 2000
    columns = torch.corrcoef(z.T) - torch.eye(64)
    assert columns.abs().max() < 6 / math.sqrt(2000)  # 2016 pairs of independent columns
    assert torch.equal(noise(zoo, 10, seeded(), sigma=0.0).weights().unique(dim=0), rows.unique(dim=0))


def test_interpolation_lies_on_segments_within_a_group():
    made = interpolation(unit_prompts(), 3000, seeded())
    shares = made.weights()[:, :10]
    assert ((shares > 0).sum(1) == 2).all()  # two different prompts
    torch.testing.assert_close(shares.sum(1), torch.ones(3000), rtol=0, atol=1e-6)
    assert not made.weights()[:, 10:].any()
    for i, j in shares.topk(2).indices.tolist():
        assert ACTIVATIONS[i] == ACTIVATIONS[j]
    larger = shares.amax(1)
    # uniform on (½, 1): mean ¾, deviation 1/√48 = .144; 5 standard errors of 3000
    assert abs(float(larger.mean()) - 0.75) < 5 * 0.144 / math.sqrt(3000)
    relu = [i for i, a in enumerate(ACTIVATIONS) if a == "relu"]
    pairs = torch.stack([shares[:, i].gt(0) & shares[:, j].gt(0) for i in relu for j in relu if i < j]).sum(1).float()
    # about 1500 of them over 10 pairs: binomial, deviation 11.6
    assert (pairs - pairs.sum() / 10).abs().max() < 5 * 11.6


@pytest.mark.parametrize("k", [1, 2])
def test_averages_have_k_equal_shares_within_a_group(k):
    made = average(unit_prompts(), 500, seeded(), k=k)
    shares = made.weights()[:, :10]
    assert ((shares > 0).sum(1) == k).all()
    assert torch.equal(shares[shares > 0], torch.full((500 * k,), 1 / k))
    for row, name in zip(shares, made.table["config.activation"], strict=True):
        assert {ACTIVATIONS[i] for i in row.nonzero()[:, 0].tolist()} == {name}


def test_the_average_of_all_is_the_mean():
    zoo = gaussian_prompts()
    made = average(zoo, 50, seeded(), k=None)
    assert sorted(made.table["config.activation"]) == ["gelu", "relu", "tanh"]
    for row, name in zip(made.weights(), made.table["config.activation"], strict=True):
        mean = zoo.where(pl.col("config.activation") == name).weights().double().mean(0)
        torch.testing.assert_close(row.double(), mean, rtol=0, atol=1e-6)  # float32 sums of 5 values near 1
    rows = torch.randn(40, 64, generator=seeded())
    alone = average(prompts(rows), 50, seeded(), k=None)
    torch.testing.assert_close(alone.weights(), rows.mean(0, keepdim=True), rtol=0, atol=1e-6)
    of_all = average(prompts(rows), 3, seeded(), k=40)
    torch.testing.assert_close(of_all.weights(), rows.mean(0).expand(3, 64), rtol=0, atol=1e-6)
    assert len(average(zoo, 1, seeded(), k=None)) == 1


def test_the_gaussian_has_mean_and_deviation_of_the_prompts():
    rows = 2 + 3 * torch.randn(30, 64, generator=seeded())
    made = diagonal_gaussian(prompts(rows), 4000, seeded(1)).weights().double()
    z = (made - rows.mean(0)) / rows.std(0)
    # each of 64 columns: standard errors 1 / √4000 and 1 / √8000; 5 of them
    assert z.mean(0).abs().max() < 5 / math.sqrt(4000)
    assert (z.std(0) - 1).abs().max() < 5 / math.sqrt(8000)
    assert (torch.corrcoef(z.T) - torch.eye(64)).abs().max() < 6 / math.sqrt(4000)


def template() -> Zoo:
    settings = [
        ("relu", "kaiming_uniform", 0.5),
        ("relu", "kaiming_normal", 1.0),
        ("tanh", "kaiming_normal", 2.0),
        ("tanh", "kaiming_uniform", 1.5),
    ]
    table = pl.DataFrame(settings, schema=["config.activation", "config.init", "config.init_scale"], orient="row")
    table = table.with_columns(model=pl.Series(list("abcd")), step=9)
    network = networks.MLP()
    layout = Layout.of(network.build())
    header = {"network": networks.to_json(network)}
    return Zoo.in_memory(torch.full((4, layout.parameters), torch.nan), layout, table, header)


def test_random_networks_are_those_of_the_initialiser():
    zoo = template()
    made = random_initialisation(zoo, 40, seeded())
    settings = ["config.activation", "config.init", "config.init_scale"]
    assert sorted(made.table.select(settings).rows()) == sorted(zoo.table.select(settings).rows() * 10)
    assert made.table["config.seed"].n_unique() == 40
    for i, row in enumerate(made.table.iter_rows(named=True)):
        expected = initial_rows(
            networks.MLP(),
            torch.tensor([row["config.seed"]]),
            row["config.init"],
            torch.tensor([row["config.init_scale"]]),
        )
        assert torch.equal(made.weights()[i], expected[0])
    again = random_initialisation(zoo, 40, seeded())
    assert torch.equal(again.weights(), made.weights()) and again.table.equals(made.table)


def test_random_networks_have_the_deviations_and_biases_of_the_recipe():
    zoo = template()
    table = zoo.table.drop("layout", "shard", "row").with_columns(pl.lit("normal").alias("config.init"))
    table = table.with_columns(pl.Series("config.init_std", [0.01, 0.02, 0.04, 0.08]))
    header = zoo.header | {"recipe": {"init_bias": 0.25}}
    made = random_initialisation(Zoo.in_memory(zoo.weights(), zoo.layout, table, header), 40, seeded())
    assert made.table["config.init_std"].n_unique() == 4
    tensors = zoo.layout.unflatten(made.weights())
    assert (tensors["fc1.bias"] == 0.25).all()
    expected = (made.table["config.init_scale"] * made.table["config.init_std"]).to_numpy()
    # the deviation of 896 draws is within 5 standard errors, 1 / sqrt(2 * 896) each
    np.testing.assert_allclose(tensors["fc1.weight"].flatten(1).std(1).numpy(), expected, rtol=5 / (2 * 896) ** 0.5)


def test_bad_input_is_one_sentence():
    zoo = unit_prompts()
    with pytest.raises(ConfigError, match="sigma must be at least 0, got -1"):
        noise(zoo, 5, seeded(), sigma=-1.0)
    with pytest.raises(ConfigError, match="at least 1 network, got 0"):
        interpolation(zoo, 0, seeded())
    with pytest.raises(ConfigError, match="got k = 0"):
        average(zoo, 5, seeded(), k=0)
    with pytest.raises(ZooError, match=r"at least 3 networks .* 2 with activation 'gelu'"):
        average(zoo, 5, seeded(), k=3)
    for mix in (partial(noise, sigma=0.1), interpolation, diagonal_gaussian):
        with pytest.raises(ZooError, match=r"at least 2 networks to mix.* has 1"):
            mix(prompts(torch.randn(1, 64)), 5, seeded())
    with pytest.raises(ZooError, match="finite"):
        interpolation(prompts(torch.full((3, 64), torch.inf)), 5, seeded())
    with pytest.raises(ZooError, match="is empty"):
        interpolation(zoo.take([]), 5, seeded())
    with pytest.raises(ZooError, match=r"'config\.init', which zoo 'prompts' lacks"):
        random_initialisation(zoo, 5, seeded())
