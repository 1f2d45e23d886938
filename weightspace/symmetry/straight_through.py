"""Alignment by a straight-through estimator (Git Re-Basin, Ainsworth et al., 2023, section 3.3).

Look for the permutation with the lowest loss halfway between two networks. The permutation of network B is always the
weight matching to trainable weights, which start at network A; the loss at the midpoint of A and the permuted B moves
these weights as if they stood in the place of B. So gradients choose what B is matched to.

Axes: m network, p parameter, b example.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup
from weightspace.symmetry.matching import permuted, weight_matching


def batch_losses(
    module: nn.Module,
    inputs: Shaped[Tensor, "b *shape"],
    labels: Int64[Tensor, " b"],
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Callable[[Float[Tensor, "m p"]], Float[Tensor, " m"]]:
    """A function of rows: the mean cross-entropy of each network on the next random batch. Differentiable.

    Args:
        module: The network, whose values do not count; in evaluation mode.
        inputs: Training examples.
        labels: Their classes.
        batch_size: Examples of a batch; all of them in order if it is their number.
        generator: Chooses the batches, without repetition until all were used.
    Raises:
        ConfigError: The batch is larger than the data.

    >>> losses = batch_losses(nn.Linear(2, 2), torch.ones(4, 2), torch.zeros(4).long(), batch_size=2,
    ...                       generator=torch.Generator())
    >>> losses(torch.zeros(3, 6))
    tensor([0.6931, 0.6931, 0.6931])
    """
    if not 1 <= batch_size <= len(inputs):
        raise ConfigError(f"batch_size must lie between 1 and the {len(inputs)} examples, got {batch_size}")
    module.eval()
    layout = Layout.of(module)

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(inputs), generator=generator, device=generator.device).to(inputs.device)
            yield from order.split(batch_size)[: len(inputs) // batch_size]

    endless = batches()

    def losses(rows: Tensor) -> Tensor:
        batch = next(endless)
        logits = vmap(lambda state: functional_call(module, state, (inputs[batch],)))(layout.unflatten(rows))
        chosen = labels[batch].expand(len(rows), -1)
        return F.cross_entropy(logits.movedim(2, 1), chosen, reduction="none").mean(1)

    return losses


def straight_through_matching(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    task_loss: Callable[[Float[Tensor, "m p"]], Float[Tensor, " m"]],
    *,
    generator: torch.Generator,
    steps: int = 100,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
) -> list[Int64[Tensor, "m _"]]:
    """Permutations with the lowest task loss halfway between each row and the reference; all rows at once.

    Args:
        rows: Networks to align.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        task_loss: Loss of each of `m` networks on the next batch, for example `batch_losses(...)`. The permutation that
            had the lowest loss is kept, so batches should be large.
        generator: Order of the groups, as in `weight_matching`.
        steps: Batches.
        learning_rate: Of SGD.
        momentum: Of SGD.
    Returns:
        For each group int64 `[m, n]`, for `permuted`.
    Raises:
        ConfigError: `steps` is below 1.
        LayoutError: As in `align`; the weights diverge.

    >>> from weightspace.symmetry import chain_groups
    >>> module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> groups = chain_groups(Layout.of(module))
    >>> row, reference = torch.tensor([[1.0, 2.0, 3, 4, 5, 6]]), torch.tensor([2.0, 1.0, 4, 3, 6, 5])
    >>> losses = batch_losses(module, torch.ones(4, 1), torch.tensor([0, 1, 0, 1]), batch_size=4,
    ...                       generator=torch.Generator())
    >>> layout, generator = Layout.of(module), torch.Generator()
    >>> straight_through_matching(row, reference, layout, groups, losses, generator=generator, steps=2)
    [tensor([[1, 0]])]
    """
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    rows = rows.detach()
    trained = reference.detach().expand_as(rows).clone().requires_grad_()
    optimiser = torch.optim.SGD([trained], lr=learning_rate, momentum=momentum)
    # The search goes on from the last permutation, which is nearly right for weights that moved a little.
    current, total = rows, [torch.arange(group.size, device=rows.device).repeat(len(rows), 1) for group in groups]
    best, lowest = [permutation.clone() for permutation in total], torch.full((len(rows),), torch.inf)
    lowest = lowest.to(rows)
    with torch.enable_grad():
        for _ in range(steps):
            moves = weight_matching(current, trained.detach(), layout, groups, generator=generator)
            current = permuted(current, layout, groups, moves)
            total = [permutation.gather(1, move) for permutation, move in zip(total, moves, strict=True)]
            projected = current + (trained - trained.detach())  # the value of B, the gradient of the trained weights
            loss = task_loss((reference + projected) / 2)
            better = loss.detach() < lowest
            lowest = torch.where(better, loss.detach(), lowest)
            best = [torch.where(better[:, None], new, old) for new, old in zip(total, best, strict=True)]
            optimiser.zero_grad()
            loss.sum().backward()  # networks share no weights, so each has the gradient of its own loss
            optimiser.step()
    return best
