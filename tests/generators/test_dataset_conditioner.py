"""Data sets as conditions: sets of examples, classes in head order, and networks that follow."""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch.testing import assert_close

from weightspace import datasets, networks
from weightspace.errors import ConfigError, DatasetError
from weightspace.generators import Components, Diffusion, DiffusionConfig, DiffusionTraining, MLPDenoiser, Rows
from weightspace.generators.dataset_conditioner import (
    DatasetConditioner,
    DatasetEncoder,
    DatasetEncoderConfig,
    align_with_weights,
    alignment_loss,
)
from weightspace.generators.for_data import fit_for_data, for_data_config, sample_for_data
from weightspace.generators.image_features import ComponentFeatures, ConvolutionalFeatures
from weightspace.generators.task_baselines import (
    WeightRegression,
    class_means,
    common_start,
    nearest_task,
    networks_for,
    random_start,
)
from weightspace.networks import Layout
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo
from weightspace.zoo.task_zoo import TaskRecipe, train_tasks
from weightspace.zoo.tasks import CLASSES, DATASET, Task, TaskImages, tasks_of

RECIPE = TaskRecipe(
    data=("digits",), tasks=(40,), validation_tasks=6, test_tasks=6, classes=3, train_images=50, validation_images=20,
    test_images=40, side=8, epochs=4, seed=1,
)  # fmt: skip
SMALL = DatasetEncoderConfig(sets="attention", examples=8, width=16, inducing=4, depth=1, output=12)


@pytest.fixture(scope="module")
def images() -> TaskImages:
    return RECIPE.load_images()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return train_tasks(tmp_path_factory.mktemp("tasks") / "zoo", RECIPE, workers=1)


@pytest.fixture(scope="module")
def features(images) -> ComponentFeatures:
    return ComponentFeatures.fit(images.train.flatten(0, 1), 12)


def encoder(**changes) -> DatasetEncoder:
    config = DatasetEncoderConfig(
        **{"sets": "attention", "examples": 8, "width": 16, "inducing": 4, "output": 12} | changes
    )
    module = DatasetEncoder(config, features=5, classes=4)
    module.reset(torch.Generator().manual_seed(0))
    return module.eval()


@pytest.fixture
def examples():
    return torch.randn(3, 4, 8, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sets", ["attention", "moments"])
def test_the_order_of_examples_does_not_count(sets, examples):
    module = encoder(sets=sets)
    shuffled = examples[:, :, torch.randperm(8, generator=torch.Generator().manual_seed(2))]
    assert_close(module(shuffled), module(examples), rtol=1e-4, atol=1e-5)  # sums in another order
    other = examples.clone()
    other[:, 0, 0] += 1
    assert (module(other) - module(examples)).abs().max() > 1e-3  # but the examples do


@pytest.mark.parametrize("sets", ["attention", "moments"])
def test_the_order_of_classes_counts_only_where_asked(sets, examples):
    order = [2, 0, 3, 1]
    ordered, unordered = encoder(sets=sets), encoder(sets=sets, ordered=False)
    vectors = ordered.class_vectors(examples)
    assert_close(ordered.class_vectors(examples[:, order]), vectors[:, order], rtol=1e-4, atol=1e-5)
    assert (ordered(examples[:, order]) - ordered(examples)).abs().max() > 0.01
    assert_close(unordered(examples[:, order]), unordered(examples), rtol=1e-4, atol=1e-5)


def test_a_data_set_does_not_depend_on_those_beside_it(examples):
    module = encoder()
    assert_close(module(examples)[:1], module(examples[:1]), rtol=1e-4, atol=1e-5)


def test_moments_are_mean_and_deviation_alone(examples):
    module = encoder(sets="moments")
    mirrored = 2 * examples.mean(2, keepdim=True) - examples
    assert_close(module(mirrored), module(examples), rtol=1e-4, atol=1e-5)
    assert (encoder()(mirrored) - encoder()(examples)).abs().max() > 1e-3  # attention sees more


def test_examples_are_drawn_afresh_in_training_only(images, features):
    conditioner = DatasetConditioner(features, images, classes=3, config=SMALL)
    given = conditioner.given(pl.DataFrame({DATASET: ["digits"] * 2, CLASSES: ["1 2 3", "1 2 3"]}))
    assert given.tolist() == [[1, 2, 3]] * 2
    first, second = conditioner(given), conditioner(given)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    resumed = DatasetConditioner(features, images, classes=3, config=SMALL)
    resumed.load_state_dict(conditioner.state_dict())
    assert torch.equal(resumed(given), conditioner(given))  # the same third draw
    conditioner.eval()
    assert torch.equal(conditioner(given), conditioner(given)) and torch.equal(*conditioner(given))


def test_examples_of_new_data_are_its_own(images, features):
    conditioner = DatasetConditioner(features, images, classes=3, config=SMALL)
    data = datasets.some_classes(datasets.load("digits", grey=True, side=8), (5, 0, 9))
    asked = conditioner.asked(data, 2)
    assert asked.shape == (2, 3, 8, 12) and not torch.equal(asked[0], asked[1])
    for place in range(3):
        own = features(data.train_images[data.train_labels == place])
        assert torch.cdist(asked[:, place].flatten(0, 1), own).amin(1).max() < 0.01  # cdist loses digits near 0
    with pytest.raises(DatasetError, match="3 classes, data set 'digits' has 10"):
        conditioner.asked(datasets.load("digits"), 1)
    with pytest.raises(DatasetError, match="shape"):
        features(torch.zeros(1, 1, 14, 14))


def test_alignment_loss_is_what_it_says():
    generator = torch.Generator().manual_seed(0)
    w, d = torch.randn(2, 6, 4, generator=generator)
    logits, alike = w @ d.T / 0.5, (w @ w.T + d @ d.T) / 2 * 0.5
    forth = -(alike.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    back = -(alike.T.softmax(1) * logits.T.log_softmax(1)).sum(1).mean()
    assert_close(alignment_loss(w, d, 0.5), (forth + back) / 2)
    assert alignment_loss(3 * w, 3 * w) < alignment_loss(3 * w, 3 * w[[1, 2, 3, 4, 5, 0]])


def test_alignment_finds_the_data_set_of_a_network(zoo, images, features):
    final = zoo.last()
    train, held_out = (final.where(pl.col("config.split") == split) for split in ("train", "validation"))
    conditioner = DatasetConditioner(features, images, classes=3, config=SMALL)
    short = TrainingConfig(epochs=3, batch_size=32, learning_rate=3e-3, accelerator="cpu")
    history = align_with_weights(
        conditioner, train, validation=held_out, space=Rows.fit(train, align=False), optimisation=short, epoch_steps=20
    )
    assert history[-1]["validation_loss"] < math.log(6) - 0.3  # of six data sets


def test_features_that_do_not_vary_are_not_blown_up(images):
    """Border pixels of digits are constant; those of another data set are not."""
    found = ComponentFeatures.fit(images.train.flatten(0, 1), 64)
    moved = images.train.flatten(0, 1).roll(1, dims=3)
    assert found(images.train.flatten(0, 1)).abs().max() < 50 and found(moved).abs().max() < 300


def test_convolutional_features_tell_classes_apart(images):
    short = TrainingConfig(epochs=4, batch_size=50, learning_rate=1e-2, accelerator="cpu")
    found = ConvolutionalFeatures.fit(images.train, images.validation, 16, optimisation=short)
    values = found(images.train.flatten(0, 1))
    assert_close(values.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
    assert_close(values.std(0), torch.ones(16), rtol=1e-3, atol=0)
    means = values.unflatten(0, (10, 50)).mean(1)
    nearest = torch.cdist(found(images.test.flatten(0, 1)), means).argmin(1)
    assert (nearest == torch.arange(10).repeat_interleave(40)).float().mean() > 0.8


# --- simple baselines -------------------------------------------------------------------------------------------------


def toy(n: int, generator: torch.Generator) -> tuple[Zoo, torch.Tensor, list[Task]]:
    """Networks whose weights are a linear map of three numbers, and the numbers."""
    layout = Layout.of(torch.nn.Linear(3, 2))
    known, tasks = torch.randn(n, 3, generator=generator), [Task("toy", (i, i + 1)) for i in range(n)]
    table = {"model": [f"m{i}" for i in range(n)], "step": [0] * n, DATASET: ["toy"] * n}
    table |= {CLASSES: [f"{i} {i + 1}" for i in range(n)]}
    slope = torch.arange(24.0).view(3, 8) / 10
    return Zoo.in_memory(known @ slope + 1, layout, pl.DataFrame(table), {}), known, tasks


def test_regression_recovers_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    zoo, known, _ = toy(30, generator)
    new, wanted, tasks = toy(5, generator)
    assert_close(WeightRegression(0.0).fit(zoo, known).networks(wanted, tasks).weights(), new.weights())
    shrunk = WeightRegression(1e6).fit(zoo, known).networks(wanted, tasks).weights()
    assert_close(shrunk, zoo.weights().mean(0).expand_as(shrunk), rtol=1e-3, atol=1e-3)


def test_nearest_tasks_and_their_means():
    zoo, known, tasks = toy(30, torch.Generator().manual_seed(0))
    found = nearest_task(zoo, known, known[[4, 9]] + 1e-4, [tasks[4], tasks[9]])
    assert torch.equal(found.weights(), zoo.weights()[[4, 9]]) and tasks_of(found) == [tasks[4], tasks[9]]
    near = (known - known[4]).norm(dim=1).argsort()[:3]
    soup = nearest_task(zoo, known, known[[4]], [tasks[4]], k=3)
    assert_close(soup.weights()[0], zoo.weights()[near].mean(0))
    assert_close(nearest_task(zoo, known, known[:1], tasks[:1], k=None).weights()[0], zoo.weights().mean(0))
    with pytest.raises(ConfigError, match="between 1 and 30"):
        nearest_task(zoo, known, known[:1], tasks[:1], k=31)


def test_starts_are_those_of_the_zoo(zoo, images):
    tasks = [Task("digits", (0, 1, 2))] * 200
    first = zoo.where(pl.col("step") == 0).weights()
    assert torch.equal(common_start(zoo, tasks[:2]).weights(), first[:2])
    drawn = random_start(zoo, tasks, torch.Generator().manual_seed(0)).weights()
    part = zoo.layout.slices["fc1.weight"]
    assert_close(drawn[:, part].std(), torch.tensor((2 / 64) ** 0.5), rtol=0.02, atol=0)  # He et al., 64 inputs
    assert len(drawn.unique(dim=0)) == 200
    with pytest.raises(ConfigError, match="no common start"):
        common_start(zoo.last(), tasks)


def test_means_of_classes_stand_in_head_order(images, features):
    a, b = class_means(images, [Task("digits", (3, 5)), Task("digits", (5, 3))], features)
    assert torch.equal(a[:12], b[12:]) and torch.equal(a[12:], b[:12])
    assert_close(a[:12], features(images.train[3]).mean(0), rtol=1e-4, atol=1e-5)


# --- the generator ----------------------------------------------------------------------------------------------------


def test_networks_follow_their_data_set(images, features, tmp_path):
    """A toy: weights are a linear map of the class means, so that the right network of a data set is known."""
    generator = torch.Generator().manual_seed(0)
    recipe = replace(RECIPE, tasks=(90,), validation_tasks=12, test_tasks=12)
    plan, layout = recipe.plan(images), Layout.of(networks.MLP(hidden=(2,), classes=3).build())
    tasks = [Task("digits", tuple(map(int, c.split()))) for c in plan[CLASSES]]
    means = class_means(images, tasks, features)
    rows = means @ torch.randn(means.shape[1], layout.parameters, generator=generator) / 6
    zoo = networks_for(rows, Zoo.in_memory(rows, layout, plan.with_columns(step=0), {}), tasks, "toy")
    train, held_out, test = (
        zoo.take((plan["config.split"] == split).arg_true().to_numpy()) for split in ("train", "validation", "test")
    )
    conditioner = DatasetConditioner(features, images, classes=3, config=replace(SMALL, sets="moments"))
    fitted = Diffusion.fit(
        train, validation=held_out, space=Rows.fit(train, align=False), condition=conditioner,
        config=DiffusionConfig(denoiser=MLPDenoiser(width=64, depth=1), average=0.95),
        optimisation=DiffusionTraining(epochs=5, batch_size=32, learning_rate=1e-2, accelerator="cpu"),
    )  # fmt: skip
    made = torch.stack([fitted.sample(8, condition=images.data(t), steps=20).weights().mean(0) for t in tasks_of(test)])
    right = test.weights()
    error = (made - right).norm() / (right - right.mean(0)).norm()
    wrong = (made[torch.arange(12).roll(1)] - right).norm() / (right - right.mean(0)).norm()
    assert error < 0.75 < 1.0 < wrong  # 1 is the mean of all networks; means of 8 of 50 examples are not exact
    fitted.save_pretrained(tmp_path)
    again = Diffusion.from_pretrained(tmp_path)
    data = images.data(tasks_of(test)[0])
    one, other = (generator.sample(3, condition=data, seed=1).weights() for generator in (again, fitted))
    assert torch.equal(one, other)
    with pytest.raises(ConfigError, match="no images of its tasks"):
        again.conditioner.given(test.table)


def test_an_untrained_generator_makes_what_the_regression_predicts(zoo, images, features):
    train = zoo.last().where(pl.col("config.split") == "train")
    space = Components.fit(train, 8, whiten=False, align=False)
    conditioner = DatasetConditioner(features, images, classes=3, config=SMALL, anchor=8)
    conditioner.anchor_to(train, space.encode(train), penalty=1e-2)
    config = for_data_config()
    untrained = Diffusion(space, config, train.header | {"activations": []}, conditioner)
    untrained.module.denoiser.reset(torch.Generator().manual_seed(0))
    points = untrained.points(2, condition=images.data(Task("digits", (8, 2, 5))), generator=torch.Generator())
    means = conditioner.asked(images.data(Task("digits", (8, 2, 5))), 2).mean(2).flatten(1)
    assert_close(points, means @ conditioner.slope + conditioner.offset, rtol=1e-3, atol=1e-3)
    # the regression knows more of networks than their mean does
    given = conditioner.given(train.table)
    conditioner.eval()
    error = conditioner(given)[:, :8] - space.encode(train)
    assert error.square().sum() < 0.5 * space.encode(train).square().sum()
    loaded = DatasetConditioner.from_json(conditioner.to_json())
    loaded.load_state_dict(conditioner.state_dict())
    assert torch.equal(loaded.slope, conditioner.slope)


def test_features_that_are_any_function_are_not_saved(images):
    conditioner = DatasetConditioner(lambda x: x.flatten(1), images, classes=3, config=SMALL)
    with pytest.raises(ConfigError, match="cannot be saved"):
        conditioner.to_json()


def test_the_best_candidates_are_kept(zoo, images):
    short = DiffusionTraining(epochs=1, batch_size=16, accelerator="cpu")
    fitted = fit_for_data(
        zoo,
        images,
        encoder=SMALL,
        config=DiffusionConfig(denoiser=MLPDenoiser(width=64), epoch_steps=60),
        optimisation=short,
    )
    data = images.data(Task("digits", (8, 2, 5)))
    few = sample_for_data(fitted, data, 2, candidates=12, seed=3)
    every = sample_for_data(fitted, data, 12, candidates=12, seed=3)
    accuracy = every.table["metric.validation_accuracy"].to_list()
    assert accuracy == sorted(accuracy, reverse=True) and len(set(accuracy)) > 1
    assert torch.equal(few.weights(), every.weights()[:2])
    with pytest.raises(ConfigError, match="cannot be chosen from 1"):
        sample_for_data(fitted, data, 2, candidates=1)
