"""Probabilities of many networks on the same images, classes before images in memory.

A softmax over ten neighbouring values is slow on a CPU, one over ten long rows is not. For the same reason linear
chains are run as products of units and images: all first layers are one matrix product with the images, several times
faster than modules under `vmap`.

Axes: m network, n image, k class, u hidden unit.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from weightspace.errors import DatasetError
from weightspace.networks import MLP, Layout, Network
from weightspace.networks.blocks import activation
from weightspace.networks.population import population_logits
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

_MODELS, _IMAGES = 32, 500  # of a product: larger ones leave the processor cache


@torch.no_grad()
def population_probabilities(zoo: Zoo, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m n k"]:
    """Probabilities of every checkpoint on every image, in table order.

    Returns:
        A view in which images lie next to each other.

    Raises:
        ZooError: The zoo has no checkpoints.
        DatasetError: The images have another shape than those the zoo was trained on.

    >>> from weightspace.networks import to_json
    >>> import polars as pl
    >>> layout, table = Layout.of(MLP().build()), pl.DataFrame({"model": ["a"], "step": [0]})
    >>> zoo = Zoo.in_memory(torch.randn(1, 1060), layout, table, {"network": to_json(MLP())})
    >>> population_probabilities(zoo, torch.randn(5, 1, 8, 8)).shape
    torch.Size([1, 5, 10])
    """
    rows = zoo.weights()
    found: Tensor | None = None
    for network, place in by_activation(zoo):
        logits = _logits(network, rows if len(place) == len(rows) else rows[place], images)
        if len(place) == len(rows):
            return logits.softmax(1).transpose(1, 2)
        found = rows.new_empty(len(rows), *logits.shape[1:]) if found is None else found
        found[place] = logits.softmax(1)
    assert found is not None, "a zoo that is not empty has an activation"
    return found.transpose(1, 2)


def _logits(network: Network, rows: Float[Tensor, "m p"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m k n"]:
    if not isinstance(network, MLP):
        return population_logits(network, rows, images).transpose(1, 2).contiguous()
    if tuple(images.shape[1:]) != network.image_shape:
        raise DatasetError(
            f"the network is made for images of shape {network.image_shape}, got {tuple(images.shape[1:])}: "
            "use the data set that it was trained on"
        )
    logits = rows.new_empty(len(rows), network.classes, len(images))
    layout = Layout.of(network.build())
    for first in range(0, len(rows), _MODELS):
        state = layout.unflatten(rows[first : first + _MODELS])
        for image, pixels in _columns(images):
            logits[first : first + _MODELS, :, image] = _linear_chain(network, state, pixels)
    return logits


def _columns(images: Float[Tensor, "n c h w"]) -> Iterator[tuple[slice, Float[Tensor, "i n"]]]:
    for first in range(0, len(images), _IMAGES):
        some = images[first : first + _IMAGES]
        yield slice(first, first + len(some)), some.flatten(1).T


def _linear_chain(network: MLP, state: dict[str, Tensor], pixels: Float[Tensor, "i n"]) -> Float[Tensor, "m k n"]:
    act = activation(network.activation)
    values = pixels
    for number in range(1, len(network.hidden) + 2):
        weight = state[f"fc{number}.weight"]  # m u i
        m, u, _ = weight.shape
        bias = state[f"fc{number}.bias"][:, :, None] if network.bias else weight.new_zeros(m, u, 1)
        if number == 1:
            values = torch.addmm(bias.flatten(0, 1), weight.flatten(0, 1), values).unflatten(0, (m, u))
        else:
            values = torch.baddbmm(bias, weight, values)
        if number <= len(network.hidden):
            values = act(values)
    return values
