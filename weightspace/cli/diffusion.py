"""`weightspace diffusion`: fit a diffusion or flow of networks, or G.pt, to a zoo."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from weightspace.encoders import load_autoencoder
from weightspace.errors import ConfigError
from weightspace.generators import (
    DDPM,
    GPT,
    Components,
    Diffusion,
    DiffusionConfig,
    DiffusionTraining,
    Flow,
    GPTConfig,
    GPTTraining,
    Latents,
    Rows,
)
from weightspace.generators.spaces import Space
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

PROCESSES: dict[str, DDPM | Flow] = {"flow": Flow(), "ddpm": DDPM(), "ddim": DDPM(eta=0.0)}


def fit(
    zoo: Path,
    *,
    out: Path,
    space: Literal["rows", "components", "latents"] = "components",
    components: int | None = None,
    encoder: Path | None = None,
    process: Literal["flow", "ddpm", "ddim"] = "flow",
    condition: tuple[str, ...] = (),
    split_seed: int = 0,
    optimisation: Annotated[DiffusionTraining, Parameter(name="*")] = DiffusionTraining(),  # noqa: B008 - frozen
) -> None:
    """Train a diffusion or flow on the last checkpoints of a zoo's training models.

    Args:
        zoo: Folder of the zoo.
        out: Folder of the fitted generator; an interrupted training is continued there.
        space: Where noise is added and taken away: aligned rows, their principal components, latents of an encoder.
        components: Principal components, for that space; 128 when left out, or as many as there are.
        encoder: Folder of an autoencoder that was fitted on this zoo, for latents.
        process: Flow matching, or diffusion sampled with fresh noise (ddpm) or without (ddim).
        condition: Columns that may be asked for later, such as metric.validation_loss or config.learning_rate.
        split_seed: Seed of the split by model; only its training part is learned from.
    """
    train, validation, _ = open_zoo(zoo).finite().last().split(split_seed)
    fitted = Diffusion.fit(
        train, validation=validation, space=_space(space, train, components, encoder), condition=condition,
        config=DiffusionConfig(process=PROCESSES[process]), optimisation=optimisation, folder=out,
    )  # fmt: skip
    console = Console()
    console.print(f"fitted {process} on {len(train)} networks: {out}", highlight=False)
    for sentence in fitted.warnings:
        console.print(f"note: {sentence}", highlight=False, soft_wrap=True)


def gpt(
    zoo: Path,
    *,
    out: Path,
    config: Annotated[GPTConfig, Parameter(name="*")] = GPTConfig(),  # noqa: B008 - frozen
    split_seed: int = 0,
    optimisation: Annotated[GPTTraining, Parameter(name="*")] = GPTTraining(),  # noqa: B008 - frozen
) -> None:
    """Train G.pt on pairs of checkpoints of a zoo's training models.

    Args:
        zoo: Folder of the zoo, with several checkpoints of each model.
        out: Folder of the fitted generator; an interrupted training is continued there.
        split_seed: Seed of the split by model; only its training part is learned from.
    """
    train, validation, _ = open_zoo(zoo).finite().split(split_seed)
    GPT.fit(train, validation=validation, config=config, optimisation=optimisation, folder=out)
    Console().print(f"fitted G.pt on {len(train)} checkpoints of {len(train.models)} runs: {out}", highlight=False)


def _space(name: str, train: Zoo, components: int | None, encoder: Path | None) -> Space:
    if (name == "latents") != (encoder is not None):
        raise ConfigError("an encoder is for the space latents, and that space needs one: give --encoder with it only")
    if encoder is not None:
        return Latents.fit(train, load_autoencoder(encoder))
    return Rows.fit(train) if name == "rows" else Components.fit(train, components)
