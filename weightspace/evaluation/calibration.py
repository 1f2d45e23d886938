"""Probabilities made honest: one temperature, fitted on validation images (Guo et al., 2017), and their entropy.

Axes: n image, k class.
"""

from math import exp, log

import torch
from jaxtyping import Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ConfigError

LIMITS = (0.05, 20.0)
"""Temperatures that are searched."""


def tempered(probabilities: Float[Tensor, "*r n k"], temperature: float) -> Float[Tensor, "*r n k"]:
    """Probabilities proportional to p^(1/T): a temperature above 1 makes them less sure.

    >>> tempered(torch.tensor([[0.8, 0.2]]), 2.0)
    tensor([[0.6667, 0.3333]])
    """
    if temperature == 1:
        return probabilities
    return (probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log() / temperature).softmax(-1)


def best_temperature(probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    """The temperature between 0.05 and 20 with the highest likelihood of the labels.

    Raises:
        ConfigError: There are no labels.

    >>> sure = torch.tensor([[0.99, 0.01]] * 4)
    >>> round(best_temperature(sure, torch.tensor([0, 0, 0, 1])), 2)  # log(.99 / .01) / log(3 / 1)
    4.18
    """
    if not len(labels):
        raise ConfigError("a temperature is fitted on labelled images, and there are none")
    logarithms = probabilities.double().clamp(min=torch.finfo(probabilities.dtype).tiny).log()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logarithms / exp(log_temperature), labels))

    return exp(minimize_scalar(nll, bounds=[log(limit) for limit in LIMITS], method="bounded").x)


def predictive_entropy(probabilities: Float[Tensor, "*r n k"]) -> Float[Tensor, "*r n"]:
    """Entropy (nats) of the classes, a measure of uncertainty.

    >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.6931, 0.0000])
    """
    return torch.special.entr(probabilities).sum(-1)
