"""Run the benchmark of encoders and write docs/results/encoders.md, its tables as CSV and its heat map.

python docs/write_encoder_results.py ZOOS RUN

ZOOS has the four zoos of Arch 1 and Arch 2 and the SIRENs of digits, as `python docs/write_zoo_results.py ZOOS` makes
them, and those of waves, whose command the page names. RUN gets the cells of the benchmark; those that are there
already are not run again. About three hours on two cores.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import sqrt
from pathlib import Path

import polars as pl

from weightspace import evaluation
from weightspace import open as open_zoo
from weightspace.demo import machine
from weightspace.encoders import DNGConfig, NGGNNConfig, ScaleGMNConfig, SNEConfig
from weightspace.evaluation.benchmark import Task
from weightspace.evaluation.contestants import Contestant, contestant
from weightspace.report.heat_map import heat_map
from weightspace.zoo import Zoo

RESULTS = Path(__file__).parent / "results"
ZOOS = ("mnist-arch1", "fashion-mnist-arch1", "mnist-arch2", "fashion-mnist-arch2")
TASKS: tuple[Task, ...] = ("in-distribution", "cross-dataset", "cross-architecture", "cross-both")
SIMPLE = ("constant", "hyper-parameters, boosting", "statistics, ridge", "statistics, boosting")
BASELINE, OURS = "statistics, boosting", "probe-moments"
TEN = ("flat", "statnn", "deepsets", "deepsets-any", "dng", "ng-gnn", "nfn-np", "chunk-set", "probe-gen", "unf",
       "nar-former", "nar-former-dng", "scale-gmn", "nfn-hnp")  # fmt: skip
FIVE = ("ng-t", "scale-gmn-b", "nft")
WITHOUT_CODES = "sne, no codes"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is run together: less where it takes longer."""

    folder: str
    contestants: list[Contestant]
    epochs: int | None = None
    """`None` for the method's own number."""
    seeds: int = 3
    zoos: tuple[str, ...] = ZOOS


def parts() -> list[Part]:
    """All parts; SNE learns in batches of 8, which are more steps at the same cost."""
    sne = {"epochs": 5, "batch_size": 8}
    without = contestant("sne", config=SNEConfig(codes=False), called=WITHOUT_CODES, **sne)
    return [
        Part(folder="simple", contestants=[contestant(name) for name in (*SIMPLE, OURS)]),
        Part(folder="ten", contestants=[contestant(name, epochs=10) for name in TEN], epochs=10),
        Part(folder="five", contestants=[contestant(name, epochs=5) for name in FIVE], epochs=5),
        Part(folder="gmn", contestants=[contestant("gmn", epochs=5)], epochs=5, seeds=1),
        Part(folder="sne", contestants=[contestant("sne", **sne)], epochs=5),
        Part(folder="sne-codes", contestants=[without], epochs=5, seeds=1, zoos=("mnist-arch2", "fashion-mnist-arch2")),
    ]


DIGIT = "config.label"
SIREN_EPOCHS = 15
WAVE, WAVE_EPOCHS = ("config.amplitude", "config.frequency"), 40
FACTORS = ("constant", "statistics, ridge", "statistics, boosting", "statnn", "deepsets", "dng", OURS)


def siren_contestants() -> list[Contestant]:
    """Who reads SIRENs; their hidden weights are divided by ω = 30, so that graphs standardise each tensor."""
    waves = {"by_tensor": True, "spread": 0.5}
    configs = {
        "dng": DNGConfig(**waves), "ng-gnn": NGGNNConfig(**waves), "scale-gmn": ScaleGMNConfig(by_tensor=True)
    }  # fmt: skip
    learned = ("flat", "statnn", "deepsets", "nfn-np", "dws", "dng", "ng-gnn", "scale-gmn", "probe-gen")
    return [
        *map(contestant, ("constant", "statistics, boosting")),
        *(contestant(name, config=configs.get(name), epochs=SIREN_EPOCHS) for name in learned),
    ]


PUBLISHED_INR = {"flat": 14.5, "nfn-np": 78.5, "dws": 85.7, "ng-gnn": 91.4, "scale-gmn": 96.6, "probe-gen": 98.4}
"""Accuracy in percent with about 45 000 training networks ("Encoders of network weights", sections 3, 9 and 10)."""
CLAIMS = (
    ("SNE is on par with equivariant encoders where it was trained", "sne", "nfn-hnp", "in-distribution", False),
    ("SNE is better than equivariant encoders on other data sets", "sne", "nfn-hnp", "cross-dataset", True),
    ("NFN-HNP is better than NFN-NP", "nfn-hnp", "nfn-np", "in-distribution", True),
    ("NFN-NP is better than StatNN", "nfn-np", "statnn", "in-distribution", True),
    ("Neural graphs are better than NFN-NP", "ng-gnn", "nfn-np", "in-distribution", True),
    ("The transformer is better than the GNN on neural graphs", "ng-t", "ng-gnn", "in-distribution", True),
    ("DNG is better than neural graphs", "dng", "ng-gnn", "in-distribution", True),
    ("Scale symmetry adds nothing to permutation symmetry on zoos of CNNs", "scale-gmn", "ng-gnn", "in-distribution",
     False),
    ("Weights say more than hyper-parameters (boosting)", "statistics, boosting", "hyper-parameters, boosting",
     "in-distribution", True),
    ("Boosting is better than a linear model on statistics", "statistics, boosting", "statistics, ridge",
     "in-distribution", True),
    ("Probing is better than every encoder of weights alone (here: boosted statistics)", "probe-gen",
     "statistics, boosting", "in-distribution", True),
    ("SNE is better than DeepSets on another architecture", "sne", "deepsets-any", "cross-architecture", True),
    ("Removing codes of kind and level lowers SNE", "sne", WITHOUT_CODES, "in-distribution", True),
    ("A bidirectional ScaleGMN is better than one that reads forwards", "scale-gmn-b", "scale-gmn", "in-distribution",
     True),
    ("Architecture and weights say more than weights alone", "nar-former-dng", "dng", "in-distribution", True),
    ("Attention over weight tensors (NFT) is better than NFN-NP", "nft", "nfn-np", "in-distribution", True),
)  # fmt: skip
"""Orderings in the papers ("SNE", section 8; "Encoders of network weights"): the first, the second, the task, and
whether the first is said to be better, or only as good."""


def number(value: float | None, digits: int = 3) -> str:
    """A value as the page shows it."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table, first column to the left."""
    heads = list(rows[0])
    marks = [":---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, marks, *(row.values() for row in rows)))


def wide(summary: pl.DataFrame, task: str, ceiling: dict[str, float] | None = None) -> str:
    """Mean ± deviation: a row an encoder, a column a pair of zoos, the best on average first."""
    cells = summary.filter(pl.col("task") == task)
    pairs = cells.select("trained_on", "tested_on").unique(maintain_order=True).rows()
    order = cells.group_by("encoder").agg(pl.col("mean").mean()).sort("mean", descending=True)["encoder"]
    rows = []
    for encoder in order:
        row = {"encoder": encoder}
        for a, b in pairs:
            found = cells.filter(pl.col("encoder") == encoder, pl.col("trained_on") == a, pl.col("tested_on") == b)
            text = "–"
            if found.height:
                text = number(found["mean"][0]) + (
                    f" ± {number(found['std'][0])}" if found["std"][0] is not None else ""
                )
            row[a if a == b else f"{a} → {b}"] = text
        rows.append(row)
    if ceiling:
        rows.append({"encoder": "*ceiling by tied labels*"} | {b: number(ceiling[b]) for _, b in pairs})
    return markdown(rows)


def claim(summary: pl.DataFrame, first: str, second: str, task: str, better: bool) -> tuple[str, str]:
    """What the numbers say about an ordering, and the numbers: means over the cells that both have."""
    pair = [
        summary.filter(pl.col("encoder") == name, pl.col("task") == task).select(
            "trained_on", "tested_on", "mean", "std"
        )
        for name in (first, second)
    ]
    both = pair[0].join(pair[1], on=["trained_on", "tested_on"], suffix="_other")
    if not both.height:
        return "not testable here", "no common cell"
    gap = (both["mean"] - both["mean_other"]).to_list()
    noise = sqrt(sum((s or 0) ** 2 + (o or 0) ** 2 for s, o in both.select("std", "std_other").rows()) / len(gap))
    mean = sum(gap) / len(gap)
    noise /= sqrt(len(gap))
    wins = sum(g > 0 for g in gap)
    means = [number(sum(both[column]) / len(gap)) for column in ("mean", "mean_other")]
    text = f"{means[0]} and {means[1]}, in {wins} of {len(gap)} cells"
    if better:
        verdict = "confirmed" if mean > noise and 2 * wins > len(gap) else "not confirmed"
    elif abs(mean) <= 2 * noise:
        verdict = "confirmed"
    else:
        verdict = f"not confirmed, it is {'better' if mean > 0 else 'worse'}"
    epochs = {some.name: part.epochs for part in parts() for some in part.contestants}
    if None not in (epochs[first], epochs[second]) and epochs[first] != epochs[second]:
        verdict += f" (after {epochs[first]} and {epochs[second]} epochs)"
    return verdict, text


def facts(frame: pl.DataFrame) -> str:
    """Size and cost of each encoder, means over zoos and seeds."""
    own = frame.filter(pl.col("task") == "in-distribution", pl.col("target").is_null())
    means = (
        own.group_by("encoder", "metric").agg(pl.col("value").mean()).pivot("metric", index="encoder", values="value")
    )
    epochs = {some.name: part.epochs for part in parts() for some in part.contestants}
    rows = []
    for row in means.sort("training_core_seconds").iter_rows(named=True):
        rows.append({
            "encoder": row["encoder"],
            "parameters": "–" if row["parameters"] is None else f"{int(row['parameters']):,}",
            "epochs": str(epochs.get(row["encoder"]) or ("own" if row["encoder"] == OURS else "–")),
            "training, core-s a 1000": number(row["training_core_seconds"], 1),
            "inference, core-s a 1000": number(row["inference_core_seconds"], 2),
            "invariance gap": "–" if row["invariance_gap"] is None else f"{row['invariance_gap']:.1e}",
        })  # fmt: skip
    return markdown(rows)


def clean(frame: pl.DataFrame) -> str:
    """The goal on the one split whose test models had no part in any choice."""
    tau = frame.filter(pl.col("metric") == "kendall_tau", pl.col("seed") == 0)
    keys = ["task", "trained_on", "tested_on"]
    pair = [tau.filter(pl.col("encoder") == name).select(*keys, "value") for name in (OURS, BASELINE)]
    both = pair[0].join(pair[1], on=keys, suffix="_other")
    better = int((both["value"] > both["value_other"]).sum())
    return f"with seed 0 alone `{OURS}` is above boosted statistics in {better} of {both.height} cells"


def told(summary: pl.DataFrame) -> str:
    """How far one gets who knows the training log and no weights."""
    means = {
        (name, task): summary.filter(pl.col("encoder") == name, pl.col("task") == task)["mean"].to_list()
        for name in (OURS, "hyper-parameters, boosting")
        for task in TASKS
    }
    words = []
    for task in TASKS:
        ours, theirs = (sum(v) / len(v) for v in (means[OURS, task], means["hyper-parameters, boosting", task]))
        words.append(f"{task} {number(theirs)} ({'above' if theirs > ours else 'below'} {OURS}, {number(ours)})")
    return "; ".join(words)


def goal(summary: pl.DataFrame) -> str:
    """The goal of the benchmark: one learned encoder against boosted statistics, cell by cell."""
    rows, verdicts = [], {}
    for task in TASKS:
        gaps = []
        for a, b, mean, std in (
            summary.filter(pl.col("encoder") == OURS, pl.col("task") == task)
            .select("trained_on", "tested_on", "mean", "std")
            .rows()
        ):
            other = summary.filter(pl.col("encoder") == BASELINE, pl.col("trained_on") == a, pl.col("tested_on") == b)
            gap = mean - other["mean"][0]
            gaps.append(gap)
            rows.append({"task": task, "cell": a if a == b else f"{a} → {b}", OURS: number(mean),
                         BASELINE: number(other["mean"][0]), "difference": number(gap),
                         "deviation over seeds": f"{number(std)}, {number(other['std'][0])}"})  # fmt: skip
        equal, mean_gap = sum(gap >= 0 for gap in gaps), sum(gaps) / len(gaps)
        verdicts[task] = f"{task}: {equal} of {len(gaps)} cells at least equal, mean difference {number(mean_gap)}"
    return "; ".join(verdicts.values()) + ".\n\n" + markdown(rows)


def factors(opened: dict[str, Zoo], run: Path) -> str:
    """Hyper-parameters of unseen networks, all learned at once: mean over zoos, a column a factor."""
    part = [contestant(name, **({} if name in (*SIMPLE, OURS) else {"epochs": 10})) for name in FACTORS]
    frame = evaluation.benchmark(opened, part, run / "factors", tasks=("factors",), seeds=(0,), workers=2)
    frame.write_csv(RESULTS / "encoders_factors.csv", float_precision=6)
    found = frame.filter(pl.col("metric").is_in(["r2", "accuracy"]))
    columns = found["target"].unique(maintain_order=True).to_list()
    means = found.group_by("encoder", "target").agg(pl.col("value").mean())
    rows = []
    for encoder in FACTORS:
        row = {"encoder": encoder}
        for column in columns:
            value = means.filter(pl.col("encoder") == encoder, pl.col("target") == column)["value"]
            row[column.replace("config.", "")] = number(value[0] if len(value) else None)
        rows.append(row)
    return markdown(rows)


PAGE = """# Encoders

Every encoder on the same zoos, the same splits and the same targets. Written by
`python docs/write_encoder_results.py ZOOS RUN` on {cores} cores of {processor}, {system}, Python {python}, torch
{torch}; zoos by `python docs/write_zoo_results.py ZOOS` (see [zoos](zoos.md)): four of 500 models each, three
checkpoints a model, 14x14 images. Seeds 0, 1, 2; a seed gives the split by model (70, 15, 15 %) and the training. Of a
zoo that an encoder was not trained on, nothing but its test models is used. Target: test accuracy.
[encoders.csv](encoders.csv) has every value, [encoders_summary.csv](encoders_summary.csv) the means.

Training is short, so that this fits two cores: {epochs}. Published trainings are ten times
longer, on ten times more networks; the numbers here rank methods at this budget, not at theirs. Encoders whose
sizes and rates are ours were not tuned on these zoos, with three exceptions: the features of `probe-moments` (ours)
were chosen on validation models of seed 0 of three of the zoos, the frequencies of `dng` (which `ng-gnn` shares) on
those of mnist-arch1, and batches of 8, not 32, for `sne` on those of mnist-arch2 (more steps at the same cost).
Some of these models are test models of seeds 1 and 2, whose splits are others; {clean}.

![Kendall's tau](encoders.svg)

## Kendall's tau where it was trained

{in_distribution}

## The same, R2

{r2}

## On another data set, Kendall's tau

{cross_dataset}

## On another architecture

{cross_architecture}

## On both

{cross_both}

## The goal: one learned encoder above boosted statistics

[`probe-moments`](../methods/probe-moments.md) runs the networks on noise, as probing does, which encoders of weights
alone do not. Against gradient boosting on statistics, Kendall's tau: {goal}

## Generating factors

How networks were trained, from their weights; one seed, all factors learned at once, means over the four zoos.
Accuracy of classes (activation, initialisation, optimiser; `constant` guesses the most frequent), R2 of numbers (of
the logarithm where it says so). [encoders_factors.csv](encoders_factors.csv)

{factors}

## What the papers say

Means of tau over the cells that both have; "confirmed" when the difference is larger than the deviation over seeds
allows and has the same sign in most cells (for "as good": not larger than twice it). Where epochs are given, trainings
were unequal, and the line says little.

{claims}

{inr}

## Cost

Processor time of one core, for all epochs of the training, and for one pass of inference; other work on the machine
makes it somewhat longer. Invariance gap: mean change of the output under permutations of hidden units, in deviations
over networks.

{facts}
"""
INR_PAGE = """## SIRENs of MNIST digits

Which digit an implicit network shows: {count} SIRENs (2→32→32→1), one fit each, {epochs} epochs, seed 0, test accuracy.
Published numbers are with about 45 000 networks and trainings many times longer: most encoders have hardly begun to
learn here. Encoders of graphs standardise each tensor, and DNG and NG-GNN have five times the usual frequencies, both
chosen for DNG on validation SIRENs. [encoders_inr.csv](encoders_inr.csv)

{table}
"""


WAVE_PAGE = """
## SIRENs of sine waves

Amplitude and frequency of the wave a·sin(bx) that each of {count} SIRENs (1→32→32→1) was fitted to: R2, of the
logarithms, on test networks, {epochs} epochs, seed 0. [encoders_waves.csv](encoders_waves.csv); the zoo by
`weightspace zoo train ZOOS/sine-siren --recipe sine-siren --models 500 --epochs 200 --checkpoints 200`.

{table}
"""


def inr(zoos: Path, run: Path) -> str:
    """Classification of SIRENs, where that zoo is there."""
    if not (zoos / "mnist-siren" / "zoo.json").is_file():
        return ""
    zoo = open_zoo(zoos / "mnist-siren").last()
    frame = evaluation.benchmark(
        {"mnist-siren": zoo}, siren_contestants(), run / "inr",
        tasks=("in-distribution",), seeds=(0,), targets=(DIGIT,), workers=2,
    )  # fmt: skip
    frame.write_csv(RESULTS / "encoders_inr.csv")
    found = frame.filter(pl.col("metric") == "accuracy").sort("value", descending=True)
    rows = [
        {
            "encoder": name,
            "accuracy": number(value),
            "published": number(PUBLISHED_INR[name] / 100) if name in PUBLISHED_INR else "–",
        }
        for name, value in found.select("encoder", "value").rows()
    ]
    return INR_PAGE.format(count=f"{len(zoo):,}", epochs=SIREN_EPOCHS, table=markdown(rows))


def waves(zoos: Path, run: Path) -> str:
    """Regression: amplitude and frequency of the wave that each SIREN is, where that zoo is there."""
    if not (zoos / "sine-siren" / "zoo.json").is_file():
        return ""
    zoo = open_zoo(zoos / "sine-siren").last()
    scaled = DNGConfig(by_tensor=True, spread=0.5)
    learned = [contestant("dng", config=scaled, epochs=WAVE_EPOCHS)]
    learned += [contestant(name, epochs=WAVE_EPOCHS) for name in ("flat", "statnn", "deepsets", "nfn-np", "dws",
                                                                  "probe-gen")]  # fmt: skip
    part = [*map(contestant, ("constant", "statistics, ridge", "statistics, boosting")), *learned]
    frame = evaluation.benchmark(
        {"sine-siren": zoo}, part, run / "waves", tasks=("in-distribution",), seeds=(0,), targets=WAVE, workers=2
    )
    frame.write_csv(RESULTS / "encoders_waves.csv", float_precision=6)
    r2 = evaluation.summary(frame, "r2").sort("mean", descending=True)
    rows = []
    for name in r2["encoder"].unique(maintain_order=True):
        values = [r2.filter(pl.col("encoder") == name, pl.col("target").str.ends_with(end)) for end in WAVE]
        cells = (number(value["mean"][0]) for value in values)
        rows.append({"encoder": name} | dict(zip(("amplitude", "frequency"), cells, strict=True)))
    return WAVE_PAGE.format(count=len(zoo), epochs=WAVE_EPOCHS, table=markdown(rows))


def main(zoos: Path, run: Path) -> None:
    """Run what has not been run, and write the page."""
    opened = {name: open_zoo(zoos / name) for name in ZOOS}
    frames = []
    for part in parts():
        chosen = {name: opened[name] for name in part.zoos}
        frames.append(evaluation.benchmark(
            chosen, part.contestants, run / part.folder, tasks=TASKS, seeds=range(part.seeds), workers=2
        ))  # fmt: skip
    frame = pl.concat(frames)
    frame.write_csv(RESULTS / "encoders.csv", float_precision=6)
    tau, r2 = evaluation.summary(frame), evaluation.summary(frame, "r2")
    tau.write_csv(RESULTS / "encoders_summary.csv", float_precision=6)
    heat_map(tau, RESULTS / "encoders.svg")
    ceiling = evaluation.summary(frame.filter(pl.col("task") == "in-distribution"), "tau_ceiling")
    ceilings = dict(ceiling.group_by("tested_on").agg(pl.col("mean").max()).rows())
    rows = []
    for text, first, second, task, better in CLAIMS:
        verdict, numbers = claim(tau, first, second, task, better)
        rows.append({"claim": text, "here": verdict, "tau": f"{first}, {second}: {numbers}"})
    epochs = "; ".join(
        f"{part.epochs} epochs for {', '.join(some.name for some in part.contestants)}"
        + ("" if part.seeds == 3 else " (seed 0 alone)" if part.zoos == ZOOS else " (seed 0 and Arch 2 alone)")
        for part in parts()
        if part.epochs
    )
    (RESULTS / "encoders.md").write_text(
        PAGE.format(
            **machine(), torch=version("torch"), epochs=epochs, in_distribution=wide(tau, TASKS[0], ceilings),
            r2=wide(r2, TASKS[0]), cross_dataset=wide(tau, TASKS[1]), cross_architecture=wide(tau, TASKS[2]),
            cross_both=wide(tau, TASKS[3]), goal=goal(tau), told=told(tau),
            clean=clean(frame), claims=markdown(rows), inr=inr(zoos, run) + waves(zoos, run),
            factors=factors(opened, run), facts=facts(frame),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
