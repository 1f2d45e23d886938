"""Random numbers that belong to a seed: their law, their independence, and SplitMix64 bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from weightspace.networks import streams

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
N = 200_000


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def test_the_mixing_function_is_splitmix64():
    """The published first outputs of SplitMix64 with seed 1234567: mix(seed + i * golden)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = torch.tensor([signed((1234567 + i * GOLDEN) & WORD) for i in range(1, 5)])
    assert [x & WORD for x in streams._mix(states).tolist()] == published


@settings(deadline=None, max_examples=60)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(1, 6))
def test_bits_equal_plain_integers(seed, stream, n):
    key = mix((seed * GOLDEN + mix((stream * GOLDEN + 1) & WORD)) & WORD)
    expected = [signed(mix((key + i * GOLDEN) & WORD)) for i in range(1, n + 1)]
    assert streams.bits(torch.tensor([seed]), stream, n)[0].tolist() == expected


def test_pinned_values():
    """Zoos are reproducible only as long as these stay."""
    assert streams.bits(torch.tensor([0, 42]), 7, 2).tolist() == [
        [2720366857134435820, 7902581376743860075],
        [-7759851503186695137, -5957651598762016575],
    ]


def test_longer_streams_begin_with_shorter_ones_whoever_is_beside():
    seeds = torch.tensor([5, 6, 7])
    together = streams.bits(seeds, 3, 100)
    for i, seed in enumerate(seeds):
        assert streams.bits(seed[None], 3, 40).equal(together[i : i + 1, :40])


def test_uniform_law():
    u = streams.uniform(torch.tensor([11]), 4, N)[0].double().numpy()
    assert u.min() >= 0 and u.max() < 1
    assert (u * 2**24 % 1 == 0).all()
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * N)  # 4 standard errors of the mean
    assert abs(u.var() - 1 / 12) < 4 / np.sqrt(180 * N)  # Var of (u - 1/2)^2 is 1/180
    assert stats.kstest(u, "uniform").pvalue > 1e-4


def test_normal_law():
    x = streams.normal(torch.tensor([12]), 4, N)[0].double().numpy()
    assert abs(x.mean()) < 4 / np.sqrt(N)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs((x**3).mean()) < 4 * np.sqrt(15 / N)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / N)
    assert stats.kstest(x, "norm").pvalue > 1e-4


@pytest.mark.parametrize("extreme", [0, -1])
def test_normal_is_finite_at_both_ends(monkeypatch, extreme):
    monkeypatch.setattr(streams, "bits", lambda seeds, stream, n: torch.full((len(seeds), n), extreme))
    x = streams.normal(torch.tensor([0]), 0, 3)
    expected = stats.norm.ppf(2.0**-25) * (1 if extreme == 0 else -1)
    torch.testing.assert_close(x, torch.full((1, 3), float(expected)), rtol=1e-6, atol=0)  # float32 rounding


def test_seeds_streams_and_positions_are_independent():
    near = torch.cat([torch.arange(40), 1 << torch.arange(20, 60)])  # seeds that differ in one bit
    u = torch.cat([streams.uniform(near, stream, 4000) for stream in (0, 1, 2, 1000, 1001)]).double().numpy()
    correlation = np.corrcoef(u)[np.triu_indices(len(u), 1)] * np.sqrt(u.shape[1])
    bound = stats.norm.isf(1e-4 / len(correlation))  # about 5.7 standard errors: the largest of 79 800 pairs
    assert np.abs(correlation).max() < bound
    assert abs(correlation.mean()) < 4 / np.sqrt(len(correlation))
    assert abs(correlation.std() - 1) < 4 / np.sqrt(2 * len(correlation))
    lagged = np.array([np.corrcoef(x[:-1], x[1:])[0, 1] for x in u]) * np.sqrt(u.shape[1])
    assert abs(lagged.mean()) < 4 / np.sqrt(len(lagged)) and np.abs(lagged).max() < 5


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31), st.integers(1, 60))
def test_a_permutation_is_one(seed, stream, n):
    assert streams.permutation(torch.tensor([seed]), stream, n).sort().values.tolist() == [list(range(n))]


def test_permutations_are_uniform():
    """Each of the 24 orders of four things, by chi-square."""
    orders = streams.permutation(torch.arange(24_000), 9, 4)
    counts = (orders * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-4
