"""The training loop: a run that is killed and continued is the run that never was."""

import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace import training
from weightspace.errors import ConfigError
from weightspace.training import HISTORY, LAST, TrainingConfig, one_cycle, train

CONFIG = TrainingConfig(epochs=5, batch_size=8, learning_rate=0.05, accelerator="cpu", seed=3)
BATCHES = 6


class Killed(BaseException):
    """Stands for a process that ends here."""


def module() -> nn.Module:
    made = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return made


def batches(generator):
    """Noisy samples of a function; other ones in every epoch."""
    for _ in range(BATCHES):
        x = torch.randn(8, 3, generator=generator)
        yield x, x.prod(1, keepdim=True) + 0.1 * torch.randn(8, 1, generator=generator)


def squared(model, batch):
    x, y = batch
    error = (model(x) - y).square().mean()
    return {"loss": error, "root": error.detach().sqrt()}


def fit(folder: Path, config=CONFIG, loss=squared, model=None, identity=""):
    model = model or module()
    history = train(model, loss, batches, BATCHES, batches, config, folder, identity=identity)
    return model, history


def assert_same_run(one, other):
    (model, history), (model_, history_) = one, other
    for name, value in model.state_dict().items():
        assert torch.equal(value, model_.state_dict()[name]), name  # bit for bit, one machine and one thread
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in h] for h in (history, history_)]
    assert without_time[0] == without_time[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


# --- the schedule ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 5000), st.floats(0.05, 0.95))
def test_one_cycle_rises_to_one_and_falls_to_almost_nothing(steps, warmup):
    rates = [one_cycle(step, steps, warmup) for step in range(steps + 1)]
    peak = math.ceil(warmup * steps)
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[-1] == pytest.approx(1 / 250_000)
    assert all(a < b for a, b in pairwise(rates[:peak]))
    assert all(a > b for a, b in pairwise(rates[peak:]))
    assert max(rates) <= 1


def test_one_cycle_at_known_places():
    assert one_cycle(30, 100, 0.3) == 1.0
    assert one_cycle(15, 100, 0.3) == pytest.approx((1 / 25 + 1) / 2)  # the middle of a half cosine
    assert one_cycle(65, 100, 0.3) == pytest.approx((1 + 1 / 250_000) / 2)


def test_learning_rate_follows_the_cycle_batch_by_batch(whole):
    _, (_, history) = whole
    wanted = [CONFIG.learning_rate * one_cycle(BATCHES * (e + 1), BATCHES * CONFIG.epochs, 0.3) for e in range(5)]
    assert [record["learning_rate"] for record in history] == pytest.approx(wanted)


# --- what is trained -------------------------------------------------------------------------------------------------


def test_it_learns_and_writes_its_history(whole):
    folder, (_, history) = whole
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    with (folder / HISTORY).open() as file:
        table = list(csv.DictReader(file))
    columns = ["epoch", "train_loss", "train_root", "validation_loss", "validation_root", "learning_rate", "seconds"]
    assert list(table[0]) == columns
    assert [{name: float(value) for name, value in row.items()} for row in table] == history


def test_validation_is_the_same_data_every_epoch_and_the_mean_over_batches(tmp_path):
    model, history = fit(tmp_path)
    values = [squared(model, b)["loss"].item() for b in batches(torch.Generator().manual_seed(CONFIG.seed))]
    best = min(record["validation_loss"] for record in history)
    assert sum(values) / BATCHES == pytest.approx(best, rel=1e-6)  # the module is left with its best weights


def test_weight_decay_shrinks_matrices_only(tmp_path):
    def nothing(model, batch):
        return {"loss": 0 * model(batch[0]).sum()}

    start = module()
    model, _ = fit(tmp_path, replace(CONFIG, weight_decay=0.5), nothing)
    steps = BATCHES * CONFIG.epochs
    left = math.prod(1 - 0.5 * CONFIG.learning_rate * one_cycle(step, steps, 0.3) for step in range(steps))
    for (name, value), before in zip(model.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(value, before * (left if value.ndim > 1 else 1), rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize(
    "change", [{"gradient_norm": 0.01}, {"precision": "bf16-mixed"}, {"warmup": 0.6}, {"seed": 4}, {"batch_size": 9}]
)
def test_options_change_the_result(whole, tmp_path, change):
    _, (model, _) = whole
    other, _ = fit(tmp_path, replace(CONFIG, **change))
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert same == (change == {"batch_size": 9})  # batches come from the caller; the number is for its use


def test_the_module_comes_back_in_float32_on_its_device(tmp_path):
    model, _ = fit(tmp_path, replace(CONFIG, epochs=1, precision="bf16-mixed"))
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize(("patience", "epochs"), [(2, 3), (3, 7), (None, 8)])
def test_early_stopping_keeps_the_best_weights(tmp_path, patience, epochs):
    scripted = [5.0, 6.0, 5.5, 2.0, 3.0, 3.0, 3.0, 3.0]
    seen = []

    def loss(model, batch):
        value = squared(model, batch)["loss"]
        if model.training:
            return {"loss": value}
        if batch[0] is not None and len(seen) < len(scripted) * BATCHES:
            seen.append({name: v.detach().clone() for name, v in model.module.state_dict().items()})
        return {"loss": torch.tensor(scripted[(len(seen) - 1) // BATCHES])}

    model, history = fit(tmp_path, replace(CONFIG, epochs=8, patience=patience), loss)
    assert [record["validation_loss"] for record in history] == scripted[:epochs]
    best = scripted[:epochs].index(min(scripted[:epochs]))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in seen[best * BATCHES].items())
    assert not torch.equal(seen[-1]["0.weight"], model.state_dict()["0.weight"])
    again, continued = fit(tmp_path, replace(CONFIG, epochs=8, patience=patience), loss)
    assert_same_run((model, history), (again, continued))  # a run that has stopped stays stopped


# --- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 3, 2 * BATCHES + 1, 5 * BATCHES, 10 * BATCHES - 1])
def test_a_killed_run_continues_as_if_nothing_had_happened(whole, tmp_path, calls):
    left = [calls]

    def mortal(model, batch):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return squared(model, batch)

    with pytest.raises(Killed):
        fit(tmp_path, loss=mortal)
    assert (tmp_path / LAST).exists() == (calls >= 2 * BATCHES)  # an epoch is training and validation
    assert_same_run(fit(tmp_path), whole[1])


def test_killed_while_the_checkpoint_is_exchanged(whole, tmp_path, monkeypatch):
    count, replace_file = [], Path.replace

    def deadly(self, target):
        count.append(self)
        if len(count) == 3:
            raise Killed
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", deadly)
    with pytest.raises(Killed):
        fit(tmp_path)
    monkeypatch.undo()
    assert_same_run(fit(tmp_path), whole[1])
    assert sorted(file.name for file in tmp_path.iterdir()) == [HISTORY, LAST]


def test_a_process_killed_by_the_system_is_continued(whole, tmp_path):
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_training as t\n"
        "calls = []\n"
        "def loss(model, batch):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6 * t.BATCHES + 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return t.squared(model, batch)\n"
        "t.fit(t.Path(sys.argv[2]), loss=loss)\n"
    )
    here = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, [str(Path(here).parent), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, "-c", script, here, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, timeout=100,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert torch.load(tmp_path / LAST, weights_only=True)["epoch"] == 3
    assert_same_run(fit(tmp_path), whole[1])


def test_a_finished_run_is_not_trained_again(whole):
    def forbidden(model, batch):
        raise AssertionError("trained again")

    folder, first = whole
    assert_same_run(fit(folder, loss=forbidden), first)


def test_the_checkpoint_holds_no_code(whole):
    state = torch.load(whole[0] / LAST, weights_only=True)
    assert state["epoch"] == 5 and len(state["history"]) == 5
    assert set(state["module"]) == set(module().state_dict())


@pytest.mark.parametrize("change", [{"epochs": 6}, {"learning_rate": 0.04}, {"seed": 4}])
def test_the_folder_of_other_settings_is_refused(whole, change):
    before = (whole[0] / LAST).read_bytes()
    with pytest.raises(ConfigError, match="other settings or data; choose another folder"):
        fit(whole[0], replace(CONFIG, **change))
    assert (whole[0] / LAST).read_bytes() == before


def test_the_folder_of_another_task_is_refused(whole):
    with pytest.raises(ConfigError, match="other settings or data"):
        fit(whole[0], identity="other data")


def test_a_damaged_checkpoint_is_refused(whole, tmp_path):
    data = (whole[0] / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"cannot resume from .*delete that file"):
        fit(tmp_path)


# --- logs and errors -------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_numbers_of_the_history(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = fit(tmp_path, replace(CONFIG, tensorboard=True))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(history[0])
    for name in history[0]:
        found = events.Scalars(name)
        assert [event.step for event in found] == [1, 2, 3, 4, 5]
        assert [event.value for event in found] == pytest.approx([r[name] for r in history], rel=1e-6)  # float32


def test_divergence_is_said(tmp_path):
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)), nn.Linear(3, 1))
    with pytest.raises(ConfigError, match=r"training loss became (inf|nan) in epoch 1; lower the learning rate"):
        fit(tmp_path, replace(CONFIG, learning_rate=1e6), model=deep)
    assert list(tmp_path.iterdir()) == []


def test_divergence_that_only_the_validation_sees_is_said(tmp_path):
    def loss(model, batch):
        value = squared(model, batch)["loss"]
        return {"loss": value if model.training else value * math.nan}

    with pytest.raises(ConfigError, match="validation loss became nan in epoch 1"):
        fit(tmp_path, loss=loss)


def test_no_validation_data(tmp_path):
    with pytest.raises(ConfigError, match="no validation data"):
        train(module(), squared, batches, BATCHES, lambda generator: (), CONFIG, tmp_path)


@pytest.mark.parametrize("name", ["banana", "tpu"])
def test_a_machine_without_the_accelerator(tmp_path, name):
    with pytest.raises(ConfigError, match=f"cannot train with accelerator '{name}'"):
        fit(tmp_path, replace(CONFIG, accelerator=name))


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"devices": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"patience": 0}],
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        TrainingConfig(**wrong)


def test_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(training.MissingExtra, match=r"pip install 'weightspace\[tensorboard\]'"):
        fit(tmp_path, replace(CONFIG, tensorboard=True))
