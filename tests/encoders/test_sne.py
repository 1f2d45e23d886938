"""SNE: chunk counts, its true and false symmetries, mixed architectures and the published size."""

from dataclasses import replace

import pytest
import torch

from weightspace.encoders.sne import MAB, SNE, TYPES, ChunkSet, ScalarMAB, SetToVector, SNEConfig
from weightspace.networks import CNN, MLP, Layout, PooledCNN, ResNet18, ViT
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.chunks import ChunkView

ARCHITECTURE = Architecture.of(CNN())
SMALL = SNEConfig(width=8, heads=2, chunk=9)


def networks(architecture=ARCHITECTURE, count=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return Networks.of(torch.randn(count, architecture.layout.parameters, generator=g, dtype=dtype), architecture)


def made(config=SMALL, kind=SNE, outputs=1):
    torch.manual_seed(0)
    return kind(config, [ARCHITECTURE], outputs).double().eval()


def changed(some, rows):
    return Networks(rows, some.architecture, some.activations)


def places(name):
    place = ARCHITECTURE.layout.slices[name]
    return torch.arange(place.start, place.stop)


def test_chunk_counts_of_the_small_cnn_zoo():
    layout = Layout.of(PooledCNN().build())
    assert [ChunkView(layout, c).count for c in (16, 32, 64, 144)] == [311, 158, 82, 39]
    kernel = ChunkView(layout, 9, "kernel")
    assert kernel.count == 556
    assert [kernel.counts[i] for i in (0, 2, 4, 6)] == [16, 256, 256, 20]
    assert ChunkView(layout, 9, "neuron").counts[2] == 16 * 16


@pytest.mark.parametrize("granularity", ["tensor", "neuron", "kernel"])
@pytest.mark.parametrize("size", [5, 9, 64])
def test_chunks_hold_every_weight_once_in_order(granularity, size):
    view = ChunkView(ARCHITECTURE.layout, size, granularity)
    row = torch.arange(1.0, ARCHITECTURE.layout.parameters + 1)[None]
    chunks = view.chunks(row)
    assert torch.equal(chunks[:, view.mask], row)
    assert not chunks[:, ~view.mask].any()
    assert len(view.index) == view.count == sum(view.counts)


@pytest.mark.parametrize("width", [32, 64])
def test_the_size_that_the_specification_counts(width):
    config = SNEConfig(width=width, level="learned")
    count = sum(p.numel() for p in SNE(config, [ARCHITECTURE], 1).parameters())
    rows_more = len(TYPES) - 4  # it counts four kinds of tensors
    assert count == 37 * width**2 + 83 * width + 1 + rows_more * width
    assert {32: 40_545, 64: 156_865}[width] == count - rows_more * width
    other = SNE(config, [Architecture.of(MLP())], 1)
    assert sum(p.numel() for p in other.parameters()) == count


def test_a_chunk_is_a_set_and_a_tensor_a_set_of_chunks():
    """Symmetries that networks do not have: the published model cannot see these changes, an ordered one can."""
    some, sne, ordered = networks(), made(), made(kind=ChunkSet)
    within = places("conv2.weight")[:9]
    rows = some.rows.clone()
    rows[:, within] = rows[:, within.flip(0)]
    torch.testing.assert_close(sne(changed(some, rows)), sne(some), rtol=0, atol=1e-12)
    assert (ordered(changed(some, rows)) - ordered(some)).abs().max() > 1e-8
    chunks = some.rows.clone()
    first, second = places("conv2.weight")[:9], places("conv2.weight")[18:27]
    chunks[:, first], chunks[:, second] = some.rows[:, second], some.rows[:, first]
    for encoder in (sne, ordered):
        torch.testing.assert_close(encoder(changed(some, chunks)), encoder(some), rtol=0, atol=1e-12)
    across = some.rows.clone()
    across[:, first[0]], across[:, second[0]] = some.rows[:, second[0]], some.rows[:, first[0]]
    assert (sne(changed(some, across)) - sne(some)).abs().max() > 1e-9


def test_codes_tell_layers_of_equal_shape_apart():
    architecture = Architecture.of(MLP(image_shape=(1, 2, 4), hidden=(8, 8), classes=8))
    some = networks(architecture)
    names = [spec.name for spec in architecture.layout.tensors if spec.shape == (8, 8)]
    first, last = (architecture.layout.slices[name] for name in names[:2])
    rows = some.rows.clone()
    rows[:, first], rows[:, last] = some.rows[:, last], some.rows[:, first]
    assert (made()(changed(some, rows)) - made()(some)).abs().max() > 1e-6
    blind = made(replace(SMALL, codes=False))
    torch.testing.assert_close(blind(changed(some, rows)), blind(some), rtol=0, atol=1e-12)


def test_hidden_units_are_told_apart_before_training():
    some = networks()
    for kind in (SNE, ChunkSet):
        encoder = made(kind=kind)
        moved = encoder(some.permuted(torch.Generator().manual_seed(0)))
        assert (moved - encoder(some)).abs().max() > 1e-6


def test_padding_is_not_seen_unless_wanted():
    masked, seen = made(), made(replace(SMALL, mask_padding=False))
    values, kind = torch.randn(3, 9, 1, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)
    real = torch.arange(9) < 5
    padded = values * real[:, None]
    short = masked.chunk(values[:, :5], kind, None)
    torch.testing.assert_close(masked.chunk(padded, kind, real.expand(3, -1)), short)
    assert (seen.chunk(padded, kind, None) - seen.chunk(values[:, :5], kind, None)).abs().max() > 1e-6


@pytest.mark.parametrize("network", [
    MLP(), CNN(hidden=(7,)), PooledCNN(), ResNet18(image_shape=(1, 8, 8), width=2),
    ViT(image_shape=(1, 8, 8), width=8, depth=1, heads=2),
], ids=lambda network: type(network).__name__)  # fmt: skip
def test_any_architecture_is_read(network):
    some = networks(Architecture.of(network), count=3)
    encoder = made(replace(SMALL, granularity="neuron"))
    together = encoder(some)
    assert together.shape == (3, 1)
    alone = torch.cat([encoder(some[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert encoder.layer_codes(some).shape[1] == len(some.architecture.layout.tensors)


def test_slices_and_inducing_points_bound_memory():
    some, whole = networks(), made()
    sliced = made(replace(SMALL, slice=50))
    torch.testing.assert_close(sliced(some), whole(some))
    for encoder in (sliced, whole):
        encoder(some).sum().backward()
    for p, q in zip(sliced.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    few = made(replace(SMALL, inducing=3, many=20))
    assert few(some).isfinite().all()
    assert (few(some) - whole(some)).abs().max() > 1e-6
    first, second = places("conv2.weight")[:9], places("conv2.weight")[18:27]
    rows = some.rows.clone()
    rows[:, first], rows[:, second] = some.rows[:, second], some.rows[:, first]
    torch.testing.assert_close(few(changed(some, rows)), few(some), rtol=0, atol=1e-12)


def test_attention_is_that_of_the_set_transformer():
    """Against the formula, element by element."""
    torch.manual_seed(0)
    block = MAB(3, 5, 4, heads=2).double()
    x, y = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(1, 6, 5, dtype=torch.float64)
    q, k, v = block.query(x)[0], block.key(y)[0], block.value(y)[0]
    heads = []
    for r in (slice(0, 2), slice(2, 4)):
        weights = torch.softmax(q[:, r] @ k[:, r].T / 2, dim=1)  # root of the whole width, 4
        heads.append(q[:, r] + weights @ v[:, r])
    out = torch.cat(heads, dim=1)
    torch.testing.assert_close(block(x, y)[0], out + torch.relu(block.out(out)))


def test_pooling_forgets_the_order():
    torch.manual_seed(0)
    pool = SetToVector(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(pool(x[:, torch.randperm(5)]), pool(x))


@pytest.mark.parametrize("masked", [True, False])
def test_shortcuts_are_attention_itself(masked):
    """Attention among scalars, and of one seed, against the block that they abbreviate."""
    torch.manual_seed(0)
    real = torch.rand(4, 7) < 0.7 if masked else None
    if real is not None:
        real[:, 0] = True
    x = torch.randn(4, 7, 1, dtype=torch.float64)
    block = ScalarMAB(1, 1, 12, heads=3).double()
    torch.testing.assert_close(block(x, x, real), MAB.forward(block, x, x, real))
    pool, y = SetToVector(12, 3).double(), torch.randn(4, 7, 12, dtype=torch.float64)
    whole = pool.attention(pool.seed.expand(4, -1, -1), torch.relu(pool.before(y)), real)[:, 0]
    torch.testing.assert_close(pool(y, real), whole)
