"""G.pt: untrained it copies, trained it goes where it is asked, and renumbering units changes nothing."""

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import generators
from weightspace.datasets import load as load_data
from weightspace.errors import ConfigError, LayoutError, UnknownName
from weightspace.generators import GPT, GPTConfig, GPTTraining
from weightspace.generators.gpt import _Pairs, chunk_index, permuted_alike
from weightspace.networks import Layout
from weightspace.views.architecture import architecture_of
from weightspace.zoo import Zoo, behaviour

LAYOUT = Layout.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))  # 11 parameters
SMALL = GPTConfig(width=32, heads=2, depth=1, chunk=4, steps=100, sampling_steps=20, epoch_steps=100, permuted=False)
SHORT = GPTTraining(epochs=5, batch_size=64, learning_rate=3e-3, accelerator="cpu")
LOSS = "metric.validation_loss"


def descents(runs, seed, prefix="r"):
    """Runs of six checkpoints: weights start at random and go along one direction as the loss falls from 2 to 0."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(runs, 1, 11, generator=generator)
    loss = torch.linspace(2, 0, 6).expand(runs, 6) + 0.2 * torch.rand(runs, 6, generator=generator)
    rows = starts + (2 - loss)[:, :, None] * torch.linspace(-1, 1, 11)
    names = [f"{prefix}{i:03d}" for i in range(runs) for _ in range(6)]
    table = pl.DataFrame({"model": names, "step": [*range(6)] * runs, LOSS: loss.flatten().tolist()})
    return Zoo.in_memory(rows.flatten(0, 1), LAYOUT, table, {"name": "descents"})


def moved(before, after):
    """How far along the direction, which is the fall of the loss."""
    direction = torch.linspace(-1, 1, 11)
    return (after - before) @ direction / direction.square().sum()


@pytest.fixture(scope="module")
def fitted():
    return GPT.fit(descents(150, 0), validation=descents(30, 1, "v"), config=SMALL, optimisation=SHORT)


def test_untrained_it_gives_the_start_back():
    starts = descents(5, 0)
    untrained = GPT(LAYOUT, SMALL, {}, scale=0.7)
    untrained.module.reset(torch.Generator().manual_seed(0))
    made = untrained.sample(starts, 0.3, seed=3)
    torch.testing.assert_close(made.weights(), starts.weights(), atol=1e-6, rtol=1e-6)


def test_networks_go_to_the_loss_that_is_asked_for(fitted):
    starts = descents(60, 2, "t").where(pl.col("step") == 1)
    asked = torch.linspace(0.2, 2.0, len(starts))
    made = fitted.sample(starts, asked.tolist(), seed=0)
    loss = torch.tensor(starts.table[LOSS].to_list()) - moved(starts.weights(), made.weights())
    assert 1 - (loss - asked).square().mean() / asked.var(correction=0) > 0.9
    assert made.table["start"].to_list() == starts.models
    assert made.table[f"asked.{LOSS}"].to_list() == pytest.approx(asked.tolist())


def test_prompting_again_comes_from_what_was_made(fitted):
    starts = descents(4, 2, "t").where(pl.col("step") == 0)
    rounds = fitted.recursive(starts, 0.5, 2, lambda zoo: [1.0] * len(zoo), seed=0)
    assert len(rounds) == 2 and rounds[0].table[LOSS].to_list() == [1.0] * 4
    again = fitted.sample(rounds[0], 0.5, seed=1)
    assert torch.equal(rounds[1].weights(), again.weights())
    with pytest.raises(ConfigError, match="at least 1 round"):
        fitted.recursive(starts, 0.5, 0, len)


def test_it_comes_back_from_its_files(fitted, tmp_path):
    starts = descents(4, 2, "t").where(pl.col("step") == 0)
    fitted.save_pretrained(tmp_path)
    loaded = generators.load(tmp_path)
    assert isinstance(loaded, GPT) and loaded.config == fitted.config
    assert torch.equal(loaded.sample(starts, 0.5).weights(), fitted.sample(starts, 0.5).weights())
    assert not torch.equal(fitted.sample(starts, 0.5, seed=1).weights(), fitted.sample(starts, 0.5).weights())


def test_renumbering_is_the_same_in_both_and_changes_no_function(digits_zoo):
    relu = digits_zoo.where(pl.col("config.activation") == "relu")
    first, last = relu.where(pl.col("step") == 0), relu.last()
    both = torch.cat([first.weights(), last.weights()], dim=1)
    architecture = architecture_of(relu.header, relu.layout)
    before, after = permuted_alike(both, architecture, torch.Generator().manual_seed(0)).chunk(2, dim=1)
    assert not torch.equal(before, first.weights())
    images = load_data("digits").validation_images[:50]
    for zoo, rows in ((first, before), (last, after)):
        found = behaviour.logits(zoo.with_weights(rows), images)
        torch.testing.assert_close(found, behaviour.logits(zoo, images), atol=1e-4, rtol=1e-4)
    # the change from one to the other is the same change: its values are only elsewhere
    change = (after - before).sort(1).values
    torch.testing.assert_close(change, (last.weights() - first.weights()).sort(1).values, atol=1e-6, rtol=0)


def test_pairs_are_two_checkpoints_of_a_run_with_their_own_metrics():
    generator = torch.Generator().manual_seed(0)
    runs, kept = torch.arange(5.0).repeat_interleave(3), torch.arange(3.0).repeat(5)
    rows = torch.stack([runs, kept, 10 * runs + kept], dim=1).repeat(1, 4)[:, :11]
    shuffled = torch.randperm(15, generator=generator)
    table = pl.DataFrame(
        {"model": [f"r{int(r)}" for r in runs], "step": kept.long().tolist(), LOSS: (10 * runs + kept).tolist()}
    )[shuffled.tolist()]
    pairs = _Pairs.of(Zoo.in_memory(rows[shuffled], LAYOUT, table, {}), LOSS, 1.0)
    process = SMALL.process
    _, _, target, start, wanted, known = pairs.batch(2000, process, None, generator)
    assert torch.equal(target[:, 0], start[:, 0]) and bool((target[:, 1] != start[:, 1]).all())
    assert torch.equal(wanted, target[:, 2]) and torch.equal(known, start[:, 2])
    counts = torch.bincount((start[:, 2]).long())[[0, 1, 2, 10, 11, 12, 40, 41, 42]]
    assert counts.min() > 2000 / 15 * 0.6  # every checkpoint starts, about equally often


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_chunks_have_every_parameter_once_and_never_two_layers(size):
    index = chunk_index(LAYOUT, size)
    assert sorted(index[index >= 0].tolist()) == list(range(11)) and index.shape[1] <= size
    for chunk in index:
        assert len({bool(place < 8) for place in chunk[chunk >= 0].tolist()}) == 1  # 8 are the first layer's


def test_what_cannot_be_is_refused(fitted, digits_zoo):
    zoo, held = descents(5, 0), descents(3, 1, "v")
    with pytest.raises(ConfigError, match=r"run 'r00\d' has one checkpoint"):
        GPT.fit(zoo.last(), validation=held, config=SMALL, optimisation=SHORT)
    with pytest.raises(UnknownName, match="did you mean"):
        GPT.fit(zoo, validation=held, config=GPTConfig(metric="metric.validation_los", chunk=4), optimisation=SHORT)
    with pytest.raises(LayoutError, match="same architecture"):
        fitted.sample(digits_zoo.last(), 0.5)
    with pytest.raises(ConfigError, match="2 wishes for 18 networks"):
        fitted.sample(held, [0.1, 0.2])
