"""What leaves a network's function unchanged: groups found by tracing it, random group elements and alignment."""

from weightspace.symmetry.activations import activation_matching, unit_activations
from weightspace.symmetry.gauges import balanced, canonical_form, chain_scales
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
from weightspace.symmetry.scales import ScaleGroup, apply_scales, random_scales, scale_factors
from weightspace.symmetry.sinkhorn import SinkhornConfig, sinkhorn_matching, softly_permuted
from weightspace.symmetry.straight_through import batch_losses, straight_through_matching
from weightspace.symmetry.tracing import Basis, Frozen, Symmetry, symmetry_of
from weightspace.symmetry.verification import Check, Verification, verify

__all__ = [
    "Basis",
    "Check",
    "Frozen",
    "PermutationGroup",
    "Place",
    "ScaleGroup",
    "SinkhornConfig",
    "Symmetry",
    "Verification",
    "activation_matching",
    "align",
    "align_runs",
    "apply_scales",
    "balanced",
    "batch_losses",
    "canonical_form",
    "chain_groups",
    "chain_scales",
    "gather_index",
    "mean_reference",
    "merge_many",
    "permuted",
    "random_permutations",
    "random_scales",
    "recalibrated",
    "repaired",
    "scale_factors",
    "sinkhorn_matching",
    "softly_permuted",
    "straight_through_matching",
    "symmetry_of",
    "unit_activations",
    "unit_view",
    "verify",
    "weight_matching",
]
