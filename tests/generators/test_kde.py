"""Kernel density draws: each mode against what its definition says, in numbers with standard errors."""

import math

import pytest
import torch
from scipy import stats

from weightspace.errors import ConfigError, ZooError
from weightspace.evaluation import best_prompts
from weightspace.generators import KDE, KDEConfig
from weightspace.generators.kde import draw

N = 4000
M, T, Z = 9, 4, 3
LATENTS = torch.randn(M, T, Z, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 3, Z)


def drawn(mode, bandwidth=0.2, n=N, seed=0, spread=1.0):
    config = KDEConfig(mode=mode, bandwidth=bandwidth, spread=spread)
    return draw(LATENTS, n, config, torch.Generator().manual_seed(seed))


def assert_uniform(prompt):
    """Chi-square test at one in ten thousand."""
    counts = torch.bincount(prompt.flatten(), minlength=M).double()
    expected = prompt.numel() / M
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2(M - 1).ppf(0.9999)


def assert_independent(a, b):
    """The table of two prompts has no association: chi-square with (M - 1)² degrees of freedom, one in ten thousand."""
    table = torch.bincount(a * M + b, minlength=M * M).double()
    expected = len(a) / M**2
    assert float(((table - expected) ** 2 / expected).sum()) < stats.chi2((M - 1) ** 2 + 2 * (M - 1)).ppf(0.9999)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("smooth", (1, 1)), ("joint", (1, 1)), ("token", (T, 1)), ("independent", (T, Z)), ("reference", (1, 1))],
)
def test_prompts_are_uniform_and_independent(mode, shape):
    values, prompt = drawn(mode)
    assert values.shape == (N, T, Z) and prompt.shape == (N, *shape)
    flat = prompt.flatten(1)
    for place in range(flat.shape[1]):
        assert_uniform(flat[:, place])
        if place:
            assert_independent(flat[:, 0], flat[:, place])


@pytest.mark.parametrize("mode", ["joint", "token", "independent"])
def test_residual_to_the_prompt_is_the_kernel(mode):
    """Gaussian of covariance bandwidth² diag(variance over the prompts); five standard errors."""
    values, prompt = drawn(mode)
    own = LATENTS.gather(0, prompt.expand(N, T, Z))
    spread = LATENTS.std(0, correction=0)
    residual = ((values - own) / (0.2 * spread)).flatten(1).double()
    assert residual.mean(0).abs().max() < 5 / math.sqrt(N)
    covariance = residual.T.cov()
    error = math.sqrt(2 / N) * torch.eye(T * Z) + math.sqrt(1 / N) * (1 - torch.eye(T * Z))
    assert ((covariance - torch.eye(T * Z)).abs() < 5 * error).all()
    assert stats.kstest(residual.flatten().numpy(), "norm").pvalue > 1e-4
    variance = values.double().var(0)
    wanted = (1 + 0.2**2) * spread.double() ** 2  # of the mixture
    torch.testing.assert_close(variance, wanted, rtol=5 * math.sqrt(2 / N), atol=0)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_smooth_draws_keep_mean_and_covariance_of_the_prompts(bandwidth):
    """Of rank M - 1, as the prompts; five standard errors of a Gaussian's moments, which bound those of the mixture."""
    values, prompt = drawn("smooth", bandwidth)
    flat, wanted = values.flatten(1).double(), LATENTS.flatten(1).double()
    spread = wanted.std(0, correction=0)
    assert ((flat.mean(0) - wanted.mean(0)) / spread).abs().max() < 5 / math.sqrt(N)
    covariance = wanted.T.cov(correction=0)
    error = ((flat.T.cov() - covariance) / spread / spread[:, None]).abs()
    assert error.max() < 5 * math.sqrt(2 / N)
    centred = flat - wanted.mean(0)
    assert int(torch.linalg.matrix_rank(centred.float(), rtol=1e-4)) == M - 1
    own = wanted[prompt.flatten()] - wanted.mean(0)
    residual = centred - math.sqrt(1 - bandwidth**2) * own
    error = ((residual.T.cov() / bandwidth**2 - covariance) / spread / spread[:, None]).abs()
    assert error.max() < 5 * math.sqrt(2 / N)


def test_spread_scales_deviations_from_the_mean_of_the_prompts():
    wide, narrow = drawn("smooth")[0], drawn("smooth", spread=0.5)[0]
    mean = LATENTS.mean(0)
    torch.testing.assert_close(narrow - mean, 0.5 * (wide - mean), rtol=1e-5, atol=1e-6)
    assert torch.equal(drawn("joint")[0], drawn("joint", spread=0.5)[0])


@pytest.mark.parametrize("spread", [0.0, -1.0, 1.5, math.nan])
def test_spread_out_of_range(spread):
    with pytest.raises(ConfigError, match="spread"):
        KDEConfig(spread=spread)


def test_smooth_bandwidth_ends_at_a_gaussian():
    with pytest.raises(ConfigError, match="at most 1"):
        KDEConfig(bandwidth=1.5)
    assert KDEConfig(mode="joint", bandwidth=1.5).bandwidth == 1.5


def test_joint_draws_lie_at_an_anchor_and_independent_ones_do_not():
    spread = LATENTS.std(0, correction=0)

    def nearest(mode):
        values, _ = drawn(mode, bandwidth=0.01, n=500)
        return ((values[:, None] - LATENTS) / spread).flatten(2).norm(dim=2).amin(1)

    kernel = 0.01 * math.sqrt(T * Z)
    assert nearest("joint").max() < 3 * kernel
    assert nearest("independent").quantile(0.05) > 10 * kernel
    assert nearest("token").quantile(0.05) > 10 * kernel


def test_correlations_of_the_anchors_survive_in_joint_draws_only():
    wanted = LATENTS.flatten(1).T.corrcoef()
    off = ~torch.eye(T * Z, dtype=torch.bool)
    joint = drawn("joint")[0].flatten(1).T.corrcoef()
    independent = drawn("independent")[0].flatten(1).T.corrcoef()
    assert (joint - wanted / (1 + 0.2**2))[off].abs().max() < 5 / math.sqrt(N)
    assert independent[off].abs().max() < 5 / math.sqrt(N)
    token = drawn("token")[0].flatten(1).T.corrcoef()
    within = torch.block_diag(*torch.ones(T, Z, Z)).bool()
    assert (token - wanted / (1 + 0.2**2))[off & within].abs().max() < 5 / math.sqrt(N)
    assert token[~within].abs().max() < 5 / math.sqrt(N)


def test_reference_adds_one_number_to_a_whole_network():
    values, prompt = drawn("reference", bandwidth=0.7)
    residual = values - LATENTS[prompt.flatten()]
    constant = residual.mean((1, 2), keepdim=True)
    assert (residual - constant).abs().max() < 1e-6
    assert float(constant.std()) == pytest.approx(0.7, rel=5 / math.sqrt(2 * N))  # in latent units


@pytest.mark.parametrize("mode", ["smooth", "joint", "token", "independent", "reference"])
def test_bandwidth_zero_returns_latents_of_prompts(mode):
    values, prompt = drawn(mode, bandwidth=0.0)
    # the smooth mode adds the mean that it took away
    torch.testing.assert_close(values, LATENTS.gather(0, prompt.expand(N, T, Z)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["smooth", "joint", "token", "independent", "reference"])
def test_equal_seeds_equal_draws(mode):
    assert torch.equal(drawn(mode)[0], drawn(mode)[0])
    assert not torch.equal(drawn(mode)[0], drawn(mode, seed=1)[0])


@pytest.mark.parametrize(("wrong", "says"), [({"mode": "jiont"}, "joint"), ({"bandwidth": -0.1}, "bandwidth")])
def test_settings_out_of_range(wrong, says):
    with pytest.raises((ConfigError, TypeError), match=says):
        KDEConfig(**wrong)


@pytest.mark.parametrize("bandwidth", [math.nan, math.inf])
def test_bandwidths_that_are_no_numbers(bandwidth):
    with pytest.raises(ConfigError, match="bandwidth"):
        KDEConfig(bandwidth=bandwidth)


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(digits_zoo):
    return best_prompts(digits_zoo.split(0)[0], 1.0)


def test_networks_without_noise_are_reconstructed_prompts(digits_sane, prompts):
    made = KDE(digits_sane, KDEConfig(bandwidth=0.0, spread=1.0)).fit(prompts).sample(30)
    again = digits_sane.reconstruct(prompts)
    place = {model: i for i, model in enumerate(again.table["model"])}
    wanted = again.weights()[[place[model] for model in made.table["config.prompt"]]]
    torch.testing.assert_close(made.weights(), wanted, rtol=1e-5, atol=1e-6)  # sums in batches of other sizes
    activation = dict(prompts.table.select("model", "config.activation").iter_rows())
    assert made.table["config.activation"].to_list() == [activation[m] for m in made.table["config.prompt"]]


@pytest.mark.parametrize("mode", ["smooth", "joint", "token", "independent", "reference"])
def test_networks_are_a_zoo(digits_sane, prompts, mode):
    made = KDE(digits_sane, KDEConfig(mode=mode)).fit(prompts).sample(12, seed=4)
    assert len(made) == len(made.models) == 12 and made.layout == prompts.layout and len(made.finite()) == 12
    assert ("config.prompt" in made.table.columns) == (mode in ("smooth", "joint", "reference"))
    assert made.header["network"] == prompts.header["network"] and made.header["name"] == f"KDE ({mode})"
    assert set(made.table["step"]) == {0}
    same = KDE(digits_sane, KDEConfig(mode=mode)).fit(prompts).sample(12, seed=4)
    assert torch.equal(same.weights(), made.weights()) and same.table.equals(made.table)
    other = KDE(digits_sane, KDEConfig(mode=mode)).fit(prompts).sample(12, seed=5)
    assert not torch.equal(other.weights(), made.weights())


def test_activations_in_proportion_to_the_prompts(digits_sane, prompts):
    """Each network's group is that of a uniform prompt: binomial, five standard errors."""
    share = (prompts.table["config.activation"] == "relu").mean()
    assert 0 < share < 1
    made = KDE(digits_sane).fit(prompts).sample(2000)
    found = (made.table["config.activation"] == "relu").mean()
    assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 2000)
    counts = made.table["config.prompt"].value_counts()["count"].to_numpy()
    expected = 2000 / len(prompts)
    assert len(counts) == len(prompts)
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2(len(prompts) - 1).ppf(0.9999)


def test_groups_do_not_mix(digits_sane, prompts, monkeypatch):
    """Every latent scalar of a network is one of a prompt of its own activation."""
    decoded, decode = [], digits_sane.decode
    monkeypatch.setattr(digits_sane, "decode", lambda latents: decoded.append(latents) or decode(latents))
    sampler = KDE(digits_sane, KDEConfig(mode="independent", bandwidth=0.0)).fit(prompts)
    made = sampler.sample(100)
    activations = prompts.table["config.activation"]
    own = [sampler.latents[(activations == name).arg_true().to_list()] for name in made.table["config.activation"]]
    for latents, known in zip(torch.cat(decoded), own, strict=True):
        assert (latents == known).any(0).all()


def test_nothing_to_draw(digits_sane, prompts):
    with pytest.raises(ZooError, match="needs prompts"):
        KDE(digits_sane).fit(prompts.take([]))
    with pytest.raises(ConfigError, match="at least 1"):
        KDE(digits_sane).fit(prompts).sample(0)
