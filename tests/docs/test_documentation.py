"""The documentation is true: its code runs, its links lead somewhere, its results are what a run measured.

Python blocks of a page run in order in one namespace, in an empty folder; command lines go through the command line's
own entry point. A block that cannot run here says why: `<!-- not run: reason -->` above it.
"""

import importlib
import importlib.util
import json
import re
import shlex
from itertools import product
from pathlib import Path

import joblib
import polars as pl
import pytest

from weightspace import cli
from weightspace.errors import WeightspaceError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(<!-- not run: [^\n]+ -->\n+)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = {"python", "bash"}
SHOWN = {"text", "bibtex", "{toctree}"}
IMAGES = "--data-root DIR"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks that must run."""
    return [(kind, text) for left_out, kind, text in FENCE.findall(page.read_text()) if kind in RUN and not left_out]


def commands(text: str) -> list[list[str]]:
    """Words after `weightspace` of each line; a line may go on after a backslash."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert all(line[0] == "weightspace" for line in lines), "another command: mark the block as not run, and why"
    return [line[1:] for line in lines]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The current folder is empty, and zoos are trained in this process: starting workers takes longer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(joblib, "cpu_count", lambda **_: 1)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_code_runs(page, empty_folder):
    namespace: dict = {}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, name(page), "exec"), namespace)
        elif IMAGES not in text:
            for command in commands(text):
                assert cli.main(command) == 0, command


def test_commands_on_image_files_run(image_data, empty_folder):
    found = [line for page in PAGES for kind, text in blocks(page) if kind == "bash" and IMAGES in text
             for line in commands(text)]  # fmt: skip
    assert found
    for command in found:
        assert cli.main([str(image_data) if word == "DIR" else word for word in command]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_have_a_known_kind(page):
    assert {kind for _, kind, _ in FENCE.findall(page.read_text())} <= RUN | SHOWN


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs/results").glob("*.md")), ids=name)
def test_results_have_their_tables(page):
    for file in set(re.findall(r"[\w/-]+\.csv", page.read_text())):
        assert len(pl.read_csv(page.parent / file)), file


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "methods"], ids=name)
def test_method_pages_name_what_exists(page):
    text = page.read_text()
    named = re.findall(r"`(weightspace(?:\.\w+)+)`", text)
    assert named, "a method's page names its module"
    for path in named:
        exists(path)
    for script in re.findall(r"`(benchmarks/\w+\.py)`", text):
        assert (ROOT / script).is_file(), script


def exists(path: str) -> None:
    """A dotted name of a module, or of something in one."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return
    raise AssertionError(f"{path} does not exist")


def test_every_page_is_in_a_table_of_contents():
    docs = ROOT / "docs"
    listed = {"index.md"}
    for page in docs.rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            entries = [line for line in tree.splitlines() if line.strip() and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").relative_to(docs).as_posix() for entry in entries}
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md") if "_build" not in page.parts}


def test_readme_lists_every_command():
    text = (ROOT / "README.md").read_text()
    nested = {
        "zoo": cli.ZOO_COMMANDS,
        "align": cli.ALIGN_COMMANDS,
        "manifold": cli.MANIFOLD_COMMANDS,
        "diffusion": cli.DIFFUSION_COMMANDS,
        "tasks": cli.TASK_COMMANDS,
    }
    for command in [*cli.COMMANDS, *(f"{app} {command}" for app, commands in nested.items() for command in commands)]:
        assert f"`weightspace {command}" in text


# ---- The results page


@pytest.fixture(scope="module")
def writer():
    spec = importlib.util.spec_from_file_location("write_demo_results", ROOT / "docs/write_demo_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(tmp_path):
    """A run folder with the tables that the page reads, and a documentation to write into."""
    run, root = tmp_path / "run", tmp_path / "root"
    (run / "tables").mkdir(parents=True)
    (root / "docs/results").mkdir(parents=True)
    (root / "README.md").write_text("before\n<!-- demo:begin -->old<!-- demo:end -->\nafter\n")
    facts = {
        "command": f"weightspace demo --out {run}", "seed": 7,
        "machine": {"processor": "P", "cores": 2, "gpu": None, "system": "S", "python": "3"},
        "versions": {"torch": "2"}, "seconds": {"train the zoo": 90.0, "train SANE": 30.0},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    value = {"SANE": 0.75, "weight statistics": 0.5}
    numeric = [
        {"representation": r, "probe": "ridge", "target": t, "metric": m, "value": v}
        for (r, v), t, m in product(value.items(), ["metric.test_accuracy", "step"], ["r2", "kendall_tau", "mae"])
    ]
    named = [
        {"representation": r, "probe": "logistic", "target": "config.init", "metric": m, "value": 0.4}
        for r, m in product(value, ["accuracy", "majority"])
    ]
    fixed = {
        "representation": "SANE",
        "probe": "ridge",
        "target": "config.dropout",
        "metric": "constant",
        "value": None,
    }
    pl.DataFrame([*numeric, *named, fixed], infer_schema_length=None).write_csv(run / "tables/properties.csv")
    rest = {"n": 16, "accuracy_std": 0.04, "accuracy_min": 0.1, "accuracy_max": 0.9, "nll": 1.0, "ece": 0.1}
    means = {
        ("generated", 0): 0.8, ("generated", 1): 0.9, ("random initialisation", 0): 0.1,
        ("random initialisation", 5): 0.6, ("average of all", 0): 0.85, ("noise at equal distance", 0): 0.81,
    }  # fmt: skip
    rows = [{"source": s, "epoch": e, "accuracy_mean": mean, **rest} for (s, e), mean in means.items()]
    pl.DataFrame(rows).write_csv(run / "tables/generation.csv")
    quantiles = [
        f"{kind}_{share}" for kind, share in product(["distance_ratio", "nap"], ["05", "50", "75", "95", "100"])
    ]
    novel = dict.fromkeys([*quantiles, "z_u", "max_iou", "pair_iou", "disagreement", "sd_ratio"], 0.5)
    pl.DataFrame([{"source": "generated", **novel, "verdict": "replica"}]).write_csv(run / "tables/novelty.csv")
    together = [{"source": "generated", "members": m, "accuracy": 0.9, "nll": 0.3} for m in (1, 10, 50)]
    pl.DataFrame(together).write_csv(run / "tables/ensembles.csv")
    return run, root


def written(writer, run: Path, root: Path) -> str:
    writer.main(run, root=root)
    return (root / "docs/results/demo.md").read_text()


def test_results_page_says_what_the_tables_say(writer, finished):
    run, root = finished
    text = written(writer, run, root)
    assert "**SANE** is best with R² 0.750; weight statistics 0.500." in text
    assert "(SANE) is above the best simple one (weight statistics)" in text
    # 0.05 is five standard errors of 0.04 / √16, and the average is no draw; noise is one, so 0.01 is under one error
    assert "aligned prompts: 0.800 is below 0.850 (difference −0.050, standard error 0.010)" in text
    assert "equal distance: 0.800 is level with 0.810 (difference −0.010, standard error 0.014)" in text
    assert "after 1 epoch of training against random initialisation after 5 epochs: 0.900 is above 0.600" in text
    assert "**replica** (median distance" in text and "10 generated networks 0.900" in text
    assert "Not varied in this zoo, so not predicted: dropout." in text
    assert str(run.parent) not in text and "`weightspace demo --out run`" in text
    assert (root / "docs/results/demo.png").stat().st_size > 1000
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n<!-- demo:begin -->\n") and readme.endswith("<!-- demo:end -->\nafter\n")
    assert "2.0 minutes on 2 cores of P" in readme and "old" not in readme


def test_results_page_follows_other_numbers(writer, finished):
    run, root = finished
    for table, column, swap in (("properties", "representation", ["SANE", "weight statistics"]),
                                ("generation", "source", ["generated", "random initialisation"])):  # fmt: skip
        file = run / f"tables/{table}.csv"
        there = dict(zip(swap, swap[::-1], strict=True))
        pl.read_csv(file).with_columns(pl.col(column).replace(there)).write_csv(file)
    text = written(writer, run, root)
    assert "**weight statistics** is best with R² 0.750; SANE 0.500." in text
    assert "(SANE) is not above the best simple one (weight statistics)" in text
    assert "aligned prompts: 0.100 is below 0.850" in text


def test_results_page_can_be_written_again(writer, finished):
    run, root = finished

    def content() -> dict[str, bytes]:
        writer.main(run, root=root)
        return {file.name: file.read_bytes() for file in root.rglob("*") if file.is_file()}

    assert content() == content()


def test_results_page_needs_a_finished_run(writer, finished):
    run, root = finished
    before = (root / "README.md").read_text()
    (run / "tables/novelty.csv").unlink()
    with pytest.raises(WeightspaceError, match=r"no finished run of the demo: .*novelty\.csv"):
        writer.main(run, root=root)
    assert (root / "README.md").read_text() == before
