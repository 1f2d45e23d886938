"""Networks as initialisations: the same chances for every source, and numbers that follow from the networks' own."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from weightspace import datasets
from weightspace.errors import ConfigError, UnknownName, ZooError
from weightspace.evaluation import best_prompts, few_images, few_shot, initialisations, transfer
from weightspace.evaluation.ensembles import scores
from weightspace.evaluation.fine_tuning import best_learning_rate
from weightspace.evaluation.transfer import REFERENCE
from weightspace.generators import baselines
from weightspace.zoo import Zoo, behaviour

DIGITS = datasets.load("digits", train_limit=200, seed=3)
EPOCHS = (0, 1, 3)


@pytest.fixture(scope="module")
def sources(digits_zoo):
    generator = torch.Generator().manual_seed(0)
    trained = digits_zoo.last()
    return {"trained": trained.take(range(6)), REFERENCE: baselines.random_initialisation(trained, 6, generator)}


@pytest.fixture(scope="module")
def tables(sources):
    return transfer(sources, DIGITS, epochs=EPOCHS, rates=(1e-3, 1e-2))


def test_curves_are_those_of_fine_tuning(sources, tables):
    rate = tables.summary.filter(source="trained")["learning_rate"].item()
    tuned = behaviour.fine_tune(sources["trained"], DIGITS, epochs=3, learning_rate=rate, checkpoints=EPOCHS)
    for epoch in EPOCHS:
        stage = tuned.where(pl.col("step") == epoch)
        probabilities = behaviour.logits(stage, DIGITS.test_images).softmax(2)
        single, together = (scores(p, DIGITS.test_labels) for p in (probabilities, probabilities.mean(0, keepdim=True)))
        row = tables.curves.filter(source="trained", epoch=epoch).row(0, named=True)
        accuracy = single["accuracy"].double().numpy()
        assert row["accuracy_mean"] == pytest.approx(accuracy.mean()) and row["n"] == 6
        assert row["nll"] == pytest.approx(float(single["nll"].mean()), rel=1e-4)
        low, high = stats.t.interval(0.95, 5, accuracy.mean(), stats.sem(accuracy))
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((low, high))
        assert row["ensemble_accuracy"] == pytest.approx(float(together["accuracy"]))
        assert tables.networks.filter(source="trained", epoch=epoch)["accuracy"].to_numpy() == pytest.approx(accuracy)


def test_the_summary_follows_from_the_curves(tables):
    trained, random = (tables.curves.filter(source=name)["accuracy_mean"].to_list() for name in ("trained", REFERENCE))
    row = tables.summary.filter(source="trained").row(0, named=True)
    assert (row["start"], row["final"]) == (trained[0], trained[-1])
    assert row["area"] == pytest.approx(((trained[0] + trained[1]) / 2 + (trained[1] + trained[2])) / 3)
    assert row["threshold"] == pytest.approx(random[-1])
    assert row["epochs_to_threshold"] == next(e for e, a in zip(EPOCHS, trained, strict=True) if a >= random[-1])
    last = tables.networks.filter(epoch=3)
    first, second = (last.filter(source=name)["accuracy"].to_numpy() for name in ("trained", REFERENCE))
    wins = (first[:, None] > second).mean() + (first[:, None] == second).mean() / 2
    assert row["effect"] == pytest.approx(wins)
    assert tables.summary.filter(source=REFERENCE)["effect"].item() is None
    assert trained[0] > random[0] + 0.05  # trained on these very images, for three epochs


def test_learning_rates_are_chosen_on_validation_images_for_each_source(sources):
    """Of two rates the one with the higher mean validation accuracy; test images, were they asked, would not count."""
    some = sources["trained"]
    wanted = {}
    for rate in (1e-4, 0.3):
        after = behaviour.fine_tune(some, DIGITS, epochs=3, learning_rate=rate, checkpoints=[1, 3])
        wanted[rate] = after.table["metric.validation_accuracy"].mean()
    best = max(wanted, key=wanted.__getitem__)
    assert best_learning_rate("x", some, DIGITS, epochs=[1, 3], rates=(0.3, 1e-4)) == best == 1e-4
    assert best_learning_rate("x", some, DIGITS, rates=(0.5,)) == 0.5


def test_equal_seeds_equal_tables(sources, tables):
    again = transfer(sources, DIGITS, epochs=EPOCHS, rates=(1e-3, 1e-2))
    assert again.curves.equals(tables.curves) and again.summary.equals(tables.summary)
    alone = transfer({"trained": sources["trained"]}, DIGITS, epochs=EPOCHS, rates=(1e-3, 1e-2))
    assert alone.curves.equals(tables.curves.filter(source="trained"))  # others have no part in it
    assert alone.summary["effect"].is_null().all() and alone.summary["threshold"].is_null().all()


def test_a_tenth_of_an_epoch_is_measured_and_changes_nothing_else(sources, tables):
    """Six steps an epoch, so one; neither batches nor the learning rate know that somebody looked."""
    finer = transfer(sources, DIGITS, epochs=(0, 0.1, 1, 3), rates=(1e-3, 1e-2))
    assert finer.curves.filter(pl.col("epoch") != 0.1).equals(tables.curves)
    assert finer.networks.filter(pl.col("epoch") != 0.1).equals(tables.networks)
    rate = finer.summary.filter(source="trained")["learning_rate"].item()
    tenth = behaviour.training_stages(
        sources["trained"], DIGITS, epochs=1, learning_rate=rate, checkpoints=[1 / len(DIGITS.train_images)]
    )
    labels = DIGITS.test_labels
    accuracy = behaviour.metrics(sources["trained"].with_weights(next(tenth)[1]), DIGITS.test_images, labels)[1]
    found = finer.networks.filter(source="trained", epoch=0.1)["accuracy"].to_numpy()
    assert found == pytest.approx(accuracy.double().numpy())
    assert finer.curves["epoch"].dtype == finer.networks["epoch"].dtype == pl.Float64


def test_sources_are_trained_as_their_zoo_was(sources):
    """The optimiser, its schedule and momentum reach training, and the choice of the learning rate."""
    own = {"optimiser": "sgd", "schedule": "one_cycle", "momentum": 0.5, "weight_decay": 1e-3}
    some = {"trained": sources["trained"]}
    found = transfer(some, DIGITS, epochs=(0.5, 2), rates=(0.1, 1e-5), **own)
    assert found.summary["learning_rate"].item() == 0.1
    tuned = behaviour.fine_tune(some["trained"], DIGITS, epochs=2, learning_rate=0.1, checkpoints=[2], **own)
    accuracy = behaviour.metrics(tuned, DIGITS.test_images, DIGITS.test_labels)[1]
    assert found.networks.filter(epoch=2)["accuracy"].to_numpy() == pytest.approx(accuracy.double().numpy())
    with pytest.raises(ConfigError, match="an epoch after 0"):
        transfer(some, DIGITS, epochs=(0.0, float("nan")))


def test_tables_are_saved(tables, tmp_path):
    tables.save(tmp_path / "new")
    assert pl.read_csv(tmp_path / "new" / "transfer_curves.csv").height == tables.curves.height
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="another folder"):
        tables.save(tmp_path / "file" / "x")


# --- few images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_few_images_of_each_class(count):
    few = few_images(DIGITS, count, seed=1, validation=2)
    assert few.train_labels.bincount().tolist() == [count] * 10
    assert few.validation_labels.bincount().tolist() == [2] * 10
    whole = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(DIGITS.train_images, DIGITS.train_labels, strict=True)
    }
    assert all(
        whole[image.numpy().tobytes()] == label for image, label in zip(few.train_images, few.train_labels, strict=True)
    )
    assert torch.equal(few.test_images, DIGITS.test_images)
    assert torch.equal(few_images(DIGITS, count, seed=1).train_images, few.train_images)
    assert not torch.equal(few_images(DIGITS, count, seed=2).train_images, few.train_images)


@pytest.mark.parametrize("count", [0, 1000])
def test_images_that_are_not_there(count):
    with pytest.raises(ConfigError, match="rarest class"):
        few_images(DIGITS, count)


def test_few_shot_is_transfer_with_few_images(sources):
    table = few_shot(sources, DIGITS, shots=(1, 4), draws=2, epochs=(0, 2), rates=(1e-3,), seed=5)
    assert table.select("shots", "draw", "source").n_unique() == len(table) == 2 * 2 * 2
    wanted = transfer(sources, few_images(DIGITS, 4, seed=6), epochs=(0, 2), rates=(1e-3,), seed=6).summary
    assert table.filter(shots=4, draw=1).drop("shots", "draw").equals(wanted)


# --- what is compared -------------------------------------------------------------------------------------------------


def test_initialisations_for_the_same_classes(digits_zoo):
    train, _, test = digits_zoo.split(0)
    prompts, heldout = best_prompts(train, 1.0), best_prompts(test, 1.0)
    generated = baselines.interpolation(prompts, 3, torch.Generator().manual_seed(1))
    made = initialisations(generated, DIGITS, prompts=prompts, heldout=heldout)
    assert list(made) == ["generated", REFERENCE, "zoo models", "best zoo models", "average of 4", "held-out models"]
    assert {len(zoo) for zoo in made.values()} == {3}
    accuracy = behaviour.metrics(prompts, DIGITS.validation_images, DIGITS.validation_labels)[1]
    best = behaviour.metrics(made["best zoo models"], DIGITS.validation_images, DIGITS.validation_labels)[1]
    assert torch.equal(best, accuracy.sort(descending=True).values[:3])
    assert set(made["held-out models"].models) <= set(test.models)
    assert set(made["zoo models"].models) <= set(train.models)


def test_initialisations_get_a_head_for_another_task(digits_zoo):
    """Five classes of digits: hidden weights stay, and all sources can be trained."""
    train, _, test = digits_zoo.split(0)
    prompts, heldout = best_prompts(train, 1.0), best_prompts(test, 1.0)
    generated = baselines.interpolation(prompts, 3, torch.Generator().manual_seed(1))
    task = five_classes()
    with pytest.raises(ConfigError, match="with_head"):
        transfer({"generated": generated}, task, epochs=(0, 1))
    made = initialisations(generated, task, prompts=prompts, heldout=heldout)
    hidden = generated.layout.slices["fc1.weight"]
    assert torch.equal(made["generated"].weights()[:, hidden], generated.weights()[:, hidden])
    tables = transfer(made, task, epochs=(0, 1), rates=(3e-3,))
    assert tables.curves.height == 12 and tables.summary["final"].min() > 0.2


def five_classes():
    from dataclasses import replace

    parts = {}
    for part in ("train", "validation", "test"):
        images, labels = getattr(DIGITS, f"{part}_images"), getattr(DIGITS, f"{part}_labels")
        parts |= {f"{part}_images": images[labels < 5], f"{part}_labels": labels[labels < 5]}
    return replace(DIGITS, name="five digits", classes=5, **parts)


def test_what_cannot_be_compared(sources):
    with pytest.raises(ConfigError, match="an epoch after 0"):
        transfer(sources, DIGITS, epochs=(0,))
    with pytest.raises(UnknownName, match="trained"):
        transfer(sources, DIGITS, epochs=(1,), reference="traned")
    with pytest.raises(ZooError, match="no networks"):
        transfer({"none": sources["trained"].take([])}, DIGITS, epochs=(1,))
    broken = sources["trained"].weights()
    broken[0, 0] = np.nan
    with pytest.raises(ZooError, match="finite"):
        transfer({"nan": sources["trained"].with_weights(broken)}, DIGITS, epochs=(1,))
    with pytest.raises(ConfigError, match="at least 1 draw"):
        few_shot(sources, DIGITS, draws=0)
    assert isinstance(sources["trained"], Zoo)
