"""The manifold hypernetwork on MNIST and Fashion-MNIST: docs/results/manifold_mnist.md and its CSVs.

python docs/write_manifold_mnist_results.py RUN ROOT NAME, once with mnist and once with fashion_mnist as NAME: about
twenty minutes each on one thread. ROOT has the folders mnist, fashion_mnist and kmnist_test. Fitted hypernetworks,
trained networks and measurements stay in the folder RUN; the page has those that were measured. The target is one of
a size for a CPU: that of the paper has 20 018 parameters and costs twenty times as much an image.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import TypeVar

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F
from write_manifold_results import RESULTS, interval, table

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.demo import machine
from weightspace.evaluation.calibration import best_temperature, predictive_entropy, tempered
from weightspace.evaluation.ensembles import Ensemble, ensemble_curve, scores
from weightspace.generators import HypernetworkConfig, Manifold, ManifoldConfig, ManifoldTraining
from weightspace.networks import PooledCNN
from weightspace.networks.population import Hyperparameters, initial_rows, population_logits, train_population
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

TARGET = PooledCNN(image_shape=(1, 28, 28), channels=(16, 16, 32), kernels=(5, 3, 3), strides=(2, 2, 1), pooled=3)
CONFIG = ManifoldConfig(
    hypernetwork=HypernetworkConfig(
        latent=64, extractor=(128, 128), unit_code=15, layer_code=15, generators=((100, 100),)
    ),
    images=32,
    epoch_steps=500,
)
NETWORKS = 16
EPOCHS = {"mnist": 8, "fashion_mnist": 8}
"""Of 500 steps."""
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
COPIES = 4
"""Training images are so many random affine copies of each, drawn once."""
AFFINE = {"mnist": (10.0, 0.1, 2.0, 0.1, False), "fashion_mnist": (5.0, 0.05, 1.0, 0.05, True)}
"""Largest rotation (degrees), change of size, shift (pixels), shear; and whether half of the images are mirrored."""
TRAINED, PASSES = 10, {"mnist": 1, "fashion_mnist": 1}
"""Independent networks, and their passes over all copies: together the images of the hypernetwork's training."""
Made = TypeVar("Made")
SAMPLED, ASKED = 1000, 100
MEMBERS = (1, 5, 10, 100, 1000)
OUTLIERS = {"mnist": ("fashion_mnist", "kmnist_test"), "fashion_mnist": ("mnist",)}
STRANGE = 5000
"""Outliers are the first so many test images of each other kind."""
SAMPLES, INDEPENDENT = "samples", "independent networks"
PAGE = """# Manifold hypernetwork on MNIST and Fashion-MNIST

`python docs/write_manifold_mnist_results.py RUN ROOT NAME` on {cores} cores of {processor}, {system}, Python {python},
torch {torch}; one thread, one seed. Target: three convolutions on 28x28 images, 16, 16 and 32 channels, strides 2, 2
and 1, average pooling to 3x3, {parameters} parameters; hypernetwork of {hypernetwork} parameters, z of 64, λ = 1000,
16 networks with 32 images each a step. That is not the target of the paper (20 018 parameters, about twenty times the
work an image); its published neighbour HyperGAN reports 98.64 % for one network and 99.31 % for a hundred on MNIST,
and 99.30 % for deep ensembles.

Training images are four random affine copies of each of the 50 000 (for Fashion-MNIST also mirrored), the same for
hypernetworks and for independent networks. Beside the samples stand {trained} networks trained one by one (Adam, one
cycle to 5e-3, batches of 64), which together see as many images as the hypernetwork in training: equal training
compute, and at 1, 5 and 10 members equal number as well. More of them would cost more. The target was chosen among
three by validation images of MNIST; λ and learning rates were not tuned, and test images were used once.

Gain: accuracy of the ensemble of 100 (of all 10 independent networks) over the mean of its members, with a paired 95 %
bootstrap interval over test images. Temperatures are fitted on validation images. AUROC: test images against the first
5000 test images of another data set, standardised by their own statistics, by the entropy of the mean prediction;
`single` by that of one network.

{sections}
"""
SECTION = """## {title}

{steps} steps, {images} images; {each} for each independent network. {hypernetwork_minutes:.0f} minutes of processor
time for the hypernetwork, {independent_minutes:.0f} for the independent networks. Samples are right about
{validation:.4f} of the validation images. [manifold_{name}.csv](manifold_{name}.csv)

{curve}

Gain of samples {gain}, of independent networks {independent_gain}; ensemble of 100 samples against all independent
networks {difference}.

{detail}
"""


def augmented(images: Tensor, generator: torch.Generator, *, affine: tuple[float, float, float, float, bool]) -> Tensor:
    """A random affine copy of each image; what comes in from outside is background."""
    degrees, size, shift, shear, mirrored = affine
    n, side = len(images), images.shape[-1]

    def uniform() -> Tensor:
        return 2 * torch.rand(n, generator=generator) - 1

    angle, scale, skew = uniform() * degrees * math.pi / 180, 1 / (1 + size * uniform()), shear * uniform()
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = scale * angle.cos()
    matrix[:, 0, 1] = scale * (skew * angle.cos() - angle.sin())
    matrix[:, 1, 0] = scale * angle.sin()
    matrix[:, 1, 1] = scale * (skew * angle.sin() + angle.cos())
    matrix[:, :, 2] = torch.stack([uniform(), uniform()], dim=1) * 2 * shift / side
    if mirrored:
        matrix[:, :, 0] *= 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    background = images.min()
    copies = [
        F.grid_sample(some - background, F.affine_grid(m, list(some.shape), align_corners=False), align_corners=False)
        for some, m in zip(images.split(10_000), matrix.split(10_000), strict=True)
    ]
    return torch.cat(copies) + background


def loaded(name: str, root: Path) -> Dataset:
    """The data set with augmented training images; validation and test images are as they are."""
    data, generator = datasets.load(name, root), torch.Generator().manual_seed(0)
    copies = [augmented(data.train_images, generator, affine=AFFINE[name]) for _ in range(COPIES)]
    return replace(data, train_images=torch.cat(copies), train_labels=data.train_labels.repeat(COPIES))


def hypernetwork(folder: Path, name: str, data: Dataset) -> Manifold:
    """From the folder if it is there."""
    if (folder / "config.json").is_file():
        return Manifold.from_pretrained(folder)
    optimisation = ManifoldTraining(epochs=EPOCHS[name], batch_size=NETWORKS)
    return Manifold.fit(TARGET, data, config=CONFIG, optimisation=optimisation, folder=folder)


def independent(folder: Path, name: str, data: Dataset) -> Zoo:
    """Networks trained one by one (Adam with one cycle to 5e-3), from the folder if they are there."""
    if folder.exists():
        return open_zoo(folder)
    full, seeds = torch.ones(TRAINED), torch.arange(TRAINED)
    settings = Hyperparameters(
        seeds=seeds, learning_rate=5e-3 * full, weight_decay=0 * full, dropout=0 * full, train_fraction=full
    )
    stages = train_population(
        TARGET, initial_rows(TARGET, seeds, "kaiming_uniform", full), settings, data.train_images, data.train_labels,
        epochs=PASSES[name], batch_size=64, schedule="one_cycle", checkpoints=[PASSES[name]],
    )  # fmt: skip
    return Ensemble.of_rows(next(stages)[1], TARGET).zoo.save(folder)


def probabilities(zoo: Zoo, images: Tensor) -> Tensor:
    """Of each class, `[m, n, k]`, in blocks of networks."""
    return torch.cat([population_logits(TARGET, some, images).softmax(2) for some in zoo.weights().split(50)])


def measured(name: str, source: str, zoo: Zoo, data: Dataset, root: Path) -> tuple[list[dict], Tensor, Tensor]:
    """Rows of the table for one source; and by test image whether ensemble and members are right.

    Outliers, temperatures and disagreement are those of the first hundred members, or of all if there are fewer.
    """
    images, labels = data.test_images, data.test_labels
    drawn = probabilities(zoo, images)
    generator = torch.Generator().manual_seed(0)
    curve = ensemble_curve(drawn, labels, generator=generator, members=[m for m in MEMBERS if m <= len(zoo)])
    some = zoo.take(range(min(ASKED, len(zoo))))
    asked, held_out = drawn[: len(some)], probabilities(some, data.validation_images)
    predicted = asked.argmax(2)
    rows = []
    for row in curve.to_dicts():
        known = {1: (asked, held_out), len(some): (asked.mean(0)[None], held_out.mean(0)[None])}
        extra: dict[str, float] = {}
        if row["members"] in known:
            extra = calibration(*known[row["members"]], data)
        if row["members"] == len(some):
            right = (predicted == labels).float()
            pairs = len(some) * (len(some) - 1)
            votes = F.one_hot(predicted, data.classes).sum(0)
            extra["disagreement"] = 1 - float((votes * (votes - 1)).sum(1).float().mean()) / pairs
            extra["member_std"] = float(right.mean(1).std())
            extra |= outliers(name, asked, some, root)
        rows.append({"data": name, "networks": source, **row, **extra})
    return rows, (asked.mean(0).argmax(1) == labels).float(), right.mean(0)


def calibration(asked: Tensor, held_out: Tensor, data: Dataset) -> dict[str, float]:
    """Temperature of each predictor from validation images, and its scores on test images; means over at most 20."""
    found = []
    for test, validation in zip(asked[:20], held_out[:20], strict=True):
        temperature = best_temperature(validation, data.validation_labels)
        after = scores(tempered(test, temperature)[None], data.test_labels)
        found.append({"temperature": temperature} | {f"calibrated_{k}": float(after[k]) for k in ("nll", "ece")})
    return pl.DataFrame(found).mean().to_dicts()[0]


def outliers(name: str, asked: Tensor, zoo: Zoo, root: Path) -> dict[str, float]:
    """AUROC of images of other kinds, standardised by their own statistics, against the test images: by the entropy of
    the mean, and by that of single members (mean over 20)."""
    found = {}
    for other in OUTLIERS[name]:
        strange = probabilities(zoo, datasets.load(other, root).test_images[:STRANGE])
        known = np.repeat([0, 1], [asked.shape[1], strange.shape[1]])
        uncertain = torch.cat([predictive_entropy(part.mean(0)) for part in (asked, strange)])
        found[f"auroc_{other}"] = float(roc_auc_score(known, uncertain))
        single = torch.cat([predictive_entropy(part[:20]) for part in (asked, strange)], dim=1)
        found[f"single_auroc_{other}"] = float(np.mean([roc_auc_score(known, one) for one in single]))
    return found


def timed(make: Callable[[Path, str, Dataset], Made], folder: Path, name: str, data: Dataset) -> tuple[Made, float]:
    """What was made, now or before, and the seconds of processor time that it took."""
    clock, started = folder.with_suffix(".seconds"), process_time()
    made = make(folder, name, data)
    if not clock.exists():
        clock.write_text(str(process_time() - started))
    return made, float(clock.read_text())


def measure(run: Path, root: Path, name: str) -> None:
    """Fit, train, measure on test images once, and write the CSV."""
    data = loaded(name, root)
    fitted, fitting = timed(hypernetwork, run / f"{name}-hypernetwork", name, data)
    trained, training = timed(independent, run / f"{name}-independent", name, data)
    rows, right, share = [], {}, {}
    for source, zoo in ((SAMPLES, fitted.sample(SAMPLED, seed=0)), (INDEPENDENT, trained)):
        found, right[source], share[source] = measured(name, source, zoo, data, root)
        rows += found
    images = EPOCHS[name] * CONFIG.epoch_steps * NETWORKS * CONFIG.images
    pl.DataFrame(rows, infer_schema_length=None).write_csv(RESULTS / f"manifold_{name}.csv")
    facts = {
        "images": images,
        "steps": EPOCHS[name] * CONFIG.epoch_steps,
        "each": PASSES[name] * len(data.train_labels),
        "hypernetwork_minutes": fitting / 60,
        "independent_minutes": training / 60,
        "validation": fitted.header["fit"]["last"]["validation_accuracy"],
        "gain": interval(right[SAMPLES], share[SAMPLES]),
        "independent_gain": interval(right[INDEPENDENT], share[INDEPENDENT]),
        "difference": interval(right[SAMPLES], right[INDEPENDENT]),
        "hypernetwork": sum(p.numel() for p in fitted.module.parameters()),
        "parameters": fitted.layout.parameters,
    }
    (run / f"{name}.json").write_text(json.dumps(facts))


def measured_in(run: Path, name: str) -> bool:
    """Whether the folder has the measurements of a data set."""
    return (run / f"{name}.json").is_file()


def page(run: Path) -> None:
    """The page, from what was measured so far."""
    known = {name: json.loads((run / f"{name}.json").read_text()) for name in EPOCHS if measured_in(run, name)}
    parts = []
    for name in known:
        frame = pl.read_csv(RESULTS / f"manifold_{name}.csv").drop("data")
        curve = ["networks", "members", "accuracy", "nll", "brier", "ece"]
        one = [c for c in frame.columns if c not in curve]
        detail = frame.filter(pl.col("temperature").is_not_null()).select("networks", "members", "ece", *one)
        parts.append(SECTION.format(
            title=TITLES[name], name=name, curve=table(frame.select(curve), 4), detail=table(detail, 4), **known[name]
        ))  # fmt: skip
    facts = {**machine(), "torch": version("torch"), "sections": "\n".join(parts), "trained": TRAINED}
    (RESULTS / "manifold_mnist.md").write_text(PAGE.format(**facts, **next(iter(known.values()))))


def main(run: Path, root: Path, name: str) -> None:
    """One data set, unless it was measured before: test images are used once. The page has those that are there."""
    torch.set_num_threads(1)
    if not measured_in(run, name):
        measure(run, root, name)
    page(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
