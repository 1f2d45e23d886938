"""`weightspace sample`."""

from pathlib import Path

from rich.console import Console

from weightspace import encoders
from weightspace.evaluation import PROMPTS, best_prompts
from weightspace.generators import KDE, KDEConfig
from weightspace.generators.kde import Mode
from weightspace.zoo import open as open_zoo


def sample(
    encoder: Path,
    zoo: Path,
    *,
    out: Path,
    n: int = 64,
    mode: Mode = KDEConfig.mode,
    bandwidth: float = KDEConfig.bandwidth,
    spread: float = KDEConfig.spread,
    best: float = PROMPTS,
    split_seed: int = 0,
    seed: int = 0,
) -> None:
    """Generate networks from the latents of a zoo's best training models, and save them as a zoo.

    Args:
        encoder: Folder of a fitted encoder.
        zoo: Folder of the zoo that it was fitted on.
        out: Folder of the new zoo.
        n: Networks to draw.
        mode: What is drawn together: a network with the prompts' covariance or without, each token, each latent
            scalar; or as the published code does.
        bandwidth: Kernel width in standard deviations over the prompts.
        spread: Of smooth draws, in standard deviations over the prompts.
        best: Share of the best training models, by validation accuracy, that are the prompts.
        split_seed: Seed of the split that the encoder was fitted with.
        seed: Seed of the draws.
    """
    train, _, _ = open_zoo(zoo).finite().split(split_seed)
    prompts = best_prompts(train, best)
    drawn = (
        KDE(encoders.load_autoencoder(encoder), KDEConfig(mode=mode, bandwidth=bandwidth, spread=spread))
        .fit(prompts)
        .sample(n, seed=seed)
    )
    drawn.save(out)
    Console().print(f"{n} networks from {len(prompts)} prompts: {out}", highlight=False)
