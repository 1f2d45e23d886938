"""What every test shares: the optional image data, and a guard on torch's global state."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # test processes run side by side, one core each


@pytest.fixture(scope="session")
def image_data() -> Path:
    """Folder with real image data; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[2] / "shared/data/images"
    folder = Path(os.environ.get("WEIGHTSPACE_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no image data: set WEIGHTSPACE_DATA to a folder with mnist/, fashion_mnist/, usps.npz, ...")
    return folder


@pytest.fixture(scope="session")
def populations() -> Path:
    """Folder with networks that others trained; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[2] / "shared/data/zoos"
    folder = Path(os.environ.get("WEIGHTSPACE_POPULATIONS") or beside)
    if not folder.is_dir():
        pytest.skip("no populations: set WEIGHTSPACE_POPULATIONS to a folder with acasxu/ and rl_agents_sb3/")
    return folder


@pytest.fixture(autouse=True)
def torch_defaults() -> Iterator[None]:
    """A test leaves torch's global settings as it found them."""
    before = _torch_settings()
    yield
    after = _torch_settings()
    torch.set_default_dtype(before["default dtype"])
    torch.set_num_threads(before["threads"])
    torch.set_grad_enabled(before["gradients"])
    assert after == before, "the test, or the code it calls, changed a global setting of torch"


def _torch_settings() -> dict:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(scope="session")
def digits_zoo(tmp_path_factory):
    """A zoo on disk: 20 small MLPs of two activations on 200 digits, checkpoints at epochs 0, 1 and 3."""
    from weightspace.zoo.recipe import Recipe  # here, as conftest is loaded before the run-time type checks
    from weightspace.zoo.train import train

    recipe = Recipe(
        network="mlp", models=20, epochs=3, checkpoints=(0, 1, 3), train_limit=200, activation=("relu", "tanh"), seed=3
    )
    return train(tmp_path_factory.mktemp("digits") / "zoo", recipe, workers=1)


@pytest.fixture(scope="session")
def digits_sane(digits_zoo):
    """A small SANE, briefly fitted on `digits_zoo`, with windows smaller than a network."""
    from weightspace.encoders import SANE, SANEConfig, TrainingConfig

    config = SANEConfig(
        token_width=65, max_positions=(24, 2, 14), window=16, halo=4, width=32, heads=2, depth=1, latent=16
    )
    train, validation, _ = digits_zoo.split(0)
    optimisation = TrainingConfig(epochs=2, batch_size=16, accelerator="cpu")
    return SANE.fit(train, validation=validation, config=config, optimisation=optimisation)
