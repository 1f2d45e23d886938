"""p-diff's autoencoder: sizes, what it learns, that networks do not read each other, and its files."""

import pytest
import torch

from weightspace import encoders
from weightspace.encoders import ConvAutoencoder, ConvAutoencoderConfig, ConvAutoencoderTraining
from weightspace.encoders.conv_autoencoder import ConvAutoencoderModule
from weightspace.errors import ConfigError

SMALL = ConvAutoencoderConfig(channels=(8, 8, 8), latent=12, epoch_steps=40)
SHORT = ConvAutoencoderTraining(epochs=2, batch_size=20, accelerator="cpu")


@pytest.fixture(scope="module")
def fitted(digits_zoo):
    train, validation, _ = digits_zoo.split(0)
    return ConvAutoencoder.fit(train, validation=validation, config=SMALL, optimisation=SHORT)


@pytest.mark.parametrize("parameters", [64, 65, 150, 1060])
def test_published_sizes_halve_and_double_any_length(parameters):
    module = ConvAutoencoderModule(ConvAutoencoderConfig(), parameters)
    module.reset(torch.Generator().manual_seed(0))
    rows = torch.randn(2, parameters)
    latents = module.encode(rows)
    assert latents.shape == (2, 128) and module.decode(latents).shape == rows.shape
    assert module.size % 64 == 0 and module.size - parameters < 64


def test_it_decodes_better_than_the_mean(fitted, digits_zoo):
    """Of networks that it has not seen, whose deviation from the mean is about one."""
    _, validation, _ = digits_zoo.split(0)
    rows = fitted.preparation.apply(validation)
    error = (fitted.preparation.apply(fitted.reconstruct(validation)) - rows).square().mean()
    mean = fitted.preparation.apply(digits_zoo).mean(0)
    assert error < 0.95 * (rows - mean).square().mean()


def test_a_network_does_not_depend_on_its_batch(fitted, digits_zoo):
    latents = fitted.latents(digits_zoo)
    assert latents.shape == (60, 1, 12)
    rows = fitted.decode(latents)
    torch.testing.assert_close(fitted.decode(latents[:1]), rows[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted.embed(digits_zoo), latents[:, 0])


def test_it_comes_back_from_its_files(fitted, digits_zoo, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = encoders.load_autoencoder(tmp_path)
    assert isinstance(loaded, ConvAutoencoder) and loaded.config == SMALL
    assert torch.equal(loaded.latents(digits_zoo), fitted.latents(digits_zoo))


def test_noise_reaches_row_and_latent_alone():
    module = ConvAutoencoderModule(SMALL, 70).eval()
    rows, nothing = torch.randn(3, 70), torch.zeros(3, 12)
    plain = (module.decode(module.encode(rows)) - rows).square().mean()
    torch.testing.assert_close(module(rows, torch.zeros(3, 70), nothing), plain)
    noise = torch.randn(3, 12)
    wanted = (module.decode(module.encode(rows) + 0.1 * noise) - rows).square().mean()
    torch.testing.assert_close(module(rows, torch.zeros(3, 70), noise), wanted)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="one to six numbers"):
        ConvAutoencoderConfig(channels=(8,) * 7)
    with pytest.raises(ConfigError, match="latent"):
        ConvAutoencoderConfig(latent=0)
