"""Training a zoo with and without keeping freed memory.

python benchmarks/allocation.py: one thread, about a minute. The same population of CNN-s networks is trained for some
steps in a process each way, alternately; seconds of the processor, of these in the kernel, and the ratio. Linux with
the GNU C library; elsewhere both ways are the same.
"""

import resource
import subprocess
import sys

import torch

from weightspace.allocation import keep_freed_memory
from weightspace.networks import by_name
from weightspace.networks.population import Hyperparameters, initial_rows, train_population

NETWORKS, STEPS, BATCH, TURNS = 24, 60, 64, 3


def train(way: str) -> None:
    """Train, and print the seconds in the program and in the kernel."""
    torch.set_num_threads(1)
    if way == "kept":
        keep_freed_memory()
    network, seeds, full = by_name("cnn_s", (1, 28, 28), 10), torch.arange(NETWORKS), torch.ones(NETWORKS)
    rows = initial_rows(network, seeds, "kaiming_uniform", full)
    images = torch.randn(STEPS * BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) % 10
    h = Hyperparameters(
        seeds=seeds, learning_rate=full * 1e-3, weight_decay=full * 0, dropout=full * 0, train_fraction=full
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in train_population(network, rows, h, images, labels, epochs=1, batch_size=BATCH, checkpoints=[1]):
        pass
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)


def main() -> None:
    """Print the comparison, of the better of some turns."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(TURNS):
        for way in ("kept", "given-back"):
            done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
            user, kernel = map(float, done.stdout.split())
            best[way] = min(best.get(way, (float("inf"), 0.0)), (user, kernel), key=sum)
    (user, kernel), (plain_user, plain_kernel) = best["kept"], best["given-back"]
    print(
        f"train {NETWORKS} CNN-s for {STEPS} steps: memory kept {user + kernel:.1f} s ({kernel:.1f} in the kernel), "
        f"given back {plain_user + plain_kernel:.1f} s ({plain_kernel:.1f}), ratio "
        f"{(plain_user + plain_kernel) / (user + kernel):.2f}"
    )


if __name__ == "__main__":
    train(sys.argv[1]) if len(sys.argv) > 1 else main()
