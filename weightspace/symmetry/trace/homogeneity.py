"""How every value in a network is scaled when weights are: one rule for each operation, applied along the graph.

Each index of each axis of each weight may have a scale. A value's scale is a sum of exponents over some of its axes: a
dictionary from the axes to an array of linear forms (`exponents.py`). Operations pass scales on, or require that some
are equal or none: ReLU passes positive scales, tanh signs, a sum needs equal scales, a contraction scales that cancel.
What remains free are the symmetries (Kalogeropoulos et al., 2024, and section 5 of the manifold hypernetwork).
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from torch import fx

from weightspace.symmetry.trace.exponents import Exponent, Exponents, Forms, Kind
from weightspace.symmetry.trace.graph import COPIES, Graph, arguments, name_of, nodes_in, shape_of
from weightspace.symmetry.trace.units import view_blocks

Scale = dict[tuple[int, ...], Forms]
"""Forms by the axes that they vary along, in increasing order; the array has these axes."""
Args = dict[str, Any]
Rule = Callable[["ScaleTrace", fx.Node, Args], Scale | list[Scale] | None]
RULES: dict[str, Rule] = {}
"""Rules by the names of operations; `scale_layers` and `scale_views` add theirs."""


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of these operations; it returns `None` where no scale passes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


class ScaleTrace:
    """Scales of every value in a graph, of one kind."""

    def __init__(self, graph: Graph, kind: Kind):
        self.graph, self.kind = graph, kind
        self.system = Exponents(kind)
        self.tensors: dict[str, Scale] = {}
        self.known: dict[fx.Node, Scale | list[Scale]] = {}
        for node, name in graph.tensors.items():
            if name not in self.tensors:
                shape = shape_of(node) or []
                axes = [i for i, size in enumerate(shape) if size > 1] or list(range(len(shape)))[-1:]
                fixed = node in graph.fixed
                self.tensors[name] = {} if fixed else {(i,): self.system.unknowns(shape[i]) for i in axes}
            self.known[node] = self.tensors[name]
        for node in graph.operations:
            self.known[node] = self._apply(node)
        for node in graph.outputs:
            self.none(self.of(node))

    def of(self, node: fx.Node) -> Scale:
        """Scale of a tensor; inputs and constants have none."""
        known = self.known.get(node, {})
        return known if isinstance(known, dict) else {}

    def none(self, *scales: Scale) -> None:
        """These values may not be scaled."""
        for scale in scales:
            for forms in scale.values():
                self.system.require_zero(forms)

    def none_along(self, scale: Scale, axes: Iterable[int]) -> Scale:
        """The scale may not vary along these axes; the rest of it."""
        axes = set(axes)
        self.none({key: forms for key, forms in scale.items() if axes & set(key)})
        return {key: forms for key, forms in scale.items() if not axes & set(key)}

    def plus(self, a: Scale, b: Scale) -> Scale:
        """Scale of a product."""
        return {key: self.system.add(a[key], b[key]) if key in a and key in b else (a | b)[key] for key in a | b}

    def times(self, a: Scale, factor: Exponent) -> Scale:
        """Scale of a power."""
        return {key: self.system.times(forms, factor) for key, forms in a.items()}

    def equal(self, a: Scale, b: Scale) -> Scale:
        """Both are scaled alike; the scale."""
        for key in a | b:
            if key in a and key in b:
                self.system.require_equal(a[key], b[key])
            else:
                self.system.require_zero((a | b)[key])
        return a

    def _apply(self, node: fx.Node) -> Scale | list[Scale]:
        operation = name_of(node.target)
        if operation == "getitem":
            source = self.known[node.args[0]]  # type: ignore[index]
            return source[node.args[1]] if isinstance(source, list) else {}  # type: ignore[index]
        known = RULES.get(operation)
        found = known(self, node, arguments(node)) if known else None
        if found is None:  # not understood, or nothing passes
            self.none(*(self.of(operand) for operand in nodes_in([*node.args, *node.kwargs.values()])))
            return {}
        return found


def moved(scale: Scale, where: dict[int, int]) -> Scale:
    """The scale with its axes renumbered."""
    out: Scale = {}
    for key, forms in scale.items():
        axes = [where[axis] for axis in key]
        order = np.argsort(axes)
        out[tuple(axes[i] for i in order)] = np.transpose(forms, order)
    return out


def shifted(scale: Scale, shape: list[int], rank: int) -> Scale:
    """The scale of a tensor of `rank` axes as that of its broadcast to `shape`."""
    behind = moved(scale, {axis: axis + len(shape) - rank for axis in range(rank)})
    return {key: np.broadcast_to(forms, [shape[axis] for axis in key]) for key, forms in behind.items()}


def broadcast(trace: ScaleTrace, node: fx.Node, shape: list[int]) -> Scale:
    """The scale of a tensor after broadcasting to a shape."""
    return shifted(trace.of(node), shape, len(shape_of(node) or []))


def reshaped(trace: ScaleTrace, scale: Scale, before: list[int], after: list[int]) -> Scale:
    """The scale of a tensor after a reshape; along axes that are merged or split it is written out."""
    blocks = view_blocks(before, after)
    out: Scale = {}
    for key, forms in scale.items():
        touched = [block for block in blocks if set(block[0]) & set(key)]
        old, new = (
            [axis for rows, _ in touched for axis in rows],
            tuple(axis for _, columns in touched for axis in columns),
        )
        spread = forms[tuple(slice(None) if axis in key else None for axis in old)]
        spread = np.broadcast_to(spread, [before[axis] for axis in old]).reshape([after[axis] for axis in new])
        out = trace.plus(out, _simplified(new, spread))
    return out


def _simplified(key: tuple[int, ...], forms: Forms) -> Scale:
    """Without axes along which nothing varies."""
    if not forms.any():
        return {}
    keep = [i for i in range(forms.ndim) if not (forms == forms.take([0], i)).all()]
    if not keep and forms.ndim:  # a scale common to all values shows along one axis
        keep = [int(np.argmax(forms.shape))]
    index = tuple(slice(None) if i in keep else 0 for i in range(forms.ndim))
    return {tuple(key[i] for i in keep): np.asarray(forms[index])}


def without(trace: ScaleTrace, scale: Scale, dims: list[int], rank: int) -> Scale:
    """Scale after axes of one index are dropped."""
    left = [axis for axis in range(rank) if axis not in dims]
    out: Scale = {}
    for key, forms in scale.items():
        small = np.asarray(forms[tuple(0 if axis in dims else slice(None) for axis in key)])
        out = trace.plus(out, {tuple(left.index(axis) for axis in key if axis not in dims): small})
    return out


# Operations on each value alone.


@rule(*COPIES, "neg")
def _passes(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    return trace.of(next(nodes_in(list(args.values()))))


@rule("add", "sub", "rsub", "maximum", "minimum")
def _sum(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    operands = list(nodes_in([args["self"], args["other"]]))
    shape = shape_of(node) or []
    if len(operands) < 2:
        return None if args["other"] else trace.of(operands[0])
    if trace.kind == "sign" and name_of(node.target) in ("maximum", "minimum"):
        return None
    return trace.equal(*(broadcast(trace, operand, shape) for operand in operands))


@rule("mul", "div")
def _product(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    shape, sign = shape_of(node) or [], -1 if name_of(node.target) == "div" else 1
    operands = [args["self"], args["other"]]
    a, b = (broadcast(trace, x, shape) if isinstance(x, fx.Node) else {} for x in operands)
    if args.get("rounding_mode") is not None:
        return None
    return trace.plus(a, trace.times(b, sign))


@rule("pow", "sqrt", "rsqrt", "reciprocal", "square", "abs")
def _power(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    powers = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1, "square": 2, "abs": 1}
    power = powers.get(name_of(node.target), args.get("exponent"))
    if not isinstance(power, int | float) or not isinstance(args["self"], fx.Node):
        return None
    if trace.kind == "sign":
        if name_of(node.target) == "abs" or (float(power).is_integer() and power % 2 == 0):
            return {}
        return trace.of(args["self"]) if float(power).is_integer() else None
    return trace.times(trace.of(args["self"]), Fraction(power).limit_denominator(1000))


@rule("relu", "leaky_relu", "_prelu_kernel", "prelu", "clamp", "clamp_min")
def _positive(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    """Functions f with f(s x) = s f(x) for positive s."""
    if trace.kind == "sign":
        return None
    if name_of(node.target) == "clamp" and (args["min"] not in (None, 0) or args["max"] not in (None, 0)):
        return None
    operands = list(nodes_in(list(args.values())))
    trace.none(*(trace.of(operand) for operand in operands[1:]))  # slopes
    return trace.of(operands[0])


@rule("tanh", "sin", "tan", "sinh", "asinh", "asin", "atan", "erf", "hardtanh", "softshrink")
def _odd(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    if trace.kind != "sign" or (name_of(node.target) == "hardtanh" and args["min_val"] != -args["max_val"]):
        return None
    return trace.of(args["self"])


@rule("cos", "cosh")
def _even(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    return {} if trace.kind == "sign" else None


@rule("masked_fill")
def _masked(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    if args["value"] != 0:
        return None
    trace.none(trace.of(args["mask"]))
    return broadcast(trace, args["self"], shape_of(node) or [])
