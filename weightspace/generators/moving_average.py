"""The exponential moving average of a module's weights, which is what a diffusion model samples with."""

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Averaged(nn.Module):
    """A module in training, and the moving average of its weights, which answers in evaluation.

    >>> both = Averaged(nn.Linear(1, 1, bias=False), 0.9)
    >>> sum(weight.requires_grad for weight in both.parameters())
    1
    """

    def __init__(self, live: nn.Module, decay: float):
        super().__init__()
        self.live = live
        self._mean = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._mean.requires_grad_(False)

    @property
    def average(self) -> nn.Module:
        """The module with averaged weights."""
        return self._mean.module

    def forward(self, *inputs: Any) -> Tensor:
        """In training the answer of the module, whose weights are averaged first."""
        if not self.training:
            return self._mean(*inputs)
        self._mean.update_parameters(self.live)
        return self.live(*inputs)
