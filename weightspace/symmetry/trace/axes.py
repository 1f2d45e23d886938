"""What every axis in a network counts: one rule for each operation, applied along the graph.

Every operation that a rule covers commutes with renumbering the units of its operands' axes as the rule says. An axis
whose indices an operation treats differently is frozen. By induction over the operations, what is left free at the end
may be renumbered: each value in the network is renumbered with its axes, and inputs and outputs stay.

Axis lists name what each axis of a tensor counts, first axis first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.symmetry.trace.graph import COPIES, Graph, arguments, name_of, nodes_in, shape_of
from weightspace.symmetry.trace.units import Term, Units, bend, freeze, unify

Axes = list[Term]
Args = dict[str, Any]
Rule = Callable[["AxisTrace", fx.Node, Args], Axes | list[Axes]]
RULES: dict[str, Rule] = {}
"""Rules by the names of operations; filled by `axis_layers` and `axis_views`."""


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of these operations; it raises `NotImplementedError` for what it does not cover."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


class AxisTrace:
    """What is known so far of the axes of every value in a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.known: dict[fx.Node, Axes | list[Axes]] = {}
        self.tensors: dict[str, Axes] = {}
        """Axes of the layout's tensors."""
        self.bases: list[tuple[str, Term, bool]] = []
        """Contractions of activations: what for, the axis, and whether both sides are the same values."""
        self.stacked: dict[fx.Node, list[Term]] = {}
        """Units of each layer of a recurrent network, whose last states lie in one tensor."""
        for node, name in graph.tensors.items():
            self.tensors.setdefault(name, [Units(size) for size in shape_of(node) or []])
            self.known[node] = self.tensors[name]
            if node in graph.fixed:
                _freeze_different(graph.fixed[node], self.tensors[name], f"values of the fixed table {name}")
        for node in graph.inputs:
            self.known[node] = frozen(shape_of(node) or [], "input of the network")
        for node in graph.operations:
            self.known[node] = self._apply(node)
        for node in graph.outputs:
            for axis in self.axes(node):
                freeze(axis, "output of the network")

    def axes(self, node: fx.Node) -> Axes:
        """Axes of a tensor; a constant counts afresh at every use, as its equal indices are bound to nothing."""
        if node in self.graph.constants:
            value = self.graph.constants[node]
            axes: Axes = [Units(size, bent=True) for size in value.shape]
            _freeze_different(value, axes, "values of a constant, such as a mask or a table of positions")
            return axes
        known = self.known[node]
        assert not known or not isinstance(known[0], list), node
        return known  # type: ignore[return-value]

    def _apply(self, node: fx.Node) -> Axes | list[Axes]:
        operation = name_of(node.target)
        if operation == "getitem":
            source, which = node.args
            return self.known[source][which]  # type: ignore[index,return-value]
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not _idle(node):
            return self.freeze_all(node, f"{operation} is random")
        if torch.Tag.pointwise in tags or operation in COPIES:
            return _pointwise(self, node, arguments(node))
        if operation not in RULES:
            return self.freeze_all(node, f"{operation} is not understood")
        try:
            return RULES[operation](self, node, arguments(node))
        except NotImplementedError as reason:
            return self.freeze_all(node, f"{operation} {reason}")

    def freeze_all(self, node: fx.Node, reason: str) -> Axes | list[Axes]:
        """Nothing is known of an operation: neither its operands nor its results may be renumbered."""
        for operand in nodes_in([*node.args, *node.kwargs.values()]):
            known = self.known.get(operand, [])
            for axis in known:
                for inner in axis if isinstance(axis, list) else [axis]:
                    freeze(inner, reason)
        values = node.meta.get("val")
        shapes = [shape_of(node, i) for i in range(len(values))] if isinstance(values, tuple | list) else None
        if shapes is None:
            return frozen(shape_of(node) or [], reason)
        return [frozen(shape or [], reason) for shape in shapes]


def _idle(node: fx.Node) -> bool:
    """Whether the only randomness of an operation is a dropout that is switched off."""
    args = arguments(node)
    return args.get("train") is False or args.get("dropout_p") == 0


def _freeze_different(value: Tensor, axes: Axes, what: str) -> None:
    for i, axis in enumerate(axes):
        if value.shape[i] > 1 and not torch.equal(value, value.narrow(i, 0, 1).expand_as(value)):
            freeze(axis, f"{what} differ along it")


def frozen(shape: list[int], reason: str) -> Axes:
    """Axes of a value that may not be renumbered."""
    return [Units(size, [reason]) for size in shape]


def bend_all(*operands: Axes) -> None:
    """Something not linear happens to each value."""
    for axes in operands:
        for axis in axes:
            bend(axis)


def wrap(dim: int, rank: int) -> int:
    """A dimension that may be counted from the end."""
    return dim % rank if rank else 0


def dimensions(dim: int | list[int] | None, rank: int) -> list[int]:
    """Dimensions that an operation takes together; all if it names none."""
    if dim is None or dim == []:
        return list(range(rank))
    return [wrap(d, rank) for d in ([dim] if isinstance(dim, int) else dim)]


# Operations on each value alone.

SUMS = {"add", "sub", "rsub"}
PRODUCTS = {"mul", "div"}


def broadcast(shapes: list[list[int]]) -> list[int]:
    """Shape of operands after broadcasting."""
    return list(torch.broadcast_shapes(*shapes)) if shapes else []


def join(operands: list[Axes], shape: list[int]) -> Axes:
    """Operands broadcast to a shape: axes of the same place count the same."""
    out: Axes = [Units(size, bent=True) for size in shape]
    for back in range(1, len(shape) + 1):
        there = [axes[-back] for axes in operands if len(axes) >= back and axes[-back].size == shape[-back]]
        for axis in there[1:]:
            unify(there[0], axis)
        if there:
            out[-back] = there[0]
    return out


def _pointwise(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    operands = [trace.axes(operand) for operand in nodes_in(list(args.values()))]
    out = join(operands, shape_of(node) or [])
    operation = name_of(node.target)
    if operation in COPIES or operation == "neg":
        return out
    if operation in SUMS and len(operands) == 2:
        for back, axis in enumerate(reversed(out), 1):
            if any(len(axes) < back or axes[-back].size < axis.size for axes in operands):
                bend(axis)  # the same value is added to all of an axis
    elif operation in PRODUCTS and not (operation == "div" and isinstance(args["other"], fx.Node)):
        for back, axis in enumerate(reversed(out), 1):
            if sum(len(axes) >= back and axes[-back].size == axis.size for axes in operands) > 1:
                bend(axis)
    else:
        bend_all(*operands)
    return out
