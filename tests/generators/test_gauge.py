"""Gauges: functions stay, representatives are unique, and nothing is fixed that is not a symmetry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import LayoutError
from weightspace.generators.gauge import Gauge
from weightspace.networks import CNN, MLP, Layout, ResNet18
from weightspace.networks.population import population_logits

NETWORKS = {
    "mlp": MLP(hidden=(16, 9)),
    "mlp without bias": MLP(hidden=(16,), bias=False),
    "cnn": CNN(channels=(4, 6), hidden=(7,)),
    "leaky cnn": CNN(channels=(4, 6), activation="leaky_relu"),
    "batch norm": CNN(channels=(4, 6), batch_norm=True),
    "tanh": MLP(hidden=(16,), activation="tanh"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(network, m: int = 3, seed: int = 0) -> torch.Tensor:
    layout = Layout.of(network.build())
    rows = torch.randn(m, layout.parameters, generator=seeded(seed), dtype=torch.float64)
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        if spec.role == "running_var":
            rows[:, place] = rows[:, place].abs() + 5  # far above the epsilon of the norm
    return rows


def function(network, rows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities on random images, in float64."""
    images = torch.randn(6, *network.image_shape, generator=seeded(9), dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        return population_logits(network, rows, images).log_softmax(2)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("order", ["none", "sort", "align"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_functions_stay_and_fixing_twice_is_fixing_once(network, order):
    rows, gauge = random_rows(network), Gauge.of(network, order=order)
    fixed = gauge.fixed(rows)
    assert not torch.allclose(fixed, rows, rtol=0.01)
    # float64 sums reordered; batch normalisation's epsilon of 1e-5 beside variances above 5, at logits of about 100
    tolerance = 1e-2 if network.__dict__.get("batch_norm") else 1e-10
    torch.testing.assert_close(function(network, fixed), function(network, rows), rtol=0, atol=tolerance)
    # 1e-8 below the root of a mean square of 1 moves a weight by 5e-9 of its size a layer
    torch.testing.assert_close(gauge.fixed(fixed), fixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_equivalent_weights_have_one_representative(network, seed):
    rows, gauge = random_rows(network), Gauge.of(network, order="sort")
    others = gauge.equivalents(rows, seeded(seed))
    assert (others - rows).norm(dim=1).min() > 0.1 * rows.norm(dim=1).max()
    tolerance = 1e-2 if network.__dict__.get("batch_norm") else 1e-10
    torch.testing.assert_close(function(network, others), function(network, rows), rtol=0, atol=tolerance)
    torch.testing.assert_close(gauge.fixed(others), gauge.fixed(rows), rtol=1e-5, atol=1e-5)


def test_hidden_units_have_the_published_norm():
    """Equation 2: the norm of incoming weights and bias is √(fan in + 1)."""
    network = CNN(image_shape=(1, 28, 28), channels=(32, 16), kernels=(5, 5), hidden=(8,))
    gauge = Gauge.of(network)
    state = gauge.layout.unflatten(gauge.fixed(random_rows(network)))
    for name, q in (("conv1", 26), ("conv2", 801), ("fc1", 785)):
        squares = state[f"{name}.weight"].flatten(2).square().sum(2) + state[f"{name}.bias"].square()
        torch.testing.assert_close(squares.sqrt(), torch.full_like(squares, q**0.5), rtol=1e-6, atol=0)
    for name in ("fc2.weight", "fc2.bias"):
        assert state[name].mean(1).abs().max() < 1e-12


def test_alignment_finds_a_renumbered_network():
    network = MLP(hidden=(16,))  # one hidden layer: the optimum is exact
    gauge = Gauge.of(network, order="align")
    row = random_rows(network, 1)
    copies = gauge.equivalents(row.expand(4, -1), seeded(5))
    fixed = gauge.fixed(torch.cat([row, copies]))
    torch.testing.assert_close(fixed[1:], fixed[:1].expand(4, -1), rtol=1e-5, atol=1e-5)
    assert (Gauge.of(network).fixed(copies) - fixed[:1]).abs().max() > 0.1  # without it the order stays


def test_only_what_is_asked_for_is_fixed():
    rows = random_rows(MLP())
    assert torch.equal(Gauge.of(MLP(), scale=False, shift=False).fixed(rows), rows)
    layout = Layout.of(MLP().build())
    scaled, shifted = Gauge.of(MLP(), shift=False).fixed(rows), Gauge.of(MLP(), scale=False).fixed(rows)
    hidden, last = layout.slices["fc1.weight"], layout.slices["fc2.bias"]
    assert torch.equal(scaled[:, last], rows[:, last]) and torch.equal(shifted[:, hidden], rows[:, hidden])


def test_tanh_has_no_scale():
    network = MLP(activation="tanh")
    rows = random_rows(network)
    assert torch.equal(Gauge.of(network, shift=False).fixed(rows), rows)
    wrong = Gauge.of(MLP(), shift=False).fixed(rows)  # what a ReLU network allows changes a tanh network
    assert (function(network, wrong) - function(network, rows)).abs().max() > 0.1


def test_units_without_weights_stay_finite_with_their_gradient():
    rows = torch.zeros(2, 1060, requires_grad=True)
    fixed = Gauge.of(MLP()).fixed(rows)
    (gradient,) = torch.autograd.grad(fixed.square().sum(), rows)
    assert fixed.isfinite().all() and gradient.isfinite().all()


def test_running_statistics_are_no_parameters():
    network = NETWORKS["batch norm"]
    gauge = Gauge.of(network)
    assert len(gauge.parameters()) == sum(p.numel() for p in network.build().parameters())


