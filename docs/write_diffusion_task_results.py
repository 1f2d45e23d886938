"""Networks for tasks and data sets never seen: docs/results/diffusion_tasks.md, its CSVs and figure.

python docs/write_diffusion_task_results.py RUN ROOT: about fifteen minutes on one thread. ROOT has the folders mnist,
fashion_mnist and kmnist_test and the files of EMNIST letters, USPS and CIFAR-10. Meta-zoos, fitted generators
and measurements stay in the folder RUN, so that an interrupted run goes on.

What is chosen (features, penalties, how many networks are averaged, learning rates) is chosen on validation tasks of
the known data sets for unseen tasks of these, and on USPS, which no training task is cut from, for unseen data sets.
Test tasks and KMNIST are measured once.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import matplotlib
import polars as pl
import torch
from write_manifold_results import RESULTS, table

from weightspace import networks
from weightspace.demo import machine
from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.evaluation.tasks import LEARNING_RATES, evaluate_on_tasks
from weightspace.generators import DatasetEncoderConfig, Diffusion, DiffusionConfig, RecurrentDenoiser, Tokens
from weightspace.generators.denoisers import MLPDenoiser
from weightspace.generators.denoising import DDPM
from weightspace.generators.for_data import ForDataTraining, fit_for_data, training_images
from weightspace.generators.image_features import ComponentFeatures, ConvolutionalFeatures
from weightspace.generators.task_baselines import (
    WeightRegression,
    class_means,
    common_start,
    nearest_task,
    networks_for,
    random_start,
)
from weightspace.zoo import Zoo
from weightspace.zoo.task_zoo import SPLIT, TaskRecipe, task_metrics, train_tasks
from weightspace.zoo.tasks import DATASET, Task, TaskImages, tasks_of

RECIPE = TaskRecipe(tasks=(150, 150, 1500, 150), validation_data=("usps",), test_data=("kmnist_test",))
PENALTIES = (1e-4, 1e-2, 1.0)
SOUPS = (5, 20)
CANDIDATES, DRAWN = 16, 4
"""Networks drawn for a task, and how many of them stand for a single sample."""
SIZES = (100, 300, 1000)
"""Numbers of seen tasks, beside all of them."""
TRAINING = ForDataTraining(accelerator="cpu")
SETTINGS = {
    "unseen tasks": {"penalty": 1e-2, "encoder": DatasetEncoderConfig(examples=100)},
    "unseen data set": {"penalty": 1.0, "encoder": DatasetEncoderConfig(examples=50)},
}
SIZED = ("nearest task", "ridge regression", "diffusion")
SIZE_COLUMNS = ["setting", "source", "tasks seen", "accuracy"]
TOKEN = 128
PAGE = """# Networks for tasks and data sets never seen

`python docs/write_diffusion_task_results.py RUN ROOT` on {cores} cores of {processor}, {system}, Python {python}, torch
{torch}; one thread, seed 0. A row a network:
[diffusion_tasks.csv](diffusion_tasks.csv); summary: [diffusion_tasks_summary.csv](diffusion_tasks_summary.csv).

{networks} networks, MLPs 196-14-4 with {parameters} parameters from one common start, each trained for {epochs} epochs
on four classes of one data set at 14x14 in grey, with {train} images of each class. {seen} training tasks are of MNIST,
Fashion-MNIST, EMNIST letters and CIFAR-10; 80 validation and 80 test tasks of these share no set of classes with them.
All tasks of USPS (20, for choices) and of KMNIST (20, for the test) are held out with their data sets.

Every source makes networks from the {train} training images of each class. After that it is trained for one epoch on
them, with a learning rate from {rates} that was chosen on its own networks for validation
tasks. Accuracy is that on {test} test images of each class, mean and deviation over tasks. `best of
{candidates}` are chosen on validation images, {validation} of each class; `diffusion` is the mean over {drawn} draws
without any choice.

## Unseen tasks of known data sets

{tasks}

By data set, as made (epoch 0):

{sets}

## An unseen data set: KMNIST

Choices on USPS. The nearest tasks were measured a second time, after they had got features of their own choice;
everything else once, but for a run of a few networks that tried the script and from which nothing was chosen.

{data}

## What was chosen

Accuracy as made on validation images: of validation tasks of the known data sets, and of USPS. The setting is the
penalty, or how many networks are averaged; each source has the features that are best for it.

{choices}

## Variants of the generator

One draw, as made, on validation images of validation tasks and of USPS, after 500 steps of training each; seconds of
the fit on a machine that did other things too.

{variants}

## How many tasks

![Accuracy as made against the number of seen tasks](diffusion_tasks.svg)

[diffusion_tasks_sizes.csv](diffusion_tasks_sizes.csv); test tasks of known data sets and KMNIST, as made.

{sizes}

## One start or many

The same tasks, but each network with a start of its own, and these networks aligned to a common reference. Ridge
regression and the mean of the five nearest, on validation images of validation tasks and of USPS, as made.

{starts}
"""


def accuracy(zoo: Zoo, images: TaskImages, part: str = "validation") -> float:
    """Mean accuracy of networks, each on its own task."""
    return float(scores(zoo, images, part).mean())


def scores(zoo: Zoo, images: TaskImages, part: str) -> torch.Tensor:
    network = networks.from_json(zoo.header["network"])
    return torch.tensor(task_metrics(network, zoo.weights(), images, tasks_of(zoo), (part,))[1].to_list())


def best(zoo: Zoo, images: TaskImages, count: int) -> Zoo:
    """Of every `count` networks in a row, the one that does best on validation images of their task."""
    chosen = scores(zoo, images, "validation").view(-1, count).argmax(1)
    return zoo.take((torch.arange(len(chosen)) * count + chosen).numpy())


def repeated(zoo: Zoo, count: int) -> list[Task]:
    return [task for task in tasks_of(zoo) for _ in range(count)]


def drawn(generator: Diffusion, zoo: Zoo, images: TaskImages, count: int) -> Zoo:
    """So many networks for each task of a zoo, one task after the other."""
    rows = [
        generator.sample(count, condition=images.data(task), seed=number).weights()
        for number, task in enumerate(tasks_of(zoo))
    ]
    return networks_for(torch.cat(rows), zoo, repeated(zoo, count), "diffusion")


def averaged(zoo: Zoo, train: Zoo, count: int) -> Zoo:
    """The mean of the weights of every `count` networks in a row."""
    return networks_for(zoo.weights().unflatten(0, (-1, count)).mean(1), train, tasks_of(zoo)[::count], "mean")


def fitted(run: Path, name: str, make: Callable[[Path], Diffusion]) -> tuple[Diffusion, float]:
    """A generator from the folder if it is there, and the seconds of its training."""
    folder = run / name.replace(" ", "-")
    generator = Diffusion.from_pretrained(folder) if (folder / "config.json").is_file() else make(folder)
    return generator, generator.header["fit"]["seconds"]


def remembered(run: Path, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """A measurement from the folder if it is there."""
    file = run / "measured" / f"{name.replace(' ', '-')}.csv"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        make().write_csv(file)
    return pl.read_csv(file, infer_schema_length=None)


def sources(
    train: Zoo, start: Zoo, images: TaskImages, chosen: dict, generator: Diffusion
) -> dict[str, Callable[[Zoo], Zoo]]:
    """What makes networks of all sources for the tasks of a zoo, which has the networks that were trained on them."""

    def described(kind: str, zoo: Zoo) -> tuple[torch.Tensor, torch.Tensor]:
        features = chosen[kind]["features"]
        return class_means(images, tasks_of(train), features), class_means(images, tasks_of(zoo), features)

    def nearest(zoo: Zoo, kind: str = "nearest", k: int | None = 1) -> Zoo:
        return nearest_task(train, *described(kind, zoo), tasks_of(zoo), k=k)

    def best_nearest(zoo: Zoo) -> Zoo:
        known, wanted = described("nearest", zoo)
        near = torch.cdist(wanted, known).topk(CANDIDATES, largest=False).indices.flatten()
        return best(networks_for(train.weights()[near], train, repeated(zoo, CANDIDATES), "near"), images, CANDIDATES)

    def ridge(zoo: Zoo) -> Zoo:
        known, wanted = described("ridge", zoo)
        return WeightRegression(chosen["ridge"]["setting"]).fit(train, known).networks(wanted, tasks_of(zoo))

    @lru_cache(maxsize=2)
    def draws(zoo: Zoo) -> Zoo:
        return drawn(generator, zoo, images, CANDIDATES)

    def some_draws(zoo: Zoo) -> Zoo:
        places = torch.arange(len(zoo) * CANDIDATES).view(-1, CANDIDATES)[:, :DRAWN].flatten()
        return draws(zoo).take(places.numpy())

    k = int(chosen["soup"]["setting"])
    return {
        "random start": lambda zoo: random_start(train, tasks_of(zoo), torch.Generator().manual_seed(0)),
        "common start of the zoo": lambda zoo: common_start(start, tasks_of(zoo)),
        "mean of all networks": partial(nearest, k=None),
        "nearest task": nearest,
        f"nearest task, best of {CANDIDATES}": best_nearest,
        f"mean of the {k} nearest": partial(nearest, kind="soup", k=k),
        "ridge regression": ridge,
        "diffusion": some_draws,
        f"diffusion, best of {CANDIDATES}": lambda zoo: best(draws(zoo), images, CANDIDATES),
        f"diffusion, mean of {CANDIDATES}": lambda zoo: averaged(draws(zoo), train, CANDIDATES),
        f"trained for {RECIPE.epochs} epochs": lambda zoo: zoo,
    }


def choices(train: Zoo, images: TaskImages, kinds: dict, known_tasks: Zoo, new_data: Zoo) -> pl.DataFrame:
    """Every setting of the simple baselines on both kinds of validation tasks."""
    rows = []
    for name, features in kinds.items():
        known = class_means(images, tasks_of(train), features)
        makers = {("ridge regression", str(p)): WeightRegression(p).fit(train, known).networks for p in PENALTIES}
        makers |= {
            ("mean of nearest", str(k)): partial(nearest_task, train, known, k=k) for k in (1, *SOUPS)
        }  # fmt: skip
        for (source, setting), make in makers.items():
            row: dict[str, object] = {"source": source, "features": name, "setting": float(setting)}
            for kind, zoo in zip(SETTINGS, (known_tasks, new_data), strict=True):
                wanted, tasks = class_means(images, tasks_of(zoo), features), tasks_of(zoo)
                row[kind] = accuracy(make(wanted, tasks=tasks), images)
            rows.append(row)
    return pl.DataFrame(rows)


def summary(measured: pl.DataFrame) -> pl.DataFrame:
    """Mean and deviation over tasks; draws of one task are averaged first."""
    tasks = measured.group_by("setting", "source", "dataset", "classes", "epoch", "learning_rate", maintain_order=True)
    return (
        tasks.agg(pl.col("accuracy").mean())
        .group_by("setting", "source", "epoch", "learning_rate", maintain_order=True)
        .agg(pl.len().alias("tasks"), pl.col("accuracy").mean().alias("mean"), pl.col("accuracy").std().alias("std"))
    )


def shown(measured: pl.DataFrame, setting: str) -> str:
    some = summary(measured.filter(pl.col("setting") == setting))
    zero, one = (some.filter(pl.col("epoch") == epoch) for epoch in (0, 1))
    wide = zero.select("source", pl.col("mean").alias("epoch 0"), pl.col("std").alias("±")).hstack(
        one.select(pl.col("mean").alias("epoch 1"), pl.col("std").alias("± "), pl.col("learning_rate").alias("rate"))
    )
    return table(wide)


def subset(train: Zoo, size: int) -> Zoo:
    """So many training tasks, spread over the data sets as all of them are."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:size]
    return train.take(order.sort().values.numpy())


def choosing(setting: str) -> pl.Expr:
    """The networks of a meta-zoo without the validation tasks of the other setting."""
    usps = pl.col(DATASET) == "usps"
    return ~usps if setting == "unseen tasks" else (pl.col(SPLIT) != "validation") | usps


def variants(run: Path, zoo: Zoo, images: TaskImages, known_tasks: Zoo, new_data: Zoo) -> pl.DataFrame:
    """Other encoders of data sets, other denoisers."""
    train = zoo.last().where(pl.col(SPLIT) == "train")
    tokens = Tokens.fit(train, TOKEN, align=False)
    process = DDPM(target="data", schedule="cosine", eta=0.0, sampling_steps=20)
    recurrent = RecurrentDenoiser(width=64, layers=1, token=MLPDenoiser(width=128, depth=1))
    config = DiffusionConfig(process=process, denoiser=recurrent, average=0.99, dropped=0.0)
    plain = replace(config, denoiser=MLPDenoiser(width=128, depth=2))
    short = replace(TRAINING, epochs=5)
    small = DatasetEncoderConfig(sets="attention", examples=20, width=32, inducing=8, depth=1)
    kinds: dict[str, dict] = {
        "ridge, then diffusion (default)": {"config": None},
        "without the regression": {"config": plain},
        "attention among examples": {"config": plain, "encoder": small},
        "attention, aligned with weights first": {"config": plain, "encoder": small, "alignment": True},
        "attention, order of classes lost": {"config": plain, "encoder": replace(small, ordered=False)},
        "RPG: tokens, recurrent": {"config": config, "space": tokens},
        "tokens, one by one (chunks)": {
            "config": replace(config, denoiser=replace(recurrent, recurrence="none")), "space": tokens,
        },
    }  # fmt: skip
    rows = []
    for name, options in kinds.items():
        options = {"encoder": DatasetEncoderConfig(examples=100), "penalty": 1e-2} | options
        make = partial(fit_for_data, zoo.where(choosing("unseen tasks")), images, optimisation=short, **options)
        generator, seconds = fitted(run, f"variant {name}", lambda folder, make=make: make(folder=folder))
        row: dict[str, object] = {"variant": name, "seconds": seconds}
        for kind, some in zip(SETTINGS, (known_tasks, new_data), strict=True):
            row[kind] = accuracy(drawn(generator, some, images, 1), images)
        rows.append(row)
    return pl.DataFrame(rows)


def picture(sizes: pl.DataFrame) -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "weightspace"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, setting in zip(axes, SETTINGS, strict=True):
        for source in sizes["source"].unique(maintain_order=True):
            some = sizes.filter(pl.col("source") == source, pl.col("setting") == setting).sort("tasks seen")
            axis.plot(some["tasks seen"], some["accuracy"], marker="o", label=source)
        axis.set(title=setting, xlabel="tasks seen", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy as made")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "diffusion_tasks.svg", metadata={"Date": None})


def main(run: Path, root: Path) -> None:
    torch.set_num_threads(1)
    zoo = train_tasks(run / "zoo-common", RECIPE, data_root=root, workers=1)
    images, final = RECIPE.load_images(root), zoo.last()
    start = zoo.where(pl.col("step") == 0)
    train = final.where(pl.col(SPLIT) == "train")
    held = pl.col(DATASET).is_in(list(RECIPE.data))
    known_tasks = final.where(pl.col(SPLIT) == "validation", held)
    new_data = final.where(pl.col(DATASET) == "usps")
    tests = {
        "unseen tasks": final.where(pl.col(SPLIT) == "test", held),
        "unseen data set": final.where(pl.col(DATASET) == "kmnist_test"),
    }
    tuning = {"unseen tasks": known_tasks, "unseen data set": new_data}

    own, own_validation = training_images(train, images)
    kinds = {
        "32 components": ComponentFeatures.fit(own.flatten(0, 1), 32),
        "64 components": ComponentFeatures.fit(own.flatten(0, 1), 64),
        "32 convolutional": ConvolutionalFeatures.fit(own, own_validation, 32),
    }
    compared = remembered(run, "choices", lambda: choices(train, images, kinds, known_tasks, new_data))

    measured, size_rows = [], []
    for setting, options in SETTINGS.items():
        chosen = {}
        for kind, source, which in (
            ("ridge", "ridge regression", pl.lit(True)),
            ("nearest", "mean of nearest", pl.col("setting") == 1),
            ("soup", "mean of nearest", pl.col("setting") > 1),
        ):
            some = compared.filter(pl.col("source") == source, which).sort(setting, descending=True)
            row = some.row(0, named=True)
            chosen[kind] = {"features": kinds[row["features"]], "setting": row["setting"]}
        own_zoo = zoo.where(choosing(setting))
        make = partial(fit_for_data, own_zoo, images, optimisation=TRAINING, **options)
        generator, _ = fitted(run, setting, lambda folder, make=make: make(folder=folder))
        for name, source in sources(train, start, images, chosen, generator).items():

            def measure(name=name, source=source, setting=setting) -> pl.DataFrame:
                made, tuned = source(tests[setting]), source(tuning[setting])
                found = evaluate_on_tasks({name: made}, images, tuning={name: tuned})
                return found.select(pl.lit(setting).alias("setting"), pl.all())

            measured.append(remembered(run, f"{setting} {name}", measure))
        for size in SIZES:
            some = subset(train, size)
            smaller = own_zoo.where(pl.col("model").is_in(some.models) | (pl.col(SPLIT) != "train"))
            make = partial(fit_for_data, smaller, images, optimisation=replace(TRAINING, epochs=5), **options)
            less, _ = fitted(run, f"{setting} {size}", lambda folder, make=make: make(folder=folder))
            fewer = sources(some, start, images, chosen, less)
            for name in SIZED:

                def reached(name=name, setting=setting, fewer=fewer, size=size) -> pl.DataFrame:
                    value = accuracy(fewer[name](tests[setting]), images, "test")
                    return pl.DataFrame([(setting, name, size, value)], schema=SIZE_COLUMNS, orient="row")

                size_rows.append(remembered(run, f"{setting} {name} {size} tasks", reached))
        whole = summary(pl.concat(measured)).filter(pl.col("epoch") == 0, pl.col("setting") == setting)
        for name in SIZED:
            value = float(whole.filter(pl.col("source") == name)["mean"][0])
            size_rows.append(pl.DataFrame([(setting, name, len(train), value)], schema=SIZE_COLUMNS, orient="row"))
    results = pl.concat(measured)
    results.write_csv(RESULTS / "diffusion_tasks.csv", float_precision=5)
    summary(results).write_csv(RESULTS / "diffusion_tasks_summary.csv", float_precision=5)
    sizes = pl.concat(size_rows)
    sizes.write_csv(RESULTS / "diffusion_tasks_sizes.csv", float_precision=5)
    picture(sizes)

    other = remembered(run, "variants", lambda: variants(run, zoo, images, known_tasks, new_data))
    begun_alike = remembered(run, "starts", lambda: starts(run, root, images, kinds["64 components"]))
    text = PAGE.format(
        **machine(), torch=version("torch"), networks=len(final),
        parameters=final.layout.parameters, epochs=RECIPE.epochs, train=RECIPE.train_images, seen=len(train),
        test=RECIPE.test_images, validation=RECIPE.validation_images, candidates=CANDIDATES, drawn=DRAWN,
        rates=", ".join(map(str, LEARNING_RATES)), tasks=shown(results, "unseen tasks"),
        data=shown(results, "unseen data set"),
        sets=table(by_data_set(results)), choices=table(compared), variants=table(other),
        sizes=table(sizes.pivot("tasks seen", index=["setting", "source"])),
        starts=table(begun_alike),
    )  # fmt: skip
    (RESULTS / "diffusion_tasks.md").write_text(text)


def by_data_set(measured: pl.DataFrame) -> pl.DataFrame:
    some = measured.filter(pl.col("setting") == "unseen tasks", pl.col("epoch") == 0)
    mean = some.group_by("source", "dataset", maintain_order=True).agg(pl.col("accuracy").mean())
    return mean.pivot("dataset", index="source")


def starts(run: Path, root: Path, images: TaskImages, features: ComponentFeatures) -> pl.DataFrame:
    """Ridge and retrieval where all networks have one start, or each its own, aligned or not."""
    rows: list[dict] = []
    for name, recipe in (("one start", RECIPE), ("own starts", replace(RECIPE, common_init=False))):
        folder = run / ("zoo-common" if recipe.common_init else "zoo-independent")
        final = train_tasks(folder, recipe, data_root=root, workers=1).last()
        train = final.where(pl.col(SPLIT) == "train")
        kinds = {name: train}
        if not recipe.common_init:
            kinds["own starts, aligned"] = train.with_weights(aligned_rows(train, training_reference(train)))
        known = class_means(images, tasks_of(train), features)
        for kind, some in kinds.items():
            row: dict[str, object] = {"networks": kind}
            for label, where in (("validation tasks", pl.col(DATASET) != "usps"), ("USPS", pl.col(DATASET) == "usps")):
                zoo = final.where(pl.col(SPLIT) == "validation", where)
                wanted, tasks = class_means(images, tasks_of(zoo), features), tasks_of(zoo)
                ridge = WeightRegression(1e-2).fit(some, known).networks(wanted, tasks)
                row[f"ridge, {label}"] = accuracy(ridge, images)
                row[f"mean of 5 nearest, {label}"] = accuracy(nearest_task(some, known, wanted, tasks, k=5), images)
            rows.append(row)
    return pl.DataFrame(rows)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:3]))
