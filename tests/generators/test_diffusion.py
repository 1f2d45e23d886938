"""Fitted diffusions: spaces there and back, conditions obeyed, files that give the same networks, what is refused."""

import json
from typing import ClassVar

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightspace import generators, networks
from weightspace.encoders import TrainingConfig
from weightspace.errors import ConfigError, LayoutError, UnknownName, WeightspaceError
from weightspace.generators import (
    DDPM,
    Components,
    Diffusion,
    DiffusionConfig,
    DiffusionTraining,
    Flow,
    Latents,
    MLPDenoiser,
    Rows,
    TransformerDenoiser,
)
from weightspace.generators.conditions import CONDITIONERS, TableConditioner
from weightspace.generators.spaces import running_variances
from weightspace.networks import CNN, Layout
from weightspace.zoo import Zoo

LAYOUT = Layout.of(nn.Linear(3, 2))
SMALL = DiffusionConfig(denoiser=MLPDenoiser(width=48, depth=2), average=0.98, epoch_steps=150)
SHORT = DiffusionTraining(epochs=4, batch_size=128, learning_rate=3e-3, accelerator="cpu")
BRIEF = TrainingConfig(epochs=1, batch_size=8, accelerator="cpu")
TINY = DiffusionConfig(denoiser=MLPDenoiser(width=8, depth=1), epoch_steps=2)


def toy(n, seed, prefix="m"):
    """Networks of two kinds around opposite centres, with a level that all their weights share."""
    generator = torch.Generator().manual_seed(seed)
    level = 2 * torch.rand(n, generator=generator) - 1
    high = torch.rand(n, generator=generator) < 0.3
    rows = level[:, None] + 3 * (2 * high[:, None] - 1.0) * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    rows = rows + 0.1 * torch.randn(n, 8, generator=generator)
    table = pl.DataFrame(
        {
            "model": [f"{prefix}{i:04d}" for i in range(n)], "step": [0] * n,
            "metric.level": level.tolist(), "config.kind": ["high" if one else "low" for one in high],
        }
    )  # fmt: skip
    return Zoo.in_memory(rows, LAYOUT, table, {"name": "toy"})


def level(zoo):
    return zoo.weights().mean(1)


def is_high(zoo):
    return zoo.weights()[:, 0] > zoo.weights()[:, 1]


@pytest.fixture(scope="module")
def conditional():
    """A flow that was told level and kind of a thousand toy networks."""
    return Diffusion.fit(
        toy(1000, 0), validation=toy(200, 1, "v"), condition=("metric.level", "config.kind"), config=SMALL,
        optimisation=SHORT,
    )  # fmt: skip


def r2(found, asked):
    return 1 - float((found - asked).square().mean() / asked.var(correction=0))


def test_networks_have_what_was_asked_for(conditional):
    asked = torch.linspace(-0.9, 0.9, 200)
    kinds = ["high", "low"] * 100
    made = conditional.sample(200, condition={"metric.level": asked, "config.kind": kinds}, steps=30, seed=0)
    assert r2(level(made), asked) > 0.9
    assert (is_high(made) == torch.tensor([kind == "high" for kind in kinds])).float().mean() > 0.97
    assert made.table["asked.config.kind"].to_list() == kinds
    assert made.table["asked.metric.level"].to_list() == pytest.approx(asked.tolist())


def test_without_a_condition_networks_are_those_of_the_zoo(conditional):
    """Both kinds in their shares; the level has another deviation if conditions are not withheld in training."""
    made = conditional.sample(2000, steps=30, seed=0)
    assert abs(float(is_high(made).float().mean()) - 0.3) < 0.07
    assert float(level(made).std()) == pytest.approx(float(level(toy(2000, 5)).std()), rel=0.2)
    assert "asked.metric.level" not in made.table.columns


def test_guidance_of_one_is_the_condition_and_more_goes_further(conditional):
    condition = {"metric.level": 0.5, "config.kind": "high"}
    plain, one, more = (
        conditional.sample(200, condition=condition, steps=20, seed=0, **options)
        for options in ({}, {"guidance": 1.0}, {"guidance": 3.0})
    )
    assert torch.equal(plain.weights(), one.weights())
    assert float(is_high(more).float().mean()) >= float(is_high(plain).float().mean())
    assert float(level(more).mean()) > float(level(plain).mean())


def test_equal_seeds_give_equal_networks(conditional):
    first, again, other = (conditional.sample(5, steps=5, seed=seed).weights() for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_equal_trainings_give_equal_generators_and_a_finished_one_is_not_repeated(tmp_path):
    fits = [
        Diffusion.fit(toy(30, 0), validation=toy(9, 1, "v"), config=TINY, optimisation=BRIEF, folder=folder)
        for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "a")
    ]
    first, other, again = (fitted.sample(3, steps=3).weights() for fitted in fits)
    assert torch.equal(first, other) and torch.equal(first, again)


# ---- Spaces


def test_rows_come_back_aligned(digits_zoo):
    space = Rows.fit(digits_zoo)
    points = space.encode(digits_zoo)
    aligned = space.decode(points)
    torch.testing.assert_close(space.encode_rows(aligned), points, atol=1e-5, rtol=0)
    torch.testing.assert_close(aligned.sort(1).values, digits_zoo.weights().sort(1).values, atol=1e-5, rtol=0)
    spread = torch.stack([points[:, part].var(0, correction=0).mean() for part in digits_zoo.layout.slices.values()])
    torch.testing.assert_close(spread, torch.ones(4), atol=1e-4, rtol=0)


def test_rows_by_parameter_have_deviation_one(digits_zoo):
    points = Rows.fit(digits_zoo, scale="parameter", align=False).encode(digits_zoo)
    torch.testing.assert_close(points.std(0, correction=0), torch.ones(1060), atol=1e-4, rtol=0)
    torch.testing.assert_close(points.mean(0), torch.zeros(1060), atol=1e-4, rtol=0)


def test_all_components_give_rows_back_and_few_the_nearest_ones():
    zoo = toy(40, 0)
    rows, space = Rows.fit(zoo), Components.fit(zoo, 8)
    torch.testing.assert_close(space.decode(space.encode(zoo)), zoo.weights(), atol=1e-5, rtol=0)
    torch.testing.assert_close(space.encode(zoo).std(0), torch.ones(8), atol=1e-4, rtol=0)
    few = Components.fit(zoo, 2, whiten=False)
    scores, points = few.encode(zoo), rows.encode(zoo)
    assert scores.std(0)[1] < scores.std(0)[0] == pytest.approx(1)
    lost = points - rows.encode_rows(few.decode(scores))
    variance = torch.linalg.eigvalsh(points.double().T.cov()).flip(0)
    assert float(lost.square().sum() / 39) == pytest.approx(float(variance[2:].sum()), rel=1e-3)
    with pytest.raises(ConfigError, match="1 to 8 principal components, not 9"):
        Components.fit(zoo, 9)


def test_latents_are_standardised_and_decoded_by_their_autoencoder(digits_zoo, digits_sane):
    space = Latents.fit(digits_zoo, digits_sane)
    points = space.encode(digits_zoo)
    torch.testing.assert_close(points.std(0, correction=0), torch.ones(space.shape), atol=1e-3, rtol=0)
    wanted = digits_sane.reconstruct(digits_zoo).weights()
    torch.testing.assert_close(space.decode(points), wanted, atol=1e-5, rtol=1e-5)


def test_running_variances_stay_positive_and_constants_stay():
    network = CNN(batch_norm=True)
    layout = Layout.of(network.build())
    positive = running_variances(layout)
    rows = torch.randn(6, layout.parameters, generator=torch.Generator().manual_seed(0))
    rows[:, positive] = rows[:, positive].square() + 0.01
    rows[:, :3] = torch.tensor([0.0, 7.0, -1.0])
    table = pl.DataFrame({"model": list("abcdef"), "step": [0] * 6})
    zoo = Zoo.in_memory(rows, layout, table, {"network": networks.to_json(network)})
    space = Rows.fit(zoo, align=False)
    assert positive.any()
    torch.testing.assert_close(space.decode(space.encode(zoo)), rows, atol=1e-5, rtol=1e-5)
    wild = space.decode(5 * torch.randn(50, layout.parameters))
    assert (wild[:, positive] > 0).all() and wild.isfinite().all()
    assert torch.equal(wild[:, :3], rows[:1, :3].expand(50, -1))


# ---- Files


def untrained(space, config=TINY, conditioner=None):
    fitted = Diffusion(space, config, {"name": "z"}, conditioner)
    generator = torch.Generator().manual_seed(0)
    for parameter in fitted.module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return fitted


def test_every_kind_of_generator_comes_back_from_its_files(tmp_path, digits_zoo, digits_sane):
    zoo = toy(20, 0)
    narrow = TransformerDenoiser(width=8, heads=2, depth=1)
    tokens = DiffusionConfig(process=DDPM(eta=0.5, schedule="cosine"), denoiser=narrow)
    conditioner = TableConditioner.of(zoo.table, ["metric.level", "config.kind"])
    fits = {
        "rows": (untrained(Rows.fit(zoo), conditioner=conditioner), {"metric.level": 0.2, "config.kind": "low"}),
        "components": (untrained(Components.fit(zoo, 3)), None),
        "latents": (untrained(Latents.fit(digits_zoo, digits_sane), tokens), None),
    }
    for name, (fitted, condition) in fits.items():
        fitted.save_pretrained(tmp_path / name)
        loaded = generators.load(tmp_path / name)
        assert loaded.config == fitted.config
        first, second = (one.sample(3, condition=condition, steps=3, seed=2) for one in (fitted, loaded))
        assert torch.equal(first.weights(), second.weights())
        assert first.layout == second.layout and loaded.header["name"] == "z"


def test_damaged_files_are_named(tmp_path):
    untrained(Rows.fit(toy(20, 0))).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())

    def refused(match, **changes):
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        with pytest.raises(WeightspaceError, match=match):
            generators.load(tmp_path)

    refused("averge", config=content["config"] | {"averge": 0.1})
    refused("unknown kind of space 'raws'; did you mean 'rows'", space=content["space"] | {"kind": "raws"})
    refused("unknown generator 'difusion'; did you mean 'diffusion'", method="difusion")
    refused("unknown conditioner", conditioner={"kind": "tabel"})
    (tmp_path / "config.json").write_text(json.dumps(content))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "leave" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(WeightspaceError, match="does not fit the sizes"):
        generators.load(tmp_path)
    with pytest.raises(WeightspaceError, match="holds no fitted generator"):
        generators.load(tmp_path / "nothing")


# ---- Conditions


class Level(nn.Module):
    """A conditioner with weights of its own: the level, through a linear map."""

    name: ClassVar[str] = "level"
    width = 2

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(1, 2)

    def forward(self, given):
        return self.map(given)

    def given(self, table):
        return torch.tensor(table["metric.level"].to_list())[:, None]

    def asked(self, wanted, n):
        return torch.full((n, 1), float(wanted))

    def to_json(self):
        return {}

    @classmethod
    def from_json(cls, data):
        return cls()


def test_a_conditioner_of_ones_own_is_trained_and_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(CONDITIONERS, Level.name, Level)
    own = Level()
    before = own.map.weight.detach().clone()
    longer = DiffusionConfig(denoiser=MLPDenoiser(width=8, depth=1), epoch_steps=20)
    fitted = Diffusion.fit(
        toy(30, 0), validation=toy(9, 1, "v"), condition=own, config=longer, optimisation=BRIEF, folder=tmp_path
    )
    assert not torch.equal(own.map.weight, before)
    first, second = (one.sample(3, condition=0.3, steps=3) for one in (fitted, Diffusion.from_pretrained(tmp_path)))
    assert torch.equal(first.weights(), second.weights())


def test_columns_become_numbers_and_codes():
    table = pl.DataFrame({"a": [1.0, 2.0, 3.0], "b": [True, False, True], "layout": ["x", "y", "z"]})
    conditioner = TableConditioner.of(table, table.columns)
    condition = conditioner(conditioner.given(table))
    assert conditioner.width == condition.shape[1] == 6
    assert condition[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])  # over the deviation √(2/3)
    assert condition[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 1]] and torch.equal(condition[:, 3:], torch.eye(3))
    asked = conditioner.asked({"a": 2, "b": False, "layout": ["z", "x"]}, 2)
    assert conditioner(asked)[:, 1:].tolist() == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ({"metric.levle": 1.0, "config.kind": "low"}, "did you mean 'metric.level'"),
        ({"metric.level": 1.0}, "say what it should be"),
        ({"metric.level": [1.0, 2.0], "config.kind": "low"}, "2 values for 3 networks"),
        ({"metric.level": "much", "config.kind": "low"}, "must be numbers"),
        ({"metric.level": float("nan"), "config.kind": "low"}, "finite"),
        ({"metric.level": 1.0, "config.kind": "lwo"}, "did you mean 'low'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(conditional, condition, match):
    with pytest.raises(ConfigError, match=match):
        conditional.sample(3, condition=condition)


def test_what_cannot_be_fitted_or_drawn_is_refused(digits_zoo):
    zoo, held = toy(10, 0), toy(5, 1, "v")

    def fit(train=zoo, validation=held, **options):
        return Diffusion.fit(train, validation=validation, config=TINY, optimisation=BRIEF, **options)

    with pytest.raises(UnknownName, match=r"did you mean 'metric\.level'"):
        fit(condition=("metric.levels",))
    with pytest.raises(ConfigError, match="the same for all networks"):
        fit(zoo.with_columns(**{"metric.flat": 1.0}), condition=("metric.flat",))
    with pytest.raises(ConfigError, match="missing values"):
        fit(zoo.with_columns(**{"metric.some": [1.0] + [None] * 9}), condition=("metric.some",))
    with pytest.raises(ConfigError, match="several activations"):
        fit(digits_zoo.last(), digits_zoo.last())
    with pytest.raises(LayoutError, match="same architecture"):
        fit(validation=digits_zoo)
    fitted = fit()
    with pytest.raises(ConfigError, match="without a condition"):
        fitted.sample(2, condition={"metric.level": 1.0})
    with pytest.raises(ConfigError, match="at least 1"):
        fitted.sample(0)
    assert "10 independent runs" in fitted.warnings[0]


def test_networks_of_several_activations_are_asked_for_by_activation(digits_zoo):
    last = digits_zoo.last()
    fitted = Diffusion.fit(last, validation=last, condition=("config.activation",), config=TINY, optimisation=BRIEF)
    made = fitted.sample(4, condition={"config.activation": ["tanh", "relu"] * 2}, steps=2)
    assert made.table["config.activation"].to_list() == ["tanh", "relu"] * 2
    with pytest.raises(ConfigError, match="nobody could tell them apart"):
        fitted.sample(4, steps=2)


def test_many_runs_raise_no_warning(conditional):
    assert conditional.warnings == []


def test_processes_are_told_apart_in_files(tmp_path):
    for process in (Flow(solver="heun"), DDPM(target="velocity", sampling_steps=7)):
        config = DiffusionConfig(process=process, denoiser=MLPDenoiser(width=8, depth=1))
        untrained(Rows.fit(toy(20, 0)), config).save_pretrained(tmp_path)
        assert Diffusion.from_pretrained(tmp_path).config == config
