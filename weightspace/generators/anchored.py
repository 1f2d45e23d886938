"""A denoiser that begins as a regression: it predicts how a network differs from the one that its condition stands for.

    prediction of the data = anchor + denoiser(noisy, time, condition)        condition = (anchor, the rest)

The denoiser begins at zero, so that an untrained one makes the anchors, as G.pt's (Peebles et al., 2022) begins by
copying its start. For processes whose target is the data.

Axes: b network, d value of a point, c condition.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import ConfigError
from weightspace.generators.denoisers import MLPDenoiser


@dataclass(frozen=True, kw_only=True)
class AnchoredDenoiser:
    """A perceptron around anchors, which are the first values of the condition.

    >>> module = AnchoredDenoiser(denoiser=MLPDenoiser(width=8)).build((5,), condition=7)
    >>> module.reset(torch.Generator())
    >>> module(torch.zeros(1, 5), torch.zeros(1), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0]]))
    tensor([[1., 2., 3., 4., 5.]], grad_fn=<AddBackward0>)
    """

    denoiser: MLPDenoiser = field(default_factory=MLPDenoiser)

    def build(self, shape: tuple[int, ...], condition: int | None = None) -> "AnchoredModule":
        """The module for points of a shape and conditions that begin with a point.

        Raises:
            ConfigError: Conditions are too short to begin with a point.
        """
        if condition is None or condition < prod(shape):
            raise ConfigError(f"conditions of {condition} values do not begin with an anchor of {prod(shape)}")
        return AnchoredModule(self, shape, condition)


class AnchoredModule(nn.Module):
    """The module of `AnchoredDenoiser`."""

    def __init__(self, config: AnchoredDenoiser, shape: tuple[int, ...], condition: int):
        super().__init__()
        self.inner = config.denoiser.build(shape, condition)

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights; the prediction starts as the anchor."""
        self.inner.reset(generator)

    def forward(
        self, noisy: Float[Tensor, "b *d"], time: Float[Tensor, " b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b *d"]:
        """The prediction; without a condition the anchor is zero, the mean of all networks."""
        correction = self.inner(noisy, time, condition)
        if condition is None:
            return correction
        return correction + condition[:, : noisy[0].numel()].nan_to_num().view_as(noisy)
