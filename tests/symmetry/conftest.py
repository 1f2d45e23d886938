"""Small real networks of all kinds that alignment handles, with random weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)),
    "cnn": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.ReLU()],
        *[nn.Flatten(), nn.Linear(20, 4)],
    ),
    "cnn-batch-norm": lambda: nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)],
    ),
}


@pytest.fixture(params=NETWORKS, scope="session")
def chain(request):
    """Module, layout and groups of a chain."""
    from weightspace.networks.layout import Layout  # here, as conftest is loaded before the run-time type checks
    from weightspace.symmetry import chain_groups

    network = NETWORKS[request.param]()
    layout = Layout.of(network)
    return network, layout, chain_groups(layout)


@pytest.fixture(scope="session")
def random_rows():
    """Independent networks with weights of the size of an initialisation, variances of batch-norm positive."""

    def draw(layout, count: int, seed: int) -> Tensor:
        rows = 0.3 * torch.randn(count, layout.parameters, generator=torch.Generator().manual_seed(seed))
        for spec in layout.tensors:
            if spec.role == "running_var":
                rows[:, layout.slices[spec.name]] = 1 + rows[:, layout.slices[spec.name]].square()
        return rows

    return draw


@pytest.fixture(scope="session")
def examples():
    """Inputs of a chain of the suite."""

    def draw(network: nn.Module, count: int, seed: int) -> Tensor:
        shape = (10,) if isinstance(network[0], nn.Linear) else (1, 8, 8)
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))

    return draw
