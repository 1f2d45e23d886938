"""Networks with a wanted property: a predictor is fitted on latents, and draws outside the wanted region are refused.

The predictor reads the same latents that are drawn, so no network has to be decoded to be refused. It is a linear probe
whose penalty is chosen across runs, or any estimator of scikit-learn. Whether the networks have what is predicted of
them is another question: `evaluation.obtained` measures it.

Axes: m checkpoint, n network drawn, t token, z latent.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from weightspace.errors import ConfigError, unknown_name
from weightspace.generators.latent_sampler import LatentSampler
from weightspace.zoo import Zoo

PENALTIES = np.logspace(-1, 6, 15)
"""Of ridge regression on standardised latents."""
STRENGTHS = np.logspace(-4, 0, 5)
"""Inverse penalties of logistic regression."""
FOLDS = 5
"""Of the runs; a run lies in one."""
TEST_DATA = ("metric.test", "metric.generalisation")
"""Columns that test images have a part in: networks must not be chosen by them."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The property that is wanted, and which values of it.

    >>> Region(column="metric.validation_accuracy", low=0.9).contains(np.array([0.8, 0.95]))
    array([False,  True])
    """

    column: str
    """Of the zoo's table, such as `metric.validation_accuracy`, `step` or `config.learning_rate`."""
    low: float = -math.inf
    """Least value of a number."""
    high: float = math.inf
    """Largest value of a number."""
    category: str | None = None
    """Value of a text."""
    logarithm: bool = False
    """Predict log10 of the column, for hyper-parameters that span orders of magnitude; bounds stay in its own unit."""

    def __post_init__(self):
        if self.column.startswith(TEST_DATA):
            raise ConfigError(
                f"networks cannot be drawn for {self.column!r}, which was measured on test images: these would have "
                "chosen them before they are tested; take metric.validation_accuracy"
            )
        bounded = self.low > -math.inf or self.high < math.inf
        if (self.category is None) != bounded or not self.low <= self.high:
            raise ConfigError(
                f"a region of {self.column!r} needs a category, or a low or high that are in order, "
                f"got {self.low}, {self.high} and {self.category!r}"
            )

    def contains(self, values: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Which values are wanted."""
        if self.category is not None:
            return values == self.category
        return (values >= self.low) & (values <= self.high)

    def __str__(self) -> str:
        if self.category is not None:
            return f"{self.column} = {self.category}"
        return f"{self.low:g} <= {self.column} <= {self.high:g}"


class Targeted:
    """A sampler whose networks are predicted to have a property."""

    def __init__(
        self,
        sampler: LatentSampler,
        region: Region,
        *,
        estimator: BaseEstimator | None = None,
        candidates: int = 200,
    ):
        """Set up; nothing is fitted.

        Args:
            estimator: A regressor for numbers, a classifier for texts; a linear one when missing.
            candidates: Draws for each network that is wanted, before it is given up.
        """
        if candidates < 1:
            raise ConfigError(f"candidates must be at least 1, got {candidates}")
        self.sampler, self.region, self.candidates = sampler, region, candidates
        self.estimator = estimator

    def fit(self, train: Zoo, prompts: Zoo | None = None, seed: int = 0) -> "Targeted":
        """Fit the predictor to checkpoints whose property is known, and the sampler to prompts.

        Args:
            train: Training models, all their checkpoints: the property has to vary.
            prompts: What draws resemble; `train` when missing.

        Raises:
            UnknownName: There is no such column, or no such category in it.
            ConfigError: The column has no numbers, or a single value.
        """
        column, table = self.region.column, train.table
        if column not in table.columns:
            raise unknown_name("property", column, table.columns)
        known = train.where(self._usable(table[column]))
        values = known.table[column].to_numpy()
        if self.region.category is not None and self.region.category not in values:
            raise unknown_name(f"value of {column}", self.region.category, sorted(set(values.astype(str))))
        if self.region.logarithm:
            values = np.log10(values)
        if len(np.unique(values)) < 2:
            raise ConfigError(f"{column!r} is the same in all {len(known)} checkpoints: there is nothing to predict")
        runs = known.table["model"].rank("dense").to_numpy()
        latents = self.sampler.encoder.latents(known)
        self.predictor: Any = self._fitted(latents.flatten(1).double().numpy(), values, runs)
        self.sampler.fit(train if prompts is None else prompts, seed)
        return self

    def predict(self, latents: Float[Tensor, "n t z"]) -> np.ndarray:
        """The property as it is predicted of latents, in the unit of the column, `[n]`."""
        found = self.predictor.predict(latents.flatten(1).double().numpy())
        return 10.0**found if self.region.logarithm else found

    def sample(self, n: int, seed: int = 0) -> Zoo:
        """Draw networks that are predicted to lie in the region.

        Returns:
            A zoo in memory with the column `predicted.<column>`; the header tells the region and the share of draws
            that lay in it.

        Raises:
            ConfigError: Too few draws lie in the region, n is below 1, or nothing was fitted.
        """
        if not hasattr(self, "predictor"):
            raise ConfigError("the property's predictor is not fitted: call fit(train) first")
        if n < 1:
            raise ConfigError(f"the number of networks to draw must be at least 1, got {n}")
        generator = torch.Generator().manual_seed(seed)
        found: list[tuple[Tensor, pl.DataFrame]] = []
        predicted, drawn, accepted = [], 0, 0
        while accepted < n and drawn < self.candidates * n:
            latents, table = self.sampler.draw(n, int(torch.randint(2**62, (), generator=generator)))
            values = self.predict(latents)
            wanted = self.region.contains(values)
            predicted.append(values)
            found.append((latents[torch.from_numpy(wanted)], table.filter(pl.Series(wanted))))
            drawn, accepted = drawn + n, accepted + int(wanted.sum())
        values = np.concatenate(predicted)
        if accepted < n:
            seen = ", ".join(np.unique(values)) if self.region.category else f"{values.min():.4g} to {values.max():.4g}"
            raise ConfigError(
                f"only {accepted} of {drawn} draws are predicted to have {self.region} ({seen}): ask for less, or draw "
                "from prompts that are nearer to it"
            )
        latents, table = torch.cat([some for some, _ in found])[:n], pl.concat([some for _, some in found])[:n]
        column = pl.Series(f"predicted.{self.region.column}", values[self.region.contains(values)][:n])
        made = self.sampler.networks(latents, table.with_columns(column))
        target = {"region": str(self.region), "share_of_draws": accepted / drawn}
        header = made.header | {"name": f"{self.sampler.label}, {self.region}", "target": target}
        return replace(made, header=header)

    def _usable(self, values: pl.Series) -> pl.Expr:
        column = pl.col(self.region.column)
        if self.region.category is not None:
            if values.dtype != pl.String:
                raise ConfigError(f"{values.name!r} has type {values.dtype}, no categories: give low or high")
            return column.is_not_null()
        if not values.dtype.is_numeric():
            raise ConfigError(f"{values.name!r} has type {values.dtype}, no numbers: give a category")
        return column.is_finite() & (column > 0) if self.region.logarithm else column.is_finite().fill_null(False)

    def _fitted(self, features: np.ndarray, values: np.ndarray, runs: np.ndarray) -> Any:
        if self.estimator is not None:
            return self.estimator.fit(features, values)
        folds = GroupKFold(min(FOLDS, len(np.unique(runs))))
        if self.region.category is None:
            model, grid = make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PENALTIES}
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))
            grid = {"logisticregression__C": STRENGTHS}
        return GridSearchCV(model, grid, cv=folds).fit(features, values, groups=runs).best_estimator_
