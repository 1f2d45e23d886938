"""A zoo against one torch file a checkpoint, as published zoos are stored, and against the raw speed of its own bytes.

python benchmarks/zoo_store.py [--rows 20000] [--csv FILE]

2 cores, half a minute; with --rows 1000000 (9.9 GB in the temporary folder, removed at the end) about five minutes.
First 300 models x 8 checkpoints of 1,072 parameters both ways, the best of 3 runs that take turns. Then a zoo of
--rows checkpoints of a CNN with 2,464 parameters in parts of 10,000: opening, windows and passes against numpy memory
maps of the same files that are already open, the memory of a pass in a process of its own, and appending to a small
and to the large zoo. Every file was just written, so what fits is read from the page cache.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

from weightspace import zoo
from weightspace.networks import by_name
from weightspace.networks.layout import Layout

MODELS, STEPS, READ, ROUNDS = 300, 8, 2000, 3
PART, APPENDED, BATCH = 10_000, 1000, 1024
WINDOWS = {"64 random rows, 256 parameters": (64, 256), "4096 random rows": (4096, None)}


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


def best(ways: dict[str, Callable[[], object]], repeat: int = 1) -> dict[str, float]:
    """Seconds of one call each, the best of rounds that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(repeat):
                way()
            seconds[name].append((time.perf_counter() - started) / repeat)
    return {name: min(values) for name, values in seconds.items()}


def every(results: Iterable[object]) -> None:
    """Make all results and keep none, so that memory is used again."""
    deque(results, maxlen=0)


class Record:
    """What was measured, printed and kept for a table."""

    def __init__(self):
        self.rows: list[dict[str, str | float]] = []

    def seconds(self, what: str, value: float, note: str = "") -> None:
        """A duration."""
        print(f"{what:<44} {value:10.4f} s    {note}".rstrip())
        self.rows.append({"measure": what, "value": value, "unit": "s"})

    def fraction(self, what: str, values: int, ours: float, raw: float) -> None:
        """The rate of a read of float32 values, and as a part of the raw rate."""
        rate = values * 4 / 1e9 / ours
        print(f"{what:<44} {rate:10.2f} GB/s {raw / ours:6.2f} of the raw speed ({values * 4 / 1e9 / raw:.2f} GB/s)")
        self.rows.append({"measure": what, "value": rate, "unit": "GB/s"})
        self.rows.append({"measure": f"{what}, fraction of raw", "value": raw / ours, "unit": "ratio"})

    def megabytes(self, what: str, value: float) -> None:
        """An amount of memory."""
        print(f"{what:<44} {value:10.0f} MB")
        self.rows.append({"measure": what, "value": value, "unit": "MB"})


def against_files(record: Record) -> None:
    layout = Layout.of(network())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opened, rows = write(folder, layout)
        places = torch.randperm(len(opened), generator=torch.Generator().manual_seed(1))[:READ]
        chosen = opened.take(places)
        assert torch.equal(chosen.weights(), rows[places])
        assert torch.equal(read_files(folder / "files", chosen.table, layout), rows[places])
        print(f"{len(opened)} checkpoints of {layout.parameters} parameters, against a torch file each")
        for what, ways in {
            "table of all": {
                "zoo": lambda: zoo.open(folder / "zoo").table,
                "files": lambda: open_files(folder / "files"),
            },
            f"{READ} random checkpoints": {
                "zoo": chosen.weights,
                "files": lambda: read_files(folder / "files", chosen.table, layout),
            },
        }.items():  # fmt: skip
            seconds = best(ways)
            ratio = seconds["files"] / seconds["zoo"]
            record.seconds(what, seconds["zoo"], f"files {seconds['files']:.4f} s, {ratio:.1f} x")


def large_part(part: int, count: int, base: np.ndarray) -> tuple[torch.Tensor, pl.DataFrame]:
    """Other values in every part, from one set of random numbers: making them must not take longer than writing."""
    numbers = np.random.default_rng(part)
    table = {
        "model": [f"{part:05d}-{i // 10:05d}" for i in range(count)],
        "step": np.arange(count) % 10,
        "config.activation": numbers.choice(["relu", "tanh", "gelu", "sigmoid"], count),
        **{f"config.{name}": numbers.choice([1e-4, 1e-3, 1e-2], count) for name in ("learning_rate", "weight_decay")},
        **{f"metric.{name}": numbers.random(count) for name in ("train_loss", "test_loss", "test_accuracy")},
    }
    return torch.from_numpy(base[:count] + np.float32(part)), pl.DataFrame(table)


def against_raw(record: Record, count: int) -> None:
    layout = Layout.of(by_name("cnn_s", (1, 28, 28), 10).build())
    base = np.random.default_rng(0).standard_normal((PART, layout.parameters), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "zoo"
        writer = zoo.ZooWriter.create(folder, {"name": "large"}, [layout])
        started = time.perf_counter()
        for part in range(count // PART):
            writer.append(f"{part:05d}", *large_part(part, PART, base))
            if part == 0:
                small = timed_append(writer, "90000", base)
        written = time.perf_counter() - started
        large = timed_append(writer, "90001", base)
        opened = zoo.open(folder)
        print(f"{len(opened)} checkpoints of {layout.parameters} parameters, {len(writer.parts())} parts")
        record.seconds("writing all, hashes included", written)
        record.seconds(f"appending {APPENDED} to {PART}", small)
        record.seconds(f"appending {APPENDED} to {len(opened) - APPENDED}", large)
        record.seconds("opening", best({"zoo": lambda: zoo.open(folder)})["zoo"])
        record.seconds("opening, first window", best({"zoo": lambda: zoo.open(folder).read([count // 2])})["zoo"])
        record.seconds("opening, whole table", best({"zoo": lambda: zoo.open(folder).table})["zoo"])
        maps = [
            raw_map(folder / "weights" / file, layout) for file in opened.table["shard"].unique(maintain_order=True)
        ]
        ends = np.cumsum([len(rows) for rows in maps])
        draws = np.random.default_rng(2)
        for what, (rows, width) in WINDOWS.items():
            places = [draws.integers(0, len(opened), rows) for _ in range(64)]
            starts = draws.integers(0, layout.parameters - (width or layout.parameters) + 1, len(places))
            columns = [slice(start, start + (width or layout.parameters)) for start in starts.tolist()]
            drawn = list(zip(places, columns, strict=True))
            split = [by_map(place, ends) for place in places]
            where = list(zip(split, columns, strict=True))
            assert all(
                np.array_equal(np.concatenate(raw_window(maps, at, c)), opened.read(np.sort(p), c).numpy())
                for (p, c), (at, _) in zip(drawn[:4], where[:4], strict=True)
            )
            seconds = best({
                "zoo": lambda drawn=drawn: every(opened.read(*window) for window in drawn),
                "raw": lambda where=where: every(raw_window(maps, *window) for window in where),
            })  # fmt: skip
            record.fraction(what, len(drawn) * rows * (width or layout.parameters), seconds["zoo"], seconds["raw"])
        seconds = best({
            "zoo": lambda: every(opened.batches(BATCH)),
            "raw": lambda: every(np.array(m[i : i + BATCH]) for m in maps for i in range(0, len(m), BATCH)),
        })  # fmt: skip
        record.fraction("a pass in table order", len(opened) * layout.parameters, seconds["zoo"], seconds["raw"])
        for order in ("table", "random"):
            peaks = json.loads(subprocess.run(
                [sys.executable, __file__, "--pass", folder, order], check=True, capture_output=True, text=True
            ).stdout)  # fmt: skip
            record.seconds(f"a pass in {order} order, process of its own", peaks["seconds"])
            record.megabytes(f"  resident before opening, {order}", peaks["before"])
            record.megabytes(f"  peak resident, mapped pages included, {order}", peaks["VmHWM"])
            record.megabytes(f"  peak anonymous, {order}", peaks["anonymous"])
        some = opened.take(np.arange(PART))
        assert len(some.deduplicate()) == duplicates_in_a_loop(some.weights().numpy())
        seconds = best({"zoo": some.deduplicate, "loop": lambda: duplicates_in_a_loop(some.weights().numpy())})
        ratio = seconds["loop"] / seconds["zoo"]
        record.seconds(f"deduplicate {PART}", seconds["zoo"], f"set of bytes {seconds['loop']:.4f} s, {ratio:.1f} x")
        started = time.perf_counter()
        assert not zoo.check(folder).damage
        record.seconds("checking hashes and values", time.perf_counter() - started)


def duplicates_in_a_loop(rows: np.ndarray) -> int:
    return len({row.tobytes() for row in rows})


def timed_append(writer: zoo.ZooWriter, part: str, base: np.ndarray) -> float:
    rows, table = large_part(int(part), APPENDED, base)
    started = time.perf_counter()
    writer.append(part, rows, table)
    return time.perf_counter() - started


def raw_map(file: Path, layout: Layout) -> np.memmap:
    header = 8 + int.from_bytes(file.open("rb").read(8), "little")
    return np.memmap(file, np.float32, "r", header).reshape(-1, layout.parameters)


def by_map(places: np.ndarray, ends: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """For each map its rows among some table positions, sorted: what the raw way is given for free."""
    places = np.sort(places)
    number = np.searchsorted(ends, places, side="right")
    return [(i, places[number == i] - (ends[i - 1] if i else 0)) for i in np.unique(number)]


def raw_window(maps: list[np.memmap], where: list[tuple[int, np.ndarray]], columns: slice) -> list[np.ndarray]:
    return [maps[i][:, columns][rows] for i, rows in where]


def memory_of_a_pass(folder: Path, order: str) -> None:
    """Peaks of this process in MB; VmHWM is ru_maxrss without what this process was before it began to run Python."""
    before = status("VmRSS")
    started, anonymous = time.perf_counter(), 0.0
    for number, (_, rows) in enumerate(zoo.open(folder).batches(BATCH, seed=None if order == "table" else 0)):
        assert rows.shape[0] <= BATCH
        if number % 20 == 0:
            anonymous = max(anonymous, status("RssAnon"))
    seconds = time.perf_counter() - started
    print(json.dumps({"before": before, "VmHWM": status("VmHWM"), "anonymous": anonymous, "seconds": seconds}))


def status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--pass", nargs=2, dest="one_pass")
    arguments = parser.parse_args()
    if arguments.one_pass:
        memory_of_a_pass(Path(arguments.one_pass[0]), arguments.one_pass[1])
        return
    record = Record()
    against_files(record)
    against_raw(record, arguments.rows)
    if arguments.csv:
        pl.DataFrame(record.rows).write_csv(arguments.csv)


if __name__ == "__main__":
    main()
