"""Scale and sign groups: which weights may be multiplied and divided together without changing the function.

A unit of ReLU may have its incoming weights multiplied by s > 0 and its outgoing weights divided by s; a unit of tanh
or sine by -1 (Chen et al., 1993; Kalogeropoulos et al., 2024). Each unit has a scale of its own. The groups are read
off a traced network (`trace/homogeneity.py`).

Axes: m network, p parameter, n unit of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks.layout import Layout
from weightspace.symmetry.groups import PermutationGroup, Place, layer_of, unit_view
from weightspace.symmetry.trace.exponents import Exponent, Exponents, Kind
from weightspace.symmetry.trace.homogeneity import Scale


@dataclass(frozen=True)
class ScaleGroup:
    """Units that may each be scaled, and all places that are multiplied by a power of the scale.

    >>> ScaleGroup("0", 16, "positive", (Place("0.weight", 0), Place("2.weight", 1)), (1.0, -1.0)).size
    16
    """

    name: str
    """Name of the layer that makes the units."""
    size: int
    """Number of units."""
    kind: Kind
    """Any positive scale, or only a change of sign."""
    places: tuple[Place, ...]
    """Every axis that counts these units."""
    exponents: tuple[float, ...]
    """For each place, the power of its unit's scale that it is multiplied by."""
    exact: bool = True
    """False if only the small constant in a batch-norm changes the function."""


def random_scales(
    groups: Sequence[ScaleGroup], count: int, generator: torch.Generator, *, spread: float = 4.0
) -> list[Float[Tensor, "m _"]]:
    """Independent random scales of every unit for `count` networks.

    Args:
        count: Number of networks.
        generator: Source of randomness; the scales lie on its device.
        spread: Positive scales are log-uniform between 1 / spread and spread; signs are fair coins.
    Returns:
        For each group float32 `[count, n]`.
    Raises:
        ConfigError: The spread is below 1.

    >>> group = ScaleGroup("0", 3, "sign", (), ())
    >>> random_scales([group], 2, torch.Generator().manual_seed(0))[0].abs()
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    if spread < 1:
        raise ConfigError(f"spread must be at least 1, got {spread}")
    scales = []
    for group in groups:
        draws = torch.rand(count, group.size, generator=generator, device=generator.device)
        scales.append(((2 * draws - 1) * log(spread)).exp() if group.kind == "positive" else 1 - 2 * draws.round())
    return scales


def scale_factors(
    layout: Layout, groups: Sequence[ScaleGroup], scales: Sequence[Float[Tensor, "m _"]]
) -> Float[Tensor, "m p"]:
    """What each weight is multiplied by: `rows * scale_factors(...)` are the scaled rows.

    Args:
        layout: Layout of the rows.
        groups: At least one group.
        scales: For each group the scales of its units; `[m, n]`.
    Returns:
        `[m, p]` in the scales' dtype, on their device.
    Raises:
        LayoutError: The scales do not fit the groups.

    >>> layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False)))
    >>> group = ScaleGroup("0", 2, "positive", (Place("0.weight", 0), Place("1.weight", 1)), (1.0, -1.0))
    >>> scale_factors(layout, [group], [torch.tensor([[2.0, 4.0]])])
    tensor([[2.0000, 4.0000, 0.5000, 0.2500]])
    """
    found = [tuple(scale.shape) for scale in scales]
    count = found[0][0] if found else 0
    if not found or found != [(count, group.size) for group in groups]:
        raise LayoutError(f"scales of shapes {found} do not fit groups of sizes {[group.size for group in groups]}")
    factors = scales[0].new_ones(count, layout.parameters)
    for group, scale in zip(groups, scales, strict=True):
        units_of = PermutationGroup(group.name, group.size, group.places)
        for place, exponent in zip(group.places, group.exponents, strict=True):
            units = unit_view(factors, layout, units_of, place)
            units *= (scale if group.kind == "sign" else scale**exponent)[:, None, None, :, None]
    return factors


def apply_scales(
    rows: Shaped[Tensor, "m p"],
    layout: Layout,
    groups: Sequence[ScaleGroup],
    scales: Sequence[Float[Tensor, "m _"]],
) -> Shaped[Tensor, "m p"]:
    """Rows with every unit scaled; their functions are unchanged.

    Args:
        rows: Networks, one for each row of the scales.
    Returns:
        The scaled rows, in their dtype.
    Raises:
        LayoutError: The scales do not fit the groups.

    >>> layout = Layout.of(torch.nn.Linear(2, 2, bias=False))
    >>> group = ScaleGroup("0", 2, "sign", (Place("weight", 0),), (1.0,))
    >>> apply_scales(torch.ones(1, 4), layout, [group], [torch.tensor([[1.0, -1.0]])])
    tensor([[ 1.,  1., -1., -1.]])
    """
    return rows * scale_factors(layout, groups, [scale.to(rows.dtype) for scale in scales]) if groups else rows


def scale_groups(layout: Layout, tensors: dict[str, Scale], system: Exponents) -> tuple[ScaleGroup, ...]:
    """Groups of the scales that a trace leaves free.

    Args:
        tensors: Scales of the layout's tensors.
        system: The equations that they fulfil.
    """
    found: dict[int, dict[tuple[str, int, Exponent], list[int]]] = {}
    for spec in layout.tensors:
        for (axis,), forms in tensors.get(spec.name, {}).items():
            for index, number in enumerate(forms.tolist()):
                for unknown, exponent in system.solution(number):
                    found.setdefault(unknown, {}).setdefault((spec.name, axis, exponent), []).append(index)
    alike: dict[tuple, list[dict[tuple[str, int, Exponent], list[int]]]] = {}
    for unknown in sorted(found):
        signature = tuple((place, len(indices)) for place, indices in found[unknown].items())
        alike.setdefault(signature, []).append(found[unknown])
    groups, names = list[ScaleGroup](), set[str]()
    for units in alike.values():
        table = {place: np.array([unit[place] for unit in units]) for place in units[0]}
        start = 0
        while start < len(units):
            places, size = _regular({place: indices[start:] for place, indices in table.items()})
            start += size
            name = layer_of(layout, [place for place, _ in places])
            if name in names:
                name = next(f"{name} #{i}" for i in range(2, len(found) + 2) if f"{name} #{i}" not in names)
            names.add(name)
            exact = all(layout.by_name[place.tensor].role != "running_var" for place, _ in places)
            exponents = tuple(float(exponent) for _, exponent in places)
            groups.append(ScaleGroup(name, size, system.kind, tuple(place for place, _ in places), exponents, exact))
    return tuple(groups)


def _regular(table: dict[tuple[str, int, Exponent], np.ndarray]) -> tuple[list[tuple[Place, Exponent]], int]:
    """Places of as many of the first units as lie regularly everywhere; indices are `[units, indices of a unit]`."""
    whole = {key: _repeated(key, indices) for key, indices in table.items()}
    size = min(len(indices) for indices in table.values())
    if any(place is None for place in whole.values()):
        size = min(_longest(indices) for indices in table.values())
    places = list[tuple[Place, Exponent]]()
    for (tensor, axis, exponent), indices in table.items():
        place = _repeated((tensor, axis, exponent), indices[:size])
        runs = [place] if place else [Place(tensor, axis, len(run), int(run[0])) for run in _runs(indices[0])]
        places += [(run, exponent) for run in runs]
    return places, size


def _runs(indices: np.ndarray) -> list[np.ndarray]:
    return np.split(indices, np.nonzero(np.diff(indices) != 1)[0] + 1)


def _repeated(key: tuple[str, int, Exponent], indices: np.ndarray) -> Place | None:
    """The place, if all units follow each other in blocks, again and again."""
    block = len(_runs(indices[0])[0]) if len(indices) > 1 else indices.shape[1]
    size, repeats, start = len(indices), indices.shape[1] // block, int(indices[0, 0])
    place = np.arange(repeats * size * block).reshape(repeats, size, block).swapaxes(0, 1).reshape(size, -1)
    if place.shape != indices.shape or (start + place != indices).any():
        return None
    return Place(key[0], key[1], block, start, repeats)


def _longest(indices: np.ndarray) -> int:
    """How many of the first units follow each other in every run of indices."""
    runs = _runs(indices[0])
    steps = np.concatenate([np.full(len(run), len(run)) for run in runs])
    right = (indices == indices[0] + np.arange(len(indices))[:, None] * steps).all(1)
    return len(indices) if right.all() else int(np.argmin(right))
