"""The main job, end to end, on real data: train a zoo, learn its weights, read properties, generate, report.

Every stage is a few calls of the public API; the same stages exist as single commands. Each writes its result into the
run folder, see `run`.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import polars as pl
import torch

from weightspace import datasets, evaluation, report
from weightspace.encoders import SANE, TrainingConfig
from weightspace.errors import ConfigError
from weightspace.evaluation import PROMPTS, best_prompts, population_map, properties, require_prompts
from weightspace.generators import KDE, KDEConfig
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train

STEPS = 2690  # of SANE's training: a minute and a half on two cores


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo: within six minutes on two cores.

    >>> DemoConfig().networks
    64
    """

    recipe: Recipe = field(default_factory=Recipe)
    optimisation: TrainingConfig | None = None
    """Of SANE; when missing, as many epochs as make about `STEPS` steps."""
    kde: KDEConfig = field(default_factory=KDEConfig)
    prompts: float = PROMPTS
    """Share of the best training models that networks are generated from."""
    networks: int = 64
    """Networks to generate."""
    fine_tuned: tuple[str, ...] = ("generated", "random initialisation", "average of all", "noise at equal distance")
    """Sources that are trained further, beside the held-out networks."""

    def __post_init__(self):
        if self.networks < 1:
            raise ConfigError(f"networks must be at least 1, got {self.networks}")


def run(
    folder: Path, config: DemoConfig | None = None, *, say: Callable[[str], None], workers: int | None = None
) -> Path:
    """Run everything into a folder; one that was interrupted is continued.

    Writes `zoo/`, `sane/`, `samples/`, `tables/*.csv`, `run.json` and `report.html`.

    Args:
        say: Receives one line of text at a time.
        workers: Processes that train the zoo; one a core when missing.

    Returns:
        The report.
    """
    config = config or DemoConfig()
    seconds: dict[str, float] = {}
    tables = folder / "tables"
    seed = config.recipe.seed

    with _stage("train the zoo", seconds, say):
        zoo = train(folder / "zoo", config.recipe, workers=workers)
        training, validation, _ = zoo.finite().split(seed)
        data = datasets.load(config.recipe.data, train_limit=config.recipe.train_limit, seed=seed)
        prompts = best_prompts(training, config.prompts)
        require_prompts(prompts)
        tables.mkdir(parents=True, exist_ok=True)
    with _stage("train SANE", seconds, say):
        epochs = max(1, round(STEPS * TrainingConfig.batch_size / len(training)))
        optimisation = config.optimisation or TrainingConfig(epochs=epochs, seed=seed)
        sane = SANE.fit(training, validation=validation, optimisation=optimisation, folder=folder / "sane")
        population_map(sane, zoo, seed=seed).write_csv(tables / "map.csv")
    with _stage("predict properties", seconds, say):
        scores, predictions = properties(sane, zoo, seed=seed)
        scores.write_csv(tables / "properties.csv")
        predictions.write_csv(tables / "predictions.csv")
    with _stage("generate networks", seconds, say):
        generated = KDE(sane, config.kde).fit(prompts).sample(config.networks, seed=seed)
        shutil.rmtree(folder / "samples", ignore_errors=True)  # of an earlier run, perhaps with other settings
        generated.save(folder / "samples")
    with _stage("evaluate them", seconds, say):
        measured = evaluation.generation(
            generated, sane, zoo, data, fraction=config.prompts, fine_tune=[*config.fine_tuned, "held-out"], seed=seed
        )
        measured.save(tables)

    facts = {
        "command": " ".join(["weightspace", *sys.argv[1:]]),
        "seed": seed,
        "machine": machine(),
        "versions": {name: version(name) for name in ("weightspace", "torch", "numpy", "scikit-learn", "polars")},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    (folder / "run.json").write_text(json.dumps(facts, indent=1))
    page = report.write(folder)
    for line in summary(folder):
        say(line)
    return page


def machine() -> dict[str, str | int | None]:
    """What this runs on: processor, cores, accelerator, operating system, Python.

    >>> machine()["cores"] == os.cpu_count()
    True
    """
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def summary(folder: Path) -> list[str]:
    """The most important lines of a run, simple baselines beside the learned methods.

    Args:
        folder: A run folder with its tables.
    """
    scores = pl.read_csv(folder / "tables" / "properties.csv")
    accuracy = scores.filter(pl.col("target") == "metric.test_accuracy", pl.col("metric") == "r2")
    lines = ["Test accuracy of unseen models, read from their weights (R2):"]
    for name, probe, value in accuracy.select("representation", "probe", "value").sort("value", descending=True).rows():
        lines.append(f"  {value:6.3f}  {name}, {probe}")
    generation = pl.read_csv(folder / "tables" / "generation.csv")
    novelty = pl.read_csv(folder / "tables" / "novelty.csv")
    lines.append("Test accuracy of networks as made (distance to the nearest training network in brackets):")
    distance = dict(novelty.select("source", "distance_ratio_50").rows())
    made = generation.filter(pl.col("epoch") == 0).sort("accuracy_mean", descending=True)
    for source, value in made.select("source", "accuracy_mean").rows():
        lines.append(f"  {value:6.3f}  {source} ({distance[source]:.2f})")
    tuned = generation.filter(pl.col("epoch") > 0)
    if len(tuned):
        lines.append("After fine-tuning:")
    for source in tuned["source"].unique(maintain_order=True):
        rows = tuned.filter(pl.col("source") == source).sort("epoch")
        steps = ", ".join(f"epoch {epoch} {value:.3f}" for epoch, value in rows.select("epoch", "accuracy_mean").rows())
        lines.append(f"  {source}: {steps}")
    lines.append(f"Verdict on the generated networks: {dict(novelty.select('source', 'verdict').rows())['generated']}")
    return lines


@contextmanager
def _stage(name: str, seconds: dict[str, float], say: Callable[[str], None]) -> Iterator[None]:
    started = perf_counter()
    say(f"{name} …")
    yield
    seconds[name] = perf_counter() - started
    say(f"{name}: {seconds[name]:.0f} s")
