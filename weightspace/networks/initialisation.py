"""Initial weights of populations: every network's from its own seed, all of them in one call.

    kaiming_*, xavier_*   He et al. (2015, gain √2), Glorot and Bengio (2010)
    uniform, normal       U(0, 1) and N(0, 1), as in the Model Zoos (Schürholt et al., 2022)
    truncated_normal      N(0, 1) between -2 and 2
    orthogonal            Saxe et al. (2014): the rows, or the columns if those are fewer, are orthonormal
    torch                 PyTorch's: weights and biases U(-1, 1) / √inputs
    siren                 what the convention of a SIREN asks for

Norms begin as the identity; embeddings of positions and classes N(0, 0.02²).

Axes: m network, p parameter, i value of one tensor.
"""

from math import prod, sqrt

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name
from weightspace.networks import SIREN, Network, streams
from weightspace.networks.layout import Layout, TensorSpec

INITIALISATIONS = (
    *("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "uniform", "normal"),
    *("truncated_normal", "orthogonal", "torch", "siren"),
)
_INIT = 1_000  # first stream number


def initial_rows(
    network: Network,
    seeds: Int64[Tensor, " m"],
    init: str,
    scale: Float[Tensor, " m"],
    *,
    bias: float = 0.0,
) -> Float[Tensor, "m p"]:
    """Initial weights of networks.

    Args:
        init: One of `INITIALISATIONS`; the head of this file says which is what.
        scale: Factor on all weights, per network.
        bias: Value of all biases; `torch` and `siren` draw them instead.

    Raises:
        UnknownName: There is no such initialisation.
        ConfigError: `siren` is for SIRENs only.

    >>> from weightspace.networks import MLP
    >>> initial_rows(MLP(), torch.tensor([1, 2]), "kaiming_uniform", torch.ones(2)).shape
    torch.Size([2, 1060])
    """
    if init not in INITIALISATIONS:
        raise unknown_name("initialisation", init, INITIALISATIONS)
    layout = Layout.of(network.build())
    bounds = _uniform_bounds(network, layout, init)
    rows = torch.zeros(len(seeds), layout.parameters, device=seeds.device)
    for number, (spec, place) in enumerate(zip(layout.tensors, layout.slices.values(), strict=True)):
        if spec.layer == "norm":
            rows[:, place] = float(spec.role in ("weight", "running_var"))
        elif spec.layer == "other":
            rows[:, place] = 0.02 * streams.normal(seeds, _INIT + number, spec.size)
        elif spec.name in bounds:
            values = bounds[spec.name] * (2 * streams.uniform(seeds, _INIT + number, spec.size) - 1)
            rows[:, place] = values * scale[:, None] if spec.role == "weight" else values
        elif spec.role == "weight":
            rows[:, place] = _values(spec, seeds, init, _INIT + number) * scale[:, None]
        else:
            rows[:, place] = bias
    return rows


def _uniform_bounds(network: Network, layout: Layout, init: str) -> dict[str, float]:
    """Half-widths of the tensors, biases too, whose law the network or PyTorch fixes."""
    if init == "siren":
        if not isinstance(network, SIREN):
            raise ConfigError("the initialisation siren is for SIRENs only; choose another one")
        return network.init_bounds()
    if init != "torch":
        return {}
    fans = {spec.layer_name: prod(spec.shape[1:]) for spec in layout.tensors if spec.role == "weight"}
    return {spec.name: 1 / sqrt(max(1, fans[spec.layer_name])) for spec in layout.tensors}


def _values(spec: TensorSpec, seeds: Int64[Tensor, " m"], init: str, stream: int) -> Float[Tensor, "m i"]:
    """One weight tensor of every network, flattened."""
    fan_out, fan_in = spec.shape[0] * prod(spec.shape[2:]), prod(spec.shape[1:])
    std = {"kaiming": sqrt(2 / fan_in), "xavier": sqrt(2 / (fan_in + fan_out))}.get(init.split("_")[0], 1.0)
    if init == "truncated_normal":
        edge = torch.special.ndtr(torch.tensor(2.0, dtype=torch.float64))
        share = (1 - edge) + (2 * edge - 1) * (streams.uniform(seeds, stream, spec.size).double() + 2.0**-25)
        return torch.special.ndtri(share).float()
    if init == "orthogonal":
        return _orthogonal(streams.normal(seeds, stream, spec.size).unflatten(1, (spec.shape[0], fan_in))).flatten(1)
    if init.endswith("normal"):
        return std * streams.normal(seeds, stream, spec.size)
    if init == "uniform":
        return streams.uniform(seeds, stream, spec.size)
    return sqrt(3) * std * (2 * streams.uniform(seeds, stream, spec.size) - 1)


def _orthogonal(gaussian: Float[Tensor, "m r c"]) -> Float[Tensor, "m r c"]:
    """The orthogonal factor; signs by the diagonal make its law the uniform one (Mezzadri, 2007)."""
    wide = gaussian.shape[1] < gaussian.shape[2]
    q, r = torch.linalg.qr(gaussian.mT if wide else gaussian)
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]
    return q.mT if wide else q
