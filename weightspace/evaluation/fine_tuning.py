"""A learning rate of its own for everything that is trained further: one grid, chosen on validation images.

Unequal learning rates, or one rate that suits a method, are a frequent reason why one initialisation looks better than
another ("Evaluating generators", section 7).
"""

from collections.abc import Collection, Sequence

import torch

from weightspace.datasets import Dataset
from weightspace.networks.optimisers import OptimiserName, Schedule
from weightspace.networks.population import Epoch
from weightspace.zoo import Zoo, behaviour

LEARNING_RATES = (1e-3, 3e-3, 1e-2)
"""Grid for fine-tuning, the same for every source."""
TUNED_NETWORKS = 16
"""Networks of a source, evenly spaced, with which its learning rate is chosen."""


def best_learning_rate(
    name: str,
    zoo: Zoo,
    data: Dataset,
    *,
    epochs: Collection[Epoch] = (1,),
    rates: Sequence[float] = LEARNING_RATES,
    batch_size: int = 32,
    optimiser: OptimiserName = "adam",
    schedule: Schedule = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> float:
    """The rate of a grid with the highest mean validation accuracy over some networks and epochs of fine-tuning.

    Args:
        name: Of the source, for the progress bar.
        zoo: At most 16 of its networks are trained.
        epochs: Those that count.
        optimiser: As in `behaviour.training_stages`; so are the schedule, the momentum and the weight decay.
    """
    if len(rates) == 1:
        return rates[0]
    some = zoo.take(torch.linspace(0, len(zoo) - 1, min(len(zoo), TUNED_NETWORKS)).round().long())
    accuracy = {}
    for rate in rates:
        stages = behaviour.training_stages(
            some, data, epochs=max(epochs), learning_rate=rate, batch_size=batch_size, checkpoints=epochs,
            optimiser=optimiser, schedule=schedule, momentum=momentum, weight_decay=weight_decay, seed=seed,
            label=f"choosing the learning rate of {name}",
        )  # fmt: skip
        after = [
            behaviour.metrics(some.with_weights(rows), data.validation_images, data.validation_labels)[1]
            for _, rows in stages
        ]
        accuracy[rate] = float(torch.stack(after).double().mean())
    return max(accuracy, key=accuracy.__getitem__)
