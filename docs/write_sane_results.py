"""What the choices in SANE and in sampling are worth: docs/results/sane.md and its CSVs.

weightspace demo && python docs/write_sane_results.py weightspace-demo: about five minutes on two cores.
Uses the demo's zoo. Variants of SANE are trained for two epochs each and measured on models and images of the
validation split; test data are not touched.
"""

import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

import weightspace as ws
from weightspace.demo import machine
from weightspace.encoders import SANE, SANEConfig, TrainingConfig, load
from weightspace.encoders.sane import SANEModule
from weightspace.encoders.sane_config import small
from weightspace.encoders.transformer import masked_mse
from weightspace.evaluation import best_prompts, median_distance
from weightspace.evaluation.properties import predict_properties, statistics
from weightspace.generators import KDE, KDEConfig
from weightspace.zoo.behaviour import metrics

RESULTS = Path(__file__).parent / "results"
EPOCHS, SEED, DRAWN = 2, 0, 64
DRAWS = [
    KDEConfig(mode="joint", bandwidth=0.1),
    KDEConfig(mode="joint", bandwidth=0.2),
    KDEConfig(mode="joint", bandwidth=0.3),
    KDEConfig(mode="token", bandwidth=0.2),
    KDEConfig(mode="independent", bandwidth=0.2),
    KDEConfig(mode="reference", bandwidth=0.2),
    KDEConfig(bandwidth=0.3, spread=1.0),
    KDEConfig(bandwidth=0.5, spread=1.0),
    KDEConfig(bandwidth=0.3),
    KDEConfig(bandwidth=0.5),
    KDEConfig(bandwidth=1.0),
]
PAGE = """# SANE and sampling: what the choices are worth

On the zoo of [the demo](demo.md), seed {seed}, {cores} cores of {processor}, {system}, Python {python}, torch {torch}:
`weightspace demo && python docs/write_sane_results.py weightspace-demo`. Everything is measured on the validation
split, with one seed.

## Autoencoder

SANE trained for {epochs} epochs of the training models. Error is the masked mean squared error of standardised weights,
without noise; accuracy is that of the last checkpoints of the validation models after encoding and decoding, on
validation images (as they are: {original:.3f}). R² is that of test accuracy from the embedding `layers` with a ridge
probe: fitted on training models, its penalty chosen on one half of the validation models and scored on the other,
mean of both ways; weight statistics have {statistics:.3f}. [sane_ablation.csv](sane_ablation.csv)

{ablation}

## Where weights say how accurate a network is

R² as above, of plain features: mean and spread of each column of each layer (all weights that read one input, of all
output channels), in aligned, standardised weights. The last row is the demo's encoder. The logarithm of the spread
makes the difference, and it must be taken before columns are mixed. [sane_columns.csv](sane_columns.csv)

{columns}

## Sampling

{drawn} networks a row from the demo's encoder; prompts are the best {share:.0%} of the training models. Distance is the
median distance to the nearest prompt over that of held-out networks of the same rank.
[sane_sampling.csv](sane_sampling.csv)

{sampling}
"""


@contextmanager
def published_initialisation():
    """N(0, 0.02²) for every matrix, residual outputs narrower (SANE's reference code)."""

    def reset(self: SANEModule, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                narrow = name.endswith(("attention_out.weight", "mlp_out.weight"))
                std = 0.02 / math.sqrt(2 * self.config.depth) if narrow else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    ours, SANEModule.reset = SANEModule.reset, reset
    try:
        yield
    finally:
        SANEModule.reset = ours


def error(sane: SANE, zoo: ws.Zoo) -> float:
    """Reconstruction error of standardised weights."""
    tokens = sane.view.tokenise(sane.preparation.apply(zoo))
    with torch.no_grad():
        decoded = sane.module.decode(sane.module.encode(tokens, sane.view.positions), sane.view.positions)
    return float(masked_mse(decoded, tokens, sane.view.mask))


def probe(represent: Callable[[ws.Zoo], np.ndarray], training: ws.Zoo, validation: ws.Zoo) -> float:
    """R² of test accuracy on validation models; of their two halves one chooses the penalty, the other scores."""
    models = sorted(validation.models)
    halves = [validation.where(pl.col("model").is_in(models[i::2])) for i in (0, 1)]
    found = []
    for chooses, scores in (halves, halves[::-1]):
        values, _ = predict_properties(
            training, chooses, scores, {"": represent}, ["metric.test_accuracy"], boosting=()
        )
        found.append(values.filter(pl.col("metric") == "r2")["value"].item())
    return sum(found) / 2


def moments(tokens: torch.Tensor, layer: torch.Tensor, spread: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Mean and spread of each value of the tokens over those of a layer."""
    of_layers = [tokens[:, layer == number] for number in layer.unique()]
    parts = [part for of_layer in of_layers for part in (of_layer.mean(1), spread(of_layer.var(1, correction=0)))]
    return torch.cat(parts, dim=1).numpy()


def column_features(sane: SANE) -> dict[str, Callable[[ws.Zoo], np.ndarray]]:
    """Representations of the section on columns, by name."""
    layer, generator = sane.view.positions[:, 1], torch.Generator().manual_seed(SEED)
    rotation = torch.linalg.qr(torch.randn(sane.view.width, sane.view.width, generator=generator)).Q

    def tokens(zoo: ws.Zoo) -> torch.Tensor:
        return sane.view.tokenise(sane.preparation.apply(zoo))

    def log(variance: torch.Tensor) -> torch.Tensor:
        return (variance + 1e-6).log()

    return {
        "weight statistics": statistics,
        "columns, mean and deviation": lambda zoo: moments(tokens(zoo), layer, torch.sqrt),
        "columns, mean and log variance": lambda zoo: moments(tokens(zoo), layer, log),
        "the same of columns mixed by a random rotation": lambda zoo: moments(tokens(zoo) @ rotation, layer, log),
        "SANE, layers": lambda zoo: sane.embed(zoo, "layers").numpy(),
    }


def table(frame: pl.DataFrame) -> str:
    """A Markdown table with three decimals."""
    lines = [" | ".join(frame.columns), " | ".join("---:" if t.is_numeric() else ":---" for t in frame.dtypes)]
    for row in frame.rows():
        lines.append(" | ".join("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return "\n".join(f"| {line} |" for line in lines)


def main(run: Path) -> None:
    """Train the variants, draw, and write the page."""
    zoo = ws.open(run / "zoo")
    training, validation, test = zoo.split(SEED)
    data = ws.datasets.load("digits", seed=SEED)
    last, base = validation.last(), small(zoo.layout)

    def accuracy(networks: ws.Zoo) -> float:
        return float(metrics(networks, data.validation_images, data.validation_labels)[1].mean())

    def fitted(config: SANEConfig) -> SANE:
        return SANE.fit(training, validation=validation, config=config, optimisation=TrainingConfig(epochs=EPOCHS))

    variants: dict[str, Callable[[], SANE]] = {
        "default": lambda: fitted(base),
        "published initialisation": lambda: fitted(base),
        "without magnitudes": lambda: fitted(replace(base, magnitudes=False)),
        "both views aligned": lambda: fitted(replace(base, permuted_view=False)),
        "no contrast": lambda: fitted(replace(base, contrast=0.0)),
        "latent of 3/4 of the token": lambda: fitted(replace(base, latent=round(base.token_width * 3 / 4))),
        "latent of 1/2 of the token": lambda: fitted(replace(base, latent=round(base.token_width / 2))),
    }
    rows = []
    for name, make in variants.items():
        if name == "published initialisation":
            with published_initialisation():
                sane = make()
        else:
            sane = make()
        r2 = probe(lambda part, sane=sane: sane.embed(part, "layers").numpy(), training, validation)
        errors = {"training error": error(sane, training), "validation error": error(sane, validation)}
        reconstructed = accuracy(sane.reconstruct(last))
        rows.append({"variant": name, **errors, "validation accuracy": reconstructed, "R²": r2})
    ablation = pl.DataFrame(rows)

    sane = load(run / "sane")
    columns = pl.DataFrame(
        [{"features": name, "R²": probe(f, training, validation)} for name, f in column_features(sane).items()]
    )
    prompts, heldout = best_prompts(training), best_prompts(test)
    usual = median_distance(heldout, prompts, sane.preparation.aligned)
    rows = []
    for config in DRAWS:
        networks = KDE(sane, config).fit(prompts).sample(DRAWN, seed=SEED)
        distance = median_distance(networks, prompts, sane.preparation.aligned) / usual
        spread = config.spread if config.mode == "smooth" else None
        draw = {"mode": config.mode, "bandwidth": config.bandwidth, "spread": spread}
        rows.append({**draw, "validation accuracy": accuracy(networks), "distance": distance})
    sampling = pl.DataFrame(rows, infer_schema_length=None)

    ablation.write_csv(RESULTS / "sane_ablation.csv")
    columns.write_csv(RESULTS / "sane_columns.csv")
    sampling.write_csv(RESULTS / "sane_sampling.csv")
    facts = {**machine(), "torch": version("torch"), "seed": SEED, "epochs": EPOCHS, "original": accuracy(last)}
    facts |= {"statistics": probe(statistics, training, validation)}
    facts |= {"drawn": DRAWN, "share": ws.evaluation.PROMPTS}
    page = PAGE.format(**facts, ablation=table(ablation), sampling=table(sampling), columns=table(columns))
    (RESULTS / "sane.md").write_text(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
