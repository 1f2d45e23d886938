"""Architectures: what an encoder may know of networks beside their weights; and networks of one architecture.

Axes: m network, p parameter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace import networks
from weightspace.errors import LayoutError
from weightspace.networks import CNN, MLP, SIREN, Layout, Network, PooledCNN
from weightspace.networks.blocks import ACTIVATIONS
from weightspace.symmetry import PermutationGroup, chain_groups, gather_index, random_permutations, symmetry_of
from weightspace.views.graph import ParameterGraph
from weightspace.zoo import Zoo

UNKNOWN_ACTIVATION = len(ACTIVATIONS)
"""Number of an activation that is not known, not one of a list, or another one in every layer."""


@dataclass(frozen=True)
class Architecture:
    """Layout and symmetries of networks, and the network itself where it is known.

    >>> architecture = Architecture.of(networks.by_name("cnn", (1, 8, 8), 10))
    >>> architecture.graph.levels, architecture.layout.parameters
    (3, 994)
    """

    layout: Layout
    groups: tuple[PermutationGroup, ...]
    """Units that may be renumbered."""
    network: Network | None = None
    """What the weights compute; its activation may differ from network to network."""

    @classmethod
    def of(cls, network: Network) -> "Architecture":
        """The architecture of a known network, its groups traced."""
        return cls(Layout.of(_built(network)), _groups(network), network)

    @classmethod
    def of_layout(cls, layout: Layout) -> "Architecture":
        """The architecture of a plain chain, from shapes alone.

        Raises:
            LayoutError: The layout is not that of a plain chain.
        """
        return cls(layout, chain_groups(layout))

    @cached_property
    def graph(self) -> ParameterGraph:
        """Units as nodes, weights as edges."""
        return ParameterGraph.of(self.layout, self.groups)

    @cached_property
    def activation(self) -> int:
        """Number of the activation among `networks.blocks.ACTIVATIONS`, `UNKNOWN_ACTIVATION` where it is not there."""
        return activation_number(getattr(self.network, "activation", ""))

    def permuted(self, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Float[Tensor, "m p"]:
        """The same functions with units in a random order: an own uniform draw for every network and group."""
        if not self.groups:
            return rows
        drawn = random_permutations(self.groups, len(rows), generator)
        return rows.gather(1, gather_index(self.layout, self.groups, drawn).to(rows.device))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        network = None if self.network is None else networks.to_json(self.network)
        return {"layout": self.layout.to_json(), "network": network}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Architecture":
        """The architecture that `to_json` wrote; its groups are found again.

        Raises:
            LayoutError: The data are no architecture.
        """
        if data["network"] is not None:
            return cls.of(networks.from_json(data["network"]))
        return cls.of_layout(Layout.from_json(data["layout"]))


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of one architecture, as encoders read them. A batch of several architectures is a list of these.

    >>> some = Networks.of(torch.zeros(5, 994), Architecture.of(networks.by_name("cnn", (1, 8, 8), 10)))
    >>> len(some), some.activations.tolist()
    (5, [0, 0, 0, 0, 0])
    """

    rows: Float[Tensor, "m p"]
    """Weights in their own units."""
    architecture: Architecture
    activations: Int64[Tensor, " m"]
    """Number of each network's activation."""

    @classmethod
    def of(cls, rows: Float[Tensor, "m p"], architecture: Architecture) -> "Networks":
        """Networks that all have the activation of their architecture."""
        return cls(rows, architecture, torch.full((len(rows),), architecture.activation))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> "Networks":
        """Some of the networks, by a slice or an index tensor."""
        return Networks(self.rows[index], self.architecture, self.activations[index])

    def to(self, device: torch.device | str, **options: Any) -> "Networks":
        """On another device."""
        return Networks(self.rows.to(device, **options), self.architecture, self.activations.to(device, **options))

    def permuted(self, generator: torch.Generator) -> "Networks":
        """The same functions with units in a random order."""
        return Networks(self.architecture.permuted(self.rows, generator), self.architecture, self.activations)


def activation_number(name: str) -> int:
    """Number of an activation, `UNKNOWN_ACTIVATION` for others.

    >>> activation_number("tanh"), activation_number("relu-tanh")
    (1, 6)
    """
    return list(ACTIVATIONS).index(name) if name in ACTIVATIONS else UNKNOWN_ACTIVATION


def in_chunks(bundles: Sequence[Networks], size: int) -> Iterator[Networks]:
    """The networks in order, at most `size` at once."""
    for some in bundles:
        for start in range(0, len(some), size):
            yield some[start : start + size]


def architecture_of(header: dict, layout: Layout) -> Architecture:
    """The architecture of a zoo's networks: traced where the zoo says what they compute, else a plain chain.

    Args:
        header: Content of `zoo.json`.
        layout: One of the zoo's layouts.

    Raises:
        LayoutError: The header has no network of this layout, and the layout is not a plain chain; or it has several
            networks of this layout that differ in their groups.

    >>> architecture_of({}, Layout.of(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)))).groups[0].size
    2
    """
    stored = [header["network"]] if "network" in header else [*header.get("networks", {}).values()]
    made = [network for network in map(networks.from_json, stored) if Layout.of(_built(network)) == layout]
    if len({_groups(network) for network in made}) > 1:
        raise LayoutError(
            f"the zoo has networks of layout {layout.digest} that are wired differently and cannot be aligned to each "
            "other; select networks of one architecture"
        )
    if not made:
        return Architecture.of_layout(layout)
    return Architecture(layout, _groups(made[0]), made[0] if len(set(made)) == 1 else None)


def _built(network: Network) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):  # looking at a network leaves everybody's random numbers alone
        return network.build()


@lru_cache(maxsize=512)
def _groups(network: Network) -> tuple[PermutationGroup, ...]:
    if isinstance(network, CNN | MLP | PooledCNN | SIREN):  # chains by construction: a trace, which takes seconds,
        return chain_groups(Layout.of(_built(network)))  # finds the same
    return symmetry_of(_built(network), torch.zeros(2, *network.image_shape)).groups


def bundles(zoo: Zoo) -> list[tuple[Int64[Tensor, " m"], Networks]]:
    """The checkpoints of a zoo by architecture, and where they stand in its table.

    Raises:
        LayoutError: As in `architecture_of`.

    >>> import polars as pl
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    >>> [(places.tolist(), len(some)) for places, some in bundles(Zoo.in_memory(torch.ones(2, 8), layout, table, {}))]
    [([0, 1], 2)]
    """
    by = [name for name in ("layout", "network") if name in zoo.table.columns]
    found = []
    for _, table in zoo.table.with_row_index("_place").group_by(by, maintain_order=True):
        places = torch.from_numpy(table["_place"].to_numpy().astype("int64"))
        some = zoo.take(places)
        header = zoo.header
        if "network" in by and "networks" in header:
            header = {"network": header["networks"][table["network"][0]]}
        architecture = architecture_of(header, some.layout)
        activations = torch.full((len(places),), architecture.activation)
        if "config.activation" in table.columns:
            numbers = table["config.activation"].map_elements(activation_number, return_dtype=pl.Int64)
            activations = torch.from_numpy(numbers.to_numpy().astype("int64"))
        found.append((places, Networks(some.weights(), architecture, activations)))
    return found
