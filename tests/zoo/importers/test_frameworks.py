"""Result folders of training libraries, as they write them: weights with metrics and hyper-parameters."""

import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import ZooError
from weightspace.networks import Layout
from weightspace.zoo import import_zoo


def net(seed: int) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def row(module: nn.Module) -> torch.Tensor:
    return Layout.of(module).flatten(module.state_dict())


def imported(source: Path, **options):
    report = import_zoo(source, source.parent / "zoo", **options)
    zoo = ws.open(source.parent / "zoo")
    return report, zoo, {(entry["model"], entry["step"]): entry for entry in zoo.table.iter_rows(named=True)}


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


def write_agent(file: Path, seed: int, steps: int) -> dict[str, torch.Tensor]:
    """An archive with the members and the JSON that `BaseAlgorithm.save` writes; pickled values are hostile here."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q_net.q_net.0.weight": (8, 4), "q_net.q_net.0.bias": (8,), "q_net.q_net.2.weight": (2, 8),
              "q_net.q_net.2.bias": (2,)}  # fmt: skip
    policy = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    targets = {name.replace("q_net.", "q_net_target.", 1): torch.zeros(shape) for name, shape in shapes.items()}
    data = {
        "policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": "cosx=", "__module__": "sb3.dqn.policies"},
        "num_timesteps": steps, "seed": seed, "learning_rate": 1e-4, "gamma": 0.99, "batch_size": 32, "n_envs": 1,
        "exploration_rate": 0.05, "policy_kwargs": {}, "_total_timesteps": 1000, "buffer_size": 500,
        "lr_schedule": {":type:": "<class 'function'>", ":serialized:": "gASV"},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(data))
        for name, content in (
            ("policy", policy | targets),
            ("policy.optimizer", {"state": {}}),
            ("pytorch_variables", None),
        ):
            with archive.open(f"{name}.pth", "w", force_zip64=True) as stream:
                torch.save(content, stream)
        archive.writestr("_stable_baselines3_version", "2.3.0")
        archive.writestr("system_info.txt", "- OS: x")
    return policy


def test_agents_with_their_evaluations(tmp_path):
    source = tmp_path / "agents"
    first = write_agent(source / "dqn/rl_model_100_steps.zip", 1, 100)
    write_agent(source / "dqn/agent.zip", 2, 300)
    rewards = np.array([[1.0, 3.0], [2.0, 2.0], [7.0, 9.0], [100.0, 100.0]])
    np.savez(source / "dqn/evaluations.npz", timesteps=np.arange(100, 401, 100), results=rewards)
    with zipfile.ZipFile(source / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    report, zoo, found = imported(source)
    assert {key[1] for key in found} == {100, 300} and len(zoo) == 2
    at = {step: (entry["metric.mean_reward"], entry["metric.std_reward"]) for (_, step), entry in found.items()}
    assert at == {100: (2.0, 1.0), 300: (8.0, 1.0)}  # the last evaluation that had been made by then
    entry = next(entry for (_, step), entry in found.items() if step == 100)
    assert (entry["config.learning_rate"], entry["config.seed"], entry["config.sb3_version"]) == (1e-4, 1, "2.3.0")
    place = zoo.table["step"].to_list().index(100)
    assert zoo.weights()[place].equal(torch.cat([value.flatten() for value in first.values()]))
    assert report.notes["target networks left out"] == 2
    skipped = {item.source: item.reason for item in report.skipped}
    assert skipped["dqn/evaluations.npz"] == "the state of a training run, not a network"
    assert skipped["other.zip"].startswith("a zip archive, but no agent of Stable-Baselines3")


# --- PyTorch Lightning ------------------------------------------------------------------------------------------------


def write_lightning(version: Path, seed: int, rate: float) -> None:
    (version / "checkpoints").mkdir(parents=True)
    (version / "hparams.yaml").write_text(
        f"lr: {rate}\nwidth: 3\nname: 'run: {seed}'\nnested:\n  a: 1\n"
        "class: !!python/object:os.system x\ndebug: false\n"
    )
    (version / "metrics.csv").write_text(
        "epoch,step,train_loss_epoch,train_loss_step,val_acc\n0,3,,0.9,\n0,3,0.8,,\n0,3,,,0.5\n1,7,0.4,,\n1,7,,,0.75\n"
    )
    for epoch, step in ((0, 4), (1, 8)):
        content = {
            "epoch": epoch, "global_step": step, "pytorch-lightning_version": "2.6.0",
            "state_dict": {f"net.{name}": value for name, value in net(seed + epoch).state_dict().items()},
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}], "lr_schedulers": [],
            "hparams_name": "kwargs", "hyper_parameters": {"lr": rate, "width": 3},
        }  # fmt: skip
        torch.save(content, version / f"checkpoints/epoch={epoch}-step={step}.ckpt")


def test_lightning_logs(tmp_path):
    source = tmp_path / "lightning_logs"
    write_lightning(source / "version_0", 10, 0.1)
    write_lightning(source / "version_1", 20, 0.01)
    report, zoo, found = imported(source)
    assert (report.format, report.models, report.checkpoints) == ("lightning", 2, 4)
    assert set(found) == {(f"version_{v}", epoch) for v in (0, 1) for epoch in (0, 1)}
    early, late = found["version_1", 0], found["version_1", 1]
    assert (early["metric.validation_accuracy"], late["metric.validation_accuracy"]) == (0.5, 0.75)
    assert (early["metric.train_loss"], late["metric.train_loss"]) == (0.8, 0.4)
    assert (
        early["config.learning_rate"] == 0.01 and early["config.name"] == "run: 20" and early["config.debug"] is False
    )
    assert "config.class" not in zoo.table.columns
    rows = dict(zip(zoo.table.select("model", "step").iter_rows(), zoo.weights(), strict=True))
    assert rows["version_0", 1].equal(row(net(11)))
    assert next(iter(zoo.layout.by_name)) == "net.0.weight"


def test_a_damaged_log_costs_its_metrics_only(tmp_path):
    write_lightning(tmp_path / "logs/version_0", 0, 0.1)
    (tmp_path / "logs/version_0/metrics.csv").write_bytes(b"")
    report, zoo, _ = imported(tmp_path / "logs")
    assert len(zoo) == 2 and any(note.startswith("metrics were not taken") for note in report.notes)


# --- Hugging Face Trainer ---------------------------------------------------------------------------------------------


class TrainingArguments:
    """Pickled by the Trainer beside the weights."""

    def __init__(self, seed: int):
        self.learning_rate, self.seed, self.output_dir = 5e-5, seed, "runs"


def write_trainer(run: Path, seed: int) -> None:
    history = []
    for step in (2, 4):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        history += [{"epoch": step / 2, "step": step, "loss": 1 / step, "learning_rate": 1e-5},
                    {"epoch": step / 2, "step": step, "eval_loss": 2 / step, "eval_accuracy": step / 10}]  # fmt: skip
        (folder / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "epoch": step / 2, "log_history": history})
        )
        torch.save(net(seed + step).state_dict(), folder / "pytorch_model.bin")
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save(TrainingArguments(seed), folder / "training_args.bin")
        (folder / "config.json").write_text("{}")


def test_trainer_folders(tmp_path):
    source = tmp_path / "out"
    write_trainer(source / "a", 100)
    write_trainer(source / "b", 200)
    report, zoo, found = imported(source)
    assert (report.format, report.models) == ("hf-trainer", 2)
    assert set(found) == {("a", 2), ("a", 4), ("b", 2), ("b", 4)}
    assert [found["a", step]["metric.eval_accuracy"] for step in (2, 4)] == [0.2, 0.4]
    assert [found["a", step]["metric.train_loss"] for step in (2, 4)] == [0.5, 0.25]
    assert found["b", 2]["config.seed"] == 200 and found["b", 2]["config.learning_rate"] == 5e-5
    assert found["b", 2]["metric.logged_learning_rate"] == 1e-5
    rows = dict(zip(zoo.table.select("model", "step").iter_rows(), zoo.weights(), strict=True))
    assert rows["b", 4].equal(row(net(204)))
    assert {item.source.rpartition("/")[2] for item in report.skipped} == {"optimizer.pt", "training_args.bin"}


def test_hostile_arguments_are_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    write_trainer(tmp_path / "out/a", 0)
    for file in (tmp_path / "out").rglob("training_args.bin"):
        torch.save(Hostile(), file)
    report, zoo, _ = imported(tmp_path / "out")
    assert len(zoo) == 2 and "config.seed" not in zoo.table.columns and not (tmp_path / "canary").exists()
    assert any("training_args.bin was not read: it would execute code" in note for note in report.notes)


# --- Optuna -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """A study as Optuna wrote it, and the weights of its trials."""
    source = tmp_path / "study"
    source.mkdir()
    with closing(sqlite3.connect(source / "study.db")) as database:
        database.executescript((Path(__file__).parent / "optuna_study.sql").read_text())
        database.commit()
    for number in range(3):
        torch.save(net(number).state_dict(), source / f"trial_{number}.pt")
    (source / "trial-3").mkdir()
    torch.save(net(3).state_dict(), source / "trial-3/model.pt")
    return source


def test_an_optuna_study(study):
    report, zoo, found = imported(study)
    assert (report.format, report.models) == ("optuna", 4)
    second = found["trial_1", 0]
    assert second["config.learning_rate"] == pytest.approx(0.0018662266976517971)
    assert (second["config.width"], second["config.activation"]) == (6, "tanh")
    assert (second["metric.objective"], second["metric.test_accuracy"]) == (0.25, 0.6)
    assert found["trial_3", 0]["metric.trial_state"] == "PRUNED"
    rows = dict(zip(zoo.table["model"], zoo.weights(), strict=True))
    assert all(rows[f"trial_{number}"].equal(row(net(number))) for number in range(4))


def test_a_damaged_study(study):
    with closing(sqlite3.connect(study / "study.db")) as database:
        database.execute("DROP TABLE trial_user_attributes")
        database.commit()
    with pytest.raises(ZooError, match="not a readable Optuna study"):
        import_zoo(study, study.parent / "zoo")


def test_checkpoints_without_a_trial_keep_their_names(study):
    torch.save(net(9).state_dict(), study / "baseline.pt")
    _, _, found = imported(study)
    assert found["baseline", 0]["config.learning_rate"] is None
