"""`weightspace sample`."""

from math import inf
from pathlib import Path
from typing import Literal

import polars as pl
from rich.console import Console

from weightspace import encoders, generators
from weightspace.cli.evaluate import images_of
from weightspace.errors import ConfigError
from weightspace.evaluation import PROMPTS, best_prompts
from weightspace.generators import (
    GPT,
    Diffusion,
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
from weightspace.generators.for_data import sample_for_data, task_images
from weightspace.generators.kde import Mode
from weightspace.generators.pretrained import method_of
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

Method = Literal["kde", "uniform", "gaussian", "interpolation", "neighbourhood", "gan"]


def sample(
    fitted: Path,
    zoo: Path | None = None,
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
    candidates: int | None = None,
    rounds: int = 1,
    target: str | None = None,
    low: float = -inf,
    high: float = inf,
    category: str | None = None,
    condition: tuple[str, ...] = (),
    steps: int | None = None,
    guidance: float = 1.0,
    for_data: str | None = None,
    classes: tuple[int, ...] = (),
    data_root: Path | None = None,
    data_seed: int = 0,
    split_seed: int = 0,
    seed: int = 0,
) -> None:
    """Generate networks with a fitted generator, or from the latents of a fitted encoder, and save them as a zoo.

    Args:
        fitted: Folder of a fitted generator or encoder.
        zoo: Folder of the zoo that it was fitted on; an encoder draws around its best training models, G.pt starts from
            the first checkpoints of its test models, other generators need none.
        out: Folder of the new zoo.
        n: Networks to draw.
        method: For encoders, how latents are drawn: from a kernel density, a box, a Gaussian, the segments between two
            prompts, a UMAP of the prompts (needs the extra `map`), or by a GAN.
        mode: Of kde, what is drawn together: a network with the prompts' covariance (smooth) or without, each token,
            each latent scalar; or as the published code does.
        bandwidth: Of kde, kernel width in standard deviations over the prompts; `likelihood` takes the one under which
            left-out prompts are likeliest.
        spread: Of smooth and Gaussian draws, in standard deviations over the prompts.
        rank: Of gaussian, directions that are kept.
        best: Share of the best training models, by validation accuracy, that are the prompts.
        prompts: Folder of another zoo of the same architecture whose best training models are the prompts.
        candidates: Draws for each network that is kept, by accuracy on validation images; one by default. With
            `for_data`, draws in all, by default four times as many as are kept.
        rounds: Rounds of such draws; later ones resemble the best so far.
        target: Column such as metric.validation_accuracy, step or config.learning_rate: only networks are kept whose
            latents are predicted to have it between `low` and `high`, or in `category`.
        low: Least value of the target.
        high: Largest value of the target.
        category: Value of a target that is text.
        condition: For diffusion and G.pt, what is asked of the networks, as COLUMN=VALUE.
        steps: For diffusion and G.pt, steps of the sampler.
        guidance: For diffusion, how far towards the condition, 1 as learned.
        for_data: For what `weightspace tasks fit` made: folder of images, or a data set in the data root, to make
            networks for; they need not have been seen.
        classes: Of those data, which classes the networks tell apart, in the order of their outputs; all by default.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Of those data, seed of the cut into training, validation and test images.
        split_seed: Seed of the split that it was fitted with.
        seed: Seed of the draws.
    """
    if for_data is not None:
        generator = Diffusion.from_pretrained(fitted)
        data = task_images(generator, for_data, data_root, seed=data_seed, classes=classes)
        drawn = sample_for_data(generator, data, n, candidates=candidates, guidance=guidance, steps=steps, seed=seed)
        accuracy = drawn.table["metric.validation_accuracy"].to_numpy().mean()
        said = f"{n} networks, right about {accuracy:.3f} of the validation images of {data.name}"
    elif method_of(fitted) is not None:
        drawn = _generated(fitted, zoo, n, _asked(condition), steps, guidance, split_seed, seed)
        said = f"{len(drawn)} networks"
    else:
        if target is not None and (candidates is not None or rounds > 1):
            raise ConfigError("networks are chosen by a target or by accuracy: leave --target or --candidates out")
        own = _required(zoo, fitted)
        source = own if prompts is None else open_zoo(prompts)
        chosen, encoder = best_prompts(_training(source, split_seed), best), encoders.load_autoencoder(fitted)
        if bandwidth == "likelihood":
            bandwidth = likeliest(encoder.latents(chosen), mode or "smooth", chosen)
        config = sampler_config(method, mode=mode, bandwidth=bandwidth, spread=spread, rank=rank)
        sampler = latent_sampler(method)(encoder, config)
        if target is not None:
            region = Region(column=target, low=low, high=high, category=category)
            drawn = Targeted(sampler, region).fit(_training(own, split_seed), chosen).sample(n, seed)
        elif candidates is not None or rounds > 1:
            selection = SelectionConfig(candidates=1 if candidates is None else candidates, rounds=rounds)
            drawn = Selected(sampler, images_of(source, data_root), selection).fit(chosen, seed).sample(n, seed)
        else:
            drawn = sampler.fit(chosen, seed).sample(n, seed)
        if has_running_statistics(drawn.layout):
            drawn = conditioned(drawn, images_of(source, data_root), seed)
        said = f"{n} networks from {len(chosen)} prompts"
    drawn.save(out)
    Console().print(f"{said}: {out}", highlight=False)


def _generated(
    folder: Path, zoo: Path | None, n: int, asked: dict, steps: int | None, guidance: float, split_seed: int, seed: int
) -> Zoo:
    generator = generators.load(folder)
    if isinstance(generator, Diffusion):
        return generator.sample(n, condition=asked or None, steps=steps, guidance=guidance, seed=seed)
    if isinstance(generator, GPT):
        if list(asked) != [generator.config.metric]:
            raise ConfigError(f"G.pt needs to be told where to go: --condition {generator.config.metric}=VALUE")
        _, _, test = _required(zoo, folder).finite().split(split_seed)
        starts = test.where(pl.col("step") == pl.col("step").min())
        return generator.sample(starts.take(range(min(n, len(starts)))), asked[generator.config.metric], steps=steps,
                                seed=seed)  # fmt: skip
    if asked:
        raise ConfigError(f"{folder} holds a generator without conditions: leave --condition out")
    return generator.sample(n, seed=seed)


def _asked(condition: tuple[str, ...]) -> dict:
    """Columns and values of COLUMN=VALUE."""
    asked: dict[str, float | str] = {}
    for part in condition:
        name, given, value = part.partition("=")
        if not given:
            raise ConfigError(f"a condition is COLUMN=VALUE, such as metric.validation_loss=0.3, not {part!r}")
        try:
            asked[name] = float(value)
        except ValueError:
            asked[name] = value
    return asked


def _training(zoo: Zoo, split_seed: int) -> Zoo:
    return zoo.finite().split(split_seed)[0]


def _required(zoo: Path | None, folder: Path) -> Zoo:
    if zoo is None:
        raise ConfigError(f"{folder} needs a zoo to draw from: weightspace sample {folder} ZOO --out FOLDER")
    return open_zoo(zoo)
