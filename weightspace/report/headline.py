"""The top of the page: the most important numbers beside their baselines, and in words who wins.

Only values of the run's tables are compared; the sentences say so where a simple baseline wins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

import polars as pl

from weightspace.report import figures
from weightspace.report.figures import ACCURACY, Style, family, is_learned
from weightspace.report.markup import number
from weightspace.report.run import Run

COMMON_PROBE = "ridge"
SIMPLE = ("average", "noise", "random")
"""Kinds of sources that need no learned generator, so that a generator should beat them."""


@dataclass(frozen=True)
class _Card:
    label: str
    value: str
    note: str
    learned: bool = True


def headline(run: Run, title: str, sources: Mapping[str, Style], representations: Mapping[str, Style]) -> str:
    """Title, cards and verdicts; a card or a verdict whose table is missing is left out."""
    tables = run.tables
    shown = [
        _population_card(run),
        _reading_card(tables.get("properties"), representations),
        *_generation_cards(tables, sources),
        _novelty_card(tables.get("novelty"), sources),
        _ensemble_card(tables.get("ensembles"), sources),
    ]
    cards = "".join(
        f'<div class="card{" learned" if c.learned else ""}"><span>{escape(c.label)}</span>'
        f"<b>{escape(c.value)}</b><small>{escape(c.note)}</small></div>"
        for c in shown
        if c is not None
    )
    verdicts = [*_reading_verdicts(tables.get("properties")), *_generation_verdicts(tables, sources)]
    lines = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in verdicts)
    lead = "A population of trained networks, what can be read from their weights, and what can be made from them."
    return (
        f'<header id="headline"><h1>{escape(title)}</h1><p class="lead">{lead}</p>'
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + (f'<ul class="verdicts">{lines}</ul>' if lines else "")
        + "</header>"
    )


def _population_card(run: Run) -> _Card | None:
    frame = run.checkpoints
    if frame is None:
        return None
    note = f"{number(frame.height)} checkpoints"
    if ACCURACY in frame.columns and (known := frame[ACCURACY].drop_nulls().drop_nans()).len():
        low, high = known.min(), known.max()
        note += f", test accuracy from {number(low)} to {number(high)}"
    return _Card("models in the zoo", number(frame["model"].n_unique()), note, learned=False)


def common_probe(scores: pl.DataFrame) -> str:
    """Name the probe with which representations are compared: ridge regression, else the first one."""
    probes = list(dict.fromkeys(scores["probe"]))
    return COMMON_PROBE if COMMON_PROBE in probes else probes[0]


def accuracy_r2(properties: pl.DataFrame | None) -> pl.DataFrame:
    """Select R² of test accuracy: representation, probe, value."""
    if properties is None:
        return pl.DataFrame(schema={"representation": pl.String, "probe": pl.String, "value": pl.Float64})
    wanted = (pl.col("target") == ACCURACY) & (pl.col("metric") == "r2") & pl.col("value").is_finite()
    return properties.filter(wanted).select("representation", "probe", "value")


def _reading_card(properties: pl.DataFrame | None, styles: Mapping[str, Style]) -> _Card | None:
    scores = accuracy_r2(properties)
    if not scores.height:
        return None
    probe = common_probe(scores)
    value = {name: v for name, p, v in scores.iter_rows() if p == probe}
    learned = [name for name in styles if is_learned(name) and name in value]
    if not learned:
        return None
    others = ", ".join(f"{name} {number(value[name])}" for name in styles if name in value and name != learned[0])
    label = f"R² of test accuracy read from weights ({learned[0]}, {probe})"
    return _Card(label, number(value[learned[0]]), f"same probe: {others}" if others else "")


def _generated(sources: Iterable[str]) -> str | None:
    return next((s for s in sources if family(s, figures.SOURCE_FAMILIES) == "generated"), None)


def _by_source(frame: pl.DataFrame | None, column: str) -> dict[str, float]:
    if frame is None:
        return {}
    known = frame.drop_nulls(column).filter(pl.col(column).is_finite())
    return dict(zip(known["source"], known[column], strict=True))


def _accuracies(generation: pl.DataFrame | None, epoch: float) -> dict[str, float]:
    return {} if generation is None else _by_source(generation.filter(pl.col("epoch") == epoch), "accuracy_mean")


def _of_kind(values: Mapping[str, float], *kinds: str) -> dict[str, float]:
    return {name: v for name, v in values.items() if family(name, figures.SOURCE_FAMILIES) in kinds}


def _generation_cards(tables: Mapping[str, pl.DataFrame], sources: Mapping[str, Style]) -> list[_Card]:
    generation, name, cards = tables.get("generation"), _generated(sources), []
    start = _accuracies(generation, 0.0)
    if name in start:
        average, noise = _of_kind(start, "average"), _of_kind(start, "noise")
        notes = []
        if average:
            best = max(average, key=average.__getitem__)
            notes.append(f"{best} {number(average[best])}")
        distance = _by_source(tables.get("novelty"), "distance_ratio_50")
        near = [s for s in noise if s in distance] if name in distance else []
        if near:
            nearest = min(near, key=lambda s: abs(distance[s] - distance[name]))
            notes.append(f"{nearest} (nearest in distance from the zoo) {number(noise[nearest])}")
        elif noise:
            best = max(noise, key=noise.__getitem__)
            notes.append(f"{best} {number(noise[best])}")
        notes += [f"{s} {number(v)}" for s, v in _of_kind(start, "held-out").items()]
        cards.append(_Card(f"test accuracy of {name} networks, epoch 0", number(start[name]), ", ".join(notes)))
    tuned = _first_and_last(generation, name)
    if tuned is not None:
        first, last = tuned
        after, trained = _accuracies(generation, first)[name or ""], _of_kind(_accuracies(generation, last), "random")
        note = "; ".join(f"{s} after {_epochs(last)}: {number(v)}" for s, v in trained.items())
        cards.append(_Card(f"{name}, fine-tuned for {_epochs(first)}", number(after), note))
    return cards


def _first_and_last(generation: pl.DataFrame | None, name: str | None) -> tuple[float, float] | None:
    """Find the first epoch at which fine-tuned generated networks were measured, and the last epoch of all."""
    if generation is None or name is None:
        return None
    epochs = generation.filter((pl.col("source") == name) & (pl.col("epoch") > 0))["epoch"]
    known = [e for e in epochs.sort() if name in _accuracies(generation, e)]
    return (known[0], generation["epoch"].drop_nulls().sort()[-1]) if known else None


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"


def _novelty_card(novelty: pl.DataFrame | None, sources: Mapping[str, Style]) -> _Card | None:
    distance, name = _by_source(novelty, "distance_ratio_50"), _generated(sources)
    if name not in distance:
        return None
    others = ", ".join(f"{s} {number(v, 2)}" for s, v in _of_kind(distance, "held-out", "average").items())
    note = "1 is the usual distance between zoo models" + (f"; {others}" if others else "")
    return _Card(f"distance of {name} networks to the nearest training model", number(distance[name], 2), note)


def _ensemble_card(ensembles: pl.DataFrame | None, sources: Mapping[str, Style]) -> _Card | None:
    name = _generated(sources)
    if ensembles is None or name not in set(ensembles["source"]):
        return None
    largest = ensembles.sort("members").group_by("source", maintain_order=True).last()
    value, members = _by_source(largest, "accuracy"), _by_source(largest, "members")
    if name not in value:
        return None
    notes = [f"{s} {number(v)} ({members[s]:g})" for s, v in value.items() if s != name]
    single = _by_source(ensembles.filter(pl.col("members") == 1), "accuracy")
    if name in single and members[name] > 1:
        notes.insert(0, f"one member {number(single[name])}")
    return _Card(f"accuracy of an ensemble of {members[name]:g} {name} networks", number(value[name]), ", ".join(notes))


def _reading_verdicts(properties: pl.DataFrame | None) -> list[tuple[str, str]]:
    scores = accuracy_r2(properties).sort("value", descending=True)
    best: dict[bool, tuple[float, str]] = {}
    for name, probe, value in scores.iter_rows():
        best.setdefault(is_learned(name), (value, f"{name} with {probe} {number(value)}"))
    if len(best) < 2:
        return []
    learned, simple = best[True], best[False]
    if simple[0] > learned[0]:
        return [("loses", f"A simple baseline wins at reading test accuracy (R²): {simple[1]}, against {learned[1]}.")]
    return [("wins", f"The learned embedding reads test accuracy best (R²): {learned[1]}, against {simple[1]}.")]


def _generation_verdicts(tables: Mapping[str, pl.DataFrame], sources: Mapping[str, Style]) -> list[tuple[str, str]]:
    generation, name, verdicts = tables.get("generation"), _generated(sources), []
    if name is None:
        return []
    start, distance = _accuracies(generation, 0.0), _by_source(tables.get("novelty"), "distance_ratio_50")

    def told(source: str) -> str:
        far = f" at distance {number(distance[source], 2)}" if source in distance else ""
        return f"{source} {number(start[source])}{far}"

    simple = _of_kind(start, *SIMPLE)
    if name in start and simple:
        better = [s for s in sources if s in simple and simple[s] > start[name]]
        nearer = [s for s in better if name in distance and s in distance and distance[s] < distance[name]]
        outright = [s for s in better if s not in nearer]
        if outright:
            text = f"A simple baseline wins at epoch 0: {', '.join(map(told, outright))}, against {told(name)}."
            verdicts.append(("loses", text))
        if nearer:
            text = "A simple baseline is more accurate at epoch 0, but nearer to the training models: "
            verdicts.append(("loses", f"{text}{', '.join(map(told, nearer))}, against {told(name)}."))
        if not better:
            best = max(simple, key=simple.__getitem__)
            text = (
                f"At epoch 0 the networks of {name!r} beat every simple baseline: {told(name)}, against {told(best)}."
            )
            verdicts.append(("wins", text))
    tuned = _first_and_last(generation, name)
    trained = _of_kind(_accuracies(generation, tuned[1]), "random") if tuned else {}
    if tuned and trained:
        after, best = _accuracies(generation, tuned[0])[name], max(trained, key=trained.__getitem__)
        pair = f"{number(after)} against {number(trained[best])}"
        if after > trained[best]:
            text = f"After {_epochs(tuned[0])} {name} is ahead of {best} after {_epochs(tuned[1])}: {pair}."
        else:
            text = f"After {_epochs(tuned[0])} {name} is not ahead of {best} after {_epochs(tuned[1])}: {pair}."
        verdicts.append(("wins" if after > trained[best] else "loses", text))
    novelty = tables.get("novelty")
    if novelty is not None and "verdict" in novelty.columns:
        said = novelty.filter(pl.col("source") == name)["verdict"].drop_nulls()
        verdicts += [("told", f"Novelty of {name}: {text}.".replace("..", ".")) for text in said if text]
    return verdicts
