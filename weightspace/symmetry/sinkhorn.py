"""Sinkhorn re-basin (Peña et al., CVPR 2023): permutations by gradient descent on doubly stochastic matrices.

A permutation matrix is replaced by P = Sinkhorn(l / temperature) of free logits l: rows and columns of exp(l) are
normalised in turns. P is differentiable, so permutations may be learned for any loss: the distance to the reference,
or the task's loss between the two networks. At the end a linear assignment makes P hard.

Axes: m network, p parameter, n unit of a group, o, r and i values of a unit as in `unit_view`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup, Place
from weightspace.symmetry.matching import best_assignments


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig:
    """How long and for what the permutations are learned.

    >>> SinkhornConfig().steps
    100
    """

    loss: Literal["distance", "midpoint", "random"] = "distance"
    """Squared distance to the reference, or the task's loss halfway to it, or at a random point between (L2, Mid and
    Rnd in the paper)."""
    steps: int = 100
    """Steps of AdamW."""
    learning_rate: float = 0.1
    iterations: int = 20
    """Normalisations of rows and columns."""
    temperature: float = 1.0

    def __post_init__(self):
        if self.loss not in ("distance", "midpoint", "random"):
            raise ConfigError(f"loss must be distance, midpoint or random, got {self.loss!r}")
        if min(self.steps, self.iterations) < 1 or min(self.learning_rate, self.temperature) <= 0:
            raise ConfigError(f"steps, iterations, learning_rate and temperature must be positive, got {self}")


def sinkhorn(logits: Float[Tensor, "*m n n"], iterations: int = 20) -> Float[Tensor, "*m n n"]:
    """The matrix exp(logits) with rows and columns scaled in turns until both sum to one, nearly.

    >>> sinkhorn(torch.zeros(2, 2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def softly_permuted(
    rows: Float[Tensor, "#m p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    matrices: Sequence[Float[Tensor, "m _ _"]],
) -> Float[Tensor, "m p"]:
    """Rows whose units are mixed by matrices; with permutation matrices, `permuted`. Differentiable.

    Args:
        matrices: For each group `[m, n, n]`: new unit a is Σ_b matrix[a, b] old unit b.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)))
    >>> swap = torch.eye(2).flip(0)[None]
    >>> softly_permuted(torch.arange(7.0)[None], layout, chain_groups(layout), [swap])
    tensor([[1., 0., 3., 2., 5., 4., 6.]])
    """
    count = max(len(rows), *(len(matrix) for matrix in matrices))
    tensors = {name: rows[:, place].expand(count, -1) for name, place in layout.slices.items()}
    for group, matrix in zip(groups, matrices, strict=True):
        for place in group.places:
            tensors[place.tensor] = _mixed(tensors[place.tensor], layout, group, place, matrix)
    return torch.cat(list(tensors.values()), dim=1)


def _mixed(tensor: Tensor, layout: Layout, group: PermutationGroup, place: Place, matrix: Tensor) -> Tensor:
    shape = layout.by_name[place.tensor].shape
    axis = tensor.unflatten(1, (-1, shape[place.axis], prod(shape[place.axis + 1 :])))
    length = place.repeats * group.size * place.block
    before, units, behind = axis.split([place.start, length, shape[place.axis] - place.start - length], dim=2)
    units = units.unflatten(2, (place.repeats, group.size, place.block)).flatten(4)
    mixed = torch.einsum("mab,morbi->morai", matrix, units)
    return torch.cat([before, mixed.flatten(2).unflatten(2, (length, -1)), behind], dim=2).flatten(1)


def sinkhorn_matching(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    *,
    config: SinkhornConfig = SinkhornConfig(),
    generator: torch.Generator,
    task_loss: Callable[[Float[Tensor, "m p"]], Float[Tensor, " m"]] | None = None,
) -> list[Int64[Tensor, "m _"]]:
    """Permutations that bring each row to the reference, learned by gradient descent; all rows at once.

    Args:
        rows: Networks to align.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        config: Loss and optimisation.
        generator: Of the initial logits and, on the CPU, of random points between the networks.
        task_loss: Loss of each of `m` networks on the next batch, for example `batch_losses(...)`; for the losses
            `midpoint` and `random`.
    Returns:
        For each group int64 `[m, n]`, for `permuted`.
    Raises:
        ConfigError: The loss needs a task and there is none.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> row, reference = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([2.0, 1.0, 4.0, 3.0])
    >>> sinkhorn_matching(row, reference, layout, chain_groups(layout), generator=torch.Generator().manual_seed(0))
    [tensor([[1, 0]])]
    """
    if config.loss != "distance" and task_loss is None:
        raise ConfigError(f"the loss {config.loss!r} of Sinkhorn re-basin is the task's: give task_loss")
    rows, reference = rows.detach(), reference.detach()
    logits = []
    for group in groups:
        noise = torch.randn(len(rows), group.size, group.size, generator=generator, device=generator.device)
        start = torch.eye(group.size) + 0.1 * noise.to(rows.device)
        logits.append(start.to(rows.dtype).requires_grad_())
    if not logits:
        return []
    optimiser = torch.optim.AdamW(logits, lr=config.learning_rate)
    with torch.enable_grad():
        for _ in range(config.steps):
            matrices = [sinkhorn(one / config.temperature, config.iterations) for one in logits]
            mixed = softly_permuted(rows, layout, groups, matrices)
            if task_loss is None or config.loss == "distance":
                loss = (mixed - reference).square().sum(1)
            else:
                share = torch.full((len(rows), 1), 0.5)
                if config.loss == "random":
                    share = torch.rand(len(rows), 1, generator=generator, device=generator.device)
                loss = task_loss(torch.lerp(reference.expand_as(mixed), mixed, share.to(rows)))
            optimiser.zero_grad()
            loss.sum().backward()  # networks share no logits, so each has the gradient of its own loss
            optimiser.step()
    hard = [sinkhorn(one.detach() / config.temperature, config.iterations).double() for one in logits]
    return [best_assignments(-matrix)[0] for matrix in hard]
