"""Behavioural loss: distance of decoded networks' logits to the originals' (Meynent et al., 2025, arXiv 2503.17138).

Small errors of weights can be large errors of functions; this measures the functions.

Axes: m network, p parameter, n image, k class.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.networks import Network
from weightspace.networks.layout import Layout
from weightspace.networks.population import as_classifier
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation

QUERIES = 32
"""Images a step."""


class Behaviour:
    """What the networks of a population do on some images.

    Args:
        zoos: Networks of one layout, in the order in which `loss` numbers them.
        images: Query images; each step draws some.

    Raises:
        DatasetError: The networks are made for images of another shape.
        ZooError: A zoo does not say what its network is.
    """

    def __init__(self, zoos: Sequence[Zoo], images: Float[Tensor, "n c h w"]):
        self.images, self.layout = images, zoos[0].layout
        self.networks: list[Network] = []
        owners = []
        for zoo in zoos:
            owner = torch.empty(len(zoo), dtype=torch.int64)
            for network, place in by_activation(zoo):
                network = as_classifier(network, images)
                if network not in self.networks:
                    self.networks.append(network)
                owner[place] = self.networks.index(network)
            owners.append(owner)
        self.owner = torch.cat(owners)

    def loss(
        self, some: Int64[Tensor, " m"], rows: Float[Tensor, "m p"], generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """The loss of decoded rows `[v * m, p]`, views one below the other, against the networks of that number.

        It is the mean squared difference of logits over the mean square of the originals' logits on images drawn here.
        """
        images = self.images[torch.randint(len(self.images), (QUERIES,), generator=generator)]
        owner = self.owner[some]

        def distance(decoded: Tensor) -> Tensor:
            views, x = len(decoded) // len(rows), images.to(decoded.device)
            error, total = decoded.new_zeros(()), decoded.new_zeros(())
            for number in owner.unique().tolist():
                place = (owner == number).nonzero()[:, 0]
                network = self.networks[number]
                with torch.no_grad():
                    wanted = logits(network, self.layout, rows[place].to(decoded.device), x)
                found = logits(network, self.layout, decoded.unflatten(0, (views, -1))[:, place].flatten(0, 1), x)
                error = error + (found.unflatten(0, (views, -1)) - wanted).square().sum() / views
                total = total + wanted.square().sum()
            return error / total

        return distance


def logits(
    network: Network, layout: Layout, rows: Float[Tensor, "m p"], images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "m n k"]:
    """Logits of every network on every image, in evaluation mode; differentiable in the rows.

    >>> from weightspace.networks import MLP
    >>> logits(MLP(), Layout.of(MLP().build()), torch.zeros(3, 1060), torch.zeros(5, 1, 8, 8)).shape
    torch.Size([3, 5, 10])
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and not used
        module = network.build().to(rows.device).eval()
    return vmap(lambda state: functional_call(module, state, (images,)))(layout.unflatten(rows))
