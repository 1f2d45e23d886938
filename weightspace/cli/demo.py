"""`weightspace demo`."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from weightspace.demo import DemoConfig, run

DEFAULT = DemoConfig().recipe


def demo(
    *,
    out: Path = Path("weightspace-demo"),
    network: str = DEFAULT.network,
    models: int = DEFAULT.models,
    seed: int = DEFAULT.seed,
    workers: int | None = None,
) -> None:
    """Train a zoo on scikit-learn's digits, learn its weights, predict, generate, and write a report.

    Args:
        out: Folder for everything; an interrupted demo is continued there.
        network: Preset of the networks in the zoo: cnn or mlp.
        models: Networks in the zoo.
        seed: Determines everything.
        workers: Processes that train the zoo; one a core by default.
    """
    console = Console()
    config = DemoConfig()
    config = replace(config, recipe=replace(config.recipe, network=network, models=models, seed=seed))
    page = run(out, config, say=lambda line: console.print(line, highlight=False), workers=workers)
    console.print(f"The report: {page}", highlight=False)
