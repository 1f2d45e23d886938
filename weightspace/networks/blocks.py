"""Parts that several networks share: activations, and dropout whose mask can be given from outside."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import unknown_name

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def activation(name: str) -> nn.Module:
    """The activation of that name.

    Raises:
        UnknownName: There is none.

    >>> activation("tanh")
    Tanh()
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class Dropout(nn.Module):
    """Dropout that a population can steer: the buffer `keep` is a mask, already divided by the share kept.

    One network trains with ordinary dropout. A population replaces `keep` by a mask of each network's own rate and
    own random stream (`torch.func.functional_call`), with the module in evaluation mode.

    >>> Dropout(0.5).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    keep: Tensor

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.register_buffer("keep", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Ordinary dropout in training mode, the mask given from outside in evaluation mode."""
        return F.dropout(x, self.rate) if self.training else x * self.keep


class MaxPool(nn.Module):
    """Max-pooling without overlap; without gradients as maxima of strided slices, several times faster on a CPU.

    >>> x = torch.randn(2, 3, 5, 5)
    >>> with torch.no_grad():
    ...     torch.equal(MaxPool(2)(x), nn.MaxPool2d(2)(x))
    True
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """The largest value of each square; a remainder at the right and lower edge is cut."""
        if torch.is_grad_enabled():
            return F.max_pool2d(x, self.side)
        rows, columns = (size // self.side * self.side for size in x.shape[-2:])
        x = reduce(torch.maximum, (x[..., i : rows : self.side, :columns] for i in range(self.side)))
        return reduce(torch.maximum, (x[..., i :: self.side] for i in range(self.side)))
