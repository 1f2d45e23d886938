"""Tokens of each layer: exact index maps for every kind, and outgoing weights that are those the next layer reads."""

import pytest
import torch

from weightspace import networks
from weightspace.networks import CNN, MLP, Layout, ResNet18
from weightspace.symmetry import chain_groups
from weightspace.views.neurons import LayerTokens

CNN_S = Layout.of(networks.by_name("cnn_s", (1, 28, 28), 10).build())


def test_layers_of_the_published_cnn():
    """Table of the specification: start and length of each layer, neurons, and row width with bias."""
    tokens = LayerTokens.of(CNN_S)
    assert [index.flatten().min().item() for index in tokens.indices] == [0, 208, 1414, 1514, 2254]
    assert [index.numel() for index in tokens.indices] == [208, 1206, 100, 740, 210]
    assert tokens.shapes == [(8, 26), (6, 201), (4, 25), (20, 37), (10, 21)]
    assert len(tokens.layers) == 48 and tokens.layers.bincount().tolist() == [8, 6, 4, 20, 10]


@pytest.mark.parametrize("kind", ["neuron", "neuron_in_out", "weight", "flat"])
@pytest.mark.parametrize("network", [CNN(), CNN(batch_norm=True, bias=False), MLP(hidden=(5, 3)), ResNet18(width=2)])
def test_rows_invert_tokens_bit_for_bit(kind, network):
    layout = Layout.of(network.build())
    groups = () if isinstance(network, ResNet18) else chain_groups(layout)
    tokens = LayerTokens.of(layout, kind, groups)
    rows = torch.randn(3, layout.parameters, generator=torch.Generator().manual_seed(0))
    parts = tokens.tokenise(rows)
    assert [tuple(part.shape[1:]) for part in parts] == tokens.shapes
    assert torch.equal(tokens.rows(parts), rows)
    assert len(tokens.layers) == sum(n for n, _ in tokens.shapes)


def test_a_neuron_is_its_weights_and_its_bias():
    layout = Layout.of(networks.by_name("cnn_s", (1, 28, 28), 10).build())
    row = torch.arange(2464.0)
    state = layout.unflatten(row)
    for part, (name, weight) in zip(
        LayerTokens.of(layout).tokenise(row[None]),
        [(n, w) for n, w in state.items() if n.endswith("weight")],
        strict=True,
    ):
        assert torch.equal(part[0, :, :-1], weight.flatten(1))
        assert torch.equal(part[0, :, -1], state[name.replace("weight", "bias")])


def test_outgoing_weights_are_those_that_read_the_neuron():
    """The convolution before the first linear layer: nine consecutive columns a channel."""
    tokens = LayerTokens.of(CNN_S, "neuron_in_out", chain_groups(CNN_S))
    assert tokens.shapes == [(8, 26 + 6 * 25), (6, 201 + 4 * 4), (4, 25 + 20 * 9), (20, 37 + 10), (10, 21)]
    row = torch.arange(2464.0)
    linear = CNN_S.unflatten(row)["fc1.weight" if "fc1.weight" in CNN_S.by_name else CNN_S.tensors[6].name]
    for channel, values in enumerate(tokens.tokenise(row[None])[2][0, :, 25:]):
        assert torch.equal(values.sort().values, linear[:, 9 * channel : 9 * channel + 9].flatten().sort().values)
