"""Figures of the page, as plain plotly dictionaries.

Colours belong to names, so that a source looks the same in all of them.
A function returns `None` when there is nothing to draw. Colours of text, grid and background are the page's: they
follow the reader's light or dark mode.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from math import log10

import numpy as np
import polars as pl

Figure = dict[str, object]

ACCENT = "#d55e00"
ACCENTS = (ACCENT, "#e69f00", "#a34400")
OTHERS = ("#7a8f3c", "#6f6fb5", "#a8765b", "#5aa0a8", "#94778b")
SOURCE_FAMILIES = {
    "generated": ACCENT,
    "average": "#2f9e7d",
    "noise": "#3f7fb8",
    "random": "#8b8f96",
    "reconstruction": "#c983ab",
    "training": "#b3983a",
    "held-out": "#8e6fb8",
}
"""Colour of each kind of generated network or baseline, in the order in which they are shown."""
REPRESENTATION_FAMILIES = {"statistic": "#3f7fb8", "flat": "#2f9e7d", "hyper": "#8b8f96"}
"""Colour of each simple representation; any other one is learned and takes an accent colour."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")
ACCURACY = "metric.test_accuracy"
LAYER_METRICS = ("r2", "accuracy")
"""What is drawn of layers: R² of numbers, share of right classes of texts."""
LEAST_OF_LAYER = -0.1
"""Worse than this is drawn as this: R² has no lower end."""
SVG_POINTS = 3000
BINS = 40


@dataclass(frozen=True)
class Style:
    """How one name is drawn in every figure."""

    colour: str
    symbol: str
    dash: str


def family(name: str, families: Iterable[str]) -> str | None:
    """Find the kind that a name belongs to, `None` if it is of no known kind.

    Several names joined by " + " are of a known kind if all of them are.

    >>> family("noise 0.3", SOURCE_FAMILIES)
    'noise'
    >>> family("SANE + weight statistics", REPRESENTATION_FAMILIES) is None
    True
    """
    kinds = [next((kind for kind in families if kind in part), None) for part in name.lower().split(" + ")]
    return None if None in kinds else kinds[0]


def is_learned(representation: str) -> bool:
    """Whether a representation is none of the simple ones.

    >>> is_learned("sane"), is_learned("statistics")
    (True, False)
    """
    return family(representation, REPRESENTATION_FAMILIES) is None


def source_styles(sources: Iterable[str]) -> dict[str, Style]:
    """Styles of sources in the order in which they are shown: generated first, then kind by kind.

    >>> list(source_styles(["random", "noise 0.1", "generated"]))
    ['generated', 'noise 0.1', 'random']
    """
    return _styles(sources, SOURCE_FAMILIES, OTHERS, first=False)


def representation_styles(representations: Iterable[str]) -> dict[str, Style]:
    """Styles of representations in the order in which they are shown: learned first.

    >>> list(representation_styles(["flat", "sane"]))
    ['sane', 'flat']
    """
    return _styles(representations, REPRESENTATION_FAMILIES, ACCENTS, first=True)


def target_styles(targets: Iterable[str]) -> dict[str, Style]:
    """Styles of properties in the given order.

    >>> [style.dash for style in target_styles(["step", "metric.test_accuracy"]).values()]
    ['solid', 'solid']
    """
    colours = (ACCENT, *(c for kind, c in SOURCE_FAMILIES.items() if kind != "generated"))
    return {
        name: Style(colours[i % len(colours)], SYMBOLS[i % len(SYMBOLS)], DASHES[i // len(colours) % len(DASHES)])
        for i, name in enumerate(dict.fromkeys(targets))
    }


def _styles(
    names: Iterable[str], families: Mapping[str, str], others: Sequence[str], *, first: bool
) -> dict[str, Style]:
    kinds = list(families)
    unknown = -1 if first else len(kinds)
    rank = {n: kinds.index(k) if (k := family(n, families)) else unknown for n in dict.fromkeys(names)}
    spare, members, styles = cycle(others), dict.fromkeys(range(-1, len(kinds) + 1), 0), {}
    for name in sorted(rank, key=rank.__getitem__):
        kind, member = rank[name], members[rank[name]]
        members[kind] += 1
        colour = next(spare) if kind == unknown else _lighter(families[kinds[kind]], min(0.22 * member, 0.6))
        symbol = SYMBOLS[(kind + 1 + member) % len(SYMBOLS)] if first else SYMBOLS[(kind + member) % len(SYMBOLS)]
        styles[name] = Style(colour, symbol, DASHES[member % len(DASHES)])
    return styles


def _lighter(colour: str, share: float) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (225 - c) * share):02x}" for c in channels)


def _see_through(colour: str, alpha: float) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},{alpha})"


def plain_name(column: str) -> str:
    """Write a column as the page does.

    >>> plain_name("metric.test_accuracy"), plain_name("step")
    ('test accuracy', 'epoch')
    """
    name = column.replace("metric.", "").replace("config.", "").replace("_", " ")
    return "epoch" if name == "step" else name


def _values(series: pl.Series) -> list[float | None]:
    """Five significant digits; what is not finite is missing, as JSON has no word for it."""
    numbers = series.cast(pl.Float64).round_sig_figs(5)
    return [x if x is not None and np.isfinite(x) else None for x in numbers]


def _finite(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    if any(c not in frame.columns for c in columns):
        return frame.clear()
    return frame.filter(pl.all_horizontal(pl.col(c).cast(pl.Float64).is_finite().fill_null(False) for c in columns))


def _axis(title: str, **more: object) -> dict[str, object]:
    return {"title": {"text": escape(title)}, **more}


# 1. The population


def population_map(frame: pl.DataFrame) -> Figure | None:
    """Points of the 2-D map, with `choices`: the marker for each quantity that can give the colour.

    Args:
        frame: model, step, x, y and any of split, metric.test_accuracy, config.*.
    """
    frame = _finite(frame, "x", "y")
    wanted = [ACCURACY, "step", "config.activation", "config.learning_rate", "split"]
    choices = {plain_name(c): marker for c in wanted if c in frame.columns and (marker := _marker(frame[c], c))}
    if not choices:
        return None
    shown = ["model", "step", *(c for c in frame.columns if c.startswith(("metric.", "config.")) or c == "split")]
    lines = [f"{escape(plain_name(c))} %{{customdata[{i}]}}" for i, c in enumerate(shown)]
    points = {
        "type": "scattergl",
        "mode": "markers",
        "x": _values(frame["x"]),
        "y": _values(frame["y"]),
        "customdata": [[_hover_text(v) for v in row] for row in frame.select(shown).iter_rows()],
        "hovertemplate": "<br>".join(lines) + "<extra></extra>",
        "marker": next(iter(choices.values())),
    }
    layout = {
        "xaxis": {"showticklabels": False, "showgrid": False, "zeroline": False},
        "yaxis": {"showticklabels": False, "showgrid": False, "zeroline": False},
        "hovermode": "closest",
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "height": 540,
    }
    return {"data": [points], "layout": layout, "choices": choices}


def _hover_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _marker(series: pl.Series, column: str) -> dict[str, object] | None:
    bar: dict[str, object] = {"title": {"text": plain_name(column)}, "thickness": 12, "len": 0.8, "outlinewidth": 0}
    look = {"size": 6, "opacity": 0.85, "line": {"width": 0.3, "color": "#8b8f96"}, "showscale": True, "colorbar": bar}
    if series.dtype.is_numeric():
        numbers = _values(series)
        known = [x for x in numbers if x is not None]
        if not known:
            return None
        if column == "config.learning_rate" and min(known) > 0:
            numbers = [None if x is None else round(log10(x), 4) for x in numbers]
            low, high = log10(min(known)), log10(max(known))
            ticks = [round(float(x), 4) for x in np.linspace(low, high, 5 if high > low else 1)]
            bar |= {"tickvals": ticks, "ticktext": [f"{10**x:.2g}" for x in ticks]}
        return look | {"color": numbers, "colorscale": "Viridis"}
    names = sorted(series.drop_nulls().cast(pl.String).unique())
    if not names:
        return None
    palette = [*(c for kind, c in SOURCE_FAMILIES.items() if kind != "generated"), *OTHERS]
    colours = [c for c, _ in zip(cycle(palette), names, strict=False)]
    edges = [i / len(names) for i in range(len(names) + 1)]
    steps = [[edges[i + j], colour] for i, colour in enumerate(colours) for j in (0, 1)]
    bar |= {"tickvals": list(range(len(names))), "ticktext": [escape(n) for n in names]}
    codes = [None if v is None else names.index(v) for v in series.cast(pl.String)]
    return look | {"color": codes, "colorscale": steps, "cmin": -0.5, "cmax": len(names) - 0.5}


def zoo_histogram(frame: pl.DataFrame) -> Figure | None:
    """How many models end at each test accuracy.

    Args:
        frame: model, step, metric.test_accuracy; one row a checkpoint.
    """
    last = _finite(frame, ACCURACY, "step").sort("step").group_by("model", maintain_order=True).last()
    if not last.height:
        return None
    counts, edges = np.histogram(last[ACCURACY].to_numpy(), bins=BINS, range=(0, 1))
    bars = {
        "type": "bar",
        "x": ((edges[1:] + edges[:-1]) / 2).round(4).tolist(),
        "y": counts.tolist(),
        "width": 1 / BINS,
        "marker": {"color": SOURCE_FAMILIES["noise"], "line": {"width": 0}},
        "hovertemplate": "accuracy about %{x:.2f}: %{y} models<extra></extra>",
    }
    layout = {"xaxis": _axis("test accuracy at the last checkpoint", range=[0, 1]), "yaxis": _axis("models")}
    return {"data": [bars], "layout": layout | {"bargap": 0.04, "height": 360, "showlegend": False}}


def training_curves(frame: pl.DataFrame, sample: int = 12) -> Figure | None:
    """Percentiles of test accuracy over the models at each epoch, and some models, evenly spaced by where they end.

    Args:
        frame: model, step, metric.test_accuracy; one row a checkpoint.
        sample: Number of models drawn as lines.
    """
    frame = _finite(frame, ACCURACY, "step").sort("step")
    if frame["step"].n_unique() < 2:
        return None
    colour = SOURCE_FAMILIES["noise"]
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    fan = frame.group_by("step", maintain_order=True).agg(pl.col(ACCURACY).quantile(q).alias(str(q)) for q in levels)
    steps = _values(fan["step"])
    data: list[dict[str, object]] = []
    for low, high, alpha, name in (("0.05", "0.95", 0.16, "5 to 95 %"), ("0.25", "0.75", 0.28, "25 to 75 %")):
        data += _band(steps, _values(fan[low]), _values(fan[high]), colour, alpha, name)
    last = frame.group_by("model", maintain_order=True).last().sort(ACCURACY)
    picks = np.unique(np.linspace(0, last.height - 1, sample).round().astype(int)).tolist()
    for i, model in enumerate(last["model"].gather(picks)):
        curve = frame.filter(pl.col("model") == model)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": _values(curve["step"]),
                "y": _values(curve[ACCURACY]),
                "line": {"color": "#8b8f96", "width": 1},
                "opacity": 0.75,
                "name": "single models",
                "legendgroup": "models",
                "showlegend": i == 0,
                "hovertemplate": f"{escape(str(model))}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
            }
        )
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": steps,
            "y": _values(fan["0.5"]),
            "line": {"color": colour, "width": 3},
            "name": "median",
        }
    )
    return {"data": data, "layout": {"xaxis": _axis("epoch"), "yaxis": _axis("test accuracy"), "height": 360}}


def _band(
    x: list[float | None],
    low: list[float | None],
    high: list[float | None],
    colour: str,
    alpha: float,
    name: str,
    group: str | None = None,
) -> list[dict[str, object]]:
    edge: dict[str, object] = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
    edge |= {"legendgroup": group or name}
    fill = {"fill": "tonexty", "fillcolor": _see_through(colour, alpha), "name": name, "showlegend": group is None}
    return [edge | {"y": low, "showlegend": False}, edge | {"y": high} | fill]


# 2. Reading properties


def property_bars(properties: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """R² of every numeric target, one bar a representation and probe.

    Args:
        properties: representation, probe, target, metric, value.
        styles: Of the representations, in order.
    """
    scores = _finite(properties.filter(pl.col("metric") == "r2"), "value")
    if not scores.height:
        return None
    targets = list(dict.fromkeys(scores["target"]))
    probes = list(dict.fromkeys(scores["probe"]))
    data: list[dict[str, object]] = []
    for name, style in styles.items():
        for i, probe in enumerate(probes):
            part = scores.filter((pl.col("representation") == name) & (pl.col("probe") == probe))
            value = dict(zip(part["target"], _values(part["value"]), strict=True))
            marker: dict[str, object] = {"color": style.colour, "line": {"color": style.colour, "width": 1}}
            if i:  # the colour says which representation, the hatching which probe
                marker["pattern"] = {"shape": "/x.-"[i % 4], "fillmode": "replace", "size": 5, "solidity": 0.45}
            bars: dict[str, object] = {"type": "bar", "name": escape(f"{name}, {probe}"), "marker": marker}
            bars |= {"x": [escape(plain_name(t)) for t in targets], "y": [value.get(t) for t in targets]}
            bars["hovertemplate"] = "%{x}: R² %{y:.3f}"
            if part.height:
                data.append(bars)
    low = min(0.0, max(-0.25, float(scores["value"].min() or 0)))  # type: ignore[arg-type]
    layout = {"barmode": "group", "bargap": 0.22, "yaxis": _axis("R² on test models", range=[low, 1.02])}
    return {"data": data, "layout": layout | {"height": 420}}


def layer_lines(layers: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """How well each layer alone tells each property, and all of them together, of one representation.

    Args:
        layers: layer, layer_number, target, metric, value; the first probe of each target is drawn.
        styles: Of the targets, in order.
    """
    shown = _finite(layers.filter(pl.col("metric").is_in(LAYER_METRICS)), "value")
    shown = shown.unique(["layer", "target"], keep="first", maintain_order=True)
    shown = shown.sort("layer_number", nulls_last=True, maintain_order=True)
    places = [escape(name) for name in shown["layer"].unique(maintain_order=True)]
    data: list[dict[str, object]] = []
    for target, style in styles.items():
        part = shown.filter(pl.col("target") == target)
        line: dict[str, object] = {"type": "scatter", "mode": "lines+markers", "name": escape(plain_name(target))}
        line |= {"x": [escape(name) for name in part["layer"]], "y": _values(part["value"].clip(LEAST_OF_LAYER))}
        line |= {"customdata": _values(part["value"]), "hovertemplate": "%{x}: %{customdata:.3f}"}
        line |= {"line": {"color": style.colour, "dash": style.dash, "width": 2}}
        if part.height:
            data.append(line | {"marker": {"symbol": style.symbol, "size": 8}})
    axis = {"type": "category", "categoryorder": "array", "categoryarray": places}
    measure = _axis("R², or share of right classes", range=[LEAST_OF_LAYER - 0.02, 1.02])
    return {"data": data, "layout": {"xaxis": axis, "yaxis": measure, "height": 420}} if data else None


def predicted_against_true(predictions: pl.DataFrame, style: Style) -> Figure | None:
    """Predicted against true values of one target, one representation and one probe.

    Args:
        predictions: true, predicted and, for the hover text, model and step.
        style: Of the representation.
    """
    frame = _finite(predictions, "true", "predicted")
    if not frame.height:
        return None
    true, predicted = _values(frame["true"]), _values(frame["predicted"])
    ends = [min(v for v in true if v is not None), max(v for v in true if v is not None)]
    names = [c for c in ("model", "step") if c in frame.columns]
    points = {
        "type": "scatter" if frame.height <= SVG_POINTS else "scattergl",
        "mode": "markers",
        "x": true,
        "y": predicted,
        "marker": {"color": style.colour, "size": 6, "opacity": 0.55},
        "customdata": [[_hover_text(v) for v in row] for row in frame.select(names).iter_rows()],
        "hovertemplate": "<br>".join(
            ["true %{x:.3f}", "predicted %{y:.3f}"]
            + [f"{plain_name(c)} %{{customdata[{i}]}}" for i, c in enumerate(names)]
        )
        + "<extra></extra>",
    }
    diagonal: Figure = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"}
    diagonal |= {"line": {"color": "#8b8f96", "width": 1, "dash": "dash"}}
    layout = {"xaxis": _axis("true test accuracy"), "yaxis": _axis("predicted test accuracy"), "showlegend": False}
    return {"data": [diagonal, points], "layout": layout | {"height": 380}}


# 3. Generating networks


def epoch0_histograms(networks: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """One row of bars a source: how its networks' test accuracies are spread before any training.

    Args:
        networks: source, epoch, accuracy.
        styles: Of the sources, in order.
    """
    frame = _finite(networks.filter(pl.col("epoch") == 0), "accuracy")
    shown = [s for s in styles if s in set(frame["source"])]
    if not shown:
        return None
    data: list[dict[str, object]] = []
    for row, name in enumerate(reversed(shown)):
        part = frame.filter(pl.col("source") == name)
        counts, edges = np.histogram(part["accuracy"].to_numpy(), bins=BINS, range=(0, 1))
        used = counts > 0
        bars: dict[str, object] = {"type": "bar", "base": row, "width": 1 / BINS, "name": escape(name)}
        bars |= {"x": ((edges[1:] + edges[:-1]) / 2)[used].round(4).tolist(), "customdata": counts[used].tolist()}
        bars |= {"y": (0.85 * counts[used] / counts.max()).round(4).tolist(), "marker": {"color": styles[name].colour}}
        bars["hovertemplate"] = f"{escape(name)}: %{{customdata}} of {part.height} at about %{{x:.2f}}<extra></extra>"
        data.append(bars)
    labels = [escape(name) for name in reversed(shown)]
    layout = {
        "barmode": "overlay",
        "showlegend": False,
        "xaxis": _axis("test accuracy at epoch 0", range=[0, 1]),
        "yaxis": {"tickvals": list(range(len(shown))), "ticktext": labels, "range": [-0.08, len(shown)]},
        "height": 110 + 44 * len(shown),
    }
    return {"data": data, "layout": layout}


def accuracy_against_distance(networks: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """Accuracy at epoch 0 against the distance to the nearest training model; the medians of the noise grid as a curve.

    Args:
        networks: source, epoch, accuracy, distance_ratio.
        styles: Of the sources, in order.
    """
    frame = _finite(networks.filter(pl.col("epoch") == 0), "accuracy", "distance_ratio")
    if not frame.height:
        return None
    data: list[dict[str, object]] = []
    for name, style in reversed(list(styles.items())):  # generated last: drawn on top
        part = frame.filter(pl.col("source") == name)
        points: dict[str, object] = {"type": "scatter", "mode": "markers", "name": escape(name)}
        points |= {"x": _values(part["distance_ratio"]), "y": _values(part["accuracy"]), "legendrank": 1000 - len(data)}
        points["marker"] = {"color": style.colour, "symbol": style.symbol, "size": 7, "opacity": 0.7}
        points["hovertemplate"] = "distance %{x:.2f}<br>accuracy %{y:.3f}"
        if part.height:
            data.append(points)
    noise = frame.filter(pl.col("source").is_in([s for s in styles if family(s, SOURCE_FAMILIES) == "noise"]))
    grid = noise.group_by("source").agg(pl.col("distance_ratio", "accuracy").median()).sort("distance_ratio")
    if grid.height > 1:
        curve: dict[str, object] = {"type": "scatter", "mode": "lines", "name": "noise, medians", "hoverinfo": "skip"}
        curve |= {"x": _values(grid["distance_ratio"]), "y": _values(grid["accuracy"]), "legendrank": 1001}
        data.append(curve | {"line": {"color": SOURCE_FAMILIES["noise"], "width": 2}})
    layout = {
        "xaxis": _axis("distance to the nearest training model (1 = usual distance between zoo models)"),
        "yaxis": _axis("test accuracy at epoch 0"),
        "hovermode": "closest",
        "height": 460,
    }
    return {"data": data, "layout": layout}


def fine_tuning_curves(generation: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """Mean accuracy over the epochs of fine-tuning, with a band of one standard deviation.

    Args:
        generation: source, epoch, accuracy_mean, accuracy_std.
        styles: Of the sources, in order.
    """
    spread = pl.col("accuracy_std").fill_nan(0).fill_null(0)
    low, high = pl.col("accuracy_mean") - spread, pl.col("accuracy_mean") + spread
    return _training_of_sources(generation, low, high, styles, "epochs of fine-tuning")


def transfer_curves(curves: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """Mean accuracy over the epochs of training on a task, with the 95 % interval of the mean.

    Args:
        curves: source, epoch, accuracy_mean, accuracy_low, accuracy_high.
        styles: Of the sources, in order.
    """
    low, high = (pl.col(f"accuracy_{end}").fill_nan(None).fill_null(pl.col("accuracy_mean")) for end in ("low", "high"))
    return _training_of_sources(curves, low, high, styles, "epochs of training on the task")


def _training_of_sources(
    table: pl.DataFrame, low: pl.Expr, high: pl.Expr, styles: Mapping[str, Style], title: str
) -> Figure | None:
    """The second and later source of a kind wait in the legend for a click, as all together hide each other."""
    frame = _finite(table, "epoch", "accuracy_mean").sort("epoch")
    frame = frame.with_columns(low.clip(0, 1).alias("low"), high.clip(0, 1).alias("high"))
    data: list[dict[str, object]] = []
    curves = [name for name in styles if frame.filter(pl.col("source") == name).height > 1]
    kinds = [family(name, SOURCE_FAMILIES) or name for name in curves]
    for i in reversed(range(len(curves))):  # generated last: drawn on top
        name, style = curves[i], styles[curves[i]]
        part = frame.filter(pl.col("source") == name)
        seen: dict[str, object] = {"visible": True if kinds.index(kinds[i]) == i else "legendonly"}
        epochs, shown_name = _values(part["epoch"]), escape(name)
        band = _band(
            epochs, _values(part["low"]), _values(part["high"]), style.colour, 0.14, shown_name, group=shown_name
        )
        data += [trace | seen for trace in band]
        line = seen | {"type": "scatter", "mode": "lines+markers", "name": shown_name}
        line |= {"x": epochs, "y": _values(part["accuracy_mean"])}
        line |= {"legendgroup": shown_name, "legendrank": 1000 - len(data)}
        line |= {"line": {"color": style.colour, "dash": style.dash, "width": 3 if style.colour == ACCENT else 2}}
        data.append(line | {"marker": {"symbol": style.symbol, "size": 8}, "hovertemplate": "epoch %{x}: %{y:.3f}"})
    layout = {"xaxis": _axis(title), "yaxis": _axis("test accuracy"), "height": 460}
    return {"data": data, "layout": layout} if data else None


def ensemble_curves(ensembles: pl.DataFrame, styles: Mapping[str, Style]) -> Figure | None:
    """Accuracy of the mean of softmax outputs over the number of members.

    Args:
        ensembles: source, members, accuracy.
        styles: Of the sources, in order.
    """
    frame = _finite(ensembles, "members", "accuracy").sort("members")
    data: list[dict[str, object]] = []
    for name, style in styles.items():
        part = frame.filter(pl.col("source") == name)
        line: dict[str, object] = {"type": "scatter", "mode": "lines+markers", "name": escape(name)}
        line |= {"x": _values(part["members"]), "y": _values(part["accuracy"])}
        line |= {"line": {"color": style.colour, "dash": style.dash, "width": 3 if style.colour == ACCENT else 2}}
        line |= {"marker": {"symbol": style.symbol, "size": 8}, "hovertemplate": "%{x} members: %{y:.3f}"}
        if part["members"].n_unique() > 1:
            data.append(line)
    ticks = [f"{m:g}" for m in frame["members"].unique().sort()]
    axis = _axis("members of the ensemble", type="log", tickvals=[float(t) for t in ticks], ticktext=ticks)
    layout = {"xaxis": axis, "yaxis": _axis("test accuracy of the ensemble"), "height": 380}
    return {"data": data, "layout": layout} if data else None


# 4. How it was made


def history_curves(history: pl.DataFrame) -> Figure | None:
    """Losses of the encoder over its epochs of training.

    Args:
        history: epoch and any columns whose name ends with `loss`.
    """
    losses = [c for c in history.columns if c.endswith("loss") and history[c].dtype.is_numeric()]
    data: list[dict[str, object]] = []
    for column, colour in zip(losses, cycle((SOURCE_FAMILIES["noise"], ACCENT, *OTHERS)), strict=False):
        part = _finite(history, "epoch", column)
        line: dict[str, object] = {"type": "scatter", "mode": "lines", "name": escape(plain_name(column))}
        line |= {"x": _values(part["epoch"]), "y": _values(part[column]), "line": {"color": colour, "width": 2}}
        if part.height > 1:
            data.append(line | {"hovertemplate": "epoch %{x}: %{y:.4g}"})
    layout = {"xaxis": _axis("epoch"), "yaxis": _axis("loss", type="log"), "height": 340}
    return {"data": data, "layout": layout} if data else None
