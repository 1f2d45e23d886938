"""Train a zoo: a recipe becomes work units, run in this process, in a process pool or on a Ray cluster.

Each unit is committed to the store as one part: a killed run repeats the units in flight and ends with the same zoo.
Workers train and this process commits: one that outlives a killed run writes nothing.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic

import joblib
import polars as pl
import torch

import weightspace
from weightspace import networks
from weightspace.allocation import keep_freed_memory
from weightspace.errors import ConfigError, DatasetError
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.zoo.backends import Backend, Trained, run_units
from weightspace.zoo.recipe import WAVES, Recipe
from weightspace.zoo.store import Zoo, ZooWriter
from weightspace.zoo.store import open as open_zoo
from weightspace.zoo.units import Data, Unit, load_data, train_unit, unit_network, units

SCORES = {"metric.test_accuracy": "test accuracy", "metric.psnr": "PSNR", "metric.mse": "squared error"}
"""What the progress bar shows, of the first one that there is."""


def train(
    path: Path | str,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    *,
    data_root: Path | str | None = None,
    workers: int | None = None,
    backend: Backend = "processes",
    device: str = "cpu",
    compile: bool = False,
) -> Zoo:
    """Train the recipe's zoo into a folder, or finish it there.

    Args:
        path: Folder of the zoo, new or with a part of this zoo.
        data_root: Folder of image data sets; the environment variable `WEIGHTSPACE_DATA` when missing. On a cluster
            every machine reads it.
        workers: Processes; one a core when missing, 1 trains in this process. On a GPU one is enough.
        backend: `processes` on this machine, or `ray`: the cluster of `RAY_ADDRESS`, or a local one.
        device: `cpu`, or a GPU as PyTorch names it.
        compile: Run the steps of each unit as one compiled program, on a GPU with CUDA graphs. A unit is compiled anew,
            so units should be large: `unit_models=512`. Weights differ by rounding from those of the usual way.

    Raises:
        ZooError: The folder holds another zoo.
        DatasetError: The images cannot be read.
        ConfigError: The images do not fit the network, the batch is larger than the data, there is no worker or
            device, or the steps cannot be compiled.
        MissingExtra: Ray is not installed.

    >>> import tempfile
    >>> zoo = train(tempfile.mkdtemp() + "/zoo", Recipe(models=2, epochs=1, train_limit=64), workers=1)
    >>> len(zoo)
    4
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    _check_device(device)
    root = None if data_root is None else Path(data_root).resolve()
    data = load_data(recipe, root)
    made = units(recipe)
    header, layouts = _header(recipe, data, made)
    writer = ZooWriter.create(Path(path), header, list(dict.fromkeys(layouts.values())))
    done = writer.parts()
    pending = [unit for unit in made if unit.part not in done]
    workers = min(workers or (joblib.cpu_count() if device == "cpu" else 1), len(pending))
    if workers > 1 or backend != "processes":
        work = partial(_train_in_worker, recipe, root, _digest(data), device, compile)
    else:
        work = partial(_train_here, recipe, data, device, compile)
    with progress_bar(f"training {recipe.models} networks", recipe.models) as advance:
        finished = recipe.models - sum(len(unit.plan) for unit in pending)
        advance(finished)
        begin, trained, total = monotonic(), 0, 0.0
        for part, rows, table in run_units(work, pending, backend=backend, workers=workers):
            writer.append(part, torch.tensor(rows), table, layouts[part])  # a copy: arrays of a cluster are read-only
            final = table.filter(pl.col("step") == pl.col("step").max())
            score = next(name for name in SCORES if name in final.columns)
            trained, total = trained + len(final), total + float(final[score].fill_nan(0).sum())
            rate = 60 * trained / (monotonic() - begin)
            advance(len(final), f"{rate:.3g} models a minute, {SCORES[score]} {total / trained:.3f}")
    return open_zoo(path)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used ({reason}): use cpu, or a GPU that is there") from error


def _header(recipe: Recipe, data: Data, made: Sequence[Unit]) -> tuple[dict, dict[str, Layout]]:
    """The content of `zoo.json`, and the layout of every part."""
    header: dict = {
        "dataset": _describe(data),
        "recipe": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(recipe).items()},
        "created_by": {
            "weightspace": weightspace.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if "network" in made[0].plan.columns:
        named = {unit.plan["network"][0]: unit_network(recipe, data, unit.plan) for unit in made}
        layouts = {name: Layout.of(network.build()) for name, network in named.items()}
        header["networks"] = {name: networks.to_json(network) for name, network in named.items()}
        return header, {unit.part: layouts[unit.plan["network"][0]] for unit in made}
    network = unit_network(recipe, data, made[0].plan.drop("config.activation", strict=False))
    header["network"] = networks.to_json(network)
    return header, dict.fromkeys((unit.part for unit in made), Layout.of(network.build()))


def _describe(data: Data) -> dict:
    if data is None:
        return {"name": WAVES}
    return {"name": data.name, "digest": data.digest, "image_shape": list(data.image_shape)}


def _digest(data: Data) -> str:
    return "" if data is None else data.digest


def _train_here(recipe: Recipe, data: Data, device: str, compile: bool, unit: Unit) -> Trained:
    rows, table = train_unit(recipe, data, unit.plan, device, compile=compile)
    return unit.part, rows.numpy(), table


def _train_in_worker(recipe: Recipe, root: Path | None, digest: str, device: str, compile: bool, unit: Unit) -> Trained:
    keep_freed_memory()
    return _train_here(recipe, _data(recipe, root, digest), device, compile, unit)


@lru_cache(maxsize=1)
def _data(recipe: Recipe, root: Path | None, digest: str) -> Data:
    """Read once a worker; the digest is part of the key, since workers live longer than a zoo and files may change."""
    data = load_data(recipe, root)
    if _digest(data) != digest:
        raise DatasetError(f"the images of {recipe.data} changed while the zoo was training; train into a new folder")
    return data
