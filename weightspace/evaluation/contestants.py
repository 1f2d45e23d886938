"""What competes in the benchmark: encoders that learn from targets, and the simple predictors that they must beat.

A contestant is fitted on training networks, chosen on validation networks, and then predicts columns of any zoo's
table. `contestant(name)` finds them all by name; `module:Class` finds a weight encoder anywhere.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import polars as pl
from jaxtyping import Float
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression

from weightspace import encoders
from weightspace.encoders import Predictor, PredictorTraining, WeightEncoder
from weightspace.encoders.predictor import Target
from weightspace.errors import ConfigError, LayoutError, unknown_name
from weightspace.evaluation.properties import Hyperparameters, ridge, standardise
from weightspace.views.architecture import bundles
from weightspace.views.statistics import weight_statistics
from weightspace.zoo import Zoo

Features = Callable[[Zoo, str], np.ndarray]
"""Features `[n, d]` of a zoo's checkpoints, for a target."""


class Fitted(Protocol):
    """A fitted contestant."""

    @property
    def targets(self) -> Sequence[Target]:
        """What is predicted."""

    @property
    def parameters(self) -> int | None:
        """Number of learned parameters; `None` where they cannot be counted."""

    def predict(self, zoo: Zoo) -> pl.DataFrame:
        """A column a target, in its own units, in table order."""

    def invariance_gap(self, zoo: Zoo) -> float | None:
        """Change of the predictions under permutations of hidden units; `None` where weights are not read."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A name and how it is fitted."""

    name: str
    fit: Callable[[Zoo, Zoo, Sequence[str], int], Fitted]
    """Of training zoo, validation zoo, columns and seed."""
    source: str = "built in"
    """Module and class of an encoder from elsewhere."""
    how: str = ""
    """Configuration and training, in words: with another one its results are others."""


# ---- Simple predictors


class Simple:
    """An estimator on simple features, one for each target."""

    def __init__(self, features: Features, targets: Sequence[Target], models: Sequence[object]):
        self.features, self.targets, self.models = features, tuple(targets), models

    @property
    def parameters(self) -> int | None:
        """Not counted: trees have none."""
        return None

    def predict(self, zoo: Zoo) -> pl.DataFrame:
        """A column a target, in its own units, in table order."""
        columns = []
        for target, model in zip(self.targets, self.models, strict=True):
            values = model.predict(self.features(zoo, target.column))  # type: ignore[attr-defined]
            if target.kind == "class":
                columns.append(pl.Series(target.column, [target.classes[int(i)] for i in values]))
                continue
            values = np.clip(values, 0, 1) if target.kind == "share" else values * target.std + target.mean
            columns.append(pl.Series(target.column, 10**values if target.log10 else values))
        return pl.DataFrame(columns)

    def invariance_gap(self, zoo: Zoo) -> float | None:
        """Statistics do not see the order of units: zero but for rounding, so it is not measured."""
        return None


@dataclass(frozen=True)
class TensorStatistics:
    """Seven statistics of every tensor, in layout order; networks of fewer tensors have zeros behind.

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> TensorStatistics(3)(Zoo.in_memory(torch.ones(1, 8), layout, table, {}), "step").shape
    (1, 21)
    """

    tensors: int
    """Of the deepest training network."""

    def __call__(self, zoo: Zoo, target: str) -> Float[np.ndarray, "n d"]:
        """Features of every checkpoint.

        Raises:
            LayoutError: A network has more tensors than those of training.
        """
        features = np.zeros((len(zoo), 7 * self.tensors), dtype=np.float32)
        for places, some in bundles(zoo):
            found = len(some.architecture.layout.tensors)
            if found > self.tensors:
                raise LayoutError(
                    f"networks of {found} tensors have more statistics than training networks of {self.tensors}; "
                    "take an encoder that reads any depth"
                )
            features[places.numpy(), : 7 * found] = weight_statistics(some.rows, some.architecture.layout).numpy()
        return features


def _statistics(train: Zoo) -> Features:
    return TensorStatistics(max(len(some.architecture.layout.tensors) for _, some in bundles(train)))


def _hyperparameters(train: Zoo) -> Features:
    known = Hyperparameters(train)
    return lambda zoo, target: known(zoo, exclude=target)


def _nothing(train: Zoo) -> Features:
    return lambda zoo, target: np.zeros((len(zoo), 1))


BOOSTING = tuple(
    {"min_samples_leaf": least, "max_leaf_nodes": leaves, "learning_rate": rate}
    for least in (5, 20)
    for leaves in (8, 31)
    for rate in (0.1, 0.03)
)
"""Settings of gradient boosting; validation networks choose among them and stop it."""


def _boosting(sides: Sequence[np.ndarray], values: Sequence[np.ndarray], target: Target, seed: int) -> object:
    """Gradient-boosted trees of the setting and of the number of trees with the best validation score."""
    kind = HistGradientBoostingClassifier if target.kind == "class" else HistGradientBoostingRegressor
    best, chosen = -np.inf, None
    for setting in BOOSTING:
        model = kind(max_iter=400, early_stopping=True, n_iter_no_change=30, random_state=seed, **setting)
        model.fit(sides[0], values[0], X_val=sides[1], y_val=values[1])
        score = float(np.max(model.validation_score_))
        if score > best:
            best, chosen = score, (setting, max(1, int(np.argmax(model.validation_score_))))
    setting, trees = chosen  # type: ignore[misc]
    return kind(max_iter=trees, early_stopping=False, random_state=seed, **setting).fit(sides[0], values[0])


class _Linear:
    """Ridge regression on standardised features."""

    def __init__(self, sides: Sequence[np.ndarray], values: Sequence[np.ndarray]):
        self.train = sides[0]
        train, validation = standardise(*sides)
        self.weights, self.intercept, _ = ridge(train, values[0][:, None], validation, values[1][:, None])

    def predict(self, features: np.ndarray) -> np.ndarray:
        return (standardise(self.train, features)[1] @ self.weights + self.intercept)[:, 0]


def _linear(sides: Sequence[np.ndarray], values: Sequence[np.ndarray], target: Target, seed: int) -> object:
    if target.kind != "class":
        return _Linear(sides, values)
    scored = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0):
        model = LogisticRegression(C=1 / (len(values[0]) * penalty), max_iter=1000, tol=1e-3)
        model.fit(sides[0], values[0])
        scored.append((model.score(sides[1], values[1]), model))
    return max(scored, key=lambda pair: pair[0])[1]


def _constant(sides: Sequence[np.ndarray], values: Sequence[np.ndarray], target: Target, seed: int) -> object:
    model = DummyClassifier() if target.kind == "class" else DummyRegressor()
    return model.fit(sides[0], values[0])


_SIMPLE: dict[str, tuple[Callable[[Zoo], Features], Callable[..., object]]] = {
    "constant": (_nothing, _constant),
    "hyper-parameters, boosting": (_hyperparameters, _boosting),
    "statistics, ridge": (_statistics, _linear),
    "statistics, boosting": (_statistics, _boosting),
}


def _fit_simple(name: str, train: Zoo, validation: Zoo, columns: Sequence[str], seed: int) -> Simple:
    features_of, estimator = _SIMPLE[name]
    features = features_of(train)
    targets = [Target.of(column, train.table) for column in columns]
    models = []
    for target in targets:
        sides, values = [], []
        for zoo in (train, validation):
            known = target.read(zoo.table).numpy().astype(np.float64)
            present = np.isfinite(known)
            sides.append(features(zoo, target.column)[present])
            values.append(known[present])
        models.append(estimator(sides, values, target, seed))
    return Simple(features, targets, models)


# ---- Encoders


def _fit_encoder(
    encoder: type[WeightEncoder],
    config: object,
    changes: dict,
    train: Zoo,
    validation: Zoo,
    columns: Sequence[str],
    seed: int,
) -> Predictor:
    optimisation: PredictorTraining = replace(encoder.optimisation, seed=seed, **changes)
    return Predictor.fit(
        encoder, train, validation=validation, targets=columns, config=config, optimisation=optimisation
    )


def names() -> list[str]:
    """Everybody who can compete, simple predictors first.

    >>> names()[:2]
    ['constant', 'hyper-parameters, boosting']
    """
    return [*_SIMPLE, *(encoder.name for encoder in encoders.weight_encoders())]


def contestant(name: str, *, config: object | None = None, called: str | None = None, **changes: Any) -> Contestant:
    """A simple predictor, an encoder of this library, or one from elsewhere as `module:Class`.

    Args:
        config: Of the encoder's `Config`; its defaults when missing.
        called: Name in the tables, so that one method can compete with several configurations.
        changes: Fields of `PredictorTraining` that should be otherwise; simple predictors have none of them.

    Raises:
        UnknownName: There is no such contestant.
        ConfigError: The module or the class is not there, it is no `WeightEncoder`, or the configuration is not of its
            kind.

    >>> contestant("statistics, boosting").name
    'statistics, boosting'
    >>> contestant("sne", config=encoders.SNEConfig(codes=False), called="sne without codes").name
    'sne without codes'
    """
    if name in _SIMPLE:
        return Contestant(name=called or name, fit=partial(_fit_simple, name))
    source = "built in"
    if ":" in name:
        encoder, source = _from_elsewhere(name), name
    elif name in names():
        encoder = encoders.by_name(name)
    else:
        raise unknown_name("contestant", name, names())
    config = encoder.Config() if config is None else config
    if not isinstance(config, encoder.Config):
        raise ConfigError(f"{name} needs a {encoder.Config.__name__}, got a {type(config).__name__}")
    return Contestant(
        name=called or encoder.name,
        fit=partial(_fit_encoder, encoder, config, changes),
        source=source,
        how=repr((config, replace(encoder.optimisation, **changes))),
    )


def _from_elsewhere(path: str) -> type[WeightEncoder]:
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`: modules of the folder that one stands in
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load the encoder {path!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, WeightEncoder) and hasattr(found, "name")):
        raise ConfigError(f"{path!r} is no subclass of weightspace.encoders.WeightEncoder with a name")
    return found
