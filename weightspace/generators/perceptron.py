"""The multi-layer perceptron that all parts of hypernetworks are made of ("Manifold hypernetwork", section 3)."""

from collections.abc import Sequence

from torch import nn

SLOPE = 0.05
"""Of the leaky ReLU below zero."""
MOMENTUM, EPSILON = 0.02, 1e-7
"""Of batch normalisation: running statistics forget 2 % a step."""


def perceptron(size: int, hidden: Sequence[int], output: int) -> nn.Sequential:
    """Linear layers without bias; leaky ReLU and then batch normalisation behind the hidden ones.

    >>> len(perceptron(32, (64, 64), 10))
    7
    """
    parts: list[nn.Module] = []
    for width in hidden:
        norm = nn.BatchNorm1d(width, eps=EPSILON, momentum=MOMENTUM)
        parts += [nn.Linear(size, width, bias=False), nn.LeakyReLU(SLOPE), norm]
        size = width
    return nn.Sequential(*parts, nn.Linear(size, output, bias=False))
