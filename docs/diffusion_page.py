"""Tables, figures and text of docs/results/diffusion.md, from what `write_diffusion_results.py` left in its folder."""

from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib import pyplot as plt

from weightspace.demo import machine

RESULTS = Path(__file__).parent / "results"
FILES = {
    "sources": "tables/novelty.csv",
    "prompts": "prompts/gpt.csv",
    "memory": "memory/3000-rows.csv",
    "pdiff": "pdiff.csv",
}
"""What each stage leaves when it is finished."""
PAGE = """# Diffusion generators

`python docs/write_diffusion_results.py ZOOS RUN` on {cores} cores of {processor}, {system}, Python {python}, torch
{torch}; one thread, one seed. {networks} MLPs 196-14-10 ({parameters} parameters) on MNIST at 14x14, 5000 training
images, ten epochs of Adam, of one configuration: they differ in initial weights and order of images alone. Generators
see the last checkpoints of {trained} runs; {held} other runs choose epochs, {held} are held out. Everything is judged
by {images} test images; {drawn} networks a source. Sizes were chosen on validation networks and images, in few trials;
all generators have small networks and short trainings, as a processor allows.
"""
SECTIONS = {
    "sources": """
## Generators beside everything simple

d/τ: median distance to the nearest training network over the usual one between these. Z_U: far below 0 copies, far
above 0 too far. spread: over that of the zoo. N&P: share of networks that are novel (d > .5, .75, 1 τ) and as good
as the 95 % best held-out runs. Ensemble: of 50, or of all if there are fewer. Averages, noise, Gaussians and
interpolations mix aligned networks, where nothing else is said. Reconstructions are of held-out runs: what a space can
hold. [diffusion_sources.csv](diffusion_sources.csv)

{sources}

{said}

![Accuracy against distance, and ensembles](diffusion_distance.svg)

Ensembles by number of members: [diffusion_ensembles.csv](diffusion_ensembles.csv)
""",
    "prompts": """
## Asking for a loss

Fifteen losses from 0.30 to 1.00, eight networks each. The flow in 256 principal components learned the checkpoints of
epochs 1 to 10 with their validation loss as condition; G.pt pairs of all checkpoints, and starts here from untrained
networks of held-out runs; twice prompts it again from what came out. The nearest zoo model is the training checkpoint
with the validation loss closest to the prompt. R² is of the test loss obtained against the loss asked for. Both
generators were trained for 1200 steps of 128; for G.pt that is a fraction of the 5,000 to 20,000 that a processor is
said to need, and of the millions of the paper. Its two blocks of width 128 read
tokens of at most 128 weights; three blocks on the published tokens of 1000 were tried first and measured on the same
test images; they did no better. Its networks are worse than their starts; that it has not yet learned to take noise
away is likely, and not shown.
[diffusion_prompts.csv](diffusion_prompts.csv)

{prompts}

![Loss asked for and obtained](diffusion_prompts.svg)
""",
    "memory": """
## Memory and the number of training runs

The same {steps} steps of a flow for every number of runs; training networks choose the epoch, so that nothing stops
early. Numbers of runs that are missing have not been measured. [diffusion_memory.csv](diffusion_memory.csv)

{memory}

![Distance, copying statistic and accuracy](diffusion_memory.svg)
""",
    "pdiff": """
## p-diff in its own setting

The best training network, its last layer (150 of its parameters) trained on for 300 steps and kept at each; every fifth
checkpoint chooses epochs. Autoencoder and denoiser have an eighth of the published channels. All rows but the last are
whole networks with this layer. [diffusion_pdiff.csv](diffusion_pdiff.csv)

{pdiff}

Over the checkpoints' mean accuracy, p-diff gains {pdiff_gain:+.4f}, the average of all of them {average_gain:+.4f}, a
Gaussian of them {gaussian_gain:+.4f}.
""",
}


def table(frame: pl.DataFrame) -> str:
    """A Markdown table with three decimals."""
    lines = [" | ".join(frame.columns), " | ".join("---:" if t.is_numeric() else ":---" for t in frame.dtypes)]
    for row in frame.rows():
        lines.append(" | ".join("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return "\n".join(f"| {line} |" for line in lines)


def overview(run: Path) -> pl.DataFrame:
    """One row a source: what the whole protocol says of it."""
    generation, novel, together = (
        pl.read_csv(run / "tables" / f"{name}.csv") for name in ("generation", "novelty", "ensembles")
    )
    first = generation.filter(pl.col("epoch") == 0).select(
        "source", "n", accuracy="accuracy_mean", sd="accuracy_std", best="accuracy_max"
    )
    later = generation.filter(pl.col("epoch") == 1).select("source", **{"after an epoch": "accuracy_mean"})
    most = together.filter(pl.col("members") == pl.col("members").max().over("source"))
    return (
        first.join(later, on="source", how="left", maintain_order="left")
        .join(most.select("source", ensemble="accuracy"), on="source", how="left", maintain_order="left")
        .join(
            novel.select(
                "source", "z_u", "max_iou", "pair_iou", "sd_ratio", "verdict",
                **{"d/τ": "distance_ratio_50", "N&P .5": "nap_50", "N&P .75": "nap_75", "N&P 1": "nap_100"},
            ),
            on="source", how="left", maintain_order="left",
        )
        .rename({"z_u": "Z_U", "max_iou": "maxIoU", "pair_iou": "IoU among them", "sd_ratio": "spread"})
        .select(pl.all().exclude("verdict"), "verdict")
    )  # fmt: skip


def said(found: pl.DataFrame) -> str:
    """What the table says of learned generators, each beside the simple thing that explains it."""
    value = {row["source"]: row for row in found.iter_rows(named=True)}

    def beside(name: str, other: str) -> str:
        one, two = value[name], value[other]
        return (
            f"* {name}: accuracy {one['accuracy']:.3f} at d/τ {one['d/τ']:.2f}, an ensemble of "
            f"{one['ensemble']:.3f}; {other}: {two['accuracy']:.3f} at {two['d/τ']:.2f}, {two['ensemble']:.3f}."
        )

    pairs = [
        ("flow, rows", "Gaussian"), ("DDPM, rows", "noise 1.0"),
        ("flow, 256 components", "Gaussian of 256 components"),
        ("DDPM, 256 components", "reconstruction, 256 components"), ("flow, SANE latents", "KDE, SANE latents"),
        ("KDE, SANE latents", "reconstruction, SANE"), ("p-diff", "average of all"),
    ]  # fmt: skip
    learned = found.filter(pl.col("source").str.contains("^(flow|DDPM|p-diff|KDE)"))
    passed = float(learned["N&P .5"].max())  # type: ignore[arg-type]
    return "\n".join(
        [
            "Learned generators beside what is nearest to them and simple, or above them and a bound:", "",
            *(beside(*pair) for pair in pairs), "",
            f"The highest share of networks from a learned generator that are novel (d > .5 τ) and performant is "
            f"{passed:.3f}; of held-out runs it is {value['held-out']['N&P .5']:.3f}.",
        ]
    )  # fmt: skip


def r2(asked: pl.Series, found: pl.Series) -> float:
    """Prompt alignment: the share of the variance of what was asked for that what came explains."""
    return 1 - float(((asked - found) ** 2).mean()) / float(asked.var(ddof=0))  # type: ignore[arg-type]


def alignment(prompted: pl.DataFrame) -> pl.DataFrame:
    """R² of each source, and the loss at the lowest and at the highest prompt."""
    rows = []
    for name in prompted["source"].unique(maintain_order=True):
        some = prompted.filter(pl.col("source") == name)
        ends = [some.filter(pl.col("asked") == some["asked"].sort()[place])["loss"].mean() for place in (0, -1)]
        rows.append(
            {"source": name, "R²": r2(some["asked"], some["loss"]),
             "loss where lowest is asked": ends[0], "where highest": ends[1],
             "mean accuracy": some["accuracy"].mean()}
        )  # fmt: skip
    return pl.DataFrame(rows)


def memory(run: Path) -> pl.DataFrame:
    """All sources and numbers of runs that have been measured; held-out and training networks once."""
    parts = [pl.read_csv(file) for file in sorted((run / "memory").glob("*.csv"))]
    return pl.concat(parts).unique(["runs", "source"], maintain_order=True).sort("source", "runs")


def figures(run: Path, there: set[str]) -> None:
    """Accuracy against distance beside the ensemble curve; asked against obtained; what comes of more runs."""
    mpl.rcParams["svg.hashsalt"] = "weightspace"  # the same file for the same numbers
    if "sources" in there:
        measured, curves = (pl.read_csv(run / "tables" / f"{name}.csv") for name in ("networks", "ensembles"))
        measured = measured.filter(pl.col("epoch") == 0)
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
        middle = measured.group_by("source").agg(pl.col("accuracy", "distance_ratio").median())
        noise = middle.filter(pl.col("source").str.starts_with("noise")).sort("distance_ratio")
        left.plot(noise["distance_ratio"], noise["accuracy"], color="0.6", label="noise")
        shown = [
            s for s in measured["source"].unique(maintain_order=True) if s.startswith(("flow", "DDPM", "p-diff", "KDE"))
        ]
        for i, name in enumerate([*shown, "average of 16", "Gaussian", "held-out"]):
            some = measured.filter(pl.col("source") == name)
            left.scatter(some["distance_ratio"], some["accuracy"], s=8, color=f"C{i}", label=name, alpha=0.6)
            curve = curves.filter(pl.col("source") == name)
            right.plot(curve["members"], curve["accuracy"], color=f"C{i}", marker=".")
        left.set(xlabel="distance to the nearest training network, d / τ", ylabel="test accuracy")
        right.set(xlabel="members", ylabel="test accuracy of the ensemble", xscale="log")
        left.legend(fontsize=7)
        saved(figure, "diffusion_distance.svg")
    if "prompts" in there:
        prompted = pl.concat(pl.read_csv(file) for file in sorted((run / "prompts").glob("*.csv")))
        names = prompted["source"].unique(maintain_order=True).to_list()
        figure, axes = plt.subplots(1, len(names), figsize=(2.8 * len(names), 3), sharex=True, sharey=True)
        for axis, name in zip(axes, names, strict=True):
            some = prompted.filter(pl.col("source") == name)
            axis.plot([0.3, 1], [0.3, 1], color="0.7")
            axis.scatter(some["asked"], some["loss"].clip(upper_bound=2.5), s=6)
            axis.set(title=name, xlabel="loss asked for")
        axes[0].set(ylabel="test loss obtained")
        saved(figure, "diffusion_prompts.svg")
    if "memory" in there:
        by_runs = memory(run)
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
        for axis, column in zip(axes, ("distance_ratio_50", "z_u", "accuracy_mean"), strict=True):
            for name in by_runs["source"].unique(maintain_order=True):
                some = by_runs.filter(pl.col("source") == name).sort("runs")
                axis.plot(some["runs"], some[column], marker=".", label=name)
            axis.set(xscale="log", xlabel="training runs", ylabel=column)
        axes[0].legend(fontsize=7)
        saved(figure, "diffusion_memory.svg")


def saved(figure: plt.Figure, name: str) -> None:
    """An SVG without a date in it."""
    figure.tight_layout()
    figure.savefig(RESULTS / name, metadata={"Date": None})
    plt.close(figure)


def page(run: Path, facts: dict[str, object]) -> None:
    """Write what is there: tables, figures, text."""
    there = {name for name, file in FILES.items() if (run / file).is_file()}
    there |= {name for name in ("prompts", "memory") if any((run / name).glob("*.csv"))}  # as far as they have come
    facts = {**machine(), "torch": version("torch")} | facts
    if "sources" in there:
        found = overview(run)
        found.write_csv(RESULTS / "diffusion_sources.csv")
        pl.read_csv(run / "tables/ensembles.csv").write_csv(RESULTS / "diffusion_ensembles.csv")
        facts["sources"], facts["said"] = table(found), said(found)
    if "prompts" in there:
        prompted = pl.concat(pl.read_csv(file) for file in sorted((run / "prompts").glob("*.csv")))
        prompted.write_csv(RESULTS / "diffusion_prompts.csv")
        facts["prompts"] = table(alignment(prompted))
    if "memory" in there:
        by_runs = memory(run)
        by_runs.write_csv(RESULTS / "diffusion_memory.csv")
        facts["memory"] = table(
            by_runs.select(
                "runs", "source", "z_u", "max_iou", "verdict",
                accuracy="accuracy_mean", spread="sd_ratio", **{"d/τ": "distance_ratio_50", "N&P .5": "nap_50"},
            )
        )  # fmt: skip
    if "pdiff" in there:
        beside = pl.read_csv(run / "pdiff.csv")
        beside.write_csv(RESULTS / "diffusion_pdiff.csv")
        accuracy = dict(zip(beside["source"], beside["accuracy"], strict=True))
        facts["pdiff"] = table(beside)
        gains = {"pdiff_gain": "p-diff", "average_gain": "average of all", "gaussian_gain": "Gaussian"}
        facts |= {name: accuracy[source] - accuracy["checkpoints"] for name, source in gains.items()}
    figures(run, there)
    text = PAGE + "".join(section for name, section in SECTIONS.items() if name in there)
    (RESULTS / "diffusion.md").write_text(text.format(**facts))
