"""Protocols: what is measured, on which split, beside which baselines; each returns tidy tables.

`properties` and `generation` are the whole protocols, from a fitted encoder and its zoo; `properties.py` and
`generation.py` hold their parts for any other method.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from weightspace.datasets import Dataset
from weightspace.encoders import Autoencoder, Predictor
from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.errors import ConfigError, LayoutError
from weightspace.evaluation.benchmark import benchmark, summary
from weightspace.evaluation.distillation import distill, distillation, train_on_labels
from weightspace.evaluation.ensembles import Ensemble, paired_bootstrap
from weightspace.evaluation.generation import (
    GenerationTables,
    evaluate_generation,
    median_distance,
    noise_at_distance,
)
from weightspace.evaluation.layers import layer_embeddings, layer_statistics, probe_layers
from weightspace.evaluation.other_zoos import out_of_distribution
from weightspace.evaluation.properties import (
    Hyperparameters,
    combined,
    flat_weights,
    predict_properties,
    statistics,
)
from weightspace.evaluation.snapshots import snapshots, swag
from weightspace.evaluation.targeting import obtained
from weightspace.evaluation.transfer import TransferTables, few_images, few_shot, initialisations, transfer
from weightspace.generators import baselines
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

__all__ = [
    "Ensemble",
    "GenerationTables",
    "TransferTables",
    "benchmark",
    "best_prompts",
    "combined",
    "distill",
    "distillation",
    "few_images",
    "few_shot",
    "generation",
    "initialisations",
    "layer_embeddings",
    "layer_statistics",
    "layers",
    "novelty_audit",
    "obtained",
    "out_of_distribution",
    "paired_bootstrap",
    "population_map",
    "probe_layers",
    "properties",
    "representations_of",
    "shifted_properties",
    "snapshots",
    "summary",
    "swag",
    "targets_of",
    "train_on_labels",
    "transfer",
]

BY = "metric.validation_accuracy"
"""What "best" means everywhere: the best on validation images, never on test images."""
PROMPTS = 0.2
"""Share of the best training models that networks are generated from."""
MIXED = 4
"""Fewest prompts of one activation: the smaller average needs so many."""
NOISE = (0.1, 0.2, 0.3, 0.5)
"""Noise levels of the baseline curve, in standard deviations of each parameter over the prompts."""


def targets_of(zoo: Zoo) -> list[str]:
    """Properties to predict: test accuracy, epoch, generalisation gap and every hyper-parameter of the zoo."""
    config = [name for name in zoo.table.columns if name.startswith("config.") and "seed" not in name]
    wanted = ["metric.test_accuracy", "step", "metric.generalisation_gap", *config]
    return [name for name in wanted if name in zoo.table.columns]


def properties(
    encoder: Autoencoder | Predictor, zoo: Zoo, targets: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predict properties of models never seen, from the embedding and from simple representations.

    Args:
        zoo: The whole zoo; it is split by model.
        targets: Columns; `targets_of(zoo)` when missing.
        seed: Of the split: the one that the encoder was fitted with.

    Returns:
        Scores and predictions, see `predict_properties`.
    """
    train, validation, test = zoo.finite().split(seed)
    return predict_properties(
        train, validation, test, representations_of(encoder, train), list(targets or targets_of(zoo))
    )


def representations_of(
    encoder: Autoencoder | Predictor, train: Zoo
) -> dict[str, Callable[..., Float[np.ndarray, "n d"]]]:
    """What properties are predicted from: embeddings, embeddings beside statistics, and the simple representations.

    Args:
        train: The training split that the encoder was fitted on.
    """
    learned: dict[str, Callable[[Zoo], Float[np.ndarray, "n d"]]] = (
        {encoder.module.name: lambda part: encoder.embed(part).numpy()}
        if isinstance(encoder, Predictor)
        else {
            f"{encoder.title}, layers": lambda part: encoder.embed(part, "layers").numpy(),
            f"{encoder.title}, sequence": lambda part: encoder.embed(part, "sequence").numpy(),
            f"{encoder.title}, mean token": lambda part: encoder.embed(part).numpy(),
        }
    )
    both = {
        f"{name} + weight statistics": combined(represent, statistics)
        for name, represent in learned.items()
        if not name.endswith(", sequence")  # statistics drown among so many features
    }
    return {
        **learned,
        **both,
        "weight statistics": statistics,
        "flat weights": flat_weights,
        "hyper-parameters": Hyperparameters(train),
    }


def shifted_properties(
    encoder: Autoencoder | Predictor,
    zoo: Zoo,
    others: Mapping[str, Zoo],
    targets: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> pl.DataFrame:
    """Predict properties in other zoos with probes of the zoo that an encoder was fitted on, see `out_of_distribution`.

    Args:
        zoo: The whole zoo of the encoder; it is split by model.
        others: Other zoos by name, of the same layout.
        targets: Columns; those of `targets_of` that all zoos have when missing.
        seed: Of the splits: the one that the encoder was fitted with.
    """
    wanted = targets or [name for name in targets_of(zoo) if all(name in z.table.columns for z in others.values())]
    train, _, _ = zoo.finite().split(seed)
    return out_of_distribution(zoo, others, representations_of(encoder, train), list(wanted), seed=seed)


def layers(encoder: Autoencoder, zoo: Zoo, targets: Sequence[str] | None = None, *, seed: int = 0) -> pl.DataFrame:
    """Which layers tell what: probes on each layer's statistics and embedding, see `probe_layers`.

    Args:
        zoo: The whole zoo of the encoder; it is split by model.
        targets: Columns; `targets_of(zoo)` when missing.
        seed: Of the split: the one that the encoder was fitted with.
    """
    shown = {encoder.title: layer_embeddings(encoder), "weight statistics": layer_statistics(zoo.layout)}
    return probe_layers(*zoo.finite().split(seed), shown, list(targets or targets_of(zoo)))


def best_prompts(zoo: Zoo, fraction: float = PROMPTS) -> Zoo:
    """The last checkpoints of the best models by validation accuracy: prompts of a generator, one a model."""
    return zoo.finite().last().best(fraction, BY)


def require_prompts(prompts: Zoo) -> None:
    """Refuse prompts that are too few for the baselines beside a generator.

    Raises:
        ConfigError: An activation has fewer than four prompts.
    """
    for network, place in by_activation(prompts):
        if len(place) < MIXED:
            raise ConfigError(
                f"evaluating generated networks needs at least {MIXED} prompts of each activation, but only "
                f"{len(place)} of the {len(prompts)} best training models have {network.activation}; train more models "
                "or take a larger share of them"
            )


def generation(
    generated: Zoo,
    encoder: Autoencoder,
    zoo: Zoo,
    data: Dataset,
    *,
    fraction: float = PROMPTS,
    epochs: Sequence[int] = (0, 1, 5),
    fine_tune: Collection[str] | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> GenerationTables:
    """Measure generated networks beside random initialisation, noise, averages, reconstruction and held-out networks.

    Args:
        zoo: The whole zoo that the encoder was fitted on; it is split as then.
        fraction: Share of best models that were the prompts; the same share of test models is held out.
        seed: Of the split, of the baselines' draws and of the fine-tuning's batches.

    Returns:
        Tables of networks, sources, novelty and ensembles, see `evaluate_generation`.

    Raises:
        ConfigError: There are too few prompts.
    """
    train, _, test = zoo.split(seed)
    prompts, heldout = best_prompts(train, fraction), best_prompts(test, fraction)
    require_prompts(prompts)
    align = encoder.preparation.aligned
    aligned = prompts.with_weights(align(prompts))
    n, generator = len(generated), torch.Generator().manual_seed(seed)
    distance = median_distance(generated, prompts, align)
    sources = {
        "generated": generated,
        "random initialisation": baselines.random_initialisation(prompts, n, generator),
        "noise at equal distance": noise_at_distance(aligned, distance, n, generator, align=align),
        **{f"noise {sigma}": baselines.noise(aligned, n, generator, sigma=sigma) for sigma in NOISE},
        "interpolation": baselines.interpolation(aligned, n, generator),
        "average of 4": baselines.average(aligned, n, generator, k=4),
        "average of all": baselines.average(aligned, n, generator, k=None),
        "average of all, not aligned": baselines.average(prompts, n, generator, k=None),
        "Gaussian": baselines.diagonal_gaussian(aligned, n, generator),
        "reconstruction of held-out": encoder.reconstruct(heldout),
    }
    return evaluate_generation(
        sources, data, training=prompts, heldout=heldout, align=align, epochs=epochs, fine_tune=fine_tune,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def novelty_audit(
    networks: Zoo, zoo: Zoo, data: Dataset, *, fraction: float = PROMPTS, seed: int = 0
) -> GenerationTables:
    """Whether networks from anywhere are copies or averages of a zoo's training networks; nothing is trained.

    What could have been copied is every checkpoint of every training run, not only the last and best. What is usual, τ
    and the error IoU among training networks, is of the best last checkpoints, as in `generation`.

    Args:
        networks: Generated networks of the zoo's layout, as they are.
        zoo: The whole zoo that they are said to be new to; it is split by model.
        data: Its images.
        fraction: Share of best training models that say what is usual; the same share of test models is held out.
        seed: Of the split, and of the noise beside.

    Returns:
        As `generation`, for "networks", a noise curve, "average of 4", "held-out" and "training", at epoch 0.

    Raises:
        ConfigError: There are too few good training models.
        ZooError: Networks have NaN weights.
        LayoutError: Networks are of another architecture.
    """
    if networks.layout != zoo.layout:
        raise LayoutError(
            f"{networks!r} is of another architecture than {zoo!r}, so none of its networks can be a copy or an "
            "average: give networks of the zoo's layout"
        )
    train, _, test = zoo.finite().split(seed)
    usual, heldout = best_prompts(train, fraction), best_prompts(test, fraction)
    require_prompts(usual)
    reference, generator = training_reference(train), torch.Generator().manual_seed(seed)

    def align(some: Zoo) -> Float[torch.Tensor, "m p"]:
        return aligned_rows(some, reference)

    aligned, n = usual.with_weights(align(usual)), len(networks)
    sources = {
        "networks": networks,
        **{f"noise {sigma}": baselines.noise(aligned, n, generator, sigma=sigma) for sigma in NOISE},
        "average of 4": baselines.average(aligned, n, generator, k=MIXED),
    }
    return evaluate_generation(
        sources, data, training=usual, heldout=heldout, align=align, known=train, epochs=[0], seed=seed
    )


def population_map(encoder: Autoencoder, zoo: Zoo, *, seed: int = 0) -> pl.DataFrame:
    """Every checkpoint on a plane: the first two principal components of the embeddings of training models.

    Returns:
        Model, step, coordinates x and y, side of the split, test accuracy and `config.*`.
    """
    zoo = zoo.finite()
    sides = zip(("train", "validation", "test"), zoo.split(seed), strict=True)
    side = {model: name for name, part in sides for model in part.models}
    embedding = encoder.embed(zoo, "layers").double()
    known = torch.tensor([side[model] == "train" for model in zoo.table["model"]])
    mean, std = embedding[known].mean(0), embedding[known].std(0).clamp(min=1e-12)
    scaled = (embedding - mean) / std
    axes = torch.linalg.eigh(scaled[known].T @ scaled[known]).eigenvectors[:, -2:].flip(1).T
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # the sign of a component is arbitrary
    x, y = (scaled @ axes.T).T.tolist()
    return zoo.table.select("model", "step", "^config\\..*$", "metric.test_accuracy").with_columns(
        pl.Series("x", x),
        pl.Series("y", y),
        pl.col("model").replace_strict(side, return_dtype=pl.String).alias("split"),
    )
