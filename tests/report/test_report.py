"""The page of a run: what is given is shown, what is missing is left out, and nothing is loaded from elsewhere."""

import builtins
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects
import polars as pl
import pytest
import torch

from weightspace import report
from weightspace.errors import MissingExtra, WeightspaceError
from weightspace.networks.layout import Layout
from weightspace.report import figures
from weightspace.zoo.store import Zoo

SECTIONS = [
    "the-population",
    "reading-properties",
    "layer-by-layer",
    "generating-networks",
    "transfer",
    "how-it-was-made",
]
SECTION_OF = {
    "map": "the-population",
    "properties": "reading-properties",
    "predictions": "reading-properties",
    "layers": "layer-by-layer",
    "networks": "generating-networks",
    "generation": "generating-networks",
    "novelty": "generating-networks",
    "ensembles": "generating-networks",
    "transfer_curves": "transfer",
    "transfer_summary": "transfer",
}
NASTY = "<script>alert('x')</script><b>&"
SOURCES = {  # accuracy at epoch 0, 1 and 5; distance ratio
    "generated": (0.926, 0.951, 0.958, 0.91),
    "average": (0.836, 0.921, 0.949, 1.35),
    "average 16": (0.802, 0.917, 0.947, 1.20),
    "noise 0.1": (0.941, 0.952, 0.957, 0.31),
    "noise 0.3": (0.924, 0.948, 0.957, 0.88),
    "noise 1.0": (0.413, 0.873, 0.941, 2.70),
    "random": (0.101, 0.702, 0.912, 4.10),
    "reconstruction": (0.901, 0.949, 0.957, 0.62),
    "training": (0.944, 0.953, 0.958, 1.00),
    "held-out": (0.943, 0.953, 0.959, 1.02),
}
VOID = {"meta", "link", "img", "br", "input", "hr", "base", "source", "embed"}


class Page(HTMLParser):
    """Collects what a reader and a browser would find in the page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.cells: list[str] = []
        self.best: list[str] = []
        self.data: dict[str, str] = {}
        self._open: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert self.stack == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "td":
            self.cells.append("")
            if "best" in (dict(attrs)["class"] or "").split():
                self.best.append("")
        self._open = dict(attrs) if tag in ("script", "td") else self._open

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        inside = self.stack[-1] if self.stack else ""
        if inside == "script" and self._open.get("type") == "application/json":
            self.data[str(self._open["id"])] = self.data.get(str(self._open["id"]), "") + data
        elif inside not in ("script", "style"):
            self.text.append(data)
        if "td" in self.stack:
            self.cells[-1] += data
            if "best" in (self._open.get("class") or "").split():
                self.best[-1] += data

    @property
    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.tags if a.get("id")]

    @property
    def sections(self) -> list[str]:
        return [a["id"] for tag, a in self.tags if tag == "section"]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def make_tables(folder: Path, models: int = 40, per_source: int = 30) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    skill = rng.beta(3, 1, models)
    steps = np.array([0, 1, 2, 5, 10, 20, 30])
    accuracy = 0.1 + 0.86 * skill[:, None] * (1 - np.exp(-steps / (2 + 8 * rng.random((models, 1)))))
    angle = 2 * np.pi * rng.random((models, 1)) + 0.02 * steps
    radius = accuracy + 0.05 * rng.standard_normal(accuracy.shape)
    names = [NASTY, *(f"{i:03d}" for i in range(1, models))]
    each = len(steps)
    pl.DataFrame(
        {
            "model": np.repeat(names, each),
            "step": np.tile(steps, models),
            "x": (radius * np.cos(angle)).ravel(),
            "y": (radius * np.sin(angle)).ravel(),
            "split": np.repeat(rng.choice(["train", "validation", "test"], models, p=[0.7, 0.15, 0.15]), each),
            "metric.test_accuracy": accuracy.ravel(),
            "config.activation": np.repeat(rng.choice(["relu", "tanh", "gelu"], models), each),
            "config.learning_rate": np.repeat(10 ** rng.uniform(-4, -1.5, models), each),
        }
    ).write_csv(folder / "map.csv")

    strength = {"sane": 0.929, "statistics": 0.892, "flat": 0.75, "hyper-parameters": 0.31}
    scores = []
    targets = ["metric.test_accuracy", "step", "metric.generalisation_gap", "log10 config.learning_rate"]
    for j, target in enumerate(targets):
        for name, best in strength.items():
            for probe, gain in (("ridge", 0.0), ("boosting", 0.011)):
                r2 = best - 0.17 * j + gain if (name, probe) != ("flat", "ridge") or j < 3 else -0.734
                for metric, value in (("r2", r2), ("kendall_tau", 0.8 * best - 0.1 * j), ("mae", 0.05)):
                    scores.append((name, probe, target, metric, value, 1120, 240))
    for name, best in strength.items():
        scores.append((name, "logistic", "config.activation", "accuracy", 0.9 * best, 1120, 240))
        scores.append((name, "logistic", "config.activation", "majority", 0.367, 1120, 240))
    columns = ["representation", "probe", "target", "metric", "value", "n_train", "n_test"]
    pl.DataFrame(scores, schema=columns, orient="row").write_csv(folder / "properties.csv")

    test = accuracy[:12].ravel()
    spread = {"sane": 0.05, "statistics": 0.08, "flat": 0.12}
    pl.concat(
        pl.DataFrame(
            {
                "representation": name,
                "probe": "ridge",
                "target": "metric.test_accuracy",
                "model": np.repeat(names[:12], each),
                "step": np.tile(steps, 12),
                "true": test,
                "predicted": test + s * rng.standard_normal(test.size),
            }
        )
        for name, s in spread.items()
    ).write_csv(folder / "predictions.csv")

    networks, generation, novelty, ensembles = [], [], [], []
    for name, (*means, distance) in SOURCES.items():
        for epoch, mean in zip((0, 1, 5), means, strict=True):
            std = 0.04 / (1 + epoch)
            values = np.clip(mean + std * rng.standard_normal(per_source), 0.05, 0.99)
            far = distance * np.exp(0.15 * rng.standard_normal(per_source)) if epoch == 0 else [None] * per_source
            networks += [
                (name, f"{name}-{i}", epoch, a, 1 - a, d) for i, (a, d) in enumerate(zip(values, far, strict=True))
            ]
            generation.append((name, epoch, per_source, mean, std, values.min(), values.max(), 0.3, 0.021))
        novelty.append((name, per_source, distance * 0.8, distance, distance * 1.2, -3.2, 0.71, "looks new, near zoo"))
        if name in ("generated", "held-out", "training"):
            ensembles += [(name, m, means[0] + 0.02 * (1 - 1 / m), 0.2, 0.1, 0.02) for m in (1, 2, 5, 10, 20)]
    columns = ["source", "model", "epoch", "accuracy", "loss", "distance_ratio"]
    pl.DataFrame(networks, schema=columns, orient="row").write_csv(folder / "networks.csv")
    columns = ["source", "epoch", "n", "accuracy_mean", "accuracy_std", "accuracy_min", "accuracy_max", "nll", "ece"]
    pl.DataFrame(generation, schema=columns, orient="row").write_csv(folder / "generation.csv")
    columns = ["source", "n", *(f"distance_ratio_{q}" for q in ("05", "50", "95")), "z_u", "max_iou", "verdict"]
    pl.DataFrame(novelty, schema=columns, orient="row").write_csv(folder / "novelty.csv")
    columns = ["source", "members", "accuracy", "nll", "brier", "ece"]
    pl.DataFrame(ensembles, schema=columns, orient="row").write_csv(folder / "ensembles.csv")

    make_layers(folder / "layers.csv")
    make_transfer(folder)


def make_layers(path: Path) -> None:
    """As `evaluation.probe_layers` has them: two probes of numbers, and nothing for a class that never varies."""
    rows = []
    for name, shift in (("statistics", 0.0), ("sane", 0.05)):
        for number, layer in enumerate(["007", "conv2", "fc1", "all layers"]):
            about = (name, layer, number if layer != "all layers" else None)
            for probe, gain in (("ridge", 0.0), ("boosting", 0.3)):
                r2 = -4.5 if layer == "007" else 0.2 * number + shift + gain
                rows.append((*about, probe, "metric.test_accuracy", "r2", r2, 1120, 240))
            rows.append((*about, "logistic", "config.activation", "accuracy", 0.6, 1120, 240))
            rows.append((*about, "logistic", "config.activation", "majority", 0.5, 1120, 240))
            rows.append((*about, "ridge", "config.dropout", "r2", None, 1120, 240))
    columns = ["representation", "layer", "layer_number", "probe", "target", "metric", "value", "n_train", "n_test"]
    pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).sample(
        fraction=1, shuffle=True, seed=0
    ).sort(pl.col("probe") == "boosting", maintain_order=True).write_csv(path)


def make_transfer(folder: Path) -> None:
    curves, summary = [], []
    for name, (mean, final, half) in {
        "random initialisation": (0.1, 0.8, 0.03),
        "generated": (0.55, 0.85, 0.02),
        "zoo models": (0.5, 0.99, 0.04),
    }.items():
        for epoch, value in ((0, mean), (1, (mean + final) / 2), (25, final)):
            curves.append((name, epoch, 20, value, value - half, value + half, 0.5, 0.02, 0.01))
        random = name == "random initialisation"
        reached = (None, None, None) if random else (1, 0.93, 4e-7)
        summary.append((name, 0.0003, mean, final, (mean + final) / 2, 0.8, *reached))
    columns = ["source", "epoch", "n", *(f"accuracy_{x}" for x in ("mean", "low", "high")), "nll", "ece"]
    pl.DataFrame(curves, schema=[*columns, "learning_rate"], orient="row").write_csv(folder / "transfer_curves.csv")
    columns = ["source", "learning_rate", "start", "final", "area", "threshold", "epochs_to_threshold"]
    pl.DataFrame(summary, schema=[*columns, "effect", "p_value"], orient="row", infer_schema_length=None).write_csv(
        folder / "transfer_summary.csv"
    )


def make_zoo(folder: Path) -> None:
    layout = Layout.of(torch.nn.Linear(3, 2))
    table = pl.DataFrame(
        {
            "model": ["a", "a", "b", "b"],
            "step": [0, 3, 0, 3],
            "metric.test_accuracy": [0.1, 0.9, 0.2, 0.6],
            "config.activation": ["relu", "relu", "tanh", "tanh"],
        }
    )
    rows = torch.randn(4, layout.parameters, generator=torch.Generator().manual_seed(0))
    Zoo.in_memory(rows, layout, table, {"name": "tiny zoo"}).save(folder)


def make_run(folder: Path) -> Path:
    make_tables(folder / "tables")
    facts = {
        "command": "weightspace demo --out run",
        "seed": 7,
        "machine": {"cores": 2, "processor": "x86 <64>"},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "seconds": {"zoo": 121.4, "sane": 98.25, "sample": 3.5},
    }
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "sane").mkdir()
    losses = np.exp(-np.arange(60) / 20)
    history = {"epoch": np.arange(60), "train_loss": losses, "validation_loss": losses + 0.05}
    pl.DataFrame(history).write_csv(folder / "sane" / "history.csv")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return read(report.write(run))


def test_sections_stand_in_order_and_every_figure_has_its_data(page: Page):
    assert page.sections == SECTIONS
    places = {a["id"]: a["data-figure"] for _, a in page.tags if a.get("class") == "plot"}
    names = "map zoo-accuracy training properties predicted-0 predicted-1 layers-0 layers-1 epoch0 distance fine-tuning"
    assert list(places) == [*names.split(), "ensembles", "transfer-curves", "history"]
    assert set(places.values()) == set(page.data)
    assert len(page.ids) == len(set(page.ids))


def test_nothing_is_loaded_from_elsewhere(page: Page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert name not in attributes, f"<{tag} {name}> would load something"
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_figures_are_json_without_nan_and_valid_for_plotly(page: Page):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for text in page.data.values():
        figure = json.loads(text, parse_constant=refuse)
        plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])  # raises on an unknown property
        assert all(len(trace.get("x", [])) for trace in figure["data"]), "no empty trace"
        assert "title" not in figure["layout"], "the page has the titles"


def test_map_offers_colours_for_every_point(page: Page):
    figure = json.loads(page.data["map-data"])
    assert list(figure["choices"]) == ["test accuracy", "epoch", "activation", "learning rate", "split"]
    count = len(figure["data"][0]["x"])
    assert count == 280
    assert {len(marker["color"]) for marker in figure["choices"].values()} == {count}
    assert figure["data"][0]["type"] == "scattergl"


def test_tables_hold_the_numbers_given(page: Page):
    for name, (epoch0, epoch1, epoch5, distance) in SOURCES.items():
        assert name in page.cells
        assert {f"{epoch0:.3f} ± 0.040", f"{epoch1:.3f} ± 0.020", f"{epoch5:.3f} ± 0.007"} <= set(page.cells)
        assert f"{distance:.2f}" in page.cells
    assert {"0.929", "0.892", "\u22120.734", "\u22123.2", "0.367"} <= set(page.cells)
    assert {"121.4", "weightspace demo --out run", "x86 <64>", "2.13.0"} <= set(page.cells)


def test_layers_stand_in_order_with_the_first_probe_of_each_property(page: Page):
    figure = json.loads(page.data["layers-0-data"])
    assert figure["layout"]["xaxis"]["categoryarray"] == ["007", "conv2", "fc1", "all layers"]
    lines = {line["name"]: line for line in figure["data"]}
    assert set(lines) == {"test accuracy", "activation"}, "a property without values has no line, nor has the majority"
    shift = 0.0 if "statistics" in page.words.partition("What each layer tells: ")[2][:12] else 0.05
    accuracy = lines["test accuracy"]
    assert accuracy["x"] == figure["layout"]["xaxis"]["categoryarray"]
    assert accuracy["y"] == pytest.approx([figures.LEAST_OF_LAYER, 0.2 + shift, 0.4 + shift, 0.6 + shift])
    assert accuracy["customdata"][0] == -4.5, "what is cut off can be read"
    assert lines["activation"]["y"] == [0.6] * 4
    other = {line["name"]: line["line"] for line in json.loads(page.data["layers-1-data"])["data"]}
    assert other == {name: line["line"] for name, line in lines.items()}, "a property looks the same in both"


def test_transfer_shows_the_intervals_given(page: Page):
    traces = json.loads(page.data["transfer-curves-data"])["data"]
    lines = [trace["name"] for trace in traces if trace["mode"] == "lines+markers"]
    assert lines == ["zoo models", "random initialisation", "generated"], "generated is drawn last, on top"
    for name, ends in {"generated": [(0.53, 0.57), (0.68, 0.72), (0.83, 0.87)], "zoo models": [(0.46, 0.54)]}.items():
        low, high = (trace["y"] for trace in traces if trace["legendgroup"] == name and trace["mode"] == "lines")
        assert list(zip(low, high, strict=True))[: len(ends)] == [pytest.approx(end) for end in ends]
    assert max(y for trace in traces for y in trace["y"]) == 1, "an interval ends where accuracies do"
    cells = page.cells[page.cells.index("0.0003") - 1 :]
    assert cells[:8] == ["generated", "0.0003", "0.550", "0.850", "0.700", "1", "0.930", "< 0.001"]
    assert "\u2013" in cells, "random initialisation is not compared with itself"


def test_a_single_network_has_a_curve_without_interval(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    text = "source,epoch,accuracy_mean,accuracy_low,accuracy_high\nnew,0,0.1,,\nnew,1,0.6,,\n"
    (tmp_path / "tables/transfer_curves.csv").write_text(text)
    page = read(report.write(tmp_path))
    assert page.sections == ["transfer"]
    low, high, line = json.loads(page.data["transfer-curves-data"])["data"]
    assert low["y"] == high["y"] == line["y"] == [0.1, 0.6]


def test_best_of_every_row_is_marked(page: Page):
    r2 = [0.929 + 0.011 - 0.17 * j for j in range(4)]
    tau = [0.8 * 0.929 - 0.1 * j for j in range(4)]  # the same with both probes: both are marked
    expected = [f"{x:.3f}" for j in range(4) for x in (r2[j], tau[j], tau[j])] + [f"{0.9 * 0.929:.3f}"]
    assert page.best == expected


def test_headline_compares_with_baselines(page: Page):
    for text in (
        "0.926 average 0.836, noise 0.3 (nearest in distance from the zoo) 0.924",
        "same probe: statistics 0.892, flat 0.750, hyper-parameters 0.310",
        "A simple baseline is more accurate at epoch 0, but nearer to the training models: noise 0.1 0.941 at distance "
        "0.31, against generated 0.926 at distance 0.91.",
        "After 1 epoch generated is ahead of random after 5 epochs: 0.951 against 0.912.",
        "The learned embedding reads test accuracy best (R²): sane with boosting 0.940, against statistics with "
        "boosting 0.903.",
    ):
        assert text in page.words
    assert 4 <= sum("card" in (a.get("class") or "").split() for _, a in page.tags) <= 6


def test_page_says_when_simple_baselines_win(tmp_path: Path):
    tables = tmp_path / "tables"
    tables.mkdir()
    generation = {"source": ["generated", "average", "random"], "epoch": [0, 0, 0]}
    accuracy = {"accuracy_mean": [0.8, 0.81, 0.1], "accuracy_std": [0.1, 0.0, 0.1]}
    pl.DataFrame(generation | accuracy).write_csv(tables / "generation.csv")
    scores = {"representation": ["sane", "statistics"], "probe": "ridge", "target": "metric.test_accuracy"}
    pl.DataFrame(scores | {"metric": "r2", "value": [0.5, 0.6]}).write_csv(tables / "properties.csv")
    page = read(report.write(tmp_path))
    assert "A simple baseline wins at epoch 0: average 0.810, against generated 0.800." in page.words
    assert "A simple baseline wins at reading test accuracy (R²): statistics with ridge 0.600" in page.words
    assert [a["class"] for tag, a in page.tags if tag == "li"] == ["loses", "loses"]


def test_text_is_escaped_in_html_and_in_figures(run: Path, page: Page):
    scripts = [a for tag, a in page.tags if tag == "script"]
    assert all(a.get("type") == "application/json" for a in scripts[:-2]), "only plotly and our own script run"
    assert "alert('x')" not in page.words, "the name is in figures only"
    raw = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert not any("<" in text for text in page.data.values()), "no tag can open or close inside the data"
    hover = json.loads(page.data["map-data"])["data"][0]["customdata"]
    assert hover[0][0] == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&lt;b&gt;&amp;"


def test_sources_with_any_name(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    frame = pl.DataFrame({"source": [NASTY, NASTY, "007"], "epoch": [0, 1, 0]})
    frame = frame.with_columns(accuracy_mean=pl.Series([0.5, None, 0.7]), accuracy_std=float("nan"))
    frame.write_csv(tmp_path / "tables" / "generation.csv")
    page = read(report.write(tmp_path))
    assert NASTY in page.cells
    assert "007" in page.cells
    assert page.sections == ["generating-networks"]
    assert page.data == {}, "one epoch is no curve"


@pytest.mark.parametrize("name", SECTION_OF)
def test_one_table_alone_makes_one_section(run: Path, tmp_path: Path, name: str):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / f"{name}.csv").write_bytes((run / "tables" / f"{name}.csv").read_bytes())
    page = read(report.write(tmp_path))
    assert page.sections == [SECTION_OF[name]]
    shown = sum(tag == "figure" for tag, _ in page.tags)
    filled = len(page.data) + sum(tag == "table" for tag, _ in page.tags)
    assert shown == filled > 0, "no frame is empty"


def test_tables_without_rows_or_numbers_are_left_out(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "tables/map.csv").write_text("model,step,x,y,metric.test_accuracy\n")
    (tmp_path / "tables/networks.csv").write_text("source,epoch,accuracy,distance_ratio\ngenerated,0,NaN,\n")
    page = read(report.write(tmp_path))
    assert page.sections == []
    assert "figure" not in [tag for tag, _ in page.tags]


def test_checkpoints_that_diverged_have_no_colour(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    rows = "a,0,0,0,0.1,0.01\na,1,1,1,0.5,0.01\nb,0,0,1,inf,NaN\nb,1,1,0,NaN,0.1\n"
    text = "model,step,x,y,metric.test_accuracy,config.learning_rate\n" + rows
    (tmp_path / "tables/map.csv").write_text(text)
    figure = json.loads(read(report.write(tmp_path)).data["map-data"])
    assert figure["data"][0]["marker"]["color"] == [0.1, 0.5, None, None]
    assert figure["choices"]["learning rate"]["color"] == [-2, -2, None, -1]


def test_bare_zoo_and_zoo_in_a_run(tmp_path: Path):
    make_zoo(tmp_path / "zoo")
    for folder, out in ((tmp_path / "zoo", None), (tmp_path, tmp_path / "page.html")):
        path = report.write(folder, out)
        assert path == (out or folder / "report.html")
        page = read(path)
        assert page.sections == ["the-population", "how-it-was-made"]
        assert list(page.data) == ["zoo-accuracy-data", "training-data"]
        assert {"tiny zoo", "2 tensors, 8 parameters"} <= set(page.cells)
        assert "2 4 checkpoints, test accuracy from 0.100 to 0.900" in page.words
    bars = json.loads(page.data["zoo-accuracy-data"])["data"][0]
    filled = [x for x, count in zip(bars["x"], bars["y"], strict=True) for _ in range(count)]
    assert filled == pytest.approx([0.6, 0.9], abs=1 / figures.BINS), "the last checkpoint of each model"


def test_user_errors_are_one_sentence(tmp_path: Path):
    with pytest.raises(WeightspaceError, match="there is no folder"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(report.ReportError, match="holds no tables"):
        report.write(tmp_path)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "map.csv"
    table.write_text("model,step,x\na,1,2\n")
    with pytest.raises(report.ReportError, match="lacks the column 'y'; it has model, step, x"):
        report.write(tmp_path)
    table.write_text("model,step,x,y\na,1,2,three\n")
    with pytest.raises(report.ReportError, match="text in the column of numbers 'y'"):
        report.write(tmp_path)
    table.write_text("model,step,x,y\na,1,2,3,4,5\n")
    with pytest.raises(report.ReportError, match="cannot read the table"):
        report.write(tmp_path)
    table.unlink()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(report.ReportError, match="not valid JSON"):
        report.write(tmp_path)


def test_failed_write_leaves_the_old_page(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "report.html"
    out.write_text("old")

    def full_disk(path: Path, *_args: object, **_more: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(report.ReportError, match="No space left on device"):
        report.write(run, out)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("package", "call"), [("plotly", report.write), ("matplotlib", report.readme_picture)])
def test_missing_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, call):
    real = builtins.__import__

    def without(name: str, *args, **more):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'weightspace[plot]'")):
        call(run, tmp_path / "out")


def test_colours_belong_to_names():
    styles = figures.source_styles([*reversed(SOURCES), "something else"])
    assert next(iter(styles)) == "generated"
    assert styles["generated"].colour == figures.ACCENT
    assert sum(style.colour == figures.ACCENT for style in styles.values()) == 1
    assert len({(style.colour, style.symbol) for style in styles.values()}) == len(styles)
    assert figures.representation_styles(["statistics", "sane"])["sane"].colour == figures.ACCENT


def test_readme_picture(run: Path, tmp_path: Path):
    png = report.readme_picture(run, tmp_path / "picture.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    assert width > 3 * height
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/novelty.csv").write_text("source,distance_ratio_50\ngenerated,1\n")
    with pytest.raises(report.ReportError, match="to draw"):
        report.readme_picture(tmp_path, tmp_path / "none.png")
