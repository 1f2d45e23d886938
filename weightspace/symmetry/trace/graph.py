"""A module as a list of tensor operations, whatever Python it is written in.

`torch.export` runs the module on fake tensors and records ATen operations with their shapes; composite operations that
no rule knows are decomposed, so that few remain.
"""

import warnings
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout

COPIES = ("alias", "detach", "clone", "_to_copy", "lift_fresh_copy", "contiguous", "dropout", "_assert_tensor_metadata")
"""Operations that leave values as they are, up to rounding; dropout is switched off."""
RESHAPES = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten")
SPATIAL = (
    *(f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"{lead}adaptive_{kind}_pool{n}d" for lead in ("", "_") for kind in ("avg", "max") for n in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d")),
    *(f"upsample_{kind}" for kind in ("bilinear2d", "bicubic2d", "trilinear3d")),
)
"""Pooling and resizing, channel by channel."""
RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Maps that a recurrent cell stacks in one weight."""
COMPOSITES = {
    *("linear", "matmul", "layer_norm", "rms_norm", "group_norm", "instance_norm", "scaled_dot_product_attention"),
    *RECURRENT,
    *(name for name in SPATIAL if name.startswith("upsample")),
}
"""Operations that have rules of their own and are not decomposed."""
BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "instance_norm")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Operations of a module in the order in which they run."""

    operations: tuple[fx.Node, ...]
    tensors: dict[fx.Node, str]
    """Parameters and running statistics, by their names in the layout."""
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    constants: dict[fx.Node, Tensor]
    """Values that depend neither on inputs nor on weights, such as masks and tables of positions."""
    fixed: dict[fx.Node, Tensor]
    """Buffers that the layout has but training does not change; they are among `tensors` too."""


def record(module: nn.Module, layout: Layout, inputs: tuple[Tensor, ...]) -> Graph:
    """Run the module on fake tensors and list its operations.

    Args:
        inputs: Positional arguments of the module.
    Raises:
        LayoutError: The module cannot be traced, because its operations depend on values.
    """
    training = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its parts
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch, about its own internals
            program = torch.export.export(module, inputs)
            table = torch.export.default_decompositions()
            for operation in [operation for operation in table if name_of(operation) in COMPOSITES]:
                table.pop(operation)
            program = program.run_decompositions(table)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LayoutError(
            f"{type(module).__name__} cannot be traced with inputs of shapes {[tuple(x.shape) for x in inputs]}: "
            f"{first}; give an input that it accepts, and no control flow that depends on values"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in training.items():
            part.training = mode
    return _graph(program, module, layout)


def name_of(operation: Any) -> str:
    """Name without namespace and overload, for example `linear`; that of a Python function for what is not ATen.

    >>> name_of(torch.ops.aten.add.Tensor)
    'add'
    """
    schema = getattr(operation, "_schema", None)
    return schema.name.partition("::")[2] if schema else getattr(operation, "__name__", str(operation))


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operation by the names of its schema, defaults included; tensors are nodes."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    positional = [argument.name for argument in schema if not argument.kwarg_only]
    return given | dict(zip(positional, node.args, strict=False)) | dict(node.kwargs)


def shape_of(node: fx.Node, output: int | None = None) -> list[int] | None:
    """Shape of a node's value, or of one of its outputs; `None` if that is no tensor."""
    value = node.meta.get("val")
    if output is not None:
        value = value[output]  # type: ignore[index]
    return [int(size) for size in value.shape] if isinstance(value, Tensor) else None


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """All nodes in an argument, which may be a list."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from nodes_in(inner)


def _graph(program: ExportedProgram, module: nn.Module, layout: Layout) -> Graph:
    state = module.state_dict(keep_vars=True)
    first = {id(state[spec.name]): spec.name for spec in layout.tensors}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    statistics = {
        operand
        for node in program.graph.nodes
        if node.op == "call_function" and name_of(node.target) in BATCH_NORMS
        for key in ("running_mean", "running_var")
        for operand in nodes_in(arguments(node).get(key))
    }
    parameters = {id(value) for value in module.parameters()}
    tensors, inputs = dict[fx.Node, str](), list[fx.Node]()
    constants, fixed = dict[fx.Node, Tensor](), dict[fx.Node, Tensor]()
    operations: list[fx.Node] = []
    outputs: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            value = _value(program, module, spec.target)
            if spec.kind == InputKind.USER_INPUT:
                inputs += [node] if shape_of(node) is not None else []
            elif value is not None and id(value) in first:
                tensors[node] = first[id(value)]
                if id(value) not in parameters and node not in statistics:
                    fixed[node] = value
            elif value is not None:
                constants[node] = value.detach()
        elif node.op == "output":
            outputs += [operand for operand in nodes_in(node.args) if shape_of(operand) is not None]
        elif node.op == "call_function" and not _folded(node, constants):
            operations.append(node)
    return Graph(
        operations=tuple(operations),
        tensors=tensors,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        constants=constants,
        fixed=fixed,
    )


def _value(program: ExportedProgram, module: nn.Module, target: str | None) -> Tensor | None:
    """Value of a parameter, buffer or constant; the module's own object where it has one, so that ties show."""
    if target is None:
        return None
    owner: Any = module
    for part in target.split("."):
        owner = getattr(owner, part, None)
    if isinstance(owner, Tensor):
        return owner
    return program.constants.get(target)


def _folded(node: fx.Node, constants: dict[fx.Node, Tensor]) -> bool:
    """Compute a node that has only constants as operands; says whether it could."""
    operands = list(nodes_in([*node.args, *node.kwargs.values()]))
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or shape_of(node) is None or not _all_in(operands, constants):
        return False
    args: Any = fx.node.map_arg(node.args, lambda operand: constants[operand])
    kwargs: Any = fx.node.map_arg(dict(node.kwargs), lambda operand: constants[operand])
    constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return True


def _all_in(operands: Iterable[fx.Node], known: Container[fx.Node]) -> bool:
    return all(operand in known for operand in operands)
