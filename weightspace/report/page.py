"""The page of a run: headline, population, reading properties, layers, generating networks, transfer, how it was made.

Everything is formatted from the run's tables; a part whose table is missing is left out.
"""

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import polars as pl

from weightspace.errors import MissingExtra
from weightspace.report import figures
from weightspace.report.figures import ACCURACY, Style, family, is_learned, plain_name
from weightspace.report.headline import accuracy_r2, common_probe, headline
from weightspace.report.markup import MISSING, Cell, Row, figure_block, number, pair, section, table
from weightspace.report.run import ReportError, Run, read_run

NOVELTY_HEADS = {
    "n": "n",
    "distance_ratio_05": "distance 5 %",
    "distance_ratio_50": "distance median",
    "distance_ratio_95": "distance 95 %",
    "z_u": "Z_U",
    "max_iou": "max IoU",
    "pair_iou": "pair IoU",
    "disagreement": "disagreement",
    "sd_ratio": "spread ratio",
    "nap_50": "novel & good .5",
    "nap_75": "novel & good .75",
    "nap_100": "novel & good 1",
}
TRANSFER_HEADS = {
    "learning_rate": "learning rate",
    "start": "start",
    "final": "final",
    "area": "mean over epochs",
    "epochs_to_threshold": "epochs to threshold",
    "effect": "better than reference",
    "p_value": "p",
}


def write(run: Path, out: Path | None = None) -> Path:
    """Write one self-contained HTML page about a run folder or a zoo folder.

    Args:
        run: Folder with any of tables/, zoo/, run.json and a fitted encoder, or a zoo folder.
        out: File to write, replaced if it exists; `report.html` in the folder if `None`.
    Returns:
        The file written.
    Raises:
        ReportError: There is nothing to show, a table cannot be read, or the page cannot be written.
        MissingExtra: plotly is not installed.

    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> _ = (folder / "run.json").write_text('{"command": "weightspace demo"}')
    >>> write(folder).name
    'report.html'
    """
    run, plotly = Path(run), _plotly_script()
    out = run / "report.html" if out is None else Path(out)
    page = _page(read_run(run), plotly)
    beside = out.with_name(out.name + ".part")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ReportError(f"cannot write the report {out} ({error.strerror}); give another file") from error
    return out


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtra(
            "the report needs plotly, which is not installed: pip install 'weightspace[plot]'"
        ) from error
    return str(get_plotlyjs())


def _page(run: Run, plotly: str) -> str:
    sources = (table["source"] for table in run.tables.values() if "source" in table.columns)
    scores = (run.tables[n]["representation"] for n in ("properties", "predictions") if n in run.tables)
    source_styles = figures.source_styles(str(name) for column in sources for name in column)
    representation_styles = figures.representation_styles(str(name) for column in scores for name in column)
    title = run.path.resolve().name
    sections = [
        headline(run, title, source_styles, representation_styles),
        section("The population", _population(run)),
        section("Reading properties", _reading(run.tables, representation_styles)),
        section("Layer by layer", _layers(run.tables)),
        section("Generating networks", _generating(run.tables, source_styles)),
        section("Transfer", _transfer(run.tables, source_styles)),
        section("How it was made", _making(run)),
    ]
    room = files("weightspace.report")
    return Template(room.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=room.joinpath("style.css").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
        plotly=plotly,
    )


def _population(run: Run) -> list[str]:
    places, frame = run.tables.get("map"), run.checkpoints
    if frame is not None and ACCURACY not in frame.columns:
        frame = None
    return [
        figure_block(
            "map",
            "Map of the population",
            "Each dot is a checkpoint and near dots have similar weights: see whether colours change smoothly, "
            "which means that the quantity can be read from the weights.",
            figures.population_map(places) if places is not None else None,
        ),
        pair(
            figure_block(
                "zoo-accuracy",
                "How good the models are",
                "A useful zoo holds bad and good models: look for a spread, not a single peak.",
                figures.zoo_histogram(frame) if frame is not None else None,
            ),
            figure_block(
                "training",
                "How they were trained",
                "The bands hold the middle half and nine tenths of the models, the thin lines are single ones: "
                "see how early good and bad runs part.",
                figures.training_curves(frame) if frame is not None else None,
            ),
        ),
    ]


def _reading(tables: Mapping[str, pl.DataFrame], styles: Mapping[str, Style]) -> list[str]:
    properties, predictions = tables.get("properties"), tables.get("predictions")
    parts = []
    if properties is not None:
        parts.append(
            figure_block(
                "properties",
                "What can be read from weights",
                "Longer bars are better, 1 is perfect and 0 is guessing the mean (worse than -0.25 is cut off): "
                "the learned embedding should stand above the simple ones.",
                figures.property_bars(properties, styles),
            )
        )
    if predictions is not None:
        accuracy = predictions.filter(pl.col("target") == ACCURACY)
        if accuracy.height:
            probe = common_probe(accuracy)
            accuracy = accuracy.filter(pl.col("probe") == probe)
            shown = [s for s in styles if s in set(accuracy["representation"])]
            learned = [s for s in shown if is_learned(s)][:1]
            simple = [s for s in shown if not is_learned(s)][:1]
            value = {name: v for name, p, v in accuracy_r2(properties).iter_rows() if p == probe}
            parts.append(
                pair(
                    *(
                        figure_block(
                            f"predicted-{i}",
                            f"{name}, {probe}" + (f": R² {number(value[name])}" if name in value else ""),
                            "Test models, never seen in fitting: the nearer to the dashed line, the better the guess.",
                            figures.predicted_against_true(
                                accuracy.filter(pl.col("representation") == name), styles[name]
                            ),
                        )
                        for i, name in enumerate(learned + simple)
                    )
                )
            )
    return [*parts, *(_property_tables(properties, styles) if properties is not None else [])]


def _property_tables(properties: pl.DataFrame, styles: Mapping[str, Style]) -> list[str]:
    counts = [f"{c[2:]} {number(int(properties[c][0]))}" for c in ("n_train", "n_test") if _has_numbers(properties, c)]
    split = f" Checkpoints: {', '.join(counts)}." if counts else ""
    return [
        _score_table(
            properties.filter(pl.col("metric").is_in(["r2", "kendall_tau"])),
            {"r2": "R²", "kendall_tau": "Kendall τ"},
            styles,
            "Numbers",
            "R² measures the values and Kendall's τ the order; the best of each row is marked, ties all." + split,
        ),
        _score_table(
            properties.filter(pl.col("metric").is_in(["accuracy", "majority"])),
            {"accuracy": "accuracy"},
            styles,
            "Categories",
            "Share of test checkpoints whose category is guessed right: it counts for something only above the share "
            "of the majority class." + split,
        ),
    ]


def _layers(tables: Mapping[str, pl.DataFrame]) -> list[str]:
    layers = tables.get("layers")
    if layers is None:
        return []
    styles = figures.target_styles(layers["target"])
    blocks = (
        figure_block(
            f"layers-{i}",
            f"What each layer tells: {name}",
            "A probe on each layer alone, at the right on all of them (worse than -0.1 is drawn as that): see which "
            "layer knows a property, and whether all together know more than the best one.",
            figures.layer_lines(layers.filter(pl.col("representation") == name), styles),
        )
        for i, name in enumerate(dict.fromkeys(layers["representation"]))
    )
    return [pair(*blocks)]


def _has_numbers(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame[column].dtype.is_numeric() and frame[column][0] is not None


def _score_table(
    scores: pl.DataFrame, metrics: Mapping[str, str], styles: Mapping[str, Style], title: str, caption: str
) -> str:
    measured = scores.filter(pl.col("metric").is_in(list(metrics)))
    probes = list(dict.fromkeys(measured["probe"]))
    pairs = set(measured.select("representation", "probe").iter_rows())
    columns = [(name, probe) for name in styles for probe in probes if (name, probe) in pairs]
    lookup = {
        tuple(key): value
        for *key, value in scores.select("target", "metric", "representation", "probe", "value").iter_rows()
    }
    majority = {t: v for t, m, v in scores.select("target", "metric", "value").iter_rows() if m == "majority"}
    rows = []
    for target in dict.fromkeys(measured["target"]):
        for metric, label in metrics.items():
            found = [lookup.get((target, metric, *column)) for column in columns]
            texts = [number(value) for value in found]
            known = [value for value in found if value is not None and value == value]
            if not known:
                continue
            best = number(max(known))
            cells = [Cell(plain_name(target), "name"), Cell(label, "name")]
            if majority:
                cells.append(Cell(number(majority.get(target))))
            rows.append(Row([*cells, *(Cell(text, best=text == best) for text in texts)]))
    lead = ["target", "measure", *(["majority class"] if majority else [])]
    names = [(name, sum(c[0] == name for c in columns)) for name in dict.fromkeys(c[0] for c in columns)]
    heads = [
        [*(("", 1) for _ in lead), *names],
        [*((text, 1) for text in lead), *((probe, 1) for _, probe in columns)],
    ]
    return table(title, caption, heads, rows)


def _generating(tables: Mapping[str, pl.DataFrame], styles: Mapping[str, Style]) -> list[str]:
    networks, generation = tables.get("networks"), tables.get("generation")
    novelty, ensembles = tables.get("novelty"), tables.get("ensembles")
    has_distance = networks is not None and _is_number(networks, "distance_ratio")
    return [
        figure_block(
            "epoch0",
            "Before any training",
            "Each row is a way to make networks and shows how good they are as made: compare the first row with the "
            "simple ways below it.",
            figures.epoch0_histograms(networks, styles) if networks is not None else None,
        ),
        figure_block(
            "distance",
            "Good, or only near?",
            "Copies of training models are good but near (left); a generator is worth something where it lies above "
            "the line of noisy copies at the same distance. Click a name to hide it.",
            figures.accuracy_against_distance(networks, styles) if has_distance and networks is not None else None,
        ),
        figure_block(
            "fine-tuning",
            "As a start for training",
            "Mean of the networks of a source and one standard deviation around it, all with the same optimiser and "
            "schedule: a good start is high at the left and stays ahead. Click a name to show or hide it.",
            figures.fine_tuning_curves(generation, styles) if generation is not None else None,
        ),
        _generation_table(generation, styles) if generation is not None else "",
        _novelty_table(novelty, styles) if novelty is not None else "",
        figure_block(
            "ensembles",
            "Together",
            "Accuracy of networks that vote: a curve that rises says that they err in different ways, a flat one that "
            "they are copies of each other.",
            figures.ensemble_curves(ensembles, styles) if ensembles is not None else None,
        ),
    ]


def _transfer(tables: Mapping[str, pl.DataFrame], styles: Mapping[str, Style]) -> list[str]:
    curves, summary = tables.get("transfer_curves"), tables.get("transfer_summary")
    return [
        figure_block(
            "transfer-curves",
            "As a start for a task",
            "Mean of the networks of a source and its 95 % interval, each source with its own learning rate: a good "
            "start is high at the left, and worth something if random initialisation has not caught up at the right. "
            "Click a name to show or hide it.",
            figures.transfer_curves(curves, styles) if curves is not None else None,
        ),
        _transfer_table(summary, styles) if summary is not None else "",
    ]


def _transfer_table(summary: pl.DataFrame, styles: Mapping[str, Style]) -> str:
    columns = {c: head for c, head in TRANSFER_HEADS.items() if _is_number(summary, c)}
    rows = []
    for name in styles:
        for row in summary.filter(pl.col("source") == name).iter_rows(named=True):
            cell, learned = _source_cell(name)
            rows.append(Row([cell, *(Cell(_transfer_number(c, row[c])) for c in columns)], learned))
    caption = (
        "Test accuracy before, after and on average over training; the first measured epoch at which the mean reaches "
        "what random initialisation ends with; and at the end the chance that a network of the source is better than a "
        "randomly initialised one, with the p-value of that (Mann-Whitney)."
    )
    return table("Transfer in numbers", caption, [[("source", 1), *((head, 1) for head in columns.values())]], rows)


def _transfer_number(column: str, value: float | None) -> str:
    if value is None or value != value:
        return MISSING
    if column == "p_value" and value < 0.001:
        return "< 0.001"
    return f"{value:g}" if column in ("learning_rate", "epochs_to_threshold") else number(value)


def _is_number(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame[column].dtype.is_numeric()


def _source_cell(name: str) -> tuple[Cell, bool]:
    return Cell(name, "name"), family(name, figures.SOURCE_FAMILIES) == "generated"


def _generation_table(generation: pl.DataFrame, styles: Mapping[str, Style]) -> str:
    epochs = [e for e in generation["epoch"].unique().sort() if e is not None]
    first = {"accuracy_min": "min", "accuracy_max": "max", "nll": "NLL", "ece": "ECE"}
    extra = [c for c in first if _is_number(generation, c)]
    has_count = _is_number(generation, "n")
    rows = []
    for name in styles:
        at = {r["epoch"]: r for r in generation.filter(pl.col("source") == name).iter_rows(named=True)}
        if not at:
            continue
        cell, learned = _source_cell(name)
        cells = [cell]
        if has_count:
            count = next(iter(at.values()))["n"]
            cells.append(Cell(MISSING if count is None else number(int(count))))
        for i, epoch in enumerate(epochs):
            row = at.get(epoch, {})
            mean = number(row.get("accuracy_mean"))
            cells.append(Cell(f"{mean} ± {number(row.get('accuracy_std'))}" if mean != MISSING else mean))
            cells += [Cell(number(row.get(c))) for c in extra if i == 0]
        rows.append(Row(cells, learned))
    heads = [("source", 1), *([("n", 1)] if has_count else [])]
    for i, epoch in enumerate(epochs):
        heads += [(f"epoch {epoch:g}", 1), *((first[c], 1) for c in extra if i == 0)]
    caption = "Test accuracy, mean ± standard deviation over networks, as made and after fine-tuning"
    caption += f"; the columns behind epoch {epochs[0]:g} belong to it." if extra and epochs else "."
    return table("Accuracy of generated networks and baselines", caption, [heads], rows)


def _novelty_table(novelty: pl.DataFrame, styles: Mapping[str, Style]) -> str:
    columns = [c for c in NOVELTY_HEADS if _is_number(novelty, c)]
    verdict = "verdict" in novelty.columns
    rows = []
    for name in styles:
        for row in novelty.filter(pl.col("source") == name).iter_rows(named=True):
            cell, learned = _source_cell(name)
            cells = [cell]
            for column in columns:
                value = row[column]
                if column == "n" and value is not None:
                    cells.append(Cell(number(int(value))))
                else:
                    cells.append(Cell(number(value, 1 if column == "z_u" else 2)))
            if verdict:
                cells.append(Cell(row["verdict"] or MISSING, "words"))
            rows.append(Row(cells, learned))
    heads = [("source", 1), *((NOVELTY_HEADS[c], 1) for c in columns), *([("verdict", 1)] if verdict else [])]
    caption = (
        "Distances are to the nearest training model, in units of the usual distance between zoo models; compare with "
        "the held-out models: far below them is copying (Z_U much below 0), far above is noise."
    )
    return table("New, or copied?", caption, [heads], rows)


def _making(run: Run) -> list[str]:
    return [
        _facts_table("The run", "Enough to repeat it: command, seed, machine, versions and seconds.", run.facts),
        _facts_table("The zoo", "What the header of the zoo says.", run.zoo_facts),
        figure_block(
            "history",
            "Training of the encoder",
            "Both losses should fall; a validation loss that turns upwards means that it learns the training models by "
            "heart.",
            figures.history_curves(run.history) if run.history is not None else None,
        ),
    ]


def _facts_table(title: str, caption: str, facts: Mapping[str, object]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td class="words">{escape(value)}</td></tr>'
        for key, value in _flat(facts)
    )
    if not rows:
        return ""
    return (
        f"<figure><h3>{title}</h3><figcaption>{caption}</figcaption>"
        f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div></figure>'
    )


def _flat(facts: Mapping[str, object], before: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as lines; a list of objects is only counted, as layouts have hundreds of entries."""
    for key, value in facts.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            yield name, f"{len(value)} entries"
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, float):
            yield name, f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        elif value is not None:
            yield name, str(value)
