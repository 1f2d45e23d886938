"""Scales of views: the same values in another order or shape, side by side or in part (`homogeneity.py`)."""

import numpy as np
from torch import fx

from weightspace.symmetry.trace.graph import RESHAPES, name_of, nodes_in, shape_of
from weightspace.symmetry.trace.homogeneity import Args, Scale, ScaleTrace, broadcast, moved, reshaped, rule, without


@rule(*RESHAPES)
def _view(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    return reshaped(trace, trace.of(args["self"]), shape_of(args["self"]) or [], shape_of(node) or [])


@rule("permute")
def _permute(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rank = len(args["dims"])
    return moved(trace.of(args["self"]), {axis % rank: i for i, axis in enumerate(args["dims"])})


@rule("transpose", "t")
def _transpose(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rank = max(len(shape_of(node) or []), 1)
    i, j = (args.get(name, axis) % rank for name, axis in (("dim0", 0), ("dim1", 1)))
    return moved(trace.of(args["self"]), {axis: {i: j, j: i}.get(axis, axis) for axis in range(rank)})


@rule("expand")
def _expand(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    return broadcast(trace, args["self"], shape_of(node) or [])


@rule("repeat")
def _repeat(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    lead = len(args["repeats"]) - len(shape_of(args["self"]) or [])
    scale = moved(trace.of(args["self"]), {axis: axis + lead for axis in range(len(args["repeats"]))})
    return {key: np.tile(forms, [args["repeats"][axis] for axis in key]) for key, forms in scale.items()}


@rule("repeat_interleave")
def _repeat_interleave(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    if not isinstance(args["repeats"], int) or args["dim"] is None:
        return None
    dim = args["dim"] % len(shape_of(node) or [])
    scale = trace.of(args["self"])
    return {k: np.repeat(f, args["repeats"], k.index(dim)) if dim in k else f for k, f in scale.items()}


def _joined(trace: ScaleTrace, scales: list[Scale], lengths: list[int], dim: int) -> Scale:
    """Scale of values behind each other along one axis; along the others they are scaled alike."""
    out: Scale = {}
    for key in set().union(*scales):
        if dim not in key:
            for scale in scales[1:]:
                trace.equal(
                    {k: f for k, f in scales[0].items() if k == key}, {k: f for k, f in scale.items() if k == key}
                )
            out |= {k: f for k, f in scales[0].items() if k == key}
            continue
        at = key.index(dim)
        example = next(scale[key] for scale in scales if key in scale)
        parts = []
        for scale, length in zip(scales, lengths, strict=True):
            shape = [*example.shape[:at], length, *example.shape[at + 1 :]]
            parts.append(scale.get(key, np.zeros(shape, dtype=np.int64)))
        out[key] = np.concatenate(parts, at)
    return out


@rule("cat")
def _cat(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rank = len(shape_of(node) or [])
    dim = args["dim"] % rank
    tensors = [tensor for tensor in args["tensors"] if len(shape_of(tensor) or []) == rank]
    lengths = [(shape_of(tensor) or [])[dim] for tensor in tensors]
    return _joined(trace, [trace.of(tensor) for tensor in tensors], lengths, dim)


@rule("stack")
def _stack(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    rank = len(shape_of(node) or [])
    dim = args["dim"] % rank
    where = {axis: axis + (axis >= dim) for axis in range(rank)}
    parts = [moved(trace.of(tensor), where) for tensor in args["tensors"]]
    for part in parts[1:]:
        trace.equal(parts[0], part)
    return parts[0]


def _narrowed(scale: Scale, dim: int, index: slice) -> Scale:
    return {
        key: forms[tuple(index if axis == dim else slice(None) for axis in key)] if dim in key else forms
        for key, forms in scale.items()
    }


@rule("slice")
def _slice(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    dim = args["dim"] % len(shape_of(node) or [])
    return _narrowed(trace.of(args["self"]), dim, slice(args["start"], args["end"], args["step"]))


@rule("select")
def _select(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale:
    shape = shape_of(args["self"]) or []
    dim = args["dim"] % len(shape)
    index = args["index"] % shape[dim]
    return without(trace, _narrowed(trace.of(args["self"]), dim, slice(index, index + 1)), [dim], len(shape))


@rule("split", "split_with_sizes", "chunk", "unbind")
def _split(trace: ScaleTrace, node: fx.Node, args: Args) -> list[Scale]:
    rank = len(shape_of(args["self"]) or [])
    dim, unbound = args["dim"] % rank, name_of(node.target) == "unbind"
    parts, start = list[Scale](), 0
    for i in range(len(node.meta["val"])):
        end = start + (1 if unbound else (shape_of(node, i) or [])[dim])
        part = _narrowed(trace.of(args["self"]), dim, slice(start, end))
        parts.append(without(trace, part, [dim], rank) if unbound else part)
        start = end
    return parts


@rule("constant_pad_nd")
def _pad(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    """Zeros may have any scale."""
    shape, pad = shape_of(args["self"]) or [], args["pad"]
    if args["value"] or min(pad) < 0:
        return None
    scale = trace.of(args["self"])
    for i in range(len(pad) // 2):
        dim = len(shape) - 1 - i
        for key in [key for key in scale if dim in key]:
            widths = [(pad[2 * i], pad[2 * i + 1]) if axis == dim else (0, 0) for axis in key]
            forms = np.pad(scale[key], widths, constant_values=-1)
            new = forms < 0
            forms[new] = trace.system.unknowns(int(new.sum()))
            scale = scale | {key: forms}
    return scale


@rule("index")
def _index(trace: ScaleTrace, node: fx.Node, args: Args) -> Scale | None:
    shape, indices = shape_of(args["self"]) or [], args["indices"]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any("bool" in str(index.meta["val"].dtype) for index in nodes_in(indices)):
        return None
    scale = trace.none_along(trace.of(args["self"]), dims)
    trace.none(*(trace.of(index) for index in nodes_in(indices)))
    found = len(shape_of(node) or []) - (len(shape) - len(dims))
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [axis for axis in range(len(shape)) if axis not in dims]
    return moved(scale, {axis: i + found * (i >= at) for i, axis in enumerate(rest)})
