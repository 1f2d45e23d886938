"""ScaleGMN: scales and signs of units leave its outputs where they leave the function, and only there."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.encoders import DNG, BidirectionalScaleGMN, DNGConfig, ScaleGMN, ScaleGMNConfig, WeightEncoder
from weightspace.encoders.scale_gmn import node_kinds
from weightspace.errors import ConfigError
from weightspace.networks import CNN, MLP, SIREN, Layout, Network, PooledCNN, ViT, WildPark
from weightspace.symmetry import ScaleGroup, apply_scales, chain_scales, random_scales, symmetry_of
from weightspace.views.architecture import Architecture, Networks, activation_number

PARK = WildPark(
    image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 3, 3), activations=("relu", "leaky_relu", "relu"),
    skips=(None, None, 0),
)  # fmt: skip
VIT = ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2, activation="relu")
POOLED = PooledCNN(image_shape=(1, 8, 8), channels=(4, 4), kernels=(3, 3), strides=(1, 1))
NETWORKS: dict[str, Network] = {
    "relu": MLP(hidden=(6, 5)),
    "tanh": MLP(hidden=(6, 5), activation="tanh"),
    "cnn": CNN(channels=(4, 5), hidden=(6,)),
    "pooled tanh": replace(POOLED, activation="tanh"),
    "siren": SIREN(hidden=(6, 5)),
    "park": PARK,
    "vit": VIT,
}
SMALL = ScaleGMNConfig(width=12, layers=3)
both = pytest.mark.parametrize("encoder", [ScaleGMN, BidirectionalScaleGMN], ids=lambda encoder: encoder.name)


@cache
def scales_of(network: Network) -> list[ScaleGroup]:
    """Scales of hidden units that are no matter of the encoder's own bookkeeping."""
    layout = Layout.of(network.build())
    if isinstance(network, WildPark | ViT):
        found = symmetry_of(network.build(), torch.zeros(2, *network.image_shape)).scales
        return [group for group in found if group.exact and isinstance(network, WildPark) | ("mlp" in group.name)]
    kind = "positive" if network.activation == "relu" else "sign"
    return [replace(group, kind=kind) for group in chain_scales(layout, activation="relu")]


def some_networks(network: Network, dtype: torch.dtype = torch.float64, count: int = 6) -> Networks:
    architecture = Architecture.of(network)
    g = torch.Generator().manual_seed(0)
    rows = 0.3 * torch.randn(count, architecture.layout.parameters, generator=g, dtype=torch.float64)
    return Networks.of(rows.to(dtype), architecture)


def scaled(some: Networks, groups: list[ScaleGroup]) -> Networks:
    scales = random_scales(groups, len(some), torch.Generator().manual_seed(1))
    rows = apply_scales(some.rows, some.architecture.layout, groups, scales)
    assert not torch.equal(rows, some.rows)
    return Networks(rows, some.architecture, some.activations)


def answers(network: Network, rows: Tensor) -> Tensor:
    inputs = torch.rand(3, *([2] if isinstance(network, SIREN) else network.image_shape), dtype=rows.dtype)
    module, layout = network.build().eval(), Layout.of(network.build())
    run = vmap(lambda state: functional_call(module, state, (inputs,)))
    return run(layout.unflatten(rows))


def made(encoder: type[WeightEncoder], some: Networks, config=SMALL) -> WeightEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = encoder(config, [some.architecture], 2).to(some.rows.dtype).eval()
    module.prepare([some])
    return module.requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
@both
def test_scales_and_signs_that_leave_the_function_leave_the_outputs(encoder, name):
    network = NETWORKS[name]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        some = some_networks(network, dtype)
        moved = scaled(some, scales_of(network))
        torch.manual_seed(0)
        before = answers(network, some.rows)
        torch.manual_seed(0)
        assert (answers(network, moved.rows) - before).abs().max() < 10 * tolerance * before.abs().max()
        module = made(encoder, some)
        before, after = module(some), module(moved)
        assert ((after - before).abs().amax(0) < 10 * tolerance * before.std(0)).all()


@both
def test_scales_that_change_the_function_change_the_outputs(encoder):
    some = some_networks(MLP(hidden=(6, 5), activation="gelu"))
    moved = scaled(some, chain_scales(some.architecture.layout, activation="relu"))
    module = made(encoder, some)
    assert ((module(moved) - module(some)).abs().amax(0) > 0.01 * module(some).std(0)).all()
    # incoming weights alone, in a network that could be scaled
    some = some_networks(MLP(hidden=(6, 5)))
    rows = some.rows.clone()
    rows[:, some.architecture.layout.slices["fc1.weight"]] *= 2
    module = made(encoder, some)
    changed = module(Networks(rows, some.architecture, some.activations)) - module(some)
    assert (changed.abs().amax(0) > 0.01 * module(some).std(0)).all()


def test_scales_move_encoders_that_know_permutations_only():
    some = some_networks(MLP(hidden=(6, 5)))
    module = made(DNG, some, DNGConfig(width=16))
    moved = scaled(some, chain_scales(some.architecture.layout, activation="relu"))
    assert ((module(moved) - module(some)).abs().amax(0) > 0.1 * module(some).std(0)).all()


@both
def test_each_network_has_the_symmetry_of_its_own_activation(encoder):
    some = some_networks(MLP(hidden=(6, 5)))
    numbers = torch.tensor([activation_number(name) for name in ("relu", "tanh", "gelu") * 2])
    mixed = Networks(some.rows, some.architecture, numbers)
    module = made(encoder, some)
    for number in numbers.unique():
        alone = module(mixed[numbers == number])
        torch.testing.assert_close(module(mixed)[numbers == number], alone, rtol=1e-12, atol=1e-13)
    groups = chain_scales(some.architecture.layout, activation="relu")
    gap = (module(scaled(mixed, groups)) - module(mixed)).abs().amax(1)
    assert (gap > 1e-6).tolist() == [False, True, True] * 2
    signs = [replace(group, kind="sign") for group in groups]
    gap = (module(scaled(mixed, signs)) - module(mixed)).abs().amax(1)
    assert (gap > 1e-6).tolist() == [True, False, True] * 2


def test_units_that_have_no_factor_of_their_own():
    relu, tanh = activation_number("relu"), activation_number("tanh")
    assert node_kinds(Architecture.of(CNN(hidden=(6,))), tanh) == ("none", "none", "none", "sign", "none")
    assert node_kinds(Architecture.of(CNN(pools=(1, 1))), tanh) == ("none", "sign", "sign", "none")
    assert set(node_kinds(Architecture.of(CNN(batch_norm=True)), relu)) == {"none"}
    assert "positive" in node_kinds(Architecture.of(VIT), relu)
    mixed = replace(PARK, activations=("relu", "relu", "tanh"))  # the first and the third write to the same units
    assert node_kinds(Architecture.of(mixed), 0) == ("none", "none", "positive", "none")
    assert node_kinds(Architecture.of_layout(Layout.of(MLP().build())), tanh) == ("none", "sign", "none")


@both
def test_tiny_and_missing_weights_are_read(encoder):
    some = some_networks(CNN(channels=(4, 5)), torch.float32)
    rows = some.rows.clone()
    rows[0] *= 1e-15
    rows[1, ::3] = 0
    rows[2] = 0
    module = made(encoder, some).requires_grad_(True).train()
    outputs = module(Networks(rows, some.architecture, some.activations))
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_readouts():
    some = some_networks(MLP(hidden=(6,)))
    whole, outputs = (made(ScaleGMN, some, replace(SMALL, readout=name)) for name in ("graph", "outputs"))
    assert whole.encode(some).shape == (6, 36)
    assert outputs.encode(some).shape == (6, 24)
    with pytest.raises(ConfigError, match="at least 1"):
        replace(SMALL, layers=0)
