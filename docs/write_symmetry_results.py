"""What alignment is worth: docs/results/symmetry.md, its picture and its CSVs.

python docs/write_symmetry_results.py RUN --data-root DIR: about 15 minutes on two cores, MNIST in DIR. Trains two wide
MLPs, two CNNs and a zoo of CNN-s (an interrupted zoo is continued in RUN), then measures barriers, the alignment
ablation of SANE and soups. `--only pairs`, `ablation`, `merging` or `page` repeats a part; the page is written from the
CSVs. Choices are not tuned; SANE keeps its epoch by validation networks, networks of a soup are chosen by validation
accuracy, and test images and test networks are only measured on.
"""

import argparse
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import polars as pl
import torch
from torch import Tensor

import weightspace as ws
from weightspace import datasets
from weightspace.demo import machine
from weightspace.encoders import SANE, TrainingConfig
from weightspace.encoders.sane_config import small
from weightspace.encoders.transformer import masked_mse
from weightspace.evaluation.barrier import alignments, compare_barriers
from weightspace.networks import CNN, MLP, Layout, Network
from weightspace.networks.population import Hyperparameters, initial_rows, population_metrics, train_population
from weightspace.report import barrier_picture
from weightspace.symmetry import (
    SinkhornConfig,
    align,
    balanced,
    batch_losses,
    chain_groups,
    chain_scales,
    mean_reference,
    merge_many,
    permuted,
    sinkhorn_matching,
    straight_through_matching,
)
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train as train_zoo

RESULTS = Path(__file__).parent / "results"
SEED, POINTS, MEASURED, BATCH = 0, 11, 2000, 128
IMAGES = 10_000
"""Training images of the pairs."""
PAIRS: dict[str, tuple[Network, int]] = {
    "MLP": (MLP(image_shape=(1, 28, 28), hidden=(512, 512, 512)), 10),
    "CNN": (CNN(image_shape=(1, 28, 28), channels=(16, 32), kernels=(3, 3), pools=(2, 2), hidden=(64,)), 6),
}
"""Networks of the pairs, and epochs of Adam at 1e-3."""
ZOO = Recipe(
    data="mnist", network="cnn_s", models=128, epochs=5, checkpoints=(4, 5), train_limit=1000, train_fraction=(1.0,),
    activation=("tanh",), init=("kaiming_uniform",), learning_rate=(3e-3, 1e-2), dropout=(0.0, 0.0), seed=SEED,
)  # fmt: skip
SANE_EPOCHS, SOUP = 50, 16
STE_STEPS, SINKHORN = 60, SinkhornConfig(steps=100)
HEAD = """# Symmetry: what alignment is worth

On MNIST, seed {seed}, {cores} cores of {processor}, {system}, Python {python}, torch {torch}:
`python docs/write_symmetry_results.py RUN --data-root DIR` ({seconds}, on a machine that did other work too). One seed;
settings were not tuned.
"""
SECTIONS = {
    "barriers": """
## Barriers between two trainings

Two networks of each kind, from independent initialisations and batches, {images} training images. Barrier is the
largest loss on the line between them above the interpolated loss of the ends, in nats, over {points} points; accuracy
is the lowest on the line. Measured on {measured} test images and as many training images. Activations are compared
(correlations), and REPAIR measures its statistics, on 1000 training images. Straight-through and Sinkhorn (distance to
the first network) ran for {ste} and {sinkhorn} steps. "Balanced" puts the scales of the ReLU units into the balanced
gauge before weight matching. [symmetry_barriers.csv](symmetry_barriers.csv),
[symmetry_curves.csv](symmetry_curves.csv)

{table}

Published: a wide MLP on MNIST reaches a barrier of about zero after weight matching (Ainsworth et al., 2023).

![Loss and accuracy on the line between two MLPs](symmetry.png)
""",
    "ablation": """
## Does an encoder need alignment?

SANE (`small`) for {sane_epochs} epochs on a zoo of {models} CNN-s (tanh, {zoo_images} training images, epochs
{checkpoints} of {zoo_epochs}; mean test accuracy {accuracy:.3f}). Error is the masked mean squared error of
standardised weights, without noise, on networks of each side of the split by model; the best epoch is chosen on
validation networks. [symmetry_ablation.csv](symmetry_ablation.csv)

{table}

Published, on larger models and zoos (SANE, table 6): test .167 without alignment, .082 with aligned data and a permuted
view, .082 with both views aligned.
""",
    "merging": """
## Merging

The {soup} networks with the best validation accuracy among the training networks of a zoo of {models} CNN-s
(tanh, epoch {zoo_epochs}), averaged. Signs of tanh units are not aligned. [symmetry_merging.csv](symmetry_merging.csv)

{table}
""",
}
"""Sections of the page by their table; one that was not measured is left out."""


def pair(network: Network, epochs: int, data: datasets.Dataset) -> Tensor:
    """Two independent trainings."""
    seeds, one = torch.tensor([SEED + 1, SEED + 2]), torch.ones(2)
    h = Hyperparameters(
        seeds=seeds, learning_rate=one * 1e-3, weight_decay=one * 0, dropout=one * 0, train_fraction=one
    )
    rows = initial_rows(network, seeds, "kaiming_uniform", one)
    images, labels = data.train_images, data.train_labels
    stages = train_population(network, rows, h, images, labels, epochs=epochs, batch_size=BATCH, checkpoints=[epochs])
    return [trained for _, trained, _ in stages][-1]


def all_alignments(network: Network, rows: Tensor, data: datasets.Dataset) -> dict[str, Tensor]:
    """The second network of a pair, aligned in every way."""
    module = network.build()
    layout = Layout.of(module)
    groups = chain_groups(layout)
    found = alignments(network, *rows, groups, data, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    losses = batch_losses(module, data.train_images, data.train_labels, batch_size=1000, generator=generator)
    learned = straight_through_matching(rows[1:], rows[0], layout, groups, losses, generator=generator, steps=STE_STEPS)
    found["straight-through"] = permuted(rows[1:], layout, groups, learned)[0]
    soft = sinkhorn_matching(rows[1:], rows[0], layout, groups, config=SINKHORN, generator=generator)
    found["Sinkhorn"] = permuted(rows[1:], layout, groups, soft)[0]
    return found


def pairs(data: datasets.Dataset) -> None:
    """Barriers of both pairs."""
    measured = replace(data, test_images=data.test_images[:MEASURED], test_labels=data.test_labels[:MEASURED])
    summaries, curves = [], []
    for name, (network, epochs) in PAIRS.items():
        rows = pair(network, epochs, data)
        layout = Layout.of(network.build())
        groups = chain_groups(layout)
        tables = compare_barriers(
            network, rows[0], all_alignments(network, rows, data), groups, measured, points=POINTS
        )
        gauged = balanced(rows, layout, chain_scales(layout, activation="relu"))
        matched = align(gauged[1:], gauged[0], layout, groups, torch.Generator().manual_seed(SEED))
        more = compare_barriers(
            network, gauged[0], {"balanced, weight matching": matched[0]}, groups, measured, points=POINTS
        )
        for kept, both in zip((summaries, curves), zip(tables, more, strict=True), strict=True):
            kept += [table.select(pl.lit(name).alias("network"), pl.all()) for table in both]
    pl.concat(summaries).write_csv(RESULTS / "symmetry_barriers.csv")
    pl.concat(curves).write_csv(RESULTS / "symmetry_curves.csv")


def error(sane: SANE, zoo: ws.Zoo) -> float:
    """Reconstruction error of standardised weights."""
    tokens = sane.view.tokenise(sane.preparation.apply(zoo))
    with torch.no_grad():
        decoded = sane.module.decode(sane.module.encode(tokens, sane.view.positions), sane.view.positions)
    return float(masked_mse(decoded, tokens, sane.view.mask))


def ablation(zoo: ws.Zoo) -> None:
    """SANE on the zoo as it is, aligned, and aligned with a permuted view."""
    training, validation, test = zoo.finite().split(SEED)
    config, optimisation = small(zoo.layout), TrainingConfig(epochs=SANE_EPOCHS, seed=SEED, accelerator="cpu")
    rows = []
    for name, aligned, view in (
        ("not aligned", False, False), ("aligned", True, False), ("aligned, one view permuted", True, True),
    ):  # fmt: skip
        sane = SANE.fit(
            training, validation=validation, config=replace(config, permuted_view=view), optimisation=optimisation,
            align=aligned,
        )  # fmt: skip
        sane.module.eval()
        sides = {"training": training, "validation": validation, "test": test}
        rows.append({"data and views": name} | {f"{side} error": error(sane, part) for side, part in sides.items()})
    pl.DataFrame(rows).write_csv(RESULTS / "symmetry_ablation.csv")


def merging(zoo: ws.Zoo, data: datasets.Dataset) -> None:
    """Soups of the best training networks."""
    training, _, _ = zoo.finite().split(SEED)
    ingredients = training.last()
    ingredients = ingredients.best(SOUP / len(ingredients), "metric.validation_accuracy")
    network, groups = ws.networks.from_json(zoo.header["network"]), chain_groups(zoo.layout)
    network = replace(network, activation=ZOO.activation[0])
    rows = ingredients.weights()
    best = rows[ingredients.table["metric.validation_accuracy"].arg_max()]
    generator = torch.Generator().manual_seed(SEED)
    reference = mean_reference(rows, best, zoo.layout, groups, generator)
    _, soup = merge_many(rows, zoo.layout, groups, generator)
    soups = {
        "as they are": rows.mean(0),
        "aligned to the best": align(rows, best, zoo.layout, groups, generator).mean(0),
        "aligned to their mean": align(rows, reference, zoo.layout, groups, generator).mean(0),
        "MergeMany": soup,
    }
    candidates = torch.stack([*soups.values()])
    loss, accuracy = population_metrics(network, candidates, data.test_images, data.test_labels)
    own_loss, own = population_metrics(network, rows, data.test_images, data.test_labels)
    table = [
        {"networks": f"each of the {SOUP}, mean", "test loss": own_loss.mean(), "test accuracy": own.mean()},
    ] + [
        {"networks": f"soup of {SOUP}, {name}", "test loss": one_loss, "test accuracy": one}
        for name, one_loss, one in zip(soups, loss, accuracy, strict=True)
    ]
    pl.DataFrame([{k: float(v) if isinstance(v, Tensor) else v for k, v in row.items()} for row in table]).write_csv(
        RESULTS / "symmetry_merging.csv"
    )


def table(frame: pl.DataFrame) -> str:
    """A Markdown table with three decimals."""
    lines = [" | ".join(frame.columns), " | ".join("---:" if t.is_numeric() else ":---" for t in frame.dtypes)]
    for row in frame.rows():
        lines.append(" | ".join("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return "\n".join(f"| {line} |" for line in lines)


def barrier_table() -> pl.DataFrame:
    """Barriers with a column a part of the data, and the picture of the MLPs beside it."""
    barriers = pl.read_csv(RESULTS / "symmetry_barriers.csv")
    wide = barriers.with_columns(
        column=pl.when("repair").then(pl.col("images") + ", REPAIR").otherwise(pl.col("images"))
    ).pivot("column", index=["network", "alignment"], values="barrier")
    lowest = barriers.filter((pl.col("images") == "test") & ~pl.col("repair")).select(
        "network", "alignment", pl.col("lowest_accuracy").alias("lowest test accuracy")
    )
    curves = pl.read_csv(RESULTS / "symmetry_curves.csv")
    barrier_picture(
        curves.filter((pl.col("network") == "MLP") & (pl.col("images") == "test")), RESULTS / "symmetry.png"
    )
    return wide.join(lowest, on=["network", "alignment"], maintain_order="left")


def page(run: Path, seconds: dict[str, float]) -> None:
    """Write the page from the tables that there are."""
    measured = [name for name in SECTIONS if (RESULTS / f"symmetry_{name}.csv").exists()]
    facts = {**machine(), "torch": version("torch"), "seed": SEED, "images": IMAGES, "points": POINTS}
    facts |= {"measured": MEASURED, "ste": STE_STEPS, "sinkhorn": SINKHORN.steps, "sane_epochs": SANE_EPOCHS}
    facts |= {"models": ZOO.models, "zoo_images": ZOO.train_limit, "zoo_epochs": ZOO.epochs, "soup": SOUP}
    facts |= {"checkpoints": ", ".join(map(str, ZOO.checkpoints))}
    facts |= {"seconds": ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())}
    if "ablation" in measured:
        facts |= {"accuracy": ws.open(run / "zoo").last().table["metric.test_accuracy"].mean()}
    text = HEAD.format(**facts)
    for name in measured:
        found = barrier_table() if name == "barriers" else pl.read_csv(RESULTS / f"symmetry_{name}.csv")
        text += SECTIONS[name].format(**facts, table=table(found))
    (RESULTS / "symmetry.md").write_text(text)


def main() -> None:
    """Measure what was asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["pairs", "zoo", "ablation", "merging", "page"])
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    times = options.run / "seconds.json"
    seconds = json.loads(times.read_text()) if times.exists() else {}
    data = datasets.load("mnist", options.data_root, train_limit=IMAGES, seed=SEED)
    parts = {
        "pairs": lambda: pairs(data),
        "zoo": lambda: train_zoo(options.run / "zoo", ZOO, data_root=options.data_root),
        "ablation": lambda: ablation(ws.open(options.run / "zoo")),
        "merging": lambda: merging(ws.open(options.run / "zoo"), data),
    }
    for name, work in parts.items():
        if name in options.only:
            started = perf_counter()
            work()
            seconds[name] = perf_counter() - started
            times.write_text(json.dumps(seconds))
    if "page" in options.only:
        page(options.run, seconds)


if __name__ == "__main__":
    main()
