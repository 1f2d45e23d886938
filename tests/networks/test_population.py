"""Populations: every network does what it would do alone, in evaluation and in training."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.datasets import load
from weightspace.errors import ConfigError, DatasetError, UnknownName
from weightspace.networks import (
    CNN,
    MLP,
    SIREN,
    Layout,
    PooledCNN,
    ResNet,
    ResNet18,
    ViT,
    blocks,
    population,
    streams,
    wild_park,
)
from weightspace.networks.blocks import Conv2d, MaxPool
from weightspace.networks.optimisers import OPTIMISERS
from weightspace.networks.population import (
    Hyperparameters,
    initial_rows,
    population_logits,
    population_metrics,
    subset_weights,
    train_population,
)

DIGITS = load("digits", train_limit=200)
IMAGES, LABELS = DIGITS.train_images, DIGITS.train_labels
SEEDS = torch.tensor([11, 22, 33, 44])
EVERY = [
    CNN(hidden=(6,), activation="tanh"),
    CNN(channels=(4, 5), bias=False, batch_norm=True),
    MLP(activation="gelu"),
    ResNet18(width=2, image_shape=(1, 8, 8)),
    ResNet(widths=(2, 3), blocks=1, image_shape=(1, 8, 8)),
    PooledCNN(image_shape=(1, 8, 8), channels=(4, 5), kernels=(3, 2), strides=(2, 1), pooled=2),
    ViT(image_shape=(1, 8, 8), patch=(4, 2), width=8, heads=2, depth=2),
    wild_park((1, 8, 8), 10, seed=6, activations=("tanh", "gelu")),
]


def factors(seeds: Tensor = SEEDS, **changes) -> Hyperparameters:
    values = {"learning_rate": 3e-3, "weight_decay": 1e-3, "dropout": 0.0, "train_fraction": 1.0, "momentum": 0.9}
    values |= changes
    columns = {k: torch.as_tensor(v, dtype=torch.float32).expand(len(seeds)).clone() for k, v in values.items()}
    return Hyperparameters(seeds=seeds, **columns)


def one(h: Hyperparameters, i: int) -> Hyperparameters:
    return Hyperparameters(**{k: v[i : i + 1] for k, v in vars(h).items()})


def start(network, seeds: Tensor = SEEDS, init: str = "kaiming_uniform") -> Tensor:
    return initial_rows(network, seeds, init, torch.ones(len(seeds)))


def trained(network, rows, h, *, epochs=2, **options) -> tuple[Tensor, Tensor]:
    *_, (_, last, diverged) = train_population(
        network, rows, h, IMAGES, LABELS, epochs=epochs, batch_size=20, **options
    )
    return last, diverged


@pytest.mark.parametrize("network", EVERY, ids=lambda n: type(n).__name__ + "-norm" * getattr(n, "batch_norm", False))
@pytest.mark.parametrize("count", [1, 35])  # more than one block of networks, and of images
def test_logits_equal_each_network_alone(network, count):
    generator = torch.Generator().manual_seed(count)
    layout = Layout.of(network.build())
    rows = 0.3 * torch.randn(count, layout.parameters, generator=generator)
    for spec in layout.tensors:
        if spec.role == "running_var":
            rows[:, layout.slices[spec.name]] = rows[:, layout.slices[spec.name]].abs() + 0.1
    images = IMAGES[:130]
    logits = population_logits(network, rows, images)
    module = network.build().eval()
    for row, found in zip(rows, logits, strict=True):
        module.load_state_dict(layout.unflatten(row), strict=False)
        with torch.no_grad():
            expected = module(images)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()  # grouped kernels sum in another order


def test_metrics_equal_their_formula():
    network = MLP()
    rows = start(network)
    weights = torch.rand(4, len(LABELS), generator=torch.Generator().manual_seed(0))
    logits = population_logits(network, rows, IMAGES).double()
    nats = -logits.log_softmax(2)[:, torch.arange(len(LABELS)), LABELS]
    hits = (logits.argmax(2) == LABELS).double()
    for given, share in ((None, torch.ones(4, len(LABELS))), (weights, weights)):
        loss, accuracy = population_metrics(network, rows, IMAGES, LABELS, given)
        total = share.double().sum(1)
        torch.testing.assert_close(loss.double(), (nats * share).sum(1) / total, rtol=1e-5, atol=0)
        torch.testing.assert_close(accuracy.double(), (hits * share).sum(1) / total, rtol=1e-5, atol=0)


def plain_training(network, row, h, optimiser, *, epochs, schedule="constant") -> Tensor:
    """One network in an ordinary loop with PyTorch's optimisers; the batches from their definition."""
    module = network.build()
    layout = Layout.of(module)
    module.load_state_dict(layout.unflatten(row), strict=False)  # the counters of norms are no part of a row
    options = {"lr": float(h.learning_rate), "weight_decay": float(h.weight_decay)}
    optimise = {
        "adam": lambda p: torch.optim.Adam(p, **options),
        "adamw": lambda p: torch.optim.AdamW(p, **options),
        "sgd": lambda p: torch.optim.SGD(p, momentum=float(h.momentum), **options),
        "rmsprop": lambda p: torch.optim.RMSprop(p, alpha=0.9, eps=1e-7, **options),
    }[optimiser](module.parameters())
    steps = epochs * (len(IMAGES) // 20)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimise, options["lr"], total_steps=steps, cycle_momentum=False)
    size = round(float(h.train_fraction) * len(IMAGES))
    own = streams.permutation(h.seeds, 1, len(IMAGES))[0][:size]
    for epoch in range(1, epochs + 1):
        order = own[streams.permutation(h.seeds, 1_000_000 + epoch, len(IMAGES))[0] % size]
        for batch in order.split(20):
            if schedule == "constant":
                optimise.param_groups[0]["lr"] = options["lr"]
            optimise.zero_grad()
            F.cross_entropy(module(IMAGES[batch]), LABELS[batch]).backward()
            optimise.step()
            if cycle.last_epoch < steps - 1:
                cycle.step()
    return layout.flatten(module.state_dict())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("network", [CNN(channels=(3, 4)), MLP(hidden=(9,), activation="tanh")])
def test_training_equals_a_plain_loop(network, optimiser):
    h = factors(
        learning_rate=[2e-3, 3e-3, 1e-2, 5e-3], weight_decay=[0, 1e-4, 1e-2, 0.1], train_fraction=[1, 0.5, 0.25, 1],
        momentum=[0.9, 0.5, 0.9, 0.0],
    )  # fmt: skip
    rows = start(network)
    together, diverged = trained(network, rows, h, optimiser=optimiser)
    assert not diverged.any()
    for i, found in enumerate(together):
        expected = plain_training(network, rows[i], one(h, i), optimiser, epochs=2)
        assert (expected - rows[i]).abs().max() > 1e-2, "training moves the weights"
        # 20 steps in float32; Adam divides small gradients by their own size and so enlarges rounding
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("network", [CNN(channels=(3, 4)), MLP(), EVERY[1]])
def test_a_gpu_trains_the_networks_that_a_cpu_trains(network):
    h = factors(dropout=[0.0, 0.2, 0.5, 0.1], learning_rate=1e-3)
    rows = start(network)
    expected, _ = trained(network, rows, h, epochs=1)
    there = Hyperparameters(**{name: values.cuda() for name, values in vars(h).items()})
    stages = train_population(network, rows.cuda(), there, IMAGES.cuda(), LABELS.cuda(), epochs=1, batch_size=20)
    *_, (_, found, _) = stages
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-3)  # other kernels sum in another order


@pytest.mark.parametrize("network", [CNN(), MLP()])
def test_a_network_does_not_depend_on_those_beside_it(network):
    h = factors(dropout=[0.0, 0.2, 0.5, 0.1], learning_rate=[1e-3, 3e-3, 1e-2, 3e-2], train_fraction=[1, 0.5, 0.1, 0.7])
    rows = start(network)
    together, _ = trained(network, rows, h)
    for i in range(4):
        alone, _ = trained(network, rows[i : i + 1], one(h, i))
        # grouped and single kernels round differently; a wrong batch or mask would change the first digit
        torch.testing.assert_close(together[i], alone[0], rtol=1e-3, atol=1e-4)


def batch_normed() -> list:
    """One of each: norms between convolutions, skip connections, layer norms."""
    return [EVERY[1], EVERY[3], EVERY[5]]


@pytest.mark.parametrize("network", batch_normed(), ids=lambda n: type(n).__name__)
def test_norms_train_as_in_a_plain_loop(network):
    """Weights and running statistics; ReLU networks of several layers amplify rounding, so few steps."""
    rows, h = start(network), factors(learning_rate=1e-3)
    together, diverged = trained(network, rows, h, epochs=1)
    layout = Layout.of(network.build())
    assert not diverged.any()
    for i, found in enumerate(together):
        expected = plain_training(network, rows[i], one(h, i), "adam", epochs=1)
        for name, values in layout.unflatten(expected).items():
            assert (values - layout.unflatten(rows[i])[name]).abs().max() > 1e-4, f"{name} moves"
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_running_statistics_of_a_diverged_network_stay_finite_and_disturb_nobody():
    network = EVERY[1]
    rows = start(network)
    calm, _ = trained(network, rows, factors())
    found, diverged = trained(network, rows, factors(learning_rate=[3e-3, 1e38, 3e-3, 3e-3]))
    assert diverged.tolist() == [0, 1, 0, 0] and found.isfinite().all()
    assert found[[0, 2, 3]].equal(calm[[0, 2, 3]])


def test_one_cycle_equals_pytorch():
    network, h = MLP(hidden=(9,)), factors(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2])
    rows = start(network)
    together, _ = trained(network, rows, h, optimiser="sgd", schedule="one_cycle", epochs=3)
    constant, _ = trained(network, rows, h, optimiser="sgd", epochs=3)
    for i, found in enumerate(together):
        expected = plain_training(network, rows[i], one(h, i), "sgd", epochs=3, schedule="one_cycle")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - constant[i]).abs().max() > 1e-3


def test_momentum_is_0_9_when_missing():
    network, h = MLP(), factors()
    rows = start(network)
    missing, _ = trained(network, rows, replace(h, momentum=None), optimiser="sgd")
    given, _ = trained(network, rows, h, optimiser="sgd")
    without, _ = trained(network, rows, replace(h, momentum=torch.zeros(4)), optimiser="sgd")
    assert missing.equal(given) and not missing.equal(without)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("values", ["distinct", "equal in pairs"])
def test_pooling_and_its_gradient_equal_pytorch(side, values):
    """Bit for bit, also where a square has its maximum twice and where a remainder is cut."""
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(side))
    x = (x if values == "distinct" else (x * 2).round()).requires_grad_()
    assert len(x.unique()) == x.numel() or values != "distinct"
    weights = torch.randn(2, 3, 7 // side, 8 // side, generator=torch.Generator().manual_seed(0))
    found, expected = MaxPool(side)(x), F.max_pool2d(x, side)
    assert found.equal(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    assert gradients[0].equal(gradients[1])


@pytest.mark.parametrize("images", ["own", "shared"])
@pytest.mark.parametrize("limit", [0, 2**62])  # every network by itself, all in one grouped call
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_of_many_networks_equal_each_alone(images, limit, bias, monkeypatch):
    monkeypatch.setattr(blocks, "_GROUPED_LIMIT", limit)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*(() if images == "shared" else (4,)), 5, 3, 9, 8, generator=generator, requires_grad=True)
    weight = torch.randn(4, 6, 3, 3, 2, generator=generator, requires_grad=True)
    shift = torch.randn(4, 6, generator=generator, requires_grad=True)
    module = Conv2d(3, 6, (3, 2), stride=2, padding=1, bias=bias)
    state = {"weight": weight} | ({"bias": shift} if bias else {})
    dims = (0, None if images == "shared" else 0)
    found = torch.func.vmap(lambda s, x: torch.func.functional_call(module, s, (x,)), in_dims=dims)(state, x)
    alone = x.expand(4, -1, -1, -1, -1) if images == "shared" else x
    expected = torch.stack(
        [F.conv2d(alone[i], weight[i], shift[i] if bias else None, stride=2, padding=1) for i in range(4)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    factor = torch.randn(expected.shape, generator=generator)
    leaves = [x, weight, *([shift] if bias else [])]
    for got, wanted in zip(*(torch.autograd.grad((y * factor).sum(), leaves) for y in (found, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_single_convolution_has_pytorchs_gradients():
    module, x = Conv2d(2, 3, 3, stride=2, padding=1).double(), torch.randn(2, 2, 6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(module, x.requires_grad_())
    torch.autograd.gradcheck(
        lambda w, b: torch.func.functional_call(module, {"weight": w, "bias": b}, (x,)), tuple(module.parameters())
    )


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_diverging_network_stays_finite_and_disturbs_nobody(optimiser):
    network = CNN(channels=(3, 4))
    rows, calm = start(network), factors()
    wild = factors(learning_rate=[3e-3, 1e38, 3e-3, 3e-3])
    with_wild, diverged = trained(network, rows, wild, optimiser=optimiser)
    without, _ = trained(network, rows, calm, optimiser=optimiser)
    assert diverged.tolist() == [0, 1, 0, 0]
    assert with_wild.isfinite().all()
    others = [0, 2, 3]
    assert with_wild[others].equal(without[others])  # the same kernels on the same numbers: bit for bit


def test_a_diverged_network_keeps_its_last_finite_row():
    network = MLP()
    rows = start(network)
    stages = list(train_population(network, rows, factors(learning_rate=1e38), IMAGES, LABELS, epochs=2, batch_size=20))
    (_, before, calm), (_, first, flags), (_, second, _) = stages
    assert calm.tolist() == [0] * 4 and flags.tolist() == [1] * 4
    assert before.equal(rows) and first.equal(second)


def test_checkpoints_are_copies_and_the_start_is_not_changed():
    network, h = MLP(), factors()
    rows = start(network)
    kept = rows.clone()
    every = list(train_population(network, rows, h, IMAGES, LABELS, epochs=3, batch_size=20))
    assert [epoch for epoch, *_ in every] == [0, 1, 2, 3] and rows.equal(kept) and every[0][1].equal(rows)
    assert not every[1][1].equal(every[2][1])
    some = list(train_population(network, rows, h, IMAGES, LABELS, epochs=3, batch_size=20, checkpoints=[3, 1]))
    assert [epoch for epoch, *_ in some] == [1, 3]
    assert some[0][1].equal(every[1][1]) and some[1][1].equal(every[3][1])


def test_dropout_masks_have_rate_and_mean():
    h = factors(dropout=[0.0, 0.1, 0.5, 0.9])
    masks = population._dropout_masks(h, {"a.keep": (40, 25), "b.keep": (7,)}, 32, 5)
    mask = masks["a.keep"]
    assert mask.shape == (4, 32, 40, 25) and masks["b.keep"].shape == (4, 32, 7)
    for rate, values in zip(h.dropout.tolist(), mask.flatten(1).double(), strict=True):
        n = len(values)
        assert abs(float((values == 0).double().mean()) - rate) <= 4 * sqrt(rate * (1 - rate) / n)
        assert abs(float(values.mean()) - 1) <= 4 * sqrt(rate / (1 - rate) / n) + 1e-6
        torch.testing.assert_close(float(values.max()), 1 / (1 - rate), rtol=1e-6, atol=0)  # 1 - rate is float32
    other_step = population._dropout_masks(h, {"a.keep": (40, 25), "b.keep": (7,)}, 32, 6)["a.keep"]
    assert not mask[2].equal(other_step[2]) and not mask[1].gt(0).equal(mask[2].gt(0))
    agreement = float(((mask[2] > 0) == (other_step[2] > 0)).double().mean())
    assert abs(agreement - 0.5) < 4 * 0.5 / sqrt(mask[2].numel())


def test_every_dropout_of_a_network_is_steered():
    network = CNN(hidden=(6,))
    module = network.build().eval()
    shapes = population._dropout_shapes(module, IMAGES[:1])
    assert shapes == {"drop1.keep": (8, 4, 4), "drop2.keep": (8, 2, 2), "fc_drop1.keep": (6,)}
    rows = start(network)
    plain, _ = trained(network, rows, factors(), epochs=1)
    dropped, _ = trained(network, rows, factors(dropout=[0.0, 0.5, 0.5, 0.5]), epochs=1)
    assert dropped[0].equal(plain[0])  # a mask of ones changes nothing
    assert all((dropped[i] - plain[i]).abs().max() > 1e-3 for i in (1, 2, 3))


def test_batches_hold_the_own_subset_only():
    """A network on a share of the images equals one whose other images are noise."""
    network = MLP()
    h = factors(train_fraction=[0.1, 0.25, 0.5, 1.0])
    seen = subset_weights(h, len(IMAGES), 10)
    assert seen.sum(1).tolist() == [20, 50, 100, 200] and set(seen.unique().tolist()) == {0, 1}
    rows = start(network)
    clean, _ = trained(network, rows, h)
    for i in range(3):
        spoilt = torch.where(seen[i].bool()[:, None, None, None], IMAGES, 100.0)
        *_, (_, found, _) = train_population(network, rows, h, spoilt, LABELS, epochs=2, batch_size=20)
        assert found[i].equal(clean[i]) and not found[3].equal(clean[3])


def test_subsets_differ_between_networks_and_never_lack_images():
    h = factors(train_fraction=[0.001, 0.01, 0.5, 0.5])
    seen = subset_weights(h, len(IMAGES), 10)
    assert seen.sum(1).tolist() == [10, 10, 100, 100]
    shared = float(seen[2] @ seen[3])  # hypergeometric: mean 50, variance 12.56
    assert abs(shared - 50) < 4 * sqrt(100 * 0.25 * 100 / 199)


def test_wrong_requests_are_refused():
    network, rows, h = MLP(), start(MLP()), factors()

    def run(network=network, rows=rows, h=h, images=IMAGES, **options):
        return next(train_population(network, rows, h, images, LABELS, **{"epochs": 1, "batch_size": 20} | options))

    for name, wrong in {"optimiser": "adm", "schedule": "one_cicle"}.items():
        with pytest.raises((UnknownName, TypeError), match=name):
            run(**{name: wrong})
    with pytest.raises(ConfigError, match="between 1 and the 200 training images, got 201"):
        run(batch_size=201)
    with pytest.raises(ConfigError, match="classifies no images"):
        run(network=SIREN())
    with pytest.raises(DatasetError, match=r"\(1, 8, 8\), got \(1, 9, 8\)"):
        population_logits(network, rows, torch.zeros(2, 1, 9, 8))
    with pytest.raises(DatasetError, match="use the data set"):
        run(images=torch.zeros(200, 3, 8, 8))
    for wrong in ({"dropout": 1.0}, {"dropout": -0.1}, {"train_fraction": 0.0}, {"train_fraction": 1.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            factors(**wrong)
