"""Training a zoo: a vectorised population, with and without a process pool, against one network after another.

python benchmarks/zoo_training.py

All cores, about 20 s on 2. The same work four times: 48 CNNs of 994 parameters on the digits, 2 epochs, batches of 32,
Adam, each network with its own learning rate, weight decay and batches (no dropout). One by one is an ordinary loop
with `torch.optim.Adam` in one process; the pools have a process a core and are started before the clock. Evaluation
and storage are left out. All ways are checked to end with the same networks. Prints seconds, network steps a second
and the ratio to the plain loop; other work on the machine slows all of them, not all equally.
"""

from collections.abc import Callable
from time import perf_counter

import joblib
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from weightspace.datasets import Dataset, load
from weightspace.networks import CNN, Layout, streams
from weightspace.networks.population import Hyperparameters, initial_rows, train_population

NETWORKS, EPOCHS, BATCH, UNIT = 48, 2, 32, 24
NETWORK = CNN()


def population(start: int, stop: int) -> tuple[Tensor, Hyperparameters]:
    """Initial rows and factors of some of the networks."""
    seeds = torch.arange(start, stop)
    full = torch.ones(len(seeds))
    h = Hyperparameters(
        seeds=seeds,
        learning_rate=3e-4 * 100 ** streams.uniform(seeds, 0, 1)[:, 0],
        weight_decay=full * 1e-4,
        dropout=full * 0,
        train_fraction=full,
    )
    return initial_rows(NETWORK, seeds, "kaiming_uniform", full), h


def vectorised(data: Dataset, start: int, stop: int) -> Tensor:
    """Rows of some networks, trained together."""
    rows, h = population(start, stop)
    stages = train_population(
        NETWORK, rows, h, data.train_images, data.train_labels, epochs=EPOCHS, batch_size=BATCH, checkpoints=[EPOCHS]
    )
    ((_, trained, _),) = stages
    return trained


def plain(data: Dataset, number: int) -> Float[Tensor, " p"]:
    """Row of one network, trained as it is usually done."""
    rows, h = population(number, number + 1)
    module = NETWORK.build()
    layout = Layout.of(module)
    module.load_state_dict(layout.unflatten(rows[0]))
    adam = torch.optim.Adam(module.parameters(), lr=float(h.learning_rate), weight_decay=float(h.weight_decay))
    images, labels = data.train_images, data.train_labels
    own = streams.permutation(h.seeds, 1, len(images))[0]
    for epoch in range(1, EPOCHS + 1):
        order = own[streams.permutation(h.seeds, 1_000_000 + epoch, len(images))[0]]
        for batch in order[: len(images) // BATCH * BATCH].split(BATCH):
            adam.zero_grad()
            F.cross_entropy(module(images[batch]), labels[batch]).backward()
            adam.step()
    return layout.flatten(module.state_dict())


def in_worker(function: Callable, *places: int) -> Tensor:
    """Run in a pool: one thread a process, images from the library."""
    torch.set_num_threads(1)
    return function(load("digits"), *places)


def main():
    torch.set_num_threads(1)
    cores, data = joblib.cpu_count(), load("digits")
    pool = joblib.Parallel(n_jobs=cores)
    job, numbers = joblib.delayed(in_worker), range(NETWORKS)
    units = [(start, min(start + UNIT, NETWORKS)) for start in range(0, NETWORKS, UNIT)]
    ways: dict[str, Callable[[], Tensor]] = {
        "one by one": lambda: torch.stack([plain(data, i) for i in numbers]),
        f"one by one, {cores} processes": lambda: torch.stack(pool(job(plain, i) for i in numbers)),
        "vectorised": lambda: torch.cat([vectorised(data, *unit) for unit in units]),
        f"vectorised, {cores} processes": lambda: torch.cat(pool(job(vectorised, *unit) for unit in units)),
    }
    pool(job(plain, i) for i in range(cores))  # start the workers
    steps = NETWORKS * EPOCHS * (len(data.train_images) // BATCH)
    print(f"{NETWORKS} CNNs, {EPOCHS} epochs of {len(data.train_images)} digits, batches of {BATCH}: {steps} steps")
    reference, baseline = None, 0.0
    for name, run in ways.items():
        begin = perf_counter()
        rows = run()
        seconds = perf_counter() - begin
        if reference is None:
            reference, baseline = rows, seconds
        # a few chaotic networks at the highest learning rates amplify rounding, so the bulk is compared
        difference = ((rows - reference).norm(dim=1) / reference.norm(dim=1)).median()
        assert difference < 1e-3, f"{name} trained other networks: {difference}"
        print(f"{name:28} {seconds:7.2f} s {steps / seconds:9.0f} steps/s   x{baseline / seconds:.1f}")


if __name__ == "__main__":
    main()
