"""Encoders of graphs, all alike: symmetries ("Encoders of network weights", section 0), mixed batches, learning."""

import zlib
from dataclasses import replace
from functools import cache

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import encoders
from weightspace.encoders import (
    DNG,
    GMN,
    NGGNN,
    NGT,
    BidirectionalScaleGMN,
    DNGConfig,
    GMNConfig,
    NARFormer,
    NARFormerConfig,
    NARFormerDNG,
    NARFormerDNGConfig,
    NGGNNConfig,
    NGTConfig,
    Predictor,
    PredictorTraining,
    ProbeGen,
    ProbeGenConfig,
    ScaleGMN,
    ScaleGMNConfig,
    WeightEncoder,
)
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, Layout, Network, ViT, WildPark, to_json
from weightspace.networks.population import population_logits
from weightspace.views.architecture import Architecture, Networks
from weightspace.zoo import Zoo

PARK = WildPark(
    image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu", "gelu", "tanh"),
    skips=(None, None, 0),
)  # fmt: skip
NETWORKS: dict[str, Network] = {
    "mlp": MLP(hidden=(7, 6)),
    "cnn": CNN(channels=(4, 5), hidden=(6,)),  # the first linear layer reads flattened channels
    "cnn with norms": CNN(channels=(4, 5), batch_norm=True),
    "park": PARK,
    "vit": ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2),
}
SMALL = {
    DNG: DNGConfig(width=16, frequencies=8, readout=16),
    NGGNN: NGGNNConfig(width=12, frequencies=8),  # as many rounds as the deepest chain here has layers
    NGT: NGTConfig(width=16, edge_width=8, layers=2, heads=2, frequencies=8),
    ScaleGMN: ScaleGMNConfig(width=12),
    BidirectionalScaleGMN: ScaleGMNConfig(width=12),
    GMN: GMNConfig(width=12),
    ProbeGen: ProbeGenConfig(probes=8, latent=8, width=32, depth=2),
    NARFormerDNG: NARFormerDNGConfig(
        architecture=NARFormerConfig(width=24, heads=2, layers=1), weights=DNGConfig(width=16, frequencies=8)
    ),
}
by_name = pytest.mark.parametrize("encoder", SMALL, ids=lambda encoder: encoder.name)


@cache
def some_networks(name: str, count: int = 8) -> Networks:
    """Networks of different sizes of weights, in float64."""
    architecture = Architecture.of(NETWORKS[name])
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    sizes = torch.exp(torch.linspace(-0.7, 0.7, count, dtype=torch.float64))[:, None]
    rows = 0.3 * sizes * torch.randn(count, architecture.layout.parameters, generator=g, dtype=torch.float64)
    for tensor, place in architecture.layout.slices.items():
        if tensor.endswith("running_var"):
            rows[:, place] = rows[:, place].abs() + 0.1
    return Networks.of(rows, architecture)


def in_precision(some: Networks, dtype: torch.dtype) -> Networks:
    return Networks(some.rows.to(dtype), some.architecture, some.activations)


def made(encoder: type[WeightEncoder], training: list[Networks], outputs: int = 2, config=None) -> WeightEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = encoder(config or SMALL[encoder], [some.architecture for some in training], outputs)
    module.to(training[0].rows.dtype).eval()
    module.prepare(training)
    return module


def outputs_of(module: WeightEncoder, some: Networks) -> torch.Tensor:
    with torch.no_grad():
        return module(some)


def assert_equal_outputs(before: torch.Tensor, after: torch.Tensor) -> None:
    """Equal up to rounding, on the scale of the outputs and on that of what tells networks apart."""
    gap, double = (after - before).abs().amax(0), before.dtype == torch.float64
    assert (gap / before.abs().amax(0).clamp_min(1) < (1e-12 if double else 1e-5)).all()
    assert (gap < (1e-11 if double else 1e-4) * before.std(0)).all()  # false of a constant encoder


def shuffled(some: Networks) -> Networks:
    """Weights of each tensor in a random order, which is no symmetry."""
    rows, g = some.rows.clone(), torch.Generator().manual_seed(3)
    for place in some.architecture.layout.slices.values():
        rows[:, place] = rows[:, place][:, torch.randperm(place.stop - place.start, generator=g)]
    return Networks(rows, some.architecture, some.activations)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("cnn", torch.float32), *((name, torch.float64) for name in NETWORKS)],
    ids=str,
)
@by_name
def test_renumbered_units_leave_the_outputs_and_other_orders_do_not(encoder, name, dtype):
    some = in_precision(some_networks(name), dtype)
    permuted = some.permuted(torch.Generator().manual_seed(1))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    functions = [population_logits(NETWORKS[name], rows, images) for rows in (some.rows, permuted.rows)]
    assert not torch.equal(permuted.rows, some.rows)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(*functions, rtol=tolerance, atol=tolerance * float(functions[0].abs().max()))

    module = made(encoder, [some])
    before = outputs_of(module, some)
    assert_equal_outputs(before, outputs_of(module, permuted))
    if dtype == torch.float64:  # where a change of any size is far above rounding
        change = (outputs_of(module, shuffled(some)) - before).abs().amax(0)
        assert (change > 1e-4 * before.std(0)).all()


@pytest.mark.parametrize("encoder", [DNG, NGGNN, NGT, ScaleGMN], ids=lambda encoder: encoder.name)
def test_a_scale_for_each_tensor_undoes_the_units_of_tensors_and_keeps_symmetry(encoder):
    some = some_networks("mlp")
    layout = some.architecture.layout
    units = torch.cat([torch.full((spec.size,), 10.0**i) for i, spec in enumerate(layout.tensors)])
    units = units.to(some.rows.dtype)
    answers = []
    for rows in (some.rows, some.rows * units):
        networks = Networks(rows, some.architecture, some.activations)
        torch.manual_seed(0)
        module = encoder(replace(SMALL[encoder], by_tensor=True), [some.architecture], outputs=2).double().eval()
        module.prepare([networks])
        answers.append(module(networks))
        permuted = networks.permuted(torch.Generator().manual_seed(1))
        assert torch.allclose(module(permuted), answers[-1], rtol=1e-6, atol=1e-8)
    assert torch.allclose(*answers, rtol=1e-4, atol=1e-6)
    other = Architecture.of(MLP(hidden=(6, 6)))
    with pytest.raises(LayoutError, match="by_tensor=False"):
        module(Networks.of(torch.zeros(1, other.layout.parameters), other))
    both = [some.architecture, some_networks("cnn").architecture]
    with pytest.raises(LayoutError, match="one layout"):
        encoder(replace(SMALL[encoder], by_tensor=True), both, outputs=2)


def test_a_constant_encoder_fails_the_test():
    outputs = torch.ones(5, 2)
    with pytest.raises(AssertionError):
        assert_equal_outputs(outputs, outputs)


@by_name
def test_networks_of_several_architectures_do_not_see_each_other(encoder):
    bundles = [in_precision(some_networks(name), torch.float32) for name in NETWORKS]
    module = made(encoder, bundles)
    for some in bundles:
        together = outputs_of(module, some)
        assert together.shape == (len(some), 2)
        assert together.isfinite().all()
        torch.testing.assert_close(outputs_of(module, some[2:3]), together[2:3], rtol=1e-4, atol=1e-6)


@by_name
def test_a_gradient_reaches_every_parameter(encoder):
    some = in_precision(some_networks("cnn"), torch.float32)
    module = made(encoder, [some]).train()
    module(some).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["cnn with norms", "park", "vit"])
@pytest.mark.parametrize("encoder", [e for e in SMALL if e is not ProbeGen], ids=lambda encoder: encoder.name)
def test_every_tensor_is_read(encoder, name):
    some = some_networks(name)
    rows = some.rows.clone().requires_grad_(True)
    made(encoder, [some])(Networks(rows, some.architecture, some.activations)).sum().backward()
    unread = [tensor for tensor, place in some.architecture.layout.slices.items() if not rows.grad[:, place].all()]
    assert unread == []


@by_name
def test_activations_matter(encoder):
    """The same weights with another activation are another network."""
    some = in_precision(some_networks("mlp"), torch.float32)
    module = made(encoder, [some])
    tanh = Networks(some.rows, some.architecture, some.activations + 1)
    assert (outputs_of(module, tanh) - outputs_of(module, some)).abs().max() > 1e-4
    mixed = Networks(some.rows, some.architecture, torch.arange(len(some)) % 2)
    wanted = torch.where(mixed.activations[:, None] == 1, outputs_of(module, tanh), outputs_of(module, some))
    torch.testing.assert_close(outputs_of(module, mixed), wanted, rtol=1e-4, atol=1e-6)


def population(network: Network, count: int, prefix: str, seed: int = 0) -> Zoo:
    """Networks whose target is how large their weights are."""
    layout = Layout.of(network.build())
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 1, generator=g) * 2 - 1
    rows = 0.3 * torch.exp(size) * torch.randn(count, layout.parameters, generator=g)
    table = pl.DataFrame({
        "model": [f"{prefix}{i}" for i in range(count)],
        "step": [0] * count,
        "metric.test_accuracy": torch.sigmoid(3 * size[:, 0]).tolist(),
    })  # fmt: skip
    return Zoo.in_memory(rows, layout, table, {"network": to_json(network)})


def explained(fitted: Predictor, test: Zoo) -> float:
    true = test.table["metric.test_accuracy"].to_numpy()
    predicted = fitted.predict(test)["metric.test_accuracy"].to_numpy()
    return 1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum()


@by_name
def test_training_beats_a_constant_and_is_saved(encoder, tmp_path):
    zoo = population(MLP(image_shape=(1, 3, 3), classes=4, hidden=(6,)), 250, "m")
    rate = 4e-3 if encoder is NGT else 1e-2  # norms behind the sums of a transformer bear no more
    optimisation = PredictorTraining(epochs=14, learning_rate=rate, batch_size=32, accelerator="cpu")
    config = replace(SMALL[encoder], layers=2) if hasattr(SMALL[encoder], "layers") else SMALL[encoder]
    fitted = Predictor.fit(
        encoder, zoo.take(range(160)), validation=zoo.take(range(160, 190)), config=config, optimisation=optimisation,
        folder=tmp_path,
    )  # fmt: skip
    test = zoo.take(range(190, 250))
    assert explained(fitted, test) > 0.4
    loaded = encoders.load(tmp_path)
    assert torch.equal(loaded.outputs(test), fitted.outputs(test))
    assert loaded.config == config


def test_the_architecture_alone_tells_architectures_apart():
    names = ["mlp", "cnn", "cnn with norms", "park", "vit"]
    bundles = [in_precision(some_networks(name), torch.float32) for name in names]
    config = NARFormerConfig(width=24, heads=2, layers=1)
    module = made(NARFormer, bundles, outputs=1, config=config)
    found = [outputs_of(module, some) for some in bundles]
    assert all(torch.equal(some, some[:1].expand_as(some)) for some in found)  # whatever the weights
    values = torch.stack([some[0] for some in found])
    assert (values - values.T + torch.eye(len(values))).abs().min() > 1e-4


def unlike(network: Network, **changes) -> Networks:
    architecture = Architecture.of(replace(network, **changes))
    return Networks.of(torch.randn(2, architecture.layout.parameters), architecture)


@pytest.mark.parametrize("encoder", [DNG, ScaleGMN], ids=lambda encoder: encoder.name)
def test_networks_that_do_not_fit_are_refused(encoder):
    module = made(encoder, [unlike(PARK)])
    with pytest.raises(LayoutError, match="20 outputs and the encoder was made for 10"):
        module(unlike(PARK, classes=20))
    with pytest.raises(LayoutError, match="3 inputs and the encoder was made for 1"):
        module(unlike(PARK, image_shape=(3, 8, 8)))
    with pytest.raises(LayoutError, match="at most 5 x 5; set `kernel`"):
        module(unlike(PARK, kernels=(3, 7, 3)))
    with pytest.raises(LayoutError, match="places of each channel"):
        module(unlike(CNN(), classes=10))
    wider = replace(SMALL[encoder], kernel=7)
    assert made(encoder, [unlike(PARK)], config=wider)(unlike(PARK, kernels=(3, 7, 3))).shape == (2, 2)
    with pytest.raises(ConfigError, match="kernel must be at least 5"):
        made(encoder, [unlike(PARK)], config=replace(SMALL[encoder], kernel=3))


def test_every_encoder_of_graphs_is_registered():
    known = set(encoders.weight_encoders())
    assert {*SMALL, NARFormer} <= known
    assert all(issubclass(encoder, nn.Module) for encoder in known)
