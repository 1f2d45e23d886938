"""What leaves a network's function unchanged: permutation groups, random group elements and alignment."""

from weightspace.symmetry.groups import (
    PermutationGroup,
    Place,
    chain_groups,
    gather_index,
    random_permutations,
    unit_view,
)
from weightspace.symmetry.matching import align, align_runs, mean_reference, weight_matching

__all__ = [
    "PermutationGroup",
    "Place",
    "align",
    "align_runs",
    "chain_groups",
    "gather_index",
    "mean_reference",
    "random_permutations",
    "unit_view",
    "weight_matching",
]
