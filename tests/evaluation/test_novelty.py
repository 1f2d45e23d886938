"""Novelty: every measure against a plain loop or a known answer."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from weightspace.errors import ConfigError
from weightspace.evaluation import novelty
from weightspace.evaluation.novelty import (
    Measured,
    Reference,
    Verdicts,
    copying_statistic,
    error_iou,
    max_iou,
    mean_disagreement,
    nearest,
    novel_and_performant,
    pair_iou,
    spread_ratio,
    usual_distance,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


# ---- Distances


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 10_000))
def test_nearest_equals_a_loop(m, q, frames, leave_out, seed):
    rows, reference = normal(frames, m, 5, seed=seed), normal(frames, q, 5, seed=seed + 1)
    runs = torch.randint(3, (m,), generator=seeded(seed)), torch.randint(3, (q,), generator=seeded(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "_BLOCK_VALUES", 20)  # several blocks
        distance, place = nearest(rows, reference, runs if leave_out else None)
    for i in range(m):
        expected = np.full(q, np.inf)
        for j in range(q):
            if not (leave_out and runs[0][i] == runs[1][j]):
                pairs = (rows[:, i].double() - reference[:, j].double()).numpy()
                expected[j] = np.sqrt((pairs**2).sum(1)).min()
        if np.isinf(expected).all():
            assert distance[i] == math.inf
        else:
            assert place[i] == expected.argmin()
            assert float(distance[i]) == pytest.approx(expected.min(), rel=1e-6)  # float32


def test_a_copy_has_distance_zero_and_stays_where_it_is():
    reference = 100 + normal(200, 1000)  # large norms: the expanded square loses 1e-7 · 1e7 = 1 of a squared distance
    distance, place = nearest(reference[50:100], reference)
    assert torch.equal(distance, torch.zeros(50)) and torch.equal(place, torch.arange(50, 100))
    shuffled = reference[:, torch.randperm(1000, generator=seeded())]
    both = nearest(torch.stack([shuffled, reference]), torch.stack([reference, reference]))
    assert torch.equal(both[0], torch.zeros(200))  # one right frame is enough


def test_usual_distance_leaves_out_the_own_run():
    rows = torch.tensor([[0.0], [0.1], [2.0], [2.2], [5.0]])
    assert usual_distance(rows, torch.arange(5)) == pytest.approx(0.2)  # of .1, .1, .2, .2, 2.8
    assert usual_distance(rows, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(2.0)  # of 2, 1.9, 1.9, 2.1, 2.8
    with pytest.raises(ConfigError, match="at least 2 runs"):
        usual_distance(rows, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least one reference"):
        nearest(rows, rows[:0])


# ---- Copying statistic


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30)
)  # few values: many ties
def test_copying_statistic_equals_the_sum_over_pairs(generated, heldout):
    m, q = len(generated), len(heldout)
    u = sum((g > h) + 0.5 * (g == h) for g in generated for h in heldout)
    expected = (u - m * q / 2) / math.sqrt(m * q * (m + q + 1) / 12)
    z = copying_statistic(torch.tensor(generated).float(), torch.tensor(heldout).float())
    assert z == pytest.approx(expected, abs=1e-12)
    other = copying_statistic(torch.tensor(heldout).float(), torch.tensor(generated).float())
    assert z == pytest.approx(-other, abs=1e-12)


def test_copying_statistic_is_mann_whitneys():
    generated, heldout = normal(40), normal(70, seed=1) + 0.3
    u = mannwhitneyu(generated.numpy(), heldout.numpy()).statistic
    expected = (u - 40 * 70 / 2) / math.sqrt(40 * 70 * 111 / 12)
    assert copying_statistic(generated, heldout) == pytest.approx(expected, abs=1e-12)


def test_copying_statistic_saturates_at_the_stated_value():
    near, far = torch.rand(200, generator=seeded()), 2 + torch.rand(200, generator=seeded(1))
    bound = math.sqrt(3 * 200 * 200 / 401)
    assert bound == pytest.approx(17.3, abs=0.005)  # the published example
    assert copying_statistic(near, far) == pytest.approx(-bound)
    assert copying_statistic(far, near) == pytest.approx(bound)
    assert copying_statistic(near, near) == 0
    with pytest.raises(ConfigError, match="got 200 and 0"):
        copying_statistic(near, near[:0])


def test_copying_statistic_is_standard_normal_without_copying():
    values = torch.tensor([copying_statistic(normal(30, seed=s), normal(20, seed=10_000 + s)) for s in range(500)])
    assert abs(values.mean()) < 5 / math.sqrt(500)  # 5 standard errors of a mean of 500
    assert abs(values.std() - 1) < 5 / math.sqrt(1000)


def test_independent_networks_are_as_novel_as_held_out_ones():
    """The same Gaussian for T, held-out and generated rows: Z_U near 0 and half of them farther than τ."""
    zs, shares = [], []
    for seed in range(20):
        training, heldout, generated = normal(3, 100, 8, seed=seed).unbind(0)
        tau = usual_distance(training, torch.arange(100))
        d_heldout, d_generated = nearest(heldout, training)[0], nearest(generated, training)[0]
        zs.append(copying_statistic(d_generated, d_heldout))
        good = torch.ones(100)
        shares.append(novel_and_performant(d_generated / tau, good, least_accuracy=0.5, least_ratio=1.0))
    # Z has deviation 1 (a little more: T is common to both); 5 standard errors of a mean of 20
    assert abs(np.mean(zs)) < 5 / math.sqrt(20)
    # each share has a deviation of about .07 (100 networks, and τ itself), the mean of 20 one of .016; 5 of them. The
    # other networks of T are one fewer than T: τ is larger by 1 / (8 · 100), which moves no more than .01
    assert abs(np.mean(shares) - 0.5) < 5 * 0.016 + 0.01


# ---- Behaviour


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 12), st.floats(0, 0.6), st.integers(0, 10_000))
def test_error_iou_equals_sets(m, q, n, share, seed):
    wrong = torch.rand(m, n, generator=seeded(seed)) < share
    reference = torch.rand(q, n, generator=seeded(seed + 1)) < share
    expected = torch.empty(m, q)
    for i in range(m):
        for j in range(q):
            a, b = ({k for k in range(n) if w[k]} for w in (wrong[i], reference[j]))
            expected[i, j] = len(a & b) / len(a | b) if a | b else 1.0
    torch.testing.assert_close(error_iou(wrong, reference), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(max_iou(wrong, reference), expected.amax(1), rtol=1e-6, atol=0)
    runs = torch.arange(m), torch.arange(q)
    if q > 1:
        expected[torch.eye(m, q, dtype=torch.bool)] = -1
        torch.testing.assert_close(max_iou(wrong, reference, runs), expected.amax(1), rtol=1e-6, atol=0)


def test_identical_networks_have_iou_one():
    wrong = torch.rand(20, 500, generator=seeded()) < 0.1
    assert torch.equal(max_iou(wrong, wrong), torch.ones(20))
    same = wrong[:1].expand(3, -1)
    assert pair_iou(same, torch.arange(3)) == (1.0, 0.0)
    assert pair_iou(same, torch.zeros(3, dtype=torch.int64)) == (None, None)
    assert pair_iou(same[:1], torch.arange(1)) == (None, None)


def test_pairs_are_of_different_runs():
    wrong = torch.rand(9, 60, generator=seeded()) < 0.3
    runs = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 0])
    values = [
        float(error_iou(wrong[i : i + 1], wrong[j : j + 1])) for i in range(9) for j in range(i) if runs[i] != runs[j]
    ]
    assert pair_iou(wrong, runs) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-6)

    predictions = torch.randint(4, (9, 60), generator=seeded())
    differ = [
        float((predictions[i] != predictions[j]).double().mean())
        for i in range(9)
        for j in range(i)
        if runs[i] != runs[j]
    ]
    assert mean_disagreement(predictions, runs * 7 + 3) == pytest.approx(np.mean(differ), rel=1e-12)
    with pytest.raises(ConfigError, match="at least 2 runs"):
        mean_disagreement(predictions, torch.ones(9, dtype=torch.int64))


def test_spread_ratio_shows_collapse():
    training = normal(4000, 50) * torch.arange(50)  # the first parameter is constant
    # the median of 49 ratios, each with a standard error of 1 / √4000: below .02
    assert spread_ratio(0.3 * normal(4000, 50, seed=1) * torch.arange(50), training) == pytest.approx(0.3, rel=0.02)
    assert spread_ratio(training, training) == 1.0
    assert spread_ratio(training[:1], training) is None
    assert spread_ratio(training, torch.ones(5, 50)) is None


def test_novel_and_performant_needs_both():
    ratio, accuracy = torch.tensor([0.4, 0.6, 1.2, 1.2]), torch.tensor([0.9, 0.9, 0.9, 0.7])
    shares = [novel_and_performant(ratio, accuracy, least_accuracy=0.9, least_ratio=c) for c in (0.0, 0.5, 1.0, 2.0)]
    assert shares == [0.75, 0.5, 0.25, 0.0]


# ---- Verdicts

FINE = Measured(accuracy=0.9, distance_ratio=1.0, z_u=-1.0, max_iou=0.5, pair_iou=0.4, sd_ratio=0.9)
AGAINST = Reference(
    least_accuracy=0.85, high_max_iou=0.7, pair_iou=0.4, pair_iou_std=0.1, noise=[(0.95, 0.5), (0.8, 1.5)]
)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, "no red flag found"),
        ({"distance_ratio": 0.29}, "replica, below noise curve"),
        ({"z_u": -5.1, "max_iou": 0.71}, "replica"),
        ({"z_u": -5.1}, "no red flag found"),
        ({"max_iou": 0.71}, "no red flag found"),
        ({"sd_ratio": 0.49}, "average-like"),
        ({"pair_iou": 0.61}, "average-like"),
        ({"pair_iou": 0.59}, "no red flag found"),
        ({"pair_iou": None, "sd_ratio": None}, "no red flag found"),
        ({"distance_ratio": 0.45}, "below noise curve"),
        ({"accuracy": 0.84}, "inaccurate"),
        ({"accuracy": 0.79}, "below noise curve, inaccurate"),
        (
            {"accuracy": 0.1, "distance_ratio": 0.1, "sd_ratio": 0.1},
            "replica, average-like, below noise curve, inaccurate",
        ),
    ],
)
def test_verdicts(changes, flags):
    assert Verdicts().flags(replace(FINE, **changes), AGAINST) == flags


@pytest.mark.parametrize(
    ("threshold", "flags"),
    [
        ({"copy_distance": 1.1}, "replica"),
        ({"copy_z": 0.0}, "replica"),
        ({"least_spread": 0.95}, "average-like"),
        ({"iou_deviations": -2.0}, "average-like"),
    ],
)
def test_thresholds_are_parameters(threshold, flags):
    found = replace(FINE, max_iou=0.8)
    assert Verdicts().flags(found, AGAINST) == "no red flag found"
    assert Verdicts(**threshold).flags(found, AGAINST) == flags


def test_quantiles_are_checked():
    with pytest.raises(ConfigError, match=r"iou_quantile must lie between 0 and 1, got 95\.0"):
        Verdicts(iou_quantile=95.0)
