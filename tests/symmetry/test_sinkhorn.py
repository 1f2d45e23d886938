"""Laws of Sinkhorn re-basin: doubly stochastic matrices, hard ones permute, and copies are found."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    PermutationGroup,
    Place,
    SinkhornConfig,
    align,
    batch_losses,
    chain_groups,
    gather_index,
    permuted,
    random_permutations,
    sinkhorn_matching,
    softly_permuted,
)
from weightspace.symmetry.sinkhorn import sinkhorn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_and_columns_sum_to_one():
    logits = torch.randn(3, 7, 7, generator=seeded())
    matrix = sinkhorn(logits, 200)
    torch.testing.assert_close(matrix.sum(1), torch.ones(3, 7), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matrix.sum(2), torch.ones(3, 7), rtol=1e-5, atol=1e-5)
    # Rows and columns are only scaled: the cross ratios of exp(logits) stay.
    ratio = matrix[:, 0, 0] * matrix[:, 1, 1] / (matrix[:, 0, 1] * matrix[:, 1, 0])
    wanted = (logits[:, 0, 0] + logits[:, 1, 1] - logits[:, 0, 1] - logits[:, 1, 0]).exp()
    torch.testing.assert_close(ratio, wanted, rtol=1e-4, atol=1e-4)


def test_hard_matrices_permute(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 4, 1)
    permutations = random_permutations(groups, 4, seeded(2))
    matrices = [torch.nn.functional.one_hot(one, one.shape[1]).float() for one in permutations]
    assert torch.equal(softly_permuted(rows, layout, groups, matrices), permuted(rows, layout, groups, permutations))


def test_places_that_begin_late_and_repeat_are_mixed(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(3, 4), nn.Linear(10, 2)))
    groups = [PermutationGroup("0", 4, (Place("0.weight", 0), Place("0.bias", 0), Place("1.weight", 1, 1, 2, 2)))]
    rows, permutations = random_rows(layout, 4, 1), random_permutations(groups, 4, seeded(2))
    matrices = [torch.nn.functional.one_hot(one, 4).float() for one in permutations]
    assert torch.equal(softly_permuted(rows, layout, groups, matrices), permuted(rows, layout, groups, permutations))


def test_permuted_copies_are_recovered_exactly(chain, random_rows):
    _, layout, groups = chain
    reference = random_rows(layout, 1, 1)
    hidden = random_permutations(groups, 4, seeded(2))
    rows = reference.expand(4, -1).gather(1, gather_index(layout, groups, hidden))
    found = sinkhorn_matching(rows, reference[0], layout, groups, generator=seeded())
    assert torch.equal(permuted(rows, layout, groups, found), reference.expand(4, -1))


def test_rows_learn_alone(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    groups = chain_groups(layout)
    rows = random_rows(layout, 3, 1)
    first = sinkhorn_matching(rows, rows[0], layout, groups, generator=seeded())
    other = rows.clone()
    other[1:] = random_rows(layout, 2, 9)
    assert torch.equal(first[0][0], sinkhorn_matching(other, rows[0], layout, groups, generator=seeded())[0][0])
    assert torch.equal(first[0][0], torch.arange(6))


@pytest.mark.parametrize("loss", ["midpoint", "random"])
def test_the_task_chooses_permutations_with_a_lower_loss_in_between(loss, random_rows):
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    layout = Layout.of(network)
    groups = chain_groups(layout)
    teacher, inputs = random_rows(layout, 1, 1), torch.randn(400, 5, generator=seeded(2))
    labels = functional_call(network, layout.unflatten(5 * teacher[0]), inputs).argmax(1)
    hidden = random_permutations(groups, 3, seeded(3))
    rows = (5 * teacher).expand(3, -1).gather(1, gather_index(layout, groups, hidden))
    losses = batch_losses(network, inputs, labels, batch_size=400, generator=seeded(4))
    config = SinkhornConfig(loss=loss, steps=60)
    found = sinkhorn_matching(
        rows, 5 * teacher[0], layout, groups, config=config, generator=seeded(5), task_loss=losses
    )
    middle = [losses((some + 5 * teacher) / 2) for some in (rows, permuted(rows, layout, groups, found))]
    assert (middle[1] < middle[0]).all()
    assert (middle[1] < 0.5 * middle[0]).any()


def test_a_task_loss_needs_a_task(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    rows = random_rows(layout, 2, 1)
    with pytest.raises(ConfigError, match="'midpoint' of Sinkhorn re-basin is the task's: give task_loss"):
        sinkhorn_matching(
            rows, rows[0], layout, chain_groups(layout), config=SinkhornConfig(loss="midpoint"), generator=seeded()
        )
    with pytest.raises(ConfigError, match="must be positive"):
        SinkhornConfig(steps=0)


def test_one_layer_needs_nothing(random_rows):
    layout = Layout.of(nn.Linear(4, 2))
    rows = random_rows(layout, 2, 1)
    assert sinkhorn_matching(rows, rows[0], layout, [], generator=seeded()) == []
    assert torch.equal(align(rows, rows[0], layout, [], seeded()), rows)
