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

from weightspace.symmetry.graph import Graph, arguments, name_of, nodes_in, shape_of
from weightspace.symmetry.units import Concat, Product, Term, Units, bend, factor, freeze, split, unify, view

Axes = list[Term]
Args = dict[str, Any]


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
            self.known[node] = _frozen(shape_of(node) or [], "input of the network")
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
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or operation in COPIES:
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
            known = [] if operand in self.graph.constants else self.known[operand]
            for axis in known:
                for inner in axis if isinstance(axis, list) else [axis]:
                    freeze(inner, reason)
        values = node.meta.get("val")
        shapes = [shape_of(node, i) for i in range(len(values))] if isinstance(values, tuple | list) else None
        if shapes is None:
            return _frozen(shape_of(node) or [], reason)
        return [_frozen(shape or [], reason) for shape in shapes]


def _freeze_different(value: Tensor, axes: Axes, what: str) -> None:
    for i, axis in enumerate(axes):
        if value.shape[i] > 1 and not torch.equal(value, value.narrow(i, 0, 1).expand_as(value)):
            freeze(axis, f"{what} differ along it")


def _frozen(shape: list[int], reason: str) -> Axes:
    return [Units(size, [reason]) for size in shape]


def _bend_all(*operands: Axes) -> None:
    for axes in operands:
        for axis in axes:
            bend(axis)


def _wrap(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _dims(dim: int | list[int] | None, rank: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(rank))
    return [_wrap(d, rank) for d in ([dim] if isinstance(dim, int) else dim)]


# Operations on each value alone.

COPIES = {"alias", "detach", "clone", "_to_copy", "lift_fresh_copy", "contiguous", "dropout", "_assert_tensor_metadata"}
SUMS = {"add", "sub", "rsub"}
PRODUCTS = {"mul", "div"}


def broadcast(shapes: list[list[int]]) -> list[int]:
    """Shape of operands after broadcasting."""
    return list(torch.broadcast_shapes(*shapes)) if shapes else []


def _join(operands: list[Axes], shape: list[int]) -> Axes:
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
    out = _join(operands, shape_of(node) or [])
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
        _bend_all(*operands)
    return out


# Linear maps.


def _linear(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs, weight = trace.axes(args["input"]), trace.axes(args["weight"])
    unify(inputs[-1], weight[-1])
    if args["bias"] is not None:
        unify(weight[0], trace.axes(args["bias"])[0])
    return [*inputs[:-1], *weight[:-1]]


def _matmul(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    return _product(
        trace, args["self"], next(args[name] for name in ("other", "mat2", "vec", "tensor") if name in args)
    )


def _product(trace: AxisTrace, left: fx.Node, right: fx.Node) -> Axes:
    a, b = trace.axes(left), trace.axes(right)
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else []
    inner = b[-2] if len(b) > 1 else b[-1]
    unify(a[-1], inner)
    batches = [a[:-2], b[:-2]]
    shape = broadcast([[axis.size for axis in axes] for axes in batches])
    weights = {*trace.graph.tensors, *trace.graph.constants}
    if not weights & {_origin(left), _origin(right)}:
        same = _origin(left) is _origin(right)
        trace.bases += [("a product of activations", axis, same) for axis in [inner, *columns]]
    return [*_join(batches, shape), *rows, *columns]


def _origin(node: fx.Node) -> fx.Node:
    """The value that a node shows in another shape."""
    while node.op == "call_function" and name_of(node.target) in SHOWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _addmm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    left, right = (args["mat1"], args["mat2"]) if "mat1" in args else (args["batch1"], args["batch2"])
    return _join([trace.axes(args["self"]), _product(trace, left, right)], shape_of(node) or [])


def _convolution(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs, weight, groups = trace.axes(args["input"]), trace.axes(args["weight"]), args["groups"]
    transposed, spatial = args["transposed"], len(weight) - 2
    channel = len(inputs) - spatial - 1
    # A grouped map multiplies its first weight axis by the groups, and shares its second among them.
    outer, shared = _digits(weight[0], groups), weight[1]
    there = _digits(inputs[channel], groups)
    unify(there[0], outer[0])
    unify(there[1], outer[1] if transposed else shared)
    out: Term = Product((outer[0], shared)) if transposed else weight[0]
    if args["bias"] is not None:
        unify(trace.axes(args["bias"])[0], out)
    shape = shape_of(node) or []
    places = []
    for i, (axis, kernel) in enumerate(zip(inputs[channel + 1 :], weight[2:], strict=True)):
        freeze(kernel, "positions of a convolution kernel")
        moves = [args[name][i % len(args[name])] for name in ("stride", "padding", "output_padding")]
        if kernel.size == 1 and moves[0] == 1 and not any(moves[1:]):
            places.append(axis)  # a kernel of one value sees each position alone
        else:
            freeze(axis, "positions seen by a convolution")
            places.append(Units(shape[channel + 1 + i], ["positions seen by a convolution"]))
    return [*inputs[:channel], out, *places]


def _digits(axis: Term, slow: int) -> tuple[Term, Term]:
    found = factor(axis, slow)
    if found is None:
        reason = f"its {axis.size} indices are no {slow} equal groups"
        freeze(axis, reason)
        return Units(slow, [reason]), Units(axis.size // slow, [reason])
    return found


def _embedding(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    weight, indices = trace.axes(args["weight"]), trace.axes(args["indices"])
    freeze(weight[0], "rows of a table that are looked up by number")
    return [*indices, weight[1]]


# Normalisation.


def _batch_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    inputs = trace.axes(args["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if args.get(name) is not None:
            unify(inputs[1], trace.axes(args[name])[0])
    _bend_all(inputs)
    if not isinstance(node.meta.get("val"), tuple | list):
        return inputs
    return [inputs, *([Units(s, ["statistics of a norm"]) for s in shape_of(node, i) or []] for i in (1, 2))]


def _layer_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs = trace.axes(args["input"])
    for name in ("weight", "bias"):
        if args.get(name) is not None:
            for axis, own in zip(inputs[::-1], trace.axes(args[name])[::-1], strict=False):
                unify(axis, own)
    _bend_all(inputs)
    return inputs


def _group_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs = trace.axes(args["input"])
    _digits(inputs[1], args["num_groups"])
    for name in ("weight", "bias"):
        if args.get(name) is not None:
            unify(inputs[1], trace.axes(args[name])[0])
    _bend_all(inputs)
    return inputs


# Views: the same values in another order or shape.


def _view(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    return view(trace.axes(args["self"]), shape_of(node) or [])


def _permute(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    return [axes[_wrap(d, len(axes))] for d in args["dims"]]


def _transpose(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = list(trace.axes(args["self"]))
    if len(axes) > 1:
        i, j = (_wrap(args.get(name, d), len(axes)) for name, d in (("dim0", 0), ("dim1", 1)))
        axes[i], axes[j] = axes[j], axes[i]
    return axes


def _expand(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    return _join([trace.axes(args["self"])], shape_of(node) or [])


def _repeat(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    axes = [Units(1) for _ in range(len(args["repeats"]) - len(axes))] + axes
    return [Product((Units(count, bent=True), axis)) for count, axis in zip(args["repeats"], axes, strict=True)]


def _repeat_interleave(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, count = list(trace.axes(args["self"])), args["repeats"]
    if not isinstance(count, int) or args["dim"] is None:
        raise NotImplementedError("with counts of its own is not understood")
    dim = _wrap(args["dim"], len(axes))
    axes[dim] = Product((axes[dim], Units(count, bent=True)))
    return axes


def _cat(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    operands = [axes for axes in map(trace.axes, args["tensors"]) if len(axes) == len(shape_of(node) or [])]
    dim = _wrap(args["dim"], len(operands[0]))
    for axes in operands[1:]:
        for i, axis in enumerate(axes):
            if i != dim:
                unify(operands[0][i], axis)
    out = list(operands[0])
    out[dim] = Concat(tuple(axes[dim] for axes in operands))
    return out


def _stack(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    operands = [trace.axes(tensor) for tensor in args["tensors"]]
    out = _join(operands, [axis.size for axis in operands[0]])
    out.insert(_wrap(args["dim"], len(out) + 1), Concat(tuple(Units(1) for _ in operands)))
    return out


def _narrowed(axes: Axes, dim: int, start: int, length: int) -> Axes:
    tail = split(axes[dim], start)[1]
    return [*axes[:dim], split(tail, length)[0], *axes[dim + 1 :]]


def _slice(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, shape = trace.axes(args["self"]), shape_of(node) or []
    dim = _wrap(args["dim"], len(axes))
    size, length = axes[dim].size, shape[dim]
    if args["step"] != 1:
        freeze(axes[dim], "a slice with a step leaves indices out")
        return [*axes[:dim], Units(length, ["a slice with a step leaves indices out"]), *axes[dim + 1 :]]
    start = args["start"] or 0
    return _narrowed(axes, dim, max(0, start + size if start < 0 else min(start, size)), length)


def _select(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    dim = _wrap(args["dim"], len(axes))
    source = args["self"].args[0] if name_of(args["self"].target) == "getitem" else None
    if source in trace.stacked and args["self"].args[1] > 0 and dim == 0:
        return [axes[1], trace.stacked[source][args["index"]]]
    narrowed = _narrowed(axes, dim, args["index"] % axes[dim].size, 1)
    return [*narrowed[:dim], *narrowed[dim + 1 :]]


def _split(trace: AxisTrace, node: fx.Node, args: Args) -> list[Axes]:
    axes = trace.axes(args["self"])
    dim = _wrap(args["dim"], len(axes))
    out, start = [], 0
    for i in range(len(node.meta["val"])):
        length = (shape_of(node, i) or [])[dim] if name_of(node.target) != "unbind" else 1
        part = _narrowed(axes, dim, start, length)
        out.append(part if name_of(node.target) != "unbind" else [*part[:dim], *part[dim + 1 :]])
        start += length
    return out


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
    _bend_all(axes)
    return axes


def _reorder(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    """The order along some axes matters; along the others nothing happens."""
    axes = trace.axes(args["self"])
    names = ("dims", "dim", "axis")
    dims = _dims(next((args[name] for name in names if name in args), [-2, -1]), len(axes))
    for dim in dims:
        freeze(axes[dim], f"{name_of(node.target)} depends on the order along it")
    return list(axes)


def _index(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes, indices = trace.axes(args["self"]), args["indices"]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any("bool" in str(index.meta["val"].dtype) for index in nodes_in(indices)):
        raise NotImplementedError("with a mask is not understood")
    for axis in [axes[dim] for dim in dims] + [axis for index in nodes_in(indices) for axis in trace.axes(index)]:
        freeze(axis, "looked up by number")
    shape = broadcast([shape_of(index) or [] for index in nodes_in(indices)])
    found = _frozen(shape, "looked up by number")
    rest = [axis for dim, axis in enumerate(axes) if dim not in dims]
    together = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if together else 0
    return [*rest[:at], *found, *rest[at:]]


# Operations that take an axis together.


def _reduction(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    axes = trace.axes(args["self"])
    dims = _dims(args.get("dim"), len(axes))
    _bend_all([axes[dim] for dim in dims] if name_of(node.target) in ("sum", "mean") else axes)
    kept: Axes = [Units(1) if i in dims else axis for i, axis in enumerate(axes)]
    out = kept if args.get("keepdim") else [axis for i, axis in enumerate(axes) if i not in dims]
    several = isinstance(node.meta.get("val"), tuple | list)
    if name_of(node.target) in ("argmax", "argmin") or (several and len(node.users) > 1):
        for dim in dims:
            freeze(axes[dim], f"{name_of(node.target)} counts along it")
    return [out, out] if several else out


def _softmax(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    _bend_all(axes)
    return axes


def _spatial(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    """Pooling and resizing: neighbouring positions are taken together, channel by channel."""
    axes = trace.axes(args["self"] if "self" in args else args["input"])
    several = isinstance(node.meta.get("val"), tuple | list)
    shape = (shape_of(node, 0) if several else shape_of(node)) or []
    out = list(axes)
    lead = 2 if "3d" not in name_of(node.target) else 3
    spatial = {"1": 1, "2": 2, "3": 3}.get(name_of(node.target).partition("d")[0][-1:], len(axes) - lead)
    if name_of(node.target).startswith("upsample"):
        spatial = len(axes) - 2
    for i in range(len(axes) - spatial, len(axes)):
        reason = f"positions seen by {name_of(node.target)}"
        freeze(axes[i], reason)
        out[i] = Units(shape[i], [reason])
    if "max" in name_of(node.target):
        _bend_all(axes)
    return [out, [*out]] if several else out


def _attention(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    query, key, value = (trace.axes(args[name]) for name in ("query", "key", "value"))
    batches = [query[:-2], key[:-2], value[:-2]]
    if args["enable_gqa"] and query[-3].size != key[-3].size:
        repeats = Units(query[-3].size // key[-3].size, bent=True)
        batches[1], batches[2] = ([*axes[:-3], Product((axes[-3], repeats))] for axes in (key, value))
    batch = _join(batches, [axis.size for axis in query[:-2]])
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    if args["is_causal"]:
        for axis in (query[-2], key[-2]):
            freeze(axis, "order of a causal attention")
    if args["attn_mask"] is not None:
        _join(
            [[*batch, query[-2], key[-2]], trace.axes(args["attn_mask"])],
            [a.size for a in (*batch, query[-2], key[-2])],
        )
    _bend_all(query[:-1], key[:-1])
    same = _origin(args["query"]) is _origin(args["key"])
    trace.bases += [("queries and keys", query[-1], same), ("values and output", value[-1], False)]
    return [*batch, query[-2], value[-1]]


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(trace: AxisTrace, node: fx.Node, args: Args) -> list[Axes]:
    if "input" not in args or "batch_first" not in args:
        raise NotImplementedError("of packed sequences is not understood")
    gates = GATES[name_of(node.target)]
    inputs = trace.axes(args["input"])
    states = args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]
    layers, directions = args["num_layers"], 2 if args["bidirectional"] else 1
    each = len(args["params"]) // (layers * directions)
    if each not in (2, 4):
        raise NotImplementedError("with projections is not understood")
    freeze(inputs[1 if args["batch_first"] else 0], f"order of the sequence of {name_of(node.target)}")
    sequence, hidden = inputs[-1], list[Term]()
    for layer in range(layers):
        outs: list[Term] = []
        for direction in range(directions):
            first = (layer * directions + direction) * each
            tensors = [trace.axes(tensor) for tensor in args["params"][first : first + each]]
            size = tensors[1][1].size
            units = Units(size, bent=True)
            for axes in tensors:
                unify(axes[0], Product((Units(gates, ["gates of a recurrent cell"]), units)))
            unify(tensors[0][1], sequence)
            unify(tensors[1][1], units)
            outs.append(units)
        hidden += outs
        sequence = outs[0] if directions == 1 else Concat(tuple(outs))
    _bend_all(inputs)
    layer_axis = Units(len(hidden), ["layers of a stacked state"])
    batch = inputs[0 if args["batch_first"] else 1] if len(inputs) > 2 else Units(1)
    picked = [user for user in node.users if user.args[1] != 0]
    apart = all(name_of(use.target) == "select" and use.args[1] == 0 for state in picked for use in state.users)
    given = [trace.axes(state) for state in states if not _uniform(trace, state)]
    if given or not apart:  # one axis counts the units of all layers
        for other in hidden[1:]:
            unify(hidden[0], other)
        for axes in given:
            unify(axes[-1], hidden[0])
            freeze(axes[0], *layer_axis.reasons)
    trace.stacked[node] = hidden
    return [[*inputs[:-1], sequence], *([[layer_axis, batch, hidden[0]]] * len(states))]


def _uniform(trace: AxisTrace, node: fx.Node) -> bool:
    value = trace.graph.constants.get(node)
    return value is not None and bool((value == value.flatten()[0]).all())


RULES: dict[str, Callable[[AxisTrace, fx.Node, Args], Axes | list[Axes]]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "convolution": _convolution,
    "embedding": _embedding,
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "instance_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten"), _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "expand": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "cat": _cat,
    "stack": _stack,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _split),
    "constant_pad_nd": _pad,
    **dict.fromkeys(("flip", "roll", "cumsum", "cumprod", "tril", "triu"), _reorder),
    "index": _index,
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "var", "std"), _reduction),
    **dict.fromkeys(("logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "log_softmax"), _softmax),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), _spatial),
    **dict.fromkeys((f"max_pool{n}d_with_indices" for n in (2, 3)), _spatial),
    **dict.fromkeys(
        (f"{lead}adaptive_{kind}_pool{n}d" for lead in ("", "_") for kind in ("avg", "max") for n in (1, 2, 3)),
        _spatial,
    ),
    **dict.fromkeys(
        (
            f"upsample_{kind}"
            for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
        ),
        _spatial,
    ),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(GATES, _recurrent),
}
SHOWS = {
    "view",
    "reshape",
    "_unsafe_view",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "t",
    "expand",
    "clone",
    "_to_copy",
    "alias",
}
WHOLE = (
    {"linear", "matmul", "layer_norm", "rms_norm", "group_norm", "instance_norm", "scaled_dot_product_attention"}
    | set(GATES)
    | {name for name in RULES if name.startswith("upsample")}
)
"""Composite operations that have rules of their own and are not decomposed."""
