"""Weight statistics: against NumPy one network and one tensor at a time, and under permutations of neurons."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout
from weightspace.views.statistics import statistics_names, weight_statistics


def plain(rows: torch.Tensor, layout: Layout) -> np.ndarray:
    """The definition, as a loop, in float64."""
    table = []
    for row in rows.double().numpy():
        line = []
        for place in layout.slices.values():
            values = row[place]
            line += [values.mean(), values.std(ddof=0), *np.percentile(values, [0, 25, 50, 75, 100])]
        table.append(line)
    return np.array(table)


def small_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4, bias=False))


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    networks=st.integers(1, 5),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    shift=st.sampled_from([0.0, 1.0, -30.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_a_plain_loop(widths, networks, scale, shift, seed):
    layout = Layout.of(nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))))
    rows = torch.randn(networks, layout.parameters, generator=torch.Generator().manual_seed(seed)) * scale + shift
    expected = torch.from_numpy(plain(rows, layout))
    # both sides are computed in float64; the only error is the rounding to float32 (half a unit: 6e-8 relative),
    # and for the std of nearly equal values a float64 cancellation of 1e-15 of the largest weight
    torch.testing.assert_close(
        weight_statistics(rows, layout).double(), expected, rtol=1.2e-7, atol=1e-14 * float(rows.abs().max())
    )


def test_percentiles_are_numpys_bit_for_bit():
    layout = Layout.of(nn.Linear(19, 7))
    rows = torch.randn(20, layout.parameters, generator=torch.Generator().manual_seed(0))
    ours = weight_statistics(rows, layout)[:, 2:7].numpy()
    kernel = rows[:, : 19 * 7].double().numpy()
    assert np.array_equal(ours, np.percentile(kernel, [0, 25, 50, 75, 100], axis=1).T.astype(np.float32))


def test_every_tensor_counts_once_and_lands_in_its_named_columns():
    layout = Layout.of(small_cnn())
    names = statistics_names(layout)
    assert len(names) == len(set(names)) == 7 * len(layout.tensors)
    rows = torch.zeros(1, layout.parameters)
    for number, place in enumerate(layout.slices.values()):
        rows[:, place] = number
    found = dict(zip(names, weight_statistics(rows, layout)[0].tolist(), strict=True))
    for number, spec in enumerate(layout.tensors):
        assert found[f"{spec.name}.mean"] == found[f"{spec.name}.p25"] == number
        assert found[f"{spec.name}.std"] == 0


def test_the_published_count_of_56():
    layers = [nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)]
    layout = Layout.of(nn.Sequential(*layers))
    assert layout.parameters == 4970
    assert weight_statistics(torch.zeros(2, 4970), layout).shape == (2, 56)


def test_permuted_neurons_leave_the_statistics_bit_identical_and_other_changes_do_not():
    generator = torch.Generator().manual_seed(1)
    layout = Layout.of(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    rows = torch.randn(4, layout.parameters, generator=generator)
    tensors = layout.unflatten(rows)
    order = torch.randperm(8, generator=generator)
    permuted = {
        "0.weight": tensors["0.weight"][:, order],
        "0.bias": tensors["0.bias"][:, order],
        "2.weight": tensors["2.weight"][:, :, order],
        "2.bias": tensors["2.bias"],
    }
    moved = torch.cat([permuted[spec.name].flatten(1) for spec in layout.tensors], dim=1)
    assert not torch.equal(moved, rows)
    assert torch.equal(weight_statistics(moved, layout), weight_statistics(rows, layout))
    # the twin: a weight and a bias that change places do show
    crossed = rows.clone()
    crossed[:, [0, 40]] = rows[:, [40, 0]]
    assert not torch.allclose(weight_statistics(crossed, layout), weight_statistics(rows, layout))


def test_a_network_does_not_see_its_neighbours():
    layout = Layout.of(small_cnn())
    rows = torch.randn(6, layout.parameters, generator=torch.Generator().manual_seed(2))
    assert torch.equal(weight_statistics(rows, layout)[3:4], weight_statistics(rows[3:4], layout))


def test_rows_of_another_length_are_refused():
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(LayoutError, match="9 values"):
        weight_statistics(torch.zeros(2, 9), layout)
