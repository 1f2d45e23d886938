"""The hypernetwork: published parameter counts, units that follow their codes, variances at the start."""

import math

import pytest
import torch

from weightspace.errors import ConfigError, UnknownName
from weightspace.generators import HypernetworkConfig
from weightspace.generators.gauge import symmetry_of_network
from weightspace.generators.hypernetwork import Hypernetwork
from weightspace.generators.units import unit_layers
from weightspace.networks import CNN, MLP, Layout, ResNet, ViT, WildPark
from weightspace.symmetry import chain_groups, gather_index

MNIST = CNN(image_shape=(1, 28, 28), channels=(32, 16), kernels=(5, 5), pools=(2, 2), hidden=(8,))
RESIDUAL = ResNet(image_shape=(1, 8, 8), widths=(4, 6), blocks=1)
SKIP = WildPark(
    image_shape=(1, 8, 8), channels=(4, 5, 6), kernels=(3, 3, 3), activations=("relu",) * 3, skips=(None, None, 0)
)
TRANSFORMER = ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2)
PUBLISHED = {
    "latent": 300,
    "extractor": (300, 300),
    "unit_code": 15,
    "layer_code": 15,
    "generators": ((40, 40), (100, 100), (100, 100), (60, 60)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(network, **changes) -> Hypernetwork:
    module = Hypernetwork(symmetry_of_network(network), HypernetworkConfig(**changes))
    module.reset(seeded())
    return module


@pytest.mark.parametrize(("share", "count"), [("unit", 633_640), ("none", 6_186_600)])
def test_published_parameter_counts(share, count):
    """Section 3, and the multi-layer perceptron without weight generators."""
    assert Layout.of(MNIST.build()).parameters == 20_018
    module = made(MNIST, share=share, **PUBLISHED)
    assert sum(p.numel() for p in module.parameters()) == count
    assert module.extractor[0].in_features == 300
    if share == "unit":
        assert module.extractor[-1].out_features == 855 == 15 * (32 + 16 + 8 + 1)
        assert [sum(p.numel() for p in part.parameters()) for part in module.generators] == [
            3400,
            92_000,
            90_400,
            10_140,
        ]


def test_default_widths_follow_the_size_of_a_unit():
    widths = [part[0].out_features for part in made(MNIST, generators=()).generators]
    assert widths == [math.ceil(12 * math.sqrt(size)) for size in (26, 801, 785, 90 / 10)]


@pytest.mark.parametrize("share", ["unit", "layer", "chunk", "none"])
@pytest.mark.parametrize("network", [MLP(), CNN(batch_norm=True), MLP(hidden=(5, 4), bias=False), RESIDUAL])
def test_every_parameter_matters_and_every_weight_is_made(network, share):
    module = made(network, share=share)
    rows = module(torch.randn(8, 32, generator=seeded(1)))
    rows.square().sum().backward()
    # behind an activation and a norm some gradients are tiny, none is missing
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    layout = Layout.of(network.build())
    varies = rows.std(0) > 0
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        running = spec.role in ("running_mean", "running_var")
        assert varies[place].any() != running and varies[place].all() != running
        if running:
            assert (rows[:, place] == float(spec.role == "running_var")).all()


def test_permuted_codes_are_permuted_units():
    network = MLP(hidden=(6, 5))
    layout = Layout.of(network.build())
    module = made(network).eval()
    codes = torch.randn(3, 6 * 8 + 5 * 8 + 16, generator=seeded(2))
    rows = module.rows(codes)
    order = torch.randperm(6, generator=seeded(3))
    permuted = torch.cat([codes[:, :48].reshape(3, 6, 8)[:, order].flatten(1), codes[:, 48:]], dim=1)
    group = chain_groups(layout)[0]
    own = [place for place in group.places if place.tensor.startswith("fc1")]
    index = gather_index(layout, [type(group)("fc1", 6, tuple(own))], [order.expand(3, -1)])
    torch.testing.assert_close(module.rows(permuted), rows.gather(1, index), rtol=0, atol=1e-6)
    whole = made(network, share="layer").eval()
    codes = torch.randn(2, 3 * 16, generator=seeded(2))
    assert len(whole.rows(codes).flatten()) == 2 * layout.parameters


def test_unit_major_values_reach_their_places():
    """A weight generator that writes 0, 1, 2, ... shows which value of a unit goes where."""
    network = MLP(image_shape=(1, 1, 3), hidden=(2,), classes=2)
    module = made(network, generators=((4,),)).eval()
    for generator in module.generators:
        last = generator[-1]
        last.weight.data = torch.arange(last.out_features, dtype=torch.float32)[:, None].expand_as(last.weight).clone()
    module.scale.fill_(1.0)
    row = module.rows(torch.ones(1, 2 * 8 + 16))
    state = Layout.of(network.build()).unflatten(row[0])
    unit = state["fc1.bias"] / 3  # the value behind three weights
    torch.testing.assert_close(state["fc1.weight"], unit[:, None] * torch.arange(3.0))
    step = state["fc2.weight"][0, 1]  # two outputs of two weights and a bias
    torch.testing.assert_close(state["fc2.weight"], step * torch.tensor([[0.0, 1.0], [3.0, 4.0]]))
    torch.testing.assert_close(state["fc2.bias"], step * torch.tensor([2.0, 5.0]))


def test_generated_weights_start_with_the_variance_of_their_layer():
    """He's 2 / fan in, 1 / fan in for the last layer; units share generators, so that it varies by 15 %."""
    module = made(MNIST, **PUBLISHED)
    layout = Layout.of(MNIST.build())
    state = layout.unflatten(module(2 * torch.rand(64, 300, generator=seeded(4)) - 1))
    for name, gain in (("conv1", 2), ("conv2", 2), ("fc1", 2), ("fc2", 1)):
        weight = state[f"{name}.weight"]
        assert float(weight.detach().var()) * weight[0, 0].numel() == pytest.approx(gain, rel=0.3)


def test_chunked_weights_start_with_the_variance_of_their_layer():
    """Whatever layers a chunk belongs to; the embedding of a chunk is shared by its values, so it varies more."""
    module = made(MNIST, share="chunk", chunk=50, generators=((200, 200),))
    layout = Layout.of(MNIST.build())
    state = layout.unflatten(module(2 * torch.rand(64, 32, generator=seeded(4)) - 1))
    for name, gain in (("conv1", 2), ("conv2", 2), ("fc1", 2), ("fc2", 1)):
        weight = state[f"{name}.weight"]
        assert float(weight.detach().var()) * weight[0, 0].numel() == pytest.approx(gain, rel=0.3)


def test_chunks_have_few_parameters():
    """Embeddings, and a network from latent and embedding to a chunk: 20 018 values are 201 chunks of 100."""
    module = made(MNIST, share="chunk", chunk=100, chunk_embedding=8, generators=((50,),))
    assert sum(p.numel() for p in module.parameters()) == 201 * 8 + (32 + 8) * 50 + 2 * 50 + 50 * 100
    row = module.eval()(torch.zeros(1, 32))
    assert row.shape == (1, 20_018) and row.unique().numel() > 20_000 - 100  # no chunk repeats another


def test_units_of_any_network_own_every_value_once():
    for network in (MLP(), CNN(batch_norm=True), RESIDUAL, TRANSFORMER, SKIP):
        symmetry = symmetry_of_network(network)
        layers = unit_layers(symmetry)
        owned = torch.cat([layer.places.flatten() for layer in layers]).sort().values
        generated = [spec for spec in symmetry.layout.tensors if "running" not in spec.role]
        expected = [torch.arange(symmetry.layout.slices[s.name].start, symmetry.layout.slices[s.name].stop)
                    for s in generated]  # fmt: skip
        assert torch.equal(owned, torch.cat(expected))
        for layer in layers:
            spec = symmetry.layout.by_name[layer.name]
            free = {(place.tensor, place.axis) for group in symmetry.groups for place in group.places}
            assert layer.alike == ((layer.name, spec.output_axis) in free and spec.input_axis is not None)


def test_units_of_a_residual_network_have_their_norms():
    layers = {layer.name: layer for layer in unit_layers(symmetry_of_network(RESIDUAL))}
    slices = Layout.of(RESIDUAL.build()).slices
    for conv, norm in (
        ("conv1", "bn1"),
        ("layer1.0.conv2", "layer1.0.bn2"),
        ("layer2.0.downsample.0", "layer2.0.downsample.1"),
    ):
        layer = layers[f"{conv}.weight"]
        for column, role in ((-2, "weight"), (-1, "bias")):
            place = slices[f"{norm}.{role}"]
            assert layer.alike and torch.equal(layer.places[:, column], torch.arange(place.start, place.stop))
    assert not layers["fc.weight"].alike and layers["fc.weight"].variance == pytest.approx(1 / 6)
    assert layers["layer2.0.conv1.weight"].variance == pytest.approx(2 / (4 * 9))


def test_a_network_does_not_depend_on_its_companions():
    module = made(MLP()).eval()
    latents = torch.randn(6, 32, generator=seeded(5))
    torch.testing.assert_close(module(latents)[:2], module(latents[:2]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module(latents[2:3]), module(latents)[2:3], rtol=1e-5, atol=1e-6)
    assert torch.equal(module(latents), module(latents))


def test_bad_settings_are_one_sentence():
    with pytest.raises((UnknownName, TypeError), match="layer"):
        HypernetworkConfig(share="layers")
    with pytest.raises(ConfigError, match="at least 1"):
        HypernetworkConfig(extractor=(0,))
    with pytest.raises(ConfigError, match="3 entries, the network 2 layers"):
        made(MLP(), generators=((8,), (8,), (8,)))
