"""Proof by trial: random group elements leave a network's output as it is, and parts of them do not.

In float64, where reordered sums differ in the last of 16 digits, an output that changes by more than about 1e-12 of its
size has changed for another reason.

Axes: m element of the group, p parameter.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from weightspace.errors import ConfigError
from weightspace.symmetry.groups import PermutationGroup, Place, gather_index, random_permutations
from weightspace.symmetry.scales import ScaleGroup, apply_scales, random_scales
from weightspace.symmetry.tracing import Symmetry

CONTROLS = 3
"""Places of a group that are tried alone, until one matters; one could be behind units that are always zero."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What random elements of one group did to the output of a network."""

    group: str
    kind: str
    """`permutation`, `positive` scale or `sign`."""
    size: int
    """Number of units."""
    error: float
    """Largest change of an output, relative to the largest output."""
    control: float | None
    """Such a change when only one of the group's places follows; `None` if it has no other."""
    exact: bool = True
    """Whether the symmetry is exact; if not, the error is only reported."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Errors and negative controls of all groups of a network."""

    checks: tuple[Check, ...]
    together: float
    """Largest relative change under elements of all exact groups at once."""
    tolerance: float = 1e-10
    """Largest error of a symmetry that holds, and smallest change of a control that shows something."""

    @property
    def holds(self) -> bool:
        """Whether all exact groups leave the output unchanged and all controls change it."""
        kept = all(check.error <= self.tolerance for check in self.checks if check.exact)
        seen = all(check.control > self.tolerance for check in self.checks if check.control is not None)
        return kept and seen and self.together <= self.tolerance

    @property
    def error(self) -> float:
        """Largest error of the exact groups, alone and together."""
        return max([self.together, *(check.error for check in self.checks if check.exact)])

    @property
    def control(self) -> float | None:
        """Smallest change of a negative control."""
        return min((check.control for check in self.checks if check.control is not None), default=None)

    def table(self) -> pl.DataFrame:
        """One row a group."""
        columns = {"group": str, "kind": str, "size": int, "error": float, "control": float, "exact": bool}
        return pl.DataFrame(
            [[getattr(check, name) for name in columns] for check in self.checks], columns, orient="row"
        )


def verify(
    module: nn.Module,
    symmetry: Symmetry,
    *,
    generator: torch.Generator,
    input: Tensor | tuple[Tensor, ...],
    elements: int = 8,
) -> Verification:
    """Apply random elements of every group and measure the change of the output, in float64.

    The weights are those of the module with noise of half their spread, as fresh norms and biases are equal for all
    units and would hide errors. Elements are run one after another: recurrent layers have no rule for `torch.vmap`, and
    convolutions on a CPU are slower with it.

    Args:
        module: A module with the layout of the symmetry; unchanged.
        generator: Draws the noise, the inputs and the group elements.
        input: Arguments like those of the trace; floating-point values are drawn anew, others are used as they are.
        elements: Group elements for each group, and for all together.
    Returns:
        Error and negative control of each group; nothing is raised for a symmetry that does not hold.
    Raises:
        ConfigError: `elements` is below 1.

    >>> from weightspace.symmetry.tracing import symmetry_of
    >>> network, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), torch.zeros(5, 2)
    >>> verify(network, symmetry_of(network, x), generator=torch.Generator().manual_seed(0), input=x).holds
    True
    """
    if elements < 1:
        raise ConfigError(f"elements must be at least 1, got {elements}")
    network = _Network(module, symmetry, input, generator)
    checks = [_check_permutations(network, group, elements, generator) for group in symmetry.groups]
    checks += [_check_scales(network, group, elements, generator) for group in symmetry.scales]
    exact = [group for group in symmetry.scales if group.exact]
    rows = network.row.expand(elements, -1)
    if symmetry.groups:
        permutations = random_permutations(symmetry.groups, elements, generator)
        rows = rows.gather(1, gather_index(symmetry.layout, symmetry.groups, permutations))
    rows = apply_scales(rows, symmetry.layout, exact, random_scales(exact, elements, generator))
    return Verification(checks=tuple(checks), together=max(network.changes(rows)))


class _Network:
    """A float64 copy of a module with noisy weights, and its output on random inputs."""

    def __init__(
        self, module: nn.Module, symmetry: Symmetry, input: Tensor | tuple[Tensor, ...], generator: torch.Generator
    ):
        self.layout = symmetry.layout
        self.module = deepcopy(module).double().eval().requires_grad_(False)
        inputs = input if isinstance(input, tuple) else (input,)
        self.inputs = tuple(
            torch.randn(x.shape, generator=generator, dtype=torch.float64) if x.is_floating_point() else x
            for x in inputs
        )
        self.row = self._noisy_row(generator)
        self.output = self._outputs(self.row)
        self.size = max(float(self.output.abs().max()), torch.finfo(torch.float64).tiny)

    def _noisy_row(self, generator: torch.Generator) -> Float64[Tensor, " p"]:
        state = self.module.state_dict()
        trained = {name for name, _ in self.module.named_parameters()}
        parts = []
        for spec in self.layout.tensors:
            value = state[spec.name].flatten()
            noise = torch.randn(spec.size, generator=generator, dtype=torch.float64)
            spread = float(value.std(correction=0)) or 0.2
            if spec.role == "running_var":
                value = value * (spread * noise).exp()
            elif spec.name in trained or spec.role == "running_mean":
                value = value + spread / 2 * noise
            parts.append(value)
        return torch.cat(parts)

    def _outputs(self, row: Float64[Tensor, " p"]) -> Float64[Tensor, " _"]:
        with torch.no_grad():
            results = functional_call(self.module, self.layout.unflatten(row), self.inputs)
        tensors = [result for result in tree_leaves(results) if isinstance(result, Tensor)]
        return torch.cat([tensor.flatten().double() for tensor in tensors])

    def changes(self, rows: Float64[Tensor, "m p"]) -> list[float]:
        """Largest change of an output under each row, relative to the largest output."""
        return [float((self._outputs(row) - self.output).abs().max()) / self.size for row in rows]


def _check_permutations(network: _Network, group: PermutationGroup, elements: int, generator: torch.Generator) -> Check:
    permutations = random_permutations([group], elements, generator)
    rows = network.row.expand(elements, -1)
    moved = rows.gather(1, gather_index(network.layout, [group], permutations))
    return Check(
        group=group.name,
        kind="permutation",
        size=group.size,
        error=max(network.changes(moved)),
        control=_control(network, group.places, lambda place: _turned(network, group, place)),
    )


def _turned(network: _Network, group: PermutationGroup, place: Place) -> Float64[Tensor, "1 p"]:
    """All units move on by one, but only at one place."""
    part = PermutationGroup(group.name, group.size, (place,))
    turn = torch.arange(group.size).roll(1)[None]
    return network.row[None].gather(1, gather_index(network.layout, [part], [turn]))


def _check_scales(network: _Network, group: ScaleGroup, elements: int, generator: torch.Generator) -> Check:
    scales = random_scales([group], elements, generator)
    moved = apply_scales(network.row.expand(elements, -1), network.layout, [group], scales)
    return Check(
        group=group.name,
        kind=group.kind,
        size=group.size,
        error=max(network.changes(moved)),
        control=_control(network, group.places, lambda place: _scaled(network, group, place)),
        exact=group.exact,
    )


def _scaled(network: _Network, group: ScaleGroup, place: Place) -> Float64[Tensor, "1 p"]:
    """All units are scaled, but only at one place; every second one, as a norm may undo a common sign."""
    part = replace(group, places=(place,), exponents=(1.0,))
    scales = torch.ones(1, group.size)
    scales[:, ::2] = -1 if group.kind == "sign" else 2
    return apply_scales(network.row[None], network.layout, [part], [scales])


def _control(
    network: _Network, places: Sequence[Place], alone: Callable[[Place], Float64[Tensor, "1 p"]]
) -> float | None:
    """Change when the place with most values moves without the others; if there is none, the next, and so on."""
    if len(places) < 2:
        return None
    change = 0.0
    for place in sorted(places, key=lambda place: -network.layout.by_name[place.tensor].size)[:CONTROLS]:
        change = change or network.changes(alone(place))[0]
    return change
