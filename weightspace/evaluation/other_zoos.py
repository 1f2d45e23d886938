"""Out of distribution: probes of one zoo in zoos that were trained otherwise or on other images.

Axes: n checkpoint, d feature.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from weightspace.errors import ConfigError
from weightspace.evaluation.properties import BOOSTED, Hyperparameters, predict_properties
from weightspace.zoo import Zoo


def out_of_distribution(
    zoo: Zoo,
    others: Mapping[str, Zoo],
    representations: Mapping[str, Callable[[Zoo], np.ndarray] | Hyperparameters],
    targets: Sequence[str],
    *,
    seed: int = 0,
    boosting: Sequence[str] = BOOSTED,
) -> pl.DataFrame:
    """Fit probes on one zoo and test them on others, beside the test models of the first.

    Args:
        zoo: Its training models fit, its validation models choose, here and everywhere.
        others: By name; their test models are predicted. Runs other than those of `zoo`.
        representations: As of `predict_properties`; learned ones were fitted on training models of `zoo`.
        targets: Columns that all zoos have.
        seed: Of all splits.
        boosting: As of `predict_properties`.

    Returns:
        Scores of `predict_properties` after two columns: fitted_on and tested_on. R2 is relative to the variance among
        the tested models, and becomes negative where the level of a property shifts; Kendall's tau sees ranks alone.

    Raises:
        ConfigError: A name is that of the first zoo, or as `predict_properties`.

    Source: Schürholt et al. 2021, section on out-of-distribution prediction.
    """
    name = str(zoo.header.get("name"))
    if name in others:
        raise ConfigError(f"another zoo is called {name!r}, too: give it another name")
    train, validation, test = zoo.finite().split(seed)
    tested = {name: test} | {key: other.finite().split(seed)[2] for key, other in others.items()}
    tables = []
    for key, part in tested.items():
        scores, _ = predict_properties(train, validation, part, representations, targets, boosting=boosting)
        tables.append(scores.select(pl.lit(name).alias("fitted_on"), pl.lit(key).alias("tested_on"), pl.all()))
    return pl.concat(tables)
