"""Scales of layers: linear maps, convolutions, norms, attention, recurrent cells, pooling and reductions.

One rule for each operation, as in `homogeneity.py`.
"""

from collections.abc import Iterable

import numpy as np
from torch import fx

from weightspace.symmetry.trace.exponents import ZERO, Forms
from weightspace.symmetry.trace.graph import RECURRENT, SPATIAL, name_of, shape_of
from weightspace.symmetry.trace.homogeneity import Args, Scale, ScaleTrace, broadcast, moved, reshaped, rule, without

# Linear maps: values that are multiplied and summed over common axes.


def _contract(trace: ScaleTrace, a: Scale, b: Scale, summed: Iterable[int], added: tuple[Scale, ...] = ()) -> Scale:
    """Scale of a product of two values, given on common axes, summed over some; then `added` is added."""
    product_, summed = trace.plus(a, b), set(summed)
    inner = {key: forms for key, forms in product_.items() if summed & set(key)}
    out = {key: forms for key, forms in product_.items() if not summed & set(key)}
    axes = sorted(set().union(*inner))
    if axes:  # what varies along the sum must cancel, wherever it comes from
        total: Forms = np.full([1] * len(axes), ZERO)
        for key, forms in inner.items():
            shape = [forms.shape[key.index(axis)] if axis in key else 1 for axis in axes]
            total = trace.system.add(total, forms.reshape(shape))
        trace.system.require_zero(total)
    for scale in added:
        trace.equal(out, scale)
    return out


@rule("linear")
def _linear(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rank = len(shape_of(args["input"]) or [])
    weight = moved(trace.of(args["weight"]), {0: rank, 1: rank - 1})
    bias = [moved(trace.of(args["bias"]), {0: rank})] if args["bias"] is not None else []
    out = _contract(trace, trace.of(args["input"]), weight, [rank - 1], tuple(bias))
    return moved(out, {axis: min(axis, rank - 1) for axis in range(rank + 1)})


@rule("matmul", "mm", "bmm")
def _matmul(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    right = next(args[name] for name in ("other", "mat2", "vec", "tensor") if name in args)
    return _matrices(trace, args["self"], right, shape_of(node) or [])


def _matrices(trace: ScaleTrace, left: fx.Node, right: fx.Node, shape: list[int]) -> Scale | None:
    a, b = shape_of(left) or [], shape_of(right) or []
    if min(len(a), len(b)) < 2:
        return None
    lead = len(shape) - 2  # axes: batches, row, column, summed
    where = [{axis: axis + lead - len(s) + 2 for axis in range(len(s) - 2)} for s in (a, b)]
    where[0] |= {len(a) - 2: lead, len(a) - 1: lead + 2}
    where[1] |= {len(b) - 2: lead + 2, len(b) - 1: lead + 1}
    sizes = [*shape, a[-1]]
    both = [
        {key: np.broadcast_to(f, [sizes[axis] for axis in key]) for key, f in moved(trace.of(x), w).items()}
        for x, w in zip((left, right), where, strict=True)
    ]
    return _contract(trace, both[0], both[1], [lead + 2])


@rule("addmm", "baddbmm")
def _addmm(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    left, right = (args["mat1"], args["mat2"]) if "mat1" in args else (args["batch1"], args["batch2"])
    shape = shape_of(node) or []
    out = _matrices(trace, left, right, shape)
    return out if out is None else trace.equal(out, broadcast(trace, args["self"], shape))


@rule("convolution")
def _convolution(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    into, shape = shape_of(args["input"]) or [], shape_of(args["weight"]) or []
    groups, rank, spatial = args["groups"], len(into), len(shape) - 2
    channel = rank - spatial - 1
    inputs = trace.none_along(trace.of(args["input"]), range(channel + 1, rank))
    weight = trace.none_along(trace.of(args["weight"]), range(2, len(shape)))
    digits = [groups, into[channel] // groups]
    inputs = reshaped(trace, inputs, into[: channel + 1], [*into[:channel], *digits])
    weight = reshaped(trace, weight, shape[:2], [groups, shape[0] // groups, shape[1]])
    # Axes: those before the channels, groups, channels of a group that are summed, channels of a group that come out.
    summed, made = (channel + 1, channel + 2) if not args["transposed"] else (channel + 2, channel + 1)
    if args["transposed"]:
        inputs = moved(inputs, {axis: axis if axis <= channel else summed for axis in range(channel + 2)})
        weight = moved(weight, {0: channel, 1: summed, 2: made})
    else:
        weight = moved(weight, {0: channel, 1: made, 2: summed})
    out = _contract(trace, inputs, weight, [summed])
    out = moved(out, {axis: axis if axis <= channel else channel + 1 for axis in range(channel + 3) if axis != summed})
    total = (shape_of(node) or [])[: channel + 1]
    out = reshaped(trace, out, [*total[:channel], groups, total[channel] // groups], total)
    if args["bias"] is not None:
        trace.equal(out, moved(trace.of(args["bias"]), {0: channel}))
    return out


@rule("embedding")
def _embedding(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rest = trace.none_along(trace.of(args["weight"]), [0])
    return moved(rest, {1: len(shape_of(node) or []) - 1})


# Normalisation.


@rule("_native_batch_norm_legit_no_training")
def _batch_norm(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | list[Scale]:
    """Exact up to the small constant under the root, unless only signs change."""
    inputs = trace.none_along(trace.of(args["input"]), [a for a in range(len(shape_of(args["input"]) or [])) if a != 1])
    if args.get("running_mean") is not None:
        trace.equal(inputs, moved(trace.of(args["running_mean"]), {0: 1}))
        trace.equal(trace.times(inputs, 2), moved(trace.of(args["running_var"]), {0: 1}))
    elif trace.kind == "positive":
        trace.none(inputs)
    out = _affine(trace, inputs if trace.kind == "sign" else {}, args, 1)
    return [out, {}, {}] if isinstance(node.meta.get("val"), tuple | list) else out


def _affine(trace: ScaleTrace, normalised: Scale, args: Args, axis: int) -> Scale:
    """Scale behind weight and bias of a norm, whose first axis is the given one of the values."""
    out = normalised
    if args.get("weight") is not None:
        weight = trace.of(args["weight"])
        out = trace.plus(out, moved(weight, {a: a + axis for key in weight for a in key}))
    if args.get("bias") is not None:
        bias = trace.of(args["bias"])
        trace.equal(out, moved(bias, {a: a + axis for key in bias for a in key}))
    return out


@rule("layer_norm", "rms_norm")
def _layer_norm(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    inputs = trace.of(args["input"])
    if name_of(node.target) != "rms_norm" or trace.kind == "positive":
        trace.none(inputs)
        inputs = {}
    return _affine(trace, inputs, args, len(shape_of(node) or []) - len(args["normalized_shape"]))


@rule("group_norm", "instance_norm")
def _group_norm(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    trace.none(trace.of(args["input"]))
    return _affine(trace, {}, args, 1)


# Operations that take an axis together.


@rule("sum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm")
def _reduction(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | list[Scale] | None:
    rank, operation = len(shape_of(args["self"]) or []), name_of(node.target)
    dims = args.get("dim")
    axes = (
        list(range(rank))
        if dims is None or dims == []
        else [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
    )
    if operation == "linalg_vector_norm" and trace.kind == "sign" and args["ord"] == 2:
        return {}
    if operation not in ("sum", "mean") and trace.kind == "sign":
        return None
    scale = trace.none_along(trace.of(args["self"]), axes)
    out = scale if args.get("keepdim") else without(trace, scale, axes, rank)
    return [out, {}] if isinstance(node.meta.get("val"), tuple | list) else out


@rule(*SPATIAL)
def _spatial(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | list[Scale] | None:
    several = isinstance(node.meta.get("val"), tuple | list)
    before = shape_of(args["self"] if "self" in args else args["input"]) or []
    after = (shape_of(node, 0) if several else shape_of(node)) or []
    if "max" in name_of(node.target) and trace.kind == "sign":
        trace.none(trace.of(args["self"]))
        return [{}, {}] if several else {}
    scale = trace.of(args["self"] if "self" in args else args["input"])
    moved = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b or axis > 1]
    out = trace.none_along(scale, moved)
    return [out, {}] if several else out


@rule("scaled_dot_product_attention")
def _attention(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    shape = shape_of(args["query"]) or []
    rank, heads = len(shape), len(shape) - 3
    query, key, value = (trace.of(args[name]) for name in ("query", "key", "value"))
    repeats = shape[heads] // (shape_of(args["key"]) or [])[heads] if args["enable_gqa"] else 1
    shared = [*shape[:heads], shape[heads] // repeats]
    if rank < 3 or any((shape_of(args[name]) or [])[: rank - 2] != shared for name in ("key", "value")):
        return None  # broadcast
    if repeats > 1:
        key, value = (
            {k: np.repeat(f, repeats, k.index(heads)) if heads in k else f for k, f in scale.items()}
            for scale in (key, value)
        )
    if args["attn_mask"] is not None:
        trace.none(trace.of(args["attn_mask"]))
    # Axes: batches, queries, values of a head, keys.
    lead = {axis: axis for axis in range(rank - 2)}
    scores = _contract(trace, query, moved(key, lead | {rank - 2: rank, rank - 1: rank - 1}), [rank - 1])
    trace.none(scores)
    return _contract(trace, {}, moved(value, lead | {rank - 2: rank, rank - 1: rank - 1}), [rank])


CANDIDATE = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}
"""Which of the maps of a cell makes the candidate, the only one that is not read through a sigmoid."""


@rule(*RECURRENT)
def _recurrent(trace: ScaleTrace, node: fx.Node, args: Args) -> list[Scale] | None:
    operation = name_of(node.target)
    if "input" not in args or "batch_first" not in args:
        return None
    states = args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]
    trace.none(*(trace.of(state) for state in states))
    zero = all(state in trace.graph.constants and not trace.graph.constants[state].any() for state in states)
    scales = zero and (trace.kind == "positive") == (operation == "rnn_relu")
    gates, candidate = RECURRENT[operation], CANDIDATE[operation]
    layers, directions = args["num_layers"], 2 if args["bidirectional"] else 1
    each = len(args["params"]) // (layers * directions)
    last = len(shape_of(args["input"]) or []) - 1
    if each not in (2, 4):
        return None
    trace.none({key: forms for key, forms in trace.of(args["input"]).items() if key != (last,)})
    sequence, hidden = trace.of(args["input"]), list[Forms]()
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            first = (layer * directions + direction) * each
            tensors = [trace.of(tensor) for tensor in args["params"][first : first + each]]
            size = (shape_of(args["params"][first + 1]) or [])[1]
            units = trace.system.unknowns(size) if scales else np.zeros(size, dtype=np.int64)
            rows = np.zeros(gates * size, dtype=np.int64)
            rows[candidate * size : (candidate + 1) * size] = units
            for scale in tensors:
                trace.equal({(0,): rows}, {key: forms for key, forms in scale.items() if key == (0,)})
            read: Scale = {(1,): sequence[last,]} if (last,) in sequence else {}
            trace.equal(trace.times(read, -1), {k: f for k, f in tensors[0].items() if k == (1,)})
            trace.equal({(1,): trace.system.times(units, -1)}, {k: f for k, f in tensors[1].items() if k == (1,)})
            outs.append(units)
        hidden += outs
        sequence = {(last,): np.concatenate(outs)}
    state: Scale = {(0, last): np.stack(hidden)}
    return [sequence, *[state for _ in states]]
