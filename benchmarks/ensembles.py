"""Sampling networks and asking 1000 of them at once, against a plain loop. python benchmarks/ensembles.py

One thread, about a minute. A manifold hypernetwork for the digits MLP 64-16-10 (1210 parameters; how long it takes does
not depend on what it learned) draws 1000 networks. Their ensemble predicts 10 000 images, digits again and again: mean
of probabilities, votes and the surest member. The loop is what scripts do: each network is made by one call of the
hypernetwork, loaded into a module, and run in batches of 100 images; probabilities are added up. It runs on every
tenth network, which is enough to time it. Prints networks a second of both (processor time), their ratio, and the
largest difference of a mean probability over the same networks.
"""

from time import process_time

import torch
from torch import Tensor

from weightspace import datasets, networks
from weightspace.evaluation.ensembles import Ensemble
from weightspace.generators import Manifold, ManifoldConfig

NETWORKS, IMAGES, BATCH, LOOPED, REPEATS = 1000, 10_000, 100, 100, 3


@torch.no_grad()
def sampled_by_loop(generator: Manifold, latents: Tensor) -> list[dict[str, Tensor]]:
    """One latent at a time, as state dicts."""
    generator.module.eval()
    return [generator.layout.unflatten(generator.module(latent[None])[0]) for latent in latents]


@torch.no_grad()
def mean_by_loop(network: networks.Network, states: list[dict[str, Tensor]], images: Tensor) -> Tensor:
    """Mean probabilities, one network and one batch at a time."""
    module = network.build().eval()
    total = torch.zeros(len(images), network.classes)
    for state in states:
        module.load_state_dict(state)
        total += torch.cat([module(x).softmax(1) for x in images.split(BATCH)])
    return total / len(states)


def main() -> None:
    """Time both, the best of three."""
    torch.set_num_threads(1)
    data = datasets.load("digits")
    images = data.train_images.repeat(IMAGES // len(data.train_images), 1, 1, 1)
    network = networks.MLP(hidden=(16,))
    generator = Manifold(network, ManifoldConfig(), {"network": networks.to_json(network)})
    generator.module.reset(torch.Generator().manual_seed(0))
    latents = generator.latents(NETWORKS, torch.Generator().manual_seed(0))
    Ensemble(generator.sample(50)).predict(images[:50])  # the first call loads libraries
    times: dict[str, list[float]] = {}

    def timed(name, work, *arguments):
        started = process_time()
        result = work(*arguments)
        times.setdefault(name, []).append(process_time() - started)
        return result

    for _ in range(REPEATS):
        drawn = timed("sampled", generator.sample, NETWORKS)
        states = timed("sampled by loop", sampled_by_loop, generator, latents)
        timed("evaluated", Ensemble(drawn).combine, images)
        looped = timed("evaluated by loop", mean_by_loop, network, states[:LOOPED], images)
    apart = float((Ensemble(drawn.take(range(LOOPED))).predict(images) - looped).abs().max())
    for name, share in (("sampled", 1.0), ("evaluated", LOOPED / NETWORKS)):
        ours, theirs = NETWORKS / min(times[name]), NETWORKS * share / min(times[f"{name} by loop"])
        print(f"{name}: at once {ours:.0f} networks/s, loop {theirs:.0f} networks/s, ratio {ours / theirs:.1f}")
    print(
        f"{NETWORKS} networks of {drawn.layout.parameters} parameters, {IMAGES} images; largest difference {apart:.1e}"
    )


if __name__ == "__main__":
    main()
