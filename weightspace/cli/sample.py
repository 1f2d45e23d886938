"""`weightspace sample`."""

from pathlib import Path

import polars as pl
from rich.console import Console

from weightspace import encoders, generators
from weightspace.errors import ConfigError
from weightspace.evaluation import PROMPTS, best_prompts
from weightspace.generators import GPT, KDE, Diffusion, KDEConfig
from weightspace.generators.for_data import sample_for_data, task_images
from weightspace.generators.kde import Mode
from weightspace.generators.pretrained import method_of
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo


def sample(
    fitted: Path,
    zoo: Path | None = None,
    *,
    out: Path,
    n: int = 64,
    condition: tuple[str, ...] = (),
    steps: int | None = None,
    guidance: float = 1.0,
    mode: Mode = KDEConfig.mode,
    bandwidth: float = KDEConfig.bandwidth,
    spread: float = KDEConfig.spread,
    best: float = PROMPTS,
    split_seed: int = 0,
    for_data: str | None = None,
    classes: tuple[int, ...] = (),
    candidates: int | None = None,
    data_root: Path | None = None,
    data_seed: int = 0,
    seed: int = 0,
) -> None:
    """Generate networks with a fitted generator, or from the latents of a fitted encoder, and save them as a zoo.

    Args:
        fitted: Folder of a fitted generator or encoder.
        zoo: Folder of the zoo that it was fitted on; an encoder draws around its best training models, G.pt starts from
            the first checkpoints of its test models, other generators need none.
        out: Folder of the new zoo.
        n: Networks to draw.
        condition: What is asked of them, as COLUMN=VALUE; for diffusion and G.pt.
        steps: Steps of the sampler; for diffusion and G.pt.
        guidance: How far towards the condition, 1 as learned; for diffusion.
        mode: What is drawn together: a network with the prompts' covariance or without, each token, each latent
            scalar; or as the published code does. For encoders, as are the next three.
        bandwidth: Kernel width in standard deviations over the prompts.
        spread: Of smooth draws, in standard deviations over the prompts.
        best: Share of the best training models, by validation accuracy, that are the prompts.
        split_seed: Seed of the split that it was fitted with.
        for_data: Folder of images, or a data set in the data root, to make networks for; they need not have been seen.
            For what `weightspace tasks fit` made, as are the next four.
        classes: Which classes the networks tell apart, in the order of their outputs; all by default.
        candidates: Networks to draw, of which those are kept that do best on validation images; four times as many by
            default.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Seed of the cut into training, validation and test images.
        seed: Seed of the draws.
    """
    if for_data is not None:
        generator = Diffusion.from_pretrained(fitted)
        data = task_images(generator, for_data, data_root, seed=data_seed, classes=classes)
        drawn = sample_for_data(generator, data, n, candidates=candidates, guidance=guidance, steps=steps, seed=seed)
        accuracy = drawn.table["metric.validation_accuracy"].to_numpy().mean()
        said = f"{n} networks, right about {accuracy:.3f} of the validation images of {data.name}"
    elif method_of(fitted) is None:
        train, _, _ = _required(zoo, fitted).finite().split(split_seed)
        config = KDEConfig(mode=mode, bandwidth=bandwidth, spread=spread)
        prompts = best_prompts(train, best)
        drawn = KDE(encoders.load_autoencoder(fitted), config).fit(prompts).sample(n, seed=seed)
        said = f"{n} networks from {len(prompts)} prompts"
    else:
        drawn = _generated(fitted, zoo, n, condition, steps, guidance, split_seed, seed)
        said = f"{len(drawn)} networks"
    drawn.save(out)
    Console().print(f"{said}: {out}", highlight=False)


def _generated(
    folder: Path, zoo: Path | None, n: int, condition: tuple[str, ...], steps: int | None, guidance: float,
    split_seed: int, seed: int,
) -> Zoo:  # fmt: skip
    generator, asked = generators.load(folder), _asked(condition)
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


def _required(zoo: Path | None, folder: Path) -> Zoo:
    if zoo is None:
        raise ConfigError(f"{folder} needs a zoo to draw from: weightspace sample {folder} ZOO --out FOLDER")
    return open_zoo(zoo)
