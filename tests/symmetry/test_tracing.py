"""Symmetries of published architectures are found, hold to rounding, and are not claimed where an operation forbids."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, gpt2, mlp, small_cnn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, by_name
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, Place, Symmetry, chain_groups, symmetry_of, verify

SMALL = {architecture.name: architecture for architecture in ARCHITECTURES}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def traced(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Symmetry]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, inputs = SMALL[name].small()
    return module, inputs, symmetry_of(module, inputs)


def build(layers: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return layers()


def sizes(symmetry: Symmetry) -> dict[str, int]:
    return {group.name: group.size for group in symmetry.groups}


# What can be derived by hand: hidden widths; one group a residual stream; heads, and values of a head.
EXPECTED: dict[str, list[int]] = {
    "MLP 16-512-512-512-3": [7, 5],
    "CNN-s": [8, 6, 4, 20],
    "CNN-l": [16, 32, 15, 20],
    # Stem and first stage are one stream, then one a stage; and one inside each of eight blocks.
    "ResNet-18, width 64": [4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32],
    # Stem; two inner widths and the stream of the first stage, two of its second block; the same for the second stage.
    "ResNet-50": [5, 5, 5, 20, 5, 5, 10, 10, 40],
    # As above; groups are one digit through the grouped convolution, channels of a group another before and behind it.
    "ResNeXt-50, half width, 16 groups": [6, 4, 3, 3, 24, 4, 6, 6, 48],
    "VGG-16 with batch-norm, 32x32 images": [4, 6, 6, 8],
    # A depthwise convolution keeps its channels; the two projections share a residual stream.
    "MobileNetV2": [4, 8, 6, 12, 9],
    # Each layer's growth goes on by concatenation; a transition ends it.
    "DenseNet-BC, growth 12, 3 blocks of 16": [4, 12, 3, 12, 3, 5, 12, 3, 12, 3],
    "ViT-S/16, 32x32 images": [8, 2, 4, 32, 2, 4, 32],
    "GPT-2 type, width 384, 6 heads, 6 blocks": [8, 2, 4, 4, 32, 2, 4, 4, 32],
    # Two heads of keys and values, two queries to each, values of a head (those of queries turn by position), hidden.
    "Llama-type, width 512, 8 heads on 2, 4 blocks": [16, 2, 2, 4, 10, 2, 2, 4, 10],
    "LSTM, 2 layers both ways": [5, 6, 6, 6, 6],
    "GRU, 2 layers": [5, 6, 6],
    "U-Net, width 64": [4, 4, 8, 8, 16, 16, 8, 8, 4, 8, 4, 4],
    "Conv1d": [6, 7],
    "Conv3d": [4, 5],
    "CNN with group and instance norm": [3, 2, 5],
    "SIREN, 3 layers of 256": [7, 7],
    "Squeeze and excitation": [6, 4],
}


@pytest.mark.parametrize("name", SMALL)
def test_known_groups_are_found(name):
    assert [group.size for group in traced(name)[2].groups] == EXPECTED[name]


@pytest.mark.parametrize("name", SMALL)
def test_every_symmetry_holds_and_every_part_of_one_breaks(name):
    module, inputs, symmetry = traced(name)
    found = verify(module, symmetry, generator=seeded(), input=inputs, elements=2)
    assert found.error <= 1e-10
    assert found.control is not None and found.control > 1e-7
    assert found.holds
    kinds = found.table()["kind"].value_counts()
    assert dict(kinds.iter_rows())["permutation"] == len(symmetry.groups)
    assert len(found.checks) == len(symmetry.groups) + len(symmetry.scales)


@pytest.mark.parametrize("name", SMALL)
def test_every_axis_is_explained(name):
    """Each index of each tensor is in a group or frozen, and no index twice in the same digit."""
    _, _, symmetry = traced(name)
    explained = {(place.tensor, place.axis) for frozen in symmetry.frozen for place in frozen.places}
    explained |= {(place.tensor, place.axis) for group in symmetry.groups for place in group.places}
    for spec in symmetry.layout.tensors:
        assert {(spec.name, axis) for axis, size in enumerate(spec.shape) if size > 1} <= explained
    places = [(place, group.size) for group in symmetry.groups for place in group.places]
    assert len(set(places)) == len(places)
    for place, size in places:
        length = symmetry.layout.by_name[place.tensor].shape[place.axis]
        assert place.start + place.repeats * size * place.block <= length


def reasons(symmetry: Symmetry, tensor: str, axis: int) -> str:
    found = [f.reason for f in symmetry.frozen for p in f.places if (p.tensor, p.axis) == (tensor, axis)]
    assert found, f"{tensor}[{axis}] is not frozen"
    return "; ".join(found)


@pytest.mark.parametrize(
    ("name", "tensor", "axis", "reason"),
    [
        ("CNN-s", "fc1.weight", 1, "positions seen by a convolution"),
        ("CNN-s", "conv1.weight", 2, "positions of a convolution kernel"),
        ("ResNet-18, width 64", "conv1.weight", 1, "input of the network"),
        ("ResNet-18, width 64", "fc.weight", 0, "output of the network"),
        ("ViT-S/16, 32x32 images", "positions", 1, "positions seen by a convolution"),
        ("GPT-2 type, width 384, 6 heads, 6 blocks", "wte.weight", 0, "looked up by number"),
        ("GPT-2 type, width 384, 6 heads, 6 blocks", "wte.weight", 0, "output of the network"),
        ("GPT-2 type, width 384, 6 heads, 6 blocks", "wpe.weight", 0, "looked up by number"),
        ("Llama-type, width 512, 8 heads on 2, 4 blocks", "layers.0.q_proj.weight", 0, "table of positions"),
        ("LSTM, 2 layers both ways", "cells.weight_hh_l0", 0, "gates of a recurrent cell"),
    ],
)
def test_frozen_axes_have_their_reason(name, tensor, axis, reason):
    assert reason in reasons(traced(name)[2], tensor, axis)


def test_a_tied_embedding_is_one_tensor():
    symmetry = traced("GPT-2 type, width 384, 6 heads, 6 blocks")[2]
    names = {place.tensor for group in symmetry.groups for place in group.places}
    assert "wte.weight" in names and "head.weight" not in names
    stream = symmetry.groups[0]
    assert {"wte.weight", "wpe.weight", "ln_f.weight", "blocks.1.c_attn.weight"} <= {p.tensor for p in stream.places}


def test_places_in_stacked_maps():
    groups = {group.name: group for group in traced("GPT-2 type, width 384, 6 heads, 6 blocks")[2].groups}
    # Of 3 x 8 rows, each head of 4 values is a block in the maps of queries, keys and values.
    heads = [place for place in groups["blocks.0.c_attn"].places if place.tensor.endswith("c_attn.weight")]
    assert heads == [Place("blocks.0.c_attn.weight", 0, block=4, start=start) for start in (0, 8, 16)]
    values = groups["blocks.0.c_attn within from 16"]
    assert values.places[0] == Place("blocks.0.c_attn.weight", 0, start=16, repeats=2)
    assert values.places[-1] == Place("blocks.0.c_proj.weight", 1, repeats=2)
    cells = {group.name: group for group in traced("LSTM, 2 layers both ways")[2].groups}
    assert cells["cells within"].places[:3] == (
        Place("cells.weight_ih_l0", 0, repeats=4),
        Place("cells.weight_hh_l0", 0, repeats=4),
        Place("cells.weight_hh_l0", 1),
    )
    both_ways = [g for g in cells.values() if any(p.tensor == "cells.weight_ih_l1" and p.axis == 1 for p in g.places)]
    assert [g.places[-1].start for g in both_ways] == [0, 6]


def test_shared_keys_and_values():
    groups = traced("Llama-type, width 512, 8 heads on 2, 4 blocks")[2].groups
    block = {g.name: g for g in groups if g.name.startswith("layers.0.")}
    assert block["layers.0.q_proj"].places == (
        Place("layers.0.q_proj.weight", 0, block=8),
        Place("layers.0.k_proj.weight", 0, block=4),
        Place("layers.0.v_proj.weight", 0, block=4),
        Place("layers.0.o_proj.weight", 1, block=8),
    )
    assert block["layers.0.q_proj within"].places == (
        Place("layers.0.q_proj.weight", 0, block=4, repeats=2),
        Place("layers.0.o_proj.weight", 1, block=4, repeats=2),
    )


CHAINS = {
    "mlp": lambda: mlp((7, 5)),
    "mlp-tanh": lambda: mlp((6, 4, 3), "tanh"),
    "cnn": lambda: small_cnn(CNN()),
    "cnn_s": lambda: small_cnn(by_name("cnn_s", (1, 28, 28), 10)),
    "cnn_l": lambda: small_cnn(by_name("cnn_l", (3, 32, 32), 10)),
    "vgg": SMALL["VGG-16 with batch-norm, 32x32 images"].small,
    "norm-after-flatten": lambda: (
        nn.Sequential(
            *[nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5), nn.Tanh()],
            *[nn.Linear(5, 2)],
        ),
        (torch.zeros(2, 1, 8, 8),),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_the_groups_of_their_layout(name):
    module, inputs = CHAINS[name]()
    symmetry = symmetry_of(module, inputs)
    inferred = Symmetry.inferred_from(Layout.of(module))
    assert symmetry.groups == inferred.groups == chain_groups(Layout.of(module))
    assert inferred.inferred and not symmetry.inferred
    assert "inferred from the layout" in str(inferred) and "inferred" not in str(symmetry)


def test_order_is_the_product_of_factorials():
    symmetry = traced("CNN-s")[2]
    assert symmetry.order == 40320 * 720 * 24 * 2432902008176640000
    assert symmetry.log10_order == pytest.approx(27.229, abs=1e-3)


def test_one_map_between_any_two_bases_of_a_head():
    """Queries times P and keys times its transposed inverse, values times Q and the output map times its inverse."""
    module, (tokens,) = gpt2()
    symmetry = symmetry_of(module, (tokens,))
    named = [(basis.name, basis.size) for basis in symmetry.bases]
    assert named == [("queries and keys", 4), ("values and output", 4)] * 2
    module = module.double().eval()
    with torch.no_grad():
        before = module(tokens)
        p, q = torch.randn(2, 4, 4, generator=seeded(), dtype=torch.float64)
        attention, out = module.blocks[0].c_attn, module.blocks[0].c_proj
        for tensor in (attention.weight, attention.bias):
            heads = tensor.view(3, 2, 4, -1)  # maps, heads, values of a head
            heads[0, 1], heads[1, 1], heads[2, 1] = p @ heads[0, 1], p.inverse().T @ heads[1, 1], q @ heads[2, 1]
        out.weight.view(8, 2, 4)[:, 1] = out.weight.view(8, 2, 4)[:, 1] @ q.inverse()
        torch.testing.assert_close(module(tokens), before, rtol=0, atol=1e-10)


def test_no_basis_where_only_renumbering_is_allowed():
    # Rotary positions turn queries and keys; a tanh or a norm bends what it touches.
    bases = traced("Llama-type, width 512, 8 heads on 2, 4 blocks")[2].bases
    assert {basis.name for basis in bases} == {"values and output"}
    assert traced("MLP 16-512-512-512-3")[2].bases == ()


# Operations that tell units apart, between two linear maps of a network with a free layer before them.


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(3, 5), nn.Linear(5, width), nn.Linear(width, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.hidden(torch.relu(self.first(x)))))


class Parallel(nn.Module):
    """Networks side by side: one trace for all, nothing shared."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts.values())


@cache
def side_by_side() -> tuple[nn.Module, Symmetry]:
    module = build(lambda: Parallel({name: Between(function) for name, function in (APART | ALIKE).items()}))
    return module, symmetry_of(module, torch.zeros(4, 3))


def gathered(x: Tensor) -> Tensor:
    return torch.stack([x[:, (5 * i + 1) % 6] for i in range(6)], 1)


APART = {
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: F.pad(x.topk(3, 1).values, (0, 3)),
    "fft": lambda x: torch.fft.rfft(x, dim=1).abs().repeat(1, 2)[:, :6],
    "argmax": lambda x: x * x.argmax(1, keepdim=True),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "constant": lambda x: x * torch.arange(6.0),
    "gather": lambda x: x.gather(1, torch.tensor([[0, 2, 1, 4, 3, 5]]).expand(len(x), -1)),
    "index": lambda x: x[:, torch.tensor([0, 2, 1, 4, 3, 5])],
    "python": gathered,
    "neighbours": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "convolution": lambda x: F.conv1d(x[:, None], x.new_ones(1, 1, 3), padding=1)[:, 0],
    "steps": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "no-blocks": lambda x: torch.cat([x.view(-1, 2, 3).sum(1), x.view(-1, 3, 2).sum(2)], 1),
}


@pytest.mark.parametrize("name", APART)
def test_what_tells_units_apart_is_frozen_and_never_guessed(name):
    found = sizes(side_by_side()[1])
    assert found[f"parts.{name}.first"] == 5  # what lies before is not touched
    assert f"parts.{name}.hidden" not in found


def test_a_random_operation_is_frozen():
    symmetry = symmetry_of(build(lambda: Between(lambda x: F.dropout(x, 0.5, training=True))), torch.zeros(4, 3))
    assert sizes(symmetry) == {"first": 5}
    assert "random" in reasons(symmetry, "hidden.weight", 0)


def test_what_is_left_of_all_of_them_holds():
    module, symmetry = side_by_side()
    found = verify(module, symmetry, generator=seeded(), input=torch.zeros(4, 3), elements=2)
    assert found.holds and found.error <= 1e-10


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cumsum", "cumsum depends on the order"),
        ("sort", "sort is not understood"),
        ("topk", "topk is not understood"),
        ("fft", "_fft_r2c is not understood"),
        ("argmax", "argmax counts along it"),
        ("constant", "values of a constant"),
        ("gather", "gather is not understood"),
        ("index", "looked up by number"),
        ("neighbours", "positions seen by"),
        ("steps", "slice with a step"),
    ],
)
def test_the_reason_names_the_operation(name, reason):
    assert reason in reasons(side_by_side()[1], f"parts.{name}.hidden.weight", 0)


# Operations that keep all units alike.
ALIKE = {
    "softmax": lambda x: x.softmax(1),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "largest": lambda x: x * (x >= x.amax(1, keepdim=True)),
    "constant-alike": lambda x: x * torch.full((6,), 2.0) + 1,
    "there-and-back": lambda x: x.view(-1, 6, 1).transpose(1, 2).reshape(-1, 6),
    "concatenated-with-itself": lambda x: torch.cat([x, x], 1)[:, :6] + torch.cat([x, x], 1)[:, 6:],
    "outer": lambda x: torch.einsum("bi,bj->bij", x, x).sum(1),
    "normalised": lambda x: F.normalize(x, dim=1),
    "distances": lambda x: (x[:, :, None] - x[:, None, :]).abs().sum(2),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_keeps_units_alike_is_seen(name):
    found = sizes(side_by_side()[1])
    assert found[f"parts.{name}.first"] == 5 and found[f"parts.{name}.hidden"] == 6


def test_a_part_without_gradient_is_not_looked_into():
    module = build(lambda: Between(torch.no_grad()(lambda x: x * 2)))
    symmetry = symmetry_of(module, torch.zeros(4, 3))
    assert sizes(symmetry)["first"] == 5
    assert verify(module, symmetry, generator=seeded(), input=torch.zeros(4, 3), elements=2).holds


def test_a_layer_used_twice_is_one_tensor():
    module = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    twice = nn.Sequential(*module[:4], *module[2:])
    symmetry = symmetry_of(twice, torch.zeros(5, 3))
    assert sizes(symmetry) == {"0": 4}
    assert [(p.tensor, p.axis) for p in symmetry.groups[0].places] == [
        *[("0.weight", 0), ("0.bias", 0), ("2.weight", 0), ("2.weight", 1), ("2.bias", 0), ("6.weight", 1)]
    ]
    assert verify(twice, symmetry, generator=seeded(), input=torch.zeros(5, 3)).holds


class Table(nn.Module):
    """Adds a buffer to its hidden units."""

    def __init__(self, values: Tensor, persistent: bool = True):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("table", values, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) + self.table)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_fixed_table_freezes_where_its_values_differ(persistent):
    different = symmetry_of(Table(torch.arange(4.0), persistent), torch.zeros(5, 3))
    assert different.groups == ()
    assert "differ along it" in reasons(different, "first.weight", 0)
    equal = symmetry_of(Table(torch.ones(4), persistent), torch.zeros(5, 3))
    # Statistics of a norm written by hand start equal and are trained later, so they follow.
    assert ("table" in {place.tensor for place in equal.groups[0].places}) == persistent


def test_last_states_of_stacked_cells():
    class Last(nn.Module):
        def __init__(self, pick):
            super().__init__()
            self.cells, self.head, self.pick = nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 2), pick

        def forward(self, x):
            return self.head(self.pick(self.cells(x)[1][0]))

    picked = symmetry_of(build(lambda: Last(lambda state: state[-1])), torch.zeros(2, 5, 3))
    assert [group.size for group in picked.groups] == [4, 4]
    summed = build(lambda: Last(lambda state: state.sum(0)))
    symmetry = symmetry_of(summed, torch.zeros(2, 5, 3))
    assert [group.size for group in symmetry.groups] == [4]  # the layers' units must go together
    assert verify(summed, symmetry, generator=seeded(), input=torch.zeros(2, 5, 3)).holds


def test_tracing_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    symmetry_of(module, torch.ones(4, 2))
    assert [part.training for part in module] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_that_cannot_be_traced_is_refused_in_one_sentence():
    branch = Between(lambda x: x if float(x.sum()) > 0 else -x)
    with pytest.raises(LayoutError, match=r"Between cannot be traced with inputs of shapes \[\(4, 3\)\]"):
        symmetry_of(branch, torch.zeros(4, 3))
    with pytest.raises(LayoutError, match="give an input that it accepts"):
        symmetry_of(nn.Linear(3, 2), torch.zeros(4, 5))


# Verification: what does not hold is seen.


def test_a_group_that_lacks_a_place_does_not_hold():
    module, inputs, symmetry = traced("CNN-s")
    group = symmetry.groups[2]
    for lost in range(len(group.places)):
        places = group.places[:lost] + group.places[lost + 1 :]
        wrong = Symmetry(layout=symmetry.layout, groups=(PermutationGroup(group.name, group.size, places),))
        found = verify(module, wrong, generator=seeded(), input=inputs)
        assert not found.holds and found.checks[0].error > 1e-3


def test_a_control_that_shows_nothing_does_not_hold():
    module = build(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
    group = PermutationGroup("0", 2, (Place("0.weight", 1), Place("2.weight", 1, block=2)))
    with torch.no_grad():
        module[2].weight.zero_()
    constant = nn.Sequential(*module, nn.Hardtanh(5.0, 5.0 + 1e-12))
    symmetry = Symmetry(layout=Layout.of(constant), groups=(group,))
    found = verify(constant, symmetry, generator=seeded(), input=torch.zeros(3, 2))
    assert found.error <= 1e-10 and found.checks[0].control <= 1e-10 and not found.holds


def test_verification_is_reproducible_and_needs_elements():
    module, inputs, symmetry = traced("SIREN, 3 layers of 256")
    one, two = (verify(module, symmetry, generator=seeded(3), input=inputs) for _ in range(2))
    assert one == two
    with pytest.raises(ConfigError, match="elements must be at least 1, got 0"):
        verify(module, symmetry, generator=seeded(), input=inputs, elements=0)


# Random graphs.

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu, "sine": torch.sin, "none": lambda x: x}
STEPS = ["linear", "residual", "concat", "gate", "batch", "layer", "rms", "heads", "twice", "pad", "halves", "scale"]


class RandomGraph(nn.Module):
    """Steps of many kinds one after another; each keeps or changes the width."""

    def __init__(self, width: int, steps: list[tuple[str, int, str]]):
        super().__init__()
        self.layers, self.steps = nn.ModuleDict({"first": nn.Linear(3, width)}), steps
        for i, (kind, other, _) in enumerate(steps):
            if kind == "linear":
                self.layers[f"a{i}"], width = nn.Linear(width, other, bias=other % 2 > 0), other
            elif kind in ("residual", "concat"):
                self.layers[f"a{i}"] = nn.Linear(width, other)
                self.layers[f"b{i}"] = nn.Linear(other, width if kind == "residual" else other)
                width += other if kind == "concat" else 0
            elif kind == "gate":
                self.layers[f"a{i}"], width = nn.Linear(width, 2 * other), other
            elif kind == "twice":
                self.layers[f"a{i}"] = nn.Linear(width, width)
            elif kind in ("batch", "layer", "rms"):
                norm = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind]
                self.layers[f"a{i}"] = norm(width)
            elif kind == "heads":
                self.layers[f"a{i}"], width = nn.Linear(width, 2 * other), 2 * other
            elif kind == "pad":
                width += 2
            elif kind == "halves":
                self.layers[f"a{i}"], width = nn.Linear(width, 2 * other), other
            elif kind == "scale":
                self.layers[f"a{i}"] = nn.ParameterList(
                    [nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(1))]
                )
        self.layers["last"] = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["first"](x)
        for i, (kind, _, name) in enumerate(self.steps):
            act = ACTIVATIONS[name]
            a = self.layers[f"a{i}"] if kind != "pad" else None
            if kind in ("linear", "batch", "layer", "rms"):
                x = act(a(x))
            elif kind == "residual":
                x = x + self.layers[f"b{i}"](act(a(x)))
            elif kind == "concat":
                x = torch.cat([x, self.layers[f"b{i}"](act(a(x)))], 1)
            elif kind == "gate":
                gate, up = a(x).chunk(2, 1)
                x = act(gate) * up
            elif kind == "twice":
                x = act(a(act(a(x))))
            elif kind == "heads":
                heads = a(x).view(len(x), 2, -1)
                x = (heads.softmax(1) * act(heads)).flatten(1)
            elif kind == "pad":
                x = act(F.pad(x, (1, 1)))
            elif kind == "halves":
                one, two = a(x).split(a.out_features // 2, 1)
                x = act(one - two)
            elif kind == "scale":
                x = act(x * a[0]) * a[1]
        return self.layers["last"](x)


@settings(max_examples=10, deadline=None)
@given(
    width=st.integers(2, 5),
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(2, 5), st.sampled_from(sorted(ACTIVATIONS))), max_size=5
    ),
    seed=st.integers(0, 1000),
)
def test_symmetries_of_random_graphs_hold(width, steps, seed):
    module = build(lambda: RandomGraph(width, steps))
    symmetry = symmetry_of(module, torch.zeros(4, 3))
    assert verify(module, symmetry, generator=seeded(seed), input=torch.zeros(4, 3), elements=2).error <= 1e-10


@settings(max_examples=4, deadline=None)
@given(
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    norm=st.sampled_from(["none", "batch", "instance"]),
    pooling=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_chains_have_the_groups_of_their_layout(widths, norm, pooling, seed):
    layers: list[nn.Module] = []
    channels = 1
    for width in widths:
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [] if norm == "none" else [nn.BatchNorm2d(width) if norm == "batch" else nn.InstanceNorm2d(width)]
        layers.append(nn.ReLU())
        channels = width
    layers += [nn.MaxPool2d(2)] if pooling else []
    module = build(lambda: nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)))
    images = torch.zeros(2, 1, 4, 4)
    module(images)
    symmetry = symmetry_of(module, images)
    assert symmetry.groups == chain_groups(Layout.of(module))
    assert verify(module, symmetry, generator=seeded(seed), input=images, elements=2).error <= 1e-10


def test_architectures_have_distinct_names():
    assert len(SMALL) == len(ARCHITECTURES) and all(isinstance(a, Architecture) for a in ARCHITECTURES)


def test_groups_move_a_module_of_its_own_tensors():
    """The rows of the layout are those of the module: the permuted row runs through `functional_call`."""
    module, inputs, symmetry = traced("U-Net, width 64")
    row = symmetry.layout.flatten(module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(functional_call(module, symmetry.layout.unflatten(row), inputs), module(*inputs))
