"""Hyper-representations: published sizes, losses with known answers, views that are what they say, and the fit."""

import math

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import encoders, networks
from weightspace.encoders import HyperRepresentation, HyperRepresentationConfig, TrainingConfig
from weightspace.encoders.hyper_representation import HyperRepresentationModule, Norm, erased, layer_weights
from weightspace.encoders.hyper_representation_config import SIZES, size
from weightspace.encoders.transformer import nt_xent
from weightspace.errors import ConfigError, LayoutError, UnknownName
from weightspace.networks import MLP, Layout, PooledCNN
from weightspace.networks.population import population_logits
from weightspace.symmetry import chain_groups
from weightspace.views.neurons import LayerTokens
from weightspace.views.standardise import layer_of_parameter
from weightspace.zoo import Zoo

CNN_S = networks.by_name("cnn_s", (1, 28, 28), 10)
LAYOUT = Layout.of(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
TINY = {"width": 16, "heads": 2, "depth": 1, "feedforward": 24, "latent": 12, "projection": (1, 8, 6)}
SHORT = TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, accelerator="cpu")
KINDS = [
    {},
    {"tokens": "weight"},
    {"tokens": "flat"},
    {"tokens": "neuron_in_out"},
    {"compression": "average"},
    {"compression": "linear"},
    {"bottleneck": "linear"},
    {"bottleneck": "mlp"},
    {"decompression": "linear"},
    {"contrast_kind": "positive"},
    {"dropout": 0.2},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(count: int, layout: Layout = LAYOUT, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, layout.parameters, generator=generator(seed))


def zoo_of(rows: torch.Tensor, layout: Layout = LAYOUT) -> Zoo:
    table = pl.DataFrame({"model": [f"{i}" for i in range(len(rows))], "step": [1] * len(rows)})
    return Zoo.in_memory(rows, layout, table, {})


def fit(zoo: Zoo, optimisation: TrainingConfig = SHORT, folder=None, align: bool = False, **changes):
    config = HyperRepresentationConfig(**TINY | changes)
    return HyperRepresentation.fit(
        zoo, validation=zoo, config=config, optimisation=optimisation, folder=folder, align=align
    )


def module_of(layout: Layout = LAYOUT, **changes) -> HyperRepresentationModule:
    module = HyperRepresentationModule(HyperRepresentationConfig(**TINY | changes), layout, chain_groups(layout))
    module.reset(generator(1))
    return module


# --- sizes -----------------------------------------------------------------------------------------------------------


def counts(module: nn.Module) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}


def test_published_parameter_counts():
    """MNIST-SEED: about 8.9 M in the encoder, about 35 M in the decoder, most of them the map of 700 to 48 x 800."""
    layout = Layout.of(CNN_S.build())
    module = HyperRepresentationModule(size("mnist-seed"), layout, device="meta")
    found = counts(module)
    assert found["encoder"] == pytest.approx(8.9e6, rel=0.01)
    assert found["decoder"] == pytest.approx(35e6, rel=0.01)
    assert module.decoder.decompress.weight.numel() == 700 * 48 * 800
    assert found["head"] == 700 * 400 + 3 * 400 * 400 + 4 * 400 + 4 * 2 * 400 + 400 * 50 + 50 + 2 * 50


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_by_formula(name):
    network = (
        MLP(image_shape=(1, 4, 4), hidden=(5,), classes=4, bias=False) if "tetris" in name
        else PooledCNN() if name in ("mnist-hyp", "fashion-mnist-hyp", "svhn-hyp", "cifar10-hyp") else CNN_S
    )  # fmt: skip
    layout, c = Layout.of(network.build()), size(name)
    shapes = LayerTokens.of(layout).shapes
    assert layout.parameters == {MLP: 100, PooledCNN: 4970}.get(type(network), 2464)
    found = counts(HyperRepresentationModule(c, layout, device="meta"))
    tokens, values, d = sum(n for n, _ in shapes), sum(v for _, v in shapes), c.width
    block = 4 * (d * d + d) + 2 * d * c.feedforward + c.feedforward + d + 4 * d
    assert found["encoder"] == (
        values * d + len(shapes) * d + d + (tokens + 1) * d + c.depth * block + d * c.latent + c.latent
    )
    assert found["decoder"] == (
        (c.latent + 1) * tokens * d + tokens * d + c.depth * block + values * d + values
    )  # each layer's map has a bias


def test_the_default_decoder_is_cheap():
    module = module_of(Layout.of(CNN_S.build()))
    published = module_of(Layout.of(CNN_S.build()), decompression="linear")
    assert counts(published)["decoder"] - counts(module)["decoder"] == 47 * 13 * 16  # maps of the other 47 tokens


# --- losses ----------------------------------------------------------------------------------------------------------


def test_layer_wise_normalisation_is_the_mean_squared_error_of_layers_of_unit_deviation():
    rows = rows_of(400)
    layer = layer_of_parameter(LAYOUT)
    for i in (0, 1):
        part = rows[:, layer == i]
        rows[:, layer == i] = (part - part.mean()) / part.std(correction=0)
    weights = layer_weights(rows, LAYOUT, HyperRepresentationConfig())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["global_mean", "layer_mean"])
def test_predicting_the_mean_of_each_layer_costs_one(kind):
    """By `layer_mean` every layer costs one, so their sum is the number of layers."""
    layer = layer_of_parameter(LAYOUT)
    rows = rows_of(300) * torch.where(layer == 0, 0.01, 5.0) + torch.where(layer == 0, 3.0, -1.0)
    weights = layer_weights(rows, LAYOUT, HyperRepresentationConfig(loss_normalisation=kind))
    means = torch.stack([rows[:, layer == i].mean() for i in (0, 1)])[layer]
    loss = ((rows - means).square() @ weights).mean()
    assert float(loss) == pytest.approx(1.0 if kind == "global_mean" else 2.0, rel=1e-3)
    by_layer = torch.stack([((rows - means).square() * weights)[:, layer == i].sum(1).mean() for i in (0, 1)])
    shares = [36 / 57, 21 / 57] if kind == "global_mean" else [1.0, 1.0]
    torch.testing.assert_close(by_layer, torch.tensor(shares), rtol=1e-3, atol=0)


def test_without_normalisation_it_is_the_mean_squared_error_and_large_layers_rule():
    rows, other = rows_of(2, seed=1), rows_of(2, seed=2)
    weights = layer_weights(rows, LAYOUT, HyperRepresentationConfig(loss_normalisation="none"))
    torch.testing.assert_close(
        ((rows - other).square() @ weights).mean(), (rows - other).square().mean(), rtol=1e-5, atol=0
    )


def test_constant_layers_do_not_blow_up():
    weights = layer_weights(torch.ones(9, LAYOUT.parameters), LAYOUT, HyperRepresentationConfig())
    assert torch.allclose(weights, torch.full_like(weights, 1e8 / LAYOUT.parameters))


def test_nt_xent_of_identical_views_of_two_orthogonal_networks():
    views = torch.eye(2)
    assert float(nt_xent(views, views, 0.1)) == pytest.approx(-math.log(math.e**10 / (math.e**10 + 2)), rel=1e-3)
    assert float(nt_xent(views, views, 0.1)) == pytest.approx(9.08e-5, rel=1e-2)


def test_the_positive_contrast_attracts():
    module = module_of(contrast_kind="positive", erase=0.0)
    rows = rows_of(6)
    weights = layer_weights(rows, LAYOUT, module.config)
    same = module(rows.expand(2, -1, -1), rows.expand(2, -1, -1), weights)["contrast"]
    other = module(torch.stack([rows, -rows]), torch.stack([rows, -rows]), weights)["contrast"]
    assert float(same.detach()) == pytest.approx(0, abs=1e-6) and float(other.detach()) > 0.1


def test_loss_is_its_parts():
    module, rows = module_of(contrast=0.3), rows_of(8)
    views = torch.stack([rows, rows + 0.1])
    parts = module(views, views, layer_weights(rows, LAYOUT, module.config))
    wanted = 0.7 * parts["reconstruction"] + 0.3 * parts["contrast"]
    torch.testing.assert_close(parts["loss"], wanted, rtol=1e-6, atol=0)
    decoded = module.decode(module.encode(views.flatten(0, 1)))
    wanted = ((decoded - views.flatten(0, 1)).square() @ layer_weights(rows, LAYOUT, module.config)).mean()
    torch.testing.assert_close(parts["reconstruction"], wanted, rtol=1e-5, atol=1e-6)


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", KINDS, ids=str)
def test_every_parameter_gets_a_gradient_and_networks_are_alone(change):
    module, rows = module_of(**change), rows_of(8)
    views = torch.stack([rows, rows + 0.1 * rows_of(8, seed=3)])
    module(views, views, layer_weights(rows, LAYOUT, module.config))["loss"].backward()
    for name, parameter in module.named_parameters():
        # a bias before a batch normalisation moves nothing; keys' biases move all scores alike
        if not (name.startswith("head") and name.endswith("bias")):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    module.eval()
    changed = torch.cat([rows[:1], 7 * rows[1:]])
    for function in (module.encode, lambda some: module.decode(module.encode(some))):
        torch.testing.assert_close(function(changed)[0], function(rows)[0], rtol=1e-5, atol=1e-6)
    bounded = module.config.bottleneck == "tanh"
    assert module.decode(module.encode(rows)).shape == rows.shape
    with torch.no_grad():
        module.encoder.bottleneck[-1].weight.mul_(100)
        assert (module.encode(rows).abs().max() <= 1) == bounded


def test_norm_is_by_the_unbiased_deviation():
    x = torch.randn(3, 4, 5, generator=generator())
    wanted = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(Norm(5)(x), wanted, rtol=1e-5, atol=1e-6)


# --- views -----------------------------------------------------------------------------------------------------------


def test_erased_stretches():
    rows = erased(torch.ones(20_000, 200), 0.5, generator())
    zero = rows == 0
    hit = zero.any(1)
    assert abs(float(hit.float().mean()) - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    lengths = zero[hit].sum(1).float()
    assert lengths.min() >= 4 and lengths.max() <= 66
    assert abs(float(lengths.mean()) - 35) < 5 * 62 / math.sqrt(12 * 10_000)
    edges = zero[hit].float().diff(dim=1).abs().sum(1) + zero[hit][:, 0] + zero[hit][:, -1]
    assert (edges == 2).all()  # one stretch
    assert zero[:, 0].any() and zero[:, -1].any()
    assert torch.equal(erased(rows, 0.0, generator()), rows)


def encoder(layout: Layout = LAYOUT, **changes) -> HyperRepresentation:
    preparation = encoders.preparation.Preparation.fit(zoo_of(rows_of(4, layout), layout), align=False)
    return HyperRepresentation(HyperRepresentationConfig(**TINY | changes), preparation, {})


def test_permuted_views_are_the_same_functions():
    layout, images = Layout.of(CNN_S.build()), torch.randn(5, 1, 28, 28, generator=generator())
    rows = 0.1 * rows_of(6, layout)
    views, targets = encoder(layout, erase=0.0)._views(rows, chain_groups(layout), generator())
    assert torch.equal(views, targets)
    logits = population_logits(CNN_S, rows, images)
    for view in views:
        assert not torch.equal(view, rows)
        assert (population_logits(CNN_S, view, images) - logits).abs().max() < 1e-5
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize("denoise", [False, True])
def test_targets_are_the_views_or_what_they_were(denoise):
    rows = rows_of(200)
    views, targets = encoder(noise=0.3, denoise=denoise)._views(rows, (), generator())
    assert torch.equal(targets, rows.expand(2, -1, -1) if denoise else views)
    assert not torch.equal(views, targets) or not denoise


@pytest.mark.parametrize("multiplicative", [False, True])
def test_noise(multiplicative):
    rows = rows_of(2000) + 2
    views, _ = encoder(noise=0.3, multiplicative_noise=multiplicative, erase=0.0)._views(rows, (), generator())
    noise = (views - rows) / (rows if multiplicative else 1)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.02


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_the_contract_of_autoencoders():
    zoo = zoo_of(rows_of(16))
    fitted = fit(zoo)
    latents = fitted.latents(zoo)
    assert latents.shape == (16, 1, 12) and latents.abs().max() < 1
    assert fitted.decode(latents).shape == (16, LAYOUT.parameters)
    assert torch.equal(fitted.reconstruct(zoo).weights(), fitted.decode(latents))
    for pooling in ("mean", "sequence"):
        assert torch.equal(fitted.embed(zoo, pooling), latents[:, 0])
    assert fitted.embed(zoo, "layers").shape == (16, 2 * 2 * 16)
    assert torch.equal(fitted.embed(zoo, "layers")[:, :32], fitted.embed(zoo, "layer_means"))
    assert isinstance(fitted, encoders.Autoencoder) and fitted.preparation.reference is None
    other = Layout.of(nn.Linear(3, 2))
    with pytest.raises(LayoutError, match="the zoo has 8 parameters"):
        fitted.latents(zoo_of(rows_of(2, other), other))
    with pytest.raises(LayoutError, match="the zoo has 8 parameters"):
        fitted.decode(latents, other)
    with pytest.raises(LayoutError, match="the zoo has 8 parameters"):
        HyperRepresentation.fit([zoo, zoo_of(rows_of(2, other), other)], validation=zoo, optimisation=SHORT)


def test_equal_seeds_equal_fits_and_another_seed_another():
    zoo = zoo_of(rows_of(16))
    first = fit(zoo)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # without dropout the global generator does not matter
        again = fit(zoo)
    assert torch.equal(first.latents(zoo), again.latents(zoo))
    seeded = TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, accelerator="cpu", seed=1)
    assert not torch.equal(first.latents(zoo), fit(zoo, seeded).latents(zoo))


@pytest.mark.parametrize(
    "change",
    [
        *KINDS[1:],
        {"contrast": 0.9},
        {"temperature": 1.0},
        {"loss_normalisation": "none", "standardise": False},
        {"loss_normalisation": "layer_mean"},
        {"permute": False},
        {"erase": 0.0},
        {"noise": 0.2},
        {"noise": 0.2, "multiplicative_noise": True},
        {"denoise": True},
        {"standardise": False},
        {"align": True},
    ],
    ids=str,
)
def test_options_change_the_fit(change, base):
    zoo, fitted = base
    other = fit(zoo, TrainingConfig(epochs=1, batch_size=8, learning_rate=3e-3, accelerator="cpu"), **change)
    assert not torch.allclose(fitted.latents(zoo), other.latents(zoo), atol=1e-6)


@pytest.fixture(scope="module")
def base():
    zoo = zoo_of(rows_of(16))
    return zoo, fit(zoo, TrainingConfig(epochs=1, batch_size=8, learning_rate=3e-3, accelerator="cpu"))


@pytest.mark.parametrize("change", [{}, {"tokens": "neuron_in_out", "standardise": False}], ids=str)
def test_what_is_read_is_what_was_saved(tmp_path, change):
    zoo = zoo_of(rows_of(16))
    fitted = fit(zoo, folder=tmp_path, **change)
    again = encoders.load_autoencoder(tmp_path)
    assert type(again) is HyperRepresentation and again.config == fitted.config
    assert torch.equal(again.latents(zoo), fitted.latents(zoo))
    assert torch.equal(again.decode(again.latents(zoo)), fitted.decode(fitted.latents(zoo)))
    assert again.header["fit"]["zoo"] == zoo.digest


def test_it_can_learn_four_networks():
    zoo = zoo_of(rows_of(4))
    optimisation = TrainingConfig(epochs=10, batch_size=4, learning_rate=3e-3, accelerator="cpu")
    fitted = fit(
        zoo.take([0, 1, 2, 3] * 25), optimisation, contrast=0.0, erase=0.0, permute=False, width=32, feedforward=64
    )
    error = (fitted.reconstruct(zoo).weights() - zoo.weights()).square().mean() / zoo.weights().var()
    assert float(error) < 0.02


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 18, "heads": 4}, "width 18 must be a multiple of the 4 heads"),
        ({"contrast": 1.0}, "contrast"),
        ({"erase": 1.5}, "erase"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_cannot_be(wrong, says):
    with pytest.raises(ConfigError, match=says):
        HyperRepresentationConfig(**wrong)


def test_unknown_size():
    with pytest.raises(UnknownName, match="did you mean 'mnist-seed'"):
        size("mnist-sed")
