"""Zoos on a hub: the card, the plan of an upload, the cache without network, and a real server that keeps commits."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import polars as pl
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import ZooError
from weightspace.networks import Layout
from weightspace.zoo import Zoo, pull_zoo, push_zoo
from weightspace.zoo.card import card
from weightspace.zoo.hub import upload_plan

COMMIT = "a" * 40


@pytest.fixture
def zoo(tmp_path):
    """Ten models at two steps."""
    layout = Layout.of(nn.Linear(3, 2))
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    table = pl.DataFrame(
        {
            "model": [f"m{i // 2}" for i in range(20)],
            "step": [0, 5] * 10,
            "config.activation": ["relu", "relu", "tanh", "tanh"] * 5,
            "config.learning_rate": [0.001 * (1 + i // 2) for i in range(20)],
            "metric.test_accuracy": [0.1, 0.55] * 9 + [0.1, 0.95],
        }
    )
    header = {"name": "tiny", "dataset": {"name": "digits", "image_shape": [1, 8, 8]}}
    return Zoo.in_memory(rows, layout, table, header).save(tmp_path / "zoo")


def same(one: Zoo, two: Zoo) -> None:
    assert two.weights().equal(one.weights()) and two.table.equals(one.table) and two.header == one.header


# --- card and plan ----------------------------------------------------------------------------------------------------


def test_card_counts_what_is_there(zoo):
    text = card(zoo)
    head = text.split("---")[1]
    assert "- weightspace" in head and "- model-zoo" in head
    assert "10 models, 20 checkpoints (steps 0 to 5), 1 layout." in text
    assert f"| {zoo.layout.digest} | 8 | 2 | 20 |" in text
    assert "| activation | relu, tanh |" in text and "| learning_rate | 0.001 to 0.01 |" in text
    assert "**Data set.** name digits, image_shape 1x8x8" in text
    histogram = text.split("```text\n")[1].split("```")[0].splitlines()
    counts = [int(line.split()[3]) for line in histogram]
    assert counts == [0, 0, 0, 0, 0, 9, 0, 0, 0, 1]  # the last checkpoint of each model
    assert histogram[5].count("█") == 40 and 0 < histogram[9].count("█") < 6
    assert huggingface_hub.RepoCard(text, ignore_metadata_errors=False).data.tags == ["weightspace", "model-zoo"]


def test_card_of_a_zoo_of_which_little_is_known(tmp_path):
    layout = Layout.of(nn.Linear(1, 1))
    zoo = Zoo.in_memory(torch.zeros(1, 2), layout, pl.DataFrame({"model": ["a"], "step": [0]}), {"name": "bare"})
    text = card(zoo)
    assert "1 model, 1 checkpoint (step 0), 1 layout." in text and "factors" not in text and "```" not in text


def test_plan_has_every_file_and_a_card(zoo):
    zoo.split(0)
    (zoo.path / "notes.txt").write_text("private")
    (zoo.path / "weights/.x.tmp").write_bytes(b"half")
    plan = {operation.path_in_repo: operation for operation in upload_plan(zoo)}
    ours = {name for name in contents(zoo.path) if name != "notes.txt" and not name.endswith(".tmp")}
    assert set(plan) == ours | {"README.md"}
    assert {"zoo.json", "splits.json", "checkpoints/000000.parquet", "weights/000000.safetensors"} <= ours
    assert plan["README.md"].path_or_fileobj == card(zoo).encode()


def test_a_selection_is_not_pushed(zoo):
    for part in (zoo.last(), Zoo.in_memory(zoo.weights(), zoo.layout, zoo.table.drop("layout", "shard", "row"), {})):
        with pytest.raises(ZooError, match="is not a whole zoo on disk: save it into a folder"):
            upload_plan(part)


# --- without network: a cache as huggingface_hub lays it out ----------------------------------------------------------


def lay_out(cache: Path, kind: str, repository: str, files: dict[str, bytes]) -> None:
    """Blobs by hash, a snapshot of links, and a ref, as in a cache that a download filled."""
    root = cache / f"{kind}s--{repository.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = root / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


OFFLINE = """
import json, sys
import weightspace as ws
from weightspace.errors import WeightspaceError
for command, *arguments in json.loads(sys.argv[1]):
    try:
        getattr(ws.zoo, command)(*arguments)
        print("done")
    except WeightspaceError as error:
        print("refused:", error)
"""


def offline(cache: Path, *calls: tuple[str, ...]) -> list[str]:
    """A process of its own, as `huggingface_hub` reads its settings when it is imported."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_pull_and_import_from_the_cache(zoo, tmp_path):
    cache = tmp_path / "cache"
    lay_out(cache, "dataset", "me/tiny", contents(zoo.path) | {"other/file.bin": b"not of a zoo"})
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "net.pt")
    files = {"pytorch_model.bin": (tmp_path / "net.pt").read_bytes(), "config.json": b"{}"}
    lay_out(cache, "model", "me/net", files)
    lay_out(cache, "dataset", "me/pictures", {"a.png": b"x"})
    said = offline(
        cache,
        ("pull_zoo", "me/tiny", str(tmp_path / "pulled")),
        ("import_zoo", "hub:me/net", str(tmp_path / "imported")),
        ("pull_zoo", "me/nothing", str(tmp_path / "none")),
        ("pull_zoo", "me/pictures", str(tmp_path / "none")),
        ("import_zoo", "hub:me/nothing@v1", str(tmp_path / "none")),
    )
    pulled = ws.open(tmp_path / "pulled")
    same(zoo, pulled)
    assert not any(file.is_symlink() for file in (tmp_path / "pulled").rglob("*"))
    imported = ws.open(tmp_path / "imported")
    assert imported.layout == Layout.of(nn.Linear(3, 2)) and imported.models == ["me/net"]
    assert imported.header["created_by"]["import"]["source"] == "hub:me/net"
    assert said[:2] == ["done", "done"]
    assert said[2].startswith("refused: the Hub gave nothing under 'me/nothing'")
    assert said[3].startswith("refused: the data set repository 'me/pictures' holds no zoo")
    assert said[4].startswith("refused: the Hub gave nothing under 'me/nothing@v1'")
    assert not (tmp_path / "none").exists()


# --- a server that keeps what it is sent ------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a commit of small files and a download of a revision need."""

    files: dict[str, bytes]
    requests: list[str]

    def answer(self, content: dict | bytes, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials")
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            name = f"{json.loads(body)['organization']}/{json.loads(body)['name']}"
            return self.answer({"url": f"http://{self.headers['Host']}/datasets/{name}"})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/datasets/me/tiny/commit/{COMMIT}"
            return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": address})
        return self.answer({"error": "not here"}, 404)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/me/tiny/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.answer({"id": "me/tiny", "sha": COMMIT, "siblings": siblings})
        if path.startswith("/api/datasets/me/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/datasets/me/tiny/resolve/{COMMIT}/")
        if name in self.files:
            tag = f'"{hashlib.sha1(self.files[name]).hexdigest()}"'
            return self.answer(self.files[name], ETag=tag, X_Repo_Commit=COMMIT)
        return self.answer({"error": "not here"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"files": {}, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_pushed_and_pulled(zoo, tmp_path, server, monkeypatch):
    address, hub = server
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = push_zoo(zoo, "me/tiny", token="hf_right", endpoint=address)
    assert commit == f"{address}/datasets/me/tiny/commit/{COMMIT}"
    assert {name: hub.files[name] for name in contents(zoo.path)} == contents(zoo.path)
    assert hub.files["README.md"].decode() == card(zoo)
    shutil.rmtree(zoo.path / "weights")
    kept = ws.Zoo.in_memory(torch.zeros(1, 8), zoo.layout, pl.DataFrame({"model": ["a"], "step": [0]}), {})
    pulled = pull_zoo("me/tiny", tmp_path / "pulled", endpoint=address)
    assert len(pulled) == 20 and pulled.layout == kept.layout
    assert pulled.table.equals(zoo.table) and pulled.header == zoo.header
    assert contents(tmp_path / "pulled")["README.md"].decode() == card(pulled)


def test_a_refused_push_is_one_sentence(zoo, server):
    address, hub = server
    with pytest.raises(ZooError, match=r"could not push .* to 'me/tiny'"):
        push_zoo(zoo, "me/tiny", token="hf_wrong", endpoint=address)
    assert hub.files == {}


def test_an_unreachable_hub_is_one_sentence(zoo, tmp_path, server, monkeypatch):
    address, _ = server
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ZooError, match="the Hub gave nothing under 'me/other'"):
        pull_zoo("me/other", tmp_path / "pulled", endpoint=address)
    with pytest.raises(ZooError, match="the Hub gave nothing under 'no good name!'"):
        pull_zoo("no good name!", tmp_path / "pulled", endpoint=address)
    assert not (tmp_path / "pulled").exists()
