"""Layouts from names and shapes are the layouts of the modules, wherever names and shapes can tell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.networks import CNN, MLP, Layout, ResNet18, layout_from_state

SIZES = st.integers(2, 6)


@pytest.mark.parametrize(
    "network", [CNN(), CNN(channels=(3, 4), bias=False, batch_norm=True), MLP(), MLP(hidden=(5, 5)), ResNet18(width=2)]
)
def test_networks_of_this_package(network):
    module = network.build()
    assert layout_from_state(module.state_dict()) == Layout.of(module)


@st.composite
def modules(draw) -> nn.Module:
    """Layers whose kind the tensors tell: a transposed convolution has two different sides."""
    kinds = {
        "linear": lambda a, b, bias: nn.Linear(a, b, bias=bias),
        "conv": lambda a, b, bias: nn.Conv2d(a, b, (2, 3), bias=bias),
        "conv1d": lambda a, b, bias: nn.Conv1d(a, b, 2, bias=bias),
        "depthwise": lambda a, b, bias: nn.Conv2d(a, a, 3, groups=a),
        "batch norm": lambda a, b, bias: nn.BatchNorm2d(a, affine=bias),
        "layer norm": lambda a, b, bias: nn.LayerNorm((a, b)),
        "scale": lambda a, b, bias: nn.PReLU(a),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=5))
    return nn.Sequential(*(kinds[kind](draw(SIZES), draw(SIZES), draw(st.booleans())) for kind in chosen))


@settings(deadline=None, max_examples=60)
@given(modules())
def test_layers_told_by_their_tensors(module):
    assert layout_from_state(module.state_dict()).tensors == Layout.of(module).tensors


def axes(module: nn.Module) -> dict[str, int | None]:
    return {spec.name: spec.output_axis for spec in layout_from_state(module.state_dict()).tensors}


def test_transposed_layers():
    assert axes(nn.Sequential(nn.ConvTranspose2d(4, 5, 3)))["0.weight"] == 1
    assert axes(nn.ModuleDict({"deconv": nn.ConvTranspose2d(4, 4, 3)}))["deconv.weight"] == 1
    assert axes(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3)}))["conv.weight"] == 0


def test_a_square_matrix_follows_the_others_of_its_name():
    """GPT-2 stores inputs first; its output projection of attention is square."""
    block = {
        "h.0.attn.c_proj.weight": torch.zeros(8, 8), "h.0.attn.c_proj.bias": torch.zeros(8),
        "h.0.mlp.c_proj.weight": torch.zeros(32, 8), "h.0.mlp.c_proj.bias": torch.zeros(8),
        "lm.weight": torch.zeros(8, 8), "lm.bias": torch.zeros(8),
    }  # fmt: skip
    found = {spec.name: (spec.output_axis, spec.input_axis) for spec in layout_from_state(block).tensors}
    assert found["h.0.attn.c_proj.weight"] == (1, 0)
    assert found["h.0.mlp.c_proj.weight"] == (1, 0)
    assert found["lm.weight"] == (0, 1)


def test_tables_attention_and_loose_parameters_are_other():
    state = {
        "word_embeddings.weight": torch.zeros(20, 8), "attn.in_proj_weight": torch.zeros(24, 8),
        "log_std": torch.zeros(2), "final_norm.weight": torch.zeros(8), "slopes.weight": torch.zeros(8),
        "scalar": torch.zeros(()),
    }  # fmt: skip
    found = {spec.name: spec.layer for spec in layout_from_state(state).tensors}
    assert found == dict.fromkeys(state, "other") | {"final_norm.weight": "norm"}


def test_counters_are_left_out():
    assert list(layout_from_state(nn.BatchNorm1d(3).state_dict()).by_name) == [
        "weight", "bias", "running_mean", "running_var"
    ]  # fmt: skip
