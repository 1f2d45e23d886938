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
