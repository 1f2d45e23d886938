"""`weightspace fit` and `weightspace embed`."""

from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from cyclopts import Parameter
from rich.console import Console

from weightspace import encoders
from weightspace.encoders import TrainingConfig
from weightspace.zoo import open as open_zoo


def fit(
    method: str,
    zoo: Path,
    *,
    out: Path,
    split_seed: int = 0,
    optimisation: Annotated[TrainingConfig, Parameter(name="*")] = TrainingConfig(),  # noqa: B008 - frozen
) -> None:
    """Train an encoder on the training models of a zoo, into a folder with everything in it.

    Args:
        method: Name of the encoder: sane.
        zoo: Folder of the zoo.
        out: Folder of the fitted encoder; an interrupted training is continued there.
        split_seed: Seed of the split by model; only its training part is learned from.
    """
    train, validation, _ = open_zoo(zoo).finite().split(split_seed)
    encoders.fit(method, train, validation=validation, optimisation=optimisation, folder=out)
    Console().print(f"fitted {method} on {len(train)} checkpoints: {out}", highlight=False)


def embed(
    encoder: Path, zoo: Path, *, out: Path = Path("embeddings.parquet"), pooling: Literal["mean", "sequence"] = "mean"
) -> None:
    """Write the embedding of every checkpoint of a zoo, beside its columns.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo.
        out: Parquet file with the zoo's table and a column `embedding`.
        pooling: Mean over tokens, or the whole sequence of token latents.
    """
    fitted, population = encoders.load(encoder), open_zoo(zoo).finite()
    embedding = fitted.embed(population, pooling)
    table = population.table.drop("layout", "shard", "row")
    table.with_columns(pl.Series("embedding", embedding.numpy())).write_parquet(out)
    Console().print(f"{len(table)} embeddings of {embedding.shape[1]} values: {out}", highlight=False)
