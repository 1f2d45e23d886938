"""Architectures: published parameter counts, key names, shapes, and configurations that survive a file."""

import json
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace import networks
from weightspace.errors import ConfigError, UnknownName
from weightspace.networks import CNN, MLP, ResNet18
from weightspace.networks.blocks import ACTIVATIONS, Dropout, activation

SMALL, SIDE = st.integers(1, 4), st.integers(8, 10)
SHARED = {
    "classes": SMALL, "bias": st.booleans(), "dropout": st.floats(0, 0.9),
    "activation": st.sampled_from(sorted(ACTIVATIONS)), "hidden": st.lists(SMALL, max_size=2).map(tuple),
}  # fmt: skip
BLOCKS = st.lists(st.tuples(SMALL, st.sampled_from([1, 3]), st.sampled_from([1, 2])), min_size=1, max_size=3)
SETTINGS = st.one_of(
    st.fixed_dictionaries(
        {"blocks": BLOCKS, "image_shape": st.tuples(SMALL, SIDE, SIDE), "batch_norm": st.booleans(), **SHARED}
    ),
    st.fixed_dictionaries({"image_shape": st.tuples(SMALL, SMALL, SMALL), **SHARED}),
    st.fixed_dictionaries({"image_shape": st.tuples(SMALL, SIDE, SIDE), "classes": SMALL, "width": st.just(1)}),
)  # plain data: the type checker of the tests draws random numbers, which strategies must not


def parameters(network: networks.Network) -> int:
    return sum(p.numel() for p in network.build().parameters())


@pytest.mark.parametrize(
    ("name", "image_shape", "classes", "count"),
    [
        ("cnn", (1, 8, 8), 10, 994),
        ("mlp", (1, 8, 8), 10, 1060),
        ("cnn_s", (1, 28, 28), 10, 2464),
        ("cnn_s", (3, 28, 28), 10, 2864),
        ("cnn_l", (3, 32, 32), 10, 10_853),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
        ("resnet18", (3, 32, 32), 200, 11_271_432),
        ("resnet32", (3, 32, 32), 10, 466_906),
        ("resnet8", (1, 14, 14), 10, 19_810),
        ("small_cnn", (1, 28, 28), 10, 160 + 2320 + 2320 + 170),
        ("small_cnn", (1, 32, 32), 10, 4970),
        ("siren", (1, 28, 28), 10, 1185),
        ("siren", (3, 32, 32), 10, 1251),
        ("siren_dws", (1, 28, 28), 10, 1185),
        ("siren_wave", (1, 28, 28), 10, 2 * 32 + 33 * 32 + 33),
    ],
)
def test_published_parameter_counts(name, image_shape, classes, count):
    assert parameters(networks.by_name(name, image_shape, classes)) == count


def test_cnn_l_layer_by_layer():
    """The tensors of the published CNN-l, in order."""
    shapes = [tuple(p.shape) for p in networks.by_name("cnn_l", (3, 32, 32), 10).build().parameters()]
    conv = [(16, 3, 3, 3), (16,), (32, 16, 3, 3), (32,), (15, 32, 3, 3), (15,)]
    assert shapes == [*conv, (20, 60), (20,), (10, 20), (10,)]


def test_key_names():
    normed = CNN(batch_norm=True, bias=False, hidden=(5,), dropout=0.5).build().state_dict()
    norm = [f"{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    blocks = [[f"conv{i}.weight", *(f"norm{i}.{key}" for key in norm)] for i in (1, 2)]
    assert list(normed) == [*blocks[0], *blocks[1], "fc1.weight", "fc2.weight"]
    assert list(MLP().build().state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    keys = set(ResNet18(width=1).build().state_dict())
    down = {f"layer{i}.0.downsample.{j}.weight" for i in (2, 3, 4) for j in (0, 1)}
    assert {k for k in keys if "downsample" in k and k.endswith("weight")} == down
    customary = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.bias", "fc.bias"}
    assert customary <= keys
    assert len(keys) == 122  # 20 convolutions, 20 norms of 5 tensors, the last layer of 2


def test_resnet_equals_its_equations():
    """He et al. (2016), Figure 3 and equations 1 and 2, written with functions."""
    from torch.nn import functional as F

    torch_generator = torch.Generator().manual_seed(0)
    module = ResNet18(width=2, classes=3).build().eval()
    s = {k: torch.randn(v.shape, generator=torch_generator).abs() * 0.3 for k, v in module.state_dict().items()}
    module.load_state_dict(s)

    def norm(x, name):
        return F.batch_norm(
            x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"]
        )

    x = image = torch.randn(2, 3, 32, 32, generator=torch_generator)
    x = norm(F.conv2d(x, s["conv1.weight"], padding=1), "bn1").relu()
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = norm(F.conv2d(x, s[f"{name}.conv1.weight"], padding=1, stride=stride), f"{name}.bn1").relu()
            inner = norm(F.conv2d(inner, s[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                x = norm(F.conv2d(x, s[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = (inner + x).relu()
    expected = x.mean((2, 3)) @ s["fc.weight"].T + s["fc.bias"]
    torch.testing.assert_close(module(image), expected, rtol=1e-5, atol=1e-5)  # the same sums in float32


@settings(deadline=None, max_examples=40)
@given(SETTINGS)
def test_every_configuration_survives_json_and_gives_logits(settings):
    if "blocks" in settings:
        channels, kernels, pools = zip(*settings.pop("blocks"), strict=True)
        network = CNN(channels=channels, kernels=kernels, pools=pools, **settings)
    else:
        network = (ResNet18 if "width" in settings else MLP)(**settings)
    again = networks.from_json(json.loads(json.dumps(networks.to_json(network))))
    assert again == network and type(again) is type(network)
    images = torch.zeros(2, *network.image_shape)
    assert network.build().eval()(images).shape == (2, network.classes)


@pytest.mark.parametrize("network", [CNN(), MLP(), ResNet18()])
def test_a_misspelt_key_is_named_with_the_right_one(network):
    for name in (field.name for field in fields(network)):
        stored = networks.to_json(network)
        stored[name + "x"] = stored.pop(name)
        with pytest.raises(
            UnknownName, match=f"unknown setting of {type(network).__name__} '{name}x'; did you mean '{name}'"
        ):
            networks.from_json(stored)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"family": "CNM"}, "did you mean 'CNN'"),
        ({}, "unknown network family 'None'"),
        ({"family": "MLP", "classes": "ten"}, r"not a stored MLP: .* classes|not a stored MLP: .*int @ \$.classes"),
        ({"family": "MLP", "dropout": 1.0}, r"^dropout must lie in \[0, 1\), got 1.0$"),
        ({"family": "CNN", "pools": [2]}, "same length"),
    ],
)
def test_bad_files_are_one_sentence(stored, says):
    with pytest.raises(ConfigError, match=says) as error:
        networks.from_json(stored)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CNN(channels=(3,)), "same length"),
        (lambda: CNN(kernels=(2, 2)), "padding needs odd kernels"),
        (lambda: CNN(dropout=1.0), "dropout"),
        (lambda: CNN(pools=(2, 0)), "at least 1"),
        (lambda: MLP(hidden=(0,)), "at least 1"),
        (lambda: MLP(dropout=-0.1), "dropout"),
        (lambda: networks.by_name("cnn_s", (1, 8, 8), 10), "too small"),
        (lambda: networks.by_name("ccn", (1, 8, 8), 10), "did you mean 'cnn'"),
        (lambda: activation("gleu"), "did you mean 'gelu'"),
    ],
)
def test_impossible_configurations_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_dropout_drops_in_training_and_takes_a_mask_in_evaluation():
    x = torch.ones(100_000)
    dropped = Dropout(0.3)(x)
    assert abs((dropped == 0).float().mean() - 0.3) < 4 * (0.3 * 0.7 / len(x)) ** 0.5
    torch.testing.assert_close(dropped.max(), torch.tensor(1 / 0.7))
    keep = torch.tensor([0.0, 2.0])
    masked = torch.func.functional_call(Dropout(0.3).eval(), {"keep": keep}, (torch.tensor([5.0, 5.0]),))
    assert masked.tolist() == [0.0, 10.0]
    assert not Dropout(0.3).state_dict(), "the mask is no part of a checkpoint"


def test_names_are_the_presets():
    classifiers = ["arch1", "arch2", "cnn", "cnn_l", "cnn_s", "mlp", "small_cnn", "transformer", "vit"]
    classifiers += ["resnet8", "resnet18", "resnet32"]
    assert networks.names() == sorted([*classifiers, "siren", "siren_dws", "siren_wave"])
    for name in networks.names():
        assert isinstance(networks.by_name(name, (3, 32, 32), 7).build(), nn.Module)
