"""Saved encoders: the same after reading, nothing but numbers and JSON on disk, and clear words about what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightspace import encoders
from weightspace.encoders import SANE, SANEConfig, TrainingConfig
from weightspace.encoders.preparation import Preparation
from weightspace.encoders.pretrained import structure
from weightspace.errors import ConfigError, UnknownName, WeightspaceError


@pytest.fixture(scope="module")
def saved(digits_sane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "sane"
    digits_sane.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "sane")


def change(folder, **values):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


@pytest.mark.parametrize("load", [SANE.from_pretrained, SANE.load, encoders.load])
def test_what_is_read_is_what_was_saved(digits_sane, digits_zoo, saved, load):
    again = load(saved)
    assert type(again) is SANE and again.config == digits_sane.config and again.header == digits_sane.header
    assert again.preparation.layout == digits_sane.preparation.layout
    state, state_ = digits_sane.module.state_dict(), again.module.state_dict()
    assert state.keys() == state_.keys() and all(torch.equal(state[name], state_[name]) for name in state)
    zoo = digits_zoo.take(range(6))
    assert torch.equal(again.embed(zoo), digits_sane.embed(zoo))
    assert torch.equal(again.reconstruct(zoo).weights(), digits_sane.reconstruct(zoo).weights())


def test_saved_twice_is_the_same(saved, tmp_path):
    again = encoders.load(saved)
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "preparation.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name
    again.save_pretrained(tmp_path / "again")  # over an older one
    assert encoders.load(tmp_path / "again").config == again.config


def test_only_numbers_json_and_a_card(saved):
    files = ["README.md", "config.json", "model.safetensors", "preparation.safetensors"]
    assert sorted(file.name for file in saved.iterdir()) == files
    card = (saved / "README.md").read_text()
    assert "library_name: weightspace" in card and "has been pushed" not in card


def test_the_card_is_not_needed(folder, digits_sane):
    (folder / "README.md").unlink()
    assert encoders.load(folder).config == digits_sane.config


def test_fit_writes_the_same_into_its_folder(digits_zoo, digits_sane, saved, tmp_path):
    train, validation, _ = digits_zoo.split(0)
    optimisation = TrainingConfig(**digits_sane.header["fit"]["optimisation"])
    encoders.fit(
        "sane", train, validation=validation, config=digits_sane.config, optimisation=optimisation, folder=tmp_path
    )
    for name in ("model.safetensors", "preparation.safetensors"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_misspelt_setting_is_named(folder):
    config = json.loads((folder / "config.json").read_text())["config"]
    config["token_widht"] = config.pop("token_width")
    change(folder, config=config)
    for load in (SANE.from_pretrained, encoders.load):
        with pytest.raises(
            UnknownName, match="unknown setting of SANEConfig 'token_widht'; did you mean 'token_width'"
        ):
            load(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"width": 18, "heads": 4}, "width 18 must be a multiple"),
        ({"width": "wide"}, "width"),
        ({"max_positions": [1, 2]}, "max_positions"),
        ({"latent": None}, "latent"),
    ],
)
def test_settings_that_cannot_be(folder, config, says):
    stored = json.loads((folder / "config.json").read_text())["config"]
    change(folder, config=stored | config)
    with pytest.raises(ConfigError, match=says):
        encoders.load(folder)


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match="token_width"):
        structure({"max_positions": [1, 2, 3], "window": 4}, SANEConfig)
    assert structure({"token_width": 5, "max_positions": [1, 2, 3], "window": 4}, SANEConfig) == SANEConfig(
        token_width=5, max_positions=(1, 2, 3), window=4
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"version": 99}, "format version 99, this weightspace reads up to 1: update weightspace"),
        ({"version": "new"}, "does not describe a fitted encoder"),
        ({"format": "other"}, "does not describe a fitted encoder"),
        ({"layout": [{"name": "a"}]}, "layout|tensor"),
        ({"method": "flit"}, "unknown encoder 'flit'; did you mean 'flat'"),
    ],
)
def test_other_content(folder, values, says):
    change(folder, **values)
    with pytest.raises(WeightspaceError, match=says):
        encoders.load(folder)


def test_another_method(folder):
    change(folder, method="flat")
    with pytest.raises(ConfigError, match="holds a fitted 'flat', not 'sane'"):
        SANE.load(folder)


@pytest.mark.parametrize("key", ["method", "config", "layout", "header"])
def test_a_missing_part(folder, key):
    content = json.loads((folder / "config.json").read_text())
    del content[key]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightspaceError, match=f"lacks '{key}'"):
        encoders.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"model_type": "bert"}'])
def test_no_configuration(folder, content):
    (folder / "config.json").write_bytes(content)
    for load in (SANE.from_pretrained, encoders.load):
        with pytest.raises(WeightspaceError, match=r"config\.json"):
            load(folder)


def test_an_encoder_of_networks_in_their_own_order(digits_sane, digits_zoo, tmp_path):
    preparation = Preparation.fit(digits_zoo, align=False)
    sane = SANE(digits_sane.config, preparation, digits_sane.header)
    sane.save_pretrained(tmp_path / "sane")
    loaded = encoders.load(tmp_path / "sane")
    assert loaded.preparation.reference is None
    assert torch.equal(loaded.embed(digits_zoo), sane.embed(digits_zoo))


def test_missing_folder(tmp_path):
    with pytest.raises(WeightspaceError, match=r"holds no fitted encoder .*weightspace fit"):
        encoders.load(tmp_path / "gone")
    with pytest.raises(WeightspaceError, match=r"there is no folder .*gone"):
        SANE.from_pretrained(tmp_path / "gone")
    with pytest.raises(WeightspaceError, match="Hub gave nothing"):
        SANE.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "preparation.safetensors"])
def test_damaged_weights(folder, name):
    data = (folder / name).read_bytes()
    for content in (data[: len(data) // 2], data[:4], b""):
        (folder / name).write_bytes(content)
        with pytest.raises(WeightspaceError, match=r"cannot read the weights in .* fit the encoder again"):
            encoders.load(folder)
    (folder / name).unlink()
    with pytest.raises(WeightspaceError, match="cannot read the weights"):
        encoders.load(folder)


def test_weights_of_another_size(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if name != "token_in.bias"}, folder / "model.safetensors")
    with pytest.raises(WeightspaceError, match=r"token_in\.bias"):
        encoders.load(folder)
    tensors = load_file(folder / "preparation.safetensors")
    save_file(tensors | {"mean": tensors["mean"][1:].clone()}, folder / "preparation.safetensors")
    with pytest.raises(WeightspaceError, match="reference, mean and std"):
        encoders.load(folder)


def test_unknown_method(digits_zoo):
    with pytest.raises(UnknownName, match="unknown encoder 'sanne'; did you mean 'sane'"):
        encoders.fit("sanne", digits_zoo, validation=digits_zoo)
