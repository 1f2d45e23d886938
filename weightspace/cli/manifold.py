"""`weightspace manifold`: fit a hypernetwork to a task, and draw networks from it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from weightspace import datasets, networks
from weightspace.generators import Manifold, ManifoldConfig, ManifoldTraining


def fit(
    *,
    target: str = "mlp",
    data: str = "digits",
    out: Path = Path("manifold"),
    config: Annotated[ManifoldConfig, Parameter(name="*")] = ManifoldConfig(),  # noqa: B008 - frozen
    optimisation: Annotated[ManifoldTraining, Parameter(name="*")] = ManifoldTraining(),  # noqa: B008 - frozen
    data_root: Path | None = None,
    data_seed: int = 0,
) -> None:
    """Train a hypernetwork whose samples are networks that solve a task; needs no zoo.

    Args:
        target: Preset of the networks to generate: mlp, cnn, cnn_s, cnn_l, resnet18, resnet32 or another classifier.
        data: Images that they are trained on: digits, or a data set in the data root.
        out: Folder of the fitted hypernetwork; an interrupted training is continued there.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
        data_seed: Seed of the cut into training, validation and test images.
    """
    images = datasets.load(data, data_root, seed=data_seed)
    network = networks.by_name(target, images.image_shape, images.classes)
    fitted = Manifold.fit(network, images, config=config, optimisation=optimisation, folder=out)
    last = fitted.header["fit"]["last"]
    Console().print(
        f"samples are right about {last['validation_accuracy']:.3f} of the validation images, two of them differ on "
        f"{last['validation_disagreement']:.3f}: {out}",
        highlight=False,
    )


def sample(generator: Path, *, out: Path, n: int = 100, seed: int = 0) -> None:
    """Draw networks from a fitted hypernetwork, and save them as a zoo.

    Args:
        generator: Folder of a fitted hypernetwork.
        out: Folder of the new zoo.
        n: Networks to draw.
        seed: Seed of the draws.
    """
    Manifold.from_pretrained(generator).sample(n, seed=seed).save(out)
    Console().print(f"{n} networks: {out}", highlight=False)
