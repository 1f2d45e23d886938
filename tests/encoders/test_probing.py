"""ProbeGen: it sees what networks answer and nothing else."""

from dataclasses import replace

import pytest
import torch

from weightspace.encoders import ProbeGen, ProbeGenConfig
from weightspace.encoders.probing import ImageProbes
from weightspace.errors import LayoutError
from weightspace.networks import CNN, MLP, SIREN, Layout
from weightspace.networks.population import population_logits
from weightspace.symmetry import apply_scales, chain_scales, random_scales
from weightspace.views.architecture import UNKNOWN_ACTIVATION, Architecture, Networks

SMALL = ProbeGenConfig(probes=4, latent=8, width=16, depth=2)


def some_networks(network, count=5) -> Networks:
    architecture = Architecture.of(network)
    generator = torch.Generator().manual_seed(0)
    return Networks.of(0.3 * torch.randn(count, architecture.layout.parameters, generator=generator), architecture)


def made(*architectures) -> ProbeGen:
    torch.manual_seed(0)
    return ProbeGen(SMALL, architectures, 1).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 4)])
def test_probes_are_images_of_the_wanted_shape(shape):
    probes = ImageProbes(SMALL, shape)()
    assert probes.shape == (4, *shape)
    assert probes.abs().max() <= 1


def test_embeddings_are_read_from_the_answers():
    """Networks of two activations, run by the library's own forward pass."""
    some = some_networks(CNN())
    some = Networks(some.rows, some.architecture, torch.tensor([0, 1, 0, 1, 1]))
    module = made(some.architecture)
    probes = module.probes["images of 1x8x8"]()
    relu, tanh = (population_logits(replace(CNN(), activation=name), some.rows, probes) for name in ("relu", "tanh"))
    answers = torch.where(some.activations[:, None, None] == 0, relu, tanh)
    torch.testing.assert_close(module.encode(some), module.body(answers.flatten(1)))


def test_scales_leave_it_as_they_leave_the_function():
    some = some_networks(MLP(hidden=(6, 5)))
    groups = chain_scales(some.architecture.layout, activation="relu")
    scales = random_scales(groups, len(some), torch.Generator().manual_seed(1))
    rows = apply_scales(some.rows, some.architecture.layout, groups, scales)
    module = made(some.architecture)
    before, after = module(some), module(Networks(rows, some.architecture, some.activations))
    assert ((after - before).abs().amax(0) < 1e-4 * before.std(0)).all()


def test_signals_are_probed_at_coordinates():
    some = some_networks(SIREN(hidden=(6,)))
    module = made(some.architecture)
    assert module(some).shape == (5, 1)
    assert module.probes["coordinates of 2 values"]().shape == (4, 2)


def test_networks_that_cannot_be_run_are_refused():
    some = some_networks(CNN())
    module = made(some.architecture)
    with pytest.raises(LayoutError, match="does not say what its networks compute"):
        made(Architecture.of_layout(Layout.of(CNN().build())))
    with pytest.raises(LayoutError, match="the activation of some networks is not known"):
        module(Networks(some.rows, some.architecture, torch.full((5,), UNKNOWN_ACTIVATION)))
    with pytest.raises(LayoutError, match="read images of 3x8x8"):
        module(some_networks(CNN(image_shape=(3, 8, 8))))
    with pytest.raises(LayoutError, match="have 12 outputs"):
        module(some_networks(CNN(classes=12)))
