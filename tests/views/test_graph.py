"""Networks as graphs: every parameter once, and renumbered units are renumbered nodes."""

from dataclasses import replace

import pytest
import torch

from weightspace.errors import LayoutError
from weightspace.networks import CNN, MLP, Network, PooledCNN, ResNet18, ViT, WildPark
from weightspace.symmetry import gather_index, random_permutations
from weightspace.views.architecture import Architecture

RESNET = ResNet18(image_shape=(1, 8, 8), width=2)
VIT = ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2)
PARK = WildPark(
    image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3, skips=(None, None, 0)
)
NETWORKS: list[Network] = [
    MLP(), CNN(), CNN(batch_norm=True, hidden=(6,)), PooledCNN(pooled=3), RESNET, VIT, PARK,
    replace(PARK, channels=(4, 4, 8)),
]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_every_parameter_is_in_one_place(network):
    architecture = Architecture.of(network)
    graph = architecture.graph
    indices = [part.index.flatten() for part in (*graph.edges, *graph.values)]
    assert torch.cat(indices).sort().values.tolist() == list(range(architecture.layout.parameters))
    for edges in graph.edges:
        assert edges.index.shape[:2] == (graph.nodes[edges.target].size, graph.nodes[edges.source].size)
    for values in graph.values:
        assert len(values.index) == graph.nodes[values.nodes].size


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_renumbered_units_are_renumbered_nodes(network):
    """Of two permuted copies the edges and values are equal up to one order of the nodes of each hidden set."""
    architecture = Architecture.of(network)
    g = torch.Generator().manual_seed(0)
    row = torch.randn(1, architecture.layout.parameters, generator=g, dtype=torch.float64)
    permutations = random_permutations(architecture.groups, 1, g)
    permuted = row.gather(1, gather_index(architecture.layout, architecture.groups, permutations))
    graph = architecture.graph
    moved = 0
    for values in graph.values:
        before, after = row[0, values.index], permuted[0, values.index]
        if graph.nodes[values.nodes].kind == "hidden":
            same = (before[:, None] == after[None]).all(2)
            assert same.sum(1).tolist() == [1] * len(before)
            moved += int((before != after).any())
        else:
            assert torch.equal(before, after)
    assert moved
    for edges in graph.edges:
        before, after = row[0, edges.index], permuted[0, edges.index]
        torch.testing.assert_close(before.sum((0, 1)), after.sum((0, 1)))
        for axis in (0, 1):
            sums = before.sum(axis), after.sum(axis)  # what is left counts the other axis
            other = graph.nodes[edges.target if axis == 1 else edges.source].kind
            if other != "hidden":
                torch.testing.assert_close(*sums)
            else:
                order = [some[some[:, 0].argsort()] for some in sums]
                torch.testing.assert_close(*order)


def test_a_chain_is_seen_layer_by_layer():
    graph = Architecture.of(CNN(hidden=(6,))).graph
    assert [(nodes.kind, nodes.size, nodes.level) for nodes in graph.nodes] == [
        ("input", 1, 0), ("hidden", 8, 1), ("hidden", 8, 2), ("hidden", 6, 3), ("output", 10, 4)
    ]  # fmt: skip
    assert [layer.weight.kernel for layer in graph.chain] == [(3, 3), (3, 3), (4,), ()]
    assert all(layer.bias is not None and layer.bias.nodes == layer.weight.target for layer in graph.chain)
    layout = Architecture.of(CNN(hidden=(6,))).layout
    row = torch.arange(float(layout.parameters))
    weights = layout.unflatten(row)
    third = row[graph.chain[2].weight.index]  # a flattened channel owns four columns
    assert torch.equal(third, weights["fc1.weight"].unflatten(1, (8, 4)))
    assert torch.equal(row[graph.chain[0].weight.index], weights["conv1.weight"].flatten(2))


def test_layers_of_one_stream_make_the_same_nodes():
    graph = Architecture.of(RESNET).graph
    first = [edges for edges in graph.edges if edges.tensor in ("conv1.weight", "layer1.0.conv2.weight")]
    assert first[0].target == first[1].target
    roles = {values.role for values in graph.values}
    assert roles == {"bias", "scale", "shift", "running_mean", "running_var"}


def test_branches_are_no_chain():
    for network in (RESNET, CNN(batch_norm=True)):
        with pytest.raises(LayoutError, match="plain chains"):
            Architecture.of(network).graph.chain  # noqa: B018


def test_queries_keys_and_values_are_parallel_edges_to_the_same_nodes():
    graph = Architecture.of(VIT).graph
    [attention] = [edges for edges in graph.edges if edges.tensor == "blocks.0.attn.qkv.weight"]
    assert attention.kernel == (3,)
    assert attention.index.shape == (8, 8, 3)  # head and place in the head, stream, which of the three
    [after] = [edges for edges in graph.edges if edges.tensor == "blocks.0.attn.proj.weight"]
    assert (after.source, after.target) == (attention.target, attention.source)
