"""Parts that several networks share: activations, dropout whose mask can be given from outside, and convolution and
pooling that are quick when many small networks train at once on a CPU.

Axes: m network, n image, c input channel, o output channel, h height, w width.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

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


class Conv2d(nn.Conv2d):
    """A convolution with zero padding that `torch.func.vmap` runs network by network where that is quicker.

    PyTorch turns the convolutions of many networks into one grouped convolution. On a CPU that is quick for tiny ones
    and slower than one call a network for larger ones, both forwards and backwards. A compiled program has PyTorch's
    own, since the compiler takes no function with a rule for batches of its own.

    >>> Conv2d(1, 2, 3)(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 2, 6, 6])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding)


_GROUPED_LIMIT = 2**21
"""Multiplications of one network above which a grouped convolution loses (`benchmarks/zoo_training.py`)."""


class _Convolution(torch.autograd.Function):
    """`conv2d` with its own rule for a batch of networks."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        size = {"stride": ctx.stride, "padding": ctx.padding}
        return (
            grad.conv2d_input(x.shape, weight, gradient, **size) if wanted[0] else None,
            grad.conv2d_weight(x, weight.shape, gradient, **size) if wanted[1] else None,
            gradient.sum((0, 2, 3)) if ctx.has_bias and wanted[2] else None,
            None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple
    ) -> tuple[Tensor, int]:
        count = info.batch_size
        weight = weight.movedim(in_dims[1], 0)
        bias = None if bias is None else bias.movedim(in_dims[2], 0)
        # the bias apart, as in PyTorch's own rule: its sums round in that order
        shift = torch.zeros(()) if bias is None else bias[:, :, None, None]
        if in_dims[0] is None:  # the same images for all networks: one convolution with all their channels
            y = F.conv2d(x, weight.flatten(0, 1), None, stride, padding)
            return y.unflatten(1, (count, -1)) + shift, 1
        x = x.movedim(in_dims[0], 0)
        height, width = ((x.shape[i] + 2 * padding[i - 3] - weight.shape[i]) // stride[i - 3] + 1 for i in (3, 4))
        if x.is_cuda or weight[0].numel() * x.shape[1] * height * width < _GROUPED_LIMIT:
            x = x.transpose(0, 1).flatten(1, 2)
            y = F.conv2d(x, weight.flatten(0, 1), None, stride, padding, groups=count)
            return y.unflatten(1, (count, -1)) + shift, 1
        biases = [None] * count if bias is None else bias.unbind()
        alone = zip(x.unbind(), weight.unbind(), biases, strict=True)
        return torch.stack([F.conv2d(*one, stride, padding) for one in alone]), 0


class MaxPool(nn.Module):
    """Max-pooling without overlap, as maxima of strided slices: several times faster on a CPU than PyTorch's.

    Among equal values the first one gets the gradient, as in PyTorch.

    >>> x = torch.randn(2, 3, 5, 5)
    >>> torch.equal(MaxPool(2)(x), nn.MaxPool2d(2)(x))
    True
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """The largest value of each square; a remainder at the right and lower edge is cut."""
        if x.is_cuda or torch.compiler.is_compiling():
            return F.max_pool2d(x, self.side)
        if torch.is_grad_enabled():
            return _MaxPool.apply(x, self.side)[0]
        rows, columns = (size // self.side * self.side for size in x.shape[-2:])
        x = reduce(torch.maximum, (x[..., i : rows : self.side, :columns] for i in range(self.side)))
        return reduce(torch.maximum, (x[..., i :: self.side] for i in range(self.side)))


class _MaxPool(torch.autograd.Function):
    """Pooling that remembers where each maximum was; PyTorch's own spends most of a small network's step here."""

    @staticmethod
    def forward(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
        height, width = (size // side * side for size in x.shape[-2:])
        largest, place = x[..., 0:height:side, 0:width:side], None
        for i in range(1, side * side):
            candidate = x[..., i // side : height : side, i % side : width : side]
            better = candidate > largest
            place = better.to(torch.uint8) * i if place is None else torch.where(better, i, place)
            largest = torch.maximum(largest, candidate)
        return largest, torch.zeros_like(largest, dtype=torch.uint8) if place is None else place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, ctx.side = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        side, width = ctx.side, ctx.shape[-1]
        corners = [torch.arange(size, device=gradient.device) * side for size in place.shape[-2:]]
        within = place.long()
        position = (within // side + corners[0][:, None]) * width + within % side + corners[1]
        spread = gradient.new_zeros(*ctx.shape[:-2], ctx.shape[-2] * width)
        return spread.scatter_(-1, position.flatten(-2), gradient.flatten(-2)).unflatten(-1, ctx.shape[-2:]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _MaxPool.apply(x.movedim(in_dims[0], 0), side), (0, 0)
