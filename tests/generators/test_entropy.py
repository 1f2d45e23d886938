"""The nearest-neighbour entropy against densities whose entropy is known, and what it does to a sampler."""

import math

import pytest
import torch

from weightspace.errors import ConfigError
from weightspace.generators.entropy import LEAST_SEPARATION, entropy, log_unit_ball, neighbour_distances

N = 2000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(N, d, generator=seeded(seed))


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
@pytest.mark.parametrize("k", [1, 4])
def test_entropy_of_a_normal_plane(norm, k):
    """The terms d log ε have a deviation of ψ'(k)½ (1.28 at k = 1): five standard errors, and .02 for the edge."""
    truth = 1 + math.log(2 * math.pi)
    assert float(entropy(normal(2), norm=norm, k=k)) == pytest.approx(truth, abs=5 * 1.28 / math.sqrt(N) + 0.02)


def test_entropy_of_a_normal_in_five_dimensions():
    """The estimate is a tenth too low there, as samples have neighbours on one side only."""
    truth = 2.5 * (1 + math.log(2 * math.pi))
    for norm in ("L1", "L2"):
        assert float(entropy(normal(5), norm=norm)) == pytest.approx(truth, abs=0.25)


def test_entropy_of_a_uniform_interval_is_the_logarithm_of_its_length():
    samples = 7 * torch.rand(N, 1, generator=seeded())
    assert float(entropy(samples)) == pytest.approx(math.log(7), abs=0.15)


def test_a_sheet_in_a_large_space_has_the_entropy_of_the_sheet():
    basis = torch.linalg.qr(torch.randn(50, 2, generator=seeded(1)))[0]
    flat = normal(2)
    embedded = entropy(flat @ basis.T, dimension=2)
    torch.testing.assert_close(embedded, entropy(flat), rtol=0, atol=1e-3)  # distances in float32
    assert abs(float(entropy(flat @ basis.T)) - float(embedded)) > 10  # as if it filled all 50 dimensions


@pytest.mark.parametrize(("norm", "d"), [("L1", 3), ("L2", 3), ("Linf", 3)])
def test_scaling_adds_the_logarithm(norm, d):
    samples = normal(d)
    grown = entropy(5 * samples, norm=norm, dimension=d) - entropy(samples, norm=norm, dimension=d)
    assert float(grown) == pytest.approx(d * math.log(5), abs=1e-4)


def test_unit_balls():
    assert log_unit_ball(2) == pytest.approx(math.log(math.pi))
    assert log_unit_ball(2, "L1") == pytest.approx(math.log(2))
    assert log_unit_ball(2, "Linf") == pytest.approx(math.log(4))


def test_neighbours_by_a_loop():
    samples = normal(3)[:40]
    for norm, order in (("L1", 1), ("L2", 2), ("Linf", math.inf)):
        for k in (1, 3):
            expected = [
                sorted(float((a - b).norm(order)) for j, b in enumerate(samples) if j != i)[k - 1]
                for i, a in enumerate(samples)
            ]
            found = neighbour_distances(samples, k=k, norm=norm)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_the_formula_and_reaches_both_ends():
    samples = normal(3)[:20].double().requires_grad_()
    (found,) = torch.autograd.grad(entropy(samples, dimension=2), samples)
    pairs = torch.cdist(samples, samples) + torch.diag(torch.full((20,), math.inf, dtype=torch.float64))
    (expected,) = torch.autograd.grad(2 * pairs.min(1).values.log().mean(), samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found.sum(0).abs() < 1e-6).all()  # every push has its counterpush


def test_collapsed_samples_are_pushed_gently():
    """Two samples 1e-6 apart: 1/ε would be a million; the guard makes it 1 / (.001 · norm)."""
    samples = torch.tensor([[1.0, 0.0], [1.0, 1e-6], [0.0, 1.0], [0.0, -1.0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(samples), samples)
    assert gradient.isfinite().all()
    largest = 2 * 2 / 4 / LEAST_SEPARATION  # d = 2, both ends of a pair, mean over four
    assert 0.5 * largest < float(gradient.norm(dim=1).max()) <= 1.01 * largest
    same = torch.zeros(5, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(same), same)
    assert gradient.isfinite().all()


def test_bad_input_is_one_sentence():
    with pytest.raises(ConfigError, match="more than 3"):
        neighbour_distances(torch.zeros(3, 2), k=3)
    with pytest.raises(ConfigError, match="dimension"):
        entropy(torch.zeros(3, 2), dimension=0)


def modes_passed(weight: float, seed: int) -> int:
    """Section 7: a curve z to y in the plane, rewarded for density of ten Gaussians on a circle, and for entropy."""
    generator = seeded(seed)
    angles = torch.arange(10) * 2 * math.pi / 10
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    layers = [torch.nn.Linear(a, b) for a, b in ((1, 30), (30, 10), (10, 10), (10, 2))]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        torch.nn.init.normal_(layer.bias, std=0.5, generator=generator)
    net = torch.nn.Sequential(
        layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2], torch.nn.Tanh(), layers[3]
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(1000):
        y = net(2 * torch.rand(5, 1, generator=generator) - 1)
        reward = 10 * (-torch.cdist(y, centres).square() / (2 * 0.35**2)).exp().sum(1).mean()
        loss = -reward - weight * entropy(y, dimension=1) + 0.05 * y.square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        curve = net(torch.linspace(-1, 1, 1000)[:, None])
    return int((torch.cdist(curve, centres) < 0.35).any(0).sum())


def test_entropy_spreads_a_curve_over_modes():
    assert modes_passed(2.2, seed=3) >= 2
    assert modes_passed(0.0, seed=3) <= 1
