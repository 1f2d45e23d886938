"""Laws of activation matching: copies are found exactly, products and correlations against the plain formula."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call

from weightspace import networks
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    PermutationGroup,
    Place,
    activation_matching,
    chain_groups,
    gather_index,
    permuted,
    random_permutations,
    unit_activations,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("measure", ["product", "correlation"])
def test_permuted_copies_are_recovered_exactly(chain, random_rows, examples, measure):
    network, layout, groups = chain
    reference = random_rows(layout, 1, 1)
    hidden = random_permutations(groups, 10, seeded(2))
    rows = reference.expand(10, -1).gather(1, gather_index(layout, groups, hidden))
    found = activation_matching(network, rows, reference[0], groups, examples(network, 300, 3), measure=measure)
    aligned = permuted(rows, layout, groups, found)
    inputs = examples(network, 300, 4)
    for group, answers in zip(groups, unit_activations(network, rows[:1], groups, inputs), strict=True):
        assert answers.shape[:2] == (1, group.size)
    # Dead units are alike, so the function decides, and the weights of all units that ever answer.
    wanted, same = (functional_call(network.eval(), layout.unflatten(r), inputs) for r in (reference[0], aligned[0]))
    torch.testing.assert_close(same, wanted, rtol=1e-5, atol=1e-5)  # float32, sums reordered
    alive = [(a != 0).any(2)[0] for a in unit_activations(network, reference, groups, examples(network, 300, 3))]
    for there, back, living in zip(hidden, found, alive, strict=True):
        assert living.sum() > 2
        assert torch.equal(there.gather(1, back)[:, living], torch.arange(len(living)).expand(10, -1)[:, living])


@pytest.mark.parametrize("measure", ["product", "correlation"])
def test_assignments_are_those_of_the_plain_formula(random_rows, measure):
    network = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))
    layout = Layout.of(network)
    groups = chain_groups(layout)
    rows, inputs = random_rows(layout, 3, 1), torch.randn(600, 10, generator=seeded(2))
    found = activation_matching(network, rows[1:], rows[0], groups, inputs, measure=measure)

    def answers(row):
        layers = [module.to(torch.float32) for module in network]
        network.load_state_dict(layout.unflatten(row))
        x, kept = inputs, []
        with torch.no_grad():
            for layer in layers:
                x = layer(x)
                if isinstance(layer, nn.Tanh):
                    kept.append(x.double().numpy())
        return kept

    wanted = answers(rows[0])
    for i, row in enumerate(rows[1:]):
        for k, (a, b) in enumerate(zip(wanted, answers(row), strict=True)):
            n = a.shape[1]
            gains = a.T @ b if measure == "product" else np.corrcoef(a.T, b.T)[:n, n:]
            assert found[k][i].tolist() == linear_sum_assignment(gains, maximize=True)[1].tolist()


def test_rescaled_units_are_found_by_correlation_only(random_rows):
    network = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
    layout = Layout.of(network)
    groups = chain_groups(layout)
    reference = random_rows(layout, 1, 1)
    scaled = reference.clone()
    factor = torch.logspace(-2, 2, 12)
    state = layout.unflatten(scaled)
    state["0.weight"].mul_(factor[:, None])
    state["0.bias"].mul_(factor)
    state["2.weight"].div_(factor)
    order = [torch.randperm(12, generator=seeded(2))[None]]
    rows = permuted(scaled, layout, groups, order)
    inputs = torch.randn(500, 10, generator=seeded(3))
    back = activation_matching(network, rows, reference[0], groups, inputs, measure="correlation")
    assert torch.equal(order[0].gather(1, back[0]), torch.arange(12)[None])
    plain = activation_matching(network, rows, reference[0], groups, inputs)
    assert not torch.equal(order[0].gather(1, plain[0]), torch.arange(12)[None])


def test_batch_mates_and_batches_change_nothing(chain, random_rows, examples, monkeypatch):
    network, layout, groups = chain
    rows, inputs = random_rows(layout, 6, 1), examples(network, 100, 2)
    together = activation_matching(network, rows, rows[0], groups, inputs)
    monkeypatch.setattr("weightspace.symmetry.activations.VALUES_AT_ONCE", 40 * len(rows) * sum(g.size for g in groups))
    for i, row in enumerate(rows):
        alone = activation_matching(network, row[None], rows[0], groups, inputs)
        assert all(torch.equal(one[0], all_[i]) for one, all_ in zip(alone, together, strict=True))


def test_convolutions_of_a_published_network_are_read_behind_pooling(random_rows):
    config = networks.by_name("cnn_s", (1, 28, 28), 10)
    network, inputs = config.build(), torch.randn(4, 1, 28, 28, generator=seeded())
    layout = Layout.of(network)
    groups = chain_groups(layout)
    row = random_rows(layout, 1, 1)
    found = unit_activations(network, row, groups, inputs)
    assert [tuple(a.shape) for a in found] == [(1, 8, 4 * 144), (1, 6, 4 * 16), (1, 4, 4 * 9), (1, 20, 4)]
    network.load_state_dict(layout.unflatten(row[0]))
    with torch.no_grad():
        x = network[:4].eval()(inputs)  # conv, pool, tanh, dropout
    torch.testing.assert_close(found[0][0], x.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_compared_is_named(chain, random_rows, examples):
    network, layout, groups = chain
    rows, inputs = random_rows(layout, 2, 1), examples(network, 5, 2)
    with pytest.raises(ConfigError, match="needs inputs"):
        activation_matching(network, rows, rows[0], groups, inputs[:0])
    unread = PermutationGroup("0", groups[0].size, (Place("0.weight", 0),))
    with pytest.raises(LayoutError, match="reads the units of group '0'"):
        activation_matching(network, rows, rows[0], [unread], inputs)
    rows[1] = torch.inf
    with pytest.raises(LayoutError, match="NaN or infinite"):
        activation_matching(network, rows, rows[0], groups, inputs)
