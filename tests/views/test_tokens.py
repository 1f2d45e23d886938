"""Weight tokens: an exact index map, and the published way of cutting a network as a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weightspace import networks
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, Layout, ResNet18
from weightspace.views.tokens import LAYER_CODES, TokenView, tokenised_layers

NETWORKS = {
    "mlp": MLP(hidden=(5, 3)),
    "mlp without bias": MLP(bias=False),
    "cnn": CNN(hidden=(6,)),
    "cnn without bias": CNN(bias=False),
    "cnn with norm": CNN(channels=(4, 3), batch_norm=True),
    "cnn with norm without bias": CNN(batch_norm=True, bias=False),
    "resnet18": ResNet18(width=2),
}


def layout_of(name: str) -> Layout:
    return Layout.of(NETWORKS[name].build())


def random_rows(layout: Layout, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, layout.parameters, generator=torch.Generator().manual_seed(seed))


def plain_tokens(
    state: dict[str, np.ndarray], width: int, skip_norm: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, mask and positions of one network: the published procedure, in the words of its code."""
    tokens, mask, positions, layer = [], [], [], 0
    for key, value in state.items():
        if not any(part in key for part in ("weight", "running_mean", "running_var")):
            continue
        if skip_norm and any(part in key for part in ("bn", "norm", "downsample.1")):
            continue
        matrix = value.reshape(value.shape[0], -1)
        bias = key.replace("weight", "bias")
        if bias != key and bias in state:
            matrix = np.hstack([matrix, state[bias].reshape(-1, 1)])
        for channel, values in enumerate(matrix):
            for begin in range(0, len(values), width):
                piece = values[begin : begin + width]
                padding = width - len(piece)
                tokens.append(np.pad(piece, (0, padding)))
                mask.append([True] * len(piece) + [False] * padding)
                positions.append((len(positions), layer, channel))
        layer += 1
    return np.array(tokens), np.array(mask), np.array(positions)


@pytest.mark.parametrize(
    ("name", "image_shape", "classes", "width", "skip_norm", "count"),
    [
        ("cnn_s", (1, 28, 28), 10, 201, False, 48),
        ("cnn_s", (3, 28, 28), 10, 201, False, 48),
        ("cnn_l", (3, 32, 32), 10, 289, False, 93),
        ("resnet18", (3, 32, 32), 10, 288, True, 39_124),
        ("resnet18", (3, 32, 32), 100, 288, True, 39_304),
        ("resnet18", (3, 32, 32), 200, 288, True, 39_504),
        ("resnet18", (3, 32, 32), 10, 288, False, 53_524),
        ("resnet18", (3, 32, 32), 100, 288, False, 53_704),
        ("resnet18", (3, 32, 32), 200, 288, False, 53_904),
    ],
)
def test_published_token_counts(name, image_shape, classes, width, skip_norm, count):
    with torch.device("meta"):
        layout = Layout.of(networks.by_name(name, image_shape, classes).build())
    view = TokenView(layout, width, skip_norm=skip_norm)
    assert view.count == count
    real = sum(t.size for t in layout.tensors if not (skip_norm and t.layer == "norm"))
    if count < 1000:
        assert int(view.mask.sum()) == real


def test_tokens_of_the_published_cnns_by_layer():
    for name, shape, width, expected in [
        ("cnn_s", (1, 28, 28), 201, [8, 6, 4, 20, 10]), ("cnn_l", (3, 32, 32), 289, [16, 32, 15, 20, 10])
    ]:  # fmt: skip
        view = TokenView(Layout.of(networks.by_name(name, shape, 10).build()), width)
        assert view.positions[:, 1].bincount().tolist() == expected


def test_mask_counts_the_parameters_of_cnn_l():
    view = TokenView(Layout.of(networks.by_name("cnn_l", (3, 32, 32), 10).build()), 289)
    assert view.mask.shape == (93, 289) and int(view.mask.sum()) == 10_853


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=12)
@given(width=st.integers(1, 80), seed=st.integers(0, 2**31))
def test_detokenise_inverts_tokenise_bit_for_bit(name, width, seed):
    layout = layout_of(name)
    rows = random_rows(layout, seed=seed)
    view = TokenView(layout, width)
    assert view.detokenise(view.tokenise(rows)).equal(rows)
    assert view.mask.sum() == layout.parameters
    if any(t.layer == "norm" for t in layout.tensors):
        view = TokenView(layout, width, skip_norm=True)
        other = random_rows(layout, seed=seed + 1)
        mixed = view.detokenise(view.tokenise(rows), other)
        for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
            source = other if spec.layer == "norm" else rows
            assert mixed[:, place].equal(source[:, place])


@pytest.mark.parametrize("skip_norm", [False, True])
def test_resnet18_of_full_size(skip_norm):
    layout = Layout.of(ResNet18().build())
    rows = random_rows(layout, 1)
    view = TokenView(layout, 288, skip_norm=skip_norm)
    base = rows + 1 if skip_norm else None
    back = view.detokenise(view.tokenise(rows), base)
    norm = torch.zeros(layout.parameters, dtype=torch.bool)
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        norm[place] = spec.layer == "norm"
    assert back[:, ~norm].equal(rows[:, ~norm]) and back[:, norm].equal((rows + skip_norm)[:, norm])


@pytest.mark.parametrize("skip_norm", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=8)
@given(width=st.integers(1, 40))
def test_two_ways(name, skip_norm, width):
    layout = layout_of(name)
    rows = random_rows(layout, 2)
    view = TokenView(layout, width, skip_norm=skip_norm)
    for row, found in zip(rows, view.tokenise(rows), strict=True):
        state = {key: value.numpy() for key, value in layout.unflatten(row).items()}
        tokens, mask, positions = plain_tokens(state, width, skip_norm)
        np.testing.assert_array_equal(found.numpy(), tokens)
        np.testing.assert_array_equal(view.mask.numpy(), mask)
        np.testing.assert_array_equal(view.positions.numpy(), positions)


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=8)
@given(width=st.integers(1, 80))
def test_dense_tokens_are_whole_layers_cut_into_pieces(name, width):
    layout = layout_of(name)
    rows = random_rows(layout, 2)
    view = TokenView(layout, width, dense=True)
    state = {key: value.numpy() for key, value in layout.unflatten(rows[0]).items()}
    tokens, positions, layers = [], [], 0
    for key, value in state.items():
        if key.endswith("bias"):
            continue
        matrix = value.reshape(value.shape[0], -1)
        bias = key.replace("weight", "bias")
        if bias != key and bias in state:
            matrix = np.hstack([matrix, state[bias].reshape(-1, 1)])
        values = matrix.reshape(-1)
        for piece, begin in enumerate(range(0, len(values), width)):
            part = values[begin : begin + width]
            positions.append((len(tokens), layers, piece))
            tokens.append(np.pad(part, (0, width - len(part))))
        layers += 1
    np.testing.assert_array_equal(view.tokenise(rows)[0].numpy(), np.array(tokens))
    np.testing.assert_array_equal(view.positions.numpy(), np.array(positions))
    assert view.detokenise(view.tokenise(rows)).equal(rows)
    assert int(view.mask.sum()) == layout.parameters
    assert int((~view.mask).sum()) < layers * width  # only a layer's last token is padded
    assert view.count <= TokenView(layout, width).count


def test_codes_tell_kinds_and_ends_whatever_the_depth():
    for depth in (1, 3):
        layout = Layout.of(CNN(channels=(4, 3), hidden=(5,) * depth, batch_norm=True).build())
        view = TokenView(layout, 200)
        first = [int(view.codes[view.positions[:, 1] == i][0]) for i in range(len(view.layers))]
        conv, norm, linear = 1, 2, 0
        middle = [norm, 3, 4]  # weight with bias, running mean, running variance
        assert first == [conv + 6, *middle, conv, *middle, *[linear] * depth, linear + 12]
    assert int(view.codes.max()) < LAYER_CODES


@pytest.mark.parametrize("dense", [False, True])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), name=st.sampled_from(sorted(NETWORKS)), width=st.integers(1, 60))
def test_a_window_is_a_part_of_the_whole(dense, data, name, width):
    layout = layout_of(name)
    view = TokenView(layout, width, dense=dense)
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, view.count - 1), min_size=1, max_size=20)))
    assert view.index(tokens).equal(view.full_index[tokens])
    rows = random_rows(layout)
    assert view.tokenise(rows, tokens).equal(view.tokenise(rows)[:, tokens])


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_padding_is_zero_and_damage_stays_where_it_is(damage):
    layout = layout_of("cnn")
    view = TokenView(layout, 50)
    rows = random_rows(layout)
    rows[0, -1] = damage
    tokens = view.tokenise(rows)
    assert (tokens[:, ~view.mask] == 0).all()
    assert int((~tokens.isfinite()).sum()) == 1 and tokens[1].isfinite().all()


def test_every_parameter_has_one_place_and_gradients_reach_it():
    layout = layout_of("cnn with norm")
    view = TokenView(layout, 7)
    assert view.full_index[view.mask].sort().values.equal(torch.arange(layout.parameters))
    rows = random_rows(layout).requires_grad_()
    (gradient,) = torch.autograd.grad(view.tokenise(rows).square().sum() / 2, rows)
    assert gradient.equal(rows)


def test_wrong_requests_are_refused():
    layout = layout_of("cnn with norm")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        TokenView(layout, 0)
    view = TokenView(layout, 50, skip_norm=True)
    tokens = view.tokenise(random_rows(layout))
    with pytest.raises(LayoutError, match=r"28 parameters .* give base rows"):  # two norms of 4 + 3 channels
        view.detokenise(tokens)
    with pytest.raises(LayoutError, match="rows have 5 values"):
        view.tokenise(torch.zeros(1, 5))
    with pytest.raises(LayoutError, match="tokens of 50"):
        view.detokenise(torch.cat([tokens, tokens], dim=1))
    for module, says in [
        (nn.ConvTranspose2d(3, 3, 2), "does not count the outputs"),
        (nn.LayerNorm((3, 4)), "does not count the outputs"),
        (nn.ReLU(), "nothing to tokenise"),
    ]:
        with pytest.raises(LayoutError, match=says):
            tokenised_layers(Layout.of(module))
    with pytest.raises(LayoutError, match="nothing to tokenise"):
        TokenView(Layout.of(nn.BatchNorm1d(3)), 4, skip_norm=True)
    lonely = Layout((Layout.of(nn.Linear(2, 2)).by_name["bias"],))
    with pytest.raises(LayoutError, match="'bias': a bias without a weight"):
        TokenView(lonely, 4)
