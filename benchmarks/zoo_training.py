"""Training a zoo: a vectorised population, with and without a process pool, against one network after another.

python benchmarks/zoo_training.py [--compile] [--device cuda]

All cores, about two minutes on 2. The same work in each way: CNN-s of the Model Zoos (2464 parameters, 28x28), the
small CNN of the digits (994) and an MLP (1060), batches of 32, Adam, each network with its own learning rate, weight
decay and batches (no dropout). One by one is an ordinary loop with PyTorch's modules and `torch.optim.Adam`; the pools
have a process a core, started before the clock, and one by one in a pool is one process a model on all cores. With a
GPU (or `--device cuda`) the vectorised way runs there too, with 512 networks at once, as it is and compiled into a CUDA
graph; `--compile` compiles it on the CPU. Compiling itself is not in those times. Evaluation and storage are left out.
All other ways are checked to end with the same networks. Prints seconds, network steps a second, and the ratio to the
plain loop and to the pool of plain loops; other work on the machine slows all of them, not all equally.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import joblib
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.datasets import load
from weightspace.networks import CNN, MLP, Layout, Network, by_name, streams
from weightspace.networks.blocks import Conv2d, MaxPool
from weightspace.networks.population import Hyperparameters, initial_rows, train_population

BATCH, UNIT, GPU_UNIT = 32, 24, 512


@dataclass(frozen=True)
class Work:
    """Networks of one architecture, each trained for some steps."""

    label: str
    network: Network
    networks: int
    steps: int


WORKS = (
    Work("CNN-s, 28x28", by_name("cnn_s", (1, 28, 28), 10), 48, 40),
    Work("small CNN, 8x8 digits", CNN(), 48, 60),
    Work("MLP, 8x8 digits", MLP(), 96, 120),
)


Images = tuple[Tensor, Tensor]
"""Images and labels; read before the clock, and given to every job."""


def read(work: Work) -> Images:
    """As many images as an epoch has steps: digits, enlarged where the network wants it."""
    digits = load("digits")
    images = torch.cat([digits.train_images, digits.validation_images, digits.test_images])
    labels = torch.cat([digits.train_labels, digits.validation_labels, digits.test_labels])
    index = torch.arange(work.steps * BATCH) % len(images)
    return F.interpolate(images[index], work.network.image_shape[1:]), labels[index]


def population(work: Work, start: int, stop: int, device: str = "cpu") -> tuple[Tensor, Hyperparameters]:
    """Initial rows and factors of some of the networks."""
    seeds = torch.arange(start, stop, device=device)
    full = torch.ones(len(seeds), device=device)
    h = Hyperparameters(
        seeds=seeds,
        learning_rate=3e-4 * 10 ** streams.uniform(seeds, 0, 1)[:, 0],
        weight_decay=full * 1e-4,
        dropout=full * 0,
        train_fraction=full,
    )
    return initial_rows(work.network, seeds, "kaiming_uniform", full), h


def vectorised(work: Work, data: Images, start: int, stop: int, device: str = "cpu") -> Tensor:
    """Rows of some networks, trained together."""
    rows, h = population(work, start, stop, device)
    images, labels = (part.to(device) for part in data)
    stages = train_population(work.network, rows, h, images, labels, epochs=1, batch_size=BATCH, checkpoints=[1])
    ((_, trained, _),) = stages
    return trained.cpu()


def steady(work: Work, data: Images, networks: int, device: str, *, compile: bool) -> float:
    """Seconds of the second epoch, when everything that is done once is done, for the networks of the work."""
    rows, h = population(work, 0, networks, device)
    images, labels = (part.to(device) for part in data)
    stages = train_population(
        work.network, rows, h, images, labels, epochs=2, batch_size=BATCH, checkpoints=[1, 2], compile=compile
    )
    next(stages)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    finish()
    begin = perf_counter()
    next(stages)
    finish()
    return (perf_counter() - begin) * work.networks / networks


def usual(network: Network) -> nn.Module:
    """The module as one writes it: PyTorch's own convolutions and pools in place of ours."""
    module = network.build()
    for name, part in list(module.named_children()):
        if isinstance(part, Conv2d):
            own = nn.Conv2d(part.in_channels, part.out_channels, part.kernel_size, padding=part.padding)
            setattr(module, name, own)
        elif isinstance(part, MaxPool):
            setattr(module, name, nn.MaxPool2d(part.side))
    return module


def plain(work: Work, data: Images, number: int) -> Float[Tensor, " p"]:
    """Row of one network, trained as it is usually done."""
    rows, h = population(work, number, number + 1)
    module = usual(work.network)
    layout = Layout.of(module)
    module.load_state_dict(layout.unflatten(rows[0]))
    adam = torch.optim.Adam(module.parameters(), lr=float(h.learning_rate), weight_decay=float(h.weight_decay))
    images, labels = data
    own = streams.permutation(h.seeds, 1, len(images))[0]
    order = own[streams.permutation(h.seeds, 1_000_001, len(images))[0]]
    for batch in order.split(BATCH):
        adam.zero_grad()
        F.cross_entropy(module(images[batch]), labels[batch]).backward()
        adam.step()
    return layout.flatten(module.state_dict())


def in_worker(function: Callable, *arguments: object) -> Tensor:
    """Run in a pool: one thread a process."""
    torch.set_num_threads(1)
    return function(*arguments)


def pooled(
    pool: joblib.Parallel, function: Callable, work: Work, data: Images, places: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """The same for several places, a job each."""
    return pool(joblib.delayed(in_worker)(function, work, data, *place) for place in places)


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile the steps on the CPU too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: nothing was measured on one")
    torch.set_num_threads(1)
    cores = joblib.cpu_count()
    pool = joblib.Parallel(n_jobs=cores)
    for work in WORKS:
        numbers = range(work.networks)
        units = [(start, min(start + UNIT, work.networks)) for start in range(0, work.networks, UNIT)]
        data = read(work)
        ways: dict[str, Callable[[], Iterable[Tensor]]] = {
            "one by one": partial(map, partial(plain, work, data), numbers),
            f"one by one, {cores} processes": partial(pooled, pool, plain, work, data, [(i,) for i in numbers]),
            "vectorised": partial(map, partial(vectorised, work, data), *zip(*units, strict=True)),
            f"vectorised, {cores} processes": partial(pooled, pool, vectorised, work, data, units),
        }
        pooled(pool, plain, work, data, [(i,) for i in range(4 * cores)])  # start the workers
        steps = work.networks * work.steps
        print(f"{work.label}: {work.networks} networks, {work.steps} steps each, batches of {BATCH}")
        seconds: list[float] = []
        reference = None
        for name, run in ways.items():
            begin = perf_counter()
            rows = torch.cat([part.view(-1, part.shape[-1]) for part in run()])
            seconds.append(perf_counter() - begin)
            reference = rows if reference is None else reference
            # a few chaotic networks amplify rounding, so the bulk is compared
            difference = ((rows - reference).norm(dim=1) / reference.norm(dim=1)).median()
            assert difference < 1e-3, f"{name} trained other networks: {difference}"
            print(line(name, seconds[-1], steps, seconds))
        if options.compile:
            print(line("vectorised, compiled", steady(work, data, UNIT, "cpu", compile=True), steps, seconds))
        if options.device == "cuda":
            for compile in (False, True):
                name = f"GPU, {GPU_UNIT} at once{', compiled' if compile else ''}"
                print(line(name, steady(work, data, GPU_UNIT, "cuda", compile=compile), steps, seconds))
    if options.device == "cpu":
        print("no GPU here: not measured on one")


def line(name: str, taken: float, steps: int, seconds: list[float]) -> str:
    """Seconds, network steps a second, and the ratio to the plain loop and to the pool of plain loops."""
    pooled = f" x{seconds[1] / taken:.1f}" if len(seconds) > 1 else ""
    return f"  {name:30} {taken:7.2f} s {steps / taken:9.0f} steps/s   x{seconds[0] / taken:.1f}{pooled}"


if __name__ == "__main__":
    main()
