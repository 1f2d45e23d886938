"""DNG: what a sweep visits, and when."""

from dataclasses import replace

import pytest
import torch

from weightspace.encoders import DNG, DNGConfig
from weightspace.encoders.dng import in_order
from weightspace.encoders.graph_parts import EdgeVectors, FourierFeatures, GraphSizes
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, WildPark
from weightspace.views.architecture import Architecture, Networks

PARK = WildPark(
    image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3, skips=(None, None, 0)
)


def made(config: DNGConfig, network) -> DNG:
    torch.manual_seed(0)
    return DNG(config, [Architecture.of(network)], 1).eval().requires_grad_(False)


def rows_of(network, count=3) -> Networks:
    architecture = Architecture.of(network)
    generator = torch.Generator().manual_seed(0)
    return Networks.of(torch.randn(count, architecture.layout.parameters, generator=generator), architecture)


def test_a_sweep_visits_shared_units_again():
    """The skip connection adds the first layer's outputs to the third's: both make the same units."""
    graph = Architecture.of(PARK).graph
    visits = [(level, target) for level, target, _, _ in in_order(graph)]
    assert visits == [(1, 1), (2, 2), (3, 1), (4, 3)]
    entered = [part.tensor for _, _, edges, values in in_order(graph) for part in (*edges, *values)]
    assert sorted(entered) == sorted(spec.name for spec in Architecture.of(PARK).layout.tensors)


def test_units_that_are_shared_are_refused_where_none_were():
    module = made(DNGConfig(width=8), replace(PARK, skips=(None, None, None)))
    with pytest.raises(LayoutError, match="write to the same units"):
        module(rows_of(PARK))
    assert made(DNGConfig(width=8), PARK)(rows_of(PARK)).shape == (3, 1)


def test_a_second_sweep_remembers_the_first():
    some = rows_of(MLP())
    once, twice = (made(DNGConfig(width=8, sweeps=sweeps), MLP()) for sweeps in (1, 2))
    assert once.memory is None
    missing = twice.load_state_dict(once.state_dict(), strict=False)
    assert missing.missing_keys == ["memory.weight"]
    assert (twice(some) - once(some)).abs().min() > 1e-4


def test_kernels_are_padded_around_their_centre():
    small, large = Architecture.of(CNN(kernels=(3, 1))), Architecture.of(CNN(kernels=(3, 5)))
    sizes = GraphSizes.of([small, large])
    assert sizes.side == 5
    row = torch.arange(1.0, small.layout.parameters + 1)[None]
    first, second, last = (EdgeVectors(sizes)(row, edges) for edges in small.graph.edges)
    square = first[0, 0, 0].unflatten(0, (5, 5))
    assert torch.equal(square[1:4, 1:4], torch.arange(1.0, 10).unflatten(0, (3, 3)))
    assert float(square.sum()) == 45
    assert second[0, 2, 1].nonzero()[:, 0].tolist() == [12]  # the middle of 25
    assert last.shape == (1, 10, 8, 25)


def test_fourier_features_know_what_is_small():
    """Directions are random, the vector itself is kept."""
    features = FourierFeatures(2, 5, 0.1)
    vectors = torch.tensor([[0.0, 0.0], [1.0, -3.0]])
    made = features(vectors)
    assert torch.equal(made[:, :2], vectors)
    torch.testing.assert_close(made[:, 2:7].square() + made[:, 7:].square(), torch.ones(2, 5))


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="at least 1"):
        DNGConfig(sweeps=0)
