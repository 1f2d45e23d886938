"""Result folders of Ray: raw Model Zoos (Schürholt et al., 2022) and Ray Tune.

    <zoo>/<trial>/params.json              configuration, keys such as "model::nlin" or "optim::lr"
    <zoo>/<trial>/result.json              a JSON line an epoch; NaN and Infinity literals occur
    <zoo>/<trial>/checkpoint_7, checkpoint_000007, with `checkpoints` (no suffix) or any file of weights

Metrics belong to a checkpoint by `training_iteration`, never by line: runs that were evaluated before training have a
line for epoch 0, others have not. Layers are those that the keys name: with dropout the indices of `module_list` are
shifted, so they are counted anew, and both kinds of models become one layout.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightspace import networks
from weightspace.networks.layout import Layout
from weightspace.zoo.importers.found import (
    Checkpoint,
    Found,
    Item,
    Plain,
    Skipped,
    Unreadable,
    configuration,
    finite,
    metrics,
    read_json_file,
)
from weightspace.zoo.importers.states import state_in
from weightspace.zoo.importers.torch_file import load
from weightspace.zoo.importers.weight_files import is_weight_file, read_file

_MODULE_LIST = re.compile(r"module_list\.(\d+)\.(weight|bias)")
_BOOKKEEPING = {
    "config", "trial_id", "experiment_id", "experiment_tag", "date", "timestamp", "pid", "hostname", "node_ip", "done",
    "checkpoint_dir_name", "should_checkpoint", "training_iteration", "iterations_since_restore", "timesteps_total",
    "timesteps_since_restore", "episodes_total", "time_since_restore", "warmup_time", "hist_stats", "timers",
}  # fmt: skip


def detect(source: Path) -> bool:
    """Whether it is a trial, or a folder of trials."""
    return source.is_dir() and next(_trials(source), None) is not None


def read(source: Path) -> Found:
    """Every checkpoint that has metrics, a model a trial folder."""
    header: dict[str, Any] = {}
    notes = []
    trials = sorted(_trials(source))
    if (source / "config.json").is_file():
        try:
            header["grid"] = read_json_file(source / "config.json")
        except Unreadable as error:
            notes.append(f"the grid was not taken: {error}")
    if (source / "dataset.pt").is_file():
        notes.append("dataset.pt holds images, not networks: left alone")
    if network := _network(trials):
        header["network"] = networks.to_json(network)
    count = sum(1 for trial in trials for _ in trial.glob("checkpoint_*"))
    return Found(items=_items(source, trials), header=header, notes=tuple(notes), count=count)


def _trials(source: Path) -> Iterator[Path]:
    return (file.parent for file in source.rglob("result.json") if file.is_file())


def _items(source: Path, trials: list[Path]) -> Iterator[Item]:
    for trial in trials:
        name = trial.relative_to(source).as_posix() if trial != source else source.name
        yield from _trial_items(trial, name)
    if source.is_dir():
        for folder in sorted(path for path in source.iterdir() if path.is_dir() and path not in trials):
            if not any(trial.is_relative_to(folder) for trial in trials):
                yield Skipped(source=folder.name, reason="no result.json: not a model's folder")


def _trial_items(trial: Path, name: str) -> Iterator[Item]:
    """The checkpoints of one trial in the order of epochs, and what is missing."""
    results, damaged = _results(trial / "result.json")
    for number in damaged:
        yield Skipped(source=f"{name}/result.json", reason=f"line {number} is truncated or has no training_iteration")
    try:
        parameters = read_json_file(trial / "params.json") if (trial / "params.json").is_file() else {}
        settings = configuration(parameters or next(iter(results.values()), {}).get("config") or {})
    except Unreadable as error:
        yield Skipped(source=f"{name}/params.json", reason=str(error))
        settings = {}
    folders = _checkpoint_folders(trial, results)
    for epoch, (folder, others) in sorted(folders.items()):
        for other in others:
            yield Skipped(source=f"{name}/{other.name}", reason=f"a second checkpoint of epoch {epoch}")
        if epoch not in results:
            yield Skipped(source=f"{name}/{folder.name}", reason=f"no line of result.json has the epoch: {epoch}")
            continue
        yield _checkpoint(folder, name, epoch, settings | _measured(results[epoch]))
    if missing := sorted(results.keys() - folders.keys()):
        text = ", ".join(map(str, missing))
        yield Skipped(source=name, reason=f"no checkpoint folder for {len(missing)} epochs with metrics: {text}")


def _results(file: Path) -> tuple[dict[int, dict], list[int]]:
    """Lines by `training_iteration`, the last of several, and numbers of lines that have none."""
    results: dict[int, dict] = {}
    damaged = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            epoch = entry["training_iteration"]
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
            continue
        if finite(epoch):
            results[int(epoch)] = entry
        else:
            damaged.append(number)
    return results, damaged


def _checkpoint_folders(trial: Path, results: Mapping[int, dict]) -> dict[int, tuple[Path, list[Path]]]:
    """The folder of each epoch, `checkpoint_7` before `checkpoint_000007`, and further ones.

    Newer Ray numbers folders by itself and says in a line which one it wrote.
    """
    named = {
        entry["checkpoint_dir_name"]: epoch for epoch, entry in results.items() if entry.get("checkpoint_dir_name")
    }
    found: dict[int, list[Path]] = {}
    for folder in sorted(trial.iterdir(), key=lambda path: (len(path.name), path.name)):
        match = re.fullmatch(r"checkpoint_(\d+)", folder.name)
        if match and folder.is_dir():
            epoch = named.get(folder.name, -1) if named else int(match[1])
            found.setdefault(epoch if epoch >= 0 else int(match[1]), []).append(folder)
    return {epoch: (folders[0], folders[1:]) for epoch, folders in found.items()}


def _checkpoint(folder: Path, model: str, epoch: int, columns: dict[str, Plain]) -> Item:
    source = f"{model}/{folder.name}"
    try:
        state, notes = _state(folder)
    except Unreadable as error:
        return Skipped(source=source, reason=str(error))
    named, renamed = counted_layers(state)
    notes = (*notes, *(("layers of module_list counted anew",) if renamed else ()))
    return Checkpoint(source=source, model=model, step=epoch, state=named, columns=columns, notes=notes)


def _state(folder: Path) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    file = folder / "checkpoints"
    if file.is_file():
        if not file.stat().st_size:
            raise Unreadable("empty: the file has 0 bytes")
        return state_in(load(file)), ()
    reasons = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and is_weight_file(path)):
        try:
            content = read_file(file)
            return content.state, content.notes
        except Unreadable as error:
            reasons.append(f"{file.name}: {error}")
    raise Unreadable("; ".join(reasons) or "the checkpoint's folder has no file of weights")


def counted_layers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """A state whose `module_list.<index>` are named by what they are, as the networks of this package are.

    Convolutions become `conv1`, `conv2`, …, linear layers `fc1`, …, in the order of the indices; dropout and pooling
    between them leave no trace. Other states are returned as they are.

    >>> import torch
    >>> state = {"module_list.4.weight": torch.zeros(1, 1, 2, 2), "module_list.11.weight": torch.zeros(2, 1)}
    >>> list(counted_layers(state)[0])
    ['conv1.weight', 'fc1.weight']
    """
    matches = {name: _MODULE_LIST.fullmatch(name) for name in state}
    if not matches or not all(matches.values()):
        return dict(state), False
    dimensions = {int(m[1]): state[n].ndim for n, m in matches.items() if m and m[2] == "weight"}
    if not set(dimensions.values()) <= {2, 4} or any(m and int(m[1]) not in dimensions for m in matches.values()):
        return dict(state), False
    names, counts = {}, {2: 0, 4: 0}
    for index in sorted(dimensions):
        counts[dimensions[index]] += 1
        names[index] = f"{'fc' if dimensions[index] == 2 else 'conv'}{counts[dimensions[index]]}"
    ordered = sorted((int(m[1]), m[2] == "bias", name, m[2]) for name, m in matches.items() if m)
    return {f"{names[index]}.{key}": state[name] for index, _, name, key in ordered}, True


def known_network(layout: Layout) -> networks.Network | None:
    """The published CNN with this layout, so that an imported zoo can be run."""
    candidates = [networks.by_name("cnn_s", (channels, 28, 28), 10) for channels in (1, 3)]
    candidates.append(networks.by_name("cnn_l", (3, 32, 32), 10))
    return next((network for network in candidates if Layout.of(network.build()) == layout), None)


def _network(trials: list[Path]) -> networks.Network | None:
    """The network of the first trial, if it is a published one; trials of one zoo have one architecture."""
    from weightspace.networks.inference import layout_from_state

    for trial in trials[:1]:
        for folder in sorted(trial.glob("checkpoint_*")):
            try:
                return known_network(layout_from_state(counted_layers(_state(folder)[0])[0]))
            except Unreadable:
                continue
    return None


def _measured(entry: Mapping[str, Any]) -> dict[str, Plain]:
    """The metrics of a line, without Ray's own bookkeeping."""
    return metrics({name: value for name, value in entry.items() if name not in _BOOKKEEPING and _is_number(value)})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
