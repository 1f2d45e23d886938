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
from weightspace.networks.layout import Layout
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
    return Verification(checks=tuple(checks), together=max(network.changes(symmetry.layout, rows)))


class _Network:
    """A float64 copy of a module with noisy weights, and its output on random inputs."""

    def __init__(
        self, module: nn.Module, symmetry: Symmetry, input: Tensor | tuple[Tensor, ...], generator: torch.Generator
    ):
        self.layout = symmetry.layout
        self.module = deepcopy(module).to("cpu", torch.float64).eval().requires_grad_(False)
        inputs = input if isinstance(input, tuple) else (input,)
        self.inputs = tuple(
            torch.randn(x.shape, generator=generator, dtype=torch.float64) if x.is_floating_point() else x.cpu()
            for x in inputs
        )
        self.row = self._noisy_row(generator)
        self.tensors = self.layout.unflatten(self.row)
        self.output = self._outputs({})
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

    def _outputs(self, changed: dict[str, Tensor]) -> Float64[Tensor, " _"]:
        with torch.no_grad():
            results = functional_call(self.module, self.tensors | changed, self.inputs)
        tensors = [result for result in tree_leaves(results) if isinstance(result, Tensor)]
        return torch.cat([tensor.flatten().double() for tensor in tensors])

    def part(self, places: Sequence[Place]) -> tuple[Layout, Float64[Tensor, "1 q"]]:
        """Layout and row of those tensors only that the places name: a group is small beside its network."""
        names = {place.tensor for place in places}
        layout = Layout(tuple(spec for spec in self.layout.tensors if spec.name in names))
        return layout, torch.cat([self.tensors[spec.name].flatten() for spec in layout.tensors])[None]

    def changes(self, layout: Layout, rows: Float64[Tensor, "m _"]) -> list[float]:
        """Largest change of an output under each row of some of the tensors, relative to the largest output."""
        changed = (self._outputs(layout.unflatten(row)) for row in rows)
        return [float((output - self.output).abs().max()) / self.size for output in changed]


def _check_permutations(network: _Network, group: PermutationGroup, elements: int, generator: torch.Generator) -> Check:
    layout, row = network.part(group.places)
    permutations = random_permutations([group], elements, generator)
    moved = row.expand(elements, -1).gather(1, gather_index(layout, [group], permutations))
    turn = torch.arange(group.size).roll(1)[None]

    def turned(place: Place) -> float:
        """Change when all units move on by one, but only at one place."""
        alone, tensor = network.part([place])
        index = gather_index(alone, [replace(group, places=(place,))], [turn])
        return network.changes(alone, tensor.gather(1, index))[0]

    return Check(
        group=group.name,
        kind="permutation",
        size=group.size,
        error=max(network.changes(layout, moved)),
        control=_control(network, group.places, turned),
    )


def _check_scales(network: _Network, group: ScaleGroup, elements: int, generator: torch.Generator) -> Check:
    layout, row = network.part(group.places)
    moved = apply_scales(row.expand(elements, -1), layout, [group], random_scales([group], elements, generator))
    alternating = torch.ones(1, group.size)
    alternating[:, ::2] = -1 if group.kind == "sign" else 2

    def scaled(place: Place) -> float:
        """Change when every second unit is scaled, as a norm may undo a common scale, but only at one place."""
        alone, tensor = network.part([place])
        part = replace(group, places=(place,), exponents=(1.0,))
        return network.changes(alone, apply_scales(tensor, alone, [part], [alternating]))[0]

    return Check(
        group=group.name,
        kind=group.kind,
        size=group.size,
        error=max(network.changes(layout, moved)),
        control=_control(network, group.places, scaled),
        exact=group.exact,
    )


def _control(network: _Network, places: Sequence[Place], alone: Callable[[Place], float]) -> float | None:
    """Change when the place with most values moves without the others; if there is none, the next, and so on."""
    if len(places) < 2:
        return None
    change = 0.0
    for place in sorted(places, key=lambda place: -network.layout.by_name[place.tensor].size)[:CONTROLS]:
        change = change or alone(place)
    return change
