"""Alignment by weight matching (Git Re-Basin, Ainsworth et al., 2023, section 3.2), for all networks at once.

Renumber the hidden units of each network so that it lies as near as possible to a reference: maximise the sum of
products <reference, permuted row>, which is to minimise their distance. Coordinate ascent: for one group at a time, all
others held fixed, a linear assignment is the exact optimum.

Axes: m network, p parameter, n unit of a group, o, r and i values of a unit as in `unit_view`, k group.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.symmetry.groups import PermutationGroup, unit_view

MAX_SWEEPS = 100
LEAST_GAIN = 1e-12
CHUNK_VALUES = 2**20  # weights of the networks handled at once: 8 MB in float64, whatever the size of the zoo


def weight_matching(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    *,
    generator: torch.Generator,
) -> list[Int64[Tensor, "m _"]]:
    """Permutations that bring each row nearest to the reference, to a local optimum.

    A network is finished when no group can gain more than 1e-12 of |reference| |row|, or after 100 sweeps. With one
    group the result is the exact optimum. All networks visit the groups in the same random orders, so a network's
    result does not depend on the others in the batch.

    Args:
        rows: Networks to align.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        generator: Order of the groups in each sweep; always the same number of draws.
    Returns:
        For each group int64 `[m, n]`, for `gather_index`.
    Raises:
        LayoutError: Rows or reference do not fit the layout, or have values that are not finite.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> groups = chain_groups(layout)
    >>> row, reference = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([2.0, 1.0, 4.0, 3.0])
    >>> weight_matching(row, reference, layout, groups, generator=torch.Generator())
    [tensor([[1, 0]])]
    """
    _check(rows, reference, layout)
    # Drawn for all possible sweeps at once, so that neither chunks nor batch mates change a network's orders.
    orders = torch.rand(MAX_SWEEPS, len(groups), generator=generator, device=generator.device).argsort(1).tolist()
    parts = []
    with progress_bar("aligning networks", len(rows)) as advance:
        for part in rows.split(max(1, CHUNK_VALUES // layout.parameters)):
            parts.append(_ascend(part, reference, layout, groups, orders))
            advance(len(part))
    return [torch.cat(permutations) for permutations in zip(*parts, strict=True)]


def align(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    generator: torch.Generator,
) -> Float[Tensor, "m p"]:
    """The rows with their hidden units renumbered to lie nearest to the reference; their functions are unchanged.

    Args:
        rows: Networks to align.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        generator: Order of the groups, as in `weight_matching`.
    Returns:
        The permuted rows, values bit for bit those of `rows`.
    Raises:
        LayoutError: Rows or reference do not fit the layout, or have values that are not finite.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> groups = chain_groups(layout)
    >>> reference = torch.tensor([2.0, 1.0, 4.0, 3.0])
    >>> align(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), reference, layout, groups, torch.Generator())
    tensor([[2., 1., 4., 3.]])
    """
    permutations = weight_matching(rows, reference, layout, groups, generator=generator)
    return _permuted(rows, layout, groups, permutations)


def align_runs(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    models: Int64[Tensor, " m"],
    last: Bool[Tensor, " m"],
    generator: torch.Generator,
) -> Float[Tensor, "m p"]:
    """Align whole training runs: the permutation of each model's last checkpoint, applied to all its checkpoints.

    A run stays one smooth path, which aligning its checkpoints one by one would break (SANE, section 2).

    Args:
        rows: Checkpoints, in any order.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        models: Number of the model that each row belongs to; any integers.
        last: True for exactly one row of every model, the one that is matched.
        generator: Order of the groups, as in `weight_matching`.
    Returns:
        The permuted rows, in the order of `rows`.
    Raises:
        ConfigError: A model has no last row, or several.
        LayoutError: As in `align`; checkpoints that are not the last may have values that are not finite.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in [(1, 2), (2, 1)])))
    >>> groups = chain_groups(layout)
    >>> rows, reference = torch.tensor([[5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]]), torch.tensor([2.0, 1.0, 4.0, 3.0])
    >>> models, last = torch.tensor([0, 0]), torch.tensor([False, True])
    >>> align_runs(rows, reference, layout, groups, models, last, torch.Generator())
    tensor([[6., 5., 8., 7.],
            [2., 1., 4., 3.]])
    """
    known, model = models.unique(return_inverse=True)
    lasts = model[last].bincount(minlength=len(known))
    if (lasts != 1).any():
        worst = int((lasts != 1).nonzero()[0])
        raise ConfigError(
            f"each model needs exactly one last checkpoint, but model {int(known[worst])} has {int(lasts[worst])}; "
            "mark one row of every model in `last`"
        )
    matched = rows[last][model[last].argsort()]
    permutations = weight_matching(matched, reference, layout, groups, generator=generator)
    return _permuted(rows, layout, groups, [permutation[model] for permutation in permutations])


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
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    reference = start
    for _ in range(rounds):
        permutations = weight_matching(rows, reference, layout, groups, generator=generator)
        rows = _permuted(rows, layout, groups, permutations)
        reference = rows.mean(0)
        if all((moves.diff(dim=1) == 1).all() for moves in permutations):
            break
    return reference


def _ascend(
    rows: Tensor, reference: Tensor, layout: Layout, groups: Sequence[PermutationGroup], orders: list[list[int]]
) -> list[Int64[Tensor, "m _"]]:
    """Coordinate ascent for one chunk of networks."""
    # In float64: in float32 the rounding of the products (1e-7) would pass for gains, so that steps could decrease the
    # objective and sweeps would not end. The assignments take much of the time, so float32 would save little.
    current, target = rows.to(torch.float64, copy=True), reference.double()
    least = LEAST_GAIN * target.norm() * current.norm(dim=1)
    permutations = [torch.arange(group.size, device=rows.device).repeat(len(rows), 1) for group in groups]
    # A group is solved again only in networks where a group with a common tensor moved since: its products are the same
    # otherwise. A network with nothing left to solve has converged.
    coupled = torch.tensor([[_share_tensor(a, b) for b in groups] for a in groups], device=rows.device)
    unsolved = torch.ones(len(rows), len(groups), dtype=torch.bool, device=rows.device)
    for order in orders:
        for k in order:
            which = unsolved[:, k].nonzero()[:, 0]
            moves, gain = _best_moves(_products(current, which, target, layout, groups[k]))
            unsolved[which, k] = False
            # Another assignment that is only as good is not taken, so that aligned networks stay as they are.
            better = gain > least[which]
            which, moves = which[better], moves[better]
            _reorder(current, layout, groups[k], which, moves)
            permutations[k][which] = permutations[k][which].gather(1, moves)
            unsolved[which] |= coupled[k]
        if not unsolved.any():
            break
    return permutations


def _share_tensor(a: PermutationGroup, b: PermutationGroup) -> bool:
    """Whether a move of one group changes the products of the other; a group's own only if it has a tensor twice."""
    names, others = [place.tensor for place in a.places], [place.tensor for place in b.places]
    return len(set(names)) < len(names) if a is b else not set(names).isdisjoint(others)


def _products(
    current: Float64[Tensor, "m p"],
    which: Int64[Tensor, " w"],
    target: Float64[Tensor, " p"],
    layout: Layout,
    group: PermutationGroup,
) -> Float64[Tensor, "w n n"]:
    """Gain matrices of the rows `which`: products of the reference's units (first n) with a row's (second n)."""
    products = current.new_zeros(len(which), group.size, group.size)
    for place in group.places:
        wanted = unit_view(target[None], layout, group, place)[0]
        products += torch.einsum("orai,morbi->mab", wanted, unit_view(current, layout, group, place)[which])
    return products


def _best_moves(products: Float64[Tensor, "m n n"]) -> tuple[Int64[Tensor, "m n"], Float64[Tensor, " m"]]:
    """Optimal assignment of each gain matrix, and what it gains over leaving the units where they are."""
    solved = [linear_sum_assignment(gains, maximize=True)[1] for gains in products.cpu().numpy()]
    moves = torch.from_numpy(np.array(solved, dtype=np.int64).reshape(products.shape[:2])).to(products.device)
    moved = products.gather(2, moves[:, :, None])[:, :, 0]
    return moves, (moved - products.diagonal(dim1=1, dim2=2)).sum(1)


def _reorder(
    rows: Tensor, layout: Layout, group: PermutationGroup, which: Int64[Tensor, " w"], moves: Int64[Tensor, "w n"]
) -> None:
    """Permute the units of one group in the rows `which`, in place."""
    for place in group.places:
        units = unit_view(rows, layout, group, place)
        units[which] = units[which[:, None], :, :, moves].permute(0, 2, 3, 1, 4)


def _permuted(
    rows: Tensor, layout: Layout, groups: Sequence[PermutationGroup], permutations: Sequence[Tensor]
) -> Tensor:
    """Rows after all permutations; the same as gathering by `gather_index`, without an index as large as the zoo."""
    rows = rows.clone()
    for group, permutation in zip(groups, permutations, strict=True):
        _reorder(rows, layout, group, torch.arange(len(rows), device=rows.device), permutation)
    return rows


def _check(rows: Tensor, reference: Tensor, layout: Layout) -> None:
    for what, values in (("rows", rows), ("reference", reference[None])):
        if values.shape[1] != layout.parameters:
            raise LayoutError(
                f"the {what} to align has {values.shape[1]} values a network, but the layout has {layout.parameters} "
                "parameters; give both in the order of this layout"
            )
        # One NaN or infinity spoils its row's sum, which cannot overflow in float64; faster than testing each value.
        broken = (~values.sum(1, dtype=torch.float64).isfinite()).nonzero().flatten().tolist()
        if broken:
            raise LayoutError(
                f"the {what} to align has NaN or infinite weights in {len(broken)} of {len(values)} networks (first: "
                f"number {broken[0]}); leave those out"
            )
