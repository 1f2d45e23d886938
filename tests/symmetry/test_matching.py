"""Laws of alignment: known answers, exact optima, no step that loses, and no network that sees its batch mates."""

from itertools import pairwise
from itertools import permutations as all_permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    align,
    align_runs,
    chain_groups,
    gather_index,
    matching,
    mean_reference,
    random_permutations,
    weight_matching,
)

NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)),
    "cnn": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.ReLU()],
        *[nn.Flatten(), nn.Linear(20, 4)],
    ),
    "cnn-batch-norm": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)],
    ),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(layout: Layout, count: int, generator: torch.Generator) -> Tensor:
    """Independent networks with weights of the size of an initialisation, variances of batch-norm positive."""
    rows = 0.3 * torch.randn(count, layout.parameters, generator=generator)
    for spec in layout.tensors:
        if spec.role == "running_var":
            rows[:, layout.slices[spec.name]] = 1 + rows[:, layout.slices[spec.name]].square()
    return rows


def objective(rows: Tensor, reference: Tensor) -> Tensor:
    return rows.double() @ reference.double()


@pytest.fixture(params=NETWORKS)
def chain(request):
    network = NETWORKS[request.param]()
    layout = Layout.of(network)
    return network, layout, chain_groups(layout)


def test_random_permutations_are_recovered_exactly(chain):
    _, layout, groups = chain
    reference = random_rows(layout, 1, seeded(1))[0]
    hidden = random_permutations(groups, 20, seeded(2))
    rows = reference.expand(20, -1).gather(1, gather_index(layout, groups, hidden))
    found = weight_matching(rows, reference, layout, groups, generator=seeded())
    assert torch.equal(rows.gather(1, gather_index(layout, groups, found)), reference.expand(20, -1))
    for there, back, group in zip(hidden, found, groups, strict=True):
        assert torch.equal(there.gather(1, back), torch.arange(group.size).expand(20, -1))
    assert torch.equal(align(rows, reference, layout, groups, seeded()), reference.expand(20, -1))


def test_different_networks_are_recovered_under_noise(chain):
    _, layout, groups = chain
    originals = random_rows(layout, 20, seeded(1))
    # Each row is its own reference, hidden and disturbed by a tenth of the weights' size.
    for original, seed in zip(originals[:5], range(5), strict=True):
        noisy = original + 0.03 * torch.randn(20, layout.parameters, generator=seeded(seed))
        hidden = noisy.gather(1, gather_index(layout, groups, random_permutations(groups, 20, seeded(seed))))
        assert torch.equal(align(hidden, original, layout, groups, seeded()), noisy)


def test_alignment_keeps_the_function_and_every_value(chain):
    network, layout, groups = chain
    rows = random_rows(layout, 6, seeded(1))
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert torch.equal(aligned.sort(1).values, rows.sort(1).values)
    assert not torch.equal(aligned[1:], rows[1:])
    images = torch.randn(5, *((10,) if isinstance(network[0], nn.Linear) else (1, 8, 8)), generator=seeded(3))
    network.eval()
    for before, after in zip(rows, aligned, strict=True):
        wanted, found = (functional_call(network, layout.unflatten(row), images) for row in (before, after))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # float32, sums reordered


def test_align_is_the_gather_by_the_matching(chain):
    _, layout, groups = chain
    rows = random_rows(layout, 7, seeded(1))
    permutations = weight_matching(rows, rows[0], layout, groups, generator=seeded())
    gathered = rows.gather(1, gather_index(layout, groups, permutations))
    assert torch.equal(align(rows, rows[0], layout, groups, seeded()), gathered)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_inputs_stay_and_their_type_is_kept(chain, dtype):
    _, layout, groups = chain
    rows = random_rows(layout, 5, seeded(1)).to(dtype)
    kept = rows.clone()
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert torch.equal(rows, kept)
    assert aligned.dtype == dtype
    assert not torch.equal(aligned, kept)


def test_no_step_decreases_the_objective(chain, monkeypatch):
    _, layout, groups = chain
    rows = random_rows(layout, 30, seeded(1))
    values = []
    costs = matching._costs

    def watched(current, *rest):
        values.append(sum(current[n] @ rows[0, place].double() for n, place in layout.slices.items()))
        return costs(current, *rest)

    monkeypatch.setattr(matching, "_costs", watched)
    aligned = align(rows, rows[0], layout, groups, seeded())
    steps = torch.stack([*values, objective(aligned, rows[0])]).diff(dim=0)
    assert len(steps) > len(groups) and (steps.amax(1) > 0).any()
    assert steps.min() > -1e-12  # rounding of a sum of a few hundred products in float64


def test_alignment_ends_in_a_local_optimum_that_it_does_not_leave(chain):
    _, layout, groups = chain
    rows = random_rows(layout, 30, seeded(1))
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert (objective(aligned, rows[0])[1:] > objective(rows, rows[0])[1:]).all()
    assert torch.equal(aligned[0], rows[0])
    assert torch.equal(align(aligned, rows[0], layout, groups, seeded(9)), aligned)  # whatever the order of groups


def test_networks_that_cannot_gain_stay_as_they_are(chain):
    _, layout, groups = chain
    rows = torch.cat([random_rows(layout, 5, seeded(1)), torch.zeros(1, layout.parameters)])
    reference = torch.ones(layout.parameters)  # its product with a row is the row's sum in any order
    assert torch.equal(align(rows, reference, layout, groups, seeded()), rows)


def test_one_hidden_layer_reaches_the_exact_optimum():
    layout = Layout.of(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    groups = chain_groups(layout)
    rows = random_rows(layout, 8, seeded(1))
    aligned = align(rows, rows[0], layout, groups, seeded())
    every = torch.tensor(list(all_permutations(range(5))))
    index = gather_index(layout, groups, [every])
    for row, found in zip(rows, aligned, strict=True):
        best = objective(row.expand(len(every), -1).gather(1, index), rows[0]).max()
        torch.testing.assert_close(objective(found[None], rows[0])[0], best, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(widths=st.lists(st.integers(1, 8), min_size=3, max_size=5), seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_random_chains_never_lose_and_are_batch_independent(widths, seed, count):
    layout = Layout.of(nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))))
    groups = chain_groups(layout)
    rows = random_rows(layout, count + 1, seeded(seed))
    reference, rows = rows[0], rows[1:]
    together = align(rows, reference, layout, groups, seeded(seed))
    assert (objective(together, reference) >= objective(rows, reference) - 1e-12).all()
    for row, aligned in zip(rows, together, strict=True):
        assert torch.equal(align(row[None], reference, layout, groups, seeded(seed))[0], aligned)


def test_chunks_and_batch_mates_change_nothing(chain, monkeypatch):
    _, layout, groups = chain
    rows = random_rows(layout, 23, seeded(1))
    together = align(rows, rows[0], layout, groups, seeded())
    alone = torch.cat([align(row[None], rows[0], layout, groups, seeded()) for row in rows])
    monkeypatch.setattr(matching, "CHUNK_VALUES", 4 * layout.parameters)
    assert torch.equal(align(rows, rows[0], layout, groups, seeded()), together)
    assert torch.equal(alone, together)


def test_the_generator_alone_decides():
    layout = Layout.of(NETWORKS["mlp"]())
    groups = chain_groups(layout)
    rows = random_rows(layout, 40, seeded(1))
    first, again, *others = (align(rows, rows[0], layout, groups, seeded(seed)) for seed in (0, 0, 1, 2, 3, 4, 5))
    assert torch.equal(first, again)
    assert not all(torch.equal(first, other) for other in others)  # another order of groups, another local optimum


def test_a_run_follows_its_last_checkpoint():
    layout = Layout.of(NETWORKS["cnn"]())
    groups = chain_groups(layout)
    generator = seeded(1)
    finals = random_rows(layout, 3, generator)
    models = torch.tensor([5, 2, 5, 7, 2, 7, 2])
    last = torch.tensor([False, False, True, True, False, False, True])
    rows = random_rows(layout, len(models), generator)
    rows[last] = finals
    rows[0, 0] = torch.nan  # an early checkpoint may be broken, it is not matched
    aligned = align_runs(rows, finals[0], layout, groups, models, last, seeded())
    permutations = weight_matching(finals, finals[0], layout, groups, generator=seeded())
    final_of = {5: 0, 7: 1, 2: 2}
    for row, found, model in zip(rows, aligned, models.tolist(), strict=True):
        own = [permutation[final_of[model]][None] for permutation in permutations]
        wanted = row[None].gather(1, gather_index(layout, groups, own))[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    # All checkpoints of a run moved alike, so the distances within it are those of before.
    torch.testing.assert_close((aligned[1] - aligned[4]).norm(), (rows[1] - rows[4]).norm())


@pytest.mark.parametrize(
    ("last", "found"), [([True, False, False], "model 4 has 0"), ([True, True, True], "model 1 has 2")]
)
def test_a_run_needs_one_last_checkpoint(last, found):
    layout = Layout.of(NETWORKS["mlp"]())
    rows = random_rows(layout, 3, seeded())
    with pytest.raises(ConfigError, match=found):
        align_runs(rows, rows[0], layout, chain_groups(layout), torch.tensor([1, 1, 4]), torch.tensor(last), seeded())


def test_mean_reference_of_disguised_copies_is_the_network():
    layout = Layout.of(NETWORKS["mlp"]())
    groups = chain_groups(layout)
    network = random_rows(layout, 1, seeded(1))[0]
    hidden = random_permutations(groups, 12, seeded(2))
    copies = network.expand(12, -1).gather(1, gather_index(layout, groups, hidden))
    mean = mean_reference(copies, copies[3], layout, groups, seeded())
    torch.testing.assert_close(mean, copies[3], rtol=1e-6, atol=1e-7)  # rounding of a mean of 12 equal numbers


def test_mean_reference_gathers_the_networks_round_by_round_and_ends(chain):
    _, layout, groups = chain
    rows = random_rows(layout, 16, seeded(1)).double()
    means = [mean_reference(rows, rows[0], layout, groups, seeded(), rounds=rounds) for rounds in (1, 2, 3, 30, 31)]
    # Norms do not change, so the mean squared distance to the mean falls as the norm of the mean grows.
    norms = torch.stack(means).norm(dim=1)
    assert norms[0] > rows.mean(0).norm()
    assert norms[1] > norms[0]
    assert (norms.diff() >= 0).all()
    assert torch.equal(means[-1], means[-2])


def test_rounds_must_be_positive():
    layout = Layout.of(NETWORKS["mlp"]())
    rows = random_rows(layout, 2, seeded())
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        mean_reference(rows, rows[0], layout, chain_groups(layout), seeded(), rounds=0)


def test_one_layer_and_empty_zoos_need_no_alignment():
    layout = Layout.of(nn.Linear(4, 2))
    rows = random_rows(layout, 3, seeded())
    assert torch.equal(align(rows, rows[0], layout, chain_groups(layout), seeded()), rows)
    layout = Layout.of(NETWORKS["mlp"]())
    reference = random_rows(layout, 1, seeded())[0]
    assert align(reference[None][:0], reference, layout, chain_groups(layout), seeded()).shape == (0, layout.parameters)


def test_broken_rows_are_named():
    layout = Layout.of(NETWORKS["mlp"]())
    groups = chain_groups(layout)
    rows = random_rows(layout, 4, seeded())
    rows[2, 5] = torch.inf
    with pytest.raises(LayoutError, match=r"in 1 of 4 networks \(first: number 2\)"):
        align(rows, rows[0], layout, groups, seeded())
    with pytest.raises(LayoutError, match="the reference to align has NaN"):
        align(rows[:2], rows[2], layout, groups, seeded())
    with pytest.raises(LayoutError, match=f"but the layout has {layout.parameters}"):
        align(rows[:2, 1:], rows[0, 1:], layout, groups, seeded())
