"""Means of aligned networks: MergeMany (Git Re-Basin, Ainsworth et al., 2023, section 3.3 and algorithm 3).

Networks of different runs cannot be averaged as they are; aligned to each other they can. There is no reference to
align them to, so mean and permutations are found in turns.

Axes: m network, p parameter.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup
from weightspace.symmetry.matching import permuted, weight_matching


def merge_many(
    rows: Float[Tensor, "m p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    generator: torch.Generator,
    *,
    rounds: int = 100,
) -> tuple[Float[Tensor, "m p"], Float[Tensor, " p"]]:
    """Align networks to each other, one at a time in random order to the mean of the others, until none moves.

    As published. Each step brings the networks nearer to their mean. `mean_reference` aligns all networks at once,
    which is much faster with hundreds of them, but its mean is the poorer soup.

    Args:
        rows: At least two networks.
        layout: Layout of the rows.
        groups: Groups of the layout.
        generator: Order of the networks in each round, and of the groups as in `weight_matching`.
        rounds: Most rounds over all networks.
    Returns:
        The aligned rows in the order of `rows`, and their mean: the soup.
    Raises:
        ConfigError: `rounds` is below 1, or there is only one network.
        LayoutError: As in `align`.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 6.0, 3.0]])
    >>> aligned, soup = merge_many(rows, layout, chain_groups(layout), torch.Generator())
    >>> sorted(soup.tolist())
    [1.0, 3.0, 3.0, 5.0]
    """
    _check_rounds(rounds)
    if len(rows) < 2:
        raise ConfigError(f"merging needs at least 2 networks, got {len(rows)}")
    rows = rows.clone()
    for _ in range(rounds):
        moved = False
        for i in torch.randperm(len(rows), generator=generator, device=generator.device).tolist():
            # From the rows themselves: a running sum would gather rounding over the steps.
            others = (rows.sum(0, dtype=torch.float64) - rows[i]) / (len(rows) - 1)
            moves = weight_matching(rows[i : i + 1], others, layout, groups, generator=generator)
            if _moves(moves):
                rows[i : i + 1] = permuted(rows[i : i + 1], layout, groups, moves)
                moved = True
        if not moved:
            break
    return rows, rows.mean(0)


def mean_reference(
    rows: Float[Tensor, "m p"],
    start: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    generator: torch.Generator,
    *,
    rounds: int = 10,
) -> Float[Tensor, " p"]:
    """The mean of aligned networks, as a reference that no single network sets (after MergeMany of Git Re-Basin).

    Align all rows to the reference and take their mean as the next reference, until no row moves.

    Args:
        rows: Networks to average, from training runs only.
        start: First reference, for example the best network.
        groups: Groups of the layout.
        generator: Order of the groups, as in `weight_matching`.
        rounds: Most rounds of aligning and averaging.
    Returns:
        Mean of the aligned rows.
    Raises:
        ConfigError: `rounds` is below 1.
        LayoutError: As in `align`.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> groups = chain_groups(layout)
    >>> rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 6.0, 3.0]])
    >>> mean_reference(rows, rows[0], layout, groups, torch.Generator())
    tensor([1., 3., 3., 5.])
    """
    _check_rounds(rounds)
    reference = start
    for _ in range(rounds):
        permutations = weight_matching(rows, reference, layout, groups, generator=generator)
        rows = permuted(rows, layout, groups, permutations)
        reference = rows.mean(0)
        if not _moves(permutations):
            break
    return reference


def _moves(permutations: Sequence[Tensor]) -> bool:
    return any(bool((permutation.diff(dim=1) != 1).any()) for permutation in permutations)


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
