"""What leaves a network's function unchanged: permutation groups, random group elements and alignment."""

from weightspace.symmetry.activations import activation_matching, unit_activations
from weightspace.symmetry.gauges import balanced, canonical_form
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
from weightspace.symmetry.repair import recalibrated, repaired
from weightspace.symmetry.sinkhorn import SinkhornConfig, sinkhorn_matching, softly_permuted
from weightspace.symmetry.straight_through import batch_losses, straight_through_matching

__all__ = [
    "PermutationGroup",
    "Place",
    "SinkhornConfig",
    "activation_matching",
    "align",
    "align_runs",
    "balanced",
    "batch_losses",
    "canonical_form",
    "chain_groups",
    "gather_index",
    "mean_reference",
    "merge_many",
    "permuted",
    "random_permutations",
    "recalibrated",
    "repaired",
    "sinkhorn_matching",
    "softly_permuted",
    "straight_through_matching",
    "unit_activations",
    "unit_view",
    "weight_matching",
]
