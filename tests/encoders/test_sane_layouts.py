"""SANE on several architectures at once and on others; dense tokens, normalised and behavioural losses, its sizes."""

import polars as pl
import pytest
import torch

from weightspace import encoders
from weightspace.encoders import SANE, SANEConfig, TrainingConfig
from weightspace.encoders.behaviour import Behaviour, logits
from weightspace.encoders.sane import SANEModule
from weightspace.encoders.sane_config import SIZES, several, size, small
from weightspace.encoders.transformer import sinusoids
from weightspace.errors import ConfigError, DatasetError, LayoutError, UnknownName, ZooError
from weightspace.networks import CNN, MLP, Layout, Network, from_json, to_json
from weightspace.networks.population import population_logits, with_activation
from weightspace.views.tokens import LAYER_CODES, TokenView
from weightspace.zoo import Zoo

SEEN = [MLP(hidden=(8,)), CNN(channels=(4, 5))]
WIDER, DEEPER = MLP(hidden=(13,)), MLP(hidden=(8, 8))
SHORT = TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, accelerator="cpu")
IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(4))
SIZE = {
    "token_width": 20, "max_positions": None, "window": 16, "halo": 4, "width": 32, "heads": 2, "depth": 1,
    "latent": 16, "magnitudes": True, "scale": "fan_in", "normalised_loss": True, "dense": True, "layer_types": True,
}  # fmt: skip


def zoo_of(network: Network, count: int = 16, seed: int = 0, name: str = "") -> Zoo:
    """Initialised networks, two activations in turns."""
    g = torch.Generator().manual_seed(seed)
    layout = Layout.of(network.build())
    rows = torch.randn(count, layout.parameters, generator=g) * 0.2
    table = pl.DataFrame(
        {
            "model": [f"{name}{i}" for i in range(count)],
            "step": [1] * count,
            "config.activation": [("relu", "tanh")[i % 2] for i in range(count)],
        }
    )
    return Zoo.in_memory(rows, layout, table, {"name": name, "network": to_json(network)})


def fit(zoos, folder=None, optimisation: TrainingConfig = SHORT, align: bool = True, images=None, **changes) -> SANE:
    config = SANEConfig(**SIZE | changes)
    return SANE.fit(
        zoos, validation=zoos, config=config, optimisation=optimisation, folder=folder, align=align, images=images
    )


@pytest.fixture(scope="module")
def zoos() -> list[Zoo]:
    return [zoo_of(network, 24 - 8 * i, i, f"z{i}-") for i, network in enumerate(SEEN)]


@pytest.fixture(scope="module")
def fitted(zoos) -> SANE:
    return fit(zoos)


# --- several layouts -------------------------------------------------------------------------------------------------


def test_one_model_reads_and_writes_all_architectures(fitted, zoos):
    for zoo in zoos:
        latents = fitted.latents(zoo)
        assert latents.shape == (len(zoo), TokenView(zoo.layout, 20, dense=True).count, 16)
        assert torch.equal(fitted.decode(latents, zoo.layout), fitted.reconstruct(zoo).weights())
        assert fitted.embed(zoo).shape == (len(zoo), 16)
        assert fitted.preparation_of(zoo.layout).layout == zoo.layout
    assert fitted.preparation.layout == zoos[0].layout
    assert torch.equal(fitted.decode(fitted.latents(zoos[0])), fitted.reconstruct(zoos[0]).weights())


@pytest.mark.parametrize("network", [WIDER, DEEPER, CNN(channels=(4, 5), hidden=(7,))], ids=str)
def test_architectures_that_it_has_never_seen(fitted, network):
    zoo = zoo_of(network, 6)
    latents = fitted.latents(zoo)
    rows = fitted.decode(latents, zoo.layout)
    assert rows.shape == (6, zoo.layout.parameters) and rows.isfinite().all()
    assert fitted.embed(zoo, "layers").shape[0] == 6
    with pytest.raises(LayoutError, match=r"sequences of \d+ tokens, .* give their layout"):
        fitted.decode(latents[:, 1:], zoo.layout)


def test_training_on_two_architectures_helps_a_third(zoos):
    """Reconstruction of a wider network gets better, so what is learned is not of one layout."""
    unseen = zoo_of(WIDER, 16, 9)
    errors = []
    for epochs in (1, 8):
        optimisation = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=5e-3, accelerator="cpu")
        made = fit([zoo.take([*range(16)] * 2) for zoo in zoos], optimisation=optimisation, contrast=0.0)
        errors.append(float((made.reconstruct(unseen).weights() - unseen.weights()).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_an_adapted_encoder_is_one_of_the_other_layout(fitted):
    zoo = zoo_of(WIDER, 12)
    other = fitted.adapted(zoo)
    assert other.preparation.layout == zoo.layout and other.module is fitted.module
    assert torch.equal(other.preparation.aligned(zoo).sort(1).values, zoo.weights().sort(1).values)
    assert not torch.equal(other.preparation.aligned(zoo), zoo.weights())
    assert torch.equal(other.decode(other.latents(zoo)), other.reconstruct(zoo).weights())
    plain = fitted.adapted(zoo, align=False)
    assert torch.equal(plain.latents(zoo), fitted.latents(zoo))
    before, after = (population_logits(WIDER, rows, IMAGES) for rows in (zoo.weights(), other.preparation.aligned(zoo)))
    assert (before[::2] - after[::2]).abs().max() < 1e-4  # the networks with the activation of WIDER
    assert from_json(other.header["network"]) == WIDER and other.header["fit"] == fitted.header["fit"]


def test_a_zoo_of_several_layouts_is_several_zoos(fitted, zoos):
    mixed = Zoo.concat(zoos)
    optimisation = TrainingConfig(epochs=1, batch_size=8, accelerator="cpu")
    again = fit(mixed, optimisation=optimisation)
    assert {found.layout.digest for found in again.preparations} == {zoo.layout.digest for zoo in zoos}
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(1))
    together = fitted.embed(mixed.take(order))
    alone = torch.cat([fitted.embed(zoo) for zoo in zoos])[order]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    for pooling in ("sequence", "layers", "layer_means"):
        with pytest.raises(LayoutError, match="of 2 layouts differ in size; take 'mean'"):
            fitted.embed(mixed, pooling)


def test_batches_have_one_layout_and_layouts_come_in_proportion(zoos, monkeypatch):
    seen = []
    forward = SANEModule.forward

    def counted(self, views, positions, real, behaviour=None):
        seen.append((self.training, views.shape[1], int(real.sum())))
        return forward(self, views, positions, real, behaviour)

    monkeypatch.setattr(SANEModule, "forward", counted)
    fit(zoos, window=128, halo=0, optimisation=TrainingConfig(epochs=3, batch_size=8, accelerator="cpu"))
    training = [parameters for training, size, parameters in seen if training and size == 8]
    wanted = {zoos[0].layout.parameters: 3 * 3, zoos[1].layout.parameters: 2 * 3}  # 24 and 16 networks, three epochs
    assert {p: training.count(p) for p in set(training)} == wanted
    epochs = [training[i : i + 5] for i in (0, 5, 10)]
    assert len({tuple(epoch) for epoch in epochs}) > 1  # turns at random


def test_several_zoos_of_one_layout_share_statistics_and_reference():
    one, other = zoo_of(SEEN[0], 16, 0, "a"), zoo_of(SEEN[0], 16, 1, "b")
    config = small(one.layout)
    made = SANE.fit([one, other], validation=one, config=config, optimisation=SHORT)
    rows = torch.cat([made.preparation.apply(zoo) for zoo in (one, other)])
    first = slice(0, 8 * 65)  # weights and biases of the first layer
    assert abs(float(rows[:, first].mean())) < 1e-5 and len(made.preparations) == 1
    assert made.header["fit"]["checkpoints"] == 32
    assert made.header["fit"]["zoo"] == f"{one.digest}+{other.digest}"


def test_equal_seeds_equal_fits(fitted, zoos):
    again = fit(zoos)
    assert all(torch.equal(v, again.module.state_dict()[k]) for k, v in fitted.module.state_dict().items())


def test_what_is_read_is_what_was_saved(fitted, zoos, tmp_path):
    fitted.save_pretrained(tmp_path / "one")
    again = encoders.load_autoencoder(tmp_path / "one")
    assert again.config == fitted.config and again.preparation.shared == fitted.preparation.shared
    for zoo in [*zoos, zoo_of(WIDER, 4)]:
        assert torch.equal(again.latents(zoo), fitted.latents(zoo))
    assert again.groups_of(zoos[1].layout) == fitted.groups_of(zoos[1].layout)
    assert again.adapted(zoo_of(DEEPER, 6)).preparation.reference is not None


def test_what_one_layout_only_can_have(zoos):
    with pytest.raises(ConfigError, match="the zoos have 2 layouts, and statistics of layers exist for one alone"):
        fit(zoos, scale="layer")
    made = fit(zoos[0], scale="layer")
    for call in (made.latents, made.adapted):
        with pytest.raises(LayoutError, match="choose a zoo of the same architecture"):
            call(zoos[1])
    with pytest.raises(ZooError, match="none"):
        SANE.fit([], validation=zoos, optimisation=SHORT)


def test_without_alignment(zoos):
    made = fit(zoos[0], align=False, scale="layer")
    assert made.preparation.reference is None
    assert torch.equal(made.preparation.aligned(zoos[0]), zoos[0].weights())
    aligned = fit(zoos[0], scale="layer")
    assert not torch.equal(aligned.module.token_in.weight, made.module.token_in.weight)


@pytest.mark.parametrize(
    "change",
    [
        {"dense": False},
        {"layer_types": False},
        {"normalised_loss": False},
        {"scale": "global"},
        {"max_positions": (200, 10, 200)},
    ],
    ids=str,
)
def test_options_change_the_fit(fitted, zoos, change):
    other = fit(zoos, **change)
    assert not torch.allclose(fitted.module.token_in.weight, other.module.token_in.weight)


def test_layer_means_are_the_means_of_each_layers_latents(fitted, zoos):
    zoo = zoos[0]
    latents, layer = fitted.latents(zoo), TokenView(zoo.layout, 20, dense=True).positions[:, 1]
    wanted = torch.cat([latents[:, layer == i].mean(1) for i in layer.unique()], dim=1)
    torch.testing.assert_close(fitted.embed(zoo, "layer_means"), wanted, rtol=1e-4, atol=1e-5)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_sinusoids_tell_numbers_apart_however_large():
    numbers = torch.tensor([0, 1, 2, 50, 53_523, 53_524])
    waves = sinusoids(numbers, 64)
    assert waves.shape == (6, 64) and waves.abs().max() <= 1
    apart = torch.cdist(waves, waves) + 9 * torch.eye(6)
    assert apart.min() > 0.5
    torch.testing.assert_close(waves[3, 1], torch.sin(50 * torch.tensor(10_000 ** (-2 / 64))), rtol=1e-4, atol=1e-4)


def test_normalised_loss_divides_by_the_deviation_of_real_weights():
    module = SANEModule(SANEConfig(**SIZE | {"normalised_loss": True, "contrast": 0.0}))
    plain = SANEModule(SANEConfig(**SIZE | {"normalised_loss": False, "contrast": 0.0}))
    plain.load_state_dict(module.state_dict())
    real = torch.rand(16, 20) < 0.7
    views = torch.where(real, 0.3 * torch.randn(2, 5, 16, 20) + 1, 0.0)
    positions = torch.cat([torch.arange(16)[:, None].expand(-1, 3), torch.zeros(16, 1, dtype=torch.int64)], 1)
    deviation = views.flatten(0, 1)[:, real].std(correction=0) + 1e-4
    found, wanted = (some(views, positions, real)["reconstruction"] for some in (module, plain))
    torch.testing.assert_close(found, wanted / deviation**2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    c = size(name)
    module = SANEModule(c, device="meta")
    found = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.head.parameters())
    d, w, z = c.width, c.token_width, c.latent
    block = 4 * d * d + 8 * d * d + 2 * d  # attention, MLP, two norms; no biases
    positions = 3 * (d // 2) * d if c.max_positions is None else sum(c.max_positions) * d // 2
    ends = (w * d + d) + (d * z + z) + (z * d + d) + (d * w + w)
    assert found == 2 * c.depth * block + positions + LAYER_CODES * d * c.layer_types + ends
    published = {"cnn": 0.20e9, "resnet18": 0.86e9, "geosane": 0.9e9}
    if name in published:
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(published[name], rel=0.1)


def test_unknown_size():
    with pytest.raises(UnknownName, match="unknown size of SANE 'resnet'"):
        size("resnet")


def test_the_size_for_several_layouts_holds_long_networks():
    long = Layout.of(MLP(hidden=(90,)).build())
    assert several([Layout.of(SEEN[0].build())]).halo == 0 < several([long]).halo
    assert several([long]).max_positions is None


# --- behaviour -------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_population():
    rows = zoo_of(SEEN[1], 5).weights()
    found = logits(SEEN[1], Layout.of(SEEN[1].build()), rows, IMAGES)
    torch.testing.assert_close(found, population_logits(SEEN[1], rows, IMAGES), rtol=1e-5, atol=1e-5)


def test_the_behavioural_loss_measures_functions(zoos):
    zoo = zoos[1]
    behaviour = Behaviour([zoo], IMAGES)
    some = torch.tensor([3, 0, 7])
    rows = zoo.weights()[some]
    distance = behaviour.loss(some, rows, torch.Generator().manual_seed(0))
    assert float(distance(torch.cat([rows, rows]))) < 1e-10  # batched products are summed in another order
    changed = (rows * torch.tensor([1.0, 0.5, 1.0])[:, None]).requires_grad_()
    loss = distance(torch.cat([rows, changed]))
    draws = torch.randint(40, (32,), generator=torch.Generator().manual_seed(0))
    networks = [with_activation(SEEN[1], name) for name in zoo.table["config.activation"][some.tolist()]]
    both = [
        [population_logits(n, r[None], IMAGES[draws])[0] for n, r in zip(networks, part.detach(), strict=True)]
        for part in (rows, changed)
    ]
    true, found = (torch.stack(part) for part in both)
    # half of what is decoded, the first view, has no error
    assert float(loss.detach()) == pytest.approx(
        float((found - true).square().sum() / true.square().sum() / 2), rel=1e-4
    )
    (gradient,) = torch.autograd.grad(loss, changed)
    assert (gradient.abs().sum(1) > 0).tolist() == [False, True, False]


def test_fitting_with_behaviour(zoos):
    zoo = zoos[1]
    sizes = {"window": 128, "halo": 0}
    made, plain = fit(zoo, images=IMAGES, behaviour=0.9, **sizes), fit(zoo, **sizes)
    assert not torch.equal(made.module.token_out.weight, plain.module.token_out.weight)
    both = fit(zoos, images=IMAGES, behaviour=0.5, **sizes)
    assert both.latents(zoo).isfinite().all()
    with pytest.raises(ConfigError, match="give images, and a window of at least"):
        fit(zoo, behaviour=0.5, **sizes)
    with pytest.raises(ConfigError, match=r"at least \d+ tokens \(it is 16\)"):
        fit(zoo, images=IMAGES, behaviour=0.5)
    with pytest.raises(DatasetError, match="made for images of shape"):
        fit(zoo, images=torch.zeros(4, 1, 9, 9), behaviour=0.5, **sizes)
    with pytest.raises(ConfigError, match="behaviour must lie"):
        SANEConfig(**SIZE | {"behaviour": 1.0})
