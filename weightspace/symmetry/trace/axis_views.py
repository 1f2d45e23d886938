"""Axes of views: the same values in another order or shape, side by side or in part (`axes.py`)."""

from torch import fx

from weightspace.symmetry.trace.axes import (
    Args,
    Axes,
    AxisTrace,
    bend_all,
    broadcast,
    dimensions,
    frozen,
    join,
    rule,
    wrap,
)
from weightspace.symmetry.trace.graph import RESHAPES, name_of, nodes_in, shape_of
from weightspace.symmetry.trace.units import Concat, Product, Units, freeze, split, unify, view


@rule(*RESHAPES)
def _view(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    return view(trace.axes(args["self"]), shape_of(node) or [])


@rule("permute")
def _permute(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    return [axes[wrap(d, len(axes))] for d in args["dims"]]


@rule("transpose", "t")
def _transpose(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = list(trace.axes(args["self"]))
    if len(axes) > 1:
        i, j = (wrap(args.get(name, d), len(axes)) for name, d in (("dim0", 0), ("dim1", 1)))
        axes[i], axes[j] = axes[j], axes[i]
    return axes


@rule("expand")
def _expand(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    return join([trace.axes(args["self"])], shape_of(node) or [])


@rule("repeat")
def _repeat(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    axes = [Units(1) for _ in range(len(args["repeats"]) - len(axes))] + axes
    return [Product((Units(count, bent=True), axis)) for count, axis in zip(args["repeats"], axes, strict=True)]


@rule("repeat_interleave")
def _repeat_interleave(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, count = list(trace.axes(args["self"])), args["repeats"]
    if not isinstance(count, int) or args["dim"] is None:
        raise NotImplementedError("with counts of its own is not understood")
    dim = wrap(args["dim"], len(axes))
    axes[dim] = Product((axes[dim], Units(count, bent=True)))
    return axes


@rule("cat")
def _cat(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    operands = [axes for axes in map(trace.axes, args["tensors"]) if len(axes) == len(shape_of(node) or [])]
    dim = wrap(args["dim"], len(operands[0]))
    for axes in operands[1:]:
        for i, axis in enumerate(axes):
            if i != dim:
                unify(operands[0][i], axis)
    out = list(operands[0])
    out[dim] = Concat(tuple(axes[dim] for axes in operands))
    return out


@rule("stack")
def _stack(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    operands = [trace.axes(tensor) for tensor in args["tensors"]]
    out = join(operands, [axis.size for axis in operands[0]])
    out.insert(wrap(args["dim"], len(out) + 1), Concat(tuple(Units(1) for _ in operands)))
    return out


def _narrowed(axes: Axes, dim: int, start: int, length: int) -> Axes:
    tail = split(axes[dim], start)[1]
    return [*axes[:dim], split(tail, length)[0], *axes[dim + 1 :]]


@rule("slice")
def _slice(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, shape = trace.axes(args["self"]), shape_of(node) or []
    dim = wrap(args["dim"], len(axes))
    size, length = axes[dim].size, shape[dim]
    if args["step"] != 1:
        freeze(axes[dim], "a slice with a step leaves indices out")
        return [*axes[:dim], Units(length, ["a slice with a step leaves indices out"]), *axes[dim + 1 :]]
    start = args["start"] or 0
    return _narrowed(axes, dim, max(0, start + size if start < 0 else min(start, size)), length)


@rule("select")
def _select(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    dim = wrap(args["dim"], len(axes))
    source = args["self"].args[0] if name_of(args["self"].target) == "getitem" else None
    if source in trace.stacked and args["self"].args[1] > 0 and dim == 0:
        return [axes[1], trace.stacked[source][args["index"]]]
    narrowed = _narrowed(axes, dim, args["index"] % axes[dim].size, 1)
    return [*narrowed[:dim], *narrowed[dim + 1 :]]


@rule("split", "split_with_sizes", "chunk", "unbind")
def _split(trace: AxisTrace, node: fx.Node, args: Args) -> list[Axes]:
    axes = trace.axes(args["self"])
    dim = wrap(args["dim"], len(axes))
    out, start = [], 0
    for i in range(len(node.meta["val"])):
        length = (shape_of(node, i) or [])[dim] if name_of(node.target) != "unbind" else 1
        part = _narrowed(axes, dim, start, length)
        out.append(part if name_of(node.target) != "unbind" else [*part[:dim], *part[dim + 1 :]])
        start += length
    return out


@rule("constant_pad_nd")
def _pad(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, pad = list(trace.axes(args["self"])), args["pad"]
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before or after:
            inner = axes[-1 - i]
            inner = split(inner, inner.size + after)[0] if after < 0 else inner
            inner = split(inner, -before)[1] if before < 0 else inner
            ends = Units(max(before, 0), bent=True), Units(max(after, 0), bent=True)
            axes[-1 - i] = Concat((ends[0], inner, ends[1]))
    bend_all(axes)
    return axes


@rule("flip", "roll", "cumsum", "cumprod", "tril", "triu")
def _reorder(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    """The order along some axes matters; along the others nothing happens."""
    axes = trace.axes(args["self"])
    names = ("dims", "dim", "axis")
    dims = dimensions(next((args[name] for name in names if name in args), [-2, -1]), len(axes))
    for dim in dims:
        freeze(axes[dim], f"{name_of(node.target)} depends on the order along it")
    return list(axes)


@rule("index")
def _index(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, indices = trace.axes(args["self"]), args["indices"]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any("bool" in str(index.meta["val"].dtype) for index in nodes_in(indices)):
        raise NotImplementedError("with a mask is not understood")
    for axis in [axes[dim] for dim in dims] + [axis for index in nodes_in(indices) for axis in trace.axes(index)]:
        freeze(axis, "looked up by number")
    shape = broadcast([shape_of(index) or [] for index in nodes_in(indices)])
    found = frozen(shape, "looked up by number")
    rest = [axis for dim, axis in enumerate(axes) if dim not in dims]
    together = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if together else 0
    return [*rest[:at], *found, *rest[at:]]
