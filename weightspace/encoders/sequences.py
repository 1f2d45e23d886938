"""Networks of one layout as sequences of tokens, and maps of windows applied to whole sequences (haloing).

Axes: m network, b window, t and s token, n token of a whole network, x value of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.encoders.preparation import Preparation
from weightspace.encoders.sane_config import SANEConfig
from weightspace.errors import ConfigError
from weightspace.views.tokens import TokenView

_TOKENS_AT_ONCE = 2**15  # tokens of a forward pass without gradients: bounds the memory of encoding a zoo


def halo_windows(count: int, window: int, halo: int) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, " n"]]:
    """Overlapping windows that cover a sequence, and where to read each token's result.

    Every window has the same length; of each, the middle is kept (SANE, appendix on haloing; made to work at all
    lengths).

    Returns:
        Token numbers of each window; for each of the `count` tokens its place in the flattened windows.

    >>> windows, kept = halo_windows(5, window=3, halo=1)
    >>> windows.flatten()[kept]
    tensor([0, 1, 2, 3, 4])
    """
    length = min(window, count)
    step = max(1, window - 2 * halo)
    tokens = torch.arange(count)
    owner = tokens // step if count > window else torch.zeros_like(tokens)
    starts = (torch.arange(int(owner[-1]) + 1) * step - halo).clamp(0, count - length)
    windows = starts[:, None] + torch.arange(length)
    return windows, owner * length + tokens - starts[owner]


@dataclass(frozen=True, eq=False)
class Sequences:
    """How networks of one layout become sequences, and back."""

    preparation: Preparation
    view: TokenView
    positions: Int64[Tensor, "t c"]
    """As the module reads them."""
    windows: Int64[Tensor, "b s"]
    kept: Int64[Tensor, " n"]
    """Of haloing, see `halo_windows`."""

    @classmethod
    def of(cls, preparation: Preparation, config: SANEConfig) -> "Sequences":
        """Index maps and windows of the layout of a preparation.

        Raises:
            ConfigError: The layout needs more positions than the model has.
        """
        view = TokenView(preparation.layout, config.token_width, dense=config.dense)
        needed = view.positions.amax(0) + 1
        if config.max_positions is not None and bool((needed > torch.tensor(config.max_positions)).any()):
            raise ConfigError(
                f"the layout needs positions up to {tuple(needed.tolist())} (tokens, layers, channels), the model has "
                f"tables for {config.max_positions}; enlarge max_positions"
            )
        positions = torch.cat([view.positions, view.codes[:, None]], 1) if config.layer_types else view.positions
        return cls(preparation, view, positions, *halo_windows(view.count, config.window, config.halo))

    def haloed(
        self, sequence: Float[Tensor, "m n _"], apply: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "m n _"]:
        """Apply a map of windows and their positions to whole sequences."""
        positions = self.positions[self.windows]
        networks = max(1, _TOKENS_AT_ONCE // self.windows.numel())
        parts = []
        for some in sequence.split(networks):
            result = apply(some[:, self.windows].flatten(0, 1), positions.repeat(len(some), 1, 1))  # m·b t x
            result = result.unflatten(0, (len(some), len(self.windows)))
            parts.append(result.flatten(1, 2)[:, self.kept])
        return torch.cat(parts)
