"""What leaves a network's function unchanged: found in any module, proved on it, and used to align networks."""

from weightspace.symmetry.groups import (
    PermutationGroup,
    Place,
    chain_groups,
    gather_index,
    random_permutations,
    unit_view,
)
from weightspace.symmetry.matching import align, align_runs, mean_reference, weight_matching
from weightspace.symmetry.scales import ScaleGroup, apply_scales, random_scales, scale_factors
from weightspace.symmetry.tracing import Basis, Frozen, Symmetry, symmetry_of
from weightspace.symmetry.verification import Check, Verification, verify

__all__ = [
    "Basis",
    "Check",
    "Frozen",
    "PermutationGroup",
    "Place",
    "ScaleGroup",
    "Symmetry",
    "Verification",
    "align",
    "align_runs",
    "apply_scales",
    "chain_groups",
    "gather_index",
    "mean_reference",
    "random_permutations",
    "random_scales",
    "scale_factors",
    "symmetry_of",
    "unit_view",
    "verify",
    "weight_matching",
]
