"""Gauges: functions stay, representatives are unique, and nothing is fixed that is not a symmetry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap

from weightspace.errors import LayoutError
from weightspace.generators.gauge import Gauge, symmetry_of_network
from weightspace.networks import CNN, MLP, Layout, PooledCNN, ResNet, ViT, WildPark
from weightspace.symmetry import Place, ScaleGroup, Symmetry, symmetry_of

RESIDUAL = ResNet(image_shape=(1, 8, 8), widths=(4, 6), blocks=2)
NETWORKS = {
    "mlp": MLP(hidden=(16, 9)),
    "mlp without bias": MLP(hidden=(16,), bias=False),
    "cnn": CNN(channels=(4, 6), hidden=(7,)),
    "leaky cnn": CNN(channels=(4, 6), activation="leaky_relu"),
    "pooled cnn": PooledCNN(image_shape=(1, 8, 8), channels=(4, 5), kernels=(3, 2), strides=(2, 1), pooled=2),
    "batch norm": CNN(channels=(4, 6), batch_norm=True),
    "residual": RESIDUAL,
    "skip": WildPark(  # four of six channels are those of the first convolution, the others are free
        image_shape=(1, 8, 8), channels=(4, 5, 6), kernels=(3, 3, 3), activations=("relu",) * 3, skips=(None, None, 0)
    ),
    "tanh": MLP(hidden=(16, 9), activation="tanh"),
    "tanh batch norm": CNN(channels=(4, 6), batch_norm=True, activation="tanh"),
    "transformer": ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(network, m: int = 3, seed: int = 0) -> torch.Tensor:
    layout = Layout.of(network.build())
    rows = torch.randn(m, layout.parameters, generator=seeded(seed), dtype=torch.float64)
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        if spec.role == "running_var":
            rows[:, place] = rows[:, place].abs() + 0.5
    return rows


def function(network, rows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities on random images in float64, without the epsilon that makes batch normalisation inexact."""
    module = network.build().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0
    images = torch.randn(6, *network.image_shape, generator=seeded(9), dtype=torch.float64)
    forward = vmap(lambda state: functional_call(module, state, (images,)))
    return forward(Layout.of(module).unflatten(rows)).log_softmax(2)


def assert_same(network, rows: torch.Tensor, others: torch.Tensor):
    """Equal functions to 1e-12 of their largest logarithm."""
    expected = function(network, rows)
    assert (function(network, others) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("order", ["none", "sort", "align"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_functions_stay_and_fixing_twice_is_fixing_once(network, order):
    rows, gauge = random_rows(network), Gauge.of(network, order=order, sign=True)
    fixed = gauge.fixed(rows)
    assert not torch.allclose(fixed, rows, rtol=0.01)
    assert_same(network, rows, fixed)
    torch.testing.assert_close(gauge.fixed(fixed), fixed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_equivalent_weights_have_one_representative(network, seed):
    rows, gauge = random_rows(network), Gauge.of(network, order="sort", sign=True)
    others = gauge.equivalents(rows, seeded(seed))
    assert (others - rows).norm(dim=1).min() > 0.1 * rows.norm(dim=1).max()
    assert_same(network, rows, others)
    torch.testing.assert_close(gauge.fixed(others), gauge.fixed(rows), rtol=1e-10, atol=1e-10)


def test_every_symmetry_of_a_residual_network_moves_and_is_fixed():
    """A stream's channels have one scale for all norms that write into them; each block has its own inside."""
    symmetry = symmetry_of_network(RESIDUAL)
    gauge = Gauge.of(RESIDUAL)
    assert len(gauge.scales) == sum(group.kind == "positive" for group in symmetry.scales)
    makers = {unit.group.name: [place.tensor for place in unit.makers] for unit in gauge.scales}
    stream = ["bn1", "layer1.0.bn2", "layer1.1.bn2"]
    assert makers["bn1"] == [f"{norm}.{role}" for norm in stream for role in ("weight", "bias")]
    assert makers["layer1.0.conv1"] == ["layer1.0.conv1.weight"]
    state = gauge.layout.unflatten(gauge.fixed(random_rows(RESIDUAL)))
    written = torch.stack([state[name] for name in makers["bn1"]])
    torch.testing.assert_close(written.square().mean(0), torch.ones(3, 4).double(), rtol=1e-6, atol=0)
    for conv in ("conv1", "layer1.1.conv2", "layer2.0.downsample.0"):
        incoming = state[f"{conv}.weight"].flatten(2)
        torch.testing.assert_close(incoming.square().mean(2), torch.ones(incoming.shape[:2]).double())


def test_a_bias_before_a_norm_is_fixed_but_not_one_before_a_bend():
    """In the second network an activation stands between, and the bias says what is cut off."""
    for layers, silent in (([nn.BatchNorm1d(4), nn.ReLU()], True), ([nn.ReLU(), nn.BatchNorm1d(4)], False)):
        module = nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)).eval()
        gauge = Gauge.of_symmetry(symmetry_of(module, torch.zeros(1, 3)))
        rows = torch.randn(2, gauge.layout.parameters, generator=seeded()).abs() + 0.5
        fixed = gauge.layout.unflatten(gauge.fixed(rows))
        assert bool((fixed["0.bias"] == 0).all()) is silent
        images = torch.randn(9, 3, generator=seeded(1))
        before, after = (
            vmap(lambda state, m=module, x=images: functional_call(m, state, (x,)))(gauge.layout.unflatten(some))
            for some in (rows, gauge.fixed(rows))
        )
        torch.testing.assert_close(after.log_softmax(2), before.log_softmax(2), rtol=1e-3, atol=1e-3)  # epsilon


def test_signs_are_those_of_the_largest_weight():
    network = NETWORKS["tanh"]
    rows = random_rows(network)
    free, fixed = (Gauge.of(network, sign=sign).fixed(rows) for sign in (False, True))
    assert torch.equal(free.abs(), fixed.abs()) and not torch.equal(free, fixed)
    weight = Gauge.of(network).layout.unflatten(fixed)["fc2.weight"]
    assert (weight.gather(2, weight.abs().argmax(2, keepdim=True)) > 0).all()


def test_a_circle_of_scales_is_one_sentence():
    """Two groups that are each chosen by a tensor that the other scales."""
    layout = Layout.of(nn.Linear(3, 3, bias=False))
    groups = tuple(ScaleGroup(f"{axis}", 3, "positive", (Place("weight", axis),), (1.0,)) for axis in (0, 1))
    with pytest.raises(LayoutError, match="circle"):
        Gauge.of_symmetry(Symmetry(layout=layout, groups=(), scales=groups))


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
