"""Hyper-representations and SANE on real zoos: docs/results/hyper_representations.md.

python docs/write_hyper_representation_results.py ZOOS RUN [STAGE ...]: two to three hours on two cores, an hour of it
for the zoos, which are trained into the folder ZOOS where they are missing (`recipes` below says how). Fitted
autoencoders and tables stay in the folder RUN, so that an interrupted run goes on. Stages: properties, supervised,
choice, generation, targets, ablation, transfer, architectures, page; all of them when none is named. Images come from
the folder of the variable WEIGHTSPACE_DATA. One seed; everything but the zoos on one thread.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hyper_representation_page import FILES, page

from weightspace import datasets
from weightspace.datasets import Dataset
from weightspace.encoders import (
    SANE,
    Autoencoder,
    HyperRepresentation,
    HyperRepresentationConfig,
    Predictor,
    ProbeMoments,
    TrainingConfig,
    load_autoencoder,
)
from weightspace.encoders.autoencoder import Pooling
from weightspace.encoders.sane_config import small
from weightspace.evaluation import (
    Hyperparameters,
    best_prompts,
    combined,
    flat_weights,
    initialisations,
    layer_embeddings,
    layer_statistics,
    median_distance,
    noise_at_distance,
    obtained,
    predict_properties,
    probe_layers,
    statistics,
    targets_of,
)
from weightspace.evaluation.generation import evaluate_generation
from weightspace.evaluation.properties import SCORE_COLUMNS, number_scores, ridge, standardise
from weightspace.evaluation.transfer import transfer as measure_transfer
from weightspace.generators import (
    KDE,
    Gaussian,
    Interpolation,
    KDEConfig,
    Region,
    Selected,
    SelectionConfig,
    Targeted,
    baselines,
    conditioned,
)
from weightspace.networks.layout import RUNNING
from weightspace.zoo import Zoo, behaviour
from weightspace.zoo import open as open_zoo
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.recipes import by_name
from weightspace.zoo.train import train as train_zoo

SEED = 0
ACCURACY, BY = "metric.test_accuracy", "metric.validation_accuracy"
SHARE = 0.3
"""Of the training networks, the best are prompts; of the test networks as many are held out."""
DRAWN, STARTS, IMAGES = 50, 16, 2000
"""Networks a source, networks that are trained further on another task, test images that judge."""
EPOCHS = (0, 1, 2, 5, 10)
ABLATED = KDEConfig(mode="joint", bandwidth=0.1)
TRANSFERRED = KDEConfig(mode="joint", bandwidth=0.2)
LARGEST = 5.0
"""Checkpoints with larger weights were about to diverge and are left out, as the Model Zoos' notebooks do."""
FACTORS: dict = {
    "train_limit": 2000, "batch_size": 32, "epochs": 8, "checkpoints": (1, 3, 8), "train_fraction": (0.1, 0.25, 0.5, 1),
    "dropout": (0.0, 0.5),
}  # fmt: skip
WIDE: dict = FACTORS | {"side": 14, "learning_rate": (3e-4, 0.03), "weight_decay": (1e-8, 1e-2)}


def recipes() -> dict[str, Recipe]:
    """What the zoos are; those of two architectures are those of the page of encoders."""
    arch = {"train_fraction": (0.1, 0.25, 0.5, 1.0), "side": 14, "train_limit": 2000, "batch_size": 32}
    arch1 = arch | {"models": 500, "epochs": 8, "checkpoints": (1, 3, 8)}
    return {
        "mnist-cnn-s-factors": by_name(
            "mnist-cnn-hyp-rand", models=480, sampling="random", learning_rate=(3e-4, 0.03), init_scale=(1.0, 1.0),
            weight_decay=(1e-6, 1e-2), **FACTORS,
        ),
        "mnist-small-cnn": by_name("mnist-small-cnn", models=500, side=20, train_limit=2000, batch_size=32, epochs=8,
                                   checkpoints=(1, 3, 8)),
        "mnist-cnn-s": by_name(
            "mnist-cnn-seed", models=240, epochs=4, train_limit=12_000, batch_size=32, activation=("relu",),
            init=("kaiming_uniform",), schedule="one_cycle", learning_rate=(0.01,), weight_decay=(0.0,),
            checkpoints=(1, 2, 3, 4),
        ),
        "mnist-resnet8": by_name(
            "cifar10-resnet18", data="mnist", network="resnet8", models=96, epochs=4, train_limit=4000, side=14,
            batch_size=64, learning_rate=(0.1,), checkpoints=(1, 2, 3, 4), unit_models=8,
        ),
        "mnist-arch1": by_name("mnist-arch1", **arch1),
        "fashion-mnist-arch1": by_name("fashion-mnist-arch1", **arch1),
        "mnist-arch2": by_name("mnist-arch2", **arch | {"models": 500, "epochs": 12, "checkpoints": (1, 4, 12)}),
        "mnist-cnn-14": Recipe(data="mnist", network="cnn", models=300, activation=("relu", "tanh"),
                               optimiser=("adam", "sgd"), **WIDE),
    }  # fmt: skip


def zoo_of(zoos: Path, name: str) -> Zoo:
    """A zoo without diverged networks, trained if it is not there."""
    folder = zoos / name
    zoo = open_zoo(folder) if folder.is_dir() else train_zoo(folder, recipes()[name])
    return zoo.finite(largest=LARGEST)


def described(zoos: Path) -> pl.DataFrame:
    """What the page says of each zoo."""
    rows = []
    for name, recipe in recipes().items():
        zoo = zoo_of(zoos, name)
        last = zoo.last().table[ACCURACY]
        rows.append({
            "zoo": name, "network": recipe.network, "parameters": zoo.layout.parameters, "models": len(zoo.models),
            "training": len(zoo.split(SEED)[0].models),
            "checkpoints": len(zoo), "images": recipe.train_limit, "side": recipe.side or 28, "epochs": recipe.epochs,
            "median": last.median(), "best": last.max(),
        })  # fmt: skip
    return pl.DataFrame(rows)


def images(name: str, test: int | None = None) -> Dataset:
    """The images of a zoo; of the test images the first ones if so many are too many."""
    recipe = recipes()[name]
    data = datasets.load(recipe.data, train_limit=recipe.train_limit, seed=recipe.seed, side=recipe.side)
    return replace(data, test_images=data.test_images[:test], test_labels=data.test_labels[:test])


def fitted(folder: Path, fit: Callable[[Path], Autoencoder]) -> Autoencoder:
    """An autoencoder from its folder if it is there."""
    return load_autoencoder(folder) if (folder / "config.json").is_file() else fit(folder)


def training(epochs: int, batch_size: int = 16, learning_rate: float = TrainingConfig.learning_rate) -> TrainingConfig:
    """So many epochs on this processor."""
    return TrainingConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, accelerator="cpu", seed=SEED
    )


# ---- 1. Reading properties


def properties(zoos: Path, run: Path) -> None:
    """All properties of test networks from embeddings, statistics, weights and hyper-parameters."""
    tables, layers_found = [], []
    for name in ("mnist-cnn-s-factors", "mnist-small-cnn"):
        train, validation, test = zoo_of(zoos, name).split(SEED)
        models = run / "models"
        sane = fitted(
            models / f"sane-{name}",
            lambda to, t=train, v=validation: SANE.fit(t, validation=v, optimisation=training(20), folder=to),
        )
        hyper, reconstructing = (
            fitted(
                models / f"hyper-{label}-{name}",
                lambda to, t=train, v=validation, c=contrast: HyperRepresentation.fit(
                    t,
                    validation=v,
                    config=HyperRepresentationConfig(contrast=c),
                    optimisation=training(40, 64, 1e-3),
                    folder=to,
                ),
            )
            for label, contrast in (("both", 0.1), ("decoding", 0.0))
        )
        embeddings = {
            "SANE, mean token": partial(embedded, sane, "mean"),
            "SANE, layer means": partial(embedded, sane, "layer_means"),
            "SANE, layers": partial(embedded, sane, "layers"),
            "SANE, sequence": partial(embedded, sane, "sequence"),
            "hyper-representation (E_cD)": partial(embedded, hyper, "mean"),
            "hyper-representation (E_D)": partial(embedded, reconstructing, "mean"),
        }
        simple = {
            "weight statistics": statistics,
            "flat weights": flat_weights,
            "hyper-parameters": Hyperparameters(train),
        }
        both = {
            f"{embedding} + weight statistics": combined(embeddings[embedding], statistics)
            for embedding in ("SANE, mean token", "SANE, layers", "hyper-representation (E_cD)")
        }
        targets = [target for target in targets_of(train) if train.table[target].n_unique() > 1]
        numbers = [target for target in targets if train.table[target].dtype.is_numeric()]
        shown = {**embeddings, **both, **simple}
        chosen, _ = predict_properties(train, *halves(validation), shown, [ACCURACY])
        found, _ = predict_properties(train, validation, test, shown, targets, boosting=numbers)
        about = (pl.lit(name).alias("zoo"),)
        tables += [
            found.select(*about, pl.lit("test").alias("side"), pl.all()),
            chosen.select(*about, pl.lit("validation").alias("side"), pl.all()),
        ]
        by_layer = {"SANE": layer_embeddings(sane), "weight statistics": layer_statistics(train.layout)}
        layers_found.append(probe_layers(train, validation, test, by_layer, targets).select(*about, pl.all()))
    pl.concat(layers_found).write_csv(run / "layers.csv")
    pl.concat(tables).write_csv(run / "properties.csv")


def supervised(zoos: Path, run: Path) -> None:
    """An encoder that learns from accuracies, `probe-moments`, beside those that learn from weights alone."""
    rows = []
    for name in ("mnist-cnn-s-factors", "mnist-small-cnn"):
        train, validation, test = zoo_of(zoos, name).split(SEED)
        learned = Predictor.fit(ProbeMoments, train, validation=validation, targets=[ACCURACY])
        for side, some in (("validation", validation), ("test", test)):
            found = number_scores(some.table[ACCURACY].to_numpy(), learned.predict(some)[ACCURACY].to_numpy())
            rows.append({"zoo": name, "side": side, "representation": "probe-moments, supervised"} | found)
    pl.DataFrame(rows).write_csv(run / "supervised.csv")


def embedded(encoder: Autoencoder, pooling: Pooling, zoo: Zoo) -> np.ndarray:
    """Embeddings as features."""
    return encoder.embed(zoo, pooling).numpy()


def halves(validation: Zoo) -> tuple[Zoo, Zoo]:
    """Networks that choose a penalty, and networks that choose a representation."""
    models = sorted(validation.models)
    one, other = (validation.where(pl.col("model").is_in(models[i::2])) for i in (0, 1))
    return one, other


# ---- 2. Generating networks, and 6. their ensembles


CHOSEN = KDEConfig(mode="smooth", bandwidth=0.25, spread=1.0)
SELECTION = SelectionConfig(candidates=20)
"""The sampler of the goal, see `choice`: the widest kernel whose best draws exceed 92 % on validation images."""
JUDGED = 1000
"""Validation images that candidates are chosen by."""
SIGMAS = (0.1, 0.2, 0.3, 0.5)


def networks_of(zoos: Path, run: Path) -> tuple[SANE, Dataset, tuple[Zoo, Zoo, Zoo]]:
    """SANE of the CNN-s zoo, its images with those that judge candidates, and the zoo's split."""
    train, validation, test = zoo_of(zoos, "mnist-cnn-s").split(SEED)
    data = images("mnist-cnn-s", 5000)
    judges = replace(data, validation_images=data.validation_images[:JUDGED],
                     validation_labels=data.validation_labels[:JUDGED])  # fmt: skip
    sane = fitted(
        run / "models" / "sane-mnist-cnn-s",
        lambda to: SANE.fit(train, validation=validation, optimisation=training(40), folder=to),
    )
    return sane, judges, (train, validation, test)


def choice(zoos: Path, run: Path) -> None:
    """Samplers on validation images; those that judge candidates are not those that measure."""
    sane, judges, (train, validation, _) = networks_of(zoos, run)
    whole = images("mnist-cnn-s")
    measure = slice(JUDGED, 2 * JUDGED)
    prompts, heldout = best_prompts(train, SHARE), best_prompts(validation, SHARE)
    usual = median_distance(heldout, prompts, sane.preparation.aligned)
    smooth = [KDEConfig(mode="smooth", bandwidth=h, spread=s) for s, h in product((0.65, 1.0), (0.2, 0.25, 0.3, 0.4))]
    joint = [KDEConfig(mode="joint", bandwidth=h) for h in (0.1, 0.2, 0.3)]
    tried = [(config, SelectionConfig(candidates=1)) for config in (*joint, *smooth)]
    tried += [(config, SELECTION) for config in smooth if config.spread == 1]
    tried += [(joint[1], SelectionConfig()), (joint[1], SelectionConfig(rounds=6))]
    rows = []
    for config, selection in tried:
        drawn = Selected(KDE(sane, config), judges, selection).fit(prompts).sample(DRAWN, SEED)
        accuracy = behaviour.metrics(drawn, whole.validation_images[measure], whole.validation_labels[measure])[1]
        rows.append({
            "mode": config.mode, "bandwidth": config.bandwidth,
            "spread": config.spread if config.mode == "smooth" else None, "candidates": selection.candidates,
            "rounds": selection.rounds, "validation_accuracy": float(accuracy.mean()),
            "distance": median_distance(drawn, prompts, sane.preparation.aligned) / usual,
        })  # fmt: skip
    pl.DataFrame(rows, infer_schema_length=None).write_csv(run / "choice.csv")


def generation(zoos: Path, run: Path) -> None:
    """Every way to draw CNN-s networks beside every baseline: as made, after an epoch, how new, as ensembles."""
    sane, judges, (train, validation, test) = networks_of(zoos, run)
    models = run / "models"
    hyper = fitted(
        models / "hyper-mnist-cnn-s",
        lambda to: HyperRepresentation.fit(
            train, validation=validation, optimisation=training(80, 64, 1e-3), folder=to
        ),
    )
    prompts, heldout = best_prompts(train, SHARE), best_prompts(test, SHARE)
    align = sane.preparation.aligned

    def drawn(encoder: Autoencoder, **config: Any) -> Zoo:
        return KDE(encoder, KDEConfig(**config)).fit(prompts).sample(DRAWN, SEED)

    def best(sampler: KDE, selection: SelectionConfig) -> Zoo:
        return Selected(sampler, judges, selection).fit(prompts).sample(DRAWN, SEED)

    generated = best(KDE(sane, CHOSEN), SELECTION)
    aligned = prompts.with_weights(align(prompts))
    generator = torch.Generator().manual_seed(SEED)
    distance = median_distance(generated, prompts, align)
    copies = noise_at_distance(aligned, distance, DRAWN, generator, align=align)
    many = baselines.noise(aligned, DRAWN * SELECTION.candidates, generator, sigma=copies.table["config.sigma"][0])
    accuracy = behaviour.metrics(many, judges.validation_images, judges.validation_labels)[1]
    sources = {
        "SANE, smooth, best of 20": generated,
        "SANE, smooth": KDE(sane, CHOSEN).fit(prompts).sample(DRAWN, SEED),
        "SANE, smooth, spread .65": drawn(sane, mode="smooth"),
        "SANE, joint .1": drawn(sane, mode="joint", bandwidth=0.1),
        "SANE, joint .3": drawn(sane, mode="joint", bandwidth=0.3),
        "SANE, joint .2, best of 5": best(KDE(sane, KDEConfig(mode="joint", bandwidth=0.2)), SelectionConfig()),
        "SANE, joint .2, bootstrapped": best(
            KDE(sane, KDEConfig(mode="joint", bandwidth=0.2)), SelectionConfig(rounds=4)
        ),
        "SANE, token": drawn(sane, mode="token", bandwidth=0.2),
        "SANE, independent": drawn(sane, mode="independent", bandwidth=0.2),
        "SANE, reference": drawn(sane, mode="reference", bandwidth=0.2),
        "SANE, Gaussian": Gaussian(sane).fit(prompts).sample(DRAWN, SEED),
        "SANE, interpolation": Interpolation(sane).fit(prompts).sample(DRAWN, SEED),
        "hyper-representation, joint .1": drawn(hyper, mode="joint", bandwidth=0.1),
        "hyper-representation, independent": drawn(hyper, mode="independent", bandwidth=0.002),
        "hyper-representation, reference": drawn(hyper, mode="reference", bandwidth=0.002),
        "random initialisation": baselines.random_initialisation(prompts, DRAWN, generator),
        "noise at equal distance": copies,
        "noise at equal distance, best of 20": many.take(accuracy.topk(DRAWN).indices),
        **{f"noise {sigma}": baselines.noise(aligned, DRAWN, generator, sigma=sigma) for sigma in SIGMAS},
        "interpolation": baselines.interpolation(aligned, DRAWN, generator),
        "average of 4": baselines.average(aligned, DRAWN, generator, k=4),
        "average of all": baselines.average(aligned, DRAWN, generator, k=None),
        "average of all, not aligned": baselines.average(prompts, DRAWN, generator, k=None),
        "Gaussian": baselines.diagonal_gaussian(aligned, DRAWN, generator),
        "reconstruction of held-out": sane.reconstruct(heldout),
        "reconstruction of held-out, hyper-representation": hyper.reconstruct(heldout),
    }
    tuned = ["SANE, smooth, best of 20", "SANE, reference", "random initialisation", "average of all", "held-out"]
    tables = evaluate_generation(
        sources, images("mnist-cnn-s", 5000), training=prompts, heldout=heldout, align=align, known=train,
        epochs=(0, 1), fine_tune=tuned, seed=SEED,
    )  # fmt: skip
    tables.save(run / "generation")


def targets(zoos: Path, run: Path) -> None:
    """Networks drawn for an accuracy or an epoch: whether they have it."""
    train, _, _ = zoo_of(zoos, "mnist-cnn-s").split(SEED)
    data = images("mnist-cnn-s", IMAGES)
    sane = load_autoencoder(run / "models" / "sane-mnist-cnn-s")
    rows = []
    for region in (
        Region(column=BY, low=0.96), Region(column=BY, low=0.85, high=0.92),
        Region(column="step", high=1.5), Region(column="step", low=3.5),
    ):  # fmt: skip
        sampler = KDE(sane, KDEConfig(mode="joint", bandwidth=0.1))
        targeted = Targeted(sampler, region).fit(train)
        asked = targeted.sample(DRAWN, SEED)
        plain = targeted.sampler.sample(DRAWN, SEED)
        shares = [obtained(zoo, region, train=train, data=data)["wanted"].mean() for zoo in (asked, plain)]
        values = obtained(asked, region, train=train, data=data)
        rows.append({
            "asked for": str(region), "share of draws": asked.header["target"]["share_of_draws"],
            "have it": shares[0], "of all draws": shares[1],
            "error": float((values["predicted"] - values["obtained"]).abs().mean()),
            "measured by": values["measured_by"][0],
        })  # fmt: skip
    pl.DataFrame(rows).write_csv(run / "targets.csv")


# ---- 3. Ablations


def ablation(zoos: Path, run: Path) -> None:
    """Loss normalisation and alignment on CNN-s; batch normalisation, halos, alignment and scale on ResNet-8."""
    rows = []
    train, validation, test = zoo_of(zoos, "mnist-cnn-s").split(SEED)
    data = images("mnist-cnn-s", IMAGES)
    models = run / "models"
    for normalisation, align in product(("none", "global_mean"), (False, True)):
        config = HyperRepresentationConfig(standardise=False, loss_normalisation=normalisation)
        label = f"hyper-{normalisation}-{'aligned' if align else 'raw'}"
        hyper = fitted(
            models / label,
            lambda to, c=config, a=align: HyperRepresentation.fit(
                train, validation=validation, config=c, optimisation=training(40, 64, 1e-3), align=a, folder=to
            ),
        )
        said = {"zoo": "mnist-cnn-s", "encoder": "hyper-representation", "loss normalisation": normalisation != "none",
                "alignment": align}  # fmt: skip
        rows.append(said | ablated(hyper, train, test, data))
    train, validation, test = zoo_of(zoos, "mnist-resnet8").split(SEED)
    data = images("mnist-resnet8", IMAGES)
    size = replace(small(train.layout), magnitudes=False)
    for align, scale in ((True, "layer"), (False, "layer"), (True, "global")):
        config = replace(size, scale=scale)
        sane = fitted(
            models / f"resnet-{scale}-{'aligned' if align else 'raw'}",
            lambda to, c=config, a=align: SANE.fit(
                train, validation=validation, config=c, optimisation=training(60), align=a, folder=to
            ),
        )
        variants = product((True, False), (True, False)) if (align, scale) == (True, "layer") else [(True, True)]
        for halo, conditioning in variants:
            shown = sane if halo else without_halo(sane)
            said = {"zoo": "mnist-resnet8", "encoder": "SANE", "loss normalisation": scale == "layer",
                    "alignment": align, "halo": halo, "conditioning": conditioning}  # fmt: skip
            rows.append(said | ablated(shown, train, test, data, conditioning=conditioning))
    pl.DataFrame(rows, infer_schema_length=None).write_csv(run / "ablation.csv")


def without_halo(sane: SANE) -> SANE:
    """The same autoencoder on windows side by side."""
    plain = SANE(replace(sane.config, halo=0), sane.preparation, sane.header)
    plain.module.load_state_dict(sane.module.state_dict())
    return plain


def ablated(encoder: Autoencoder, train: Zoo, test: Zoo, data: Dataset, *, conditioning: bool = True) -> dict:
    """Accuracies on test images: of held-out networks, of these decoded again, and of networks drawn."""
    heldout, prompts = best_prompts(test, SHARE), best_prompts(train, SHARE)
    made = {
        "held_out": heldout,
        "reconstructed": encoder.reconstruct(heldout),
        "drawn": KDE(encoder, ABLATED).fit(prompts).sample(DRAWN, SEED),
    }
    found: dict = {"error": relative_error(encoder, heldout)}
    for name, zoo in made.items():
        if conditioning and name != "held_out":
            zoo = conditioned(zoo, data, SEED)
        accuracy = behaviour.metrics(zoo, data.test_images, data.test_labels)[1]
        found |= {name: float(accuracy.mean()), f"{name}_std": float(accuracy.std())}
    return found


def relative_error(encoder: Autoencoder, zoo: Zoo) -> float:
    """Squared error of decoded weights over that of each layer's mean, the mean of all layers: 1 says nothing."""
    true, decoded = encoder.preparation.aligned(zoo), encoder.reconstruct(zoo).weights()
    places = [place for name, place in zoo.layout.slices.items() if zoo.layout.by_name[name].role not in RUNNING]
    shares = [float((decoded - true)[:, place].square().mean() / true[:, place].var()) for place in places]
    return sum(shares) / len(shares)


# ---- 4. Transfer


PAIRS = {"mnist-arch1": ("fashion_mnist", "usps"), "fashion-mnist-arch1": ("mnist",)}
"""Zoos of generators, and tasks that their networks are trained on."""


def transfer(zoos: Path, run: Path) -> None:
    """Networks generated from the zoo of one data set as a start on another."""
    curves, summaries = [], []
    for name, tasks in PAIRS.items():
        zoo = zoo_of(zoos, name)
        train, validation, test = zoo.split(SEED)
        sane = fitted(
            run / "models" / f"sane-{name}",
            lambda to, t=train, v=validation: SANE.fit(t, validation=v, optimisation=training(20), folder=to),
        )
        prompts, heldout = best_prompts(train, SHARE), best_prompts(test, SHARE)
        for task in tasks:
            data = datasets.load(task, train_limit=2000, side=14)
            data = replace(data, test_images=data.test_images[:IMAGES], test_labels=data.test_labels[:IMAGES])
            generated = KDE(sane, TRANSFERRED).fit(prompts).sample(STARTS, SEED)
            sources = initialisations(
                generated, data, prompts=prompts, heldout=heldout, align=sane.preparation.aligned, seed=SEED
            )
            aligned = prompts.with_weights(sane.preparation.aligned(prompts))
            generator = torch.Generator().manual_seed(SEED)
            sources["soup of all"] = baselines.average(aligned, STARTS, generator, k=None)
            found = measure_transfer(sources, data, epochs=EPOCHS, batch_size=32, seed=SEED)
            about = pl.lit(name).alias("zoo"), pl.lit(task).alias("task")
            curves.append(found.curves.select(*about, pl.all()))
            summaries.append(found.summary.select(*about, pl.all()))
    pl.concat(curves).write_csv(run / "transfer_curves.csv")
    pl.concat(summaries).write_csv(run / "transfer.csv")


# ---- 5. Several architectures


SEEN, UNSEEN = ("mnist-arch1", "mnist-arch2", "mnist-cnn-14"), "mnist-small-cnn"


def architectures(zoos: Path, run: Path) -> None:
    """One SANE of three architectures, and a fourth, wider one that it has not seen; beside it one of that alone."""
    splits = {name: zoo_of(zoos, name).split(SEED) for name in (*SEEN, UNSEEN)}
    three = fitted(
        run / "models" / "sane-three",
        lambda to: SANE.fit(
            [splits[name][0] for name in SEEN],
            validation=[splits[name][1] for name in SEEN],
            optimisation=training(12),
            folder=to,
        ),
    )
    own = fitted(
        run / "models" / f"sane-{UNSEEN}",
        lambda to: SANE.fit(splits[UNSEEN][0], validation=splits[UNSEEN][1], optimisation=training(20), folder=to),
    )
    rows, probes = [], []
    for name, (train, validation, test) in splits.items():
        data = images(name, IMAGES)
        encoders = {"three architectures": three.adapted(train)} | ({"its own zoo": own} if name == UNSEEN else {})
        prompts, heldout = best_prompts(train, SHARE), best_prompts(test, SHARE)
        aligned = prompts.with_weights(next(iter(encoders.values())).preparation.aligned(prompts))
        generator = torch.Generator().manual_seed(SEED)
        for label, encoder in encoders.items():
            align = encoder.preparation.aligned
            usual = median_distance(heldout, prompts, align)
            drawn = KDE(encoder, TRANSFERRED).fit(prompts).sample(DRAWN, SEED)
            distance = median_distance(drawn, prompts, align)
            sources = {
                "held-out": heldout,
                "reconstructed": encoder.reconstruct(heldout),
                "drawn": drawn,
                "noise at equal distance": noise_at_distance(aligned, distance, DRAWN, generator, align=align),
                "average of all": baselines.average(aligned, DRAWN, generator, k=None),
            }
            for source, zoo in sources.items():
                accuracy = behaviour.metrics(zoo, data.test_images, data.test_labels)[1]
                rows.append({
                    "zoo": name, "encoder": label, "source": source, "accuracy": float(accuracy.mean()),
                    "std": float(accuracy.std()), "distance": median_distance(zoo, prompts, align) / usual,
                    "error": relative_error(encoder, heldout) if source == "reconstructed" else None,
                })  # fmt: skip
            shown = {
                f"SANE of {label}, {p.replace('_', ' ')}": partial(embedded, encoder, p) for p in ("mean", "layers")
            }
            found, _ = predict_properties(train, validation, test, {**shown, "weight statistics": statistics},
                                          [ACCURACY])  # fmt: skip
            probes.append(found.select(pl.lit(name).alias("zoo"), pl.lit("this zoo").alias("probe of"), pl.all()))
    probes.append(elsewhere(three, splits))
    pl.DataFrame(rows, infer_schema_length=None).write_csv(run / "architectures.csv")
    pl.concat(probes).write_csv(run / "architectures_probes.csv")


def elsewhere(three: SANE, splits: dict[str, tuple[Zoo, Zoo, Zoo]]) -> pl.DataFrame:
    """A probe of the three zoos used on the fourth as it is: mean tokens have the same size for all layouts."""
    features, accuracy = [], []
    for side in (0, 1):
        some = [splits[name][side] for name in SEEN]
        features.append(np.concatenate([embedded(three, "mean", zoo) for zoo in some]))
        accuracy.append(np.concatenate([zoo.table[ACCURACY].to_numpy() for zoo in some])[:, None])
    test = splits[UNSEEN][2]
    known, checked, asked = standardise(*features, embedded(three, "mean", test))
    weights, intercept, _ = ridge(known, accuracy[0], checked, accuracy[1])
    found = number_scores(test.table[ACCURACY].to_numpy(), (asked @ weights + intercept)[:, 0])
    return pl.DataFrame({
        "zoo": UNSEEN, "probe of": "three zoos", "representation": "SANE of three architectures, mean",
        "probe": "ridge", "target": ACCURACY, "metric": list(found), "value": list(found.values()),
        "n_train": len(known), "n_test": len(asked),
    }, schema_overrides=SCORE_COLUMNS)  # fmt: skip


STAGES = {
    "properties": properties,
    "supervised": supervised,
    "choice": choice,
    "generation": generation,
    "targets": targets,
    "ablation": ablation,
    "transfer": transfer,
    "architectures": architectures,
}


if __name__ == "__main__":
    zoos, run, *stages = sys.argv[1:]
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in stages or [*STAGES, "page"]:
        if name == "page":
            described(Path(zoos)).write_csv(folder / "zoos.csv")
            page(folder)
        elif stages or not (folder / FILES[name]).is_file():
            STAGES[name](Path(zoos), folder)
