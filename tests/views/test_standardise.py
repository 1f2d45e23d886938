"""Per-layer standardisation: its formula as a loop, its inverse, and its symmetry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weightspace.networks import CNN, MLP, Layout
from weightspace.symmetry.groups import chain_groups, gather_index, random_permutations
from weightspace.views.standardise import SharedScale, Standardisation, layer_of_parameter

NETWORKS = [
    MLP(hidden=(5, 4)),
    CNN(channels=(3, 4), hidden=(5,)),
    CNN(bias=False),
    CNN(channels=(3, 2), batch_norm=True),
]


def spread_rows(layout: Layout, count: int = 12, seed: int = 0) -> Tensor:
    """Rows in which every layer has its own mean and scale."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer_of_parameter(layout)
    scale, shift = (torch.rand(int(layer.max()) + 1, generator=generator)[layer] for _ in range(2))
    return torch.randn(count, layout.parameters, generator=generator) * (0.01 + scale) + 2 * shift


@pytest.mark.parametrize("network", NETWORKS)
def test_statistics_are_their_formula(network):
    """Mean over models of the layer mean; root of the mean over models of the layer variance; weight with its bias."""
    layout = Layout.of(network.build())
    rows = spread_rows(layout)
    scale = Standardisation.fit(rows, layout)
    for spec in layout.tensors:
        if spec.role == "bias":
            continue
        owned = [spec.name]
        if spec.role == "weight" and f"{spec.layer_name}.bias" in layout.by_name:
            owned.append(f"{spec.layer_name}.bias")
        layers = [torch.cat([row[layout.slices[name]] for name in owned]).double() for row in rows]
        mean = sum(float(values.mean()) for values in layers) / len(rows)
        variance = sum(float(((values - values.mean()) ** 2).mean()) for values in layers) / len(rows)
        for name in owned:
            found = torch.stack([scale.mean, scale.std], dim=1)[layout.slices[name]].unique(dim=0).double()
            torch.testing.assert_close(found, torch.tensor([[mean, variance**0.5]]).double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("network", NETWORKS)
def test_standardised_rows_have_mean_zero_and_variance_one(network):
    layout = Layout.of(network.build())
    rows = spread_rows(layout)
    scale = Standardisation.fit(rows, layout)
    again = Standardisation.fit(scale.apply(rows), layout)
    torch.testing.assert_close(again.mean, torch.zeros_like(again.mean), rtol=0, atol=1e-4)  # float32 of w - mean
    varies = scale.std != 1
    torch.testing.assert_close(again.std[varies], torch.ones_like(again.std[varies]), rtol=1e-5, atol=0)


@settings(deadline=None, max_examples=30)
@given(which=st.sampled_from(range(len(NETWORKS))), seed=st.integers(0, 2**31))
def test_round_trip(which, seed):
    layout = Layout.of(NETWORKS[which].build())
    rows = spread_rows(layout, seed=seed)
    scale = Standardisation.fit(rows[:8], layout)  # also for rows that the statistics have not seen
    back = scale.invert(scale.apply(rows))
    bound = 4 * 2.0**-24 * (rows.abs() + scale.mean.abs())  # each of four operations rounds once
    assert ((back - rows).abs() <= bound).all()


@settings(deadline=None, max_examples=20)
@given(which=st.sampled_from(range(len(NETWORKS))), seed=st.integers(0, 2**31))
def test_it_commutes_with_permutations_of_hidden_units(which, seed):
    layout = Layout.of(NETWORKS[which].build())
    rows = spread_rows(layout, seed=seed)
    groups = chain_groups(layout)
    index = gather_index(layout, groups, random_permutations(groups, len(rows), torch.Generator().manual_seed(seed)))
    scale = Standardisation.fit(rows, layout)
    assert scale.apply(rows.gather(1, index)).equal(scale.apply(rows).gather(1, index))
    permuted = Standardisation.fit(rows.gather(1, index), layout)
    torch.testing.assert_close(permuted.mean, scale.mean, rtol=1e-6, atol=1e-7)  # float64 sums in another order
    torch.testing.assert_close(permuted.std, scale.std, rtol=1e-6, atol=0)


def test_a_layer_that_never_varies_is_only_shifted():
    layout = Layout.of(MLP().build())
    scale = Standardisation.fit(torch.full((3, layout.parameters), 0.1), layout)
    assert (scale.std == 1).all() and (scale.apply(torch.full((1, layout.parameters), 0.1)) == 0).all()


def test_layers_are_numbered_as_tokens_are():
    layout = Layout.of(CNN(channels=(2, 3), batch_norm=True).build())
    number = layer_of_parameter(layout)
    found = {name: number[place].unique().tolist() for name, place in layout.slices.items()}
    assert found == {
        "conv1.weight": [0], "conv1.bias": [0], "norm1.weight": [1], "norm1.bias": [1], "norm1.running_mean": [2],
        "norm1.running_var": [3], "conv2.weight": [4], "conv2.bias": [4], "norm2.weight": [5], "norm2.bias": [5],
        "norm2.running_mean": [6], "norm2.running_var": [7], "fc1.weight": [8], "fc1.bias": [8],
    }  # fmt: skip


# --- one scale for all layouts --------------------------------------------------------------------------------------


def test_one_scale_by_fan_in_fits_widths_that_were_not_seen():
    """Networks initialised by fan-in have deviation one in all layouts, those too that the unit does not come from."""
    g = torch.Generator().manual_seed(0)

    def rows(layout: Layout) -> torch.Tensor:
        parts = [torch.randn(500, t.size, generator=g) for t in layout.tensors]
        fan_in = {t.layer_name: t.size // t.shape[0] for t in layout.tensors if t.role == "weight"}
        return torch.cat([3 * p * fan_in[t.layer_name] ** -0.5 for p, t in zip(parts, layout.tensors, strict=True)], 1)

    seen = [Layout.of(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, n))) for n in (2, 9)]
    shared = SharedScale.fit("fan_in", [(rows(layout), layout) for layout in seen])
    assert shared.unit == pytest.approx(3, rel=0.02)
    other = Layout.of(nn.Sequential(nn.Conv2d(2, 5, 3), nn.Linear(5, 30)))
    scaled = shared.of(other).apply(rows(other))
    for spec, place in zip(other.tensors, other.slices.values(), strict=True):
        assert float(scaled[:, place].std()) == pytest.approx(1, rel=0.1), spec.name
    torch.testing.assert_close(shared.of(other).invert(scaled), rows(other) * 0 + shared.of(other).std * scaled)


def test_the_global_scale_is_the_root_mean_square_of_all_weights():
    layouts = [Layout.of(nn.Linear(4, 6)), Layout.of(nn.Linear(2, 3))]
    rows = [torch.randn(5, 30), 7 * torch.randn(4, 9)]
    shared = SharedScale.fit("global", list(zip(rows, layouts, strict=True)))
    wanted = torch.cat([some.flatten() for some in rows]).square().mean().sqrt()
    assert shared.unit == pytest.approx(float(wanted), rel=1e-5)
    assert torch.equal(shared.of(layouts[0]).std, torch.full((30,), shared.unit))
    zero = SharedScale.fit("global", [(torch.zeros(2, 30), layouts[0])])
    assert zero.unit == 1


def test_no_standardisation_is_the_identity():
    layout, rows = Layout.of(nn.Linear(4, 6)), torch.randn(5, 30)
    assert torch.equal(Standardisation.none(layout).apply(rows), rows)
