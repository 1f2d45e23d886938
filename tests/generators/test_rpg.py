"""Tokens layer by layer, and their recurrent generation."""

from itertools import pairwise

import polars as pl
import pytest
import torch
from torch.testing import assert_close

from weightspace.errors import ConfigError, UnknownName
from weightspace.generators import ConvDenoiser, Diffusion, DiffusionConfig, DiffusionTraining, Flow, MLPDenoiser
from weightspace.generators.denoising import Noised, denoising_loss
from weightspace.generators.rpg import PermutationState, RecurrentDenoiser
from weightspace.generators.token_space import Tokens
from weightspace.networks import CNN, MLP, Layout
from weightspace.zoo import Zoo

SMALL = RecurrentDenoiser(width=16, layers=1, token=MLPDenoiser(width=32, depth=1))


def zoo_of(layout: Layout, rows: torch.Tensor) -> Zoo:
    table = pl.DataFrame({"model": [f"m{i:03d}" for i in range(len(rows))], "step": [0] * len(rows)})
    return Zoo.in_memory(rows, layout, table, {})


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout.of(MLP(hidden=(5,), image_shape=(1, 3, 3), classes=2).build())


@pytest.fixture(scope="module")
def zoo(layout) -> Zoo:
    return zoo_of(layout, torch.randn(40, layout.parameters, generator=torch.Generator().manual_seed(0)) + 2)


@pytest.mark.parametrize("network", [MLP(), CNN(), CNN(batch_norm=True)])
@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_tokens_hold_every_weight_once_and_no_two_layers(network, size):
    layout = Layout.of(network.build())
    rows = torch.rand(3, layout.parameters, generator=torch.Generator().manual_seed(0)) + 0.1
    zoo = zoo_of(layout, rows)
    space = Tokens.fit(zoo, size, align=False)
    index = space._index
    assert index[space.real].sort().values.tolist() == list(range(layout.parameters))
    layer_of = torch.full((layout.parameters,), -1)
    names = list(dict.fromkeys(spec.layer_name for spec in layout.tensors))
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        layer_of[place] = names.index(spec.layer_name)
    for token, real, (layer, _) in zip(index, space.real, space.positions.tolist(), strict=True):
        assert layer_of[token[real]].unique().tolist() == [layer]
    for (layer, number), (later, after) in pairwise(space.positions.tolist()):
        assert (later, after) in ((layer, number + 1), (layer + 1, 0))
    points = space.encode(zoo)
    assert points.shape == (3, *space.shape) and not points[:, ~space.real].any()
    assert_close(space.decode(points), rows, rtol=1e-5, atol=1e-5)


def test_padding_does_not_count():
    real = torch.tensor([[True, True], [True, False]])
    noised = Noised(torch.zeros(3, 2, 2), torch.zeros(3), torch.ones(3, 2, 2))
    wild = Noised(noised.noisy, noised.time, torch.where(real, 1.0, 1e6).expand(3, -1, -1))
    zero = lambda x, *_: torch.zeros_like(x)  # noqa: E731
    assert denoising_loss(zero, wild, real=real) == denoising_loss(zero, noised) == 1.0
    assert denoising_loss(zero, wild) > 1e6


@pytest.mark.parametrize("recurrence", ["gru", "none"])
@pytest.mark.parametrize("token", [MLPDenoiser(width=32, depth=1), ConvDenoiser(channels=(1, 4, 8, 4, 1))])
def test_a_token_is_denoised_by_itself(recurrence, token):
    module = RecurrentDenoiser(recurrence=recurrence, width=16, token=token).build((4, 6), condition=3)
    module.reset(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for part in module.parameters():
            part += 0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    module.eval()
    noisy, time, told = torch.randn(2, 4, 6), torch.tensor([0.3, 0.8]), torch.randn(2, 3)
    said = module(noisy, time, told)
    other = noisy.clone()
    other[0, 1] += 1
    changed = (module(other, time, told) - said).abs().amax(2) > 1e-6
    assert changed.nonzero().tolist() == [[0, 1]]
    nothing = torch.full((2, 3), torch.nan)
    assert_close(module(noisy, time, nothing), module(noisy, time, None), rtol=1e-4, atol=1e-5)
    assert (module(noisy, time, told + 1) - said).abs().max() > 1e-3


def test_prototypes_know_what_came_before_only_with_recurrence():
    for recurrence, expected in (("gru", [False, True, True, True]), ("none", [False, True, False, False])):
        module = RecurrentDenoiser(recurrence=recurrence, width=16).build((4, 6))
        module.reset(torch.Generator().manual_seed(0))
        before = module.prototypes(1, None)
        with torch.no_grad():
            module.places[1] += 1
        changed = (module.prototypes(1, None) - before).abs().amax(2)[0] > 1e-6
        assert changed.tolist() == expected


@pytest.fixture(scope="module")
def fitted(zoo):
    space = Tokens.fit(zoo, 8, align=False)
    config = DiffusionConfig(process=Flow(sampling_steps=20), denoiser=SMALL, average=0.9)
    optimisation = DiffusionTraining(epochs=3, batch_size=48, learning_rate=5e-3, accelerator="cpu")
    return Diffusion.fit(zoo, validation=zoo, space=space, config=config, optimisation=optimisation)


def test_samples_have_the_moments_of_the_networks(fitted, zoo):
    drawn = fitted.sample(400, seed=0).weights()
    assert drawn.shape == (400, zoo.layout.parameters)
    # fitted to the deviation of each tensor, as independent weights around the mean of each
    assert_close(drawn.mean(0), zoo.weights().mean(0), rtol=0, atol=0.35)
    assert 0.7 < float(drawn.std(0).mean() / zoo.weights().std(0).mean()) < 1.3


def test_equal_seeds_give_equal_networks_and_files_keep_them(fitted, tmp_path):
    one = fitted.sample(3, seed=5).weights()
    assert torch.equal(one, fitted.sample(3, seed=5).weights())
    assert not torch.equal(one, fitted.sample(3, seed=6).weights())
    fitted.save_pretrained(tmp_path)
    assert torch.equal(Diffusion.from_pretrained(tmp_path).sample(3, seed=5).weights(), one)


def test_a_permutation_state_asks_for_a_copy(zoo):
    few = zoo.take([0, 1])
    state = PermutationState(few.models, size=8)
    assert state.given(zoo.table)[:3].tolist()[:2] == [0, 1] and state.given(zoo.table)[2].isnan()
    space = Tokens.fit(few, 8, align=False)
    fitted = Diffusion.fit(
        few, validation=few, space=space, condition=state,
        config=DiffusionConfig(process=Flow(sampling_steps=20), denoiser=SMALL, average=0.9),
        optimisation=DiffusionTraining(epochs=3, batch_size=32, learning_rate=1e-2, accelerator="cpu"),
    )  # fmt: skip
    for number, model in enumerate(few.models):
        points = space.encode(few)
        drawn = fitted.points(16, condition=model, generator=torch.Generator().manual_seed(0))
        distance = (drawn[:, None] - points).square().flatten(2).sum(2)
        assert (distance.argmin(1) == number).all()  # the network that was asked for
    with pytest.raises(UnknownName, match="m000"):
        state.asked("m00", 1)


def test_points_without_tokens_are_refused():
    with pytest.raises(ConfigError, match="use Tokens"):
        RecurrentDenoiser().build((5,))
