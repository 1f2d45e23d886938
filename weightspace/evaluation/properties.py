"""Property prediction: what a representation of weights tells about networks that were never seen.

Protocol of the hyper-representations papers (Schürholt et al. 2021, 2024): fit a probe on training models,
choose its strength on validation models, report on test models once; a model is on one side only.

* Numeric targets: ridge regression, and gradient boosting where asked; R2, Kendall's tau, mean absolute error.
  A `config.*` target that is strictly positive and spans more than a factor of 100 on the training split is predicted
  in log10, and its label says so ("log10 config.learning_rate"). `step` and `metric.*` are predicted as recorded.
* Text and truth values: logistic regression, and gradient boosting where asked; accuracy beside the share of the most
  frequent training class.
* A target that does not vary on the training split has one row with metric "constant" and no value.
* Checkpoints with non-finite weights are left out everywhere, those without a finite target for that target;
  `n_train` and `n_test` count what is left. The validation split chooses and is never merged into training.

Axes: n training checkpoint, v validation checkpoint, d feature, k target, a penalty, r rank.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice

import numpy as np
import polars as pl
from jaxtyping import Float, Float64
from scipy.linalg import eigh
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from weightspace.errors import ConfigError, unknown_name
from weightspace.progress import progress_bar
from weightspace.views.statistics import weight_statistics
from weightspace.zoo.store import Zoo

RIDGE_PENALTIES = np.logspace(-5, 3, 17)
"""Penalties a training checkpoint (the squared norm is weighted by n times this): 17 in half decades, as published."""
LOGISTIC_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
"""Penalties a training checkpoint, strongest first, so that each fit starts from a smoother one."""
BOOSTED = ("metric.test_accuracy",)
"""Targets of gradient boosting where the caller names none."""
BOOSTING_TREES, BOOSTING_PATIENCE = 300, 20
"""At most this many trees, fewer when the validation loss has not fallen for so many; the rest is scikit-learn's."""
BOOSTING_WIDTH = 512
"""Gradient boosting is run on representations of at most this many features."""
SERIAL_VALUES = 2**22
"""Probes on fewer training values than this (checkpoints times features) use one thread."""
LOG_SPAN = 100.0
"""A strictly positive hyper-parameter whose largest value is more than this times its smallest counts in log10."""

SCORE_COLUMNS = {name: pl.String for name in ("representation", "probe", "target", "metric")} | {
    "value": pl.Float64,
    "n_train": pl.Int64,
    "n_test": pl.Int64,
}
PREDICTION_COLUMNS = {name: pl.String for name in ("representation", "probe", "target", "model")} | {
    "step": pl.Int64,
    "true": pl.Float64,
    "predicted": pl.Float64,
}

_Result = tuple[str, "_Target", np.ndarray]  # probe, target, predictions for the test checkpoints that have a value


# ---- Representations


def flat_weights(zoo: Zoo) -> Float[np.ndarray, "n d"]:
    """Baseline: the weights as they are, one row a checkpoint `[n, d]`, float32.

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    >>> flat_weights(Zoo.in_memory(torch.ones(2, 8), layout, table, {})).shape
    (2, 8)
    """
    return zoo.weights().numpy()


def statistics(zoo: Zoo) -> Float[np.ndarray, "n d"]:
    """Baseline: mean, deviation and percentiles of every tensor (Unterthiner et al. 2020), `[n, d]`, float32.

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    >>> statistics(Zoo.in_memory(torch.ones(2, 8), layout, table, {})).shape
    (2, 14)
    """
    return weight_statistics(zoo.weights(), zoo.layout).numpy()


def combined(*representations: Callable[[Zoo], np.ndarray]) -> Callable[[Zoo], Float[np.ndarray, "n d"]]:
    """Several representations side by side; name it by all of them, so that nobody takes it for one alone.

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
    >>> zoo = Zoo.in_memory(torch.ones(2, 8), layout, table, {})
    >>> combined(flat_weights, statistics)(zoo).shape
    (2, 22)
    """
    return lambda zoo: np.concatenate([represent(zoo) for represent in representations], axis=1)


@dataclass(frozen=True)
class Hyperparameters:
    """Baseline: what somebody knows who has the training log but not the weights; it is told the target to leave out.

    Features are `step` and all of `config.*` but the target and but seeds and ids: so configuration and step for a
    metric, configuration alone for `step`, the other hyper-parameters and the step for a hyper-parameter. Numbers that
    span orders of magnitude on the training split are taken in log10 (the rule for targets), missing ones become the
    training mean, text and truth values one column a training value. The first column is a constant, so that a zoo
    with a single configuration predicts the mean.

    Args:
        train: The training split: fixes the columns, their categories and which are logarithms.

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [1, 2], "config.seed": [0, 1], "config.init": ["xu", "xn"]})
    >>> zoo = Zoo.in_memory(torch.ones(2, 8), Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> Hyperparameters(zoo)(zoo, exclude="step")
    array([[1., 0., 1.],
           [1., 1., 0.]])
    """

    train: Zoo

    def __call__(self, zoo: Zoo, exclude: str) -> Float64[np.ndarray, "n d"]:
        """Encode a zoo's hyper-parameters, without the column `exclude`, as `[n, d]`.

        Raises:
            UnknownName: The zoo lacks a hyper-parameter that the training split has.
        """
        features = [np.ones(zoo.table.height)]
        for column in self.train.table.columns:
            if column == exclude or _is_identifier(column) or not (column == "step" or column.startswith("config.")):
                continue
            if column not in zoo.table.columns:
                raise unknown_name("hyper-parameter", column, zoo.table.columns)
            known, asked = self.train.table[column], zoo.table[column]
            if _is_categorical(known):
                text = asked.cast(pl.String).fill_null("null")
                categories = known.cast(pl.String).fill_null("null").unique().sort()
                features += [(text == category).cast(pl.Float64).to_numpy() for category in categories]
            else:
                (known_values, values), _ = _numbers(column, [known, asked])
                usual = known_values[np.isfinite(known_values)]
                features.append(np.where(np.isfinite(values), values, usual.mean() if len(usual) else 0.0))
        return np.stack(features, axis=1)


# ---- Targets


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A column of the table, ready for a probe, on the three splits."""

    column: str
    label: str
    categorical: bool
    splits: tuple[np.ndarray, ...]
    """Train, validation, test in float64; NaN is missing. Classes are numbers, -1 one that training lacks."""

    @property
    def present(self) -> tuple[np.ndarray, ...]:
        """Which checkpoints of each split have a value."""
        return tuple(np.isfinite(values) for values in self.splits)

    @property
    def counts(self) -> tuple[int, int]:
        """Training and test checkpoints that have a value."""
        return int(self.present[0].sum()), int(self.present[2].sum())

    @property
    def constant(self) -> bool:
        """Whether there is nothing to learn."""
        return len(np.unique(self.splits[0][self.present[0]])) < 2


def _is_identifier(column: str) -> bool:
    return not {"seed", "id"}.isdisjoint(column.rpartition(".")[2].split("_"))


def _is_categorical(series: pl.Series) -> bool:
    return series.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)


def _numbers(column: str, splits: Sequence[pl.Series]) -> tuple[list[np.ndarray], bool]:
    """Read a column as float64, in log10 by the rule at the head of this file (the first split decides)."""
    values = [series.cast(pl.Float64).to_numpy() for series in splits]
    known = values[0][np.isfinite(values[0])]
    logarithm = column.startswith("config.") and len(known) > 0 and known.min() > 0
    logarithm = logarithm and known.max() > LOG_SPAN * known.min()
    if logarithm:
        values = [np.log10(v, out=np.full_like(v, np.nan), where=v > 0) for v in values]
    return values, bool(logarithm)


def _read_target(column: str, zoos: Sequence[Zoo]) -> _Target:
    for zoo in zoos:
        allowed = [c for c in zoo.table.columns if c == "step" or c.startswith(("config.", "metric."))]
        if column not in allowed:
            raise unknown_name("target", column, [c for c in allowed if not _is_identifier(c)])
    if _is_identifier(column):
        raise ConfigError(f"target {column!r} names a run, it is not a property of it; leave it out of the targets")
    series = [zoo.table[column] for zoo in zoos]
    logarithm = False
    if categorical := _is_categorical(series[0]):
        texts = [s.cast(pl.String).to_list() for s in series]
        code = {text: float(number) for number, text in enumerate(sorted(set(texts[0]) - {None}))} | {None: np.nan}
        values = [np.array([code.get(text, -1.0) for text in split]) for split in texts]
    elif series[0].dtype.is_numeric():
        values, logarithm = _numbers(column, series)
    else:
        raise ConfigError(
            f"target {column!r} has type {series[0].dtype}; a target is a number, a text or a truth value"
        )
    label = f"log10 {column}" if logarithm else column
    target = _Target(column=column, label=label, categorical=categorical, splits=tuple(values))
    for split, present, least in zip(("training", "validation", "test"), target.present, (2, 1, 2), strict=True):
        if present.sum() < least:
            raise ConfigError(
                f"target {label!r} has {present.sum()} usable of {len(present)} checkpoints in the {split} split, "
                f"at least {least} are needed; leave the target out or use a larger zoo"
            )
    return target


# ---- Probes


def standardise(
    train: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "_ d"]
) -> tuple[Float64[np.ndarray, "_ d"], ...]:
    """Centre and scale every feature by its training mean and deviation; features constant in training become 0.

    >>> standardise(np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[3.0, 9.0]]))[1]
    array([[2., 0.]])
    """
    train = train.astype(np.float64)
    mean, deviation = train.mean(0), train.std(0)
    # the mean of equal numbers is off by a rounding error, which must not count as spread
    scale = np.where(deviation > 1e-10 * np.abs(train).max(0), deviation, np.inf)
    return tuple((features - mean) / scale for features in (train, *others))


def ridge(
    features: Float64[np.ndarray, "n d"],
    targets: Float64[np.ndarray, "n k"],
    validation_features: Float64[np.ndarray, "v d"],
    validation_targets: Float64[np.ndarray, "v k"],
    penalties: Float64[np.ndarray, " a"] = RIDGE_PENALTIES,
) -> tuple[Float64[np.ndarray, "d k"], Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Ridge regression of all targets at all penalties from one eigendecomposition; validation error chooses.

    Minimises |y - Xw - b|^2 + n penalty |w|^2; with more features than checkpoints the n x n dual is decomposed.

    Args:
        features: Centred training features `[n, d]`.
        targets: Training targets `[n, k]`, any offset.
        validation_features: `[v, d]`, centred as the training features.
        validation_targets: `[v, k]`.
        penalties: Candidates `[a]`.

    Returns:
        Coefficients `[d, k]`, intercepts `[k]` and the chosen penalty of every target `[k]`.

    Source: Schürholt et al. 2021, linear probe.

    >>> x = np.array([[-1.0], [0.0], [1.0]])
    >>> ridge(x, 2 * x, x, 2 * x, np.array([0.0, 1.0]))
    (array([[2.]]), array([0.]), array([0.]))
    """
    count, width = features.shape
    intercept = targets.mean(0)
    if width <= count:
        strengths, basis = eigh(features.T @ features)  # [d], [d r]
        moments = basis.T @ (features.T @ (targets - intercept))  # [r k]
    else:
        strengths, vectors = eigh(features @ features.T)
        basis, moments = features.T @ vectors, vectors.T @ (targets - intercept)
    shrinkage = 1 / (strengths.clip(0) + count * penalties[:, None])  # [a r]
    guesses = (validation_features @ basis) @ (shrinkage[:, :, None] * moments) + intercept  # [a v k]
    best = np.square(guesses - validation_targets).mean(1).argmin(0)  # [k]
    return basis @ (shrinkage[best].T * moments), intercept, penalties[best]


def _boosting(splits: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, categorical: bool) -> np.ndarray:
    """Gradient-boosted trees, as many as have the lowest validation loss; predictions for the test split."""
    kind = HistGradientBoostingClassifier if categorical else HistGradientBoostingRegressor
    model = kind(max_iter=BOOSTING_TREES, early_stopping=True, n_iter_no_change=BOOSTING_PATIENCE, random_state=0)
    checked, known = splits[1], targets[1]
    if categorical:  # the loss of a class that training lacks does not exist
        seen = np.isin(known, targets[0])
        checked, known = (checked[seen], known[seen]) if seen.any() else (splits[0], targets[0])
    model.fit(splits[0], targets[0], X_val=checked, y_val=known)
    trees = max(1, int(np.argmax(model.validation_score_)))  # its first entry is before any tree
    return next(islice(model.staged_predict(splits[2]), trees - 1, None))


def _logistic(splits: Sequence[np.ndarray], classes: Sequence[np.ndarray]) -> np.ndarray:
    """Multinomial logistic regression at the penalty with the best validation accuracy; predictions for test."""
    model = LogisticRegression(warm_start=True, max_iter=1000, tol=1e-3)
    chosen, best = model, -1.0
    for penalty in LOGISTIC_PENALTIES:
        model.set_params(C=1 / (len(classes[0]) * penalty)).fit(splits[0], classes[0])
        accuracy = model.score(splits[1], classes[1])
        if accuracy > best:
            chosen, best = copy(model), accuracy
    return chosen.predict(splits[2])


def _probes(features: Sequence[np.ndarray], targets: Sequence[_Target], boosted: Sequence[str]) -> Iterator[_Result]:
    """All probes of all targets on one representation; targets that miss the same checkpoints share one ridge."""
    alike = defaultdict(list)
    for target in targets:
        if not target.constant:
            alike[b"".join(present.tobytes() for present in target.present)].append(target)
    for group in alike.values():
        present = group[0].present
        raw = [split[keep] for split, keep in zip(features, present, strict=True)]
        train, validation, test = standardise(*raw)
        numeric = [target for target in group if not target.categorical]
        if numeric:
            known, checked = (np.stack([t.splits[s][present[s]] for t in numeric], axis=1) for s in (0, 1))
            weights, intercept, _ = ridge(train, known, validation, checked)
            for target, predicted in zip(numeric, (test @ weights + intercept).T, strict=True):
                yield "ridge", target, predicted
        for target in group:
            values = [split[keep] for split, keep in zip(target.splits, present, strict=True)]
            if target.categorical:
                yield "logistic", target, _logistic((train, validation, test), values)
            if target.column in boosted and train.shape[1] <= BOOSTING_WIDTH:
                yield "boosting", target, _boosting(raw, values, categorical=target.categorical)


# ---- The protocol


def number_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """R2, Kendall's tau and mean absolute error; null where the test values, or the ranks, do not vary."""
    tau = kendalltau(true, predicted).statistic
    return {
        "r2": float(1 - np.square(true - predicted).mean() / true.var()) if np.ptp(true) > 0 else None,
        "kendall_tau": float(tau) if np.isfinite(tau) else None,
        "mae": float(np.abs(true - predicted).mean()),
    }


def class_scores(true: np.ndarray, predicted: np.ndarray, training: np.ndarray) -> dict[str, float | None]:
    """Share of right classes on test, and that of always naming the most frequent training class."""
    classes, counts = np.unique(training, return_counts=True)
    return {
        "accuracy": float((true == predicted).mean()),
        "majority": float((true == classes[counts.argmax()]).mean()),
    }


def _features(name: str, represent: Callable[[Zoo], np.ndarray], zoos: Sequence[Zoo]) -> list[np.ndarray]:
    """Compute and check the representation of the three splits."""
    splits = [np.asarray(represent(zoo)) for zoo in zoos]
    shapes = [split.shape for split in splits]
    if shapes != [(len(zoo), shapes[0][-1]) for zoo in zoos]:
        wanted = ", ".join(f"({len(zoo)}, d)" for zoo in zoos)
        raise ConfigError(
            f"representation {name!r} gives arrays of shapes {shapes}, but {wanted} with one d are needed"
        )
    if not all(np.isfinite(split).all() for split in splits):
        raise ConfigError(f"representation {name!r} gives NaN or infinite features for networks with finite weights")
    return splits


def _check_sides(sides: Mapping[str, Zoo]) -> None:
    """Refuse a model on two sides of the split: its checkpoints are alike, so the probe would know it.

    Models of different zoos on disk are different ones, though they often have the same names.
    """
    for (first, a), (second, b) in combinations(sides.items(), 2):
        if not a.origins.keys() & b.origins.keys():
            continue
        if shared := sorted(set(a.models) & set(b.models)):
            raise ConfigError(
                f"model {shared[0]!r} is in the {first} and in the {second} split ({len(shared)} such models); "
                "split by model, for example with zoo.split()"
            )


def _check_boosting(boosting: Sequence[str], targets: Sequence[_Target]) -> None:
    for column in boosting:
        if column not in BOOSTED and column not in [target.column for target in targets]:
            raise unknown_name("boosting target", column, [target.column for target in targets])


def predict_properties(
    train: Zoo,
    validation: Zoo,
    test: Zoo,
    representations: Mapping[str, Callable[[Zoo], np.ndarray] | Hyperparameters],
    targets: Sequence[str],
    *,
    boosting: Sequence[str] = BOOSTED,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predict properties of unseen models from each representation of their weights.

    Args:
        train: Models that probes are fitted on.
        validation: Models that choose penalties and stop boosting.
        test: Models that are predicted, once.
        representations: Name to function of a zoo that gives features `[n, d]` in table order, such as `statistics`.
        targets: Columns of the table: `step`, `metric.*` or `config.*`.
        boosting: Targets that, where they are among the targets, are also predicted by gradient boosting, from
            representations of at most 512 features.

    Returns:
        Scores: representation, probe ("ridge", "boosting", "logistic"), target, metric ("r2", "kendall_tau", "mae";
        "accuracy", "majority"; "constant"), value (null where undefined), n_train, n_test. Predictions of numeric
        targets on the test split: representation, probe, target, model, step, true, predicted.

    Raises:
        ConfigError: A model is on two sides; a target is unknown, names a run, or has too few values; a representation
            gives something else than finite numbers `[n, d]`.

    Source: Schürholt et al. 2021 and 2024 (linear probes); Unterthiner et al. 2020 (boosting, Kendall's tau).

    >>> import torch
    >>> from weightspace.networks.layout import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": list("abcdef"), "step": range(6)})
    >>> zoo = Zoo.in_memory(torch.arange(6.0)[:, None].expand(6, 8), layout, table, {})
    >>> sides = zoo.take([0, 1, 5]), zoo.take([2]), zoo.take([3, 4])
    >>> scores, _ = predict_properties(*sides, {"weights": flat_weights}, ["step"])
    >>> scores.select("probe", "target", "metric", pl.col("value").round(3)).row(0)
    ('ridge', 'step', 'r2', 1.0)
    """
    if not representations or not targets:
        raise ConfigError(
            f"nothing to predict: {len(representations)} representations and {len(targets)} targets given"
        )
    _check_sides({"training": train, "validation": validation, "test": test})
    zoos = [zoo.finite() for zoo in (train, validation, test)]
    read = [_read_target(column, zoos) for column in dict.fromkeys(targets)]
    _check_boosting(boosting, read)

    jobs: list[tuple[str, Callable[[Zoo], np.ndarray], list[_Target]]] = []
    for name, represent in representations.items():
        if isinstance(represent, Hyperparameters):  # other features for every target
            jobs += [(name, partial(represent, exclude=target.column), [target]) for target in read]
        else:
            jobs.append((name, represent, read))

    scores: list[tuple] = []
    predictions = [pl.DataFrame(schema=PREDICTION_COLUMNS)]
    with progress_bar("predicting properties", len(jobs)) as advance:
        for name, represent, wanted in jobs:
            features = _features(name, represent, zoos)
            for target in wanted:
                if target.constant:
                    probe = "logistic" if target.categorical else "ridge"
                    scores.append((name, probe, target.label, "constant", None, *target.counts))
            # small probes hand threads microseconds of work: beside another busy process that is 10 times slower
            with threadpool_limits(1 if features[0].size < SERIAL_VALUES else None):
                results = list(_probes(features, wanted, boosting))
            for probe, target, predicted in results:
                keep = target.present[2]
                true = target.splits[2][keep]
                if target.categorical:
                    measured = class_scores(true, predicted, target.splits[0][target.present[0]])
                else:
                    measured = number_scores(true, predicted)
                    about = {"representation": name, "probe": probe, "target": target.label}
                    which = zoos[2].table.select("model", "step").filter(keep).to_dict()
                    values = {"true": true, "predicted": predicted}
                    predictions.append(pl.DataFrame(about | which | values, schema=PREDICTION_COLUMNS))
                scores += [(name, probe, target.label, *item, *target.counts) for item in measured.items()]
            advance(note=name)
    return pl.DataFrame(scores, schema=SCORE_COLUMNS, orient="row"), pl.concat(predictions)
