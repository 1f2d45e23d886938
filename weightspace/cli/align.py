"""`weightspace align`: align a zoo, or measure the barrier between two networks before and after alignment."""

from pathlib import Path

import polars as pl
from rich.console import Console

from weightspace.cli.evaluate import images_of, show
from weightspace.evaluation.alignment import aligned_zoo, chosen_network
from weightspace.evaluation.barrier import alignments, compare_barriers
from weightspace.report import barrier_picture
from weightspace.views.architecture import architecture_of
from weightspace.zoo import open as open_zoo


def zoo(path: Path, *, out: Path, split_seed: int = 0) -> None:
    """Write a zoo whose networks lie in one order of hidden units; their functions stay as they are.

    Args:
        path: Folder of the zoo.
        out: Folder of the aligned zoo.
        split_seed: Seed of the split by model; the reference is the mean of training models only.
    """
    whole = open_zoo(path)
    finite = whole.finite()
    aligned_zoo(finite, seed=split_seed).save(out)
    count = len(whole) - len(finite)
    left = f" ({count} with NaN or infinite weights left out)" if count else ""
    Console().print(f"{len(finite)} checkpoints of {len(finite.models)} networks{left}: {out}", highlight=False)


def pair(
    first: str,
    second: str,
    *,
    out: Path = Path("barrier"),
    points: int = 25,
    repair: bool = True,
    data_root: Path | None = None,
    seed: int = 0,
) -> None:
    """Measure the loss barrier between two networks as they are, and after alignment.

    Args:
        first: A network as ZOO:MODEL, or ZOO:MODEL@STEP for an earlier checkpoint.
        second: The network that is aligned to it; of the same architecture.
        out: Folder for barriers.csv, curves.csv and barrier.png.
        points: Networks on the line, both ends included.
        repair: Also mend the statistics of activations between the ends (REPAIR); hidden layers need biases for it.
        data_root: Folder of image data sets.
        seed: Order of the groups in weight matching.
    """
    network, start, data_zoo = chosen_network(first)
    _, end, _ = chosen_network(second, like=network)
    groups = architecture_of(data_zoo.header, data_zoo.layout).groups
    data = images_of(data_zoo, data_root)
    seconds = alignments(network, start, end, groups, data, seed=seed)
    barriers, curves = compare_barriers(network, start, seconds, groups, data, points=points, repair=repair)
    out.mkdir(parents=True, exist_ok=True)
    barriers.write_csv(out / "barriers.csv")
    curves.write_csv(out / "curves.csv")
    barrier_picture(curves.filter(pl.col("images") == "test"), out / "barrier.png")
    show(barriers.drop("accuracy_barrier"), f"loss barrier between {first} and {second} ({out})")
