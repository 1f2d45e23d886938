"""Graph metanets: the parameter graph has the published numbers of nodes and edges."""

import pytest
import torch
from torch import nn

from weightspace.encoders import GMN, GMNConfig
from weightspace.encoders.graph_metanet import graph_size
from weightspace.errors import ConfigError
from weightspace.networks import CNN, MLP, Layout, PooledCNN, ViT
from weightspace.symmetry import symmetry_of
from weightspace.views.architecture import Architecture, Networks


def test_a_norm_between_linear_layers_has_the_published_size():
    """Six units, a node for scale, shift and bias each; 6 + 3 weights, and an edge for each of the other values."""
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 1))
    groups = symmetry_of(module, torch.zeros(1, 2)).groups
    assert graph_size(Architecture(Layout.of(module), groups).graph) == (9, 16)


@pytest.mark.parametrize("network", [MLP(), CNN(batch_norm=True), PooledCNN(), ViT(width=6, depth=1)])
def test_every_parameter_is_an_edge(network):
    architecture = Architecture.of(network)
    assert graph_size(architecture.graph)[1] == architecture.layout.parameters


def test_values_of_a_kernel_are_told_apart():
    """Parallel edges differ in their coordinates: a kernel read in another order is another network."""
    architecture = Architecture.of(CNN())
    rows = torch.randn(3, 994, generator=torch.Generator().manual_seed(0))
    turned = rows.clone()
    place = architecture.layout.slices["conv1.weight"]
    turned[:, place] = rows[:, place].unflatten(1, (8, 1, 3, 3)).flip(3).flatten(1)
    torch.manual_seed(0)
    module = GMN(GMNConfig(width=12), [architecture], 1).eval().requires_grad_(False)
    before, after = (module(Networks.of(some, architecture)) for some in (rows, turned))
    assert ((after - before).abs() > 1e-6).all()


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="at least 1"):
        GMNConfig(layers=0)
