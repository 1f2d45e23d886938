"""Further published architectures: their counts and keys, and each against its equations or another implementation."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.networks import CNN, SIREN, Layout, PooledCNN, ViT, WildPark, by_name, from_json, to_json, wild_park
from weightspace.networks.siren import pixel_grid
from weightspace.networks.wild_park import CHANNELS, DEPTHS, KERNELS, SKIP_SHARE

ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid", "leaky_relu")


def parameters(network) -> int:
    return sum(p.numel() for p in network.build().parameters())


def randomised(network) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A module with every tensor drawn, so that nothing is hidden by an initial zero."""
    module, generator = network.build().eval(), torch.Generator().manual_seed(0)
    state = {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    return module, state


# ---- Vision transformers


@pytest.mark.parametrize(
    ("width", "heads", "count"), [(192, 3, 5_717_416), (384, 6, 22_050_664), (768, 12, 86_567_656)]
)
def test_published_vits_have_their_counts(width, heads, count):
    config = ViT(
        image_shape=(3, 224, 224), classes=1000, patch=(16, 16), width=width, depth=12, heads=heads, mlp_ratio=4
    )
    with torch.device("meta"):
        assert parameters(config) == count


def test_vit_keys_are_the_customary_ones():
    keys = list(ViT(depth=1).build().state_dict())
    block = [f"blocks.0.{layer}.{key}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for key in ("weight", "bias")]  # fmt: skip
    ends = [f"{layer}.{key}" for layer in ("norm", "head") for key in ("weight", "bias")]
    assert keys == ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", *block, *ends]


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_vit_equals_pytorchs_encoder(pooling):
    """Blocks against `nn.TransformerEncoderLayer`, patches against `nn.Unfold`."""
    config = ViT(
        image_shape=(2, 6, 8), classes=3, patch=(3, 2), width=12, depth=2, heads=3, mlp_ratio=2, pooling=pooling
    )
    module, s = randomised(config)
    images = torch.randn(5, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    tokens = nn.Unfold((3, 2), stride=(3, 2))(images).mT @ s["patch_embed.proj.weight"].flatten(1).T
    x = tokens + s["patch_embed.proj.bias"]
    if pooling == "class":
        x = torch.cat([s["cls_token"].expand(5, 1, 12), x], dim=1)
    x = x + s["pos_embed"]
    for i in range(2):
        layer = nn.TransformerEncoderLayer(
            12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
        )
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
                 "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}  # fmt: skip
        layer.load_state_dict({
            ours + key: s[f"blocks.{i}.{theirs}{key}"] for ours, theirs in names.items() for key in ("weight", "bias")
        })  # fmt: skip
        x = layer(x)  # in training mode, where PyTorch takes no other path
    x = F.layer_norm(x, (12,), s["norm.weight"], s["norm.bias"], eps=1e-6)
    expected = F.linear(x[:, 0] if pooling == "class" else x.mean(1), s["head.weight"], s["head.bias"])
    torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)


def test_the_small_transformer_reads_rows_in_order():
    module, _ = randomised(by_name("transformer", (1, 28, 28), 10))
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert Layout.of(module).parameters == 10_762
    assert (module(images) - module(images.flip(2))).abs().max() > 1e-2, "positions matter"
    assert (module(images) - module(images.flip(3))).abs().max() > 1e-2, "what is in a row matters"


# ---- Convolutional networks


def test_the_small_cnn_equals_its_equations():
    module, s = randomised(by_name("small_cnn", (1, 28, 28), 10))
    x = images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for i in (1, 2, 3):
        x = F.conv2d(x, s[f"conv{i}.weight"], s[f"conv{i}.bias"], stride=2).relu()
    assert x.shape[1:] == (16, 2, 2)
    expected = F.linear(x.mean((2, 3)), s["fc1.weight"], s["fc1.bias"])
    torch.testing.assert_close(module(images), expected, rtol=1e-5, atol=1e-5)


def test_arch1_and_arch2_are_what_their_paper_says():
    """Arch 1: three convolutions, adaptive average pooling, one linear layer; Arch 2: pooled blocks, two linear."""
    kinds = {
        name: [type(layer).__name__ for layer in by_name(name, (1, 28, 28), 10).build()
               if isinstance(layer, nn.Conv2d | nn.Linear | nn.AdaptiveAvgPool2d) or "Pool" in type(layer).__name__]
        for name in ("arch1", "arch2")
    }  # fmt: skip
    assert kinds["arch1"] == ["Conv2d", "Conv2d", "Conv2d", "AdaptiveAvgPool2d", "Linear"]
    assert kinds["arch2"] == ["Conv2d", "MaxPool", "Conv2d", "MaxPool", "Linear", "Linear"]
    assert [parameters(by_name(name, (1, 28, 28), 10)) for name in kinds] == [5018, 3346]


def test_wild_park_equals_its_equations():
    config = WildPark(
        image_shape=(2, 6, 5), classes=3, channels=(4, 3, 6, 5), kernels=(3, 5, 1, 3),
        activations=("relu", "tanh", "sigmoid", "gelu"), skips=(None, None, 0, 1),
    )  # fmt: skip
    module, s = randomised(config)
    images = torch.randn(4, 2, 6, 5, generator=torch.Generator().manual_seed(1))

    def conv(x, i):
        return F.conv2d(x, s[f"conv.{i}.weight"], s[f"conv.{i}.bias"], padding="same")

    a = conv(images, 0).relu()
    b = conv(a, 1).tanh()
    c = conv(b, 2)
    c = (c + F.pad(a, (0, 0, 0, 0, 0, 2))).sigmoid()  # 4 of the 6 channels
    d = F.gelu(conv(c, 3) + F.pad(b, (0, 0, 0, 0, 0, 2)))  # 3 of the 5
    expected = F.linear(d.mean((2, 3)), s["fc.weight"], s["fc.bias"])
    torch.testing.assert_close(module(images), expected, rtol=1e-5, atol=1e-5)


def test_the_park_is_drawn_with_equal_chances():
    park = [wild_park((3, 32, 32), 10, seed=seed, activations=ACTIVATIONS) for seed in range(600)]
    layers = [layer for net in park for layer in zip(net.channels, net.kernels, net.activations, strict=True)]
    draws = [("depth", [len(net.channels) for net in park], DEPTHS)]
    draws += zip(("channels", "kernel", "activation"), zip(*layers, strict=True), (CHANNELS, KERNELS, ACTIVATIONS),
                 strict=True)  # fmt: skip
    for what, found, options in draws:
        counts, expected = Counter(found), len(found) / len(options)
        assert set(counts) == set(options), what
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values()), what
    possible = [source for net in park for layer, source in enumerate(net.skips) if layer >= 2]
    added = [source is not None for source in possible]
    assert abs(sum(added) / len(added) - SKIP_SHARE) < 5 * 0.5 / len(added) ** 0.5
    last = Counter(net.skips[4] for net in park if len(net.channels) == 5 and net.skips[4] is not None)
    assert set(last) == {0, 1, 2}
    assert len({net.name for net in park}) == len(set(park)), "a name is one network"


# ---- SIREN


@pytest.mark.parametrize("convention", ["nfn", "dws"])
def test_sirens_equal_their_equations(convention):
    config = SIREN(convention=convention, outputs=3, hidden=(5, 4))
    module, state = randomised(config)
    w0, b0, w1, b1, w2, b2 = state.values()
    x = pixel_grid(3, 4)
    hidden = torch.sin(30 * (torch.sin(30 * (x @ w0.T + b0)) @ w1.T + b1))
    expected = hidden @ w2.T + b2 + (0.5 if convention == "dws" else 0)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    keys = {"nfn": ["net.0.linear", "net.1.linear", "net.2"], "dws": ["seq.0", "seq.1", "seq.2"]}[convention]
    assert list(state) == [f"{key}.{role}" for key in keys for role in ("weight", "bias")]
    assert {spec.layer for spec in Layout.of(module).tensors} == {"linear"}


@pytest.mark.parametrize("convention", ["nfn", "dws"])
def test_pixels_and_outputs_are_inverse(convention):
    config, pixels = SIREN(convention=convention), torch.rand(10)
    torch.testing.assert_close(config.to_pixels(config.from_pixels(pixels)), pixels)
    black = config.from_pixels(torch.zeros(1))
    assert black.tolist() == ([-1.0] if convention == "nfn" else [0.0])


def test_the_pixel_grid_follows_the_image():
    image = torch.arange(12.0).view(3, 4)
    grid = pixel_grid(3, 4)
    rows, columns = ((grid[:, 0] + 1) / 2 * 2).round().long(), ((grid[:, 1] + 1) / 2 * 3).round().long()
    assert image[rows, columns].equal(image.flatten())


# ---- All of them


@pytest.mark.parametrize(
    "network", [PooledCNN(pooled=2), ViT(pooling="mean"), wild_park((3, 8, 8), 10, seed=4), SIREN(convention="dws")]
)
def test_configurations_survive_json(network):
    import json

    assert from_json(json.loads(json.dumps(to_json(network)))) == network


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PooledCNN(channels=(3,)), "same length"),
        (lambda: PooledCNN(image_shape=(1, 8, 8)), "too small"),
        (lambda: PooledCNN(dropout=1.0), "dropout"),
        (lambda: PooledCNN(pooled=0), "at least 1"),
        (lambda: ViT(patch=(5, 4)), "do not divide images"),
        (lambda: ViT(heads=5), "do not divide a width"),
        (lambda: ViT(depth=0), "at least 1"),
        (lambda: ViT(dropout=1.0), "dropout"),
        (lambda: WildPark(channels=(3,)), "same length"),
        (lambda: WildPark(kernels=(3, 4)), "odd"),
        (lambda: WildPark(skips=(None, 0)), "layer 1 can add layers 0 to -1"),
        (lambda: SIREN(hidden=()), "needs a hidden layer"),
        (lambda: CNN(channels=()), "at least 1"),
    ],
)
def test_impossible_configurations_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
