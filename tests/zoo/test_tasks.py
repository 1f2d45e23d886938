"""Tasks and meta-zoos: what is held out stays out, and the table says what the weights do."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch.testing import assert_close

from weightspace import datasets, networks
from weightspace.errors import ConfigError, DatasetError, UnknownName, ZooError
from weightspace.networks.population import Hyperparameters, initial_rows, population_metrics, train_population
from weightspace.zoo import Zoo
from weightspace.zoo.task_zoo import SPLIT, TaskRecipe, fine_tune_on_tasks, task_metrics, train_task_unit, train_tasks
from weightspace.zoo.tasks import CLASSES, DATASET, Task, TaskImages, class_images, tasks_of, with_class_orders

RECIPE = TaskRecipe(
    data=("digits",), tasks=(8,), validation_tasks=3, test_tasks=2, classes=3, models_per_task=2, train_images=50,
    validation_images=20, test_images=40, side=8, epochs=2, unit_models=9, seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def images() -> TaskImages:
    return RECIPE.load_images()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return train_tasks(tmp_path_factory.mktemp("tasks") / "zoo", RECIPE, workers=1)


def test_no_two_splits_share_a_task(images):
    plan = RECIPE.plan(images)
    of = {split: set(plan.filter(pl.col(SPLIT) == split)[CLASSES]) for split in ("train", "validation", "test")}
    assert [len(of[split]) for split in ("train", "validation", "test")] == [8, 3, 2]
    assert not of["train"] & of["validation"] and not of["train"] & of["test"] and not of["validation"] & of["test"]
    assert plan.group_by(DATASET, CLASSES).len()["len"].unique().to_list() == [2]
    for task in set(plan[CLASSES]):
        assert list(map(int, task.split())) == sorted(set(map(int, task.split())))


def test_more_tasks_leave_the_others_as_they_are(images):
    larger = replace(RECIPE, tasks=(20,)).plan(images)
    assert_frame_equal(larger.join(RECIPE.plan(images), on="model", how="semi"), RECIPE.plan(images))
    assert RECIPE.plan(images)["config.seed"].n_unique() == 26


def test_whole_data_sets_are_held_out():
    data = datasets.load("digits")
    images = TaskImages.of({"a": data, "b": data, "c": data}, train=50, validation=20, test=40)
    plan = replace(RECIPE, data=("a",), validation_data=("b",), test_data=("c",)).plan(images)
    found = plan.group_by(DATASET).agg(pl.col(SPLIT).unique().sort()).sort(DATASET)[SPLIT].to_list()
    assert found == [["test", "train", "validation"], ["validation"], ["test"]]
    assert images.numbers([Task("b", (0, 3)), Task("c", (9, 1))]).tolist() == [[10, 13], [29, 21]]


def test_images_of_a_task_are_the_first_of_its_classes(images):
    data, task = datasets.load("digits", seed=5, grey=True, side=8), images.data(Task("digits", (7, 2)))
    assert torch.equal(task.test_images[40:], data.test_images[data.test_labels == 2][:40])
    assert torch.equal(task.train_images[:50], data.train_images[data.train_labels == 7][:50])
    chosen = datasets.some_classes(data, (7, 2))
    assert torch.equal(class_images(chosen, "train", 50).flatten(0, 1), task.train_images)


def test_real_data_sets_meet_in_one_shape(image_data):
    images = TaskImages.load(["usps", "emnist_letters"], image_data, train=60, validation=40, test=100)
    assert images.counts == {"usps": 10, "emnist_letters": 26} and images.train.shape == (36, 60, 1, 14, 14)
    letters = images.data(Task("emnist_letters", (0, 25, 12)))
    assert len(letters.test_labels) == 300 and letters.image_shape == (1, 14, 14)
    # each data set is standardised by itself
    for part in (images.train[:10], images.train[10:]):
        assert abs(float(part.mean())) < 0.1 and abs(float(part.std()) - 1) < 0.1


def test_the_table_says_what_the_weights_do(zoo, images):
    network, final = networks.from_json(zoo.header["network"]), zoo.last()
    assert zoo.table["step"].to_list() == [0, 2] * 26
    for i in (0, 7, 25):
        row, task = final.table.row(i, named=True), images.data(tasks_of(final)[i])
        for part in ("train", "validation", "test"):
            loss, accuracy = population_metrics(
                network, final.read([i]), getattr(task, f"{part}_images"), getattr(task, f"{part}_labels")
            )
            assert_close(row[f"metric.{part}_loss"], loss.item(), rtol=1e-5, atol=1e-6)  # sums in another order
            assert_close(row[f"metric.{part}_accuracy"], accuracy.item(), rtol=1e-6, atol=1e-6)
    assert final.table["metric.test_accuracy"].mean() > 0.6  # chance is a third
    # another task's images are another matter
    other = [*tasks_of(final)[1:], tasks_of(final)[0]]
    moved = task_metrics(network, final.weights(), images, other, ("test",))[1]
    assert moved.mean() < final.table["metric.test_accuracy"].mean() - 0.1


def test_a_network_depends_on_its_own_task_and_seed_alone(zoo, images):
    plan = RECIPE.plan(images)[[3, 17]]
    rows, _ = train_task_unit(RECIPE, images, plan)
    same = zoo.where(pl.col("model").is_in(plan["model"].to_list())).weights()
    assert_close(rows, same, rtol=1e-4, atol=1e-5)  # batched products differ in the last bits


def test_networks_begin_alike_or_each_on_its_own(zoo, images):
    start = zoo.where(pl.col("step") == 0).weights()
    assert torch.equal(start, start[:1].expand_as(start))
    own, _ = train_task_unit(replace(RECIPE, common_init=False, epochs=1), images, RECIPE.plan(images)[:4])
    assert len(own[::2].unique(dim=0)) == 4


def test_a_finished_zoo_is_left_alone_and_another_recipe_refused(zoo):
    again = train_tasks(zoo.path, RECIPE, workers=1)
    assert again.digest == zoo.digest
    with pytest.raises(ZooError):
        train_tasks(zoo.path, replace(RECIPE, epochs=3), workers=1)


def test_own_images_of_all_are_shared_images():
    data = datasets.load("digits")
    network, seeds, full = networks.MLP(), torch.tensor([1, 2]), torch.ones(2)
    h = Hyperparameters(seeds=seeds, learning_rate=0.01 * full, weight_decay=0 * full, dropout=0 * full,
                        train_fraction=full)  # fmt: skip
    rows = initial_rows(network, seeds, "kaiming_uniform", full)
    images, labels = data.train_images[:100], data.train_labels[:100]
    places = torch.arange(100).expand(2, -1)
    shared = list(train_population(network, rows, h, images, labels, epochs=1, batch_size=20))[-1][1]
    own = train_population(network, rows, h, images, labels.expand(2, -1), places=places, epochs=1, batch_size=20)
    assert torch.equal(list(own)[-1][1], shared)


def test_permuted_outputs_solve_the_task_with_permuted_classes(zoo, images):
    final, network = zoo.last(), networks.from_json(zoo.header["network"])
    more = with_class_orders(final, 4, torch.Generator().manual_seed(0))
    assert len(more) == 4 * len(final) and len(set(more.models)) == len(more)
    assert torch.equal(more.weights()[: len(final)], final.weights())
    accuracy = task_metrics(network, more.weights(), images, tasks_of(more), ("test",))[1]
    assert accuracy.to_list() == final.table["metric.test_accuracy"].to_list() * 4
    assert more.table[CLASSES].n_unique() > 2 * final.table[CLASSES].n_unique()


def test_fine_tuning_begins_as_made_and_helps(zoo, images):
    start = zoo.where(pl.col("step") == 0)
    tuned = fine_tune_on_tasks(start, images, epochs=1, learning_rate=3e-3)
    before, after = (tuned.where(pl.col("step") == step) for step in (0, 1))
    assert before.table["metric.test_accuracy"].to_list() == start.table["metric.test_accuracy"].to_list()
    assert after.table["metric.test_accuracy"].mean() > before.table["metric.test_accuracy"].mean() + 0.1
    with pytest.raises(ZooError, match="several checkpoints"):
        fine_tune_on_tasks(zoo, images, epochs=1, learning_rate=3e-3)


def test_bad_requests_are_refused(images, digits_zoo):
    with pytest.raises(ConfigError, match="120 tasks of 3 classes, but 130"):
        replace(RECIPE, tasks=(125,)).plan(images)
    with pytest.raises(ConfigError, match="one twice"):
        replace(RECIPE, test_data=("digits",))
    with pytest.raises(ZooError, match=r"no column 'config.dataset'"):
        tasks_of(digits_zoo)
    with pytest.raises(DatasetError, match="fewer"):
        replace(RECIPE, train_images=2000).load_images()
    with pytest.raises(UnknownName, match="mnist"):
        images.numbers([Task("mnist", (0, 1))])
    with pytest.raises(DatasetError, match="lacks a class"):
        images.numbers([Task("digits", (0, 10))])
    with pytest.raises(DatasetError, match="two different classes"):
        datasets.some_classes(datasets.load("digits"), (3, 3))
