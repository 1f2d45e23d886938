"""Samplers of latents against what their definitions say, in numbers with standard errors; and as zoos of networks."""

import math
import sys

import polars as pl
import pytest
import torch
from scipy import stats

from weightspace.encoders import SANE, Autoencoder
from weightspace.errors import ConfigError, LayoutError, MissingExtra, UnknownName, ZooError
from weightspace.evaluation import best_prompts
from weightspace.generators import (
    Gaussian,
    GaussianConfig,
    Interpolation,
    InterpolationConfig,
    LatentGAN,
    LatentGANConfig,
    Neighbourhood,
    NeighbourhoodConfig,
    Uniform,
    UniformConfig,
    latent_sampler,
    latent_samplers,
)
from weightspace.zoo import Zoo

N = 4000
M, T, Z = 9, 4, 3
LATENTS = torch.randn(M, T, Z, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 3, Z)
QUICK = {"gan": LatentGANConfig(steps=20)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(sampler, latents=LATENTS, n=N, seed=0) -> torch.Tensor:
    return sampler.density(latents, seeded(5))(n, seeded(seed))[0]


class NoAutoencoder(Autoencoder):
    """For densities alone."""

    def __init__(self): ...
    def latents(self, zoo): ...
    def decode(self, latents, layout=None): ...
    def embed(self, zoo, pooling="mean"): ...


def of(kind, **options):
    return kind(NoAutoencoder(), kind.Config(**options))


# --- uniform ----------------------------------------------------------------------------------------------------------


def test_uniform_draws_cover_the_box_of_the_prompts():
    """Each latent is uniform between its least and largest value (Kolmogorov-Smirnov), none depends on another."""
    values, low, high = drawn(of(Uniform)), LATENTS.amin(0), LATENTS.amax(0)
    assert ((values >= low) & (values <= high)).all()
    inside = ((values - low) / (high - low)).flatten(1)
    for place in range(T * Z):
        assert stats.kstest(inside[:, place].numpy(), "uniform").pvalue > 1e-4
    assert (inside.T.corrcoef() - torch.eye(T * Z)).abs().max() < 5 / math.sqrt(N)


def test_the_published_box_does_not_know_the_prompts():
    values = drawn(of(Uniform, bounds=(-1.0, 1.0)))
    assert stats.kstest(values.flatten().numpy(), "uniform", (-1, 2)).pvalue > 1e-4


# --- Gaussian ---------------------------------------------------------------------------------------------------------


def test_gaussian_has_mean_and_covariance_of_the_prompts():
    """Within five standard errors of a Gaussian's moments; of rank M - 1, as the prompts."""
    flat, wanted = drawn(of(Gaussian)).flatten(1).double(), LATENTS.flatten(1).double()
    std = wanted.std(0)
    assert ((flat.mean(0) - wanted.mean(0)) / std).abs().max() < 5 / math.sqrt(N)
    error = (flat.T.cov() - wanted.T.cov()) / std / std[:, None]
    assert error.abs().max() < 5 * math.sqrt(2 / N)
    assert int(torch.linalg.matrix_rank((flat - wanted.mean(0)).float(), rtol=1e-4)) == M - 1
    narrow = drawn(of(Gaussian, spread=0.5)).flatten(1).double() - wanted.mean(0)
    torch.testing.assert_close(narrow, 0.5 * (flat - wanted.mean(0)), rtol=1e-4, atol=1e-5)


def test_low_rank_gaussian_keeps_the_largest_directions():
    flat, wanted = drawn(of(Gaussian, rank=2)).flatten(1).double(), LATENTS.flatten(1).double()
    centred = flat - wanted.mean(0)
    assert int(torch.linalg.matrix_rank(centred.float(), rtol=1e-4)) == 2
    value, direction = torch.linalg.eigh(wanted.T.cov())
    along = centred @ direction[:, -2:]
    torch.testing.assert_close(along.var(0), value[-2:], rtol=5 * math.sqrt(2 / N), atol=0)
    torch.testing.assert_close(along @ direction[:, -2:].T, centred, rtol=0, atol=1e-4)  # nothing beside them


def test_gaussian_of_all_directions_is_the_full_one():
    full, low = (drawn(of(Gaussian, rank=rank)).flatten(1).double() for rank in (None, M))
    spread = LATENTS.flatten(1).double().std(0)
    assert ((full.T.cov() - low.T.cov()) / spread / spread[:, None]).abs().max() < 7 * math.sqrt(2 / N)


def test_published_anchors_are_blind_to_the_prompts():
    values = drawn(of(Gaussian, sigma=10.0))
    assert stats.kstest(values.flatten().numpy(), "norm", (0, 10)).pvalue > 1e-4


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_interpolated_latents_lie_on_segments_between_two_prompts():
    values = drawn(of(Interpolation), n=500).flatten(1)
    points = LATENTS.flatten(1)
    ends = torch.combinations(torch.arange(M))
    start, way = points[ends[:, 0]], points[ends[:, 1]] - points[ends[:, 0]]
    share = ((values[:, None] - start) * way).sum(2) / way.square().sum(1)  # n, pair
    off = (values[:, None] - start - share[:, :, None] * way).norm(dim=2)
    nearest = off.argmin(1)
    assert off.amin(1).max() < 1e-5
    own = share.gather(1, nearest[:, None])
    assert own.min() >= 0 and own.max() <= 1
    assert stats.kstest(own[:, 0].numpy(), "uniform").pvalue > 1e-4
    assert len(nearest.unique()) == len(ends)  # all pairs occur: each is missed with probability (35/36)^500 = 1e-6


def test_the_middle_of_segments():
    values = drawn(of(Interpolation, margin=0.5), n=200).flatten(1)
    pairs = torch.combinations(torch.arange(M))
    middles = LATENTS.flatten(1)[pairs].mean(1)
    exact = torch.cdist(values, middles, compute_mode="donot_use_mm_for_euclid_dist")
    assert exact.amin(1).max() < 1e-5


# --- neighbourhood ----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a minute of compilation by numba
@pytest.mark.timeout(600)
def test_neighbours_stay_near_the_prompts_manifold(digits_sane, digits_zoo):
    """Prompts on a curved line in 12 dimensions: draws are nearer to it than uniform draws from its box."""
    angle = torch.linspace(0, 3, 60)[:, None]
    frame = torch.randn(2, T * Z, generator=seeded(2))
    line = torch.cat([angle.sin(), angle.cos()], 1) @ frame
    sampler = of(Neighbourhood, components=2, epochs=100)
    made = drawn(sampler, line.unflatten(1, (T, Z)), n=30).flatten(1)
    box = drawn(of(Uniform), line.unflatten(1, (T, Z)), n=300).flatten(1)
    near, far = (torch.cdist(some, line).amin(1).median() for some in (made, box))
    assert near < 0.5 * far
    again = drawn(of(Neighbourhood, components=2, epochs=100), line.unflatten(1, (T, Z)), n=30).flatten(1)
    assert torch.equal(made, again)
    made = Neighbourhood(digits_sane, NeighbourhoodConfig(epochs=20)).fit(digits_zoo.split(0)[0]).sample(6)
    assert made.header["name"] == "neighbourhood" and len(made.finite()) == 6


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra, match=r"weightspace\[map\]"):
        drawn(of(Neighbourhood))


# --- GAN --------------------------------------------------------------------------------------------------------------


def test_gan_learns_mean_and_spread_of_a_mixture():
    """Two clusters in a plane. A GAN has no law that its moments obey; the bounds are three times what seeds gave."""
    side = torch.randint(2, (200,), generator=seeded(3)) * 2.0 - 1
    points = torch.stack([5 + 2 * side, torch.zeros(200)], 1) + 0.4 * torch.randn(200, 2, generator=seeded(4))
    made = drawn(of(LatentGAN, steps=500), points[:, None], n=2000)[:, 0]
    std = points.std(0)
    assert ((made.mean(0) - points.mean(0)) / std).abs().max() < 0.3
    torch.testing.assert_close(made.std(0), std, rtol=0.3, atol=0)
    in_cluster = ((made[:, 0] - 5).abs() > 1).double().mean()
    # of a Gaussian of that spread 0.62: P(|N(0, 1)| > 1 / 2.04); five standard errors above it
    assert in_cluster > 0.62 + 5 * math.sqrt(0.62 * 0.38 / 2000)
    assert 0.25 < (made[:, 0] > 5).double().mean() < 0.75


def test_gan_stays_in_the_span_of_the_prompts():
    made = drawn(of(LatentGAN, steps=5), n=100).flatten(1)
    points = LATENTS.flatten(1)
    span = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[: M - 1]
    centred = made - points.mean(0)
    torch.testing.assert_close(centred @ span.T @ span, centred, rtol=0, atol=1e-4)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (UniformConfig, {"bounds": (1.0, -1.0)}, "bounds"),
        (GaussianConfig, {"rank": 0}, "rank"),
        (GaussianConfig, {"spread": math.nan}, "spread"),
        (GaussianConfig, {"sigma": -1.0}, "sigma"),
        (GaussianConfig, {"sigma": 1.0, "rank": 2}, "no rank"),
        (InterpolationConfig, {"margin": 0.6}, "margin"),
        (NeighbourhoodConfig, {"neighbours": 1}, "neighbours"),
        (LatentGANConfig, {"steps": 0}, "steps"),
        (LatentGANConfig, {"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_settings_out_of_range(kind, options, says):
    with pytest.raises(ConfigError, match=says):
        kind(**options)


@pytest.fixture(scope="module")
def prompts(digits_zoo):
    chosen = digits_zoo.split(0)[0].last()
    return chosen.where(pl.col("config.activation") == chosen.table["config.activation"].mode()[0])


@pytest.mark.parametrize("method", sorted(set(latent_samplers()) - {"kde", "neighbourhood"}))
def test_networks_are_a_zoo_and_follow_their_seed(digits_sane, digits_zoo, method):
    chosen = digits_zoo.split(0)[0]
    sampler = latent_sampler(method)(digits_sane, QUICK.get(method)).fit(chosen)
    made = sampler.sample(10, seed=4)
    assert len(made.models) == 10 and made.layout == digits_zoo.layout and len(made.finite()) == 10
    assert set(made.table["config.activation"]) <= {"relu", "tanh"} and set(made.table["step"]) == {0}
    assert made.header["network"] == digits_zoo.header["network"] and made.header["name"] == method
    assert torch.equal(sampler.sample(10, seed=4).weights(), made.weights())
    assert not torch.equal(sampler.sample(10, seed=5).weights(), made.weights())


def test_prompts_of_another_task_say_so(digits_sane, digits_zoo):
    """Same layout, other images: networks drawn belong to the task of their prompts."""
    other = digits_zoo.last()
    header = other.header | {"dataset": {"name": "letters"}, "recipe": {"data": "letters"}}
    other = Zoo.in_memory(other.weights() + 0.5, other.layout, other.table.drop("layout", "shard", "row"), header)
    made = Gaussian(digits_sane).fit(other).sample(20)
    assert made.header["dataset"] == {"name": "letters"} and made.header["recipe"] == {"data": "letters"}
    own = Gaussian(digits_sane).fit(digits_zoo.last()).sample(20)
    assert own.header["dataset"] == digits_zoo.header["dataset"]
    assert not torch.equal(made.weights(), own.weights())


def test_groups_of_activations_do_not_mix(digits_sane, digits_zoo):
    """A Gaussian of each activation: the draws of one lie in the span of its own prompts."""
    chosen = best_prompts(digits_zoo.split(0)[0], 1.0)
    sampler = Gaussian(digits_sane).fit(chosen)
    latents, table = sampler.draw(50)
    for name in ("relu", "tanh"):
        own = sampler.latents[(chosen.table["config.activation"] == name).arg_true().to_list()].flatten(1)
        made = latents[(table["config.activation"] == name).arg_true().to_list()].flatten(1)
        rank = torch.linalg.matrix_rank(torch.cat([own, made]) - own.mean(0), rtol=1e-4)
        assert int(rank) == len(own) - 1


def test_what_cannot_be_fitted_or_drawn(digits_sane, prompts):
    with pytest.raises(ZooError, match="needs prompts"):
        Uniform(digits_sane).fit(prompts.take([]))
    with pytest.raises(ZooError, match="at least 2 prompts"):
        Interpolation(digits_sane).fit(prompts.take([0]))
    with pytest.raises(ConfigError, match="call fit"):
        Uniform(digits_sane).sample(3)
    with pytest.raises(ConfigError, match="at least 1"):
        Uniform(digits_sane).fit(prompts).sample(0)
    with pytest.raises(UnknownName, match="gaussian"):
        latent_sampler("gausian")
    narrow = Zoo.in_memory(torch.zeros(1, 8), torch_layout(), pl.DataFrame({"model": ["a"], "step": [0]}), {})
    with pytest.raises(LayoutError):
        Uniform(digits_sane).fit(narrow)


def torch_layout():
    from weightspace.networks import Layout

    return Layout.of(torch.nn.Linear(3, 2))


def test_the_contract_is_enough(digits_sane, prompts):
    """Samplers ask an autoencoder for nothing but its latents, decoder, preparation and header."""

    class OneLatent(Autoencoder):
        def __init__(self):
            self.header, self.preparations = digits_sane.header, digits_sane.preparations

        def latents(self, zoo):
            return digits_sane.latents(zoo).flatten(1)[:, None]

        def embed(self, zoo, pooling="mean"): ...
        def decode(self, latents, layout=None):
            return digits_sane.decode(latents[:, 0].unflatten(1, (-1, digits_sane.config.latent)))

    assert isinstance(digits_sane, SANE)
    one, many = (Uniform(encoder).fit(prompts).sample(4).weights() for encoder in (OneLatent(), digits_sane))
    torch.testing.assert_close(one, many)
