"""Laws of the straight-through estimator: copies are found, and the loss halfway falls below that of matching."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    batch_losses,
    chain_groups,
    gather_index,
    permuted,
    random_permutations,
    straight_through_matching,
    weight_matching,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    """Six small networks trained on one task from different initialisations; rows, task and layout."""
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    layout = Layout.of(network)
    inputs = torch.randn(512, 4, generator=seeded(1))
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] > 0.5).long()
    rows = (0.4 * torch.randn(6, layout.parameters, generator=seeded(2))).requires_grad_()
    losses = batch_losses(network, inputs, labels, batch_size=512, generator=seeded())
    optimiser = torch.optim.Adam([rows], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        losses(rows).sum().backward()
        optimiser.step()
    assert losses(rows).max() < 0.3
    return network, layout, rows.detach(), inputs, labels


def middle_loss(network, layout, rows: Tensor, reference: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    halfway = (rows + reference) / 2
    return torch.stack(
        [F.cross_entropy(functional_call(network, layout.unflatten(r), inputs), labels) for r in halfway]
    )


def test_the_loss_halfway_is_at_most_that_of_weight_matching(trained):
    network, layout, rows, inputs, labels = trained
    groups = chain_groups(layout)
    losses = batch_losses(network, inputs, labels, batch_size=len(inputs), generator=seeded())
    found = straight_through_matching(
        rows[1:], rows[0], layout, groups, losses, generator=seeded(3), steps=60, learning_rate=0.05
    )
    matched = weight_matching(rows[1:], rows[0], layout, groups, generator=seeded(3))
    learned, plain, raw = (
        middle_loss(network, layout, some, rows[0], inputs, labels)
        for some in (permuted(rows[1:], layout, groups, found), permuted(rows[1:], layout, groups, matched), rows[1:])
    )
    assert (learned <= plain + 1e-6).all()  # the first batch is the whole task, behind the same weight matching
    assert learned.mean() < 0.95 * plain.mean()
    assert learned.mean() < raw.mean()


def test_permuted_copies_are_recovered_exactly(trained):
    network, layout, rows, inputs, labels = trained
    groups = chain_groups(layout)
    hidden = random_permutations(groups, 4, seeded(2))
    copies = rows[:1].expand(4, -1).gather(1, gather_index(layout, groups, hidden))
    losses = batch_losses(network, inputs, labels, batch_size=64, generator=seeded())
    found = straight_through_matching(copies, rows[0], layout, groups, losses, generator=seeded(), steps=3)
    assert torch.equal(permuted(copies, layout, groups, found), rows[:1].expand(4, -1))


def test_batches_use_every_example_once_and_are_those_of_the_seed():
    inputs = torch.arange(6.0)[:, None]
    weights = torch.tensor([[0.0, 0.0, 0.0, 1.0]])  # logits (0, 1) for every input

    def drawn(seed: int) -> list[float]:
        # The label tells the example apart: cross-entropy of class 0 and 1 differ.
        labels = torch.tensor([0, 1, 1, 1, 1, 1])
        losses = batch_losses(nn.Linear(1, 2), inputs, labels, batch_size=2, generator=seeded(seed))
        return [float(losses(weights)[0]) for _ in range(9)]

    high, low = (float(F.cross_entropy(torch.tensor([[0.0, 1.0]]), torch.tensor([k]))) for k in (0, 1))
    for start in (0, 3, 6):  # exactly one batch of each three holds the one example of class 0
        found = sorted(drawn(5)[start : start + 3])
        assert found == pytest.approx([low, low, (low + high) / 2])
    assert drawn(5) == drawn(5)
    assert any(drawn(5) != drawn(seed) for seed in range(5))


def test_impossible_settings_are_refused(trained):
    network, layout, rows, inputs, labels = trained
    with pytest.raises(ConfigError, match="between 1 and the 512 examples, got 513"):
        batch_losses(network, inputs, labels, batch_size=513, generator=seeded())
    losses = batch_losses(network, inputs, labels, batch_size=64, generator=seeded())
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        straight_through_matching(rows, rows[0], layout, chain_groups(layout), losses, generator=seeded(), steps=0)
