"""Which layers tell what: a probe on what each layer shows, all else equal.

Axes: n checkpoint, d feature, l layer.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import torch

from weightspace.encoders import Autoencoder
from weightspace.errors import ConfigError
from weightspace.evaluation.properties import predict_properties
from weightspace.networks import Layout
from weightspace.views.statistics import weight_statistics
from weightspace.views.tokens import tokenised_layers
from weightspace.zoo import Zoo

Represent = Callable[[Zoo], np.ndarray]
"""Features `[n, d]` of a zoo's checkpoints, in table order."""
WHOLE = "all layers"


def layer_statistics(layout: Layout) -> dict[str, Represent]:
    """Weight statistics of each layer alone, by the layer's name, in the layout's order.

    >>> list(layer_statistics(Layout.of(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)))))
    ['0', '1']
    """
    owned: dict[str, list] = {}
    for spec in layout.tensors:
        owned.setdefault(spec.layer_name, []).append(spec)

    def of(specs: list) -> Represent:
        places = torch.cat([torch.arange(layout.parameters)[layout.slices[spec.name]] for spec in specs])
        part = Layout(tuple(specs))
        return lambda zoo: weight_statistics(zoo.weights()[:, places], part).numpy()

    return {name: of(specs) for name, specs in owned.items()}


def layer_embeddings(encoder: Autoencoder) -> dict[str, Represent]:
    """What the encoder has made of each layer's tokens, by the layer's name: the parts of the pooling `layers`.

    The encoder's tokens have seen each other: a part can tell of other layers what attention has brought there.
    """
    names = [layer.name.removesuffix(".weight") for layer in tokenised_layers(encoder.preparation.layout)]
    latest: dict[Zoo, np.ndarray] = {}

    def of(number: int) -> Represent:
        def represent(zoo: Zoo) -> np.ndarray:
            if zoo not in latest:
                while len(latest) >= 3:  # the three sides of a split are read layer by layer
                    latest.pop(next(iter(latest)))
                latest[zoo] = encoder.embed(zoo, "layers").unflatten(1, (2, len(names), -1)).numpy()  # moments l d
            return latest[zoo][:, :, number].reshape(len(zoo), -1)

        return represent

    return {name: of(number) for number, name in enumerate(names)}


def probe_layers(
    train: Zoo,
    validation: Zoo,
    test: Zoo,
    representations: Mapping[str, Mapping[str, Represent]],
    targets: Sequence[str],
    *,
    boosting: Sequence[str] = (),
) -> pl.DataFrame:
    """Predict properties from each layer alone, and from all layers side by side.

    Args:
        train: Models that probes are fitted on.
        validation: Models that choose their strength.
        test: Models that are predicted, once.
        representations: By name, the features of each layer by the layer's name, such as `layer_statistics(layout)`.
        targets: Columns, as of `predict_properties`.
        boosting: Targets that are also predicted by gradient boosting.

    Returns:
        representation, layer ("all layers" for all of them), layer_number (in order; null for all), probe, target,
        metric, value, n_train, n_test.

    Raises:
        ConfigError: There is no layer, or as `predict_properties`.
    """
    parts: dict[str, Represent] = {}
    keys: list[tuple[str, str, str, int | None]] = []
    for name, layers in representations.items():
        if not layers:
            raise ConfigError(f"the representation {name!r} has no layers to probe")
        for number, (layer, represent) in enumerate(layers.items()):
            keys.append((f"{name}: {layer}", name, layer, number))
            parts[keys[-1][0]] = represent
        keys.append((f"{name}: {WHOLE}", name, WHOLE, None))
        parts[keys[-1][0]] = _side_by_side(list(layers.values()))
    scores, _ = predict_properties(train, validation, test, parts, targets, boosting=boosting)
    schema = {"key": pl.String, "name": pl.String, "layer": pl.String, "layer_number": pl.Int64}
    about = pl.DataFrame(keys, schema=schema, orient="row")
    joined = scores.join(about, left_on="representation", right_on="key", maintain_order="left")
    rest = [column for column in scores.columns if column != "representation"]
    return joined.select(pl.col("name").alias("representation"), "layer", "layer_number", *rest)


def _side_by_side(layers: Sequence[Represent]) -> Represent:
    return lambda zoo: np.concatenate([represent(zoo) for represent in layers], axis=1)
