"""Symmetries of any module: the groups of units that may be renumbered, found by tracing what the module computes.

The table of Git Re-Basin (Ainsworth et al., 2023), which is written by hand there, read off the operations of the
module. What the trace cannot follow is frozen, with the reason; it is never guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, lgamma, log, prod
from typing import get_args

from torch import Tensor, nn

from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup, Place, chain_groups, layer_of
from weightspace.symmetry.scales import ScaleGroup, scale_groups
from weightspace.symmetry.trace.axes import AxisTrace
from weightspace.symmetry.trace.exponents import Kind
from weightspace.symmetry.trace.graph import record
from weightspace.symmetry.trace.homogeneity import ScaleTrace
from weightspace.symmetry.trace.units import Product, Term, Units, leaves, resolve


@dataclass(frozen=True)
class Frozen:
    """Indices of tensors that stay where they are."""

    what: str
    """Tensors and their axes."""
    reason: str
    """What tells the indices apart."""
    places: tuple[Place, ...]
    """The axes; the size of each is that of the place's tensor."""


@dataclass(frozen=True)
class Basis:
    """Directions that may be mixed by any invertible matrix, not only renumbered; named, not used."""

    name: str
    """What the directions are, for example queries and keys of attention."""
    size: int
    """Number of directions, `n` of GL(n)."""
    places: tuple[Place, ...]
    """Axes of the tensors that the matrix, or its inverse, acts on; in each repeat and block with one of its own."""


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """What leaves the function of a network unchanged.

    >>> import torch
    >>> found = symmetry_of(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.zeros(1, 2))
    >>> [(group.name, group.size, len(group.places)) for group in found.groups]
    [('0', 16, 3)]
    """

    layout: Layout
    groups: tuple[PermutationGroup, ...]
    """Permutations, a direct product."""
    scales: tuple[ScaleGroup, ...] = ()
    """Positive scales and signs, each group independent of the others."""
    bases: tuple[Basis, ...] = ()
    """Continuous symmetries that are stated only."""
    frozen: tuple[Frozen, ...] = ()
    """What may not be renumbered, and why."""
    inferred: bool = False
    """Whether the groups are inferred from names and shapes alone, which shows less than a trace."""

    @classmethod
    def inferred_from(cls, layout: Layout) -> "Symmetry":
        """Groups of a plain chain, from its layout alone.

        Raises:
            LayoutError: The layout is not that of a plain chain.

        >>> Symmetry.inferred_from(Layout.of(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)))).inferred
        True
        """
        return cls(layout=layout, groups=chain_groups(layout), inferred=True)

    @property
    def order(self) -> int:
        """Number of different renumberings, exactly."""
        return prod(factorial(group.size) for group in self.groups)

    @property
    def log10_order(self) -> float:
        """Decimal logarithm of the order."""
        return sum(lgamma(group.size + 1) for group in self.groups) / log(10)

    def describe(self) -> str:
        """All of it as text, a line for each group and for each reason to freeze.

        >>> import torch
        >>> print(symmetry_of(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), torch.zeros(1, 2)).describe())
        1 permutation group, 10^1.4 renumberings
          0 (4): 0.weight[0], 0.bias[0], 2.weight[1]
        scales
          0, sign (4): 0.weight[0], 0.bias[0], 2.weight[1]
        frozen
          input of the network: 0.weight[1]
          output of the network: 2.weight[0], 2.bias[0]
        """
        count = f"{len(self.groups)} permutation group{'s' if len(self.groups) != 1 else ''}"
        lines = [f"{count}, 10^{self.log10_order:.1f} renumberings{', inferred from the layout' * self.inferred}"]
        lines += [f"  {group.name} ({group.size}): {_listed(group.places, 6)}" for group in self.groups]
        if self.scales:
            lines += ["scales", *(_described(group) for group in self.scales)]
        if self.bases:
            lines += ["bases", *(f"  {b.name}, GL({b.size}): {_listed(b.places)}" for b in self.bases)]
        if self.frozen:
            lines += ["frozen", *(f"  {frozen.reason}: {_listed(frozen.places, 6)}" for frozen in self.frozen)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()


def symmetry_of(module: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Symmetry:
    """Trace a module in evaluation mode and list its symmetries.

    Every operation says which axes of its operands and results count the same units. Where an operation tells the
    indices of an axis apart (inputs and outputs of the network, positions, tables, operations without a rule), the
    axis is frozen. Heads of attention, groups of channels and the like are digits of an axis, so that one tensor axis
    may belong to several groups.

    Args:
        module: Any module that `torch.export` can trace; unchanged afterwards.
        example_input: Its positional arguments; their shapes count, and values where the module computes on shapes.
    Returns:
        The symmetry, with places under the names of `Layout.of(module)`.
    Raises:
        LayoutError: The module cannot be traced.

    >>> import torch
    >>> attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    >>> x = torch.zeros(1, 3, 8)
    >>> [(group.name, group.size) for group in symmetry_of(attention, (x, x, x)).groups]
    [('in_proj_weight within', 2), ('in_proj_weight within #2', 4)]
    """
    layout = Layout.of(module)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    graph = record(module, layout, inputs)
    trace = AxisTrace(graph)
    for spec in layout.tensors:
        if spec.name not in trace.tensors:
            axes = [Units(size, ["not used by the traced computation"]) for size in spec.shape]
            trace.tensors[spec.name] = list(axes)
    places = _places(layout, trace.tensors)
    free = {units: found for units, found in places.items() if not units.reasons and units.size > 1}
    return Symmetry(
        layout=layout,
        groups=_named_groups(layout, free),
        scales=tuple(
            group
            for kind in get_args(Kind)
            for scales in [ScaleTrace(graph, kind)]
            for group in scale_groups(layout, scales.tensors, scales.system)
        ),
        bases=_bases(trace, free),
        frozen=_frozen(layout, places),
    )


def _places(layout: Layout, tensors: dict[str, list[Term]]) -> dict[Units, list[Place]]:
    """Where each kind of units is found, in the order of the layout."""
    places: dict[Units, list[Place]] = {}
    for spec in layout.tensors:
        for axis, term in enumerate(tensors[spec.name]):
            for units, place in _occurrences(term, Place(spec.name, axis)):
                places.setdefault(units, []).append(place)
    return places


def _occurrences(term: Term, whole: Place) -> list[tuple[Units, Place]]:
    """All units in a term, and their places where the term is found at `whole` as one unit is."""
    term = resolve(term)
    tensor, axis, block, start, repeats = whole.tensor, whole.axis, whole.block, whole.start, whole.repeats
    if isinstance(term, Units):
        return [(term, whole)]
    if isinstance(term, Product):
        found, slower, faster = list[tuple[Units, Place]](), repeats, term.size * block
        for digit in term.factors:
            faster //= digit.size
            found += _occurrences(digit, Place(tensor, axis, faster, start, slower))
            slower *= digit.size
        return found
    found, length = [], term.size
    for repeat in range(repeats):  # stretches within a repeat do not follow each other at equal distances
        at = start + repeat * length * block
        for part in term.parts:
            found += _occurrences(part, Place(tensor, axis, block, at))
            at += part.size * block
    return found


def _named_groups(layout: Layout, free: dict[Units, list[Place]]) -> tuple[PermutationGroup, ...]:
    groups, names = [], set[str]()
    for units, places in free.items():
        name = layer_of(layout, places)
        if name in names:
            name = next(f"{name} #{i}" for i in range(2, len(free) + 2) if f"{name} #{i}" not in names)
        names.add(name)
        groups.append(PermutationGroup(name, units.size, tuple(places)))
    return tuple(groups)


def _bases(trace: AxisTrace, free: dict[Units, list[Place]]) -> tuple[Basis, ...]:
    found: dict[tuple[str, Units], Basis] = {}
    for what, term, same in trace.bases:
        for units in leaves(term):
            if units in free and not units.bent and not same:
                found[what, units] = Basis(what, units.size, tuple(free[units]))
    return tuple(found.values())


def _frozen(layout: Layout, places: dict[Units, list[Place]]) -> tuple[Frozen, ...]:
    reasons: dict[str, list[Place]] = {}
    for units, found in places.items():
        if units.reasons and units.size > 1:
            reasons.setdefault("; ".join(units.reasons), []).extend(found)
    return tuple(Frozen(_listed(found), reason, tuple(found)) for reason, found in reasons.items())


def _described(group: ScaleGroup) -> str:
    powers = dict.fromkeys(
        f"{place.tensor}[{place.axis}]" + f"^{exponent:g}" * (group.kind == "positive")
        for place, exponent in zip(group.places, group.exponents, strict=True)
    )
    about = "" if group.exact else ", up to eps"
    return f"  {group.name}, {group.kind} ({group.size}{about}): {_shortened(list(powers), 6)}"


def _listed(places: Sequence[Place], most: int | None = None) -> str:
    axes = list(dict.fromkeys(f"{place.tensor}[{place.axis}]" for place in places))
    return _shortened(axes, most or len(axes))


def _shortened(items: Sequence[str], most: int) -> str:
    left = len(items) - most
    return ", ".join(items[:most]) + f" and {left} more" * (left > 0)
