"""NFN: published numbers of parameters, equivariant layers, and orbits in place of coordinates."""

import pytest
import torch

from weightspace.encoders import NFNHNP, NFNNP, NFNConfig
from weightspace.encoders.nfn import ChainShape, HNPLinear, IOCodes, NPLinear, hnp_pool
from weightspace.networks import PooledCNN
from weightspace.views.architecture import Architecture, Networks

SHAPES = {
    2: (ChainShape((9, 4), inputs=2, outputs=3), (2, 5, 3)),
    3: (ChainShape((9, 1, 4), inputs=2, outputs=3), (2, 5, 6, 3)),
    4: (ChainShape((1, 9, 1, 1), inputs=2, outputs=3), (2, 5, 6, 4, 3)),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_the_published_ones():
    zoo = [Architecture.of(PooledCNN(image_shape=(1, 32, 32)))]
    with torch.device("meta"):
        hnp, np = NFNHNP(NFNConfig(), zoo, 1), NFNNP(NFNConfig(), zoo, 1)
    assert (count(hnp.layers), count(hnp)) == (1_558_742, 2_811_743)
    assert (count(np.layers), count(np)) == (777_432, 2_031_390)
    assert count(np.codes) == 29 * (1 + 16 + 16)
    assert hnp.body[0][0].in_features == 50 * 5


def features(shape, sizes, channels, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(2, made, read, channels * kernel, generator=g, dtype=torch.float64)
        for made, read, kernel in zip(sizes[1:], sizes, shape.kernels, strict=False)
    ]
    return weights, [torch.randn(2, made, channels, generator=g, dtype=torch.float64) for made in sizes[1:]]


def renumbered(weights, biases, orders):
    pairs = zip(weights, orders, orders[1:], strict=False)
    moved = [weight[:, made][:, :, read] for weight, read, made in pairs]
    return moved, [bias[:, made] for bias, made in zip(biases, orders[1:], strict=True)]


def orders_of(sizes, ends):
    g = torch.Generator().manual_seed(1)
    orders = [torch.randperm(size, generator=g) for size in sizes]
    if not ends:
        orders[0], orders[-1] = torch.arange(sizes[0]), torch.arange(sizes[-1])
    return orders


@pytest.mark.parametrize("layers", SHAPES)
@pytest.mark.parametrize("layer_type", [NPLinear, HNPLinear])
def test_layers_commute_with_renumbering(layers, layer_type):
    shape, sizes = SHAPES[layers]
    torch.manual_seed(0)
    layer = layer_type(shape, 2, 3).double()
    before = features(shape, sizes, 2)
    with torch.no_grad():
        orders = orders_of(sizes, ends=layer_type is NPLinear)
        wanted, found = renumbered(*layer(*before), orders), layer(*renumbered(*before, orders))
        for after, expected in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            hnp_pool(*layer(*before)), hnp_pool(*layer(*renumbered(*before, orders_of(sizes, ends=False)))),
            rtol=0, atol=1e-12,
        )  # fmt: skip
        assert all(x.shape[-1] == 3 * kernel for x, kernel in zip(found[0], shape.kernels, strict=True))


@pytest.mark.parametrize("layers", SHAPES)
def test_hidden_layers_commute_with_nothing_else(layers):
    """HNP layers, and NP layers behind codes, tell inputs and outputs apart."""
    shape, sizes = SHAPES[layers]
    torch.manual_seed(0)
    before = features(shape, sizes, 2)
    orders = orders_of(sizes, ends=True)
    orders[0], orders[-1] = torch.tensor([1, 0]), torch.tensor([1, 2, 0])
    codes, plain, hidden = (
        part.double() for part in (IOCodes(shape, 2), NPLinear(shape, 2, 3), HNPLinear(shape, 2, 3))
    )
    with torch.no_grad():
        for layer in (hidden, lambda weights, biases: plain(*codes(weights, biases))):
            wanted, found = renumbered(*layer(*before), orders), layer(*renumbered(*before, orders))
            pairs = zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True)
            changes = [float((after - expected).abs().max()) for after, expected in pairs]
            assert changes[0] > 1e-3 and changes[layers - 1] > 1e-3 and changes[-1] > 1e-3
            assert layer is not hidden or min(changes) > 1e-3


def test_every_weight_has_a_part_in_every_output():
    """No map of the layers is forgotten: one layer carries any weight to any other."""
    shape, sizes = SHAPES[4]
    torch.manual_seed(0)
    for layer_type in (NPLinear, HNPLinear):
        layer = layer_type(shape, 2, 3).double()
        weights, biases = features(shape, sizes, 2)
        for x in (*weights, *biases):
            x.requires_grad_()
        outputs = layer(weights, biases)
        for y in (*outputs[0], *outputs[1]):
            gradients = torch.autograd.grad(y[0].square().sum(), (*weights, *biases), retain_graph=True)
            assert all((gradient[0] != 0).all() and (gradient[1] == 0).all() for gradient in gradients)


def test_first_values_are_drawn_by_all_that_is_added():
    layer = NPLinear(ChainShape((9, 1), inputs=1, outputs=10), 16, 16)
    first = layer.weights[0]
    bound = sum(some.in_features for some in first.maps) ** -0.5
    weights = torch.cat([some.weight.detach().flatten() for some in first.maps])
    assert float(weights.abs().max()) <= bound
    assert float(weights.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_orbits_are_standardised_by_their_own_statistics():
    """Inputs and outputs each by their own, hidden units by common ones."""
    architecture = Architecture.of(PooledCNN(image_shape=(2, 16, 16), channels=(4, 5), kernels=(3, 3), strides=(2, 2)))
    g = torch.Generator().manual_seed(0)
    parameters = architecture.layout.parameters
    own = torch.rand(parameters, generator=g)
    some = Networks.of(own + torch.randn(300, parameters, generator=g) * (0.1 + own), architecture)
    encoder = NFNNP(NFNConfig(channels=(4,), width=8), [architecture], 1)
    encoder.prepare([some])
    tensors = encoder._tensors(architecture)
    first, second, last, *_, bias = encoder.scale(some, tensors)
    for x, hidden in ((first, (0, 1)), (second, (0, 1, 2)), (last, (0, 2)), (bias, (0,))):
        torch.testing.assert_close(x.mean(hidden), torch.zeros_like(x.mean(hidden)), rtol=0, atol=1e-4)
        std = x.std(hidden, correction=0)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-4, atol=1e-4)
    assert first.mean(0).abs().max() > 0.1  # not each coordinate by itself
