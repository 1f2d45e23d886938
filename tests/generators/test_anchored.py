"""A denoiser around anchors: what it is told first is what it says first."""

import pytest
import torch

from weightspace.errors import ConfigError
from weightspace.generators import DDPM, DiffusionConfig, Flow, MLPDenoiser
from weightspace.generators.anchored import AnchoredDenoiser


@pytest.fixture
def module():
    made = AnchoredDenoiser(denoiser=MLPDenoiser(width=8, depth=1)).build((2, 3), condition=8)
    made.reset(torch.Generator().manual_seed(0))
    return made


def test_untrained_it_says_the_anchor_whatever_the_noise(module):
    noisy, time, condition = torch.randn(4, 2, 3), torch.rand(4), torch.randn(4, 8)
    assert torch.equal(module(noisy, time, condition), condition[:, :6].view(4, 2, 3))


def test_the_correction_knows_noise_time_and_the_rest_of_the_condition(module):
    with torch.no_grad():
        for part in module.parameters():
            part += 0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    noisy, time, condition = torch.randn(4, 2, 3), torch.full((4,), 0.5), torch.randn(4, 8)
    said = module(noisy, time, condition)
    changed = condition.clone()
    changed[:, 7] += 1
    for other in (module(noisy + 1, time, condition), module(noisy, time / 2, condition), module(noisy, time, changed)):
        assert (other - said).abs().max() > 1e-3


def test_no_condition_means_no_anchor(module):
    noisy, time = torch.randn(4, 2, 3), torch.rand(4)
    none = torch.full((4, 8), torch.nan)
    assert torch.equal(module(noisy, time, none), torch.zeros(4, 2, 3))
    assert torch.equal(module(noisy, time, None), torch.zeros(4, 2, 3))


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match="do not begin with an anchor of 6"):
        AnchoredDenoiser().build((2, 3), condition=5)
    for process in (Flow(), DDPM(target="noise")):
        with pytest.raises(ConfigError, match="target data"):
            DiffusionConfig(process=process, denoiser=AnchoredDenoiser())
