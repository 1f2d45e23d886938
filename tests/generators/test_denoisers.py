"""Denoisers: what they start as, what reaches them, and that networks of a batch do not read each other."""

import pytest
import torch

from weightspace.errors import ConfigError
from weightspace.generators.denoisers import ConvDenoiser, MLPDenoiser, Signal, TransformerDenoiser
from weightspace.generators.moving_average import Averaged

KINDS = [
    (MLPDenoiser(width=16, depth=2), (5,)),
    (MLPDenoiser(width=16, depth=2), (3, 4)),
    (ConvDenoiser(channels=(1, 4, 8, 8, 4, 1), kernel=3), (6,)),
    (TransformerDenoiser(width=16, heads=2, depth=2), (3, 4)),
]


def awake(config, shape, condition=2):
    """A module whose zero weights are random, too."""
    module = config.build(shape, condition)
    generator = torch.Generator().manual_seed(0)
    module.reset(generator)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize(("config", "shape"), KINDS, ids=str)
def test_prediction_starts_at_zero(config, shape):
    module = config.build(shape, 2)
    module.reset(torch.Generator().manual_seed(0))
    assert not module.eval()(torch.randn(4, *shape), torch.rand(4), torch.randn(4, 2)).any()


@pytest.mark.parametrize(("config", "shape"), KINDS, ids=str)
def test_time_condition_and_point_matter_and_gradients_reach_everything(config, shape):
    module = awake(config, shape).eval()
    noisy, time, condition = torch.randn(4, *shape), torch.rand(4), torch.randn(4, 2)
    condition[0] = torch.nan  # one without, so that its learned vector is used
    out = module(noisy, time, condition)
    assert out.shape == noisy.shape
    for other in ((noisy + 1, time, condition), (noisy, time / 2, condition), (noisy, time, condition + 1)):
        assert ((module(*other) - out).flatten(1).abs().amax(1) > 1e-4)[1:].all()
    assert torch.equal(module(noisy, time, condition + 1)[0], out[0])  # no condition stays none
    out.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("config", "shape"), KINDS, ids=str)
def test_a_network_does_not_depend_on_its_batch(config, shape):
    module = awake(config, shape).eval()
    noisy, time = torch.randn(4, *shape), torch.rand(4)
    alone = module(noisy[:1], time[:1], None)
    torch.testing.assert_close(module(noisy, time, None)[:1], alone, atol=1e-5, rtol=1e-5)


def test_equal_seeds_start_equal_weights():
    first, second = (MLPDenoiser(width=8).build((3,)) for _ in range(2))
    for module in (first, second):
        module.reset(torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_more_dimensions_than_width_pass_around_the_blocks():
    """-noisy is representable for any number of dimensions: what a flow must know at its start."""
    module = MLPDenoiser(width=2, depth=1).build((50,))
    module.reset(torch.Generator().manual_seed(0))
    module.around.bias.data.fill_(-1.0)
    noisy = torch.randn(3, 50)
    torch.testing.assert_close(module(noisy, torch.ones(3)), -noisy)


def test_signal_of_all_none_is_that_of_no_condition():
    signal = Signal(8, 3)
    torch.nn.init.normal_(signal.none)
    time = torch.rand(2)
    assert torch.equal(signal(time, torch.full((2, 3), torch.nan)), signal(time, None))


def test_average_follows_its_formula():
    live = torch.nn.Linear(1, 1, bias=False)
    both, wanted = Averaged(live, 0.9), None
    for value in (1.0, 3.0, -2.0):
        live.weight.data.fill_(value)
        both(torch.ones(1, 1))
        wanted = value if wanted is None else 0.9 * wanted + 0.1 * value  # the first step sets it
    assert both.average.weight.item() == pytest.approx(wanted)
    live.weight.data.fill_(100.0)
    assert both.eval()(torch.ones(1, 1)).item() == pytest.approx(wanted)


def test_impossible_denoisers_are_refused():
    with pytest.raises(ConfigError, match="read the same backwards"):
        ConvDenoiser(channels=(1, 4, 8, 1))
    with pytest.raises(ConfigError, match="tokens"):
        TransformerDenoiser().build((5,))
    with pytest.raises(ConfigError, match="multiple of the 3 heads"):
        TransformerDenoiser(width=16, heads=3)
