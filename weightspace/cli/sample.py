"""`weightspace sample`."""

from math import inf
from pathlib import Path
from typing import Literal

from rich.console import Console

from weightspace import encoders
from weightspace.cli.evaluate import images_of
from weightspace.errors import ConfigError
from weightspace.evaluation import PROMPTS, best_prompts
from weightspace.generators import (
    Region,
    Selected,
    SelectionConfig,
    Targeted,
    conditioned,
    has_running_statistics,
    latent_sampler,
    sampler_config,
)
from weightspace.generators.bandwidth import likeliest
from weightspace.generators.kde import Mode
from weightspace.zoo import open as open_zoo

Method = Literal["kde", "uniform", "gaussian", "interpolation", "neighbourhood", "gan"]


def sample(
    encoder: Path,
    zoo: Path,
    *,
    out: Path,
    n: int = 64,
    method: Method = "kde",
    mode: Mode | None = None,
    bandwidth: float | Literal["likelihood"] | None = None,
    spread: float | None = None,
    rank: int | None = None,
    best: float = PROMPTS,
    prompts: Path | None = None,
    candidates: int = 1,
    rounds: int = 1,
    target: str | None = None,
    low: float = -inf,
    high: float = inf,
    category: str | None = None,
    data_root: Path | None = None,
    split_seed: int = 0,
    seed: int = 0,
) -> None:
    """Generate networks from the latents of a zoo's best training models, and save them as a zoo.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo that it was fitted on.
        out: Folder of the new zoo.
        n: Networks to draw.
        method: How latents are drawn: from a kernel density, a box, a Gaussian, the segments between two prompts, a
            UMAP of the prompts (needs the extra `map`), or by a GAN.
        mode: Of kde, what is drawn together: a network with the prompts' covariance (smooth) or without, each token,
            each latent scalar; or as the published code does.
        bandwidth: Of kde, kernel width in standard deviations over the prompts; `likelihood` takes the one under which
            left-out prompts are likeliest.
        spread: Of smooth and Gaussian draws, in standard deviations over the prompts.
        rank: Of gaussian, directions that are kept.
        best: Share of the best training models, by validation accuracy, that are the prompts.
        prompts: Folder of another zoo of the same architecture whose best training models are the prompts.
        candidates: Draws for each network that is kept, by accuracy on validation images.
        rounds: Rounds of such draws; later ones resemble the best so far.
        target: Column such as metric.validation_accuracy, step or config.learning_rate: only networks are kept whose
            latents are predicted to have it between `low` and `high`, or in `category`.
        low: Least value of the target.
        high: Largest value of the target.
        category: Value of a target that is text.
        data_root: Folder of image data sets, for candidates and for networks with batch normalisation.
        split_seed: Seed of the split that the encoder was fitted with.
        seed: Seed of the draws.
    """
    if target is not None and (candidates > 1 or rounds > 1):
        raise ConfigError("networks are chosen by a target or by their accuracy: leave --target or --candidates out")
    source = open_zoo(prompts or zoo)
    train, _, _ = source.finite().split(split_seed)
    chosen, fitted = best_prompts(train, best), encoders.load_autoencoder(encoder)
    if bandwidth == "likelihood":
        bandwidth = likeliest(fitted.latents(chosen), mode or "smooth", chosen)
    config = sampler_config(method, mode=mode, bandwidth=bandwidth, spread=spread, rank=rank)
    sampler = latent_sampler(method)(fitted, config)
    if target is not None:
        region = Region(column=target, low=low, high=high, category=category)
        drawn = Targeted(sampler, region).fit(open_zoo(zoo).finite().split(split_seed)[0], chosen).sample(n, seed)
    elif candidates > 1 or rounds > 1:
        selection = SelectionConfig(candidates=candidates, rounds=rounds)
        drawn = Selected(sampler, images_of(source, data_root), selection).fit(chosen, seed).sample(n, seed)
    else:
        drawn = sampler.fit(chosen, seed).sample(n, seed)
    if has_running_statistics(drawn.layout):
        drawn = conditioned(drawn, images_of(source, data_root), seed)
    drawn.save(out)
    Console().print(f"{n} networks from {len(chosen)} prompts: {out}", highlight=False)
