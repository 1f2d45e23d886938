"""Alignment by activation matching (Git Re-Basin, Ainsworth et al., 2023, section 3.1; Li et al., 2016).

Units of two networks are the same where they answer alike on the same inputs: for each group a linear assignment
maximises the products, or the correlations, of their activations. Groups are independent of each other, so the result
is exact and needs no sweeps; it needs inputs.

A unit's activation is what the first layer that reads the group gets of it, after the nonlinearity and pooling.

Axes: m network, p parameter, n unit of a group, b example, x example and position, k group.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup, Place
from weightspace.symmetry.matching import best_assignments

VALUES_AT_ONCE = 2**24  # activations of one forward pass: bounds the memory
STILL = 1e-6  # a deviation below this part of the mean is the rounding of the sums


def activation_matching(
    module: nn.Module,
    rows: Float[Tensor, "m p"],
    reference: Float[Tensor, " p"],
    groups: Sequence[PermutationGroup],
    inputs: Shaped[Tensor, "b *shape"],
    *,
    measure: Literal["product", "correlation"] = "product",
) -> list[Int64[Tensor, "m _"]]:
    """Permutations that bring each row's units to those of the reference that answer most alike.

    Args:
        module: The network, whose values do not count; in evaluation mode.
        rows: Networks to align, in the order of `Layout.of(module)`.
        reference: Network that they are aligned to.
        groups: Groups of the layout.
        inputs: Examples, at least a thousand; never test data.
        measure: `product` is the mean product of activations, as published; `correlation` is Pearson's, in which a unit
            that never changes has no say.
    Returns:
        For each group int64 `[m, n]`, for `permuted`.
    Raises:
        ConfigError: There is no such measure, or there are no inputs.
        LayoutError: No layer reads a group, or activations are not finite.

    >>> from weightspace.symmetry import chain_groups
    >>> module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> groups = chain_groups(Layout.of(module))
    >>> reference, row = torch.tensor([1.0, 0, 0, 1, 1, 2]), torch.tensor([[0, 1.0, 1, 0, 2, 1]])
    >>> activation_matching(module, row, reference, groups, torch.rand(9, 2))
    [tensor([[1, 0]])]
    """
    if measure not in ("product", "correlation"):
        raise ConfigError(f"measure must be product or correlation, got {measure!r}")
    if not len(inputs):
        raise ConfigError("activation matching needs inputs, got none")
    readers = [_reader(Layout.of(module), group) for group in groups]
    costs: list[Float64[Tensor, "m n n"]] = [
        rows.new_zeros(len(rows), group.size, group.size, dtype=torch.float64) for group in groups
    ]
    moments = [[cost.new_zeros(count, cost.shape[1], 2) for count in (1, len(rows))] for cost in costs]
    every = max(1, VALUES_AT_ONCE // (len(rows) * sum(group.size for group in groups)))
    for some in inputs.split(min(every, 256)):
        ours = unit_activations(module, reference[None], groups, some, readers)
        theirs = unit_activations(module, rows, groups, some, readers)
        share = len(some) / len(inputs)
        for cost, sums, *pair in zip(costs, moments, ours, theirs, strict=True):
            a, b = (answers.double() for answers in pair)
            cost -= share / a.shape[2] * torch.matmul(a, b.mT)
            for total, answers in zip(sums, (a, b), strict=True):
                total += share * torch.stack([answers.mean(2), answers.square().mean(2)], dim=2)
    if measure == "correlation":
        costs = [_correlation(cost, *sums) for cost, sums in zip(costs, moments, strict=True)]
    for group, cost in zip(groups, costs, strict=True):
        if not cost.isfinite().all():
            raise LayoutError(
                f"activations of group {group.name!r} are NaN or infinite; leave out networks that diverged"
            )
    return [best_assignments(cost)[0] for cost in costs]


@torch.no_grad()
def unit_activations(
    module: nn.Module,
    rows: Float[Tensor, "m p"],
    groups: Sequence[PermutationGroup],
    inputs: Shaped[Tensor, "b *shape"],
    readers: Sequence[tuple[str, Place]] | None = None,
) -> list[Float[Tensor, "m n x"]]:
    """What the units of each group answer, in every network, over examples and positions.

    Args:
        module: The network; its values do not count.
        rows: Networks in the order of `Layout.of(module)`.
        groups: Groups of the layout.
        inputs: Examples.
        readers: For each group the layer that gets its units and the place where it reads them; found when missing.
    Returns:
        For each group `[m, n, x]`; `x` counts examples, positions of an image and values of a flattened channel.
    Raises:
        LayoutError: No layer reads a group.

    >>> from weightspace.symmetry import chain_groups
    >>> module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> unit_activations(module, torch.zeros(5, 13), chain_groups(Layout.of(module)), torch.zeros(7, 2))[0].shape
    torch.Size([5, 3, 7])
    """
    layout = Layout.of(module)
    readers = readers or [_reader(layout, group) for group in groups]
    got: dict[str, Tensor] = {}
    layers = {name for name, _ in readers}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, key=name: got.update({key: args[0]}))
        for name in layers
    ]

    def inputs_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
        functional_call(module, state, (inputs,))
        return dict(got)

    training = module.training
    module.eval()
    try:
        read = vmap(inputs_of)(layout.unflatten(rows))
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    spec = layout.by_name
    found = []
    for group, (name, place) in zip(groups, readers, strict=True):
        values = read[name]  # m b ... with the units on the last axis of a linear layer, and on axis 2 of an image
        axis = values.ndim - 1 if spec[place.tensor].layer == "linear" else 2
        units = values.narrow(axis, place.start, place.repeats * group.size * place.block)
        units = units.unflatten(axis, (place.repeats, group.size, place.block)).movedim(axis + 1, 1)
        found.append(units.flatten(2))
    return found


def _reader(layout: Layout, group: PermutationGroup) -> tuple[str, Place]:
    """The first layer that gets the units of a group as its inputs."""
    for place in group.places:
        spec = layout.by_name[place.tensor]
        if spec.role == "weight" and spec.layer in ("linear", "conv") and place.axis == spec.input_axis:
            return spec.layer_name, place
    raise LayoutError(
        f"no linear or convolutional layer reads the units of group {group.name!r}, so their activations cannot be "
        "compared; use weight_matching"
    )


def _correlation(
    cost: Float64[Tensor, "m n n"], ours: Float64[Tensor, "_ n 2"], theirs: Float64[Tensor, "m n 2"]
) -> Float64[Tensor, "m n n"]:
    """Negative correlations from negative mean products, means and mean squares; zero for units that never change."""
    (a, b), deviations = (moments[:, :, 0] for moments in (ours, theirs)), []
    for moments in (ours, theirs):
        mean, square = moments.unbind(2)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        still = deviation <= STILL * mean.abs()
        deviations.append(torch.where(still, torch.inf, deviation))
    return (cost + a[:, :, None] * b[:, None, :]) / (deviations[0][:, :, None] * deviations[1][:, None, :])
