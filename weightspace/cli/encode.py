"""`weightspace fit` and `weightspace embed`."""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from cyclopts import Parameter
from rich.console import Console

from weightspace import encoders
from weightspace.encoders import TrainingConfig
from weightspace.errors import ZooError
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo.writer import LOCATION, write_file


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
    whole = open_zoo(zoo)
    finite = whole.finite()
    train, validation, _ = finite.split(split_seed)
    encoders.fit(method, train, validation=validation, optimisation=optimisation, folder=out)
    Console().print(f"fitted {method} on {len(train)} checkpoints{_left_out(whole, finite)}: {out}", highlight=False)


def embed(
    encoder: Path,
    zoo: Path,
    *,
    out: Path = Path("embeddings.parquet"),
    pooling: Literal["mean", "sequence", "layers"] = "mean",
) -> None:
    """Write the embedding of every checkpoint of a zoo, beside its columns.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo.
        out: Parquet file with the zoo's table and a column `embedding`.
        pooling: Mean of the token latents, the whole sequence of them, or moments of the encoder's states by layer.
    """
    fitted, whole = encoders.load(encoder), open_zoo(zoo)
    finite = whole.finite()
    if not len(finite):
        raise ZooError(f"no checkpoint of {zoo} has finite weights, so there is nothing to embed")
    embedding = fitted.embed(finite, pooling)
    table = finite.table.drop(LOCATION).with_columns(pl.Series("embedding", embedding.numpy()))
    buffer = BytesIO()
    table.write_parquet(buffer)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, buffer.getvalue())
    size = f"{len(table)} embeddings of {embedding.shape[1]} values"
    Console().print(f"{size}{_left_out(whole, finite)}: {out}", highlight=False)


def _left_out(whole: Zoo, finite: Zoo) -> str:
    count = len(whole) - len(finite)
    return f" ({count} with NaN or infinite weights left out)" if count else ""
