"""What the manifold hypernetwork learns on digits: docs/results/manifold.md, its CSVs and its figure.

python docs/write_manifold_results.py RUN: about fifteen minutes on one thread. Fitted hypernetworks stay in the
folder RUN, and so do trained networks, so that an interrupted run goes on. Sizes, λ and seeds are those of the
specification; validation images choose epochs, temperatures, and members of greedy ensembles."""

import math
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl
import torch
from torch import Tensor

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.demo import machine
from weightspace.evaluation.distillation import distillation
from weightspace.evaluation.ensembles import Ensemble, paired_bootstrap, scores
from weightspace.evaluation.generation import evaluate_generation
from weightspace.generators import Manifold, ManifoldConfig, ManifoldTraining
from weightspace.generators.entropy import neighbour_distances
from weightspace.generators.gauge import Gauge
from weightspace.networks import MLP, Classifier
from weightspace.networks.population import Hyperparameters, initial_rows, population_metrics, train_population
from weightspace.symmetry import align
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

RESULTS = Path(__file__).parent / "results"
TARGET = MLP(hidden=(16,))
SEEDS = (0, 1, 2)
DRAWN, TRAINED, MEMBERS = 100, 80, (1, 5, 10, 20, 100)
PAIRS, POINTS = 10, 40
FREE = {"fix_scale": False, "fix_shift": False}
ACCURACY_ONLY, REFERENCE, WITHOUT = "accuracy only", "λ = 1000", "λ = 1000, no gauge"
SETTINGS = {
    ACCURACY_ONLY: ManifoldConfig(accuracy_weight=math.inf),
    "λ = 10000": ManifoldConfig(accuracy_weight=1e4),
    REFERENCE: ManifoldConfig(accuracy_weight=1e3),
    "λ = 100": ManifoldConfig(accuracy_weight=1e2),
    "λ = 10000, no gauge": ManifoldConfig(accuracy_weight=1e4, **FREE),
    WITHOUT: ManifoldConfig(accuracy_weight=1e3, **FREE),
    "λ = 100, no gauge": ManifoldConfig(accuracy_weight=1e2, **FREE),
    "λ = 1000, units sorted": ManifoldConfig(accuracy_weight=1e3, fix_order="sort"),
    "λ = 1000, units aligned": ManifoldConfig(accuracy_weight=1e3, fix_order="align"),
}
INDEPENDENT, COPIES = "independent networks", "symmetry copies of one sample"
REPORTED = {
    ACCURACY_ONLY: (0.967, 0.972, 0.011),
    "λ = 10000": (0.964, 0.970, 0.019),
    REFERENCE: (0.960, 0.970, 0.028),
    "λ = 100": (0.961, 0.972, 0.029),
    WITHOUT: (0.956, 0.959, 0.024),
    INDEPENDENT: (0.956, 0.958, 0.024),
}
"""Accuracy of samples, accuracy of their ensemble, disagreement, as the specification of the method states them for
another split (1200 and 597 images) and another optimiser; differences up to .005 are noise of the seed."""
PAGE = """# Manifold hypernetwork on digits

`python docs/write_manifold_results.py RUN` on {cores} cores of {processor}, {system}, Python {python}, torch {torch};
one thread, {fit_seconds} seconds a hypernetwork on a machine that did other things, too. 8x8 digits (1000 training,
297 validation, 500 test images), target MLP 64-16-10 of 1210 parameters, hypernetworks of {hypernetwork} parameters,
2000 steps of 24 networks with 48 images each, seeds {seeds}. 100 samples each, {drawn} independently trained networks
(30 epochs, Adam at 3e-3: together about the images that one hypernetwork saw), and 100 copies of one sample under
random symmetries. [manifold.csv](manifold.csv) has a row a setting and seed.

One choice was made with test images in sight: after a first run of seed 0, the epoch with the fewest wrong validation
predictions is kept, no longer that with the lowest validation cross-entropy, which had kept early and worse samples
(.942 instead of .959 on test images; validation images said the same).

## Accuracy and diversity

Means over seeds. Gain: of the ensemble (mean of probabilities) over the mean of its members, with a paired 95 %
bootstrap interval over test images. Disagreement: share of test images on which two members differ. Separation:
distance to the nearest of the others over the norm, both gauged.

{main}

Copies by symmetry gain exactly 0, image by image, and disagree on {copies}: gains and disagreement are functions, not
coordinates.

## Against the numbers of the specification

In brackets what the method's specification reports, from another split (1200 and 597 images), another optimiser and
another initialisation; its tolerance is .005.

{reported}

## Ensembles in pairs

Difference of two ensembles of 100 in test accuracy, over the same images, averaged over seeds; 95 % bootstrap over
images.

{differences}

## Calibration

Temperature fitted on validation images.

{calibration}

## More members

Seed 0. [manifold_curves.csv](manifold_curves.csv)

{curves}

Rules, and ten members chosen greedily by the likelihood of validation labels, λ = 1000.
[manifold_rules.csv](manifold_rules.csv)

{rules}

## Novelty

Samples against {trained} of the independent networks as training networks T, the other {heldout} held out (seed 0),
gauged and aligned: distances to T over the usual one, copying statistic, error overlap and verdict of [the evaluation
of generators](../methods/generation-evaluation.md). No sample was made from T.
[manifold_novelty.csv](manifold_novelty.csv)

{novelty}

## Paths

Ten pairs of samples, 40 points between them, seed 0: along the straight line between their latents and along that
between their weights. [manifold_paths.csv](manifold_paths.csv)

![Test accuracy along paths](manifold_paths.svg)

{paths}

## Distillation

200 samples (λ = 1000, seed 0) teach one network of the target's architecture, five seeds; the control has the same
starts, batches, steps and choice of the epoch, on labels alone.
[manifold_distillation.csv](manifold_distillation.csv)

{distillation}
"""


def table(frame: pl.DataFrame, decimals: int = 3) -> str:
    """A Markdown table; floats that would be rounded to zero keep their first digits."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return f"{value:.{decimals}f}" if value == 0 or abs(value) >= 0.5 * 10**-decimals else f"{value:.1e}"

    lines = [" | ".join(frame.columns), " | ".join("---:" if t.is_numeric() else ":---" for t in frame.dtypes)]
    lines += [" | ".join(map(cell, row)) for row in frame.rows()]
    return "\n".join(f"| {line} |" for line in lines)


def interval(first: Tensor, second: Tensor) -> str:
    """Mean difference and its 95 % interval over images."""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*(value + 0.0 for value in paired_bootstrap(first, second)))


def independent(network: Classifier, data: Dataset, n: int, *, epochs: int, batch_size: int, seed: int) -> Tensor:
    """Networks that were trained one by one: Adam at 3e-3, from U(±1/√fan in)."""
    full, seeds = torch.ones(n), torch.arange(n) + 1000 * seed
    rows = initial_rows(network, seeds, "kaiming_uniform", full / math.sqrt(6))
    settings = Hyperparameters(
        seeds=seeds, learning_rate=3e-3 * full, weight_decay=0 * full, dropout=0 * full, train_fraction=full
    )
    stages = train_population(
        network, rows, settings, data.train_images, data.train_labels,
        epochs=epochs, batch_size=batch_size, checkpoints=[epochs],
    )  # fmt: skip
    return next(stages)[1]


def trained_zoo(run: Path, seed: int, data: Dataset) -> Zoo:
    """Independent networks of a seed, from the folder if they are there."""
    folder = run / f"independent-{seed}"
    if folder.exists():
        return open_zoo(folder)
    rows = independent(TARGET, data, DRAWN, epochs=30, batch_size=48, seed=seed)
    return Ensemble.of_rows(rows, TARGET).zoo.save(folder)


def measured(ensemble: Ensemble, data: Dataset, target: Classifier = TARGET) -> tuple[dict[str, float], Tensor, Tensor]:
    """Test scores of members and ensemble; and by image whether the ensemble is right, and the share of members."""
    images, labels = data.test_images, data.test_labels
    combined, single = ensemble.combine(images), ensemble.member_scores(images, labels)
    found = {name: float(value) for name, value in scores(combined.mean[None], labels).items()}
    calibrated = ensemble.calibrated(data.validation_images, data.validation_labels)
    after = scores(calibrated.predict(images)[None], labels)
    rows = ensemble.zoo.weights()
    gauge = Gauge.of(target)
    gauged = gauge.fixed(rows)[:, gauge.parameters()]
    row = {
        "sample_accuracy": float(single["accuracy"].mean()),
        "sample_std": float(single["accuracy"].std()),
        "sample_nll": float(single["nll"].mean()),
        "sample_ece": float(single["ece"].mean()),
        **{f"ensemble_{name}": value for name, value in found.items()},
        "temperature": calibrated.temperature,
        "calibrated_nll": float(after["nll"]),
        "calibrated_ece": float(after["ece"]),
        "disagreement": combined.disagreement,
        "separation": float((neighbour_distances(gauged) / gauged.norm(dim=1)).mean()),
    }
    return row, (combined.mean.argmax(1) == labels).float(), combined.right(labels)


def hypernetwork(run: Path, name: str, seed: int, data: Dataset) -> Manifold:
    """That of a setting and seed, from the folder if it is there."""
    folder = run / f"{name.replace(' ', '-')}-{seed}"
    if (folder / "config.json").is_file():
        return Manifold.from_pretrained(folder)
    return Manifold.fit(TARGET, data, config=SETTINGS[name], optimisation=ManifoldTraining(seed=seed), folder=folder)


def digits(run: Path) -> dict[str, str]:
    """All tables on digits, in Markdown."""
    data = datasets.load("digits")
    rows, right, share, ensembles, seconds = [], {}, {}, {}, {}
    for seed in SEEDS:
        for name, config in SETTINGS.items():
            fitted = hypernetwork(run, name, seed, data)
            assert fitted.config == config, f"{run} has a hypernetwork of other settings"
            seconds[name, seed] = fitted.header["fit"]["seconds"]
            ensembles[name, seed] = Ensemble(fitted.sample(DRAWN, seed=seed))
        ensembles[INDEPENDENT, seed] = Ensemble(trained_zoo(run, seed, data))
        one = ensembles[REFERENCE, seed].zoo.take([0]).weights().expand(DRAWN, -1)
        copies = Gauge.of(TARGET).equivalents(one, torch.Generator().manual_seed(seed))
        ensembles[COPIES, seed] = Ensemble.of_rows(copies, TARGET)
    for (name, seed), ensemble in ensembles.items():
        row, right[name, seed], share[name, seed] = measured(ensemble, data)
        rows.append({"setting": name, "seed": seed, **row, "fit_seconds": seconds.get((name, seed))})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame.write_csv(RESULTS / "manifold.csv")

    def pooled(values: dict, name: str) -> Tensor:
        return torch.stack([values[name, seed] for seed in SEEDS]).mean(0)

    names = [*SETTINGS, INDEPENDENT, COPIES]
    by = frame.group_by("setting", maintain_order=True).mean()
    mean = {row["setting"]: row for row in by.to_dicts()}
    main = pl.DataFrame(
        [
            {
                "setting": name,
                "samples": mean[name]["sample_accuracy"],
                "ensemble of 100": mean[name]["ensemble_accuracy"],
                "gain [95 %]": interval(pooled(right, name), pooled(share, name)),
                "disagreement": mean[name]["disagreement"],
                "separation": mean[name]["separation"],
            }
            for name in names
        ]
    )
    calibration = by.select(
        "setting", "sample_nll", "sample_ece", "ensemble_nll", "ensemble_ece", "temperature", "calibrated_nll",
        "calibrated_ece",
    )  # fmt: skip
    reported = pl.DataFrame(
        [
            {
                "setting": name,
                **{
                    label: f"{mean[name][key]:.3f} ({value:.3f})"
                    for label, key, value in zip(
                        ("samples", "ensemble", "disagreement"),
                        ("sample_accuracy", "ensemble_accuracy", "disagreement"),
                        values,
                        strict=True,
                    )
                },
            }
            for name, values in REPORTED.items()
        ]
    )
    compared = [(f"λ = {x}", f"λ = {x}, no gauge") for x in (10000, 1000, 100)]
    compared += [(REFERENCE, ACCURACY_ONLY), ("λ = 100", ACCURACY_ONLY), ("λ = 1000, units sorted", REFERENCE)]
    compared += [("λ = 1000, units aligned", REFERENCE), (REFERENCE, INDEPENDENT), (ACCURACY_ONLY, INDEPENDENT)]
    differences = pl.DataFrame(
        [
            {"ensemble": a, "against": b, "difference [95 %]": interval(pooled(right, a), pooled(right, b))}
            for a, b in compared
        ]
    )
    curves = []
    for name in (ACCURACY_ONLY, REFERENCE, INDEPENDENT):
        generator = torch.Generator().manual_seed(0)
        curve = ensembles[name, 0].curve(data.test_images, data.test_labels, generator=generator, members=MEMBERS)
        curves.append(curve.select(pl.lit(name).alias("setting"), pl.all()))
    whole = ensembles[REFERENCE, 0]
    greedy = whole.selected(data.validation_images, data.validation_labels, members=10)
    rules = [
        ensemble.evaluate(data.test_images, data.test_labels).select(
            pl.lit(name).alias("members"), pl.exclude("members")
        )
        for name, ensemble in (("100 samples", whole), (f"{len(greedy)} chosen greedily", greedy))
    ]
    pl.concat(curves).write_csv(RESULTS / "manifold_curves.csv")
    pl.concat(rules).write_csv(RESULTS / "manifold_rules.csv")
    return {
        "main": table(main),
        "reported": table(reported),
        "differences": table(differences),
        "calibration": table(calibration),
        "curves": table(pl.concat(curves)),
        "rules": table(pl.concat(rules)),
        "novelty": novelty(
            {name: ensembles[name, 0].zoo for name in (ACCURACY_ONLY, REFERENCE)}, ensembles[INDEPENDENT, 0].zoo, data
        ),
        "paths": paths(run, data),
        "distillation": distilled(run, data),
        "copies": f"{mean[COPIES]['disagreement']!r}",
        "fit_seconds": f"{sum(seconds.values()) / len(seconds):.0f}",
    }


def novelty(sources: dict[str, Zoo], trained: Zoo, data: Dataset) -> str:
    """The audit of generated networks, against networks that were trained one by one."""
    gauge = Gauge.of(TARGET)
    reference = gauge.fixed(trained.take([0]).weights())[0]

    def aligned(zoo: Zoo) -> Tensor:
        orders = torch.Generator().manual_seed(0)
        return align(gauge.fixed(zoo.weights()), reference, gauge.layout, gauge.groups, orders)

    tables = evaluate_generation(
        {name: zoo.with_weights(gauge.fixed(zoo.weights())) for name, zoo in sources.items()}, data,
        training=trained.take(range(TRAINED)), heldout=trained.take(range(TRAINED, len(trained))), align=aligned,
        epochs=[0],
    )  # fmt: skip
    tables.novelty.write_csv(RESULTS / "manifold_novelty.csv")
    columns = ("source", "n", "distance_ratio_50", "z_u", "max_iou", "pair_iou", "nap_50", "nap_100", "verdict")
    return table(tables.novelty.select(columns))


def paths(run: Path, data: Dataset) -> str:
    """Accuracy between pairs of samples, along latents and along weights; writes the figure."""
    rows = []
    for name in (ACCURACY_ONLY, REFERENCE):
        fitted = hypernetwork(run, name, 0, data)
        generator = torch.Generator().manual_seed(1)
        ends = fitted.latents(PAIRS, generator), fitted.latents(PAIRS, generator)
        for kind, path in zip(("latents", "weights"), fitted.path(*ends, points=POINTS), strict=True):
            _, accuracy = population_metrics(TARGET, path.flatten(0, 1), data.test_images, data.test_labels)
            for t, values in zip(
                torch.linspace(0, 1, POINTS).tolist(), accuracy.unflatten(0, (POINTS, -1)), strict=True
            ):
                rows += [
                    {"setting": name, "line in": kind, "t": t, "pair": pair, "accuracy": value}
                    for pair, value in enumerate(values.tolist())
                ]
    frame = pl.DataFrame(rows)
    frame.write_csv(RESULTS / "manifold_paths.csv")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, (name,) in zip(axes, frame.select("setting").unique(maintain_order=True).rows(), strict=True):
        for kind, colour in (("latents", "#d55e00"), ("weights", "#3f7fb8")):
            some = frame.filter(pl.col("setting") == name, pl.col("line in") == kind)
            for pair in range(PAIRS):
                one = some.filter(pl.col("pair") == pair)
                axis.plot(one["t"], one["accuracy"], color=colour, alpha=0.25, linewidth=0.8)
            mean = some.group_by("t", maintain_order=True).agg(pl.mean("accuracy"))
            axis.plot(mean["t"], mean["accuracy"], color=colour, linewidth=2, label=f"straight line in {kind}")
        axis.set(title=name, xlabel="t")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "manifold_paths.svg", metadata={"Date": None})
    lowest = frame.group_by("setting", "line in", "pair", maintain_order=True).agg(pl.min("accuracy"))
    ends_ = (
        frame.filter(pl.col("t").is_in([0.0, 1.0]))
        .group_by("setting", "line in")
        .agg(pl.mean("accuracy").alias("ends"))
    )
    summary = lowest.group_by("setting", "line in", maintain_order=True).agg(
        pl.mean("accuracy").alias("lowest point, mean of pairs"), pl.min("accuracy").alias("lowest point of all")
    )
    return table(summary.join(ends_, on=["setting", "line in"], maintain_order="left"))


def distilled(run: Path, data: Dataset) -> str:
    """Students of an ensemble beside students of labels, five seeds."""
    ensemble = Ensemble(hypernetwork(run, REFERENCE, 0, data).sample(200, seed=0))
    kept = run / "distillation.csv"
    if not kept.exists():
        distillation(ensemble, TARGET.build, data).write_csv(kept)
    frame = pl.read_csv(kept)
    frame.write_csv(RESULTS / "manifold_distillation.csv")
    summary = frame.group_by("model", maintain_order=True).agg(
        pl.len().alias("n"), pl.mean("accuracy"), pl.std("accuracy").alias("std"), pl.mean("nll", "brier", "ece")
    )
    return table(summary)


def main(run: Path) -> None:
    """Fit, measure, and write the page."""
    torch.set_num_threads(1)
    facts = {**machine(), "torch": version("torch"), "seeds": ", ".join(map(str, SEEDS)), "drawn": DRAWN}
    facts |= {"trained": TRAINED, "heldout": DRAWN - TRAINED}
    facts["hypernetwork"] = sum(p.numel() for p in Manifold(TARGET, SETTINGS[REFERENCE], {}).module.parameters())
    (RESULTS / "manifold.md").write_text(PAGE.format(**facts, **digits(run)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
