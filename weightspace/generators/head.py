"""Another last layer for networks of one task, so that they can be trained for another with more or fewer classes.

Axes: m network, p parameter, k class.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace import networks
from weightspace.errors import ConfigError, ZooError, unknown_name
from weightspace.networks import SIREN, Layout, Network
from weightspace.networks.initialisation import initial_rows
from weightspace.zoo import Zoo
from weightspace.zoo.units import planned_rows

INIT, INIT_SCALE = "config.init", "config.init_scale"


def head_tensors(network: Network) -> list[str]:
    """The tensors of a network that depend on the number of classes.

    >>> head_tensors(networks.MLP())
    ['fc2.weight', 'fc2.bias']
    """
    if isinstance(network, SIREN):
        raise ConfigError("a SIREN is one signal: it has no classes, and no head to replace")
    here, there = (Layout.of(some.build()) for some in (network, replace(network, classes=network.classes + 1)))
    return [name for name, spec in here.by_name.items() if there.by_name[name].shape != spec.shape]


def with_head(zoo: Zoo, classes: int, *, seed: int = 0, keep: Mapping[int, int] | None = None) -> Zoo:
    """The same networks with another last layer; everything before it stays bit for bit.

    Args:
        zoo: Networks of one family, such as generated ones.
        classes: Of the new task; may be as many as before.
        seed: Of the new weights.
        keep: New class to old class, for those that the tasks share: these rows of the last layer are kept.

    Returns:
        A zoo in memory of the new layout. The rest of the last layer is drawn as the zoo initialises its networks
        (`config.init`, `config.init_scale`), or as PyTorch does where it does not say.

    Raises:
        ConfigError: There are less than two classes, or the network has none.
        UnknownName: A class of `keep` does not exist.
        ZooError: The zoo mixes architectures, or does not say what its network is.

    >>> import polars as pl
    >>> old = networks.MLP()
    >>> table = pl.DataFrame({"model": ["a"], "step": [0]})
    >>> zoo = Zoo.in_memory(torch.ones(1, 1060), Layout.of(old.build()), table, {"network": networks.to_json(old)})
    >>> with_head(zoo, 26).layout.parameters
    1300
    """
    if "network" not in zoo.header:
        raise ZooError(f"{zoo!r} does not say what its network is, or mixes several: a head is made for one")
    old = networks.from_json(zoo.header["network"])
    head = head_tensors(old)
    assert not isinstance(old, SIREN), "it has no head"
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, got {classes}")
    keep = keep or {}
    for what, names, count in (("new", keep, classes), ("old", keep.values(), old.classes)):
        if wrong := [name for name in names if not 0 <= name < count]:
            raise unknown_name(f"{what} class", str(wrong[0]), [str(name) for name in range(count)])
    new = replace(old, classes=classes)
    layout = Layout.of(new.build())
    rows = _initial(zoo, new, seed)
    known, made = zoo.layout.unflatten(zoo.weights()), layout.unflatten(rows)  # views
    for name, values in made.items():
        if name not in head:
            values.copy_(known[name])
        elif keep:
            axis = 1 + (layout.by_name[name].output_axis or 0)
            there, here = (torch.tensor(list(names), dtype=torch.int64) for names in (keep, keep.values()))
            values.index_copy_(axis, there, known[name].index_select(axis, here))
    table = zoo.table.drop("layout", "shard", "row")
    header = {key: value for key, value in zoo.header.items() if key not in ("dataset", "recipe")}
    return Zoo.in_memory(rows, layout, table, header | {"network": networks.to_json(new)})


def _initial(zoo: Zoo, network: Network, seed: int) -> Float[Tensor, "m p"]:
    """Whole new networks, of which the last layer is used."""
    seeds = torch.randint(2**62, (len(zoo),), generator=torch.Generator().manual_seed(seed))
    if {INIT, INIT_SCALE} <= set(zoo.table.columns):
        bias = (zoo.header.get("recipe") or {}).get("init_bias", 0.0)
        return planned_rows(network, zoo.table, seeds, bias=bias)
    return initial_rows(network, seeds, "torch", torch.ones(len(zoo)))
