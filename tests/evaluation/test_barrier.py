"""Laws of barriers: zero between equal networks and permuted copies after alignment; known lines; ends that stay."""

import polars as pl
import pytest
import torch
from torch.nn import functional as F

from weightspace import datasets
from weightspace.errors import ConfigError
from weightspace.evaluation.barrier import Barrier, alignments, barrier, compare_barriers
from weightspace.networks import CNN, MLP, Layout
from weightspace.networks.population import Hyperparameters, initial_rows, train_population
from weightspace.symmetry import chain_groups, gather_index, random_permutations


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", train_limit=300)


@pytest.fixture(scope="module")
def trained(data):
    """Two trainings of a wide MLP from different initialisations."""
    network = MLP(hidden=(64,))
    one = torch.ones(2)
    seeds = torch.tensor([1, 2])
    h = Hyperparameters(
        seeds=seeds, learning_rate=3e-3 * one, weight_decay=0 * one, dropout=0 * one, train_fraction=one
    )
    rows = initial_rows(network, seeds, "kaiming_uniform", one)
    stages = train_population(network, rows, h, data.train_images, data.train_labels, epochs=20, batch_size=50)
    return network, [rows for _, rows, _ in stages][-1]


def copy_of(network, row, seed=0):
    layout = Layout.of(network.build())
    groups = chain_groups(layout)
    hidden = random_permutations(groups, 1, torch.Generator().manual_seed(seed))
    return groups, row[None].gather(1, gather_index(layout, groups, hidden))[0]


def test_the_formula_on_a_known_line():
    line = Barrier(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([1.0, 4.0, 5.0]), torch.tensor([0.9, 0.2, 0.5]))
    assert line.height == pytest.approx(4 - 0.75 * 1 - 0.25 * 5)
    assert line.accuracy_height == pytest.approx(0.75 * 0.9 + 0.25 * 0.5 - 0.2)
    valley = Barrier(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 1.0]), torch.tensor([0.5, 0.9, 0.5]))
    assert valley.height == 0 and valley.accuracy_height == 0


def test_points_are_the_networks_on_the_line(trained, data):
    network, rows = trained
    found = barrier(network, rows[0], rows[1], data.test_images, data.test_labels, points=5)
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    layout = Layout.of(network.build())
    for share, loss, accuracy in zip(found.shares, found.loss, found.accuracy, strict=True):
        module = network.build().eval()
        module.load_state_dict(layout.unflatten((1 - share) * rows[0] + share * rows[1]))
        with torch.no_grad():
            logits = module(data.test_images)
        torch.testing.assert_close(loss, F.cross_entropy(logits, data.test_labels), rtol=1e-4, atol=1e-5)
        assert float(accuracy) == pytest.approx(float((logits.argmax(1) == data.test_labels).float().mean()))


def test_equal_networks_have_no_barrier(trained, data):
    network, rows = trained
    same = barrier(network, rows[0], rows[0], data.test_images, data.test_labels)
    assert len(same.shares) == 25
    assert same.height == pytest.approx(0, abs=1e-6) and same.accuracy_height == 0


def test_permuted_copies_have_a_barrier_until_they_are_aligned(trained, data):
    network, rows = trained
    groups, copy = copy_of(network, rows[0])
    raw = barrier(network, rows[0], copy, data.test_images, data.test_labels, points=5)
    assert raw.height > 0.1
    assert raw.loss[0] == pytest.approx(float(raw.loss[-1]), rel=1e-5)
    for name, found in alignments(network, rows[0], copy, groups, data).items():
        if name == "weight matching":
            assert torch.equal(found, rows[0])
        if name != "none":
            line = barrier(network, rows[0], found, data.test_images, data.test_labels, points=5)
            assert line.height == pytest.approx(0, abs=1e-5)


def test_alignment_and_repair_lower_the_barrier_of_two_trainings(trained, data):
    network, rows = trained
    groups = chain_groups(Layout.of(network.build()))
    seconds = alignments(network, *rows, groups, data)
    summary, curves = compare_barriers(network, rows[0], seconds, groups, data, points=5)
    height = {row[:3]: row[3] for row in summary.rows()}
    assert len(height) == 3 * 2 * 2
    for part in ("train", "test"):
        raw = height["none", False, part]
        assert raw > 0.2
        assert height["weight matching", False, part] < 0.5 * raw
        assert height["activation matching", False, part] < 0.5 * raw
        assert height["none", True, part] < raw
    ends = curves.filter(pl.col("share").is_in([0.0, 1.0])).group_by("images", "share")
    spread = ends.agg(pl.col("loss").max() - pl.col("loss").min())["loss"]
    assert len(spread) == 4 and spread.max() < 1e-5  # neither alignment nor REPAIR changes a network


def test_what_makes_no_line_is_refused(trained, data):
    network, rows = trained
    with pytest.raises(ConfigError, match="at least 3 points, both ends included, got 2"):
        barrier(network, *rows, data.test_images, data.test_labels, points=2)


def test_batch_norms_are_recalibrated_between_the_ends(data):
    network = CNN(channels=(4,), kernels=(3,), pools=(2,), batch_norm=True)
    layout = Layout.of(network.build())
    groups = chain_groups(layout)
    rows = torch.stack([layout.flatten(network.build().state_dict()) for _ in range(2)])
    rows[:, layout.slices["norm1.running_mean"]] += 5.0  # statistics that fit neither end
    plain = barrier(network, *rows, data.test_images, data.test_labels, points=3)
    mended = barrier(
        network, *rows, data.test_images, data.test_labels, points=3, repair=data.train_images, groups=groups
    )
    assert torch.equal(plain.loss[[0, 2]], mended.loss[[0, 2]])
    assert plain.loss[1] != mended.loss[1]
