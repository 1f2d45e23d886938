"""What leaves a network's function unchanged: permutation groups, random group elements and alignment."""

from weightspace.symmetry.activations import activation_matching, unit_activations
from weightspace.symmetry.groups import (
    PermutationGroup,
    Place,
    chain_groups,
    gather_index,
    random_permutations,
    unit_view,
)
from weightspace.symmetry.matching import align, align_runs, permuted, weight_matching
from weightspace.symmetry.merging import mean_reference, merge_many

__all__ = [
    "PermutationGroup",
    "Place",
    "activation_matching",
    "align",
    "align_runs",
    "chain_groups",
    "gather_index",
    "mean_reference",
    "merge_many",
    "permuted",
    "random_permutations",
    "unit_activations",
    "unit_view",
    "weight_matching",
]
