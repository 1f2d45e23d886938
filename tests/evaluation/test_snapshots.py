"""Snapshots and SWAG: the published schedule and the published Gaussian, for all runs at once."""

from math import cos, pi

import polars as pl
import pytest
import torch
from torch.nn import functional as F

from weightspace import datasets, networks
from weightspace.errors import ConfigError, ZooError
from weightspace.evaluation.snapshots import Trajectory, snapshots, swag
from weightspace.generators.batch_norm import has_running_statistics
from weightspace.networks import CNN, Layout, streams
from weightspace.networks.optimisers import PopulationOptimiser, schedule_factor
from weightspace.networks.population import initial_rows, with_activation
from weightspace.zoo import Zoo, behaviour

DIGITS = datasets.load("digits", train_limit=200, seed=3)
STEPS = 200 // 32


@pytest.fixture(scope="module")
def starts(digits_zoo) -> Zoo:
    """Untrained networks of two activations."""
    return digits_zoo.where(pl.col("step") == 0).take(range(4))


@pytest.mark.parametrize(("steps", "cycles"), [(12, 3), (13, 3), (7, 1)])
def test_the_schedule_is_the_formula(steps, cycles):
    length = -(-steps // cycles)
    for t in range(1, steps + 1):
        wanted = 0.5 * (cos(pi * ((t - 1) % length) / length) + 1)
        assert schedule_factor("cosine", t, steps, cycles) == pytest.approx(wanted)
    assert schedule_factor("cosine", 1, steps, cycles) == 1.0


def test_only_cosine_has_cycles():
    one = torch.ones(1)
    for schedule, cycles in (("constant", 2), ("one_cycle", 2), ("cosine", 0)):
        with pytest.raises(ConfigError, match="only cosine"):
            PopulationOptimiser("sgd", one[None], one, one, one, schedule=schedule, steps=4, cycles=cycles)


def test_snapshots_are_the_minima_of_a_plain_loop(starts):
    """PyTorch's SGD with the learning rate of the formula, set by hand, on the batches of the run."""
    made = snapshots(starts, DIGITS, cycles=2, epochs_per_cycle=2, learning_rate=0.1, momentum=0.8, seed=7)
    assert made.table["step"].to_list() == [2] * 4 + [4] * 4 and made.models == starts.models
    for i in (0, 3):
        module = with_activation(
            networks.from_json(starts.header["network"]), starts.table["config.activation"][i]
        ).build()  # fmt: skip
        module.load_state_dict(starts.layout.unflatten(starts.weights()[i]))
        sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.8)
        seed, step = torch.tensor([i + (7 << 32)]), 0
        for epoch in range(1, 5):
            order = streams.permutation(seed, 1, 200)[0][streams.permutation(seed, 1_000_000 + epoch, 200)[0]]
            for batch in order[: STEPS * 32].split(32):
                sgd.param_groups[0]["lr"] = 0.05 * (cos(pi * (step % (2 * STEPS)) / (2 * STEPS)) + 1)
                step += 1
                sgd.zero_grad()
                F.cross_entropy(module(DIGITS.train_images[batch]), DIGITS.train_labels[batch]).backward()
                sgd.step()
            if epoch % 2 == 0:
                one = (pl.col("model") == starts.table["model"][i]) & (pl.col("step") == epoch)
                found = made.where(one).weights()[0]
                torch.testing.assert_close(found, starts.layout.flatten(module.state_dict()), rtol=1e-3, atol=1e-4)


def test_snapshots_learn_and_differ(starts):
    made = snapshots(starts, DIGITS, cycles=2, epochs_per_cycle=4, learning_rate=0.1)
    first, second = made.where(pl.col("step") == 4), made.where(pl.col("step") == 8)
    before = behaviour.metrics(starts, DIGITS.test_images, DIGITS.test_labels)[1].mean()
    for part in (first, second):
        assert behaviour.metrics(part, DIGITS.test_images, DIGITS.test_labels)[1].mean() > before + 0.3
    assert not first.weights().isclose(second.weights(), atol=1e-3).all()


def path(epochs: int, *, seed: int = 0) -> torch.Tensor:
    """Weights of two runs after each epoch, correlated between parameters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 5, generator=generator)
    return 3 + torch.randn(epochs, 2, 5, generator=generator) @ mixing


def trajectory(rows: torch.Tensor, rank: int) -> Trajectory:
    seen = Trajectory()
    for row in rows:
        seen = seen.after(row, rank=rank)
    return seen


def test_what_swag_keeps_of_a_path():
    rows = path(9)
    seen, exact = trajectory(rows, 4), rows.double()
    torch.testing.assert_close(seen.mean, exact.mean(0))
    torch.testing.assert_close(seen.variance, exact.var(0, correction=0))
    wanted = torch.stack([exact[e] - exact[: e + 1].mean(0) for e in range(5, 9)])
    torch.testing.assert_close(seen.deviations, wanted)
    assert (trajectory(rows[:1].expand(3, -1, -1) / 3, 4).variance >= 0).all()  # rounding makes none negative


@pytest.mark.parametrize(("epochs", "rank"), [(9, 4), (3, 20)])
def test_samples_have_the_mean_and_covariance_of_the_formula(epochs, rank):
    seen, n = trajectory(path(epochs), rank), 40_000
    drawn = seen.sample(n, torch.tensor([5, 6])).double()
    for run in (0, 1):
        d = seen.deviations[:, run]
        wanted = torch.diag(seen.variance[run]) / 2 + d.T @ d / (2 * (len(d) - 1))
        of_run = drawn[:, run]
        deviation = wanted.diagonal().sqrt()
        assert ((of_run.mean(0) - seen.mean[run]).abs() < 5 * deviation / n**0.5).all()
        scale = deviation[:, None] * deviation  # the standard error of a covariance is at most √2 of it, over √n
        assert ((of_run.T.cov() - wanted).abs() < 5 * (2 / n) ** 0.5 * scale).all()
    both = torch.cat([drawn[:, 0], drawn[:, 1]], dim=1).T.corrcoef()[:5, 5:]
    assert both.abs().max() < 5 / n**0.5  # runs have random numbers of their own


def test_swag_follows_the_epochs_after_the_burn_in(starts):
    """Draws are those of a trajectory made by hand from an ordinary run."""
    options = {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 1e-3, "seed": 2}
    made = swag(starts, DIGITS, samples=3, epochs=4, burn_in=2, rank=3, **options)
    stages = behaviour.training_stages(starts, DIGITS, epochs=6, optimiser="sgd", **options)
    rows = torch.stack([row for epoch, row in stages if epoch > 2])
    drawn = trajectory(rows, 3).sample(3, torch.arange(4) + (2 << 32))
    assert made.weights().equal(drawn.flatten(0, 1))
    assert made.table["model"].to_list() == starts.models * 3, "a split by model keeps the samples of a run together"
    assert made.table["step"].to_list() == [0] * 4 + [1] * 4 + [2] * 4
    activations = starts.table["config.activation"].to_list()
    assert made.table["config.activation"].to_list() == activations * 3
    accuracy = behaviour.metrics(made, DIGITS.test_images, DIGITS.test_labels)[1].mean()
    assert accuracy > behaviour.metrics(starts, DIGITS.test_images, DIGITS.test_labels)[1].mean() + 0.2


def test_equal_seeds_equal_networks(starts):
    short = {"samples": 2, "epochs": 2, "learning_rate": 0.05}
    cycles = {"cycles": 1, "epochs_per_cycle": 1, "learning_rate": 0.05}
    for make, options in ((swag, short), (snapshots, cycles)):
        first = make(starts, DIGITS, seed=1, **options).weights()
        assert first.equal(make(starts, DIGITS, seed=1, **options).weights())
        assert not first.equal(make(starts, DIGITS, seed=2, **options).weights())


def test_norms_of_swag_have_statistics_of_training_images():
    """A variance that was drawn could be negative."""
    network = CNN(channels=(3, 4), batch_norm=True)
    layout = Layout.of(network.build())
    assert has_running_statistics(layout)
    rows = initial_rows(network, torch.arange(2), "kaiming_uniform", torch.ones(2))
    table = pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    zoo = Zoo.in_memory(rows, layout, table, {"network": networks.to_json(network)})
    made = swag(zoo, DIGITS, samples=4, epochs=3, learning_rate=0.05)
    variances = torch.cat(
        [made.weights()[:, layout.slices[spec.name]] for spec in layout.tensors if spec.role == "running_var"], dim=1
    )
    assert (variances > 0).all()
    accuracy = behaviour.metrics(made, DIGITS.test_images, DIGITS.test_labels)[1].mean()
    assert accuracy > behaviour.metrics(zoo, DIGITS.test_images, DIGITS.test_labels)[1].mean() + 0.2


def test_what_cannot_be_made(starts, digits_zoo):
    for wrong in ({"cycles": 0}, {"epochs_per_cycle": 0}):
        with pytest.raises(ConfigError, match="snapshots need"):
            snapshots(starts, DIGITS, **{"cycles": 2, "epochs_per_cycle": 1, "learning_rate": 0.1} | wrong)
    for wrong in ({"samples": 0}, {"epochs": 1}, {"rank": 1}, {"burn_in": -1}):
        with pytest.raises(ConfigError, match="SWAG needs"):
            swag(starts, DIGITS, **{"samples": 2, "epochs": 2, "learning_rate": 0.1} | wrong)
    with pytest.raises(ConfigError, match="SWAG needs"):
        Trajectory().after(torch.zeros(1, 2)).sample(1, torch.tensor([0]))
    with pytest.raises(ZooError, match="several checkpoints"):
        swag(digits_zoo, DIGITS, samples=1, epochs=2, learning_rate=0.1)
