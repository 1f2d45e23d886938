"""Axes of layers: linear maps, convolutions, norms, attention, recurrent cells, pooling and reductions (`axes.py`)."""

from torch import fx

from weightspace.symmetry.trace.axes import Args, Axes, AxisTrace, bend_all, broadcast, dimensions, frozen, join, rule
from weightspace.symmetry.trace.graph import RECURRENT, RESHAPES, SPATIAL, name_of, shape_of
from weightspace.symmetry.trace.units import Concat, Product, Term, Units, factor, freeze, unify

SHOWS = {*RESHAPES, "permute", "transpose", "t", "expand", "clone", "_to_copy", "alias"}
"""Operations that show the same values in another shape."""

# Linear maps.


@rule("linear")
def _linear(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs, weight = trace.axes(args["input"]), trace.axes(args["weight"])
    unify(inputs[-1], weight[-1])
    if args["bias"] is not None:
        unify(weight[0], trace.axes(args["bias"])[0])
    return [*inputs[:-1], *weight[:-1]]


@rule("matmul", "mm", "bmm", "mv", "dot")
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
    return [*join(batches, shape), *rows, *columns]


def _origin(node: fx.Node) -> fx.Node:
    """The value that a node shows in another shape."""
    while node.op == "call_function" and name_of(node.target) in SHOWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


@rule("addmm", "baddbmm")
def _addmm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    left, right = (args["mat1"], args["mat2"]) if "mat1" in args else (args["batch1"], args["batch2"])
    return join([trace.axes(args["self"]), _product(trace, left, right)], shape_of(node) or [])


@rule("convolution")
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


@rule("embedding")
def _embedding(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    weight, indices = trace.axes(args["weight"]), trace.axes(args["indices"])
    freeze(weight[0], "rows of a table that are looked up by number")
    return [*indices, weight[1]]


# Normalisation.


@rule("_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    inputs = trace.axes(args["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if args.get(name) is not None:
            unify(inputs[1], trace.axes(args[name])[0])
    bend_all(inputs)
    if not isinstance(node.meta.get("val"), tuple | list):
        return inputs
    statistics = [frozen(shape_of(node, i) or [], "statistics of a norm") for i in (1, 2)]
    return [inputs, *statistics]


@rule("layer_norm", "rms_norm")
def _layer_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs = trace.axes(args["input"])
    for name in ("weight", "bias"):
        if args.get(name) is not None:
            for axis, own in zip(inputs[::-1], trace.axes(args[name])[::-1], strict=False):
                unify(axis, own)
    bend_all(inputs)
    return inputs


@rule("group_norm")
def _group_norm(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    inputs = trace.axes(args["input"])
    _digits(inputs[1], args["num_groups"])
    for name in ("weight", "bias"):
        if args.get(name) is not None:
            unify(inputs[1], trace.axes(args[name])[0])
    bend_all(inputs)
    return inputs


# Operations that take an axis together.


@rule("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin")
@rule("prod", "any", "all", "var", "std", "logsumexp", "linalg_vector_norm")
def _reduction(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    axes = trace.axes(args["self"])
    dims = dimensions(args.get("dim"), len(axes))
    bend_all([axes[dim] for dim in dims] if name_of(node.target) in ("sum", "mean") else axes)
    kept: Axes = [Units(1) if i in dims else axis for i, axis in enumerate(axes)]
    out: Axes = kept if args.get("keepdim") else [axis for i, axis in enumerate(axes) if i not in dims]
    several = isinstance(node.meta.get("val"), tuple | list)
    if name_of(node.target) in ("argmax", "argmin") or (several and len(node.users) > 1):
        for dim in dims:
            freeze(axes[dim], f"{name_of(node.target)} counts along it")
    return [out, out] if several else out


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def _softmax(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    axes = trace.axes(args["self"])
    bend_all(axes)
    return axes


@rule(*SPATIAL)
def _spatial(trace: AxisTrace, node: fx.Node, args: Args) -> Axes | list[Axes]:
    """Pooling and resizing: neighbouring positions are taken together, channel by channel."""
    axes = trace.axes(args["self"] if "self" in args else args["input"])
    several = isinstance(node.meta.get("val"), tuple | list)
    shape = (shape_of(node, 0) if several else shape_of(node)) or []
    out, spatial = list(axes), int(name_of(node.target).removesuffix("_with_indices")[-2])
    for i in range(len(axes) - spatial, len(axes)):
        reason = f"positions seen by {name_of(node.target)}"
        freeze(axes[i], reason)
        out[i] = Units(shape[i], [reason])
    if "max" in name_of(node.target):
        bend_all(axes)
    return [out, [*out]] if several else out


@rule("scaled_dot_product_attention")
def _attention(trace: AxisTrace, node: fx.Node, args: Args) -> Axes:
    query, key, value = (trace.axes(args[name]) for name in ("query", "key", "value"))
    batches = [query[:-2], key[:-2], value[:-2]]
    if args["enable_gqa"] and query[-3].size != key[-3].size:
        repeats = Units(query[-3].size // key[-3].size, bent=True)
        batches[1], batches[2] = ([*axes[:-3], Product((axes[-3], repeats))] for axes in (key, value))
    batch = join(batches, [axis.size for axis in query[:-2]])
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    if args["is_causal"]:
        for axis in (query[-2], key[-2]):
            freeze(axis, "order of a causal attention")
    if args["attn_mask"] is not None:
        join(
            [[*batch, query[-2], key[-2]], trace.axes(args["attn_mask"])],
            [a.size for a in (*batch, query[-2], key[-2])],
        )
    bend_all(query[:-1], key[:-1])
    same = _origin(args["query"]) is _origin(args["key"])
    trace.bases += [("queries and keys", query[-1], same), ("values and output", value[-1], False)]
    return [*batch, query[-2], value[-1]]


@rule(*RECURRENT)
def _recurrent(trace: AxisTrace, node: fx.Node, args: Args) -> list[Axes]:
    if "input" not in args or "batch_first" not in args:
        raise NotImplementedError("of packed sequences is not understood")
    gates = RECURRENT[name_of(node.target)]
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
    bend_all(inputs)
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
