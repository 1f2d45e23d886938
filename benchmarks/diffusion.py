"""Sampling networks by flow matching: all at once against one at a time. python benchmarks/diffusion.py

One core, about 20 s. A perceptron denoiser over 128 principal components, 50 Euler steps, and the decoding to rows of
a digits MLP; 200 networks. The loop draws each network by itself, as scripts do that sample, load and test in turn.
Prints networks a second of both (processor time of one thread), their ratio, and training steps a second with a batch
of 128.
"""

from time import process_time

import polars as pl
import torch

from weightspace import networks
from weightspace.encoders import TrainingConfig
from weightspace.generators import Components, Diffusion, DiffusionConfig, MLPDenoiser
from weightspace.zoo import Zoo

NETWORKS, STEPS, REPEATS, TRAINED = 200, 50, 3, 100


def some_zoo(name: str, n: int, seed: int) -> Zoo:
    """Random networks; what they compute does not change how long they take."""
    network = networks.MLP()
    layout = networks.Layout.of(network.build())
    rows = torch.randn(n, layout.parameters, generator=torch.Generator().manual_seed(seed))
    table = pl.DataFrame({"model": [f"{name}-{i}" for i in range(n)], "step": [0] * n})
    return Zoo.in_memory(rows, layout, table, {"network": networks.to_json(network)})


def main() -> None:
    """Train a little, then time both ways of drawing; the best of three."""
    torch.set_num_threads(1)
    train = some_zoo("train", 300, 0)
    space = Components.fit(train, 128)
    config = DiffusionConfig(denoiser=MLPDenoiser(width=256, depth=2), epoch_steps=TRAINED)
    started = process_time()
    fitted = Diffusion.fit(
        train, validation=some_zoo("validation", 20, 1), space=space, config=config,
        optimisation=TrainingConfig(epochs=1, batch_size=128, accelerator="cpu"),
    )  # fmt: skip
    trained = process_time() - started
    together, alone = [], []
    for _ in range(REPEATS):
        started = process_time()
        fitted.sample(NETWORKS, steps=STEPS)
        together.append(process_time() - started)
        started = process_time()
        for seed in range(NETWORKS // 10):
            fitted.sample(1, steps=STEPS, seed=seed)
        alone.append(10 * (process_time() - started))
    print(
        f"mlp, 1060 parameters: together {NETWORKS / min(together):.0f} networks/s, one at a time "
        f"{NETWORKS / min(alone):.0f} networks/s, ratio {min(alone) / min(together):.1f}; "
        f"training {TRAINED / trained:.0f} steps/s"
    )


if __name__ == "__main__":
    main()
