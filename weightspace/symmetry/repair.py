"""Statistics of merged networks: batch-norm recalibration, and REPAIR (Jordan et al., ICLR 2023).

Between two networks, also aligned ones, activations vary less than in either of them, layer after layer. Batch norms
mend it once their running statistics are measured anew. In networks without them, REPAIR rescales each hidden channel's
pre-activations to the interpolated mean and deviation of the two networks, folded into weight and bias.

Everything happens in one forward pass over all inputs: a layer's correction is applied before the next layer is
measured, so on these inputs the statistics are met exactly.

Axes: m network, p parameter, b example, c channel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup

VALUES_AT_ONCE = 2**25  # of one layer's activations in all networks of a forward pass: 128 MB

Moments = dict[str, tuple[Tensor, Tensor]]
"""Two values of each channel, by the name of its layer: mean and deviation, or factor and addend."""


def recalibrated(
    module: nn.Module, rows: Float[Tensor, "m p"], inputs: Shaped[Tensor, "b *shape"]
) -> Float[Tensor, "m p"]:
    """Networks whose batch norms have the mean and variance of these inputs as their running statistics.

    Args:
        module: The network, whose values do not count.
        rows: Networks in the order of `Layout.of(module)`.
        inputs: Training examples, all taken in one batch.
    Returns:
        New rows; equal to `rows` where the network has no batch norm.
    Raises:
        ConfigError: There are no inputs.

    >>> module = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    >>> recalibrated(module, torch.ones(1, 6), torch.tensor([[2.0], [4.0]]))
    tensor([[1., 1., 3., 1., 1., 1.]])
    """
    return _mended(module, rows, inputs, [], {})


def repaired(
    module: nn.Module,
    rows: Float[Tensor, "m p"],
    ends: Float[Tensor, "2 p"],
    shares: Float[Tensor, " m"],
    groups: Sequence[PermutationGroup],
    inputs: Shaped[Tensor, "b *shape"],
) -> Float[Tensor, "m p"]:
    """Networks between two others with the interpolated statistics of these in every hidden channel.

    Layers in front of a batch norm are left to it: its statistics are measured anew, which comes to the same.

    Args:
        module: The network, whose values do not count.
        rows: Networks on the way from the first end to the second.
        ends: The two networks.
        shares: How far along each row is, from 0 to 1.
        groups: Groups of the layout: the channels of layers that write a group are hidden.
        inputs: Training examples, all taken in one batch.
    Returns:
        New rows.
    Raises:
        ConfigError: There are no inputs.
        LayoutError: A hidden layer has no bias to take the mean, and no batch norm behind it.

    >>> module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    >>> from weightspace.symmetry import chain_groups
    >>> ends = torch.tensor([[1.0, 0, 1, 0], [3.0, 0, 1, 0]])
    >>> half = torch.tensor([[0.5, 0.0, 1.0, 0.0]])
    >>> groups = chain_groups(Layout.of(module))
    >>> repaired(module, half, ends, torch.tensor([0.5]), groups, torch.tensor([[-1.0], [1.0]]))
    tensor([[2., 0., 1., 0.]])
    """
    layers = _hidden_layers(Layout.of(module), groups)
    measured = _moments(module, ends, inputs, layers)
    share = shares[:, None]
    goals = {
        name: (mean[:1].lerp(mean[1:], share), std[:1].lerp(std[1:], share)) for name, (mean, std) in measured.items()
    }
    return _mended(module, rows, inputs, layers, goals)


@torch.no_grad()
def _moments(module: nn.Module, rows: Tensor, inputs: Tensor, layers: Sequence[str]) -> Moments:
    """Mean and deviation of each channel of the layers' outputs, in networks as they are."""
    layout = Layout.of(module)
    found: Moments = {}

    def measure(name: str, layer: nn.Module, entered: Tensor, output: Tensor) -> None:
        found[name] = _channel_moments(layer, output)

    def forward(state: dict[str, Tensor]) -> Moments:
        functional_call(module, state, (inputs,))
        return dict(found)

    with _hooked(module, layers, measure):
        parts = [vmap(forward)(layout.unflatten(some)) for some in rows.split(_at_once(module, inputs))]
    return _joined(parts)


@torch.no_grad()
def _mended(
    module: nn.Module, rows: Tensor, inputs: Tensor, layers: Sequence[str], goals: Moments
) -> Float[Tensor, "m p"]:
    """Rows with all batch norms measured anew, and the moments `goals` at `layers`."""
    if not len(inputs):
        raise ConfigError("statistics of activations need inputs, got none")
    layout = Layout.of(module)
    norms = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
    found: Moments = {}
    wanted: Moments = {}  # of the networks in the forward pass

    def mend(name: str, layer: nn.Module, entered: Tensor, output: Tensor) -> Tensor:
        if isinstance(layer, _BatchNorm):
            mean, std = _channel_moments(layer, entered)
            found[name] = (mean, std.square())
            return F.batch_norm(entered, mean, std.square(), layer.weight, layer.bias, eps=layer.eps)
        mean, std = _channel_moments(layer, output)
        goal_mean, goal_std = wanted[name]
        scale = torch.where(std > 0, goal_std / std, 1.0)
        shift = goal_mean - mean * scale
        found[name] = (scale, shift)
        return (output.movedim(_channel_axis(layer), -1) * scale + shift).movedim(-1, _channel_axis(layer))

    def forward(state: dict[str, Tensor], some_goals: Moments) -> Moments:
        wanted.update(some_goals)
        functional_call(module, state, (inputs,))
        return dict(found)

    rows, size = rows.clone(), _at_once(module, inputs)
    with _hooked(module, [*norms, *layers], mend):
        starts = range(0, len(rows), size)
        parts = [
            vmap(forward)(
                layout.unflatten(rows[start : start + size]),
                {name: (mean[start : start + size], std[start : start + size]) for name, (mean, std) in goals.items()},
            )
            for start in starts
        ]
    state = layout.unflatten(rows)  # views
    for name, (first, second) in _joined(parts).items():
        if name in norms:
            state[f"{name}.running_mean"].copy_(first)
            state[f"{name}.running_var"].copy_(second)
            continue
        weight = state[f"{name}.weight"]
        axis = 1 + (layout.by_name[f"{name}.weight"].output_axis or 0)
        weight.mul_(first.view(*(len(rows) if d == 0 else -1 if d == axis else 1 for d in range(weight.ndim))))
        state[f"{name}.bias"].mul_(first).add_(second)
    return rows


def _hidden_layers(layout: Layout, groups: Sequence[PermutationGroup]) -> list[str]:
    """Linear and convolutional layers that write hidden units with no batch norm behind them."""
    found = []
    for group in groups:
        specs = [(layout.by_name[place.tensor], place.axis) for place in group.places]
        if any(spec.role == "running_mean" for spec, _ in specs):
            continue
        for spec, axis in specs:
            if spec.role == "weight" and spec.layer in ("linear", "conv") and axis == spec.output_axis:
                if f"{spec.layer_name}.bias" not in layout.by_name:
                    raise LayoutError(
                        f"{spec.layer_name!r} has neither a bias nor a batch norm behind it, so REPAIR cannot set the "
                        "mean of its channels; give the layer a bias"
                    )
                found.append(spec.layer_name)
    return found


@contextmanager
def _hooked(
    module: nn.Module, layers: Sequence[str], act: Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """The module in evaluation mode, with `act` called behind the layers; what it returns replaces their output."""
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda layer, entered, output, name=name: act(name, layer, entered[0], output)
        )
        for name in layers
    ]
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()


def _channel_axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _channel_moments(layer: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over examples and positions."""
    channels = values.movedim(_channel_axis(layer), 0).flatten(1)
    return channels.mean(1), channels.std(1, correction=0)


def _at_once(module: nn.Module, inputs: Tensor) -> int:
    """Networks whose largest activations of all inputs fit into the memory of a forward pass."""
    sizes = [1]
    hooks = [
        part.register_forward_hook(lambda _, entered, output: sizes.append(output.numel()))
        for part in module.modules()
        if not list(part.children())
    ]
    training = module.training
    module.eval()
    module(inputs[:1])
    module.train(training)
    for hook in hooks:
        hook.remove()
    return max(1, VALUES_AT_ONCE // (max(sizes) * len(inputs)))


def _joined(parts: Sequence[Moments]) -> Moments:
    return {name: (torch.cat([p[name][0] for p in parts]), torch.cat([p[name][1] for p in parts])) for name in parts[0]}
