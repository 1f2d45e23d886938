"""Zoos that several processes use at once, or that one is killed with: nothing committed is lost, nothing half is seen.

The other processes run this file as a script.
"""

import errno
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import weightspace.zoo
from weightspace.errors import ZooError
from weightspace.networks.layout import Layout
from weightspace.zoo import Zoo, ZooWriter, splits, writer

LAYOUT = Layout.of(nn.Linear(3, 2))
HEADER = {"name": "tiny", "network": {"kind": "mlp"}, "dataset": {"name": "digits"}, "recipe": {"seed": 0}}
PARTS, CHECKPOINTS = 40, 60


def rows_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, LAYOUT.parameters, generator=torch.Generator().manual_seed(seed))


def table_of(models: list[str], steps: int = 1, **columns: list) -> pl.DataFrame:
    names = [model for model in models for _ in range(steps)]
    return pl.DataFrame({"model": names, "step": list(range(steps)) * len(models), **columns}, strict=False)


def disk_zoo(path: Path, models: list[str]) -> Zoo:
    ZooWriter.create(path, HEADER, [LAYOUT]).append("00000", rows_of(len(models), seed=len(models)), table_of(models))
    return weightspace.zoo.open(path)


def sides(zoo: Zoo, seed: int = 0) -> dict[str, str]:
    parts = zip(splits.SIDES, zoo.split(seed), strict=True)
    return {model: name for name, part in parts for model in part.models}


def content(part: int) -> tuple[torch.Tensor, pl.DataFrame]:
    return rows_of(CHECKPOINTS, part), table_of([f"{part:05d}-{i}" for i in range(CHECKPOINTS // 3)], 3)


def append_parts(path: str, first: int, stride: int) -> None:
    """What training does: append the parts that are not there yet."""
    made = ZooWriter.create(path, HEADER, [LAYOUT])
    done = made.parts()
    for part in range(first, PARTS, stride):
        if f"{part:05d}" not in done:
            made.append(f"{part:05d}", *content(part))


def append_to_full_disk(path: str, answer: str, limit: int, wide: int) -> None:
    """Append with a limit on the size of files, which fails in the system's write like a full disk."""
    made = ZooWriter.open(path)
    notes = [random.Random(0).randbytes(wide).hex()] + [""] * (CHECKPOINTS - 1)  # noise does not compress
    table = table_of(["x"], CHECKPOINTS, note=notes)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with pytest.raises(ZooError) as caught:
        made.append("00001", rows_of(CHECKPOINTS), table)
    Path(answer).write_text(str(caught.value))


def append_one_part(path: str, seed: int) -> None:
    """Append the part that another process appends at the same moment, with other content; exit with 3 if refused."""
    made = ZooWriter.open(path)
    go = time.time_ns() // 50_000_000 * 50_000_000 + 50_000_000  # both start at the next twentieth of a second
    while time.time_ns() < go:
        pass
    refused = []
    try:
        made.append("0", rows_of(500, seed), table_of([f"{seed}-{i}" for i in range(500)]))
    except ZooError as error:
        refused = [str(error)]
    if refused:
        os._exit(3 if "already committed" in refused[0] else 1)


def hold_the_lock(path: str, ready: str) -> None:
    with writer.locked(Path(path)):
        Path(ready).touch()
        time.sleep(60)


def split_many(path: str, first: int) -> None:
    zoo = weightspace.zoo.open(path)
    for seed in range(first, first + 20):
        zoo.split(seed)


def split_read_only(path: str, answer: str) -> None:
    zoo = weightspace.zoo.open(path)
    Path(answer).touch(0o666)
    Path(answer).chmod(0o666)
    Path(path).chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)  # the superuser may write anywhere
    Path(answer).write_text(json.dumps(sides(zoo)))


TASKS = {
    "append": append_parts,
    "one part": append_one_part,
    "full": append_to_full_disk,
    "lock": hold_the_lock,
    "split": split_many,
    "read-only": split_read_only,
}


def serve() -> None:
    """Fork a process for each task that standard input names, or wait for one; answer with its id, or its exit code."""
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        if task == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1])
        elif not (answer := os.fork()):
            try:
                TASKS[task](*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


class Processes:
    """Processes beside this one; they are forked from one that has everything imported, which takes seconds."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(Path(writer.__file__).parents[2])}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *message) -> int:
        self.server.stdin.write(json.dumps(message, default=str) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, task: str, *arguments) -> int:
        return self.ask(task, *arguments)

    def exit_code(self, process: int) -> int:
        return self.ask("wait", process)


@pytest.fixture(scope="module")
def processes():
    made = Processes()
    yield made
    made.server.communicate(timeout=60)
    assert made.server.returncode == 0


def files(path: Path) -> dict[str, bytes]:
    found = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("uninterrupted") / "zoo"
    append_parts(path, 0, 1)
    return files(path)


def test_kill_at_any_moment_loses_nothing_committed_and_a_rerun_completes(tmp_path, processes, uninterrupted):
    path, rng, seen, kills = tmp_path / "zoo", random.Random(0), 0, 0
    while seen < PARTS - 4:
        process = processes.start("append", path, 0, 1)
        deadline = time.monotonic() + 30
        while len(list(path.glob("checkpoints/*.parquet"))) < seen + 2:
            assert time.monotonic() < deadline, "the process appends nothing"
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.006))  # somewhere in the parts after that
        os.kill(process, signal.SIGKILL)
        if processes.exit_code(process) == 0:  # it was done before
            break
        kills += 1
        parts = sorted(ZooWriter.open(path).parts())
        assert len(parts) >= seen + 2
        seen = len(parts)
        zoo = weightspace.zoo.open(path)
        expected = [content(int(part)) for part in parts]
        assert torch.equal(zoo.weights(), torch.cat([rows for rows, _ in expected]))
        assert_frame_equal(zoo.table.select("model", "step"), pl.concat([table for _, table in expected]))
    assert kills >= 3
    assert processes.exit_code(processes.start("append", path, 0, 1)) == 0
    assert files(path) == uninterrupted
    assert len(weightspace.zoo.open(path)) == PARTS * CHECKPOINTS


def test_two_processes_create_and_append_at_once(tmp_path, processes, uninterrupted):
    running = [processes.start("append", tmp_path / "zoo", first, 2) for first in (0, 1)]
    assert [processes.exit_code(process) for process in running] == [0, 0]
    assert files(tmp_path / "zoo") == uninterrupted
    assert not list((tmp_path / "zoo").rglob("*.tmp"))


def test_of_two_processes_that_append_the_same_part_one_is_refused(tmp_path, processes):
    won = set()
    for attempt in range(8):
        path = tmp_path / f"zoo{attempt}"
        ZooWriter.create(path, HEADER, [LAYOUT])
        running = [processes.start("one part", path, seed) for seed in (1, 2)]
        codes = [processes.exit_code(process) for process in running]
        assert sorted(codes) == [0, 3]
        winner = 1 + codes.index(0)
        zoo = weightspace.zoo.open(path)
        assert torch.equal(zoo.weights(), rows_of(500, winner))
        assert zoo.models == [f"{winner}-{i}" for i in range(500)]
        found = weightspace.zoo.check(path)
        assert (found.damage, found.unused, found.without_hashes) == ((), (), 0)
        won.add(winner)


def test_a_reader_sees_whole_parts_while_another_process_appends(tmp_path, processes):
    path = tmp_path / "zoo"
    process = processes.start("append", path, 0, 1)
    seen, deadline = [], time.monotonic() + 30
    while not seen or seen[-1] < PARTS:
        assert time.monotonic() < deadline, "the process appends nothing"
        if not seen and not list(path.glob("checkpoints/*.parquet")):
            continue
        zoo = weightspace.zoo.open(path)
        parts = sorted({name[:5] for name in zoo.models})
        assert torch.equal(zoo.weights(), torch.cat([content(int(part))[0] for part in parts]))
        assert len(zoo) == CHECKPOINTS * len(parts)
        seen.append(len(parts))
    assert processes.exit_code(process) == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2  # it was read in between
    assert weightspace.zoo.check(path).damage == ()


def test_a_lock_ends_with_its_process_and_is_not_waited_for_forever(tmp_path, processes, monkeypatch):
    zoo = disk_zoo(tmp_path / "zoo", [*"abc"])
    process = processes.start("lock", zoo.path, tmp_path / "ready")
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    monkeypatch.setattr(writer, "_LOCK_SECONDS", 0.1)
    before = files(zoo.path)
    with pytest.raises(ZooError, match=r"another process has held the lock of .*zoo for 0 seconds"):
        ZooWriter.open(zoo.path).append("1", rows_of(1), table_of(["z"]))
    assert files(zoo.path) == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(weightspace.zoo.open(zoo.path).weights()) == 3  # readers do not wait
    os.kill(process, signal.SIGKILL)
    assert processes.exit_code(process) != 0
    ZooWriter.open(zoo.path).append("1", rows_of(1), table_of(["z"]))
    assert len(weightspace.zoo.open(zoo.path)) == 4


def test_two_processes_that_split_at_once_store_every_split(tmp_path, processes):
    zoo = disk_zoo(tmp_path / "zoo", [f"m{i}" for i in range(9)])
    running = [processes.start("split", zoo.path, first) for first in (0, 10)]  # ten seeds are drawn by both
    assert [processes.exit_code(process) for process in running] == [0, 0]
    stored = json.loads((zoo.path / "splits.json").read_text())
    assert {int(seed) for seed in stored} == set(range(30))
    alone = Zoo.in_memory(rows_of(9), LAYOUT, table_of(zoo.models), HEADER)
    assert all(stored[str(seed)] == sides(alone, seed) for seed in range(30))


def test_file_systems_without_locks_can_hold_a_zoo(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert torch.equal(disk_zoo(tmp_path / "zoo", [*"abc"]).weights(), rows_of(3, 3))


# the weights take 2 kB; without noise the table is smaller than the limit, with noise larger
@pytest.mark.parametrize(("limit", "wide"), [(1900, 0), (4000, 5000)], ids=["weights", "table"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, processes, limit, wide):
    before = disk_zoo(tmp_path / "zoo", [*"abc"])
    expected = files(tmp_path / "zoo")
    assert processes.exit_code(processes.start("full", tmp_path / "zoo", tmp_path / "answer", limit, wide)) == 0
    message = (tmp_path / "answer").read_text()
    assert message.startswith("could not write part '00001'")
    assert message.endswith("make room and run the command again")
    assert "\n" not in message
    assert files(tmp_path / "zoo") == expected
    assert not list(tmp_path.rglob("*.tmp"))
    assert torch.equal(weightspace.zoo.open(tmp_path / "zoo").weights(), before.weights())


def test_a_read_only_zoo_splits_without_storing(processes):
    with tempfile.TemporaryDirectory() as folder:  # not pytest's folder, into which only its owner may look
        Path(folder).chmod(0o755)
        zoo, answer = disk_zoo(Path(folder) / "zoo", [f"m{i}" for i in range(9)]), Path(folder) / "answer"
        assert processes.exit_code(processes.start("read-only", zoo.path, answer)) == 0
        zoo.path.chmod(0o755)
        assert not (zoo.path / "splits.json").exists()
        assert json.loads(answer.read_text()) == sides(zoo)
        assert (zoo.path / "splits.json").exists()


if __name__ == "__main__":
    serve()
