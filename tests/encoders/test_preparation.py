"""Alignment and standardisation before an encoder: fitted on training networks, blind to the order of hidden units."""

import polars as pl
import pytest
import torch
from torch import nn

from weightspace.encoders.preparation import Preparation, aligned_rows
from weightspace.errors import LayoutError, ZooError
from weightspace.networks import Layout, ResNet18, to_json
from weightspace.networks.population import population_logits
from weightspace.symmetry import chain_groups, gather_index, random_permutations, symmetry_of
from weightspace.views.standardise import Standardisation
from weightspace.zoo import Zoo

NETWORK = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
LAYOUT = Layout.of(NETWORK)
RUNS, STEPS = 8, 3


def zoo_of(rows, layout=LAYOUT, steps=STEPS, **columns) -> Zoo:
    table = {"model": [f"{i // steps}" for i in range(len(rows))], "step": [i % steps for i in range(len(rows))]}
    return Zoo.in_memory(rows, layout, pl.DataFrame(table | columns), {})


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Runs near one network, in arbitrary orders of their units; a run is one smooth path."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(LAYOUT.parameters, generator=g)
    ends = base + 0.1 * torch.randn(RUNS, 1, LAYOUT.parameters, generator=g)
    paths = ends * torch.tensor([0.2, 0.6, 1.0])[:, None] + 0.01 * torch.randn(
        RUNS, STEPS, LAYOUT.parameters, generator=g
    )
    return shuffled(paths.flatten(0, 1), g)


def shuffled(rows: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    groups = chain_groups(LAYOUT)
    permutations = [p.repeat_interleave(STEPS, 0) for p in random_permutations(groups, len(rows) // STEPS, g)]
    return rows.gather(1, gather_index(LAYOUT, groups, permutations))


def test_training_rows_are_standardised_per_layer(rows):
    prepared = Preparation.fit(zoo_of(rows)).apply(zoo_of(rows))
    first = 3 * 5 + 5
    for layer in (prepared[:, :first], prepared[:, first:]):
        means = layer.double().mean(1)
        assert abs(float(means.mean())) < 1e-5
        assert float(layer.double().var(1, correction=0).mean()) == pytest.approx(1, abs=1e-5)


def test_networks_may_stay_in_their_own_order(rows):
    zoo = zoo_of(rows)
    preparation = Preparation.fit(zoo, align=False)
    assert preparation.reference is None
    assert torch.equal(preparation.aligned(zoo), zoo.weights())
    assert torch.equal(preparation.apply(zoo), Standardisation.fit(zoo.weights(), LAYOUT).apply(zoo.weights()))
    torch.testing.assert_close(preparation.invert(preparation.apply(zoo)), rows, rtol=1e-5, atol=1e-6)


def test_alignment_brings_the_runs_together(rows):
    preparation = Preparation.fit(zoo_of(rows))
    ends = preparation.aligned(zoo_of(rows))[STEPS - 1 :: STEPS]
    spread = (ends - ends.mean(0)).norm(dim=1)
    assert (spread < 0.25 * rows[STEPS - 1 :: STEPS].sub(rows[STEPS - 1 :: STEPS].mean(0)).norm(dim=1)).all()
    torch.testing.assert_close(preparation.reference, ends.mean(0), rtol=1e-5, atol=1e-6)


def test_order_of_units_and_of_rows_does_not_matter(rows):
    preparation = Preparation.fit(zoo_of(rows))
    prepared = preparation.apply(zoo_of(rows))
    other = shuffled(rows, torch.Generator().manual_seed(9))
    assert not torch.equal(other, rows)
    assert torch.equal(preparation.apply(zoo_of(other)), prepared)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    assert torch.equal(preparation.apply(zoo_of(rows).take(order)), prepared[order])


def test_a_run_moves_as_a_whole_by_its_last_checkpoint(rows):
    """Early checkpoints that match the reference in another order go along with their run."""
    changed = rows.clone()
    changed[0] = torch.randn(LAYOUT.parameters, generator=torch.Generator().manual_seed(5))
    preparation = Preparation.fit(zoo_of(rows))
    before, after = preparation.aligned(zoo_of(rows)), preparation.aligned(zoo_of(changed))
    assert torch.equal(before[1:], after[1:])
    same_place = [int((rows[2] == value).nonzero()) for value in before[2]]
    assert torch.equal(after[0], changed[0][same_place])


def test_invert_undoes_apply_up_to_the_order(rows):
    preparation = Preparation.fit(zoo_of(rows))
    back = preparation.invert(preparation.apply(zoo_of(rows)))
    torch.testing.assert_close(back, preparation.aligned(zoo_of(rows)), rtol=1e-5, atol=1e-6)
    images = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    for row, other in zip(rows, back, strict=True):
        outputs = [torch.func.functional_call(NETWORK, LAYOUT.unflatten(one), images) for one in (row, other)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_the_best_by_validation_accuracy_is_where_the_reference_starts(rows):
    """Networks far apart: the mean's order of units is that of the best network, whichever it is."""
    far = torch.randn(4, LAYOUT.parameters, generator=torch.Generator().manual_seed(3))
    for best in range(4):
        accuracy = [1.0 if i == best else 0.1 for i in range(4)]
        zoo = zoo_of(far, steps=1, **{"metric.validation_accuracy": accuracy})
        fitted = Preparation.fit(zoo)
        assert torch.equal(fitted.aligned(zoo)[best], far[best])


def test_without_accuracies_it_works_too(rows):
    zoo = zoo_of(rows)
    plain = Preparation.fit(zoo)
    equal = Preparation.fit(zoo_of(rows, **{"metric.validation_accuracy": [0.5] * len(rows)}))
    assert torch.equal(plain.reference, equal.reference)


def test_equal_seeds_equal_preparations(rows):
    one, other = Preparation.fit(zoo_of(rows), seed=3), Preparation.fit(zoo_of(rows), seed=3)
    assert torch.equal(one.reference, other.reference) and torch.equal(one.scale.mean, other.scale.mean)


def test_no_hidden_layer_means_nothing_to_align():
    layout = Layout.of(nn.Linear(4, 3))
    rows = torch.randn(6, layout.parameters, generator=torch.Generator().manual_seed(0))
    zoo = zoo_of(rows, layout, steps=1)
    assert torch.equal(aligned_rows(zoo, rows[0]), rows)
    assert torch.equal(Preparation.fit(zoo).aligned(zoo), rows)


def test_what_cannot_be_prepared(rows):
    preparation = Preparation.fit(zoo_of(rows))
    broken = rows.clone()
    broken[4, 2] = float("nan")
    with pytest.raises(ZooError, match=r"fitting an encoder needs finite weights, .* model '1' at step 1"):
        Preparation.fit(zoo_of(broken))
    with pytest.raises(ZooError, match=r"encoding needs finite weights, .*\.finite\(\)"):
        preparation.apply(zoo_of(broken))
    other = Layout.of(nn.Linear(3, 2))
    with pytest.raises(
        LayoutError, match=r"the zoo has 8 parameters .* the encoder was fitted on 32 .*same architecture"
    ):
        preparation.apply(zoo_of(torch.zeros(3, 8), other))


def test_standardisation_with_statistics_of_training_only(rows):
    """Held-out networks are mapped by the same affine map, whatever their own statistics."""
    preparation = Preparation.fit(zoo_of(rows))
    held_out = zoo_of(3 * rows[:6])
    wanted = Standardisation(preparation.scale.mean, preparation.scale.std).apply(preparation.aligned(held_out))
    assert torch.equal(preparation.apply(held_out), wanted)
    assert preparation.apply(held_out).abs().mean() > 2 * preparation.apply(zoo_of(rows[:6])).abs().mean()


# --- which units may be renumbered ---------------------------------------------------------------------------------


def test_networks_with_skips_are_aligned_by_their_traced_groups():
    network = ResNet18(image_shape=(1, 8, 8), width=2)
    layout, g = Layout.of(network.build()), torch.Generator().manual_seed(0)
    row = torch.rand(layout.parameters, generator=g)  # norms with positive variances
    groups = symmetry_of(network.build(), torch.zeros(2, 1, 8, 8)).groups
    copies = row.expand(5, -1).gather(1, gather_index(layout, groups, random_permutations(groups, 5, g)))
    table = pl.DataFrame({"model": list("abcde"), "step": [0] * 5})
    zoo = Zoo.in_memory(copies, layout, table, {"network": to_json(network)})
    assert not torch.equal(copies, row.expand(5, -1))
    assert torch.equal(aligned_rows(zoo, row), row.expand(5, -1))
    images = torch.randn(3, 1, 8, 8, generator=g)
    aligned = aligned_rows(zoo, copies[0])
    before, after = (population_logits(network, rows, images) for rows in (copies, aligned))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)  # sums in another order
