"""Random numbers as a function of (seed, stream, position): the same for a network whoever trains beside it.

Populations are trained in chunks, in process pools and on clusters. A shared generator would make a network depend on
its chunk mates; here every network draws from its own seed alone, all networks in one vectorised call. The mixing
function is SplitMix64's finaliser (Steele, Lea and Flood, 2014).

Axes: m network (one seed each), n position in the stream.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit integers: torch wraps on overflow as C does
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1  # the mask turns the arithmetic shift into a logical one
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def bits(seeds: Int64[Tensor, " m"], stream: int, n: int) -> Int64[Tensor, "m n"]:
    """Pseudo-random 64-bit integers.

    >>> bits(torch.tensor([1, 1]), 0, 2).unique(dim=0).shape
    torch.Size([1, 2])
    """
    key = _mix(seeds * _GOLDEN + _mix(torch.tensor(stream, device=seeds.device) * _GOLDEN + 1))
    position = torch.arange(1, n + 1, device=seeds.device) * _GOLDEN
    return _mix(key[:, None] + position)


def uniform(seeds: Int64[Tensor, " m"], stream: int, n: int) -> Float[Tensor, "m n"]:
    """Uniform numbers in [0, 1), float32, multiples of 2^-24.

    >>> bool(uniform(torch.tensor([1]), 0, 1000).mean().sub(0.5).abs() < 0.05)
    True
    """
    return ((bits(seeds, stream, n) >> 40) & 0xFFFFFF).float() * 2.0**-24


def normal(seeds: Int64[Tensor, " m"], stream: int, n: int) -> Float[Tensor, "m n"]:
    """Standard normal numbers, float32, by the inverse of the distribution function.

    >>> bool(normal(torch.tensor([1]), 0, 1000).std().sub(1).abs() < 0.1)
    True
    """
    # the middles of the intervals, in float64: in float32 the last one rounds to 1, which is infinity
    return torch.special.ndtri(uniform(seeds, stream, n).double() + 2.0**-25).float()


def permutation(seeds: Int64[Tensor, " m"], stream: int, n: int) -> Int64[Tensor, "m n"]:
    """A random order of 0 … n-1 for every network.

    >>> permutation(torch.tensor([1]), 0, 5).sort().values
    tensor([[0, 1, 2, 3, 4]])
    """
    return bits(seeds, stream, n).argsort(dim=1)
