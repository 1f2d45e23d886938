"""Populations: every network does what it would do alone, in evaluation and in training."""

from math import sqrt

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from weightspace.datasets import load
from weightspace.errors import ConfigError, DatasetError, UnknownName
from weightspace.networks import CNN, MLP, Layout, ResNet18, population, streams
from weightspace.networks.population import (
    INITIALISATIONS,
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
]


def factors(seeds: Tensor = SEEDS, **changes) -> Hyperparameters:
    values = {"learning_rate": 3e-3, "weight_decay": 1e-3, "dropout": 0.0, "train_fraction": 1.0} | changes
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


def plain_training(network, row, h, optimiser, *, epochs) -> Tensor:
    """One network in an ordinary loop with PyTorch's optimisers; the batches from their definition."""
    module = network.build()
    layout = Layout.of(module)
    module.load_state_dict(layout.unflatten(row))
    options = {"lr": float(h.learning_rate), "weight_decay": float(h.weight_decay)}
    optimise = {
        "adam": lambda p: torch.optim.Adam(p, **options),
        "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, **options),
    }[optimiser](module.parameters())
    size = round(float(h.train_fraction) * len(IMAGES))
    own = streams.permutation(h.seeds, 1, len(IMAGES))[0][:size]
    for epoch in range(1, epochs + 1):
        order = own[streams.permutation(h.seeds, 1_000_000 + epoch, len(IMAGES))[0] % size]
        for batch in order.split(20):
            optimise.zero_grad()
            F.cross_entropy(module(IMAGES[batch]), LABELS[batch]).backward()
            optimise.step()
    return layout.flatten(module.state_dict())


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("network", [CNN(channels=(3, 4)), MLP(hidden=(9,), activation="tanh")])
def test_training_equals_a_plain_loop(network, optimiser):
    h = factors(
        learning_rate=[1e-3, 3e-3, 1e-2, 2e-2], weight_decay=[0, 1e-4, 1e-2, 0.1], train_fraction=[1, 0.5, 0.25, 1]
    )
    rows = start(network)
    together, diverged = trained(network, rows, h, optimiser=optimiser)
    assert not diverged.any()
    for i, found in enumerate(together):
        expected = plain_training(network, rows[i], one(h, i), optimiser, epochs=2)
        assert (expected - rows[i]).abs().max() > 1e-2, "training moves the weights"
        # 20 steps in float32; Adam divides small gradients by their own size and so enlarges rounding
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", [CNN(), MLP()])
def test_a_network_does_not_depend_on_those_beside_it(network):
    h = factors(dropout=[0.0, 0.2, 0.5, 0.1], learning_rate=[1e-3, 3e-3, 1e-2, 3e-2], train_fraction=[1, 0.5, 0.1, 0.7])
    rows = start(network)
    together, _ = trained(network, rows, h)
    for i in range(4):
        alone, _ = trained(network, rows[i : i + 1], one(h, i))
        # grouped and single kernels round differently; a wrong batch or mask would change the first digit
        torch.testing.assert_close(together[i], alone[0], rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_initial_weights_follow_their_law(init):
    network = CNN(channels=(8, 6), hidden=(20,), batch_norm=True)
    layout = Layout.of(network.build())
    seeds, scale = torch.arange(300), torch.full((300,), 0.5)
    rows = initial_rows(network, seeds, init, scale)
    for name, values in layout.unflatten(rows).items():
        spec = layout.by_name[name]
        if spec.role != "weight" or spec.layer == "norm":
            constant = float(spec.layer == "norm" and spec.role in ("weight", "running_var"))
            assert (values == constant).all()
            continue
        receptive = spec.shape[2] * spec.shape[3] if spec.layer == "conv" else 1
        fan_out, fan_in = spec.shape[0] * receptive, spec.shape[1] * receptive
        gain = {"kaiming": sqrt(2 / fan_in), "xavier": sqrt(2 / (fan_in + fan_out))}.get(init.partition("_")[0])
        if init == "uniform":
            law = stats.uniform(0, 0.5)
        elif init.endswith("uniform"):
            law = stats.uniform(-sqrt(3) * gain * 0.5, 2 * sqrt(3) * gain * 0.5)
        else:
            law = stats.norm(0, 0.5 * (gain or 1))
        x = values.double().flatten().numpy()
        mean, variance, kurtosis = (float(v) for v in law.stats("mvk"))
        assert abs(x.mean() - mean) < 4 * sqrt(variance / len(x))
        assert abs(x.var() - variance) < 4 * variance * sqrt((kurtosis + 2) / len(x))
        assert stats.kstest(x[:5000], law.cdf).pvalue > 1e-5


def test_initial_weights_belong_to_the_seed():
    network = MLP()
    together = initial_rows(network, SEEDS, "kaiming_normal", torch.tensor([1.0, 2.0, 1.0, 1.0]))
    alone = initial_rows(network, SEEDS[1:2], "kaiming_normal", torch.ones(1))
    torch.testing.assert_close(together[1], 2 * alone[0], rtol=1e-6, atol=0)
    assert together.unique(dim=0).shape == together.shape


def test_wrong_requests_are_refused():
    network, rows, h = MLP(), start(MLP()), factors()

    def run(network=network, rows=rows, h=h, images=IMAGES, **options):
        return next(train_population(network, rows, h, images, LABELS, **{"epochs": 1, "batch_size": 20} | options))

    with pytest.raises(UnknownName, match="did you mean 'kaiming_normal'"):
        initial_rows(network, SEEDS, "kaiming_norml", torch.ones(4))
    with pytest.raises(ConfigError, match="between 1 and the 200 training images, got 201"):
        run(batch_size=201)
    normed = CNN(batch_norm=True)
    with pytest.raises(ConfigError, match="batch normalisation"):
        run(network=normed, rows=start(normed))
    with pytest.raises(DatasetError, match=r"\(1, 8, 8\), got \(1, 9, 8\)"):
        population_logits(network, rows, torch.zeros(2, 1, 9, 8))
    with pytest.raises(DatasetError, match="use the data set"):
        run(images=torch.zeros(200, 3, 8, 8))
    for wrong in ({"dropout": 1.0}, {"dropout": -0.1}, {"train_fraction": 0.0}, {"train_fraction": 1.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            factors(**wrong)
