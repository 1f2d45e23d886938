"""Networks and whole zoos in one order of hidden units, for whatever reads or mixes weights outside this library.

Axes: m checkpoint, p parameter.
"""

import polars as pl
from jaxtyping import Float
from torch import Tensor

from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.errors import ConfigError, LayoutError, unknown_name
from weightspace.networks import Network
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo.behaviour import by_activation


def aligned_zoo(zoo: Zoo, *, seed: int = 0) -> Zoo:
    """The zoo with every run in the order of hidden units that lies nearest to the training networks' mean.

    The reference is the aligned mean of the best training networks by validation accuracy; validation and test networks
    are aligned to it and have no part in it. Each run takes the permutation of its last checkpoint.

    Args:
        zoo: Checkpoints of one layout with finite weights.
        seed: Of the split by model, and of the order of groups.
    Returns:
        A zoo in memory with the same table; every function is unchanged.
    Raises:
        LayoutError: The zoo does not say what its networks compute, and they are no plain chain.
        ZooError: A checkpoint has NaN weights, or the zoo has several layouts or less than three models.

    >>> import tempfile
    >>> from weightspace.zoo.train import Recipe, train
    >>> zoo = train(tempfile.mkdtemp() + "/zoo", Recipe(models=4, epochs=1, train_limit=64), workers=1)
    >>> aligned_zoo(zoo)
    Zoo('zoo': 4 models, 8 checkpoints, 1060 parameters, in memory)
    """
    zoo.require_finite("alignment")
    train, _, _ = zoo.split(seed)
    return zoo.with_weights(aligned_rows(zoo, training_reference(train, seed)))


def chosen_network(name: str, like: Network | None = None) -> tuple[Network, Float[Tensor, " p"], Zoo]:
    """One checkpoint of a zoo.

    Args:
        name: `ZOO:MODEL` for its last checkpoint, `ZOO:MODEL@STEP` for another.
        like: The network must be of this architecture, activation included.
    Returns:
        The network's configuration, its row, and the zoo with only this checkpoint.
    Raises:
        ConfigError: The name is incomplete.
        UnknownName: The zoo has no such model or step.
        ZooError: There is no such zoo.
        LayoutError: The network is another one than `like`.
    """
    folder, _, chosen = name.rpartition(":")
    model, _, step = chosen.partition("@")
    if not folder or not model or (step and not step.isdecimal()):
        raise ConfigError(f"a network is named ZOO:MODEL or ZOO:MODEL@STEP, got {name!r}")
    zoo = open_zoo(folder)
    if model not in zoo.models:
        raise unknown_name(f"model of {folder}", model, zoo.models)
    run = zoo.where(pl.col("model") == model)
    steps = [str(one) for one in run.table["step"].sort()]
    if step and step not in steps:
        raise unknown_name(f"step of model {model}", step, steps)
    one = run.where(pl.col("step") == int(step or steps[-1]))
    one.require_finite("alignment")
    ((network, _),) = by_activation(one)
    if like is not None and network != like:
        raise LayoutError(f"{name} is another network than the first one: {network} instead of {like}")
    return network, one.weights()[0], one
