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
    PermutationGroup,
    Place,
    align,
    align_runs,
    chain_groups,
    gather_index,
    matching,
    permuted,
    random_permutations,
    weight_matching,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))


def objective(rows: Tensor, reference: Tensor) -> Tensor:
    return rows.double() @ reference.double()


def test_random_permutations_are_recovered_exactly(chain, random_rows):
    _, layout, groups = chain
    reference = random_rows(layout, 1, 1)[0]
    hidden = random_permutations(groups, 20, seeded(2))
    rows = reference.expand(20, -1).gather(1, gather_index(layout, groups, hidden))
    found = weight_matching(rows, reference, layout, groups, generator=seeded())
    assert torch.equal(rows.gather(1, gather_index(layout, groups, found)), reference.expand(20, -1))
    for there, back, group in zip(hidden, found, groups, strict=True):
        assert torch.equal(there.gather(1, back), torch.arange(group.size).expand(20, -1))
    assert torch.equal(align(rows, reference, layout, groups, seeded()), reference.expand(20, -1))


def test_different_networks_are_recovered_under_noise(chain, random_rows):
    _, layout, groups = chain
    originals = random_rows(layout, 20, 1)
    # Each row is its own reference, hidden and disturbed by a tenth of the weights' size.
    for original, seed in zip(originals[:5], range(5), strict=True):
        noisy = original + 0.03 * torch.randn(20, layout.parameters, generator=seeded(seed))
        hidden = noisy.gather(1, gather_index(layout, groups, random_permutations(groups, 20, seeded(seed))))
        assert torch.equal(align(hidden, original, layout, groups, seeded()), noisy)


def test_alignment_keeps_the_function_and_every_value(chain, random_rows):
    network, layout, groups = chain
    rows = random_rows(layout, 6, 1)
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert torch.equal(aligned.sort(1).values, rows.sort(1).values)
    assert not torch.equal(aligned[1:], rows[1:])
    images = torch.randn(5, *((10,) if isinstance(network[0], nn.Linear) else (1, 8, 8)), generator=seeded(3))
    network.eval()
    for before, after in zip(rows, aligned, strict=True):
        wanted, found = (functional_call(network, layout.unflatten(row), images) for row in (before, after))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # float32, sums reordered


def test_align_is_the_gather_by_the_matching(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 7, 1)
    permutations = weight_matching(rows, rows[0], layout, groups, generator=seeded())
    gathered = rows.gather(1, gather_index(layout, groups, permutations))
    assert torch.equal(align(rows, rows[0], layout, groups, seeded()), gathered)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_inputs_stay_and_their_type_is_kept(chain, dtype, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 5, 1).to(dtype)
    kept = rows.clone()
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert torch.equal(rows, kept)
    assert aligned.dtype == dtype
    assert not torch.equal(aligned, kept)


def test_no_step_decreases_the_objective(chain, monkeypatch, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 30, 1)
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


def test_alignment_ends_in_a_local_optimum_that_it_does_not_leave(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 30, 1)
    aligned = align(rows, rows[0], layout, groups, seeded())
    assert (objective(aligned, rows[0])[1:] > objective(rows, rows[0])[1:]).all()
    assert torch.equal(aligned[0], rows[0])
    assert torch.equal(align(aligned, rows[0], layout, groups, seeded(9)), aligned)  # whatever the order of groups


def test_networks_that_cannot_gain_stay_as_they_are(chain, random_rows):
    _, layout, groups = chain
    rows = torch.cat([random_rows(layout, 5, 1), torch.zeros(1, layout.parameters)])
    reference = torch.ones(layout.parameters)  # its product with a row is the row's sum in any order
    assert torch.equal(align(rows, reference, layout, groups, seeded()), rows)


def test_one_hidden_layer_reaches_the_exact_optimum(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    groups = chain_groups(layout)
    rows = random_rows(layout, 8, 1)
    aligned = align(rows, rows[0], layout, groups, seeded())
    every = torch.tensor(list(all_permutations(range(5))))
    index = gather_index(layout, groups, [every])
    for row, found in zip(rows, aligned, strict=True):
        best = objective(row.expand(len(every), -1).gather(1, index), rows[0]).max()
        torch.testing.assert_close(objective(found[None], rows[0])[0], best, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(widths=st.lists(st.integers(1, 8), min_size=3, max_size=5), seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_random_chains_never_lose_and_are_batch_independent(widths, seed, count, random_rows):
    layout = Layout.of(nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))))
    groups = chain_groups(layout)
    rows = random_rows(layout, count + 1, seed)
    reference, rows = rows[0], rows[1:]
    together = align(rows, reference, layout, groups, seeded(seed))
    assert (objective(together, reference) >= objective(rows, reference) - 1e-12).all()
    for row, aligned in zip(rows, together, strict=True):
        assert torch.equal(align(row[None], reference, layout, groups, seeded(seed))[0], aligned)


def test_chunks_and_batch_mates_change_nothing(chain, monkeypatch, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 23, 1)
    together = align(rows, rows[0], layout, groups, seeded())
    alone = torch.cat([align(row[None], rows[0], layout, groups, seeded()) for row in rows])
    monkeypatch.setattr(matching, "CHUNK_VALUES", 4 * layout.parameters)
    assert torch.equal(align(rows, rows[0], layout, groups, seeded()), together)
    assert torch.equal(alone, together)


def test_each_row_may_have_a_reference_of_its_own(chain, random_rows, monkeypatch):
    _, layout, groups = chain
    rows, references = random_rows(layout, 9, 1), random_rows(layout, 9, 2)
    monkeypatch.setattr(matching, "CHUNK_VALUES", 4 * layout.parameters)
    together = align(rows, references, layout, groups, seeded())
    for row, reference, aligned in zip(rows, references, together, strict=True):
        assert torch.equal(align(row[None], reference, layout, groups, seeded())[0], aligned)
    with pytest.raises(LayoutError, match="9 networks cannot be aligned to 8 references"):
        align(rows, references[:8], layout, groups, seeded())


def test_chunks_side_by_side_change_nothing(chain, random_rows, monkeypatch):
    _, layout, groups = chain
    rows = random_rows(layout, 23, 1)
    alone = align(rows, rows[0], layout, groups, seeded())
    monkeypatch.setattr(matching, "CHUNK_VALUES", 4 * layout.parameters)
    torch.set_num_threads(2)
    try:
        assert torch.equal(align(rows, rows[0], layout, groups, seeded()), alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_two_axes_of_one_tensor_never_lose(random_rows):
    # As in x + W f(x): both axes of W count the units of the stream, so a step's gain is not linear in the permutation.
    layout = Layout.of(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)))
    places = (Place("0.weight", 0), Place("0.bias", 0), Place("1.weight", 0), Place("1.weight", 1), Place("1.bias", 0))
    stream = [PermutationGroup("0", 6, (*places, Place("2.weight", 1)))]
    rows = random_rows(layout, 300, 1)
    aligned = align(rows, rows[0], layout, stream, seeded())
    gains = objective(aligned, rows[0]) - objective(rows, rows[0])
    assert gains.min() >= 0 and (gains > 0).sum() > 100
    hidden = rows.gather(1, gather_index(layout, stream, random_permutations(stream, 300, seeded(2))))
    near = rows[:1].gather(1, gather_index(layout, stream, [torch.tensor([[1, 0, 2, 3, 4, 5]])]))
    assert torch.equal(align(near, rows[0], layout, stream, seeded()), rows[:1])
    assert (objective(align(hidden, rows[0], layout, stream, seeded()), rows[0]) >= objective(hidden, rows[0])).all()


def test_places_that_begin_late_and_repeat_are_matched(random_rows):
    # A layer that reads two stacked copies of the units behind two other inputs.
    layout = Layout.of(nn.Sequential(nn.Linear(3, 4), nn.Linear(10, 2)))
    groups = [PermutationGroup("0", 4, (Place("0.weight", 0), Place("0.bias", 0), Place("1.weight", 1, 1, 2, 2)))]
    reference = random_rows(layout, 1, 1)
    hidden = reference.expand(20, -1).gather(
        1, gather_index(layout, groups, random_permutations(groups, 20, seeded(3)))
    )
    assert torch.equal(align(hidden, reference[0], layout, groups, seeded()), reference.expand(20, -1))


def test_permuting_is_the_gather(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 7, 1)
    permutations = random_permutations(groups, 7, seeded(2))
    assert torch.equal(
        permuted(rows, layout, groups, permutations), rows.gather(1, gather_index(layout, groups, permutations))
    )


def test_the_generator_alone_decides(random_rows):
    layout = Layout.of(mlp())
    groups = chain_groups(layout)
    rows = random_rows(layout, 40, 1)
    first, again, *others = (align(rows, rows[0], layout, groups, seeded(seed)) for seed in (0, 0, 1, 2, 3, 4, 5))
    assert torch.equal(first, again)
    assert not all(torch.equal(first, other) for other in others)  # another order of groups, another local optimum


def test_a_run_follows_its_last_checkpoint(random_rows):
    layout = Layout.of(cnn())
    groups = chain_groups(layout)
    finals = random_rows(layout, 3, 1)
    models = torch.tensor([5, 2, 5, 7, 2, 7, 2])
    last = torch.tensor([False, False, True, True, False, False, True])
    rows = random_rows(layout, len(models), 2)
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
def test_a_run_needs_one_last_checkpoint(last, found, random_rows):
    layout = Layout.of(mlp())
    rows = random_rows(layout, 3, 0)
    with pytest.raises(ConfigError, match=found):
        align_runs(rows, rows[0], layout, chain_groups(layout), torch.tensor([1, 1, 4]), torch.tensor(last), seeded())


def test_one_layer_and_empty_zoos_need_no_alignment(random_rows):
    layout = Layout.of(nn.Linear(4, 2))
    rows = random_rows(layout, 3, 0)
    assert torch.equal(align(rows, rows[0], layout, chain_groups(layout), seeded()), rows)
    layout = Layout.of(mlp())
    reference = random_rows(layout, 1, 0)[0]
    assert align(reference[None][:0], reference, layout, chain_groups(layout), seeded()).shape == (0, layout.parameters)


def test_broken_rows_are_named(random_rows):
    layout = Layout.of(mlp())
    groups = chain_groups(layout)
    rows = random_rows(layout, 4, 0)
    rows[2, 5] = torch.inf
    with pytest.raises(LayoutError, match=r"in 1 of 4 networks \(first: number 2\)"):
        align(rows, rows[0], layout, groups, seeded())
    with pytest.raises(LayoutError, match="the reference to align has NaN"):
        align(rows[:2], rows[2], layout, groups, seeded())
    with pytest.raises(LayoutError, match=f"but the layout has {layout.parameters}"):
        align(rows[:2, 1:], rows[0, 1:], layout, groups, seeded())
