"""The whole demo in miniature: everything it promises is written, and a second run repeats nothing and agrees."""

import json
from dataclasses import replace

import polars as pl
import pytest

from weightspace import demo
from weightspace.demo import DemoConfig
from weightspace.encoders import TrainingConfig
from weightspace.errors import ConfigError, ZooError
from weightspace.report.run import REQUIRED
from weightspace.zoo import open as open_zoo
from weightspace.zoo.recipe import Recipe

TINY = DemoConfig(
    recipe=Recipe(network="mlp", models=20, epochs=2, checkpoints=(0, 1, 2), train_limit=200, activation=("relu",)),
    optimisation=TrainingConfig(epochs=2, batch_size=16, accelerator="cpu"),
    prompts=0.8,
    networks=8,
)
OF_OTHER_COMMANDS = {"layers", "transfer_curves", "transfer_summary"}
"""Of `predict --layers` and `evaluate transfer`; the report shows them where they are."""
MADE = [name for name in REQUIRED if name not in OF_OTHER_COMMANDS]
TABLES = [f"{name}.csv" for name in MADE]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("demo"), []
    page = demo.run(folder, TINY, say=said.append, workers=1)
    return folder, page, said


def table(folder, name) -> pl.DataFrame:
    return pl.read_csv(folder / "tables" / f"{name}.csv", schema_overrides={"model": pl.String})


def test_the_run_folder_is_complete(made):
    folder, page, _ = made
    assert page == folder / "report.html"
    expected = {"zoo/zoo.json", "samples/zoo.json", "run.json", "report.html"}
    expected |= {
        f"sane/{name}" for name in ("config.json", "model.safetensors", "preparation.safetensors", "history.csv")
    }
    expected |= {f"tables/{name}" for name in TABLES}
    assert [name for name in sorted(expected) if not (folder / name).is_file()] == []
    facts = json.loads((folder / "run.json").read_text())
    assert set(facts) == {"command", "seed", "machine", "versions", "seconds"} and facts["seed"] == 0
    assert len(facts["seconds"]) == 5 and all(value >= 0 for value in facts["seconds"].values())
    assert len(open_zoo(folder / "zoo")) == 60 and len(open_zoo(folder / "samples")) == 8


@pytest.mark.parametrize("name", MADE)
def test_tables_have_their_columns(made, name):
    frame = table(made[0], name)
    assert len(frame) and set(REQUIRED[name]) <= set(frame.columns)


def test_sources_and_epochs(made):
    generation = table(made[0], "generation")
    sources = set(generation["source"])
    assert {"generated", *TINY.fine_tuned, "held-out", "reconstruction of held-out", "training"} <= sources
    assert any(source.startswith("noise 0") for source in sources)
    tuned = {"generated", *TINY.fine_tuned, "held-out"}
    for source, epochs in generation.group_by("source").agg(pl.col("epoch").sort()).rows():
        assert epochs == ([0, 1, 5] if source in tuned else [0]), source
    for name in ("novelty", "ensembles"):
        assert set(table(made[0], name)["source"]) == sources
    networks = table(made[0], "networks").filter(source="generated")
    assert networks["epoch"].value_counts().sort("epoch").rows() == [(0, 8), (1, 8), (5, 8)]


def test_the_split_is_by_model_and_one_everywhere(made):
    places = table(made[0], "map")
    assert len(places) == 60
    assert (places.group_by("model").agg(pl.col("split").n_unique())["split"] == 1).all()
    test = set(places.filter(split="test")["model"])
    assert set(table(made[0], "predictions")["model"]) == test
    samples = open_zoo(made[0] / "samples")
    assert set(samples.table["config.prompt"]) <= set(places.filter(split="train")["model"])


def test_the_report_has_all_sections(made):
    page = made[1].read_text()
    for heading in ("The population", "Reading properties", "Generating networks", "How it was made"):
        assert f"{heading}</h2>" in page, heading
    for figure in ("map", "training", "properties", "epoch0", "distance", "fine-tuning", "ensembles", "history"):
        assert f'id="{figure}"' in page, figure


def test_the_terminal_tells_the_important_lines(made):
    said = made[2]
    assert any("SANE" in line for line in said) and any("weight statistics" in line for line in said)
    mean = table(made[0], "generation").filter(source="generated", epoch=0)["accuracy_mean"].item()
    assert any(line.strip().startswith(f"{mean:.3f}  generated (") for line in said)
    assert said[-1].startswith("Verdict on the generated networks: ")


def test_again_nothing_is_trained_and_all_is_equal(made):
    folder, _, said = made
    kept = [*sorted((folder / "zoo").rglob("*.*")), folder / "sane" / "last.ckpt", folder / "sane" / "history.csv"]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in kept if file.is_file()}
    tables = {name: (folder / "tables" / name).read_bytes() for name in TABLES}
    again = []
    demo.run(folder, TINY, say=again.append, workers=1)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before
    assert {name: (folder / "tables" / name).read_bytes() for name in TABLES} == tables
    timeless = [[line for line in lines if not line.endswith(" s")] for lines in (said, again)]
    assert timeless[0] == timeless[1]


def test_the_folder_of_another_demo_is_refused(made):
    recipe = replace(TINY.recipe, seed=1)
    with pytest.raises(ZooError, match="already holds another zoo"):
        demo.run(made[0], replace(TINY, recipe=recipe), say=lambda line: None, workers=1)


def test_networks_out_of_range():
    with pytest.raises(ConfigError, match="networks must be at least 1"):
        DemoConfig(networks=0)
