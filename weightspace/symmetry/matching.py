"""Alignment by weight matching (Git Re-Basin, Ainsworth et al., 2023, section 3.2), for all networks at once.

Renumber the hidden units of each network so that it lies as near as possible to a reference: maximise the sum of
products <reference, permuted row>, which is to minimise their distance. Coordinate ascent: for one group at a time, all
others held fixed, a linear assignment is the exact optimum.

Axes: m network, p parameter, n unit of a group, o, r and i values of a unit as in `unit_view`, k group.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import gcd, prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.progress import progress_bar
from weightspace.symmetry.groups import PermutationGroup

MAX_SWEEPS = 100
LEAST_GAIN = 1e-12
CHUNK_VALUES = 2**20  # weights of the networks handled at once: 8 MB in float64, whatever the size of the zoo

Tensors = dict[str, Shaped[Tensor, "_ _"]]
"""The tensors of some networks by name, each as a matrix of its own."""


def weight_matching(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, "*r p"],
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
        reference: Network that they are aligned to, or one for each row.
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
    orders = _orders(groups, generator)
    found = [torch.empty(len(rows), group.size, dtype=torch.int64, device=rows.device) for group in groups]

    def match(chunk: slice) -> None:
        for whole, part in zip(
            found, _ascend(rows[chunk], _part(reference, chunk), layout, groups, orders)[0], strict=True
        ):
            whole[chunk] = part

    _in_chunks(len(rows), layout, match)
    return found


def align(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, "*r p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    generator: torch.Generator,
) -> Float[Tensor, "m p"]:
    """The rows with their hidden units renumbered to lie nearest to the reference; their functions are unchanged.

    Args:
        rows: Networks to align.
        reference: Network that they are aligned to, or one for each row.
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
    _check(rows, reference, layout)
    orders = _orders(groups, generator)

    aligned = torch.empty_like(rows)

    def match(chunk: slice) -> None:
        _write(aligned[chunk], _ascend(rows[chunk], _part(reference, chunk), layout, groups, orders)[1], layout)

    _in_chunks(len(rows), layout, match)
    return aligned


def permuted(
    rows: Float[Tensor, "m p"],
    layout: Layout,
    groups: Sequence[PermutationGroup],
    permutations: Sequence[Int64[Tensor, "m _"]],
) -> Float[Tensor, "m p"]:
    """Rows with their units renumbered: the gather by `gather_index`, without an index as large as the rows.

    Args:
        rows: Networks.
        groups: Groups of the layout.
        permutations: For each group int64 `[m, n]`, one permutation a network.
    Returns:
        The permuted rows.

    >>> from weightspace.symmetry import chain_groups
    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)))
    >>> permuted(torch.arange(7.0)[None], layout, chain_groups(layout), [torch.tensor([[1, 0]])])
    tensor([[1., 0., 3., 2., 5., 4., 6.]])
    """
    tensors = _tensors(rows, layout, rows.dtype)
    which = torch.arange(len(rows), device=rows.device)
    for group, permutation in zip(groups, permutations, strict=True):
        for pieces in _pieces(layout, group, rows.device):
            pieces.reorder(tensors, which, permutation)
    found = torch.empty_like(rows)
    _write(found, tensors, layout)
    return found


def align_runs(
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, "*r p"],
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
        reference: Network that they are aligned to, or one for each row.
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
    return permuted(rows, layout, groups, [permutation[model] for permutation in permutations])


def _orders(groups: Sequence[PermutationGroup], generator: torch.Generator) -> list[list[int]]:
    """The order of the groups in each sweep; for all possible ones, so that no network changes another's orders."""
    return torch.rand(MAX_SWEEPS, len(groups), generator=generator, device=generator.device).argsort(1).tolist()


def _in_chunks(count: int, layout: Layout, work: Callable[[slice], None]) -> None:
    """Do the work on all networks, a chunk at a time, as many chunks side by side as torch may use threads."""
    size = max(1, CHUNK_VALUES // layout.parameters)
    chunks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    threads = torch.get_num_threads()
    with progress_bar("aligning networks", count) as advance:
        if min(len(chunks), threads) < 2:  # torch shares the work on one large network among its own threads
            for chunk in chunks:
                work(chunk)
                advance(chunk.stop - chunk.start)
            return
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                for chunk, _ in zip(chunks, pool.map(work, chunks), strict=True):
                    advance(chunk.stop - chunk.start)
        finally:
            torch.set_num_threads(threads)


def _part(reference: Float[Tensor, "*r p"], chunk: slice) -> Float[Tensor, "r p"]:
    """The references of a chunk of networks: one for each, or one for all."""
    return reference[None] if reference.ndim == 1 else reference[chunk]


@torch.no_grad()
def _ascend(
    rows: Tensor, reference: Tensor, layout: Layout, groups: Sequence[PermutationGroup], orders: list[list[int]]
) -> tuple[list[Int64[Tensor, "m _"]], Tensors]:
    """Coordinate ascent for one chunk of networks: their permutations, and their tensors after these."""
    # In float64: in float32 the rounding of the products (1e-7) would pass for gains, so that steps could decrease the
    # objective and sweeps would not end. The assignments take much of the time, so float32 would save little.
    current, target = (_tensors(values, layout, torch.float64) for values in (rows, reference))
    least = LEAST_GAIN * _norms(target) * _norms(current)
    permutations = [torch.arange(group.size, device=rows.device).repeat(len(rows), 1) for group in groups]
    # A group is solved again only in networks where a group with a common tensor moved since: its products are the same
    # otherwise. A network with nothing left to solve has converged.
    places = [_pieces(layout, group, rows.device) for group in groups]
    coupled = torch.tensor([[_share_tensor(a, b) for b in groups] for a in groups], device=rows.device)
    unsolved = torch.ones(len(rows), len(groups), dtype=torch.bool, device=rows.device)
    for order in orders:
        for k in order:
            which = unsolved[:, k].nonzero()[:, 0]
            if not len(which):
                continue
            moves, gain = best_assignments(_costs(current, which, target, places[k]))
            unsolved[which, k] = False
            # Another assignment that is only as good is not taken, so that aligned networks stay as they are.
            better = gain > least[which]
            which, moves = which[better], moves[better]
            if coupled[k, k]:
                # Two axes of one tensor move: the gain is not linear, and what was promised may be a loss.
                better = _true_gains(current, which, moves, target, places[k]) > least[which]
                which, moves = which[better], moves[better]
            for pieces in places[k]:
                pieces.reorder(current, which, moves)
            permutations[k][which] = permutations[k][which].gather(1, moves)
            unsolved[which] |= coupled[k]
        if not unsolved.any():
            break
    return permutations, current


def _tensors(rows: Tensor, layout: Layout, dtype: torch.dtype) -> Tensors:
    """Each tensor of the rows apart, so that its pieces lie at regular distances."""
    return {name: rows[:, place].to(dtype, copy=True) for name, place in layout.slices.items()}


def _write(rows: Float[Tensor, "m p"], tensors: Tensors, layout: Layout) -> None:
    """Put tensors back into rows."""
    for name, place in layout.slices.items():
        rows[:, place] = tensors[name]


def _share_tensor(a: PermutationGroup, b: PermutationGroup) -> bool:
    """Whether a move of one group changes the products of the other; a group's own only if it has a tensor twice."""
    names, others = [place.tensor for place in a.places], [place.tensor for place in b.places]
    return len(set(names)) < len(names) if a is b else not set(names).isdisjoint(others)


def _norms(tensors: Tensors) -> Float64[Tensor, " m"]:
    return torch.stack([torch.linalg.vector_norm(tensor, dim=1) for tensor in tensors.values()]).norm(dim=0)


@dataclass(frozen=True)
class _Pieces:
    """The values of a place that always move together: one stretch of memory each, which is fast to copy."""

    tensor: str
    values: int
    """Length of a piece."""
    units: Int64[Tensor, "n q"]
    """Numbers of each unit's pieces in the tensor of one network."""

    def of(self, tensors: Tensors, which: Int64[Tensor, " w"]) -> Shaped[Tensor, "wn qv"]:
        """What each unit of the rows `which` owns, one unit below the other."""
        tensor, rows = tensors[self.tensor], len(which) * len(self.units)
        if self.units.shape[1] == 1 and rows * self.values == tensor.numel():
            return tensor.view(rows, -1)  # it lies there like this
        return tensor.view(-1, self.values).index_select(0, self._numbers(tensor, which, self.units)).view(rows, -1)

    def reorder(self, tensors: Tensors, which: Int64[Tensor, " w"], moves: Int64[Tensor, "w n"]) -> None:
        """Permute the units in the rows `which`, in place."""
        pieces = tensors[self.tensor].view(-1, self.values)
        moved = pieces.index_select(0, self._numbers(tensors[self.tensor], which, self.units[moves]))
        pieces.index_copy_(0, self._numbers(tensors[self.tensor], which, self.units), moved)

    def _numbers(
        self, tensor: Shaped[Tensor, "m s"], which: Int64[Tensor, " w"], units: Int64[Tensor, "*w n q"]
    ) -> Int64[Tensor, " wnq"]:
        """Numbers of pieces among those of all networks."""
        return ((which * (tensor.shape[1] // self.values))[:, None, None] + units).flatten()


def _pieces(layout: Layout, group: PermutationGroup, device: torch.device) -> list[_Pieces]:
    """The pieces at each place of a group."""
    found = []
    for place in group.places:
        shape = layout.by_name[place.tensor].shape
        inner = prod(shape[place.axis + 1 :])
        unit, start, axis = place.block * inner, place.start * inner, shape[place.axis] * inner
        values = gcd(unit, start, axis)
        outer = torch.arange(start, layout.by_name[place.tensor].size, axis, device=device)[None, :, None, None]
        unit_start = torch.arange(0, place.repeats * group.size * unit, unit, device=device)
        unit_start = unit_start.view(place.repeats, group.size).T[:, None, :, None]
        first = unit_start + outer + torch.arange(0, unit, values, device=device)  # n o r i
        found.append(_Pieces(place.tensor, values, (first // values).flatten(1)))
    return found


def _costs(
    current: Tensors, which: Int64[Tensor, " w"], target: Tensors, places: list[_Pieces]
) -> Float64[Tensor, "w n n"]:
    """Negative products of the reference's units (first n) with those of the rows `which` (second n)."""
    size = len(places[0].units)
    if (
        len(next(iter(target.values()))) == 1
    ):  # a row's units first: then it is one product of matrices for all networks
        one = which.new_zeros(1)
        costs = current[places[0].tensor].new_zeros(len(which) * size, size)
        for pieces in places:
            costs.addmm_(pieces.of(current, which), pieces.of(target, one).T, alpha=-1)
        return costs.unflatten(0, (len(which), size)).mT.contiguous()
    costs = current[places[0].tensor].new_zeros(len(which), size, size)
    for pieces in places:
        wanted, found = (pieces.of(tensors, which).unflatten(0, (len(which), size)) for tensors in (target, current))
        costs.baddbmm_(wanted, found.mT, alpha=-1)
    return costs


def _true_gains(
    current: Tensors, which: Int64[Tensor, " w"], moves: Int64[Tensor, "w n"], target: Tensors, places: list[_Pieces]
) -> Float64[Tensor, " w"]:
    """What moves gain where a group has two axes of a tensor, measured by trying them."""
    before = {pieces.tensor: current[pieces.tensor][which] for pieces in places}
    after = {name: tensor.clone() for name, tensor in before.items()}
    for pieces in places:
        pieces.reorder(after, torch.arange(len(which), device=which.device), moves)
    wanted = {name: target[name] if len(target[name]) == 1 else target[name][which] for name in after}
    return torch.stack([((after[name] - before[name]) * wanted[name]).sum(1) for name in after]).sum(0)


def best_assignments(costs: Float64[Tensor, "m n n"]) -> tuple[Int64[Tensor, "m n"], Float64[Tensor, " m"]]:
    """The cheapest assignment of each cost matrix, and how much cheaper it is than leaving the units where they are.

    >>> best_assignments(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64))
    (tensor([[1, 0]]), tensor([2.], dtype=torch.float64))
    """
    solved = [linear_sum_assignment(matrix)[1] for matrix in costs.cpu().numpy()]
    moves = torch.from_numpy(np.array(solved, dtype=np.int64).reshape(costs.shape[:2])).to(costs.device)
    moved = costs.gather(2, moves[:, :, None])[:, :, 0]
    return moves, (costs.diagonal(dim1=1, dim2=2) - moved).sum(1)


def _check(rows: Tensor, reference: Tensor, layout: Layout) -> None:
    if reference.ndim == 2 and len(reference) != len(rows):
        raise LayoutError(
            f"{len(rows)} networks cannot be aligned to {len(reference)} references; give one, or one a network"
        )
    for what, values in (("rows", rows), ("reference", reference[None] if reference.ndim == 1 else reference)):
        if values.shape[1] != layout.parameters:
            raise LayoutError(
                f"the {what} to align has {values.shape[1]} values a network, but the layout has {layout.parameters} "
                "parameters; give both in the order of this layout"
            )
        # One NaN or infinity spoils its row's sum, which is faster than testing each value; large values may do it too.
        suspects = (~values.sum(1).isfinite()).nonzero()[:, 0]
        broken = suspects[~values[suspects].isfinite().all(1)].tolist()
        if broken:
            raise LayoutError(
                f"the {what} to align has NaN or infinite weights in {len(broken)} of {len(values)} networks (first: "
                f"number {broken[0]}); leave those out"
            )
