"""How wide the kernels of a density over latents should be: by likelihood, or by the networks that come out.

Axes: m prompt, t token, z latent, h bandwidth, g group of latents drawn together, d latent of a group.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError
from weightspace.generators.batch_norm import conditioned
from weightspace.generators.kde import KDE, Mode
from weightspace.zoo import Zoo, behaviour

BANDWIDTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_PAIRS = 2**24  # distances at a time: 64 MB


def leave_one_out(
    latents: Float[Tensor, "m t z"],
    mode: Mode,
    bandwidths: Sequence[float] = BANDWIDTHS,
    models: Int64[Tensor, " m"] | None = None,
) -> Float[Tensor, " h"]:
    """Mean log-density of each prompt under the kernels of all others, in nats a network.

    Args:
        latents: Of the prompts.
        mode: `joint`, `token` or `independent`. The covariance of `smooth` has no density outside the prompts' span,
            and `reference` none at all.
        bandwidths: In standard deviations over the prompts.
        models: Numbers of the runs that prompts belong to: prompts of one run are left out together.

    Raises:
        ConfigError: The mode has no density, a bandwidth is not positive, or there is a single run.

    >>> normal = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(0))
    >>> narrow, good, wide = leave_one_out(normal, "joint", [0.02, 0.37, 3.0])  # 1.06 m^(-1/5) is 0.37
    >>> bool(good > narrow), bool(good > wide)
    (True, True)
    """
    if mode not in ("joint", "token", "independent"):
        raise ConfigError(
            f"draws of mode {mode!r} have no density in latent space, so no likelihood: choose their bandwidth on "
            "validation images, or take joint, token or independent"
        )
    if any(not 0 < h < math.inf for h in bandwidths):
        raise ConfigError(f"bandwidths must be positive and finite, got {list(bandwidths)}")
    m, t, z = latents.shape
    models = torch.arange(m) if models is None else models
    own = models[:, None] == models
    others = (~own).sum(1)
    if not bool(others.all()):
        raise ConfigError("the likelihood of left-out prompts needs prompts of at least 2 runs")
    points = {"joint": latents.reshape(m, 1, t * z), "token": latents}.get(mode, latents.reshape(m, t * z, 1))
    points = points.transpose(0, 1).double()  # g m d
    std = points.std(1, correction=0)
    varies = std > 0
    points = torch.where(varies[:, None], points / torch.where(varies, std, 1.0)[:, None], 0.0)
    size = varies.sum(1).double()  # latents that are the same in all prompts have no density and count for nothing
    volume = torch.where(varies, std, 1.0).log().sum(1) + size / 2 * math.log(2 * math.pi)
    total = torch.zeros(len(bandwidths), dtype=torch.float64)
    for block in torch.arange(len(points)).split(max(1, _PAIRS // m**2)):
        squares = torch.cdist(points[block], points[block]).square()
        squares[:, own] = math.inf
        for number, h in enumerate(bandwidths):
            density = torch.logsumexp(-squares / (2 * h**2), dim=2) - others.double().log()
            total[number] += (density.mean(1) - size[block] * math.log(h) - volume[block]).sum()
    return total.float()


def likeliest(latents: Float[Tensor, "m t z"], mode: Mode, prompts: Zoo) -> float:
    """The bandwidth of the grid under which left-out runs are likeliest, see `leave_one_out`.

    Args:
        prompts: What the latents belong to.
    """
    models = torch.tensor(prompts.table["model"].rank("dense").to_list())
    return BANDWIDTHS[int(leave_one_out(latents, mode, BANDWIDTHS, models).argmax())]


def on_validation(
    kde: KDE, data: Dataset, *, n: int = 32, bandwidths: Sequence[float] = BANDWIDTHS, seed: int = 0
) -> pl.DataFrame:
    """Accuracy on validation images of networks drawn at each bandwidth.

    It falls with the bandwidth in most latent spaces, as copies are best: choose the widest kernel that the accuracy
    allows, and look at the novelty beside it.

    Args:
        kde: Fitted; its own bandwidth does not count.
        data: Validation images judge; training images set running statistics of networks that have them.
        n: Networks a bandwidth, from the same random numbers each.

    Returns:
        bandwidth, accuracy and std (over networks).
    """
    rows = []
    for h in bandwidths:
        sampler = KDE(kde.encoder, replace(kde.config, bandwidth=h)).condition(kde.latents, kde.prompts)
        made = conditioned(sampler.sample(n, seed), data, seed)
        accuracy = behaviour.metrics(made, data.validation_images, data.validation_labels)[1].double()
        rows.append({"bandwidth": h, "accuracy": float(accuracy.mean()), "std": float(accuracy.std(correction=0))})
    return pl.DataFrame(rows)
