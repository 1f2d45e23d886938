"""Processes against their formulas: noise, conversions, samplers with the exact denoiser of a density, guidance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import ConfigError
from weightspace.generators.denoising import DDPM, Flow, Noised, denoising_loss, guided

SHARE, MEANS, STD = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.5]), 0.4
"""A mixture of two Gaussians."""
DRAWN = 8_000


def expected(noisy, signal, rest):
    """Mean of the data, and of the noise, of `signal · x + rest · ε` with x from the mixture: Bayes' rule."""
    variance = (signal * STD) ** 2 + rest**2
    away = noisy - signal * MEANS  # b 2
    weight = (SHARE.log() - away.square() / (2 * variance)).softmax(1)
    clean = (weight * (MEANS + signal * STD**2 / variance * away)).sum(1, keepdim=True)
    return clean, (noisy - signal * clean) / rest


def exact(process):
    """The best possible denoiser of the mixture."""

    def predict(noisy, time):
        if isinstance(process, Flow):
            share = time[:1, None].clamp(1e-4, 1 - 1e-4)
            clean, noise = expected(noisy, 1 - share, share)
            return clean - noise
        level = (time * (process.steps - 1)).round().long()
        kept = process.alpha_bars[level[0]].float()
        clean, noise = expected(noisy, kept.sqrt(), (1 - kept).sqrt())
        return process.to_target(clean, noise, level)

    return predict


@pytest.mark.parametrize(
    ("process", "steps"),
    [
        (Flow(), 100),
        (Flow(solver="heun"), 40),
        (DDPM(), 250),
        (DDPM(target="velocity", schedule="cosine"), 250),
        (DDPM(target="data", variance="fixed_large"), 500),
        (DDPM(eta=0.0, schedule="scaled_linear"), 100),
        (DDPM(eta=0.5), 100),
    ],
    ids=str,
)
def test_a_mixture_comes_back_with_its_weights_means_and_deviations(process, steps):
    drawn = process.sample(exact(process), (DRAWN, 1), torch.Generator().manual_seed(0), steps=steps)[:, 0]
    upper = drawn > MEANS.mean()
    assert abs(float(upper.float().mean()) - 0.7) < 0.03
    for side, mean in ((~upper, MEANS[0]), (upper, MEANS[1])):
        assert abs(float(drawn[side].mean() - mean)) < 0.06
        assert abs(float(drawn[side].std()) / STD - 1) < 0.1


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_schedules_go_from_data_to_noise(schedule):
    kept = DDPM(schedule=schedule).alpha_bars
    assert len(kept) == 1000 and bool((kept.diff() < 0).all())
    assert kept[0] > 0.998 and kept[-1] < 6e-3


def test_linear_schedule_ends_as_published():
    assert DDPM().alpha_bars[-1].item() == pytest.approx(4e-5, rel=0.02)
    betas = 1 - DDPM(steps=1000).alpha_bars[1:] / DDPM().alpha_bars[:-1]
    assert betas[-1].item() == pytest.approx(0.02) and betas[0].item() == pytest.approx(1e-4 + 1.99e-2 / 999)


@pytest.mark.parametrize("level", [0, 300, 999])
def test_noised_data_have_the_variance_of_the_mixture(level):
    """ᾱ var(x) + 1 - ᾱ; five standard errors."""
    generator = torch.Generator().manual_seed(1)
    clean = 3 * torch.rand(DRAWN, 1, generator=generator)
    noisy = DDPM().mixed(clean, torch.randn(DRAWN, 1, generator=generator), torch.full((DRAWN,), level))
    kept = DDPM().alpha_bars[level].item()
    wanted = kept * 9 / 12 + 1 - kept
    assert noisy.var().item() == pytest.approx(wanted, rel=5 * math.sqrt(2 / DRAWN))


def test_flow_noise_and_velocity_are_a_straight_line():
    clean = torch.randn(64, 2, 3)
    noised = Flow().noised(clean, torch.Generator().manual_seed(0))
    there = noised.noisy + noised.time[:, None, None] * noised.target  # along the velocity to the end
    torch.testing.assert_close(there, clean, atol=1e-5, rtol=0)
    assert 0.3 < noised.time.mean() < 0.7


@settings(deadline=None, max_examples=30)
@given(
    target=st.sampled_from(["noise", "data", "velocity"]), level=st.integers(0, 999),
    schedule=st.sampled_from(["linear", "scaled_linear", "cosine"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_targets_convert_into_each_other(target, level, schedule, seed):
    process, levels = DDPM(target=target, schedule=schedule), torch.full((4,), level)
    clean, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noisy = process.mixed(clean, noise, levels)
    found = process.from_target(noisy, process.to_target(clean, noise, levels), levels)
    torch.testing.assert_close(found[0], clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], noise, atol=1e-6, rtol=0)


def test_ddim_with_all_noise_and_all_steps_is_ddpm():
    """The published step, μ = (x - β ε̂ / √(1 - ᾱ)) / √α plus the posterior deviation, draw for draw."""
    process = DDPM(steps=60, sampling_steps=60)

    def predict(noisy, time):
        return torch.tanh(noisy + time[:, None])

    found = process.sample(predict, (5, 3), torch.Generator().manual_seed(3), steps=60)
    generator, bars = torch.Generator().manual_seed(3), process.alpha_bars
    x = torch.randn(5, 3, generator=generator).double()
    for t in range(59, -1, -1):
        before = bars[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
        alpha = bars[t] / before
        noise = predict(x.float(), torch.full((5,), t / 59)).double()
        x = (x - (1 - alpha) / (1 - bars[t]).sqrt() * noise) / alpha.sqrt()
        if t:
            deviation = ((1 - alpha) * (1 - before) / (1 - bars[t])).sqrt()
            x = x + deviation * torch.randn(5, 3, generator=generator)
    torch.testing.assert_close(found, x.float(), atol=1e-4, rtol=1e-4)  # 60 steps in single precision


def test_ddim_without_noise_depends_on_its_start_alone():
    process = DDPM(eta=0.0)
    generator = torch.Generator().manual_seed(0)
    process.sample(exact(process), (4, 1), generator, steps=10)
    used = generator.get_state()
    start = torch.Generator().manual_seed(0)
    torch.randn(4, 1, generator=start)
    steps = [torch.randn(4, 1, generator=start) for _ in range(9)]  # drawn, with weight zero
    assert len(steps) == 9 and torch.equal(used, start.get_state())


def test_guidance_goes_from_no_condition_through_the_condition():
    def denoiser(noisy, time, condition):
        return noisy + torch.where(condition.isnan(), -1.0, condition)

    noisy, time, condition = torch.zeros(3, 1), torch.zeros(3), torch.tensor([[0.0], [1.0], [5.0]])
    plain = denoiser(noisy, time, condition)
    assert torch.equal(guided(denoiser, condition)(noisy, time), plain)
    for guidance in (0.0, 1.0, 2.5):
        found = guided(denoiser, condition, guidance, at_once=2)(noisy, time)
        torch.testing.assert_close(found, -1 + guidance * (plain + 1))
    with pytest.raises(ConfigError, match="needs a condition"):
        guided(denoiser, None, 2.0)


def test_loss_is_a_mean_over_everything():
    noised = Noised(torch.zeros(2, 3), torch.zeros(2), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]]))
    assert denoising_loss(lambda noisy, time, condition: noisy, noised).item() == pytest.approx(18 / 6)


@pytest.mark.parametrize("process", [DDPM(), Flow()])
def test_equal_generators_give_equal_draws(process):
    first, again, other = (
        process.sample(exact(process), (7, 1), torch.Generator().manual_seed(seed), steps=5) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="belongs to DDPM"):
        DDPM(variance="fixed_large", eta=0.5)
    with pytest.raises(ConfigError, match="between 1 and 50"):
        DDPM(steps=50, sampling_steps=10).sample(lambda noisy, time: noisy, (1, 1), torch.Generator(), steps=51)
    with pytest.raises(ConfigError, match="at least 1"):
        Flow().sample(lambda noisy, time: noisy, (1, 1), torch.Generator(), steps=0)
