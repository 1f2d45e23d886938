"""Whether networks that were drawn for a property have it.

Accuracy is measured on images. What training would have to tell (epochs, hyper-parameters) is read from the weights by
somebody else than the predictor that chose the networks: gradient boosting on weight statistics, fitted on the zoo.

Axes: n network.
"""

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError, unknown_name
from weightspace.evaluation.properties import statistics
from weightspace.generators.targeted import Region
from weightspace.zoo import Zoo, behaviour


def obtained(networks: Zoo, region: Region, *, train: Zoo, data: Dataset | None = None) -> pl.DataFrame:
    """The wanted property of networks, as it was predicted and as it is found.

    Args:
        networks: Of `generators.Targeted`, or others to compare with.
        region: What was wanted.
        train: Training models whose property is known, for properties that images do not show.
        data: Images, for accuracies; test images are used for `test_accuracy` alone.

    Returns:
        model, predicted (null where the networks were not drawn for it), obtained, wanted (whether what was obtained
        lies in the region), measured_by ("validation images", or "boosted weight statistics"), and test_accuracy where
        there are images.

    Raises:
        ConfigError: An accuracy needs images, and there are none.
        UnknownName: The training models lack the column.
    """
    column = region.column
    found: np.ndarray
    if column in ("metric.validation_accuracy", "metric.validation_loss"):
        if data is None:
            raise ConfigError(f"{column!r} of networks is measured on images: give the data set")
        loss, accuracy = behaviour.metrics(networks, data.validation_images, data.validation_labels)
        found, how = (accuracy if column.endswith("accuracy") else loss).double().numpy(), "validation images"
    else:
        found, how = _read(networks, region, train), "boosted weight statistics"
    predicted = f"predicted.{column}"
    table = pl.DataFrame({"model": networks.table["model"]}).with_columns(
        networks.table[predicted].alias("predicted") if predicted in networks.table.columns else
        pl.lit(None, pl.String if region.category is not None else pl.Float64).alias("predicted"),
        pl.Series("obtained", found),
        pl.Series("wanted", region.contains(found)),
        pl.lit(how).alias("measured_by"),
    )  # fmt: skip
    if data is None:
        return table
    tested = behaviour.metrics(networks, data.test_images, data.test_labels)[1]
    return table.with_columns(pl.Series("test_accuracy", tested.tolist()))


def _read(networks: Zoo, region: Region, train: Zoo) -> np.ndarray:
    if region.column not in train.table.columns:
        raise unknown_name("property", region.column, train.table.columns)
    known = train.where(pl.col(region.column).is_not_null()).finite()
    values = known.table[region.column].to_numpy()
    if region.category is not None:
        classifier = HistGradientBoostingClassifier(random_state=0).fit(statistics(known), values)
        return classifier.predict(statistics(networks))
    values = np.log10(values) if region.logarithm else values
    regressor = HistGradientBoostingRegressor(random_state=0).fit(statistics(known), values)
    read = regressor.predict(statistics(networks))
    return 10.0**read if region.logarithm else read
