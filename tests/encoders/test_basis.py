"""All maps that commute with renumbering: how many there are, that they are right, and that they are found."""

from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.encoders.basis import EquivariantLinear, basis_size, embeddings, reductions

MLP = [(0, 1), (1,), (1, 2), (2,)]
RNN = [(0, 1), (1, 1), (1,), (1, 2), (2,)]
BELL = [1, 1, 2, 5, 15, 52]


def partitions(items):
    """All set partitions, the plain way."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            for more in partitions([item for item in rest if item not in others]):
                yield [[first, *others], *more]


@pytest.mark.parametrize(("axes", "counts"), [(MLP, [9, 7, 10, 6]), (RNN, [14, 32, 12, 15, 8])])
def test_numbers_of_maps_are_the_published_ones(axes, counts):
    assert [sum(basis_size(output, some) for some in axes) for output in axes] == counts


axes_of_a_tensor = st.lists(st.integers(0, 2), max_size=3).map(tuple)


@settings(max_examples=40, deadline=None)
@given(axes_of_a_tensor, axes_of_a_tensor)
def test_number_of_maps_is_a_product_of_bell_numbers(output, some):
    both = output + some
    wanted = 1
    for units in set(both):
        wanted *= BELL[both.count(units)] if both.count(units) < 6 else 203
    assert basis_size(output, some) == wanted


def plain_map(partition, output, some, x, sizes):
    """One basis map by definition: a sum over all indices of a block structure, entry by entry."""
    lengths = [sizes[units] for units in output + some]
    block_of = {axis: number for number, block in enumerate(partition) for axis in block}
    only_inside = [block for block in partition if min(block) >= len(output)]
    y = torch.zeros(x.shape[0], *(sizes[units] for units in output), x.shape[-1], dtype=x.dtype)
    for index in product(*(range(lengths[block[0]]) for block in partition)):
        where = [index[block_of[axis]] for axis in range(len(lengths))]
        y[(slice(None), *where[: len(output)])] += x[(slice(None), *where[len(output) :])]
    for block in only_inside:
        y /= lengths[block[0]]
    return y


@pytest.mark.parametrize(
    ("output", "some"),
    [
        ((1, 0), (1, 0)),
        ((1, 1), (1, 1)),
        ((1, 0), (0, 1)),
        ((1,), (1, 1)),
        ((), (1, 0)),
        ((1, 1), (0,)),
        ((2, 1), (1,)),
    ],
)
def test_maps_are_those_of_the_definition(output, some):
    """Each reduction followed by each embedding is one partition of the axes, and each partition is found once."""
    sizes = {0: 2, 1: 3, 2: 4}
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *(sizes[units] for units in some), 1, generator=g, dtype=torch.float64)
    shape = [sizes[units] for units in output]
    ours = [
        made.embedded(read.reduced(x, "mean"), shape).expand(2, *shape, 1)
        for units, read in reductions(some)
        for other, made in embeddings(output)
        if units == other
    ]
    both = output + some
    allowed = [
        partition
        for partition in partitions(list(range(len(both))))
        if all(len({both[axis] for axis in block}) == 1 for block in partition)
    ]
    plain = [plain_map(partition, output, some, x, sizes) for partition in allowed]
    assert len(ours) == len(plain) == basis_size(output, some)
    unmatched = list(plain)
    for y in ours:
        [match] = [i for i, other in enumerate(unmatched) if torch.allclose(y, other, rtol=1e-12, atol=1e-12)]
        unmatched.pop(match)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("axes", [MLP, RNN], ids=("mlp", "rnn"))
def test_layers_commute_with_renumbering(axes, reduce):
    sizes = {0: 3, 1: 5, 2: 4}
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = EquivariantLinear(axes, [2] * len(axes), [3] * len(axes), reduce).double()
    tensors = [torch.randn(2, *(sizes[u] for u in some), 2, generator=g, dtype=torch.float64) for some in axes]
    orders = {units: torch.randperm(size, generator=g) for units, size in sizes.items()}

    def renumbered(tensors):
        for some, x in zip(axes, tensors, strict=True):
            for axis, units in enumerate(some):
                x = x.index_select(1 + axis, orders[units])
            yield x

    with torch.no_grad():
        wanted = list(renumbered(layer(tensors)))
        found = layer(list(renumbered(tensors)))
        torn = layer([x.index_select(1, orders[some[0]]) if i == 1 else x
                      for i, (some, x) in enumerate(zip(axes, tensors, strict=True))])  # fmt: skip
    for after, before, other in zip(found, wanted, torn, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
        assert (other - before).abs().max() > 1e-3


def test_weights_of_all_maps_are_views_of_the_parameters():
    layer = EquivariantLinear(MLP, [2, 2, 2, 2], [3, 3, 3, 3])
    assert (
        sum(weight.numel() for _, weight in layer.maps()) == sum(weight.numel() for weight in layer.weights) == 32 * 6
    )
    maps = [output for output, _ in layer.maps()]
    assert [maps.count(output) for output in range(4)] == [9, 7, 10, 6]


def test_a_new_layer_keeps_the_variance_of_what_it_adds():
    """Independent values of variance one on every map give outputs of variance one."""
    torch.manual_seed(0)
    layer = EquivariantLinear([(1, 0)], [64], [64])
    total = sum(weight.detach().square().sum(1) for _, weight in layer.maps())
    assert float(total.mean()) == pytest.approx(1, abs=0.05)
