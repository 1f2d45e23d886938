"""Build small versions of published zoos and write what they are to docs/results/zoos.md and zoos.csv.

python docs/write_zoo_results.py FOLDER [NAME ...] [--data-root DIR]

About an hour on two cores, or the named zoos only. FOLDER gets the zoos; what is there already is kept. The page has
every finished zoo in FOLDER, with the time from its first file to its last part. The images are those of
`WEIGHTSPACE_DATA`, or of DIR.
"""

import contextlib
import io
import os
import shlex
import sys
from itertools import takewhile
from pathlib import Path

import polars as pl
import torch

from weightspace import cli
from weightspace import open as open_zoo
from weightspace.cli.zoo import BINS
from weightspace.demo import machine
from weightspace.errors import WeightspaceError

RESULTS = Path(__file__).parent / "results"
ARCH1 = "--models 500 --epochs 8 --train-limit 2000 --side 14 --batch-size 32 --checkpoints 1 3 8"
ARCH2 = "--models 500 --epochs 12 --train-limit 2000 --side 14 --batch-size 32 --checkpoints 1 4 12"
ZOOS = {
    "mnist-arch1": ("Arch 1 on MNIST at half its size", f"--recipe mnist-arch1 {ARCH1}"),
    "mnist-arch2": ("Arch 2 on MNIST at half its size", f"--recipe mnist-arch2 {ARCH2}"),
    "fashion-mnist-arch1": ("Arch 1 on Fashion-MNIST at half its size", f"--recipe fashion-mnist-arch1 {ARCH1}"),
    "fashion-mnist-arch2": ("Arch 2 on Fashion-MNIST at half its size", f"--recipe fashion-mnist-arch2 {ARCH2}"),
    "mnist-siren": (
        "SIRENs, each one digit of MNIST",
        "--recipe mnist-siren --models 5000 --epochs 150 --checkpoints 150",
    ),
    "mnist-cnn": (
        "CNN-s on MNIST, the grid of the Model Zoos",
        "--recipe mnist-cnn-hyp-rand --models 32 --epochs 4 --train-limit 3000 --checkpoints 0 1 4",
    ),
    "fashion-small-cnn": (
        "The Small CNN Zoo on Fashion-MNIST",
        "--recipe fashion-mnist-small-cnn --models 24 --epochs 8 --train-limit 4000 --batch-size 64 "
        "--checkpoints 0 2 8",
    ),
    "cifar-wild-park": (
        "CNN Wild Park on CIFAR-10 at half its size",
        "--recipe cifar10-wild-park --models 12 --epochs 4 --train-limit 2000 --side 16 --batch-size 64 "
        "--checkpoints 0 4",
    ),
}
"""Title and options of each zoo."""
HEAD = """# Zoos

Small versions of published zoos, built on real images. Far fewer networks, images and epochs than published, so that
each takes minutes; the point is that the recipes work, not how good the networks are. Written by
`python docs/write_zoo_results.py zoos` ([zoos.csv](zoos.csv) has the numbers) on {cores} cores of {processor},
{system}, Python {python}, torch {torch}, every recipe with seed 0. Minutes
are those of the whole training; other work on the machine makes them longer, and there was some.

{table}
"""


def described(folder: Path) -> str:
    """What `weightspace zoo info` prints, without the folder's name."""
    os.environ["COLUMNS"] = "110"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        if cli.main(["zoo", "info", str(folder)]):
            raise WeightspaceError(f"there is no finished zoo in {folder}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()[1:])


def numbers(name: str, folder: Path) -> dict:
    """A row of the table."""
    zoo = open_zoo(folder)
    last = zoo.last().table
    score, scale = ("metric.test_accuracy", 1) if "metric.test_accuracy" in last.columns else ("metric.psnr", 50)
    values = last[score].drop_nans()
    layouts = len(zoo.header["layouts"])
    bins = (values / scale * BINS).floor().clip(0, BINS - 1).cast(pl.Int64)
    return {
        "zoo": name, "options": ZOOS[name][1], "seed": zoo.header["recipe"]["seed"], "models": len(zoo.models),
        "checkpoints": len(zoo), "layouts": layouts, "diverged": int(last["metric.diverged"].sum()),
        "seconds": round(built(folder), 1), "score": score, "lowest": values.min(),
        "median": values.median(), "highest": values.max(), "histogram_end": scale,
        "histogram": " ".join(str(int((bins == i).sum())) for i in range(BINS)),
    }  # fmt: skip


def built(folder: Path) -> float:
    """Seconds from the zoo's first file to its last part."""
    parts = [file.stat().st_mtime for file in (folder / "checkpoints").iterdir()]
    return max(parts) - (folder / "zoo.json").stat().st_mtime


def is_finished(folder: Path) -> bool:
    """Whether all networks of its recipe are there."""
    if not (folder / "zoo.json").exists():
        return False
    zoo = open_zoo(folder)
    return len(zoo.models) == zoo.header["recipe"]["models"]


def main(folder: Path, *words: str) -> None:
    """Build the zoos that are missing, then write the page of all that are there."""
    wanted = list(takewhile(lambda word: not word.startswith("-"), words))
    if unknown := set(wanted) - set(ZOOS):
        raise WeightspaceError(f"unknown zoos {sorted(unknown)}; there are {list(ZOOS)}")
    for name in wanted or ZOOS:
        command = ["zoo", "train", str(folder / name), *shlex.split(ZOOS[name][1]), *words[len(wanted) :]]
        if not is_finished(folder / name) and cli.main(command):
            raise WeightspaceError(f"{name} could not be trained")
    there = [name for name in ZOOS if is_finished(folder / name)]
    rows = [numbers(name, folder / name) for name in there]
    sections = []
    for name in there:
        title, options = ZOOS[name]
        shown = f"weightspace zoo train zoos/{name} {options}".replace(" --train-limit", " \\\n    --train-limit")
        text = f"{shown}\nweightspace zoo info zoos/{name}\n\n{described(folder / name)}"
        sections.append(f"## {title}\n\n```text\n{text}\n```\n")
    heads = ["zoo", "models", "checkpoints", "layouts", "minutes", "models a minute", "lowest", "median", "highest"]
    table = ["| " + " | ".join(heads) + " |", "| :--- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        minutes = row["seconds"] / 60
        digits = 3 if row["histogram_end"] == 1 else 1
        scores = [f"{row[key]:.{digits}f}" for key in ("lowest", "median", "highest")]
        cells = [row["zoo"], row["models"], row["checkpoints"], row["layouts"], f"{minutes:.1f}",
                 f"{row['models'] / minutes:.3g}", *scores]  # fmt: skip
        table.append("| " + " | ".join(map(str, cells)) + " |")
    table.append("\nScores are test accuracies of the last checkpoints; of SIRENs the PSNR in decibels.")
    page = HEAD.format(**machine(), torch=torch.__version__, table="\n".join(table))
    (RESULTS / "zoos.md").write_text("\n".join([page, *sections]))
    pl.DataFrame(rows).write_csv(RESULTS / "zoos.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
