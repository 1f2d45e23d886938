"""Diffusion generators beside everything simple, on an aligned MNIST zoo: docs/results/diffusion.md.

python docs/write_diffusion_results.py ZOOS RUN [STAGE ...]: about an hour on one core, a quarter of it for the zoo,
which is trained into the folder ZOOS where it is missing, as by

    weightspace zoo train ZOOS/mnist-mlp --recipe mnist-mlp --models 3600 --side 14 --train-limit 5000 --epochs 10
    --checkpoints 0 1 2 3 5 10 --batch-size 50 --learning-rate 0.002 0.002 --weight-decay 1e-4 1e-4 --dropout 0 0
    --train-fraction 1.0 --init kaiming_uniform --activation relu

Fitted generators, samples and tables stay in the folder RUN, so that an interrupted run goes on. Stages: sources,
prompts, memory, pdiff, page; all of them when none is named. Images come from the folder of the variable
WEIGHTSPACE_DATA. Sizes and steps were chosen by validation networks and images; test images and held-out runs are used
once. One seed.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import polars as pl
import torch
from diffusion_page import FILES, page

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.encoders import SANE, ConvAutoencoderConfig, ConvAutoencoderTraining, TrainingConfig
from weightspace.encoders.preparation import aligned_rows
from weightspace.evaluation import novelty
from weightspace.evaluation.generation import evaluate_generation
from weightspace.generators import (
    DDPM,
    GPT,
    KDE,
    Components,
    ConvDenoiser,
    Diffusion,
    DiffusionConfig,
    DiffusionTraining,
    GPTConfig,
    GPTTraining,
    Latents,
    MLPDenoiser,
    Rows,
    TransformerDenoiser,
    baselines,
    load,
    pdiff,
)
from weightspace.generators.spaces import Space
from weightspace.zoo import Zoo, behaviour
from weightspace.zoo import open as open_zoo
from weightspace.zoo.recipes import by_name
from weightspace.zoo.train import train as train_zoo

RECIPE = by_name(
    "mnist-mlp", models=3600, side=14, train_limit=5000, epochs=10, checkpoints=(0, 1, 2, 3, 5, 10), batch_size=50,
    learning_rate=(0.002, 0.002), weight_decay=(1e-4, 1e-4), dropout=(0.0, 0.0), train_fraction=(1.0,),
    init=("kaiming_uniform",), activation=("relu",),
)  # fmt: skip
TRAINED, HELD = 1000, 300
"""Runs that generators see; runs of validation, and as many held out."""
RUNS = (100, 300, 1000, 3000)
DRAWN, IMAGES, SEED = 100, 2000, 0
"""Networks a source; test images that they are judged by."""
LOSS, ACCURACY = "metric.validation_loss", "metric.validation_accuracy"
SMALL = MLPDenoiser(width=384, depth=2)
BASE = DiffusionConfig(denoiser=SMALL, average=0.99)
STEPS = DiffusionTraining(epochs=12, accelerator="cpu")
FEWER = DiffusionTraining(epochs=6, accelerator="cpu")
"""For the study of memory: the same number of steps for every number of runs."""
CONV = ConvAutoencoderConfig(channels=(8, 16, 32, 32, 8), latent=64)
CONV_STEPS = ConvAutoencoderTraining(epochs=6, accelerator="cpu")
DENOISER = ConvDenoiser(channels=(1, 8, 16, 32, 64, 32, 16, 8, 1))
SIGMAS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0)


# ---- The zoo and its parts


def networks(zoos: Path) -> tuple[Zoo, Dataset]:
    """The zoo, trained if it is not there, and its images with fewer test images."""
    folder = zoos / "mnist-mlp"
    zoo = open_zoo(folder) if folder.is_dir() else train_zoo(folder, RECIPE)
    data = datasets.load(RECIPE.data, train_limit=RECIPE.train_limit, seed=RECIPE.seed, side=RECIPE.side)
    return zoo, replace(data, test_images=data.test_images[:IMAGES], test_labels=data.test_labels[:IMAGES])


def part(zoo: Zoo, first: int, last: int) -> Zoo:
    """All checkpoints of some runs; seeds are in no order, so that these are random runs."""
    return zoo.where(pl.col("model").is_in(sorted(zoo.models)[first:last]))


def split(zoo: Zoo, trained: int = TRAINED) -> tuple[Zoo, Zoo, Zoo]:
    """Runs to train on, runs to choose by, runs that nothing sees before the end."""
    count = len(zoo.models)
    return part(zoo, 0, trained), part(zoo, count - 2 * HELD, count - HELD), part(zoo, count - HELD, count)


def kept(folder: Path, make: Callable[[], Zoo]) -> Zoo:
    """A zoo from its folder if it is there."""
    return open_zoo(folder) if folder.is_dir() else make().save(folder)


def fitted(
    folder: Path, train: Zoo, validation: Zoo, space: Callable[[], Space], config: DiffusionConfig,
    optimisation: TrainingConfig = STEPS, condition: Sequence[str] = (),
) -> Diffusion:  # fmt: skip
    """A diffusion from its folder if it is there."""
    if (folder / "config.json").is_file():
        return Diffusion.from_pretrained(folder)
    return Diffusion.fit(
        train, validation=validation, space=space(), config=config, optimisation=optimisation, condition=condition,
        folder=folder,
    )  # fmt: skip


# ---- 1. Sources


def sources(zoo: Zoo, data: Dataset, run: Path) -> None:
    """Every generator and every baseline, measured alike."""
    everything, validation, heldout = split(zoo)
    train, chosen = everything.last(), validation.last()
    rows = Rows.fit(train)

    def align(some: Zoo) -> torch.Tensor:
        return aligned_rows(some, rows.reference)

    aligned = train.with_weights(align(train))
    models, drawn = run / "models", run / "sources"
    sane_folder = models / "sane"

    def sane() -> SANE:
        if (sane_folder / "config.json").is_file():
            return SANE.load(sane_folder)
        optimisation = TrainingConfig(epochs=10, batch_size=32, accelerator="cpu")
        return SANE.fit(train, validation=chosen, optimisation=optimisation, folder=sane_folder)

    def components(k: int) -> Space:
        return Components.fit(train, k)

    def ddpm(**changes: object) -> DiffusionConfig:
        return replace(BASE, process=DDPM(**changes))  # type: ignore[arg-type]

    tokens = TransformerDenoiser(width=96, depth=3)
    plans: dict[str, tuple[Callable[[], Space], DiffusionConfig]] = {
        "flow, rows": (lambda: rows, BASE),
        "flow, 256 components": (lambda: components(256), BASE),
        "DDPM, rows": (lambda: rows, ddpm()),
        "DDPM, 256 components": (lambda: components(256), ddpm()),
        "flow, SANE latents": (lambda: Latents.fit(train, sane()), replace(BASE, denoiser=tokens)),
    }
    generated: dict[str, Zoo] = {}
    for name, (space, config) in plans.items():
        folder = name.replace(", ", "-").replace(" ", "-")

        def draw(folder=folder, space=space, config=config) -> Zoo:
            return fitted(models / folder, train, chosen, space, config).sample(DRAWN, seed=SEED)

        generated[name] = kept(drawn / folder, draw)
    generated["p-diff"] = kept(
        drawn / "p-diff",
        lambda: pdiff.fit(
            train, validation=chosen, autoencoder=CONV, denoiser=DENOISER, autoencoder_training=CONV_STEPS,
            optimisation=DiffusionTraining(epochs=20, batch_size=50, learning_rate=1e-3, accelerator="cpu"),
            folder=models / "p-diff",
        ).sample(DRAWN, steps=200, seed=SEED),
    )  # fmt: skip
    generated["KDE, SANE latents"] = kept(drawn / "kde", lambda: KDE(sane()).fit(train).sample(DRAWN, seed=SEED))
    generator = torch.Generator().manual_seed(SEED)
    some = heldout.last().take(range(DRAWN))
    simple = {
        "random initialisation": baselines.random_initialisation(train, DRAWN, generator),
        "one epoch of training": heldout.where(pl.col("step") == 1).take(range(DRAWN)),
        **{f"noise {sigma}": baselines.noise(aligned, DRAWN, generator, sigma=sigma) for sigma in SIGMAS},
        "interpolation": baselines.interpolation(aligned, DRAWN, generator),
        "interpolation, not aligned": baselines.interpolation(train, DRAWN, generator),
        **{f"average of {k}": baselines.average(aligned, DRAWN, generator, k=k) for k in (2, 4, 16)},
        "average of all": baselines.average(aligned, 1, generator, k=None),
        "average of 16, not aligned": baselines.average(train, DRAWN, generator, k=16),
        "Gaussian": baselines.diagonal_gaussian(aligned, DRAWN, generator),
        "Gaussian, not aligned": baselines.diagonal_gaussian(train, DRAWN, generator),
        **{f"Gaussian of {k} components": component_gaussian(train, k, generator) for k in (64, 256)},
        "reconstruction, 256 components": reconstructed(components(256), some),
        "reconstruction, SANE": reconstructed(Latents.fit(train, sane()), some),
    }
    tables = evaluate_generation(
        {**generated, **simple}, data, training=train, heldout=heldout.last(), align=align, epochs=[0, 1],
        fine_tune=[*generated, "random initialisation", "Gaussian", "average of 16"], seed=SEED,
    )  # fmt: skip
    tables.save(run / "tables")


def component_gaussian(train: Zoo, k: int, generator: torch.Generator) -> Zoo:
    """A Gaussian with the zoo's mean and its first principal components."""
    space = Components.fit(train, k)
    return like(space.decode(torch.randn(DRAWN, *space.shape, generator=generator)), train)


def reconstructed(space: Space, zoo: Zoo) -> Zoo:
    """Networks that no generator has seen, there and back: what a space can hold at most."""
    return zoo.with_weights(space.decode(space.encode(zoo)))


def like(rows: torch.Tensor, train: Zoo) -> Zoo:
    """Rows as networks of their own."""
    table = pl.DataFrame({"model": [f"made-{i:04d}" for i in range(len(rows))], "step": [0] * len(rows)})
    return Zoo.in_memory(rows, train.layout, table, train.header).with_columns(**{"config.activation": "relu"})


# ---- 2. Prompts


def prompts(zoo: Zoo, data: Dataset, run: Path) -> None:
    """Networks of a loss that is asked for: a conditional flow, G.pt from held-out starts, and retrieval."""
    train, validation, heldout = split(zoo)
    after = [part.where(pl.col("step") > 0) for part in (train, validation)]
    models = run / "models"
    asked = torch.linspace(0.30, 1.0, 15).repeat_interleave(8)

    def space() -> Space:
        return Components.fit(after[0].take(range(0, len(after[0]), 3)), 256)

    flow = fitted(models / "flow-conditional", *after, space, BASE, condition=(LOSS,))
    known = torch.tensor(after[0].table[LOSS].to_list())
    found = {
        "nearest zoo model": after[0].take((known - asked[:, None]).abs().argmin(1).tolist()),
        "flow, guidance 1": flow.sample(len(asked), condition={LOSS: asked}, seed=SEED),
        "flow, guidance 2": flow.sample(len(asked), condition={LOSS: asked}, guidance=2.0, seed=SEED),
    }
    obtained(found, asked, data, run / "prompts" / "flow.csv")
    folder = models / "gpt"
    if (folder / "config.json").is_file():
        gpt = load(folder)
    else:
        gpt = GPT.fit(
            train, validation=validation, config=GPTConfig(width=128, depth=2, chunk=128), folder=folder,
            optimisation=GPTTraining(epochs=12, accelerator="cpu"),
        )  # fmt: skip
    starts = heldout.where(pl.col("step") == 0).take([i % HELD for i in range(len(asked))])

    def measure(some: Zoo) -> list[float]:
        return behaviour.metrics(some, data.validation_images, data.validation_labels)[0].tolist()

    rounds = gpt.recursive(starts, asked.tolist(), 2, measure, seed=SEED)
    obtained({"G.pt": rounds[0], "G.pt, twice": rounds[1]}, asked, data, run / "prompts" / "gpt.csv")


def obtained(found: dict[str, Zoo], asked: torch.Tensor, data: Dataset, file: Path) -> None:
    """Write the test loss of networks beside the loss that they were asked to have."""
    rows = []
    for name, made in found.items():
        loss, accuracy = behaviour.metrics(made, data.test_images, data.test_labels)
        rows += [
            {"source": name, "asked": a, "loss": x, "accuracy": y}
            for a, x, y in zip(asked.tolist(), loss.tolist(), accuracy.tolist(), strict=True)
        ]
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_csv(file)


# ---- 4. Memory


def memory(zoo: Zoo, data: Dataset, run: Path) -> None:
    """The same training on more and more runs: when samples stop being copies, and what they are then."""
    heldout = split(zoo)[2].last()
    for name, runs in product(("64 components", "rows"), RUNS):
        label = name.replace(" ", "-")
        file = run / "memory" / f"{runs}-{label}.csv"
        if file.is_file():
            continue
        train = split(zoo, runs)[0].last()
        rows = Rows.fit(train)

        def align(some: Zoo, rows=rows) -> torch.Tensor:
            return aligned_rows(some, rows.reference)

        def draw(train=train, rows=rows, folder=run / "models" / f"memory-{runs}-{label}", name=name) -> Zoo:
            # training networks choose the epoch, which is the last one or near it: nothing stops early
            some = train.take(range(min(RUNS)))
            return fitted(
                folder, train, some, lambda: rows if name == "rows" else Components.fit(train, 64), BASE, FEWER
            ).sample(DRAWN, seed=SEED)

        sources = {f"flow, {name}": kept(run / "sources" / f"memory-{runs}-{label}", draw)}
        if name != "rows":
            aligned = train.with_weights(align(train))
            sources["average of 16"] = baselines.average(aligned, DRAWN, torch.Generator().manual_seed(SEED), k=16)
        tables = evaluate_generation(sources, data, training=train, heldout=heldout, align=align, epochs=[0], seed=SEED)
        measured = tables.generation.select("source", "accuracy_mean", "accuracy_std")
        found = tables.novelty.join(measured, on="source", maintain_order="left")
        file.parent.mkdir(parents=True, exist_ok=True)
        found.select(pl.lit(runs).alias("runs"), pl.all()).write_csv(file)


# ---- p-diff's own setting


def subset(zoo: Zoo, data: Dataset, run: Path) -> None:
    """The last layer of one network, kept at each of 300 steps: p-diff beside average, Gaussian and noise."""
    best = split(zoo)[0].last().best(1 / TRAINED, ACCURACY)
    layer = pdiff.Subset(best, ("fc2",))
    checkpoints = pdiff.consecutive_checkpoints(layer, data, seed=SEED)
    held = [i for i in range(len(checkpoints)) if i % 5 == 0]
    train = checkpoints.take([i for i in range(len(checkpoints)) if i % 5])
    validation = checkpoints.take(held)
    generator = torch.Generator().manual_seed(SEED)
    drawn = kept(
        run / "sources" / "p-diff-subset",
        lambda: pdiff.fit(
            train, validation=validation, autoencoder=replace(CONV, latent=32), align=False, denoiser=DENOISER,
            autoencoder_training=replace(CONV_STEPS, epochs=12),
            optimisation=DiffusionTraining(epochs=20, batch_size=50, learning_rate=1e-3, accelerator="cpu"),
            folder=run / "models" / "p-diff-subset",
        ).sample(DRAWN, steps=200, seed=SEED),
    )  # fmt: skip
    found = {
        "checkpoints": train, "other checkpoints of the run": validation, "p-diff": drawn,
        "average of all": baselines.average(train, 1, generator, k=None),
        "average of 16": baselines.average(train, DRAWN, generator, k=16),
        "Gaussian": baselines.diagonal_gaussian(train, DRAWN, generator),
        **{f"noise {sigma}": baselines.noise(train, DRAWN, generator, sigma=sigma) for sigma in (0.1, 0.3, 1.0)},
    }  # fmt: skip
    other = split(zoo)[2].last()
    rows, wrong, own = [], {}, torch.arange(len(train))
    for name, some in {**{name: layer.insert(zoo) for name, zoo in found.items()}, "independent runs": other}.items():
        wrong[name] = behaviour.logits(some, data.test_images).argmax(2) != data.test_labels
    scale = novelty.usual_distance(train.weights(), own)
    for name, errors in wrong.items():
        accuracy = 1 - errors.float().mean(1)
        same = (own, own) if name == "checkpoints" else None
        near = None
        if name in found:
            near = float((novelty.nearest(found[name].weights(), train.weights(), same)[0] / scale).median())
        rows.append(
            {
                "source": name, "n": len(errors), "accuracy": float(accuracy.mean()), "best": float(accuracy.max()),
                "IoU among them": novelty.pair_iou(errors, torch.arange(len(errors)))[0],
                "max IoU": float(novelty.max_iou(errors, wrong["checkpoints"], same).median()), "d/τ": near,
            }
        )  # fmt: skip
    pl.DataFrame(rows, infer_schema_length=None).write_csv(run / "pdiff.csv")


def main(zoos: Path, run: Path, stages: Sequence[str]) -> None:
    """Run the stages, then write the page."""
    torch.set_num_threads(1)
    zoo, data = networks(zoos)
    work = {"sources": sources, "prompts": prompts, "memory": memory, "pdiff": subset}
    for name, stage in work.items():
        if name in stages and not (run / FILES[name]).is_file():
            stage(zoo, data, run)
    if "page" in stages:
        facts = {"networks": len(zoo.models), "parameters": zoo.layout.parameters, "trained": TRAINED, "held": HELD}
        page(run, facts | {"images": IMAGES, "drawn": DRAWN, "steps": FEWER.epochs * BASE.epoch_steps})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ("sources", "prompts", "memory", "pdiff", "page"))
