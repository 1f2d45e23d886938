"""Scale and sign groups: known answers by activation, through pooling and norms; factors against a plain loop."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import log

import numpy as np
import pytest
import torch
from architectures import gpt2, gru, llama, mlp, resnet18, vgg
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    Place,
    ScaleGroup,
    Symmetry,
    apply_scales,
    random_scales,
    scale_factors,
    symmetry_of,
    verify,
)
from weightspace.symmetry.trace.exponents import Exponents


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def kinds(module: nn.Module, example: Tensor) -> dict[str, list[tuple]]:
    """Kinds of the exact groups by the layer that makes the units, with places as tensor, axis, exponent."""
    found: dict[str, list[tuple]] = {}
    for group in symmetry_of(module, example).scales:
        places = [(p.tensor, p.axis, e) for p, e in zip(group.places, group.exponents, strict=True)]
        found.setdefault(group.kind, []).append((group.size, group.exact, places))
    return found


BOTH, POSITIVE, SIGN, NONE = {"positive", "sign"}, {"positive"}, {"sign"}, set()
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "none": (lambda x: x, BOTH),
    "relu": (torch.relu, POSITIVE),
    "leaky-relu": (lambda x: F.leaky_relu(x, 0.1), POSITIVE),
    "clamp-from-zero": (lambda x: x.clamp(min=0), POSITIVE),
    "absolute": (torch.abs, BOTH),
    "square": (lambda x: x.square(), BOTH),
    "tanh": (torch.tanh, SIGN),
    "sine": (lambda x: torch.sin(30 * x), SIGN),
    "hardtanh": (F.hardtanh, SIGN),
    "erf": (torch.erf, SIGN),
    "cosine": (torch.cos, SIGN),
    "relu6": (F.relu6, NONE),
    "gelu": (F.gelu, NONE),
    "silu": (F.silu, NONE),
    "sigmoid": (torch.sigmoid, NONE),
    "softplus": (F.softplus, NONE),
    "shifted": (lambda x: x + 1, NONE),
    "softmax": (lambda x: x.softmax(1), NONE),
    "unknown": (lambda x: x.cumsum(1), NONE),
}


class Parallel(nn.Module):
    """Networks side by side: one trace for all, nothing shared."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts.values())


@cache
def activations() -> Symmetry:
    parts = {
        name: nn.Sequential(nn.Linear(3, 4), Apply(function), nn.Linear(4, 2))
        for name, (function, _) in ACTIVATIONS.items()
    }
    return symmetry_of(Parallel(parts), torch.zeros(5, 3))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kind_of_scale_by_activation(name):
    found = {g.kind: g for g in activations().scales if g.places[0].tensor.startswith(f"parts.{name}.")}
    assert set(found) == ACTIVATIONS[name][1]
    incoming = (Place(f"parts.{name}.0.weight", 0), Place(f"parts.{name}.0.bias", 0))
    outgoing = Place(f"parts.{name}.2.weight", 1)
    if "positive" in found:
        assert found["positive"].places == (*incoming, outgoing)
        assert found["positive"].exponents == (1, 1, -2 if name == "square" else -1)
    if "sign" in found:
        even = name in ("absolute", "square", "cosine")
        assert found["sign"].places == (incoming if even else (*incoming, outgoing))
    assert all(group.size == 4 and group.exact for group in found.values())


@pytest.mark.parametrize(
    ("activation", "pooling", "expected"),
    [
        ("relu", nn.MaxPool2d(2), POSITIVE),
        ("relu", nn.AvgPool2d(2), POSITIVE),
        ("tanh", nn.AvgPool2d(2), SIGN),
        ("tanh", nn.MaxPool2d(2), NONE),
        ("tanh", nn.Upsample(scale_factor=2), SIGN),
        ("relu", nn.AdaptiveMaxPool2d(2), POSITIVE),
    ],
)
def test_pooling_keeps_positive_scales_and_only_averages_keep_signs(activation, pooling, expected):
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()
    module = nn.Sequential(nn.Conv2d(1, 3, 3), act, pooling, nn.Flatten(), nn.LazyLinear(2))
    images = torch.zeros(2, 1, 6, 6)
    module(images)
    symmetry = symmetry_of(module, images)
    assert {group.kind for group in symmetry.scales} == expected
    for group in symmetry.scales:  # a channel owns a block behind the flatten
        positions = module[-1].in_features // 3
        assert group.places == (Place("0.weight", 0), Place("0.bias", 0), Place("4.weight", 1, block=positions))


def test_batch_norm_undoes_a_positive_scale_up_to_eps_and_a_sign_exactly():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    found = kinds(module, torch.zeros(5, 3))
    before = [("0.weight", 0, 1), ("0.bias", 0, 1), ("1.running_mean", 0, 1), ("1.running_var", 0, 2)]
    behind = [("1.weight", 0, 1), ("1.bias", 0, 1), ("3.weight", 1, -1)]
    assert found["positive"] == [(4, False, before), (4, True, behind)]
    assert found["sign"] == [(4, True, [*before[:2], ("1.weight", 0, 1), ("1.running_mean", 0, 1)])]
    checks = verify(module, symmetry_of(module, torch.zeros(5, 3)), generator=seeded(), input=torch.zeros(5, 3)).checks
    inexact = [check.error for check in checks if not check.exact]
    assert len(inexact) == 1 and 1e-10 < inexact[0] < 1e-2


def test_layer_norm_stops_scales_and_starts_new_ones():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    behind = [("1.weight", 0, 1), ("1.bias", 0, 1), ("2.weight", 1, -1)]
    assert kinds(module, torch.zeros(5, 3))["positive"] == [(4, True, behind)]
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2))
    assert kinds(plain, torch.zeros(5, 3)) == {}


def test_a_residual_stream_scales_as_a_whole_if_at_all():
    module, (images,) = resnet18()
    stream = next(g for g in symmetry_of(module, images).scales if g.name == "bn1" and g.kind == "positive")
    powers = {place.tensor: power for place, power in zip(stream.places, stream.exponents, strict=True)}
    assert powers["bn1.weight"] == powers["layer1.1.bn2.bias"] == 1
    assert powers["layer1.0.conv1.weight"] == powers["layer2.0.downsample.0.weight"] == -1

    class Residual(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), act

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.c(x + self.act(self.b(x)))

    homogeneous, bent = (kinds(Residual(act), torch.zeros(5, 3)) for act in (torch.relu, F.gelu))
    assert homogeneous["positive"] == [
        (4, True, [("a.weight", 0, 1), ("a.bias", 0, 1), ("b.weight", 0, 1), ("b.weight", 1, -1), ("b.bias", 0, 1),
                   ("c.weight", 1, -1)])
    ]  # fmt: skip
    assert bent == {}


def test_root_mean_square_lets_the_signs_of_a_whole_stream_turn():
    module, (tokens,) = llama()
    signs = [group for group in symmetry_of(module, tokens).scales if group.kind == "sign"]
    stream = next(group for group in signs if group.name == "embed")
    assert stream.size == 16 and {"layers.1.down_proj.weight", "lm_head.weight"} <= {p.tensor for p in stream.places}
    assert not any(group.name == "wte" for group in symmetry_of(*gpt2()).scales)  # a layer norm takes the mean


def test_heads_scale_queries_against_keys_and_values_against_the_output():
    module, inputs = gpt2()
    groups = [g for g in symmetry_of(module, inputs).scales if g.kind == "positive" and "blocks.0.c_attn" in g.name]
    queries, values = groups
    exponents = {(p.tensor, p.start): e for p, e in zip(queries.places, queries.exponents, strict=True)}
    assert exponents[("blocks.0.c_attn.weight", 0)] == 1 and exponents[("blocks.0.c_attn.weight", 8)] == -1
    assert {p.tensor for p in values.places} == {
        f"blocks.0.{t}" for t in ("c_attn.weight", "c_attn.bias", "c_proj.weight")
    }
    assert queries.size == values.size == 8


def test_recurrent_units_turn_with_their_candidate_gate():
    module, inputs = gru()
    signs = [group for group in symmetry_of(module, inputs).scales if group.kind == "sign"]
    cell = next(group for group in signs if "cells" in group.name)
    # Of the stacked maps of reset, update and candidate only the last turns.
    assert cell.places[:3] == (
        Place("cells.weight_ih_l0", 0, start=12),
        Place("cells.weight_hh_l0", 0, start=12),
        Place("cells.weight_hh_l0", 1),
    )


def test_factors_equal_a_plain_loop():
    module, inputs = vgg()
    symmetry = symmetry_of(module, inputs)
    scales = random_scales(symmetry.scales, 3, seeded())
    factors = scale_factors(symmetry.layout, symmetry.scales, scales)
    for m in range(3):
        tensors = {spec.name: torch.ones(spec.shape) for spec in symmetry.layout.tensors}
        for group, scale in zip(symmetry.scales, scales, strict=True):
            for place, power in zip(group.places, group.exponents, strict=True):
                for repeat in range(place.repeats):
                    for unit in range(group.size):
                        at = place.start + (repeat * group.size + unit) * place.block
                        tensors[place.tensor].narrow(place.axis, at, place.block).mul_(scale[m, unit] ** power)
        torch.testing.assert_close(factors[m], torch.cat([tensors[t.name].flatten() for t in symmetry.layout.tensors]))


def test_scales_compose_and_one_is_the_identity():
    symmetry = symmetry_of(*mlp((5, 4)))
    rows = torch.randn(2, symmetry.layout.parameters, generator=seeded())
    first, second = (random_scales(symmetry.scales, 2, seeded(i)) for i in (1, 2))
    apart = apply_scales(
        apply_scales(rows, symmetry.layout, symmetry.scales, first), symmetry.layout, symmetry.scales, second
    )
    both = [a * b for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(apply_scales(rows, symmetry.layout, symmetry.scales, both), apart)
    ones = [torch.ones_like(scale) for scale in first]
    assert torch.equal(apply_scales(rows, symmetry.layout, symmetry.scales, ones), rows)
    assert torch.equal(apply_scales(rows, symmetry.layout, [], []), rows)


def test_random_scales_have_the_stated_law():
    groups = [ScaleGroup("a", 4, "positive", (), ()), ScaleGroup("b", 4, "sign", (), ())]
    positive, signs = random_scales(groups, 5000, seeded())
    logarithms = positive.log() / log(4)
    assert logarithms.abs().max() <= 1 and logarithms.abs().max() > 0.999
    # Uniform on [-1, 1]: mean 0, variance 1/3; four standard errors with 20 000 draws.
    assert abs(float(logarithms.mean())) < 4 * (1 / 3 / 20_000) ** 0.5
    assert abs(float(logarithms.square().mean()) - 1 / 3) < 4 * (4 / 45 / 20_000) ** 0.5
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 4 / 20_000**0.5
    again = random_scales(groups, 5000, seeded())
    assert torch.equal(positive, again[0]) and torch.equal(signs, again[1])
    narrow = random_scales(groups[:1], 100, seeded(), spread=1.0)[0]
    assert torch.equal(narrow, torch.ones(100, 4))


def test_bad_arguments_are_refused():
    symmetry = symmetry_of(*mlp((5, 4)))
    with pytest.raises(ConfigError, match=r"spread must be at least 1, got 0\.5"):
        random_scales(symmetry.scales, 2, seeded(), spread=0.5)
    with pytest.raises(LayoutError, match=r"scales of shapes \[\(2, 5\)\] do not fit groups of sizes \[5, 4\]"):
        scale_factors(symmetry.layout, symmetry.scales, [torch.ones(2, 5)])


def test_a_scale_that_is_none_does_not_hold():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    places = (Place("0.weight", 0), Place("0.bias", 0), Place("2.weight", 1))
    wrong = ScaleGroup("0", 4, "positive", places, (1.0, 1.0, -1.0))
    found = verify(
        module,
        Symmetry(layout=Layout.of(module), groups=(), scales=(wrong,)),
        generator=seeded(),
        input=torch.zeros(5, 3),
    )
    assert not found.holds and found.error > 1e-3


def test_equations_are_solved_like_matrices():
    """Free unknowns and exponents agree with the null space of the same equations."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        matrix = generator.integers(-2, 3, (4, 6)) * (generator.random((4, 6)) < 0.5)
        system = Exponents("positive")
        unknowns = system.unknowns(6)
        for row in matrix.tolist():
            total = system.times(unknowns[:1], row[0])
            for unknown, factor in zip(unknowns[1:], row[1:], strict=True):
                total = system.add(total, system.times(np.array([unknown]), factor))
            system.require_zero(total)
        solutions = [dict(system.solution(int(unknown))) for unknown in unknowns]
        free = sorted({unknown for solution in solutions for unknown in solution})
        assert len(free) == 6 - np.linalg.matrix_rank(matrix)
        basis = np.array([[float(solution.get(unknown, 0)) for unknown in free] for solution in solutions])
        np.testing.assert_allclose(matrix @ basis, 0, atol=1e-12)


def test_signs_are_solved_modulo_two():
    system = Exponents("sign")
    x, y = system.unknowns(2)
    assert system.times(np.array([x]), 2).tolist() == [0]
    system.require_equal(np.array([x]), np.array([y]))
    assert system.solution(int(y)) == system.solution(int(x)) == ((0, 1),)
    assert system.times(np.array([x]), Fraction(3)).tolist() == [x]
