"""Laws of gauges: the function stays, twice is once, and all rescaled and permuted copies have one form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import ResNet18
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    Place,
    ScaleGroup,
    apply_scales,
    balanced,
    canonical_form,
    chain_scales,
    permuted,
    random_permutations,
    random_scales,
    symmetry_of,
    unit_view,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rescaled(rows, layout, groups, seed):
    """The same functions with random scales of the hidden units; an own derivation, tensor by tensor."""
    rows, generator = rows.clone(), seeded(seed)
    for group in groups:
        factor = (1.5 * torch.randn(len(rows), group.size, generator=generator)).exp()[:, None, None, :, None]
        normed = any("running" in place.tensor for place in group.places)
        for place in group.places:
            spec = layout.by_name[place.tensor]
            units = unit_view(rows, layout, group, place)
            if spec.input_axis == place.axis:
                units /= factor
            elif not normed or (spec.layer == "norm" and "running" not in spec.name):
                units *= factor
    return rows


def outputs(network, layout, rows, inputs):
    return torch.stack([functional_call(network.eval(), layout.unflatten(row), inputs) for row in rows])


def test_the_function_stays(chain, random_rows, examples):
    network, layout, groups = chain
    scales = chain_scales(layout, activation="relu")
    rows, inputs = random_rows(layout, 5, 1), examples(network, 8, 2)
    wanted = outputs(network, layout, rows, inputs)
    for form in (balanced(rows, layout, scales), canonical_form(rows, layout, groups)):
        assert not torch.equal(form, rows)
        torch.testing.assert_close(outputs(network, layout, form, inputs), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(  # the negative control of the helper: these are copies
        outputs(network, layout, rescaled(rows, layout, groups, 3), inputs), wanted, rtol=1e-4, atol=1e-4
    )


def test_balancing_twice_is_balancing_once(chain, random_rows):
    _, layout, _ = chain
    scales = chain_scales(layout, activation="relu")
    once = balanced(random_rows(layout, 5, 1), layout, scales)
    torch.testing.assert_close(balanced(once, layout, scales), once, rtol=1e-6, atol=1e-7)


def test_both_sides_of_every_unit_have_equal_norms(random_rows):
    network = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.LeakyReLU(), nn.Linear(9, 4))
    layout = Layout.of(network)
    rows = balanced(random_rows(layout, 5, 1).double(), layout, chain_scales(layout, activation="leaky_relu"))
    t = layout.unflatten(rows)
    for before, behind in (("0", "2"), ("2", "4")):
        incoming = t[f"{before}.weight"].square().sum(2) + t[f"{before}.bias"].square()
        torch.testing.assert_close(incoming, t[f"{behind}.weight"].square().sum(1), rtol=1e-8, atol=0)


def test_balancing_has_the_smallest_norm_of_all_scales(chain, random_rows):
    _, layout, groups = chain
    scales = chain_scales(layout, activation="relu")
    rows = random_rows(layout, 5, 1)
    least = balanced(rows, layout, scales)
    assert (least.norm(dim=1) < rows.norm(dim=1)).all()
    for seed in range(5):
        assert (least.norm(dim=1) < rescaled(least, layout, groups, seed).norm(dim=1)).all()


def test_rescaled_copies_have_one_gauge(chain, random_rows):
    _, layout, groups = chain
    scales = chain_scales(layout, activation="relu")
    rows = random_rows(layout, 5, 1).double()
    wanted = balanced(rows, layout, scales)
    copies = rescaled(rows, layout, groups, 2)
    assert not torch.allclose(copies, rows, rtol=1e-2)
    torch.testing.assert_close(balanced(copies, layout, scales), wanted, rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permuted_and_rescaled_copies_have_one_canonical_form(chain, random_rows, seed):
    _, layout, groups = chain
    scales = chain_scales(layout, activation="relu")
    rows = random_rows(layout, 3, 1).double()
    wanted = canonical_form(rows, layout, groups, scales)
    copies = permuted(
        rescaled(rows, layout, groups, seed), layout, groups, random_permutations(groups, 3, seeded(seed))
    )
    found = canonical_form(copies, layout, groups, scales)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_without_an_activation_only_the_order_is_canonical(chain, random_rows):
    _, layout, groups = chain
    rows = random_rows(layout, 4, 1)
    wanted = canonical_form(rows, layout, groups)
    copies = permuted(rows, layout, groups, random_permutations(groups, 4, seeded(2)))
    assert torch.equal(canonical_form(copies, layout, groups), wanted)
    assert torch.equal(wanted.sort(1).values, rows.sort(1).values)
    assert not torch.allclose(canonical_form(rescaled(rows, layout, groups, 3), layout, groups), wanted, rtol=1e-2)


def test_silent_and_unheard_units_keep_their_scale(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    rows = random_rows(layout, 2, 1)
    state = layout.unflatten(rows)
    state["0.weight"][:, 0] = 0
    state["0.bias"][:, 0] = 0
    state["2.weight"][:, :, 1] = 0
    found = layout.unflatten(balanced(rows, layout, chain_scales(layout, activation="relu")))
    assert torch.equal(found["2.weight"][:, :, 0], state["2.weight"][:, :, 0])
    assert torch.equal(found["0.weight"][:, 1], state["0.weight"][:, 1])
    assert not torch.equal(found["0.weight"][:, 2], state["0.weight"][:, 2])


def test_traced_scales_are_those_of_the_chain(chain, random_rows, examples):
    network, layout, groups = chain
    found = symmetry_of(network, examples(network, 2, 1))
    rows = random_rows(layout, 3, 1).double()
    wanted = balanced(rows, layout, chain_scales(layout, activation="relu"))
    torch.testing.assert_close(balanced(rows, layout, found.scales), wanted, rtol=1e-7, atol=1e-9)
    assert {group.places for group in found.groups} == {group.places for group in groups}


def test_random_traced_scales_leave_no_trace(random_rows):
    network = ResNet18(width=4).build()
    found = symmetry_of(network, torch.zeros(1, 3, 32, 32))
    exact = [group for group in found.scales if group.kind == "positive" and group.exact]
    assert len(exact) > 5
    rows = random_rows(found.layout, 2, 1).double()
    copies = apply_scales(rows, found.layout, exact, [s.double() for s in random_scales(exact, 2, seeded(2))])
    assert not torch.allclose(copies, rows, rtol=1e-2)
    one, other = (balanced(some, found.layout, found.scales) for some in (rows, copies))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_what_cannot_be_balanced_is_refused(random_rows):
    layout = Layout.of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    rows = random_rows(layout, 2, 1)
    with pytest.raises(ConfigError, match=r"units behind 'tanh' cannot be rescaled"):
        chain_scales(layout, activation="tanh")
    for powers, said in (((1.0, 1.0), r"\[1\.0\]"), ((2.0, -1.0), r"\[-1\.0, 2\.0\]")):
        group = ScaleGroup("0", 4, "positive", (Place("0.weight", 0), Place("1.weight", 1)), powers)
        with pytest.raises(LayoutError, match=f"scales of '0' have powers {said}"):
            balanced(rows, layout, [group])
    signs = ScaleGroup("0", 4, "sign", (Place("0.weight", 0), Place("1.weight", 1)), (1.0, 1.0))
    assert torch.equal(balanced(rows, layout, [signs]), rows)
