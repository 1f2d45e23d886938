"""Batch normalisation in generated networks: it has no history that running statistics could come from.

In training each network has the statistics of its own images; samples get those of a few training images.

Axes: m network, p parameter, n image.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightspace.datasets import Dataset
from weightspace.networks import Layout, Network
from weightspace.networks.layout import RUNNING
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

CALIBRATION_IMAGES = 256


@torch.no_grad()
def with_running_statistics(
    network: Network, rows: Float[Tensor, "m p"], images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "m p"]:
    """Rows whose running statistics of batch normalisation are those of the images, layer after layer.

    >>> from weightspace.networks import CNN
    >>> network = CNN(batch_norm=True)
    >>> rows = torch.randn(2, Layout.of(network.build()).parameters)
    >>> rows.isnan().any() | with_running_statistics(network, rows, torch.randn(9, 1, 8, 8)).isnan().any()
    tensor(False)
    """
    module = network.build().eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()
            part.momentum = 1.0  # forget everything before the images
    layout = Layout.of(module)

    def observed(row: Tensor, x: Tensor) -> Tensor:
        state = {name: value.clone() for name, value in layout.unflatten(row).items()}
        functional_call(module, state, (x,))  # updates the running statistics of the state in place
        return torch.cat([state[spec.name].flatten() for spec in layout.tensors])

    return vmap(observed, in_dims=(0, None), chunk_size=32)(rows, images)


def with_batch_statistics(module: nn.Module) -> nn.Module:
    """A network in evaluation mode whose batch normalisation has statistics of each batch and keeps none."""
    module = module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = None
    return module


def has_running_statistics(layout: Layout) -> bool:
    """Whether networks of a layout have batch normalisation.

    >>> has_running_statistics(Layout.of(nn.BatchNorm1d(3)))
    True
    """
    return any(spec.role in RUNNING for spec in layout.tensors)


def calibration_images(network: Network, data: Dataset, seed: int) -> Tensor | None:
    """Some training images for running statistics; `None` for a network that has none."""
    if not has_running_statistics(Layout.of(network.build())):
        return None
    chosen = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed))
    return data.train_images[chosen[:CALIBRATION_IMAGES]]


def conditioned(zoo: Zoo, data: Dataset, seed: int = 0) -> Zoo:
    """Networks whose running statistics are those of some training images; a zoo without any is given back as it is.

    Published conditioning updates running statistics with momentum over 200 batches, from wherever they were decoded
    to. Here they are measured: one pass over 256 images, each norm behind those that are right already. Weights do not
    change.

    Args:
        zoo: Networks of one layout, generated or mixed.
        data: Its training images are used.
        seed: Which of them.

    >>> import polars as pl
    >>> from weightspace import datasets
    >>> from weightspace.networks import MLP, to_json
    >>> layout, table = Layout.of(MLP().build()), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> zoo = Zoo.in_memory(torch.ones(1, layout.parameters), layout, table, {"network": to_json(MLP())})
    >>> conditioned(zoo, datasets.load("digits")) is zoo  # a perceptron has no norms
    True
    """
    if not has_running_statistics(zoo.layout):
        return zoo
    rows = zoo.weights()
    for network, place in by_activation(zoo):
        images = calibration_images(network, data, seed)
        assert images is not None, "the layout has running statistics"
        rows[place] = with_running_statistics(network, rows[place], images)
    return zoo.with_weights(rows)
