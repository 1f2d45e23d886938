"""Layouts: a row and a state dict are the same weights."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import LayoutError
from weightspace.networks import CNN, MLP, ResNet18
from weightspace.networks.layout import Layout, TensorSpec

SIZES = st.integers(1, 5)
NORMED = CNN(channels=(3, 4), bias=False, batch_norm=True)


@st.composite
def modules(draw) -> nn.Module:
    """A few layers of random kinds and sizes; they are never run."""
    kinds = {
        "linear": lambda a, b, bias: nn.Linear(a, b, bias=bias),
        "conv": lambda a, b, bias: nn.Conv2d(a, b, (2, 3), bias=bias),
        "transposed": lambda a, b, bias: nn.ConvTranspose1d(a, b, 2, bias=bias),
        "batch norm": lambda a, b, bias: nn.BatchNorm2d(a, affine=bias),
        "layer norm": lambda a, b, bias: nn.LayerNorm((a, b), elementwise_affine=bias),
        "embedding": lambda a, b, bias: nn.Embedding(a, b),
        "scale": lambda a, b, bias: nn.PReLU(a),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=5))
    return nn.Sequential(
        nn.Linear(2, 2), *(kinds[kind](draw(SIZES), draw(SIZES), draw(st.booleans())) for kind in chosen)
    )


@settings(deadline=None, max_examples=60)
@given(modules(), st.integers(0, 2**31), st.integers(1, 3))
def test_rows_and_state_dicts_are_the_same_bits(module, seed, networks):
    layout = Layout.of(module)
    rows = torch.randn(networks, layout.parameters, generator=torch.Generator().manual_seed(seed))
    states = layout.unflatten(rows)
    for i, row in enumerate(rows):
        state = {name: value[i] for name, value in states.items()}
        assert layout.flatten(state).equal(row)
        module.load_state_dict(state | {k: v for k, v in module.state_dict().items() if k.endswith("tracked")})
        assert layout.flatten(module.state_dict()).equal(row)  # names and shapes are the module's own


def test_tensors_follow_each_other_in_state_dict_order():
    module = NORMED.build()
    layout = Layout.of(module)
    expected = [(name, tuple(v.shape)) for name, v in module.state_dict().items() if "tracked" not in name]
    assert [(t.name, t.shape) for t in layout.tensors] == expected
    values = [value.flatten() for name, value in module.state_dict().items() if "tracked" not in name]
    assert layout.flatten(module.state_dict()).equal(torch.cat(values))
    assert [place.stop - place.start for place in layout.slices.values()] == [len(v) for v in values]
    assert layout.parameters == sum(len(v) for v in values)


def test_unflatten_copies_nothing_and_keeps_leading_axes():
    layout = Layout.of(nn.Linear(3, 2))
    rows = torch.zeros(4, 5, 8)
    state = layout.unflatten(rows)
    assert state["weight"].shape == (4, 5, 2, 3) and state["bias"].shape == (4, 5, 2)
    state["bias"][1, 2, 0] = 7.0
    assert rows[1, 2, 6] == 7 and rows.sum() == 7


def test_tied_parameters_appear_once_and_counters_never():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    layout = Layout.of(module)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.bias"]
    assert list(layout.by_name) == names and layout.parameters == 9 + 6 * 3
    row = torch.arange(layout.parameters).float()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    called = torch.func.functional_call(module.eval(), layout.unflatten(row), (x,))
    w, bias = row[:9].view(3, 3), row[-3:]
    gain, shift, mean, var = row[12:24].view(4, 3)
    hidden = (x @ w.T + row[9:12] - mean) / (var + 1e-5).sqrt() * gain + shift
    torch.testing.assert_close(called, hidden @ w.T + bias, rtol=1e-5, atol=1e-3)  # values of some 1e4 in float32


def test_axes_and_kinds():
    module = nn.Sequential(
        nn.Linear(3, 2), nn.ConvTranspose2d(4, 5, 3), nn.Conv1d(6, 7, 2), nn.GroupNorm(1, 7), nn.PReLU()
    )
    found = {t.name: (t.layer, t.role, t.output_axis, t.input_axis) for t in Layout.of(module).tensors}
    assert found == {
        "0.weight": ("linear", "weight", 0, 1), "0.bias": ("linear", "bias", 0, None),
        "1.weight": ("conv", "weight", 1, 0), "1.bias": ("conv", "bias", 0, None),
        "2.weight": ("conv", "weight", 0, 1), "2.bias": ("conv", "bias", 0, None),
        "3.weight": ("norm", "weight", 0, None), "3.bias": ("norm", "bias", 0, None),
        "4.weight": ("other", "weight", None, None),
    }  # fmt: skip


@pytest.mark.parametrize("network", [CNN(), NORMED, MLP(), ResNet18(width=2)])
def test_json_round_trip_keeps_the_digest(network):
    layout = Layout.of(network.build())
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout and again.digest == layout.digest


def test_digest_tells_layouts_apart():
    layout = Layout.of(MLP().build())
    renamed = Layout((replace(layout.tensors[0], name="first.weight"), *layout.tensors[1:]))
    reordered = Layout(layout.tensors[::-1])
    assert len({layout.digest, renamed.digest, reordered.digest}) == 3


def test_errors_say_what_does_not_fit():
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(LayoutError, match="lacks 'bias'"):
        layout.flatten({"weight": torch.zeros(2, 3)})
    with pytest.raises(LayoutError, match=r"'weight' has shape \(3, 2\), its layout says \(2, 3\)"):
        layout.flatten({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})
    with pytest.raises(LayoutError, match="rows have 9 values, their layout has 8"):
        layout.unflatten(torch.zeros(1, 9))
    with pytest.raises(LayoutError, match="unique"):
        Layout((layout.tensors[0],) * 2)
    for wrong in ([{"name": "a"}], [layout.to_json()[0] | {"colour": 1}]):
        with pytest.raises(LayoutError, match="not a stored layout"):
            Layout.from_json(wrong)


def test_layer_name_and_size():
    spec = TensorSpec(name="layer1.0.conv1.weight", shape=(4, 3, 2, 2), layer="conv", role="weight")
    assert spec.size == 48 and spec.layer_name == "layer1.0.conv1"
