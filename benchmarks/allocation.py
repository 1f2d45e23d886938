"""Training a zoo with and without keeping freed memory.

python benchmarks/allocation.py: one thread, two minutes. A zoo of CNN-s networks is trained and measured on digits of
28x28 in a process each way, alternately; seconds of the processor, of these in the kernel, and the ratio. Linux with
the GNU C library; elsewhere both ways are the same. On a machine that does other work, too, the kernel takes more.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from weightspace.allocation import keep_freed_memory
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train as train_zoo

RECIPE = Recipe(network="cnn_s", models=24, epochs=4, checkpoints=(1, 2, 3, 4), side=28, train_fraction=(1.0,))
TURNS = 3


def train(way: str) -> None:
    """Train, and print the seconds in the program and in the kernel."""
    torch.set_num_threads(1)
    if way == "kept":
        keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        train_zoo(Path(folder) / "zoo", RECIPE, workers=1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)


def main() -> None:
    """Print the comparison, of the better of some turns."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(TURNS):
        for way in ("kept", "given-back"):
            done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
            user, kernel = map(float, done.stdout.split()[-2:])
            best[way] = min(best.get(way, (float("inf"), 0.0)), (user, kernel), key=sum)
    (user, kernel), (plain_user, plain_kernel) = best["kept"], best["given-back"]
    print(
        f"train {RECIPE.models} CNN-s: memory kept {user + kernel:.1f} s ({kernel:.1f} in the kernel), "
        f"given back {plain_user + plain_kernel:.1f} s ({plain_kernel:.1f}), ratio "
        f"{(plain_user + plain_kernel) / (user + kernel):.2f}"
    )


if __name__ == "__main__":
    train(sys.argv[1]) if len(sys.argv) > 1 else main()
