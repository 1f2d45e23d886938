"""Reading a zoo against one torch file a checkpoint, as published zoos are stored. python benchmarks/zoo_store.py

2 cores, under 20 seconds. 300 models x 8 checkpoints of 1,072 parameters; every file was just written, so both ways
read from the page cache. Prints the seconds of each way, the best of 3 runs that take turns, and their ratio.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import nn

from weightspace import zoo
from weightspace.networks.layout import Layout

MODELS, STEPS, READ, ROUNDS = 300, 8, 2000, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 20), nn.Linear(20, 2))


def write(folder: Path, layout: Layout) -> tuple[zoo.Zoo, torch.Tensor]:
    """The same checkpoints both ways: a zoo, and a folder a model with torch files and a line of JSON a step."""
    writer = zoo.ZooWriter.create(folder / "zoo", {"name": "benchmark"}, [layout])
    rows = torch.randn(MODELS * STEPS, layout.parameters, generator=torch.Generator().manual_seed(0))
    for part, chunk in enumerate(rows.split(50 * STEPS)):
        names = [f"{part:02d}-{i:02d}" for i in range(50)]
        table = {"model": [name for name in names for _ in range(STEPS)], "step": list(range(STEPS)) * 50}
        table |= {"metric.test_accuracy": torch.rand(50 * STEPS).tolist()}
        writer.append(f"{part:05d}", chunk, pl.DataFrame(table))
        for name, model in zip(names, chunk.split(STEPS), strict=True):
            (folder / "files" / name).mkdir(parents=True)
            lines = [json.dumps({"step": step, "metric.test_accuracy": 0.5}) for step in range(STEPS)]
            (folder / "files" / name / "result.json").write_text("\n".join(lines))
            for step, row in enumerate(model):
                state = {key: value.clone() for key, value in layout.unflatten(row).items()}
                torch.save(state, folder / "files" / name / f"{step}.pt")
    return zoo.open(folder / "zoo"), rows


def open_files(folder: Path) -> pl.DataFrame:
    records = []
    for file in sorted(folder.glob("*/result.json")):
        records += [{"model": file.parent.name} | json.loads(line) for line in file.read_text().splitlines()]
    return pl.DataFrame(records)


def read_files(folder: Path, table: pl.DataFrame, layout: Layout) -> torch.Tensor:
    files = (folder / model / f"{step}.pt" for model, step in table.select("model", "step").iter_rows())
    return torch.stack([layout.flatten(torch.load(file, weights_only=True)) for file in files])


def compare(label: str, ways: dict[str, Callable[[], object]]) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    zoo_seconds, file_seconds = (min(seconds[name]) for name in ("zoo", "files"))
    print(f"{label:<28} zoo {zoo_seconds:8.4f} s   files {file_seconds:8.4f} s   {file_seconds / zoo_seconds:6.1f} x")


def main() -> None:
    layout = Layout.of(network())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opened, rows = write(folder, layout)
        places = torch.randperm(len(opened), generator=torch.Generator().manual_seed(1))[:READ]
        chosen = opened.take(places)
        assert torch.equal(chosen.weights(), rows[places])
        assert torch.equal(read_files(folder / "files", chosen.table, layout), rows[places])
        print(f"{len(opened)} checkpoints of {layout.parameters} parameters")
        compare("opening (table of all)", {
            "zoo": lambda: zoo.open(folder / "zoo"),
            "files": lambda: open_files(folder / "files"),
        })  # fmt: skip
        compare(f"{READ} random checkpoints", {
            "zoo": chosen.weights,
            "files": lambda: read_files(folder / "files", chosen.table, layout),
        })  # fmt: skip


if __name__ == "__main__":
    main()
