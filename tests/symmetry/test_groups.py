"""Laws of permutation groups: they keep the function, half of one breaks it, and the index is a plain reordering."""

from itertools import pairwise
from itertools import permutations as all_permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, Place, chain_groups, gather_index, random_permutations

NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)),
    "mlp-tanh-no-bias": lambda: nn.Sequential(
        nn.Linear(9, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)
    ),
    "mlp-layer-norm": lambda: nn.Sequential(
        nn.LayerNorm(9), nn.Linear(9, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.LayerNorm(3)
    ),
    "cnn": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten()],
        *[nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)],
    ),
    "cnn-tanh-no-bias": lambda: nn.Sequential(
        *[nn.Conv2d(1, 5, 3, bias=False), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(45, 3)]
    ),
    "cnn-batch-norm": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)],
        *[nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)],
    ),
    "norm-after-flatten": lambda: nn.Sequential(
        *[nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 2)]
    ),
    "norm-over-image": lambda: nn.Sequential(
        *[nn.Conv2d(1, 4, 5), nn.LayerNorm([4, 4, 4]), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    ),
    "transposed": lambda: nn.Sequential(
        *[nn.Conv2d(1, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, stride=2), nn.ReLU()],
        *[nn.Conv2d(5, 2, 3), nn.Flatten(), nn.Linear(72, 2)],
    ),
    "conv1d": lambda: nn.Sequential(
        *[nn.Unflatten(1, (1, 9)), nn.Conv1d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(35, 3)]
    ),
}


def images_for(network: nn.Sequential, generator: torch.Generator) -> Tensor:
    flat = not isinstance(network[0], nn.Conv2d)
    return torch.randn(6, *((9,) if flat else (1, 8, 8)), generator=generator, dtype=torch.float64)


def random_row(network: nn.Module, layout: Layout, generator: torch.Generator) -> Tensor:
    """No two values equal (fresh norms are all ones), variances positive; float64."""
    row = layout.flatten(network.state_dict()).double()
    return row + 0.5 * torch.rand(layout.parameters, generator=generator, dtype=torch.float64) - 0.25


def outputs(network: nn.Module, layout: Layout, rows: Tensor, images: Tensor) -> Tensor:
    network = network.eval().to(rows.dtype)
    with torch.no_grad():
        return torch.stack([functional_call(network, layout.unflatten(r), images.to(rows.dtype)) for r in rows])


@pytest.fixture(params=NETWORKS)
def case(request):
    generator = torch.Generator().manual_seed(1)
    network = NETWORKS[request.param]()
    layout = Layout.of(network)
    return network, layout, random_row(network, layout, generator), images_for(network, generator), generator


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_random_elements_keep_the_function(case, dtype, tolerance):
    network, layout, row, images, generator = case
    groups = chain_groups(layout)
    index = gather_index(layout, groups, random_permutations(groups, 5, generator))
    rows = row.to(dtype).expand(5, -1).gather(1, index)
    assert not torch.equal(rows[0], row.to(dtype))
    before = outputs(network, layout, row.to(dtype)[None], images)
    # Sums are reordered, so outputs of size about 10 may differ by rounding, relative to the largest.
    torch.testing.assert_close(
        outputs(network, layout, rows, images),
        before.expand(5, -1, -1),
        rtol=0,
        atol=tolerance * float(before.abs().max()),
    )


def test_every_place_alone_changes_the_function(case):
    network, layout, row, images, _ = case
    before = outputs(network, layout, row[None], images)
    for group in chain_groups(layout):
        turn = torch.arange(group.size).roll(1)[None]
        for place in group.places:
            half = PermutationGroup(group.name, group.size, (place,))
            moved = row[None].gather(1, gather_index(layout, [half], [turn]))
            change = (outputs(network, layout, moved, images) - before).abs().max()
            assert change > 1e-3 * before.abs().max(), place


def test_every_hidden_value_is_named_once(case):
    _, layout, *_ = case
    places = [(place.tensor, place.axis) for group in chain_groups(layout) for place in group.places]
    assert len(set(places)) == len(places)
    for group in chain_groups(layout):
        assert all(layout.by_name[p.tensor].shape[p.axis] == group.size * p.block for p in group.places)


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=3, max_size=6), seed=st.integers(0, 2**32), bias=st.booleans())
def test_random_chains_keep_the_function(widths, seed, bias):
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    network = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
    layout = Layout.of(network)
    groups = chain_groups(layout)
    assert [group.size for group in groups] == widths[1:-1]
    row = random_row(network, layout, generator)
    moved = row.expand(3, -1).gather(1, gather_index(layout, groups, random_permutations(groups, 3, generator)))
    images = torch.randn(4, widths[0], generator=generator, dtype=torch.float64)
    before = outputs(network, layout, row[None], images)
    torch.testing.assert_close(outputs(network, layout, moved, images), before.expand(3, -1, -1), rtol=0, atol=1e-12)


def test_cnn_s_has_the_published_specification():
    # Model zoos: conv 8, 6, 4 channels, then linear 36 -> 20 -> 10; the flatten gives each of 4 channels 9 positions.
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.Conv2d(8, 6, 5), nn.Conv2d(6, 4, 2), nn.Linear(36, 20), nn.Linear(20, 10)
    )
    groups = chain_groups(Layout.of(network))
    assert [group.size for group in groups] == [8, 6, 4, 20]
    assert groups[2].places == (Place("2.weight", 0), Place("2.bias", 0), Place("3.weight", 1, block=9))
    assert groups[3].places == (Place("3.weight", 0), Place("3.bias", 0), Place("4.weight", 1))


def test_batch_norm_vectors_follow():
    groups = chain_groups(Layout.of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))))
    vectors = [place.tensor for place in groups[0].places]
    assert vectors == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"]


def test_permuted_unit_i_is_old_unit_permutation_i():
    layout = Layout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    row = torch.arange(layout.parameters).float()
    permutation = torch.tensor([[2, 0, 1]])
    old = layout.unflatten(row)
    new = layout.unflatten(row[None].gather(1, gather_index(layout, chain_groups(layout), [permutation])))
    assert torch.equal(new["0.weight"][0], old["0.weight"][permutation[0]])
    assert torch.equal(new["0.bias"][0], old["0.bias"][permutation[0]])
    assert torch.equal(new["1.weight"][0], old["1.weight"][:, permutation[0]])
    assert torch.equal(new["1.bias"][0], old["1.bias"])


def test_index_equals_a_plain_loop(case):
    _, layout, row, _, generator = case
    groups = chain_groups(layout)
    permutations = random_permutations(groups, 4, generator)
    rows = row.expand(4, -1)
    moved = rows.gather(1, gather_index(layout, groups, permutations))
    for m in range(4):
        tensors = dict(layout.unflatten(row))
        for group, permutation in zip(groups, permutations, strict=True):
            for place in group.places:
                owned = [int(u) * place.block + i for u in permutation[m] for i in range(place.block)]
                tensors[place.tensor] = tensors[place.tensor].index_select(place.axis, torch.tensor(owned))
        assert torch.equal(moved[m], torch.cat([tensors[t.name].flatten() for t in layout.tensors]))


def test_two_permutations_compose(case):
    _, layout, row, _, generator = case
    groups = chain_groups(layout)
    first, second = (random_permutations(groups, 3, generator) for _ in range(2))
    rows = row.expand(3, -1)
    one_by_one = rows.gather(1, gather_index(layout, groups, first)).gather(1, gather_index(layout, groups, second))
    composed = [a.gather(1, b) for a, b in zip(first, second, strict=True)]
    assert torch.equal(one_by_one, rows.gather(1, gather_index(layout, groups, composed)))


def test_index_is_a_permutation_of_int64_and_the_identity_gives_the_identity(case):
    _, layout, _, _, generator = case
    groups = chain_groups(layout)
    index = gather_index(layout, groups, random_permutations(groups, 2, generator))
    positions = torch.arange(layout.parameters).expand(2, -1)
    assert index.dtype == torch.int64
    assert torch.equal(index.sort(1).values, positions)
    identity = [torch.arange(group.size).expand(2, -1) for group in groups]
    assert torch.equal(gather_index(layout, groups, identity), positions)


def test_one_tensor_may_move_along_two_axes_of_one_group():
    # A residual stream's square matrix, as groups found by other means will have.
    layout = Layout.of(nn.Linear(3, 3, bias=False))
    group = PermutationGroup("stream", 3, (Place("weight", 0), Place("weight", 1)))
    matrix, permutation = torch.arange(9.0).view(3, 3), torch.tensor([[1, 2, 0]])
    moved = matrix.view(1, 9).gather(1, gather_index(layout, [group], [permutation])).view(3, 3)
    assert torch.equal(moved, matrix[permutation[0]][:, permutation[0]])


def test_units_may_begin_late_repeat_and_own_blocks():
    # One index, then two repeats of three units that own two indices each, then one index.
    layout = Layout.of(nn.Linear(14, 2, bias=False))
    group = PermutationGroup("units", 3, (Place("weight", 1, block=2, start=1, repeats=2),))
    moved = torch.arange(28).view(1, 28).gather(1, gather_index(layout, [group], [torch.tensor([[2, 0, 1]])]))
    line = [0, 5, 6, 1, 2, 3, 4, 11, 12, 7, 8, 9, 10, 13]
    assert moved.tolist() == [line + [14 + i for i in line]]


def test_two_digits_of_one_axis_commute():
    # Heads (slow digit) and values of a head (fast digit) of one axis of 2 x 3 indices.
    layout = Layout.of(nn.Linear(6, 1, bias=False))
    heads = PermutationGroup("heads", 2, (Place("weight", 1, block=3),))
    values = PermutationGroup("values", 3, (Place("weight", 1, repeats=2),))
    swap, turn = torch.tensor([[1, 0]]), torch.tensor([[1, 2, 0]])
    both = gather_index(layout, [heads, values], [swap, turn])
    assert torch.equal(both, gather_index(layout, [values, heads], [turn, swap]))
    assert torch.equal(both, gather_index(layout, [heads], [swap]).gather(1, gather_index(layout, [values], [turn])))
    assert both.tolist() == [[4, 5, 3, 1, 2, 0]]


def test_random_permutations_are_uniform_and_reproducible():
    groups = [PermutationGroup("a", 3, ()), PermutationGroup("b", 5, ())]
    count = 12_000
    draws, again = (random_permutations(groups, count, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert [draw.shape for draw in draws] == [(count, 3), (count, 5)]
    for wanted in all_permutations(range(3)):
        share = (draws[0] == torch.tensor(wanted)).all(1).double().mean()
        assert abs(share - 1 / 6) < 4 * (5 / 36 / count) ** 0.5  # four standard errors of a share of 1/6
    # Groups are independent: where unit 0 goes in one does not tell where it goes in the other.
    both = ((draws[0][:, 0] == 0) & (draws[1][:, 0] == 0)).double().mean()
    assert abs(both - 1 / 15) < 4 * (14 / 225 / count) ** 0.5


def test_one_layer_has_no_groups():
    assert chain_groups(Layout.of(nn.Linear(4, 2))) == ()


class Block(nn.Module):
    """The registration order of a residual block with a projection."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    network[2].weight = network[0].weight
    return network


NOT_CHAINS = {
    "residual": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Block()), "downsample.0.weight"),
    "linear-widths": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(10, 2)), "1.weight"),
    "conv-widths": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(8, 2, 3)), "1.weight"),
    "flatten-remainder": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(18, 2)), "1.weight"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "1.weight"),
    "norm-width": (lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(8), nn.Linear(8, 2)), "1.weight"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), "0.weight"),
    "prelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), "1.weight"),
    "tied": (tied, "2.bias"),
    "weight-norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "'bias'"),
    "spectral-norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4, bias=False)), "weight_orig"),
}


@pytest.mark.parametrize("name", NOT_CHAINS)
def test_what_is_not_a_chain_is_refused_by_name(name):
    build, tensor = NOT_CHAINS[name]
    with pytest.raises(LayoutError, match=tensor):
        chain_groups(Layout.of(build()))


def test_permutations_that_do_not_fit_are_refused():
    layout = Layout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 2)))
    groups = chain_groups(layout)
    three, four = torch.arange(3)[None], torch.arange(4)[None]
    for wrong in ([], [three], [four, three], [three, four.expand(2, -1)]):
        with pytest.raises(LayoutError, match="do not fit groups of sizes"):
            gather_index(layout, groups, wrong)
