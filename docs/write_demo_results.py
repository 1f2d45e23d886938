"""Write the results page of the demo from a finished run: the page, its tables, its picture and the README's lines.

python docs/write_demo_results.py RUN [NAME]

RUN is what `weightspace demo --out RUN` wrote. Every sentence is derived from the run's numbers, none is kept from an
earlier run; running it twice changes nothing.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

import polars as pl

from weightspace import report
from weightspace.errors import WeightspaceError
from weightspace.report.figures import ACCURACY, is_learned, plain_name

TABLES = ("properties", "generation", "novelty", "ensembles")
GENERATED, RANDOM, HELDOUT = "generated", "random initialisation", "held-out"
AVERAGE, NOISE = "average of all", "noise at equal distance"
FIXED = (AVERAGE, "average of all, not aligned")
"""Sources that leave nothing to chance: a network for each activation, whatever the seed."""
MEMBERS = (1, 10, 50)
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def number(value: float | None, digits: int = 3) -> str:
    """A value as the page shows it; what does not exist is a dash."""
    return "–" if value is None or not isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; names to the left, numbers to the right."""
    names = {"representation", "probe", "source", "target", "verdict", "stage"}
    marks = [":---" if head in names else "---:" for head in heads]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, marks, *rows))


# ---- What the numbers say


def scores(properties: pl.DataFrame, target: str, metric: str, probe: str) -> dict[str, float]:
    """Value of each representation, best first."""
    wanted = (pl.col("target") == target) & (pl.col("metric") == metric) & (pl.col("probe") == probe)
    found = properties.filter(wanted & pl.col("value").is_finite()).sort("value", descending=True, maintain_order=True)
    return dict(found.select("representation", "value").rows())


def reading(properties: pl.DataFrame) -> list[str]:
    """Which representation reads test accuracy best, with the same probe and with any."""
    ridge = scores(properties, ACCURACY, "r2", "ridge")
    if not ridge:
        return []
    best, *others = ridge
    listed = ", ".join(f"{name} {number(ridge[name])}" for name in others)
    lines = [
        f"Test accuracy of networks never seen, by the same ridge probe: **{best}** is best with R² "
        f"{number(ridge[best])}" + (f"; {listed}." if listed else ".")
    ]
    boosted = scores(properties, ACCURACY, "r2", "boosting")
    if boosted:
        name, value = next(iter(boosted.items()))
        verb = "more than any ridge probe" if value > ridge[best] else "no more than the best ridge probe"
        lines.append(f"With gradient boosting the best is {name} with R² {number(value)}, {verb}.")
    learned = [name for name in ridge if is_learned(name)]
    simple = [name for name in ridge if not is_learned(name)]
    if learned and simple:
        first, second = learned[0], simple[0]
        word = "above" if ridge[first] > ridge[second] else "not above"
        lines.append(f"So the best learned representation ({first}) is {word} the best simple one ({second}).")
    return lines


def compared(generation: pl.DataFrame, one: tuple[str, int], other: tuple[str, int]) -> str | None:
    """How the mean accuracy of one source and epoch stands to that of another; level within two standard errors."""
    sides = []
    for source, epoch in (one, other):
        found = generation.filter((pl.col("source") == source) & (pl.col("epoch") == epoch))
        if not len(found):
            return None
        row = found.row(0, named=True)
        spread = 0.0 if source in FIXED else row["accuracy_std"] or 0.0
        sides.append((row["accuracy_mean"], spread**2 / row["n"]))
    (mean, variance), (against, other_variance) = sides
    difference, error = mean - against, (variance + other_variance) ** 0.5
    word = "level with" if abs(difference) <= 2 * error else "above" if difference > 0 else "below"
    sign = "−" if difference < 0 else "+"
    return (
        f"{number(mean)} is {word} {number(against)} (difference {sign}{number(abs(difference))}, "
        f"standard error {number(error)})"
    )


def generating(generation: pl.DataFrame, novelty: pl.DataFrame) -> list[str]:
    """Generated networks beside the simple ones: as made, trained further, and how new."""
    lines = []
    for other, what in ((AVERAGE, "the average of all aligned prompts"), (NOISE, "noise copies at equal distance")):
        if said := compared(generation, (GENERATED, 0), (other, 0)):
            lines.append(f"As made, generated networks against {what}: {said}.")
    if (epochs := _later(generation)) and (said := compared(generation, (GENERATED, epochs[0]), (RANDOM, epochs[-1]))):
        lines.append(
            f"Generated networks after {_epochs(epochs[0])} of training against random initialisation after "
            f"{_epochs(epochs[-1])}: {said}."
        )
    for row in novelty.filter(pl.col("source") == GENERATED).rows(named=True):
        held = novelty.filter(pl.col("source") == HELDOUT)["distance_ratio_50"].to_list()
        beside = f"; held-out networks {number(held[0], 2)}" if held else ""
        lines.append(
            f"Verdict on the generated networks: **{row['verdict']}** (median distance to the nearest training network "
            f"{number(row['distance_ratio_50'], 2)} of what is usual between training networks{beside})."
        )
    return lines


def more(generation: pl.DataFrame, ensembles: pl.DataFrame) -> list[str]:
    """All fine-tuned sources in order, and ensembles."""
    lines = []
    for epoch in _later(generation)[:1]:
        ranked = generation.filter(pl.col("epoch") == epoch).sort("accuracy_mean", descending=True, maintain_order=True)
        listed = ", ".join(f"{name} {number(mean)}" for name, mean in ranked.select("source", "accuracy_mean").rows())
        lines.append(f"After {_epochs(epoch)} of training, by mean accuracy: {listed}.")
    together = [
        f"{size} {source} networks {number(value)}"
        for source in (GENERATED, HELDOUT)
        for size, value in _ensemble(ensembles, source, "accuracy").items()
        if size > 1
    ]
    if together:
        lines.append(f"Accuracy of ensembles: {', '.join(together)}.")
    return lines


def _later(generation: pl.DataFrame) -> list[int]:
    return sorted(set(generation["epoch"].to_list()) - {0})


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _ensemble(ensembles: pl.DataFrame, source: str, column: str) -> dict[int, float]:
    wanted = (pl.col("source") == source) & pl.col("members").is_in(MEMBERS)
    return dict(ensembles.filter(wanted).select("members", column).rows())


# ---- The page


def numeric_table(properties: pl.DataFrame) -> str:
    """R² and Kendall's tau of every numeric target, by the ridge probe."""
    targets = _targets(properties, "r2")
    names = _names(properties, "r2")
    rows = []
    for target in targets:
        r2, tau = (scores(properties, target, metric, "ridge") for metric in ("r2", "kendall_tau"))
        shown = {
            name: f"**{number(value)}**" if i == 0 else number(value) for i, (name, value) in enumerate(r2.items())
        }
        cells = [f"{shown.get(name, '–')} / {number(tau.get(name))}" for name in names]
        rows.append([_plain(target), *cells])
    return markdown(["target", *names], rows)


def accuracy_table(properties: pl.DataFrame) -> str:
    """Test accuracy by representation and probe."""
    wide = properties.filter(pl.col("target") == ACCURACY).pivot(
        "metric", index=["representation", "probe"], values="value", aggregate_function="first"
    )
    rows = [
        [row["representation"], row["probe"], *(number(row.get(m)) for m in ("r2", "kendall_tau", "mae"))]
        for row in wide.sort("r2", descending=True, nulls_last=True, maintain_order=True).rows(named=True)
    ]
    return markdown(["representation", "probe", "R²", "Kendall's τ", "mean absolute error"], rows)


def categorical_table(properties: pl.DataFrame) -> str:
    """Accuracy of every categorical target, beside the share of the most frequent class."""
    names = _names(properties, "accuracy")
    rows = []
    for target in _targets(properties, "accuracy"):
        value = scores(properties, target, "accuracy", "logistic")
        majority = scores(properties, target, "majority", "logistic")
        rows.append([_plain(target), *(number(value.get(n)) for n in names), number(max(majority.values()))])
    return markdown(["target", *names, "most frequent class"], rows)


def generation_table(generation: pl.DataFrame) -> str:
    """Test accuracy as made and after fine-tuning."""
    epochs = _later(generation)
    rows = []
    for source in generation["source"].unique(maintain_order=True):
        at = {row["epoch"]: row for row in generation.filter(pl.col("source") == source).rows(named=True)}
        made = at[0]
        cells = [number(at[e]["accuracy_mean"]) if e in at else "–" for e in epochs]
        spread = f"{number(made['accuracy_min'])} to {number(made['accuracy_max'])}"
        accuracy = f"{number(made['accuracy_mean'])} ± {number(made['accuracy_std'])}"
        rows.append([source, str(made["n"]), accuracy, spread, number(made["nll"]), number(made["ece"]), *cells])
    later = [f"epoch {e}" for e in epochs]
    return markdown(["source", "n", "epoch 0", "lowest to highest", "NLL", "ECE", *later], rows)


def novelty_table(novelty: pl.DataFrame) -> str:
    """How new the networks are."""
    columns = {
        "distance_ratio_05": "distance 5 %", "distance_ratio_50": "median", "distance_ratio_95": "95 %", "z_u": "Z_U",
        "max_iou": "max IoU", "pair_iou": "pair IoU", "disagreement": "disagreement", "sd_ratio": "spread",
        "nap_50": "novel and good .5", "nap_75": ".75", "nap_100": "1",
    }  # fmt: skip
    rows = [
        [row["source"], *(number(row[c], 1 if c == "z_u" else 2) for c in columns), row["verdict"]]
        for row in novelty.rows(named=True)
    ]
    return markdown(["source", *columns.values(), "verdict"], rows)


def ensemble_table(ensembles: pl.DataFrame) -> str:
    """Accuracy and loss of mean-softmax ensembles."""
    rows = []
    for source in ensembles["source"].unique(maintain_order=True):
        accuracy, nll = (_ensemble(ensembles, source, column) for column in ("accuracy", "nll"))
        rows.append([source, *(f"{number(accuracy.get(m))} / {number(nll.get(m))}" for m in MEMBERS)])
    return markdown(["source", *(f"{m} member{'s' * (m > 1)}" for m in MEMBERS)], rows)


def page(facts: dict, tables: dict[str, pl.DataFrame], name: str) -> str:
    """`docs/results/NAME.md`."""
    properties, generation, novelty, ensembles = (tables[name] for name in TABLES)
    constant = [_plain(t) for t in _targets(properties, "constant")]
    seconds = facts["seconds"]
    stages = [[name, number(value, 0)] for name, value in (seconds | {"together": sum(seconds.values())}).items()]
    said = [*reading(properties), *generating(generation, novelty), *more(generation, ensembles)]
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return "\n".join(
        [
            "# The demo, measured",
            "",
            f"One run of `{command(facts)}` with seed {facts['seed']} on {machine(facts)}. Versions: {versions}.",
            "",
            f"![Map of the population, predicted against true accuracy, fine-tuning curves]({name}.png)",
            "",
            *(f"* {line}" for line in said),
            "",
            "Level means: a difference of at most two standard errors over networks. What the columns mean is in",
            "[generation evaluation](../methods/generation-evaluation.md) and",
            "[property prediction](../methods/property-prediction.md).",
            "",
            markdown(["stage", "seconds"], stages),
            "",
            "## Reading properties",
            "",
            "Test accuracy of the zoo's test models, by representation and probe"
            f" ([{name}_properties.csv]({name}_properties.csv)):",
            "",
            accuracy_table(properties),
            "",
            "All numeric properties with the ridge probe, R² / Kendall's τ, best R² in bold:",
            "",
            numeric_table(properties),
            "",
            "Categorical properties with a logistic probe, share predicted rightly:",
            "",
            categorical_table(properties),
            "",
            *([f"Not varied in this zoo, so not predicted: {', '.join(constant)}.", ""] if constant else []),
            "## Generated networks",
            "",
            "Test accuracy as made (epoch 0, mean ± standard deviation over networks) and after fine-tuning with the",
            "same optimiser, schedule and batches; the learning rate is chosen for each source on validation images",
            f"([{name}_generation.csv]({name}_generation.csv)):",
            "",
            generation_table(generation),
            "",
            "Novelty; distances are to the nearest training network, in units of the usual distance between training",
            f"networks ([{name}_novelty.csv]({name}_novelty.csv)):",
            "",
            novelty_table(novelty),
            "",
            "Ensembles by mean softmax, accuracy / negative log-likelihood "
            f"([{name}_ensembles.csv]({name}_ensembles.csv)):",
            "",
            ensemble_table(ensembles),
            "",
            "---",
            "",
            f"Written by `python docs/write_demo_results.py RUN {name}` from the folder of the run.",
            "",
        ]
    )


def block(facts: dict, tables: dict[str, pl.DataFrame]) -> str:
    """The README's lines: picture, what was found, where the rest is."""
    properties, generation, novelty, _ = (tables[name] for name in TABLES)
    minutes = sum(facts["seconds"].values()) / 60
    return "\n".join(
        [
            BEGIN,
            "![A population of networks, accuracy read from weights, generated networks as a start]"
            "(docs/results/demo.png)",
            "",
            f"One run of `{command(facts)}`, seed {facts['seed']}, {minutes:.1f} minutes on {machine(facts)}:",
            "",
            *(f"* {line}" for line in [*reading(properties)[:1], *generating(generation, novelty)]),
            "",
            "[All tables of this run](docs/results/demo.md).",
            END,
        ]
    )


def command(facts: dict) -> str:
    """The command of the run; of absolute paths only the last part, as the rest is somebody's machine."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in facts["command"].split())


def machine(facts: dict) -> str:
    """The machine of the run in words."""
    found = facts["machine"]
    parts = [f"{found['cores']} cores of {found['processor']}", found["gpu"] or "no GPU", found["system"]]
    return f"{', '.join(parts)}, Python {found['python']}"


def _targets(properties: pl.DataFrame, metric: str) -> list[str]:
    return properties.filter(pl.col("metric") == metric)["target"].unique(maintain_order=True).to_list()


def _names(properties: pl.DataFrame, metric: str) -> list[str]:
    return properties.filter(pl.col("metric") == metric)["representation"].unique(maintain_order=True).to_list()


def _plain(target: str) -> str:
    log, _, column = target.rpartition(" ")
    return f"{log} of {plain_name(column)}" if log else plain_name(column)


def main(run: Path, name: str = "demo", root: Path = Path(__file__).parents[1]) -> None:
    """Write everything into the documentation below `root`; the README's lines only for the run named `demo`.

    Raises:
        WeightspaceError: The run lacks a table or its facts, or the README lacks its marked block.
    """
    try:
        facts = json.loads((run / "run.json").read_text())
        tables = {key: pl.read_csv(run / "tables" / f"{key}.csv", infer_schema_length=None) for key in TABLES}
    except OSError as error:
        raise WeightspaceError(f"{run} is no finished run of the demo: {error}") from error
    readme = root / "README.md"
    old = readme.read_text()
    new, count = re.subn(f"{BEGIN}.*?{END}", lambda _: block(facts, tables), old, flags=re.DOTALL)
    if count != 1:
        raise WeightspaceError(f"{readme} must have one block from {BEGIN} to {END}, found {count}")
    folder = root / "docs" / "results"
    for key, table in tables.items():
        table.with_columns(pl.col(pl.Float64).round_sig_figs(6)).write_csv(folder / f"{name}_{key}.csv")
    report.readme_picture(run, folder / f"{name}.png")
    (folder / f"{name}.md").write_text(page(facts, tables, name))
    if name == "demo":
        readme.write_text(new)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python docs/write_demo_results.py RUN [NAME]")
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except WeightspaceError as error:
        sys.exit(f"error: {error}")
