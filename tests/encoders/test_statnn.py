"""StatNN: the published 56 numbers, and networks of several depths."""

import torch

from weightspace.encoders import StatNN, StatNNConfig
from weightspace.networks import MLP, PooledCNN
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.statistics import weight_statistics


def drawn(network, count=6, seed=0):
    architecture = Architecture.of(network)
    g = torch.Generator().manual_seed(seed)
    return Networks.of(torch.randn(count, architecture.layout.parameters, generator=g), architecture)


def test_features_and_parameters_are_the_published_ones():
    some = drawn(PooledCNN())
    encoder = StatNN(StatNNConfig(), [some.architecture], 1)
    assert encoder.features == 56
    assert sum(p.numel() for p in encoder.parameters()) == 57 * 1000 + 1001 * 1000 + 1001
    assert torch.equal(encoder.statistics(some), weight_statistics(some.rows, some.architecture.layout))


def test_variance_is_over_one_less_and_zero_for_one_value():
    some = drawn(MLP(image_shape=(1, 2, 2), hidden=(3,), classes=1))
    encoder = StatNN(StatNNConfig(spread="variance"), [some.architecture], 1)
    found = encoder.statistics(some)[:, 1::7]
    tensors = [values.flatten(1) for values in some.architecture.layout.unflatten(some.rows).values()]
    assert tensors[-1].shape[1] == 1  # one output: its bias has no variance
    wanted = [values.var(1) for values in tensors[:-1]] + [torch.zeros(len(some))]
    torch.testing.assert_close(found, torch.stack(wanted, dim=1), rtol=1e-5, atol=1e-6)
    plain = StatNN(StatNNConfig(), [some.architecture], 1).statistics(some)
    others = [place for place in range(28) if place % 7 != 1]
    assert torch.equal(encoder.statistics(some)[:, others], plain[:, others])


def test_networks_of_fewer_layers_end_in_zeros():
    shallow, deep = drawn(MLP(hidden=(5,))), drawn(MLP(hidden=(5, 6)))
    encoder = StatNN(StatNNConfig(width=8), [shallow.architecture, deep.architecture], 1)
    assert encoder.features == 42
    found = encoder.statistics(shallow)
    assert torch.equal(found[:, :28], weight_statistics(shallow.rows, shallow.architecture.layout))
    assert not found[:, 28:].any()


def test_the_perceptron_reads_standardised_statistics():
    some = drawn(PooledCNN(), count=40)
    encoder = StatNN(StatNNConfig(width=8), [some.architecture], 1)
    encoder.prepare([some])
    scaled = (encoder.statistics(some) - encoder.mean) / encoder.std
    torch.testing.assert_close(scaled.mean(0), torch.zeros(56), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(56), rtol=1e-3, atol=1e-3)
