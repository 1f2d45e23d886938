"""Importing the package and asking for help stays light; public names are what they say."""

import subprocess
import sys

import pytest

import weightspace

HEAVY = ["torch", "sklearn", "polars", "scipy", "matplotlib", "lightning_fabric", "huggingface_hub"]


@pytest.mark.parametrize(
    "code",
    [
        "import weightspace; dir(weightspace)",
        "from weightspace.cli import main; assert main(['--help']) == 0",
        "from weightspace.cli import main; assert main(['zoo', '--help']) == 0",
        "from weightspace.cli import main; assert main(['--version']) == 0",
    ],
)
def test_heavy_packages_are_not_imported(code):
    script = f"{code}\nimport sys; print('heavy:', *sorted({HEAVY!r} & sys.modules.keys()))"
    script = script.replace(repr(HEAVY), f"set({HEAVY!r})")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "weightspace", "--help"], capture_output=True, text=True, check=True)
    for command in ("demo", "zoo", "fit", "embed", "predict", "sample", "evaluate", "report"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("name", weightspace.__all__)
def test_public_name_can_be_loaded(name):
    assert getattr(weightspace, name) is not None


def test_public_names_are_the_rooms_own():
    from weightspace.encoders import fit
    from weightspace.zoo import Zoo
    from weightspace.zoo import open as open_zoo

    assert (weightspace.Zoo, weightspace.open, weightspace.fit) == (Zoo, open_zoo, fit)
    assert dir(weightspace) == sorted(weightspace.__all__)


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'encoder'"):
        _ = weightspace.encoder
