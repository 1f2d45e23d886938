"""Laws of merging: copies merge into the network, means come nearer, and the order of rows is kept."""

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    chain_groups,
    gather_index,
    mean_reference,
    merge_many,
    random_permutations,
    weight_matching,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


def spread(rows: Tensor) -> Tensor:
    """Mean squared distance to the mean."""
    return (rows - rows.mean(0)).square().sum(1).mean()


def test_mean_reference_of_disguised_copies_is_the_network(random_rows):
    layout = Layout.of(mlp())
    groups = chain_groups(layout)
    network = random_rows(layout, 1, 1)[0]
    hidden = random_permutations(groups, 12, seeded(2))
    copies = network.expand(12, -1).gather(1, gather_index(layout, groups, hidden))
    mean = mean_reference(copies, copies[3], layout, groups, seeded())
    torch.testing.assert_close(mean, copies[3], rtol=1e-6, atol=1e-7)  # rounding of a mean of 12 equal numbers


def test_mean_reference_gathers_the_networks_round_by_round_and_ends(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 16, 1).double()
    means = [mean_reference(rows, rows[0], layout, groups, seeded(), rounds=rounds) for rounds in (1, 2, 3, 30, 31)]
    # Norms do not change, so the mean squared distance to the mean falls as the norm of the mean grows.
    norms = torch.stack(means).norm(dim=1)
    assert norms[0] > rows.mean(0).norm()
    assert norms[1] > norms[0]
    assert (norms.diff() >= 0).all()
    assert torch.equal(means[-1], means[-2])


def test_rounds_must_be_positive(random_rows):
    layout = Layout.of(mlp())
    rows = random_rows(layout, 2, 0)
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        mean_reference(rows, rows[0], layout, chain_groups(layout), seeded(), rounds=0)


def test_merged_copies_are_one_network_in_some_order(random_rows):
    layout = Layout.of(mlp())
    groups = chain_groups(layout)
    network = random_rows(layout, 1, 1)
    hidden = random_permutations(groups, 8, seeded(2))
    copies = network.expand(8, -1).gather(1, gather_index(layout, groups, hidden))
    aligned, soup = merge_many(copies, layout, groups, seeded())
    assert torch.equal(aligned, aligned[:1].expand(8, -1))
    torch.testing.assert_close(soup.sort().values, network[0].sort().values)  # a mean of equal numbers rounds


def test_merging_ends_where_no_network_would_move_to_the_mean_of_the_others(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 6, 1)
    aligned, soup = merge_many(rows, layout, groups, seeded())
    assert torch.equal(aligned.sort(1).values, rows.sort(1).values)  # each row is still itself
    assert torch.equal(soup, aligned.mean(0))
    assert spread(aligned) < spread(rows)
    others = (aligned.sum(0) - aligned) / 5
    for moves in weight_matching(aligned, others, layout, groups, generator=seeded(3)):
        assert (moves.diff(dim=1) == 1).all()


def test_more_rounds_of_merging_come_nearer(random_rows):
    layout = Layout.of(mlp())
    rows = random_rows(layout, 12, 1)
    found = [spread(merge_many(rows, layout, chain_groups(layout), seeded(), rounds=r)[0]) for r in (1, 2, 30)]
    assert found[0] >= found[1] >= found[2]
    assert found[0] > found[2]


def test_one_network_is_nothing_to_merge(random_rows):
    layout = Layout.of(mlp())
    with pytest.raises(ConfigError, match="at least 2 networks, got 1"):
        merge_many(random_rows(layout, 1, 1), layout, chain_groups(layout), seeded())
