"""Weight statistics: seven numbers a tensor, the simple features that learned ones must beat.

Unterthiner et al., "Predicting neural network accuracy from weights" (2020): mean, standard deviation and the
percentiles 0, 25, 50, 75, 100 of every layer's kernel and of its bias.

Axes: m network, p parameter, f feature (7 a tensor), q percentile, v value of one tensor.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from weightspace.networks.layout import Layout

PERCENTILES = (0, 25, 50, 75, 100)


def statistics_names(layout: Layout) -> list[str]:
    """Names of the columns of `weight_statistics`, for example `0.weight.mean` and `0.bias.p75`.

    Args:
        layout: Layout of the networks.

    Returns:
        7 names a tensor, in the layout's order.

    >>> statistics_names(Layout.of(torch.nn.Linear(3, 2)))[:3]
    ['weight.mean', 'weight.std', 'weight.p0']
    """
    kinds = ["mean", "std", *(f"p{percentile}" for percentile in PERCENTILES)]
    return [f"{spec.name}.{kind}" for spec in layout.tensors for kind in kinds]


def weight_statistics(rows: Float[Tensor, "m p"], layout: Layout) -> Float[Tensor, "m f"]:
    """Mean, standard deviation (over n, not n - 1) and five percentiles of every tensor of every network.

    Bit-identical for networks whose units are permuted, because each tensor is sorted before anything is summed.

    Args:
        rows: Weights `[m, p]` without NaN, any floating dtype.
        layout: Layout of the rows; running statistics of norms count as tensors too.

    Returns:
        Features `[m, f]`, float32 on the device of the rows; computed in float64, percentiles interpolated linearly
        as `numpy.percentile` does.

    Raises:
        LayoutError: The rows have another length than the layout.

    Source: Unterthiner et al. (2020).

    >>> weight_statistics(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), Layout.of(torch.nn.Linear(4, 1, bias=False)))[0, 2:]
    tensor([0.0000, 0.7500, 1.5000, 2.2500, 3.0000])
    """
    features = []
    for values in layout.unflatten(rows).values():
        # NumPy's sort is vectorised for float32 and about 20 times faster on a CPU than torch.sort
        ordered = torch.from_numpy(np.sort(values.reshape(len(rows), -1).float().cpu().numpy(), axis=1)).double()
        std, mean = torch.std_mean(ordered, dim=1, correction=0)
        features.append(torch.cat([mean[:, None], std[:, None], _percentiles(ordered)], dim=1))
    return torch.cat(features, dim=1).float().to(rows.device)


def _percentiles(ordered: Float64[Tensor, "m v"]) -> Float64[Tensor, "m q"]:
    """Percentiles of sorted values, interpolated between the two nearest."""
    last = ordered.shape[1] - 1
    position = torch.tensor(PERCENTILES, dtype=torch.float64) / 100 * last
    low = position.long()
    below, above = ordered[:, low], ordered[:, (low + 1).clamp(max=last)]
    return below + (above - below) * (position - low)
