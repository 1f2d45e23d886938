"""Build small versions of published zoos and write what they are to docs/results/zoos.md and zoos.csv.

python docs/write_zoo_results.py FOLDER [--data-root DIR]

About eight minutes on two cores. FOLDER gets the zoos; one that is there already is finished or taken as it is,
and its time is then that of the rest. The images are those of `WEIGHTSPACE_DATA`, or of DIR.
"""

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path
from time import perf_counter

import polars as pl
import torch

from weightspace import cli
from weightspace import open as open_zoo
from weightspace.cli.zoo import BINS
from weightspace.demo import machine
from weightspace.errors import WeightspaceError

RESULTS = Path(__file__).parent / "results"
ZOOS = {
    "mnist-cnn": (
        "CNN-s on MNIST, the grid of the Model Zoos",
        "--recipe mnist-cnn-hyp-rand --models 32 --epochs 4 --train-limit 3000 --checkpoints 0 1 4",
    ),
    "fashion-small-cnn": (
        "The Small CNN Zoo on Fashion-MNIST",
        "--recipe fashion-mnist-small-cnn --models 24 --epochs 8 --train-limit 4000 --batch-size 64 "
        "--checkpoints 0 2 8",
    ),
    "mnist-siren": (
        "SIRENs, each one digit of MNIST",
        "--recipe mnist-siren --models 128 --epochs 200 --checkpoints 0 50 200",
    ),
    "cifar-wild-park": (
        "CNN Wild Park on CIFAR-10 at half its size",
        "--recipe cifar10-wild-park --models 12 --epochs 4 --train-limit 2000 --side 16 --batch-size 64 "
        "--checkpoints 0 4",
    ),
    "mnist-arch1": (
        "Arch 1 on MNIST",
        "--recipe mnist-arch1 --models 24 --epochs 4 --train-limit 3000 --batch-size 64 --checkpoints 0 1 4",
    ),
    "mnist-arch2": (
        "Arch 2 on MNIST",
        "--recipe mnist-arch2 --models 24 --epochs 4 --train-limit 3000 --batch-size 64 --checkpoints 0 1 4",
    ),
}
"""Title and options of each zoo."""
HEAD = """# Zoos

Small versions of published zoos, built on real images. Far fewer networks, images and epochs than published, so that
each takes a few minutes at most; the point is that the recipes work, not how good the networks are. Written by
`python docs/write_zoo_results.py zoos` ([zoos.csv](zoos.csv) has the numbers) on {cores} cores of {processor},
{system}, Python {python}, torch {torch}, every recipe with seed 0. Minutes
are those of the whole command; other work on the machine makes them longer.

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


def numbers(name: str, folder: Path, seconds: float, trained: int) -> dict:
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
        "seconds": round(seconds, 1), "models_trained": trained, "score": score, "lowest": values.min(),
        "median": values.median(), "highest": values.max(), "histogram_end": scale,
        "histogram": " ".join(str(int((bins == i).sum())) for i in range(BINS)),
    }  # fmt: skip


def main(folder: Path, *options: str) -> None:
    """Build the zoos that are missing, then write the page."""
    rows, sections = [], []
    for name, (title, words) in ZOOS.items():
        path = folder / name
        before = len(open_zoo(path).models) if (path / "zoo.json").exists() else 0
        begin = perf_counter()
        if cli.main(["zoo", "train", str(path), *shlex.split(words), *options]):
            raise WeightspaceError(f"{name} could not be trained")
        seconds = perf_counter() - begin
        rows.append(numbers(name, path, seconds, len(open_zoo(path).models) - before))
        command = f"weightspace zoo train zoos/{name} {words}".replace(" --train-limit", " \\\n    --train-limit")
        sections.append(
            f"## {title}\n\n```text\n{command}\nweightspace zoo info zoos/{name}\n\n{described(path)}\n```\n"
        )
    known = pl.read_csv(RESULTS / "zoos.csv") if (RESULTS / "zoos.csv").exists() else None
    if known is not None:  # what was already there keeps the time of the run that made it
        timed = {row["zoo"]: row for row in known.iter_rows(named=True)}
        for row in rows:
            old = timed.get(row["zoo"])
            if old and not row["models_trained"] and old["options"] == row["options"]:
                row |= {"seconds": old["seconds"], "models_trained": old["models_trained"]}
    heads = ["zoo", "models", "checkpoints", "layouts", "minutes", "models a minute", "lowest", "median", "highest"]
    table = ["| " + " | ".join(heads) + " |", "| :--- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        minutes = row["seconds"] / 60
        digits = 3 if row["histogram_end"] == 1 else 1
        scores = [f"{row[key]:.{digits}f}" for key in ("lowest", "median", "highest")]
        cells = [row["zoo"], row["models"], row["checkpoints"], row["layouts"], f"{minutes:.1f}",
                 f"{row['models_trained'] / minutes:.3g}", *scores]  # fmt: skip
        table.append("| " + " | ".join(map(str, cells)) + " |")
    table.append("\nScores are test accuracies of the last checkpoints; of SIRENs the PSNR in decibels.")
    page = HEAD.format(**machine(), torch=torch.__version__, table="\n".join(table))
    (RESULTS / "zoos.md").write_text("\n".join([page, *sections]))
    pl.DataFrame(rows).write_csv(RESULTS / "zoos.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
