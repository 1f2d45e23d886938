"""Tables, figures and text of docs/results/hyper_representations.md."""

from pathlib import Path

FILES = {
    "properties": "properties.csv",
    "generation": "generation/novelty.csv",
    "targets": "targets.csv",
    "ablation": "ablation.csv",
    "transfer": "transfer.csv",
    "architectures": "architectures.csv",
}


def page(run: Path) -> None:
    """Write it."""
