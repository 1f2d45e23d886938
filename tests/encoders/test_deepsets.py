"""DeepSets: the mean before the last layer is the mean behind it, and codes tell tensors apart."""

import torch
from torch.nn import functional as F

from weightspace.encoders import DeepSets, DeepSetsAny, DeepSetsConfig
from weightspace.networks import CNN, MLP
from weightspace.views.architecture import Architecture, Networks

CONFIG = DeepSetsConfig(width=8, head_width=16)


def drawn(network, count=5):
    architecture = Architecture.of(network)
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(count, architecture.layout.parameters, generator=g, dtype=torch.float64)
    return Networks.of(rows, architecture)


def test_the_mean_is_over_all_weights_of_a_tensor():
    """Two ways: every weight through the whole first perceptron, then the mean."""
    some = drawn(CNN())
    torch.manual_seed(0)
    encoder = DeepSets(CONFIG, [some.architecture], 1).double()
    encoder.prepare([some])
    parts = []
    for number, values in enumerate(some.architecture.layout.unflatten(some.rows).values()):
        flat = values.flatten(1)
        scaled = (flat - flat.mean()) / flat.std(correction=0)
        each = F.linear(torch.stack([scaled, scaled**2], dim=-1), encoder.weights[number], encoder.biases[number])
        parts.append(encoder.after[number](encoder.second[number](F.relu(each)).mean(1)))
    torch.testing.assert_close(encoder.encode(some), encoder.body(torch.cat(parts, dim=1)), rtol=1e-7, atol=1e-7)


def test_the_mean_is_over_all_weights_of_the_network():
    some = drawn(CNN())
    torch.manual_seed(0)
    encoder = DeepSetsAny(CONFIG, [some.architecture], 1).double()
    encoder.prepare([some])
    scaled = encoder.scale(some.rows)
    hidden = F.linear(torch.stack([scaled, scaled**2], dim=-1), encoder.first.weight)
    codes = [_code(encoder, some.architecture, number) for number in range(6)]
    sizes = torch.tensor([spec.size for spec in some.architecture.layout.tensors])
    each = encoder.second(F.relu(hidden + torch.stack(codes).repeat_interleave(sizes, dim=0)))
    torch.testing.assert_close(encoder.encode(some), encoder.body(each.mean(1)), rtol=1e-9, atol=1e-9)


def _code(encoder, architecture, number):
    spec = architecture.layout.tensors[number]
    kind = {("conv", "weight"): 4, ("conv", "bias"): 5, ("linear", "weight"): 0, ("linear", "bias"): 1}
    level = 1 + number // 2
    frequencies = torch.tensor([1, 0.5, 0.25, 0.125], dtype=torch.float64)
    angles = torch.cat([level * frequencies, (3 - level) * frequencies])
    levels = encoder.levels(torch.cat([angles.sin(), angles.cos()]))
    return encoder.kinds.weight[kind[spec.layer, spec.role]] + levels + encoder.first.bias


def test_tensors_of_equal_kind_are_told_apart_by_their_layer():
    """Two layers of one shape change places."""
    some = drawn(MLP(image_shape=(1, 2, 2), hidden=(4, 4), classes=4))
    rows = some.rows.clone()
    rows[:, :20], rows[:, 20:40] = some.rows[:, 20:40], some.rows[:, :20]
    for method in (DeepSets, DeepSetsAny):
        torch.manual_seed(0)
        encoder = method(CONFIG, [some.architecture], 1).double()
        with torch.no_grad():
            before = encoder(some)
            change = encoder(Networks(rows, some.architecture, some.activations)) - before
        assert change.abs().max() > 0.05 * before.std()
