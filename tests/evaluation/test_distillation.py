"""Distillation: the loss, an honest control, and a student that comes near its teacher."""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightspace import datasets
from weightspace.errors import ConfigError
from weightspace.evaluation.distillation import (
    DistillationConfig,
    distill,
    distillation,
    distillation_loss,
    train_on_labels,
)
from weightspace.evaluation.ensembles import Ensemble
from weightspace.networks import MLP
from weightspace.networks.population import Hyperparameters, initial_rows, train_population
from weightspace.training import TrainingConfig

SHORT = TrainingConfig(epochs=4, batch_size=50, learning_rate=1e-2, weight_decay=0.0, accelerator="cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def teacher(data) -> Ensemble:
    ones = torch.ones(8)
    rows = initial_rows(MLP(), torch.arange(8), "kaiming_uniform", ones / 2)
    settings = Hyperparameters(
        seeds=torch.arange(8), learning_rate=3e-3 * ones, weight_decay=0 * ones, dropout=0 * ones, train_fraction=ones
    )
    stages = train_population(
        MLP(), rows, settings, data.train_images, data.train_labels, epochs=12, batch_size=50, checkpoints=[12]
    )
    return Ensemble.of_rows(next(stages)[1], MLP())


def student(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 10))


def test_loss_is_the_equation():
    logits, labels = torch.randn(6, 4, generator=seeded()), torch.tensor([0, 1, 2, 3, 0, 1])
    teacher = torch.randn(6, 4, generator=seeded(1)).softmax(1)
    found = distillation_loss(logits, teacher, labels, DistillationConfig(temperature=3.0, label_weight=0.25))
    target = teacher ** (1 / 3)
    target = target / target.sum(1, keepdim=True)
    soft = (logits / 3).softmax(1)
    divergence = 9 * (target * (target / soft).log()).sum(1).mean()
    torch.testing.assert_close(found["divergence"], divergence, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], divergence + 0.25 * F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


def test_gradient_vanishes_at_the_teacher():
    logits = torch.randn(5, 4, generator=seeded()).requires_grad_()
    config = DistillationConfig(label_weight=0.0)
    loss = distillation_loss(logits, logits.detach().softmax(1), torch.zeros(5, dtype=torch.int64), config)["loss"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) < 1e-6 and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("members", [4, None])
def test_a_student_of_another_architecture_learns_from_probabilities_alone(teacher, data, members):
    """Without labels: the teacher's classes are all that it can know."""
    pupil = student()
    config = DistillationConfig(members=members, label_weight=0.0)
    history = distill(teacher, pupil, data, config=config, optimisation=SHORT)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    with torch.no_grad():
        agreement = (
            (pupil.eval()(data.test_images).argmax(1) == teacher.predict(data.test_images).argmax(1)).float().mean()
        )
    assert float(agreement) > 0.85
    best = min(record["validation_loss"] for record in history)
    wrong = (pupil(data.validation_images).argmax(1) != data.validation_labels).float().mean()
    assert float(wrong) == pytest.approx(best)  # the epoch that validation chose


def test_every_option_and_seed_changes_the_student(teacher, data):
    quick = replace(SHORT, epochs=1)

    def weights(config=DistillationConfig(), optimisation=quick):  # noqa: B008 - frozen
        pupil = student()
        distill(teacher, pupil, data, config=config, optimisation=optimisation)
        return pupil[1].weight.detach()

    plain = weights()
    assert torch.equal(plain, weights())
    for changes in ({"temperature": 4.0}, {"label_weight": 0.5}, {"members": 3}, {"members": None}):
        assert not torch.equal(plain, weights(DistillationConfig(**changes)))
    assert not torch.equal(plain, weights(optimisation=replace(quick, seed=1)))


def test_the_control_sees_the_same_batches(teacher, data):
    """With a student that notes what it sees."""

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.seen: list[torch.Tensor] = []

        def forward(self, x):
            if self.training:
                self.seen.append(x)
            return self.linear(x.flatten(1))

    ours, theirs = Noting(), Noting()
    optimisation = replace(SHORT, epochs=2)
    distill(teacher, ours, data, optimisation=optimisation)
    train_on_labels(theirs, data, optimisation=optimisation)
    assert torch.equal(torch.stack(ours.seen), torch.stack(theirs.seen))


def test_protocol_is_one_table(teacher, data):
    table = distillation(teacher, student, data, seeds=(0, 1), optimisation=replace(SHORT, epochs=2))
    assert table["model"].to_list() == [
        "single member", "ensemble of 8", "distilled", "labels alone", "distilled", "labels alone"
    ]  # fmt: skip
    assert table["seed"].to_list() == [None, None, 0, 0, 1, 1]
    assert set(table.columns) == {"model", "seed", "accuracy", "nll", "brier", "ece"}
    by_seed = table.filter(pl.col("model") == "distilled")["nll"]
    assert by_seed[0] != by_seed[1]
    again = distillation(teacher, student, data, seeds=(0, 1), optimisation=replace(SHORT, epochs=2))
    assert again.equals(table)


def test_a_folder_keeps_the_log(teacher, data, tmp_path):
    distill(teacher, student(), data, optimisation=replace(SHORT, epochs=1), folder=tmp_path)
    assert pl.read_csv(tmp_path / "history.csv").height == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"temperature": 0.0}, "temperature"), ({"label_weight": -0.1}, "label_weight"), ({"members": 0}, "members")],
)
def test_settings_out_of_range(wrong, says):
    with pytest.raises(ConfigError, match=says):
        DistillationConfig(**wrong)


def test_batches_larger_than_the_data(teacher, data):
    with pytest.raises(ConfigError, match="1000 training images"):
        distill(teacher, student(), data, optimisation=replace(SHORT, batch_size=1001))
    assert math.isfinite(train_on_labels(student(), data, optimisation=replace(SHORT, epochs=1))[0]["train_loss"])
