"""Measuring generated networks: all at once against one at a time. python benchmarks/generation.py

One core, about 20 s. 200 digits networks of each kind on 500 test images: logits, softmax, and accuracy, NLL, Brier
score and ECE of every network. The loop is what the field's scripts do: load a state dict into a module, run it in
batches of 100 images and add up, with the calibration error computed bin by bin. Prints networks a second of both
(processor time of one thread), their ratio, and the largest difference of any score.
"""

from time import process_time

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import datasets, networks
from weightspace.evaluation.ensembles import BINS, scores
from weightspace.generators.baselines import random_initialisation
from weightspace.zoo import Zoo, behaviour

NETWORKS, BATCH, REPEATS = 200, 100, 3


def some_zoo(network: networks.Network) -> Zoo:
    """Untrained networks; how good they are does not change how long they take."""
    module = network.build()
    layout = networks.Layout.of(module)
    table = pl.DataFrame({"model": ["a"], "step": [0], "config.init": ["kaiming_normal"], "config.init_scale": [1.0]})
    template = Zoo.in_memory(torch.zeros(1, layout.parameters), layout, table, {"network": networks.to_json(network)})
    return random_initialisation(template, NETWORKS, torch.Generator().manual_seed(0))


@torch.no_grad()
def looped_scores(module: nn.Module, states: list[dict[str, Tensor]], images: Tensor, labels: Tensor) -> Tensor:
    """Accuracy, NLL, Brier and ECE, one network and one batch at a time."""
    module.eval()
    rows = []
    for state in states:
        module.load_state_dict(state)
        right, nll, brier, confidences, hits = 0.0, 0.0, 0.0, [], []
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            logits = module(x)
            probabilities = logits.softmax(1)
            nll += F.cross_entropy(logits, y, reduction="sum").item()
            brier += (probabilities - F.one_hot(y, probabilities.shape[1])).square().sum().item()
            confidence, predicted = probabilities.max(1)
            right += (predicted == y).sum().item()
            confidences.append(confidence)
            hits.append((predicted == y).float())
        confidence, hit = torch.cat(confidences), torch.cat(hits)
        ece = 0.0
        for b in range(BINS):
            inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
            if inside.any():
                ece += (inside.float().mean() * (hit[inside].mean() - confidence[inside].mean()).abs()).item()
        rows.append([right / len(labels), nll / len(labels), brier / len(labels), ece])
    return torch.tensor(rows)


def main() -> None:
    """Time both on the same networks; the best of three."""
    torch.set_num_threads(1)
    data = datasets.load("digits")
    images, labels = data.test_images, data.test_labels
    for name in ("cnn", "mlp"):
        network = networks.by_name(name, data.image_shape, data.classes)
        zoo = some_zoo(network)
        states = [{key: value.clone() for key, value in zoo.layout.unflatten(row).items()} for row in zoo.weights()]
        module = network.build()
        behaviour.logits(zoo.take(range(2)), images)  # the first call loads libraries
        ours, theirs, apart = [], [], 0.0
        for _ in range(REPEATS):
            started = process_time()
            found = scores(behaviour.logits(zoo, images).softmax(2), labels)
            ours.append(process_time() - started)
            started = process_time()
            looped = looped_scores(module, states, images, labels)
            theirs.append(process_time() - started)
            apart = float((torch.stack(list(found.values()), dim=1) - looped).abs().max())
        print(
            f"{name}, {zoo.layout.parameters} parameters: vectorised {NETWORKS / min(ours):.0f} networks/s, loop "
            f"{NETWORKS / min(theirs):.0f} networks/s, ratio {min(theirs) / min(ours):.1f}; "
            f"largest difference {apart:.1e}"
        )


if __name__ == "__main__":
    main()
