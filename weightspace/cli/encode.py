"""`weightspace fit` and `weightspace embed`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from cyclopts import Parameter
from rich.console import Console

from weightspace import encoders
from weightspace.errors import ConfigError, ZooError, unknown_name
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo.writer import LOCATION, write_file


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How an encoder is trained; what is left out is as the method has it."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    """Peak of the cycle."""
    weight_decay: float | None = None
    """On matrices only."""
    warmup: float | None = None
    """Share of the steps before the peak."""
    gradient_norm: float | None = None
    """Gradients are scaled down to this norm."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; never when missing."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    accelerator: str | None = None
    """`cpu`, `cuda`, `mps` or `auto`."""
    devices: int | None = None
    tensorboard: bool | None = None
    """Also write TensorBoard logs; needs the extra `tensorboard`."""
    seed: int | None = None


def fit(
    method: str,
    zoo: Path,
    *zoos: Path,
    out: Path,
    target: tuple[str, ...] = (),
    size: str | None = None,
    align: bool | None = None,
    split_seed: int = 0,
    optimisation: Annotated[Optimisation, Parameter(name="*")] = Optimisation(),
) -> None:
    """Train an encoder on the training models of a zoo, into a folder with everything in it.

    Args:
        method: Name of the encoder: sane or hyper-representation, autoencoders, or one that learns from targets, such
            as dng or sne.
        zoo: Folder of the zoo.
        zoos: More zoos, for autoencoders; for sane of other architectures too.
        out: Folder of the fitted encoder; an interrupted training is continued there.
        target: Column to learn from, such as metric.test_accuracy (the default) or config.learning_rate; may be
            repeated. Not for autoencoders, which need none.
        size: Of an autoencoder: a published one, such as cnn or resnet18 for sane, mnist-seed for hyper-representation;
            by default small and made for the networks.
        align: Of an autoencoder: bring networks into one order of hidden units first. By default sane does,
            hyper-representation does not.
        split_seed: Seed of the split by model; only its training part is learned from.
    """
    if method not in encoders.names():
        raise unknown_name("encoder", method, encoders.names())
    given = {name: value for name, value in asdict(optimisation).items() if value is not None}
    options: dict = {"optimisation": replace(encoders.default_training(method), **given)}
    whole = [open_zoo(folder) for folder in (zoo, *zoos)]
    finite = [some.finite() for some in whole]
    train, validation, _ = zip(*(some.split(split_seed) for some in finite), strict=True)
    if method in encoders.autoencoders():
        if target:
            raise ConfigError(f"{method} is an autoencoder and learns from weights alone; leave --target out")
        options |= {} if size is None else {"config": encoders.published_size(method, size)}
        options |= {} if align is None else {"align": align}
        encoders.fit(method, train, validation=validation, folder=out, **options)
    else:
        if zoos or size is not None or align is not None:
            raise ConfigError(f"{method} is no autoencoder; give one zoo, and leave --size and --align out")
        options |= {"targets": target} if target else {}
        encoders.fit(method, *train, validation=validation[0], folder=out, **options)
    Console().print(
        f"fitted {method} on {sum(map(len, train))} checkpoints{_left_out(whole, finite)}: {out}", highlight=False
    )


def embed(
    encoder: Path,
    zoo: Path,
    *,
    out: Path = Path("embeddings.parquet"),
    pooling: Literal["mean", "layer_means", "sequence", "layers"] = "mean",
) -> None:
    """Write the embedding of every checkpoint of a zoo, beside its columns.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo.
        out: Parquet file with the zoo's table and a column `embedding`.
        pooling: Of autoencoders: mean of the token latents, one mean a layer, the whole sequence of them, or moments of
            the encoder's states by layer.
    """
    fitted, whole = encoders.load(encoder), open_zoo(zoo)
    finite = whole.finite()
    if not len(finite):
        raise ZooError(f"no checkpoint of {zoo} has finite weights, so there is nothing to embed")
    embedding = fitted.embed(finite) if isinstance(fitted, encoders.Predictor) else fitted.embed(finite, pooling)
    table = finite.table.drop(LOCATION).with_columns(pl.Series("embedding", embedding.numpy()))
    buffer = BytesIO()
    table.write_parquet(buffer)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, buffer.getvalue())
    size = f"{len(table)} embeddings of {embedding.shape[1]} values"
    Console().print(f"{size}{_left_out([whole], [finite])}: {out}", highlight=False)


def _left_out(whole: Sequence[Zoo], finite: Sequence[Zoo]) -> str:
    count = sum(map(len, whole)) - sum(map(len, finite))
    return f" ({count} with NaN or infinite weights left out)" if count else ""
