"""NAR-Former: tokens say what an architecture is."""

import math
from dataclasses import replace

import torch

from weightspace.encoders.nar_former import NARFormerConfig, sinusoids, tokens
from weightspace.networks import CNN, MLP, WildPark
from weightspace.views.architecture import Architecture

PARK = WildPark(
    image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3, skips=(None, None, 0)
)
SOURCES = slice(2 * 64, 3 * 64)


def test_numbers_are_sines_and_cosines():
    found = sinusoids(torch.tensor([3.0]))[0]
    for j in (0, 7, 31):
        phase = 3 / 10_000 ** (j / 32)
        assert math.isclose(float(found[j]), math.sin(phase), abs_tol=1e-6)
        assert math.isclose(float(found[32 + j]), math.cos(phase), abs_tol=1e-6)


def test_a_chain_reads_the_layer_before():
    found = tokens(Architecture.of(MLP(hidden=(6, 5))), 0)
    assert found.shape == (5, 11 * 64)  # inputs, three layers, an end
    wanted = sinusoids(torch.tensor([-1.0, 0.0, 1.0, 2.0, 1e5]))
    torch.testing.assert_close(found[:, SOURCES], wanted)


def test_a_skip_connection_is_one_more_source():
    """The last layer reads units that the first and the third one make."""
    with_skip, without = (
        tokens(Architecture.of(replace(PARK, skips=skips)), 0) for skips in (PARK.skips, (None, None, None))
    )
    torch.testing.assert_close(with_skip[4, SOURCES], sinusoids(torch.tensor([1.0, 3.0])).sum(0))
    torch.testing.assert_close(without[4, SOURCES], sinusoids(torch.tensor(3.0)))


def test_sizes_and_activations_are_seen():
    same = tokens(Architecture.of(CNN()), 0)
    for network, activation in ((CNN(channels=(8, 9)), 0), (CNN(kernels=(3, 5)), 0), (CNN(batch_norm=True), 0),
                                (CNN(bias=False), 0), (CNN(), 1)):  # fmt: skip
        found = tokens(Architecture.of(network), activation)
        assert found.shape == same.shape and not torch.equal(found, same)
    assert NARFormerConfig.published().width == 192
