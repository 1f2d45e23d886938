"""Entropy of a sample by its nearest neighbours (Kozachenko and Leonenko, 1987).

    H = d · mean log ε_i + log V_d + ψ(m) - ψ(k)

with ε_i the distance of sample i to its k-th neighbour, V_d the volume of the unit ball of the norm, and d the
dimension of what the sample lies on: samples on a d-dimensional sheet in a larger space have the entropy of the sheet.

Axes: m sample, p coordinate.
"""

from math import inf, lgamma, log, pi
from typing import Literal

import torch
from jaxtyping import Float
from scipy.special import digamma
from torch import Tensor

from weightspace.errors import ConfigError

Norm = Literal["L1", "L2", "Linf"]
ORDERS: dict[Norm, float] = {"L1": 1.0, "L2": 2.0, "Linf": inf}
LEAST_SEPARATION = 1e-3
"""Distance to a neighbour, in norms of the samples, below which it is pushed away no harder."""
_OFFSET = 1e-8  # inside the logarithm, for samples that coincide


def neighbour_distances(samples: Float[Tensor, "m p"], *, k: int = 1, norm: Norm = "L2") -> Float[Tensor, " m"]:
    """Distance of every sample to its k-th nearest other one.

    Distances are exact, and gradients reach both ends of each.

    Raises:
        ConfigError: There are not more than k samples.

    >>> neighbour_distances(torch.tensor([[0.0], [1.0], [3.0]]))
    tensor([1., 1., 2.])
    """
    if not 1 <= k < len(samples):
        raise ConfigError(f"the {k}-th neighbour needs more than {k} samples and k of at least 1, got {len(samples)}")
    exact = "donot_use_mm_for_euclid_dist"  # |a|² + |b|² - 2ab loses distances below 1e-3 of the norms
    distances = torch.cdist(samples, samples, ORDERS[norm], compute_mode=exact)
    itself = torch.eye(len(samples), dtype=torch.bool, device=samples.device)
    return distances.masked_fill(itself, inf).kthvalue(k, dim=1).values


def entropy(
    samples: Float[Tensor, "m p"], *, dimension: int | None = None, k: int = 1, norm: Norm = "L2"
) -> Float[Tensor, ""]:
    """Entropy (nats) of the density that samples were drawn from.

    Where neighbours come nearer than a thousandth of the samples' mean norm the value is exact, but the gradient no
    longer grows as 1 / ε: samples that collapsed onto each other would otherwise throw training off.

    Args:
        samples: Independent draws.
        dimension: Of what they lie on, d; the number of coordinates when missing.
        k: Neighbour that counts: more is smoother and more biased.
        norm: Norm of distances and of the ball.

    Raises:
        ConfigError: There are not more than k samples, or the dimension is below 1.

    >>> normal = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    >>> abs(float(entropy(normal)) - (1 + log(2 * pi))) < 0.05
    True
    """
    d = samples.shape[1] if dimension is None else dimension
    if d < 1:
        raise ConfigError(f"the dimension of an entropy must be at least 1, got {d}")
    distances = neighbour_distances(samples, k=k, norm=norm)
    least = LEAST_SEPARATION * samples.detach().norm(ORDERS[norm], dim=1).mean()
    pushed = (distances - distances.detach()) / distances.detach().clamp(min=least + _OFFSET)
    logarithms = (distances.detach() + _OFFSET).log() + pushed  # values of the left term, gradients of the right one
    return d * logarithms.mean() + log_unit_ball(d, norm) + float(digamma(len(samples)) - digamma(k))


def log_unit_ball(dimension: int, norm: Norm = "L2") -> float:
    """Logarithm of the volume of the unit ball.

    >>> abs(log_unit_ball(3) - log(4 / 3 * pi)) < 1e-12
    True
    """
    if norm == "L1":
        return dimension * log(2) - lgamma(dimension + 1)
    if norm == "L2":
        return dimension / 2 * log(pi) - lgamma(dimension / 2 + 1)
    return dimension * log(2)
