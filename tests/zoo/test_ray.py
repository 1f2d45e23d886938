"""Training on a Ray cluster of several nodes, one of which dies: the zoo is that of one process."""

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from weightspace.errors import DatasetError, MissingExtra
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(180),
    # of Ray's own sockets and log files, and of what it says about coming versions
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RECIPE = Recipe(network="mlp", models=36, epochs=6, checkpoints=(0, 6), train_limit=400, unit_models=2, seed=2)


def contents(path: Path) -> dict[str, str]:
    """A hash of every file that readers see."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def parts(path: Path) -> int:
    return len(list((path / "checkpoints").glob("*.parquet")))


@pytest.fixture(scope="module")
def cluster():
    """A head without cores and two nodes with one each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_zoo_survives_the_loss_of_a_node(cluster, tmp_path):
    import ray

    whole = train(tmp_path / "whole" / "zoo", RECIPE, workers=1)
    path, lost = tmp_path / "cluster" / "zoo", []

    def pull_the_plug() -> None:
        while parts(path) < 3:
            time.sleep(0.05)
        lost.append(parts(path))
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)

    saboteur = threading.Thread(target=pull_the_plug, daemon=True)
    saboteur.start()
    zoo = train(path, RECIPE, backend="ray")
    saboteur.join(60)
    assert lost and lost[0] < len(list((path / "checkpoints").glob("*.parquet"))), "the node died in the middle"
    until = time.monotonic() + 30  # the list of nodes lags behind
    while (alive := sum(node["Alive"] for node in ray.nodes())) > 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert alive == 2, "of three nodes one is gone"
    assert contents(path) == contents(whole.path)
    assert zoo.table.equals(whole.table) and zoo.weights().equal(whole.weights())


def test_a_finished_part_is_not_trained_again_on_a_cluster(cluster, tmp_path):
    few = replace(RECIPE, models=8)
    zoo = train(tmp_path / "zoo", few, workers=1)
    before = contents(zoo.path)
    (zoo.path / "checkpoints" / "00001.parquet").unlink()
    kept = {file: file.stat().st_mtime_ns for file in (zoo.path / "checkpoints").iterdir()}
    train(zoo.path, few, backend="ray")
    assert contents(zoo.path) == before
    assert kept.items() <= {file: file.stat().st_mtime_ns for file in (zoo.path / "checkpoints").iterdir()}.items()


def test_an_error_of_a_worker_is_the_users_sentence(cluster, tmp_path):
    """Images that only this process sees."""
    import numpy as np

    images = np.random.default_rng(0).random((40, 1, 4, 4), dtype=np.float32)
    labels = np.arange(40) % 2
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    recipe = replace(RECIPE, data=str(path), models=2, batch_size=10, train_limit=None)

    def change_the_images(*_: object) -> set[str]:
        np.savez(path, x_train=images[::-1], y_train=labels, x_test=images, y_test=labels)
        return set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightspace.zoo.store.ZooWriter.parts", change_the_images)  # called just before the work
        with pytest.raises(DatasetError, match="changed while the zoo was training") as error:
            train(tmp_path / "zoo", recipe, backend="ray")
    assert "Traceback" not in str(error.value)


def test_ray_missing_is_said(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"install weightspace\[ray\]"):
        train(tmp_path / "zoo", replace(RECIPE, models=2), backend="ray")
