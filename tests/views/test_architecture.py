"""Architectures of zoos, and bundles of networks of one architecture."""

import polars as pl
import pytest
import torch

from weightspace.errors import LayoutError
from weightspace.networks import CNN, MLP, SIREN, Layout, PooledCNN, ResNet18, by_name, to_json
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.networks.population import population_logits
from weightspace.symmetry import chain_groups, symmetry_of
from weightspace.views.architecture import (
    UNKNOWN_ACTIVATION,
    Architecture,
    Networks,
    architecture_of,
    bundles,
    in_chunks,
)
from weightspace.zoo import Zoo

LAYOUT = Layout.of(CNN().build())


def test_the_network_of_a_layout_is_found_among_several():
    wide, narrow = ResNet18(image_shape=(1, 8, 8), width=4), ResNet18(image_shape=(1, 8, 8), width=2)
    header = {"networks": {"wide": to_json(wide), "narrow": to_json(narrow)}}
    sizes = [group.size for group in architecture_of(header, Layout.of(narrow.build())).groups]
    assert sorted(set(sizes)) == [2, 4, 8, 16]


def test_networks_that_nobody_described_are_refused_unless_they_are_chains():
    layout = Layout.of(ResNet18(image_shape=(1, 8, 8), width=2).build())
    with pytest.raises(LayoutError, match="not a plain chain"):
        architecture_of({}, layout)
    assert architecture_of({}, LAYOUT).groups == chain_groups(LAYOUT)


@pytest.mark.parametrize("network", [MLP(), CNN(), CNN(bias=False, batch_norm=True), PooledCNN(), SIREN()])
def test_chains_need_no_trace(network):
    """Families whose groups are inferred have those that a trace finds."""
    module = network.build()
    example = torch.zeros(2, 2) if isinstance(network, SIREN) else torch.zeros(2, *network.image_shape)
    assert (
        architecture_of({"network": to_json(network)}, Layout.of(module)).groups == symmetry_of(module, example).groups
    )


def test_bundles_hold_every_checkpoint_once_in_table_order():
    small, large = MLP(), CNN()
    zoos = []
    for name, network in (("a", small), ("b", large)):
        layout = Layout.of(network.build())
        rows = torch.randn(4, layout.parameters, generator=torch.Generator().manual_seed(0))
        table = pl.DataFrame({"model": [f"{name}{i}" for i in range(4)], "step": [0] * 4,
                              "config.activation": ["relu", "tanh", "gelu", "sine"]})  # fmt: skip
        zoos.append(Zoo.in_memory(rows, layout, table, {"network": to_json(network)}))
    found = bundles(zoos[0])
    assert len(found) == 1
    assert found[0][0].tolist() == [0, 1, 2, 3]
    names = list(ACTIVATIONS)
    assert found[0][1].activations.tolist() == [*map(names.index, ("relu", "tanh", "gelu")), UNKNOWN_ACTIVATION]
    both = Zoo.concat([zoos[0].take([0, 1]), zoos[1], zoos[0].take([2, 3])])
    places = torch.cat([place for place, _ in bundles(both)])
    assert sorted(places.tolist()) == list(range(8))
    assert [len(some) for _, some in bundles(both)] == [4, 4]
    for place, some in bundles(both):
        assert torch.equal(both.take(place).weights(), some.rows)


def test_chunks_are_the_networks_in_order():
    architecture = Architecture.of(MLP())
    rows = torch.randn(7, architecture.layout.parameters)
    some = Networks.of(rows, architecture)
    assert torch.equal(torch.cat([part.rows for part in in_chunks([some, some[:2]], 3)]), torch.cat([rows, rows[:2]]))
    assert max(map(len, in_chunks([some], 3))) == 3


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet18"])
def test_permuted_networks_are_other_weights_and_the_same_functions(name):
    network = ResNet18(image_shape=(1, 8, 8), width=2) if name == "resnet18" else by_name(name, (1, 8, 8), 10)
    architecture = Architecture.of(network)
    row = architecture.layout.flatten(network.build().state_dict())
    some = Networks.of(row.expand(3, -1), architecture).permuted(torch.Generator().manual_seed(0))
    assert not torch.equal(some.rows[0], some.rows[1])
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before, after = (population_logits(network, rows, images) for rows in (row.expand(3, -1), some.rows))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [Architecture.of(CNN()), Architecture.of_layout(LAYOUT)])
def test_architectures_come_back_from_plain_data(architecture):
    assert Architecture.from_json(architecture.to_json()) == architecture
