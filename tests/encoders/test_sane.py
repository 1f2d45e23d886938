"""SANE: windows, losses, the module's size and symmetries, and what a fit must and must not depend on."""

import itertools
import math

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from weightspace.encoders import SANE, SANEConfig, TrainingConfig, sequences
from weightspace.encoders import sane as sane_file
from weightspace.encoders.preparation import Preparation
from weightspace.encoders.sane import SANEModule, log_magnitude
from weightspace.encoders.sane_config import cnn, resnet18, small
from weightspace.encoders.sequences import halo_windows
from weightspace.encoders.transformer import attention, masked_mse, nt_xent
from weightspace.errors import ConfigError
from weightspace.networks import Layout
from weightspace.symmetry import chain_groups, gather_index, random_permutations
from weightspace.views.standardise import Standardisation
from weightspace.views.tokens import TokenView
from weightspace.zoo import Zoo

NETWORK = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
LAYOUT = Layout.of(NETWORK)
"""Nine tokens: six of width 6 and three of width 7."""
SIZES = {"token_width": 7, "max_positions": (9, 2, 6), "window": 9, "width": 16, "heads": 2, "depth": 1, "latent": 5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(count: int, layout: Layout = LAYOUT, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, layout.parameters, generator=generator(seed))


def zoo_of(rows: torch.Tensor, layout: Layout = LAYOUT, runs: int | None = None) -> Zoo:
    """Rows as runs of equally many checkpoints, one each when not said otherwise."""
    runs = runs or len(rows)
    steps = len(rows) // runs
    table = pl.DataFrame({"model": [f"{i // steps}" for i in range(len(rows))], "step": [*range(steps)] * runs})
    return Zoo.in_memory(rows, layout, table, {})


def encoder(layout: Layout = LAYOUT, reference: torch.Tensor | None = None, **changes) -> SANE:
    """An encoder with initial weights, that standardises by mean 0 and deviation 1."""
    p = layout.parameters
    scale = Standardisation(torch.zeros(p), torch.ones(p))
    made = SANE(
        SANEConfig(**SIZES | changes), Preparation(layout, rows_of(1)[0] if reference is None else reference, scale), {}
    )
    made.module.reset(generator(1))
    return made


# --- windows ---------------------------------------------------------------------------------------------------------


def check_windows(count: int, window: int, halo: int) -> None:
    windows, kept = halo_windows(count, window, halo)
    length = min(window, count)
    assert windows.shape[1] == length and kept.shape == (count,)
    assert windows.min() >= 0 and windows.max() < count
    assert (windows.diff(dim=1) == 1).all()
    assert torch.equal(windows.flatten()[kept], torch.arange(count))  # the identity on windows is the identity
    place, start = kept % length, windows[kept // length, 0]
    assert ((place >= halo) | (start == 0)).all()  # the halo is there on both sides, but at the ends of the sequence
    assert ((length - 1 - place >= halo) | (start + length == count)).all()


@pytest.mark.parametrize("count", [1, 48, 93, 255, 256, 257, 39_124, 53_524])
def test_windows_of_published_lengths(count):
    check_windows(count, 256, 64)


@settings(deadline=None)
@given(st.data(), st.integers(1, 300), st.integers(1, 60))
def test_windows_of_any_length(data, count, window):
    check_windows(count, window, data.draw(st.integers(0, (window - 1) // 2)))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 12), st.integers(0, 19))
def test_windows_are_the_published_ones_where_those_exist(full, kept_part, halo, rest):
    """Section on haloing: [0, w+2h) keeps [0, w); [iw-h, (i+1)w+h) keeps its middle; the last w+2h keep the rest."""
    w, h, r = kept_part, halo, rest % kept_part
    count = full * w + r
    if count < w + 2 * h or 0 < r < h or h > w:
        return  # the published code stops
    wanted = [(0, i) for i in range(w)]
    last = math.ceil(count / w) - 1
    for i in range(1, last):
        wanted += [(i * w - h, h + j) for j in range(w)]
    if last:
        r = r or w
        wanted += [(count - w - 2 * h, 2 * h + w - r + j) for j in range(r)]
    windows, kept = halo_windows(count, w + 2 * h, h)
    length = windows.shape[1]
    assert list(zip(windows[kept // length, 0].tolist(), (kept % length).tolist(), strict=True)) == wanted


# --- losses ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**20))
def test_masked_mse_sees_real_weights_only(b, t, w, seed):
    g = generator(seed)
    predicted, true = torch.randn(2, b, t, w, generator=g)
    real = torch.rand(t, w, generator=g) < 0.6
    real[0, 0] = True
    loss = masked_mse(predicted, true, real)
    entries = [
        (float(predicted[i, j, k]) - float(true[i, j, k])) ** 2
        for i, j, k in itertools.product(range(b), range(t), range(w))
        if real[j, k]
    ]
    assert float(loss) == pytest.approx(sum(entries) / len(entries), rel=1e-5)
    other = torch.where(real, predicted, torch.randn(b, t, w, generator=g) * 1e6)
    assert masked_mse(other, true, real) == loss
    share = real.float().mean()
    torch.testing.assert_close(loss * share, ((predicted - true) * real).square().mean(), rtol=1e-5, atol=0)


def test_masked_mse_sends_no_gradient_to_padding():
    predicted = torch.randn(2, 3, 4, generator=generator(), requires_grad=True)
    real = torch.tensor([[True, True, False, False]] * 3)
    masked_mse(predicted, torch.full((2, 3, 4), math.inf).where(~real, 0.0), real).backward()
    assert torch.equal(predicted.grad != 0, real.expand(2, 3, 4))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_by_the_book(temperature):
    """Equation 1 of SimCLR, summed term by term."""
    first, second = torch.randn(2, 5, 4, generator=generator())
    z = [*first, *second]
    total = 0.0
    for i in range(10):
        terms = {k: math.exp(float(F.cosine_similarity(z[i], z[k], dim=0)) / temperature) for k in range(10) if k != i}
        total -= math.log(terms[(i + 5) % 10] / sum(terms.values()))
    assert float(nt_xent(first, second, temperature)) == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_known_answers():
    distinct, same = torch.eye(6), torch.ones(6, 3)
    best = -math.log(math.exp(10) / (math.exp(10) + 10))  # partner alike, the ten others orthogonal
    assert float(nt_xent(distinct, distinct, 0.1)) == pytest.approx(best, rel=1e-3)
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(math.log(11), rel=1e-5)  # eleven candidates, all alike
    first, second = torch.randn(2, 6, 4, generator=generator())
    torch.testing.assert_close(nt_xent(first, second, 0.1), nt_xent(second, 3 * first, 0.1), rtol=1e-5, atol=1e-6)
    assert nt_xent(first, first + 0.01 * second, 0.1) < nt_xent(first, second, 0.1)


def test_nt_xent_is_in_float32_under_mixed_precision():
    first, second = torch.randn(2, 6, 4, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(first, second, 0.1)
    assert torch.equal(mixed, nt_xent(first, second, 0.1))


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "published", "tables"), [(cnn(), 0.20e9, 76_800), (resnet18(), 0.86e9, 57.0e6)])
def test_published_sizes(config, published, tables):
    module = SANEModule(config, device="meta")
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    d, w, z, depth = config.width, config.token_width, config.latent, config.depth
    block = 3 * d * d + d * d + 2 * 4 * d * d + 2 * d  # attention in and out, MLP, two norms; no biases
    positions = sum(config.max_positions) * d // 2
    ends = (w * d + d) + (d * z + z) + (z * d + d) + (d * w + w)
    assert (
        sum(size for name, size in sizes.items() if not name.startswith("head")) == 2 * depth * block + positions + ends
    )
    assert sum(size for name, size in sizes.items() if "table" in name) == positions == pytest.approx(tables, rel=0.01)
    assert sum(sizes.values()) == pytest.approx(published, rel=0.02)  # published with two digits


@pytest.mark.parametrize("magnitudes", [False, True])
def test_every_parameter_gets_a_gradient(magnitudes):
    made = encoder(magnitudes=magnitudes)
    views = made.view.tokenise(rows_of(8))
    views = torch.stack([views, views + 0.1 * torch.randn(views.shape, generator=generator())])
    made.module(views, made.view.positions, made.view.mask)["loss"].backward()
    for name, parameter in made.module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_loss_is_its_parts():
    parts = {}
    for contrast in (0.0, 0.3):
        made = encoder(contrast=contrast)
        views = made.view.tokenise(rows_of(8)).expand(2, 8, 9, 7)
        parts[contrast] = made.module(views, made.view.positions, made.view.mask)
    one = parts[0.3]
    torch.testing.assert_close(one["loss"], 0.7 * one["reconstruction"] + 0.3 * one["contrast"], rtol=1e-6, atol=0)
    assert parts[0.0]["loss"] == parts[0.0]["reconstruction"] == one["reconstruction"]


def test_attention_in_bfloat16_is_that_in_float32():
    """Values and gradients, to a few roundings: bfloat16 has eight bits, so 2^-8 each."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        qkv = torch.randn(3, 2, 2, 9, 8, generator=generator()).bfloat16().to(dtype).requires_grad_()
        attended = attention(*qkv)
        attended.float().square().sum().backward()
        found[dtype] = (attended.detach().float(), qkv.grad.float())
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(one.abs().max()))
    q, k, v = torch.randn(3, 2, 2, 9, 8, generator=generator()).bfloat16()
    assert not torch.allclose(attention(q, k, v).float(), attention(q, v, k).float(), rtol=0.02, atol=0.1)


def test_gradients_under_mixed_precision_point_the_same_way():
    made, rows = encoder(), rows_of(8)
    gradients = []
    for mixed in (False, True):
        made.module.zero_grad()
        views = made.view.tokenise(rows).expand(2, 8, 9, 7)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = made.module(views, made.view.positions, made.view.mask)["loss"]
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in made.module.parameters()]))
    assert not torch.equal(*gradients)
    assert float(F.cosine_similarity(*gradients, dim=0)) > 0.999


def test_attention_looks_both_ways_and_at_its_own_window_only():
    made = encoder()
    tokens = made.view.tokenise(rows_of(2)).requires_grad_()
    latents = made.module.encode(tokens, made.view.positions)
    for place in (0, 8):
        (reached,) = torch.autograd.grad(latents[0, place].sum(), tokens, retain_graph=True)
        assert (reached[0].abs().sum(1) > 0).all()  # every token of the window, before and behind
        assert (reached[1] == 0).all()  # no other network


def test_each_part_of_a_position_counts():
    made = encoder()
    tokens = made.view.tokenise(rows_of(1))
    before = made.module.encode(tokens, made.view.positions)
    for column in range(3):
        positions = made.view.positions.clone()
        positions[4, column] = (positions[4, column] + 1) % SIZES["max_positions"][column]
        assert not torch.allclose(made.module.encode(tokens, positions), before, atol=1e-5)


def test_log_magnitude_counts_orders_of_magnitude():
    tokens = torch.tensor([0.0, 1.0, -1.0, 0.1, 10.0])
    found = log_magnitude(tokens)
    assert found[:3].tolist() == [0.0, 1.0, 1.0]
    # from a thousandth of a deviation to one are three orders, so each is a third
    torch.testing.assert_close(
        found[3:], torch.tensor([2 / 3, 4 / 3]), rtol=1e-4, atol=0
    )  # 1 + (t / least)² is (t / least)²
    assert torch.equal(log_magnitude(-tokens), found)


def test_magnitudes_show_what_is_lost_beside_large_weights():
    """Networks whose small weights differ by a factor of ten are nearly one point for a map linear in the weights."""
    rows = rows_of(1)
    small, smaller = (rows * torch.where(torch.arange(LAYOUT.parameters) < 30, scale, 1.0) for scale in (1e-2, 1e-3))

    def moved(made: SANE) -> float:
        states = [made.module.hidden(made.view.tokenise(row), made.view.positions) for row in (small, smaller)]
        return ((states[1] - states[0]).norm() / states[0].norm()).item()

    assert moved(encoder(magnitudes=True)) > 5 * moved(encoder())


def test_initial_reconstruction_depends_on_the_weights():
    """Values must reach the decoder: with tiny initial maps all networks decode to the same."""
    made = encoder()
    decoded = made.decode(made.encode(rows_of(20)))
    assert decoded.std(0).mean() > 0.3


@pytest.mark.parametrize(
    "layout", [LAYOUT, Layout.of(nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(9, 70)))]
)
def test_small_holds_the_layout(layout):
    config = small(layout)
    made = SANE(
        config, Preparation(layout, rows_of(1, layout)[0], Standardisation(*torch.ones(2, layout.parameters))), {}
    )
    assert config.token_width == max(layer.width for layer in made.view.layers)
    assert config.max_positions == (made.view.count, len(made.view.layers), max(x.outputs for x in made.view.layers))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 18, "heads": 4}, "width 18 must be a multiple"),
        ({"contrast": 1.0}, "contrast"),
        ({"halo": 5, "window": 10}, "two halos of 5 do not fit into a window of 10"),
        ({"max_positions": (8, 2, 6)}, r"needs positions up to \(9, 2, 6\)"),
    ],
)
def test_sizes_that_do_not_fit(wrong, says):
    with pytest.raises(ConfigError, match=says):
        encoder(**wrong)


# --- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"window": 4, "halo": 1}, {"window": 5, "halo": 2}, {"window": 64}])
def test_batch_independence(sizes):
    made = encoder(**sizes)
    rows = rows_of(3)
    changed = rows.clone()
    changed[1:] *= -7
    latents = made.encode(rows)
    assert latents.shape == (3, 9, 5)
    torch.testing.assert_close(made.encode(changed)[0], latents[0], rtol=0, atol=0)
    # other batch sizes sum in another order
    torch.testing.assert_close(made.encode(rows[:1])[0], latents[0], rtol=1e-5, atol=1e-6)
    decoded = made.decode(latents)
    assert decoded.shape == rows.shape
    torch.testing.assert_close(made.decode(latents[2:])[0], decoded[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made.encode(changed)[1], latents[1])


def test_encoding_is_deterministic_whatever_the_mode_was():
    made = encoder(window=4, halo=1)
    made.module.train()
    first = made.encode(rows_of(3))
    made.module.train()
    torch.testing.assert_close(made.encode(rows_of(3)), first, rtol=0, atol=0)
    assert not first.requires_grad


def test_windows_are_encoded_one_by_one_and_their_middle_is_kept():
    made = encoder(window=4, halo=1)
    rows = rows_of(2)
    tokens = made.view.tokenise(rows)
    latents = made.encode(rows)
    for start, keep in [(0, (0, 1)), (1, (2, 3)), (3, (4, 5)), (5, (6, 7)), (5, (8,))]:
        window = torch.arange(start, start + 4)
        alone = made.module.encode(tokens[:, window], made.view.positions[window]).detach()
        for place in keep:
            torch.testing.assert_close(latents[:, place], alone[:, place - start], rtol=1e-5, atol=1e-6)


def test_encoding_in_pieces_is_encoding_at_once(monkeypatch):
    made, rows = encoder(window=4, halo=1), rows_of(7)
    whole = made.encode(rows)
    monkeypatch.setattr(sequences, "_TOKENS_AT_ONCE", 40)
    torch.testing.assert_close(made.encode(rows), whole, rtol=1e-5, atol=1e-6)


def test_decoding_undoes_the_standardisation():
    p = LAYOUT.parameters
    scale = Standardisation(torch.linspace(-1, 1, p), torch.linspace(0.5, 2, p))
    plain = encoder()
    scaled = SANE(plain.config, Preparation(LAYOUT, rows_of(1)[0], scale), {})
    scaled.module.load_state_dict(plain.module.state_dict())
    latents = plain.encode(rows_of(4))
    wanted = plain.decode(latents) * scale.std + scale.mean
    torch.testing.assert_close(scaled.decode(latents), wanted, rtol=1e-6, atol=1e-6)


def test_embedding_does_not_see_the_order_of_hidden_units():
    """One hidden layer: matching is then the exact optimum, so every order of a run has the same aligned weights."""
    rows = rows_of(12)
    made = encoder(reference=rows[3:6].mean(0))
    groups = chain_groups(LAYOUT)
    permutations = [p.repeat_interleave(3, 0) for p in random_permutations(groups, 4, generator(2))]
    permuted = rows.gather(1, gather_index(LAYOUT, groups, permutations))
    assert not torch.allclose(made.encode(permuted), made.encode(rows))
    for pooling in ("mean", "sequence", "layers"):
        original = made.embed(zoo_of(rows, runs=4), pooling)
        torch.testing.assert_close(made.embed(zoo_of(permuted, runs=4), pooling), original, rtol=0, atol=0)


def test_embedding_follows_the_order_of_the_zoo():
    made, zoo = encoder(), zoo_of(rows_of(12), runs=4)
    order = torch.randperm(12, generator=generator())
    torch.testing.assert_close(made.embed(zoo.take(order)), made.embed(zoo)[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.latents(zoo.take(order)), made.latents(zoo)[order], rtol=1e-5, atol=1e-6)


def test_mean_embedding_and_sequence():
    made, zoo = encoder(), zoo_of(rows_of(4))
    latents = made.latents(zoo)
    assert torch.equal(made.embed(zoo, "mean"), latents.mean(1))
    assert torch.equal(made.embed(zoo, "sequence"), latents.reshape(4, 9 * 5))


@pytest.mark.parametrize("sizes", [{}, {"window": 4, "halo": 1}])
def test_layers_embedding_has_moments_of_the_states_of_each_layer(sizes):
    made, zoo = encoder(**sizes), zoo_of(rows_of(4))
    states = []
    for row in made.preparation.apply(zoo):
        tokens = made.view.tokenise(row[None])[0]
        windows, kept = halo_windows(made.view.count, made.config.window, made.config.halo)
        found = made.module.hidden(tokens[windows], made.view.positions[windows]).detach()
        states.append(found.flatten(0, 1)[kept])
    states = torch.stack(states)  # m t d
    layers = [states[:, :6], states[:, 6:]]
    means = torch.cat([layer.mean(1) for layer in layers], 1)
    variances = torch.cat([layer.var(1, correction=0) for layer in layers], 1)
    wanted = torch.cat([means, (variances + 1e-4).log()], 1)
    torch.testing.assert_close(made.embed(zoo, "layers"), wanted, rtol=1e-4, atol=1e-5)  # sums in another order


def test_embedding_in_pieces_is_embedding_at_once(monkeypatch):
    made, zoo = encoder(), zoo_of(rows_of(7))
    whole = made.embed(zoo, "layers")
    monkeypatch.setattr(sane_file, "_EMBEDDED_AT_ONCE", 2)
    torch.testing.assert_close(made.embed(zoo, "layers"), whole, rtol=1e-4, atol=1e-5)


def test_reconstruction_keeps_the_table_and_is_decoded_latents():
    made, zoo = encoder(), zoo_of(rows_of(6), runs=3)
    again = made.reconstruct(zoo)
    assert again.table.select("model", "step").equals(zoo.table.select("model", "step"))
    assert torch.equal(again.weights(), made.decode(made.latents(zoo)))


# --- views of the training -------------------------------------------------------------------------------------------


def test_permuted_view_is_the_same_function_in_another_order():
    made, rows = encoder(noise=0.0), rows_of(30)
    views, positions, real = made._views(rows, generator())
    assert torch.equal(views[0], made.view.tokenise(rows))
    assert torch.equal(positions, made.view.positions) and torch.equal(real, made.view.mask)
    permuted = made.view.detokenise(views[1])
    assert (permuted != rows).any(1).float().mean() > 0.9  # one of 720 orders is the old one
    assert torch.equal(permuted.sort(1).values, rows.sort(1).values)
    images = torch.randn(10, 5, generator=generator())
    for one, other in zip(rows, permuted, strict=True):
        outputs = [torch.func.functional_call(NETWORK, LAYOUT.unflatten(row), images) for row in (one, other)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)  # sums in another order


def test_views_without_permutation_differ_in_their_noise_only():
    rows = rows_of(200)
    still = encoder(noise=0.0, permuted_view=False)._views(rows, generator())[0]
    assert torch.equal(still[0], still[1])
    made = encoder(noise=0.1, permuted_view=False)
    noise = (made._views(rows, generator())[0] / still - 1)[:, :, made.view.mask]
    count = noise.numel()
    assert abs(float(noise.mean())) < 5 * 0.1 / math.sqrt(count)
    assert float(noise.std()) == pytest.approx(0.1, rel=5 / math.sqrt(2 * count))
    correlation = torch.corrcoef(noise.flatten(1))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(count / 2)  # each view has its own noise


def test_windows_of_the_training_lie_everywhere():
    made, rows = encoder(window=4, noise=0.0, permuted_view=False), rows_of(2)
    seen = set()
    for seed in range(60):
        views, positions, real = made._views(rows, generator(seed))
        start = int(positions[0, 0])
        seen.add(start)
        window = torch.arange(start, start + 4)
        assert torch.equal(views[0], made.view.tokenise(rows)[:, window])
        assert torch.equal(positions, made.view.positions[window]) and torch.equal(real, made.view.mask[window])
    assert seen == set(range(6))


# --- fitting ---------------------------------------------------------------------------------------------------------

SHORT = TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, accelerator="cpu")


def fit(zoo: Zoo, optimisation: TrainingConfig = SHORT, folder=None, **changes) -> SANE:
    config = SANEConfig(**SIZES | changes)
    return SANE.fit(zoo, validation=zoo, config=config, optimisation=optimisation, folder=folder)


def differ(one: SANE, other: SANE) -> bool:
    return any(not torch.equal(v, other.module.state_dict()[k]) for k, v in one.module.state_dict().items())


def test_equal_seeds_equal_fits():
    zoo = zoo_of(rows_of(16), runs=8)
    first = fit(zoo)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # the global generator must not matter
        assert not differ(first, fit(zoo))
    assert differ(
        first, fit(zoo, TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, accelerator="cpu", seed=1))
    )


@pytest.mark.parametrize(
    "change", [{"contrast": 0.5}, {"temperature": 1.0}, {"noise": 0.3}, {"permuted_view": False}, {"window": 5}]
)
def test_options_change_the_fit(change):
    zoo = zoo_of(rows_of(16), runs=8)
    base, other = fit(zoo), fit(zoo, **change)
    assert not torch.allclose(base.module.token_in.weight, other.module.token_in.weight)


def test_it_can_learn_four_networks():
    zoo = zoo_of(rows_of(4))
    optimisation = TrainingConfig(epochs=10, batch_size=4, learning_rate=1e-2, accelerator="cpu")
    fitted = fit(
        zoo.take([0, 1, 2, 3] * 25), optimisation, contrast=0.0, noise=0.0, permuted_view=False, width=32, latent=7
    )
    aligned = fitted.preparation.aligned(zoo)
    error = (fitted.reconstruct(zoo).weights() - aligned).square().mean() / aligned.var()
    assert float(error) < 0.01


def test_windows_smaller_than_the_network_end_to_end():
    zoo = zoo_of(rows_of(16), runs=8)
    fitted = fit(zoo, window=4, halo=1)
    assert fitted.latents(zoo).shape == (16, 9, 5)
    assert fitted.reconstruct(zoo).weights().shape == (16, LAYOUT.parameters)


def test_a_network_of_one_layer_has_no_units_to_permute():
    layout = Layout.of(nn.Linear(6, 3))
    zoo = zoo_of(rows_of(8, layout), layout)
    fitted = fit(zoo)
    torch.testing.assert_close(fitted.preparation.aligned(zoo), zoo.weights(), rtol=0, atol=0)
    assert fitted.embed(zoo).shape == (8, 5)


def test_the_folder_of_another_zoo_or_objective_is_refused(tmp_path):
    zoo = zoo_of(rows_of(16), runs=8)
    fit(zoo, folder=tmp_path)
    with pytest.raises(ConfigError, match="other settings or data"):
        fit(zoo_of(rows_of(16, seed=1), runs=8), folder=tmp_path)
    with pytest.raises(ConfigError, match="other settings or data"):
        fit(zoo, folder=tmp_path, noise=0.2)
    assert not differ(fit(zoo, folder=tmp_path), SANE.load(tmp_path))


def test_what_was_fitted_is_recorded():
    zoo = zoo_of(rows_of(16), runs=8)
    how = fit(zoo).header["fit"]
    assert how["zoo"] == zoo.digest and how["checkpoints"] == 16 and how["epochs"] == 2
    assert how["optimisation"]["learning_rate"] == 3e-3


def test_token_count_of_the_layout_here():
    assert TokenView(LAYOUT, 7).count == 9
