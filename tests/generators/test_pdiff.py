"""p-diff on the last layer of a digits network: what moves, what stays, and samples as good as the checkpoints."""

import polars as pl
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from weightspace.datasets import load as load_data
from weightspace.encoders import ConvAutoencoderConfig, ConvAutoencoderTraining
from weightspace.errors import ConfigError, LayoutError, UnknownName
from weightspace.generators import ConvDenoiser, DiffusionTraining, pdiff
from weightspace.zoo import behaviour
from weightspace.zoo.behaviour import by_activation


@pytest.fixture(scope="module")
def subset(digits_zoo):
    relu = digits_zoo.last().where(pl.col("config.activation") == "relu")
    return pdiff.Subset(relu.best(1 / len(relu), "metric.validation_accuracy"), ("fc2",))


@pytest.fixture(scope="module")
def checkpoints(subset):
    return pdiff.consecutive_checkpoints(subset, load_data("digits"), count=60, learning_rate=3e-3, seed=1)


def test_what_is_cut_out_can_be_put_back(subset, digits_zoo):
    zoo = digits_zoo.last().take(range(3))
    part = subset.cut(zoo)
    assert part.layout.parameters == 150
    whole = subset.insert(part)
    state, frozen = (zoo.layout.unflatten(rows) for rows in (whole.weights(), subset.network.weights()))
    own = zoo.layout.unflatten(zoo.weights())
    for name, value in state.items():
        wanted = own[name] if name.startswith("fc2") else frozen[name].expand_as(value)
        assert torch.equal(value, wanted), name
    assert whole.table["config.activation"].unique().to_list() == ["relu"]
    with pytest.raises(LayoutError):
        subset.insert(zoo)


def test_first_checkpoint_is_one_step_of_adamw(subset, checkpoints):
    data = load_data("digits")
    ((network, _),) = by_activation(subset.network)
    state = subset.network.layout.unflatten(subset.network.weights()[0])
    moving = {name: value.clone().requires_grad_() for name, value in state.items() if name.startswith("fc2")}
    optimiser = torch.optim.AdamW(moving.values(), lr=3e-3, weight_decay=5e-4)
    chosen = torch.randint(len(data.train_labels), (128,), generator=torch.Generator().manual_seed(1))
    logits = functional_call(network.build(), {**state, **moving}, (data.train_images[chosen],))
    F.cross_entropy(logits, data.train_labels[chosen]).backward()
    optimiser.step()
    wanted = subset.layout.flatten({name: value.detach() for name, value in moving.items()})
    torch.testing.assert_close(checkpoints.weights()[0], wanted, atol=1e-6, rtol=1e-5)


def test_training_on_fits_the_training_images_better(subset, checkpoints):
    data = load_data("digits")
    before, _ = behaviour.metrics(subset.network, data.train_images, data.train_labels)
    after, _ = behaviour.metrics(subset.insert(checkpoints), data.train_images, data.train_labels)
    assert after[-10:].mean() < before.item()


def test_samples_do_about_as_well_as_the_checkpoints(subset, checkpoints):
    held = torch.arange(len(checkpoints)) % 5 == 0
    fitted = pdiff.fit(
        checkpoints.take((~held).nonzero().flatten()), validation=checkpoints.take(held.nonzero().flatten()),
        autoencoder=ConvAutoencoderConfig(channels=(8, 16, 8), latent=8, epoch_steps=50), align=False,
        denoiser=ConvDenoiser(channels=(1, 8, 16, 8, 1), kernel=3),
        autoencoder_training=ConvAutoencoderTraining(epochs=2, batch_size=24, learning_rate=1e-2, accelerator="cpu"),
        optimisation=DiffusionTraining(epochs=8, batch_size=48, learning_rate=3e-3, accelerator="cpu"),
    )  # fmt: skip
    samples = subset.insert(fitted.sample(30, steps=50, seed=0))
    data = load_data("digits")
    accuracy = [
        float(behaviour.metrics(zoo, data.validation_images, data.validation_labels)[1].mean())
        for zoo in (samples, subset.insert(checkpoints))
    ]
    assert accuracy[0] > accuracy[1] - 0.1 and accuracy[1] > 0.4
    assert len(samples.weights().unique(dim=0)) == 30
    assert "48 independent runs" in fitted.warnings[0]  # as counted; in truth they are one


def test_what_cannot_be_is_refused(subset, digits_zoo):
    with pytest.raises(UnknownName, match="unknown layer 'fc3'; did you mean 'fc2'"):
        pdiff.Subset(subset.network, ("fc3",))
    with pytest.raises(ConfigError, match="60 checkpoints"):
        pdiff.Subset(digits_zoo, ("fc2",))
    with pytest.raises(ConfigError, match="at least 1"):
        pdiff.consecutive_checkpoints(subset, load_data("digits"), count=0)
