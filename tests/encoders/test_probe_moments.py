"""Probe moments: symmetric in hidden units and classes, comparable between architectures and image shapes."""

import math

import pytest
import torch

from weightspace.encoders import ProbeMoments, ProbeMomentsConfig
from weightspace.encoders.probe_moments import answer_moments, weight_moments
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, SIREN, Classifier, Layout, PooledCNN, ResNet18, WildPark
from weightspace.views.architecture import Architecture, Networks

NETWORKS: list[Classifier] = [
    MLP(hidden=(9, 7)), CNN(hidden=(6,)), PooledCNN(image_shape=(1, 16, 16), pooled=1),
    ResNet18(image_shape=(1, 8, 8), width=2),
    WildPark(image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3,
             skips=(None, None, 0)),
]  # fmt: skip


def some_of(network, count=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    architecture = Architecture.of(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        states = [network.build().state_dict() for _ in range(count)]
    rows = torch.stack([architecture.layout.flatten(state) for state in states])
    scales = 1 + torch.rand(count, 1, generator=g)
    return Networks.of(rows * scales, architecture)


def encoder_of(some, config=ProbeMomentsConfig()):  # noqa: B008 - frozen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ProbeMoments(config, [some.architecture], 1)
    encoder.prepare([some])
    return encoder.eval()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_order_of_hidden_units_has_no_part(network):
    some = some_of(network)
    encoder = encoder_of(some).double()
    some = Networks(some.rows.double(), some.architecture, some.activations)
    moved = some.permuted(torch.Generator().manual_seed(1))
    assert not torch.equal(moved.rows, some.rows)
    before, after = encoder.features(some), encoder.features(moved)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    assert encoder(some).std(0).min() > 0
    rows, place = some.rows.clone(), some.architecture.graph.edges[0].index.flatten()
    rows[:, place] = rows[:, place.flip(0).roll(1)]  # no symmetry
    assert (encoder.features(Networks(rows, some.architecture, some.activations)) - before).abs().max() > 1e-3


def test_networks_whose_answers_overflow_are_read():
    some = some_of(MLP(hidden=(9, 7)))
    encoder = encoder_of(some)
    assert encoder(Networks.of(1e20 * some.rows, some.architecture)).isfinite().all()


def test_order_of_classes_has_no_part():
    logits = torch.randn(3, 10, 7, dtype=torch.float64)
    moved = logits[:, :, torch.randperm(7)]
    torch.testing.assert_close(answer_moments(moved, 5), answer_moments(logits, 5))
    shifted = logits + torch.randn(3, 10, 1, dtype=torch.float64)  # a constant on all logits is no answer
    torch.testing.assert_close(answer_moments(shifted, 5), answer_moments(logits, 5))


def test_moments_of_known_answers():
    same = torch.zeros(1, 10, 4)  # says nothing
    confidence, entropy, spread, _, _, together = answer_moments(same, 5)[0, :6]
    assert (float(confidence), float(entropy), float(spread), float(together)) == pytest.approx((0.25, 1, 0, 1))
    sure = torch.zeros(1, 10, 4)
    sure[0, torch.arange(10), torch.arange(10) % 4] = 50.0
    confidence, entropy = answer_moments(sure, 5)[0, :2]
    assert float(confidence) == pytest.approx(1)
    assert float(entropy) == pytest.approx(0, abs=1e-6)
    one_way = torch.randn(1, 10, 1) * torch.tensor([1.0, -1.0, 0.0, 0.0])
    assert float(answer_moments(one_way, 5)[0, -2]) == pytest.approx(1, rel=1e-4)  # one direction


def test_larger_weights_are_a_shift_of_logarithms():
    architecture = Architecture.of(CNN(hidden=(6,)))
    rows = torch.randn(4, architecture.layout.parameters, dtype=torch.float64)
    before, after = (weight_moments(values, architecture.graph) for values in (rows, 10 * rows))
    change = (after - before)[:, :24].unflatten(1, (3, 8))  # first, last, mean
    torch.testing.assert_close(change[..., :2], torch.full((4, 3, 2), math.log(10), dtype=torch.float64))
    torch.testing.assert_close(change[..., 2:], torch.zeros(4, 3, 6, dtype=torch.float64))


def test_one_encoder_reads_other_architectures_and_image_shapes():
    some = some_of(CNN())
    encoder = encoder_of(some)
    for network in (MLP(image_shape=(3, 10, 10), hidden=(5, 5, 5)), PooledCNN(image_shape=(1, 20, 20)), CNN(classes=3)):
        assert encoder(some_of(network)).isfinite().all()
        assert encoder.encode(some_of(network)).abs().max() <= 4
    probes = encoder.probes((3, 9, 11))
    assert probes.shape == (40, 3, 9, 11)
    torch.testing.assert_close(probes.square().mean((1, 2, 3)), torch.ones(40))


def test_members_answer_one_by_one_in_training_only():
    some = some_of(MLP())
    encoder = encoder_of(some, ProbeMomentsConfig(members=3, dropout=0.0))
    together = encoder(some)
    one_by_one = encoder.train()(some)
    assert one_by_one.shape == (3, 5, 1)
    torch.testing.assert_close(one_by_one.mean(0), together)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 1e-4


def test_images_themselves_and_unknown_networks_are_refused():
    siren = Architecture.of(SIREN())
    with pytest.raises(LayoutError, match="images themselves"):
        ProbeMoments(ProbeMomentsConfig(), [siren], 1)
    unknown = Architecture.of_layout(Layout.of(MLP().build()))
    with pytest.raises(LayoutError, match="does not say"):
        ProbeMoments(ProbeMomentsConfig(), [unknown], 1)
    weights_alone = ProbeMoments(ProbeMomentsConfig(answers=False), [unknown], 1)
    assert weights_alone(Networks.of(torch.randn(2, unknown.layout.parameters), unknown)).shape[-2:] == (2, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        ProbeMomentsConfig(probes=0)
