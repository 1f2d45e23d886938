"""Training networks on tasks of their own all at once, against one after the other. python benchmarks/tasks.py

One thread, about half a minute. 64 MLPs 64-14-4, each on four classes of the digits (200 images), for five epochs. One
after the other means one call of the same training for each, which is what a zoo a task would be. Prints networks a
second of both (processor time), their ratio, and the largest difference of a weight.
"""

from collections.abc import Iterator
from time import process_time

import polars as pl
import torch

from weightspace.zoo.task_zoo import TaskRecipe, train_task_unit
from weightspace.zoo.tasks import TaskImages

RECIPE = TaskRecipe(
    data=("digits",), tasks=(64,), validation_tasks=0, test_tasks=0, side=8, train_images=50, validation_images=20,
    test_images=40, epochs=5,
)  # fmt: skip
LOOPED, REPEATS = 16, 3


def rows(images: TaskImages, units: Iterator[pl.DataFrame]) -> torch.Tensor:
    """Weights of the networks of some units, one unit after the other."""
    return torch.cat([train_task_unit(RECIPE, images, unit)[0] for unit in units])


def main() -> None:
    """Time both, the best of three; the loop trains every fourth network, which is enough to time it."""
    torch.set_num_threads(1)
    images = RECIPE.load_images()
    plan = RECIPE.plan(images)
    some = plan[:: len(plan) // LOOPED]
    rows(images, plan[:2].iter_slices(2))  # the first call loads libraries
    times: dict[str, list[float]] = {"at once": [], "one by one": []}
    for _ in range(REPEATS):
        started = process_time()
        together = rows(images, plan.iter_slices(len(plan)))
        times["at once"].append((process_time() - started) / len(plan))
        started = process_time()
        alone = rows(images, some.iter_slices(1))
        times["one by one"].append((process_time() - started) / LOOPED)
    ours, theirs = 1 / min(times["at once"]), 1 / min(times["one by one"])
    checkpoints = len(together) // len(plan)
    same = together.unflatten(0, (len(plan), checkpoints))[:: len(plan) // LOOPED].flatten(0, 1)
    apart = float((same - alone).abs().max())
    print(f"training on tasks: at once {ours:.0f} networks/s, one by one {theirs:.0f}, ratio {ours / theirs:.1f}")
    print(f"{len(plan)} networks of {together.shape[1]} parameters; largest difference {apart:.1e}")


if __name__ == "__main__":
    main()
