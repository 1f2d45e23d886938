"""Other generators, other terms of diversity, other targets, other starts on digits: docs/results/manifold_variants.md.

python docs/write_manifold_variants_results.py RUN: about fifteen minutes on one thread. Fitted hypernetworks and
trained networks stay in the folder RUN, so that an interrupted run goes on. One seed; validation images choose epochs,
except in the table on the split of the specification, where nothing is chosen.
"""

import math
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.datasets import load_digits
from write_manifold_results import REPORTED, RESULTS, SETTINGS, TARGET, independent, interval, measured, table

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.demo import machine
from weightspace.evaluation.ensembles import Ensemble
from weightspace.generators import (
    AdversarialConfig,
    HypernetworkConfig,
    Manifold,
    ManifoldConfig,
    ManifoldTraining,
    WarmStart,
)
from weightspace.networks import MLP, Classifier, ResNet
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

DRAWN = 100
MIXER = HypernetworkConfig(share="layer")
VARIANTS = {
    "a generator a layer, shared by units": ManifoldConfig(),
    "a generator a layer, for all of it": ManifoldConfig(hypernetwork=MIXER),
    "chunks of 50": ManifoldConfig(hypernetwork=HypernetworkConfig(share="chunk", chunk=50, generators=((64, 64),))),
    "HyperGAN, β = 1": ManifoldConfig(
        hypernetwork=MIXER, prior="normal", accuracy_weight=math.inf, adversarial=AdversarialConfig()
    ),
    "HyperGAN, β = 0.01": ManifoldConfig(
        hypernetwork=MIXER, prior="normal", accuracy_weight=math.inf, adversarial=AdversarialConfig(weight=0.01)
    ),
    "HyperGAN without discriminator": ManifoldConfig(hypernetwork=MIXER, prior="normal", accuracy_weight=math.inf),
}
TANH = MLP(hidden=(16,), activation="tanh")
SIGNS = {"tanh, signs free": ManifoldConfig(), "tanh, signs fixed": ManifoldConfig(fix_sign=True)}
RESIDUAL = ResNet(image_shape=(1, 8, 8), widths=(8, 16), blocks=1)
STREAMS = {
    "residual, accuracy only": ManifoldConfig(accuracy_weight=math.inf, images=32),
    "residual, λ = 1000": ManifoldConfig(images=32),
}
RESIDUAL_TRAINING = ManifoldTraining(epochs=10, batch_size=16, learning_rate=1e-2)
TRAINED = 10
COSINE = {"warmup": 0.005, "gradient_norm": 1e6}
"""The specification's optimiser: Adam at 3e-3 that falls along a cosine, without clipping."""
INDEPENDENT = "independent networks"
PAGE = """# Variants of the manifold hypernetwork on digits

`python docs/write_manifold_variants_results.py RUN` on {cores} cores of {processor}, {system}, Python {python}, torch
{torch}; one thread, one seed. [manifold_variants.csv](manifold_variants.csv) has the first two tables,
[manifold_split.csv](manifold_split.csv) that of the split.

Samples: mean test accuracy of {drawn} samples. Gain: of their ensemble, with a paired 95 % bootstrap interval over the
500 test images. Separation: distance to the nearest of the others over the norm, both gauged. Seconds are those of a
machine that did other things, too.

## Generators and terms of diversity

Target MLP 64-16-10, 2000 steps of 24 networks with 48 images. The first three have λ = 1000 and the entropy; HyperGAN
has no entropy but a discriminator of codes, a normal prior, and a mixer that is trained first until its codes have the
moments of the prior.

{variants}

## Signs

Target MLP 64-16-10 with tanh. The sign gauge makes the largest incoming weight of each unit positive.

{signs}

## Warm start

Validation accuracy of samples after so many steps, from scratch, and after 500 steps of least squares on 80
independently trained networks (30 epochs of the training images for each).

{warm}

## On the split of the specification

1200 training and 597 test images, nothing chosen on either: the epoch kept is that with the best training accuracy.
Adam at 3e-3 with a cosine and no clipping, as specified. The specification does not say how images were divided: `in
order` takes the first 1200 of scikit-learn's for training, `stratified` a random 1200. Numbers of the specification in
brackets; it calls .005 noise.

{split}
"""
RESIDUAL_PAGE = """
## A residual target

ResNet with 8 and 16 channels and batch normalisation on 8x8 digits, {residual} parameters, 1000 steps of 16 networks
with 32 images, Adam at 1e-2. Samples have the running statistics of 256 training images. Scales of residual streams, of
norms and of everything before a norm are fixed as they were traced. [manifold_residual.csv](manifold_residual.csv)
{trained} independent networks have together about the images of one hypernetwork.

{streams}
"""


def fitted(
    run: Path, name: str, target: Classifier, data: Dataset, config: ManifoldConfig, optimisation: ManifoldTraining,
    warm_start: WarmStart | None = None,
) -> Manifold:  # fmt: skip
    """A hypernetwork from the folder if it is there."""
    folder = run / name.replace(" ", "-")
    if (folder / "config.json").is_file():
        return Manifold.from_pretrained(folder)
    return Manifold.fit(target, data, config=config, optimisation=optimisation, warm_start=warm_start, folder=folder)


def trained(run: Path, name: str, target: Classifier, data: Dataset, n: int, epochs: int) -> Zoo:
    """Independent networks from the folder if they are there."""
    folder = run / name.replace(" ", "-")
    if folder.exists():
        return open_zoo(folder)
    return Ensemble.of_rows(independent(target, data, n, epochs=epochs, batch_size=48, seed=0), target).zoo.save(folder)


def row(name: str, zoo: Zoo, data: Dataset, target: Classifier, generator: Manifold | None) -> dict:
    """What is measured of one source of networks."""
    found, right, share = measured(Ensemble(zoo), data, target)
    return {
        "setting": name,
        "samples": found["sample_accuracy"],
        "ensemble": found["ensemble_accuracy"],
        "gain [95 %]": interval(right, share),
        "ensemble nll": found["ensemble_nll"],
        "disagreement": found["disagreement"],
        "separation": found["separation"],
        "parameters": sum(p.numel() for p in generator.module.parameters()) if generator else None,
        "seconds": generator.header["fit"]["seconds"] if generator else None,
    }


def compared(
    run: Path, settings: dict[str, ManifoldConfig], target: Classifier, data: Dataset, optimisation: ManifoldTraining
) -> pl.DataFrame:
    """A row a setting."""
    rows = []
    for name, config in settings.items():
        generator = fitted(run, name, target, data, config, optimisation)
        rows.append(row(name, generator.sample(DRAWN, seed=0), data, target, generator))
    return pl.DataFrame(rows, infer_schema_length=None)


def warm(run: Path, data: Dataset) -> pl.DataFrame:
    """Validation accuracy along training, from scratch and from a zoo."""
    zoo = trained(run, "zoo", TARGET, data, 100, 30).take(range(80))
    rows = []
    for name, start in (("from scratch", None), ("warm start", WarmStart(zoo=zoo))):
        folder = run / name.replace(" ", "-")
        fitted(run, name, TARGET, data, ManifoldConfig(epoch_steps=50), ManifoldTraining(epochs=40), start)
        history = pl.read_csv(folder / "history.csv")
        accuracy = dict(zip((50 * history["epoch"]).to_list(), history["validation_accuracy"].to_list(), strict=True))
        rows.append({"start": name, **{str(step): accuracy[step] for step in (50, 100, 200, 400, 1000, 2000)}})
    return pl.DataFrame(rows)


def halves(kind: str) -> Dataset:
    """1200 training and 597 test digits; training images stand for validation images."""
    bunch = load_digits()
    order = np.arange(len(bunch.target))
    if kind == "stratified":
        order = datasets.stratified_order(bunch.target, np.random.default_rng(0))
    images = torch.from_numpy(bunch.images[order]).float()[:, None]
    labels = torch.from_numpy(bunch.target[order])
    images = (images - images[:1200].mean()) / images[:1200].std()
    return Dataset(
        name=f"digits, {kind}", classes=10, train_images=images[:1200], train_labels=labels[:1200],
        validation_images=images[:1200], validation_labels=labels[:1200], test_images=images[1200:],
        test_labels=labels[1200:],
    )  # fmt: skip


def split(run: Path) -> pl.DataFrame:
    """The settings of the specification on splits of its sizes."""
    rows = []
    for kind in ("in order", "stratified"):
        data = halves(kind)
        for name in REPORTED:
            if name == INDEPENDENT:
                zoo, generator = trained(run, f"{kind} {name}", TARGET, data, 20, 80), None
            else:
                optimisation = ManifoldTraining(**COSINE)
                generator = fitted(run, f"{kind} {name}", TARGET, data, SETTINGS[name], optimisation)
                zoo = generator.sample(DRAWN, seed=0)
            rows.append({"split": kind, **row(name, zoo, data, TARGET, generator)})
    return pl.DataFrame(rows, infer_schema_length=None)


def beside(frame: pl.DataFrame) -> pl.DataFrame:
    """Measured numbers with those of the specification in brackets."""
    keys = ("samples", "ensemble", "disagreement")
    return pl.DataFrame(
        [
            {
                "split": found["split"],
                "setting": found["setting"],
                **{key: f"{found[key]:.3f} ({value:.3f})"
                   for key, value in zip(keys, REPORTED[found["setting"]], strict=True)},
            }
            for found in frame.to_dicts()
        ]
    )  # fmt: skip


def residual(run: Path, data: Dataset) -> pl.DataFrame:
    """Hypernetworks of a residual network, and networks trained one by one on about the images of one of them."""
    streams = compared(run, STREAMS, RESIDUAL, data, RESIDUAL_TRAINING)
    images = RESIDUAL_TRAINING.epochs * 100 * RESIDUAL_TRAINING.batch_size * 32
    zoo = trained(run, "residual", RESIDUAL, data, TRAINED, images // (TRAINED * len(data.train_labels)))
    return pl.concat([streams, pl.DataFrame([row(INDEPENDENT, zoo, data, RESIDUAL, None)])], how="vertical_relaxed")


def main(run: Path) -> None:
    """Fit, measure, and write the page: without the residual target first, which takes half of the time."""
    torch.set_num_threads(1)
    data = datasets.load("digits")
    variants = compared(run, VARIANTS, TARGET, data, ManifoldTraining())
    signs = compared(run, SIGNS, TANH, data, ManifoldTraining())
    divided = split(run)
    divided.write_csv(RESULTS / "manifold_split.csv")
    tables = {"variants": variants, "signs": signs, "warm": warm(run, data), "split": beside(divided)}
    facts = {**machine(), "torch": version("torch"), "drawn": DRAWN, "trained": TRAINED}
    facts["residual"] = sum(p.numel() for p in RESIDUAL.build().parameters())
    text = PAGE.format(**facts, **{name: table(frame) for name, frame in tables.items()})
    pl.concat([variants, signs]).write_csv(RESULTS / "manifold_variants.csv")
    (RESULTS / "manifold_variants.md").write_text(text)
    streams = residual(run, data)
    streams.write_csv(RESULTS / "manifold_residual.csv")
    (RESULTS / "manifold_variants.md").write_text(text + RESIDUAL_PAGE.format(**facts, streams=table(streams)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
