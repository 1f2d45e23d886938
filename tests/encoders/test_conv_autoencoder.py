"""p-diff's autoencoder: sizes, what it learns, that networks do not read each other, and its files."""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn

from weightspace import encoders
from weightspace.encoders import ConvAutoencoder, ConvAutoencoderConfig, ConvAutoencoderTraining
from weightspace.encoders.conv_autoencoder import ConvAutoencoderModule
from weightspace.errors import ConfigError
from weightspace.networks import Layout
from weightspace.zoo import Zoo

SMALL = ConvAutoencoderConfig(channels=(8, 8, 8), latent=12, epoch_steps=60)
SHORT = ConvAutoencoderTraining(epochs=2, batch_size=32, learning_rate=1e-2, accelerator="cpu")


def waves(n, seed):
    """Networks in a plane: mixtures of a sine and a cosine along the row."""
    layout = Layout.of(nn.Linear(11, 8))
    share = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    angle = torch.linspace(0, 6 * math.pi, 96)
    table = pl.DataFrame({"model": [f"w{seed}-{i}" for i in range(n)], "step": [0] * n})
    return Zoo.in_memory(share @ torch.stack([angle.sin(), angle.cos()]), layout, table, {})


@pytest.fixture(scope="module")
def fitted():
    return ConvAutoencoder.fit(waves(200, 0), validation=waves(50, 1), config=SMALL, optimisation=SHORT, align=False)


@pytest.mark.parametrize("parameters", [64, 65, 150, 1060])
def test_published_sizes_halve_and_double_any_length(parameters):
    module = ConvAutoencoderModule(ConvAutoencoderConfig(), parameters)
    module.reset(torch.Generator().manual_seed(0))
    rows = torch.randn(2, parameters)
    latents = module.encode(rows)
    assert latents.shape == (2, 128) and module.decode(latents).shape == rows.shape
    assert module.size % 64 == 0 and module.size - parameters < 64


def test_it_decodes_networks_that_it_has_not_seen(fitted):
    unseen = waves(50, 2)
    error = (fitted.reconstruct(unseen).weights() - unseen.weights()).square().mean()
    assert error < 0.2 * unseen.weights().var()


def test_a_network_does_not_depend_on_its_batch(fitted):
    zoo = waves(60, 3)
    latents = fitted.latents(zoo)
    assert latents.shape == (60, 1, 12)
    rows = fitted.decode(latents)
    torch.testing.assert_close(fitted.decode(latents[:1]), rows[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted.embed(zoo), latents[:, 0])


def test_it_comes_back_from_its_files(fitted, tmp_path):
    zoo = waves(5, 4)
    fitted.save_pretrained(tmp_path)
    loaded = encoders.load_autoencoder(tmp_path)
    assert isinstance(loaded, ConvAutoencoder) and loaded.config == SMALL
    assert torch.equal(loaded.latents(zoo), fitted.latents(zoo))


def test_noise_reaches_row_and_latent_alone():
    module = ConvAutoencoderModule(SMALL, 70).eval()
    rows, nothing = torch.randn(3, 70), torch.zeros(3, 12)
    plain = (module.decode(module.encode(rows)) - rows).square().mean()
    torch.testing.assert_close(module(rows, torch.zeros(3, 70), nothing)["loss"], plain)
    noise = torch.randn(3, 12)
    wanted = (module.decode(module.encode(rows) + 0.1 * noise) - rows).square().mean()
    torch.testing.assert_close(module(rows, torch.zeros(3, 70), noise)["loss"], wanted)


def test_a_variational_autoencoder_brings_latents_near_a_normal_law():
    zoo, config = waves(200, 0), replace(SMALL, kl=1e-2)
    fitted = ConvAutoencoder.fit(zoo, validation=waves(50, 1), config=config, optimisation=SHORT, align=False)
    latents = fitted.latents(zoo)[:, 0]
    assert torch.equal(latents, fitted.latents(zoo)[:, 0])
    rows = fitted.preparation.apply(zoo)
    noise = torch.randn(200, 12, generator=torch.Generator().manual_seed(2))
    parts = fitted.module(rows, torch.zeros_like(rows), noise)
    spread = (fitted.module.log_variance(fitted.module._features(rows)) / 2).exp()
    assert ((latents + spread * noise).std(0) - 1).abs().max() < 0.35
    assert spread.mean() > 3 * SMALL.latent_noise  # not so small that it does not matter
    assert parts["reconstruction"] < 0.3 * rows.var()
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 1e-2 * parts["divergence"])


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="one to six numbers"):
        ConvAutoencoderConfig(channels=(8,) * 7)
    with pytest.raises(ConfigError, match="latent"):
        ConvAutoencoderConfig(latent=0)
