"""Populations of signals: each network fits its own, as it would alone and as in a plain loop."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ConfigError
from weightspace.networks import SIREN, Layout, streams
from weightspace.networks.fitting import fit_population, population_signals, signal_errors
from weightspace.networks.initialisation import initial_rows
from weightspace.networks.population import Hyperparameters
from weightspace.networks.siren import pixel_grid

SEEDS = torch.tensor([5, 6, 7])
GRID = pixel_grid(6, 7)
NETWORK = SIREN(outputs=2, hidden=(8, 8))
IMAGES = torch.rand(3, 42, 2, generator=torch.Generator().manual_seed(0))
TARGETS = NETWORK.from_pixels(IMAGES)


def factors(learning_rate: list[float], seeds: Tensor = SEEDS) -> Hyperparameters:
    one = torch.ones(len(seeds))
    rates = torch.tensor(learning_rate)
    return Hyperparameters(
        seeds=seeds, learning_rate=rates, weight_decay=one * 1e-3, dropout=one * 0, train_fraction=one
    )


def start() -> Tensor:
    return initial_rows(NETWORK, SEEDS, "siren", torch.ones(3))


def fitted(
    rows: Tensor, h: Hyperparameters, targets: Tensor, batch_size: int, epochs: int = 4
) -> tuple[Tensor, Tensor]:
    *_, (_, last, diverged) = fit_population(NETWORK, rows, h, GRID, targets, epochs=epochs, batch_size=batch_size)
    return last, diverged


@pytest.mark.parametrize("batch_size", [10, 42, 1000])
def test_fitting_equals_a_plain_loop(batch_size):
    rates = [1e-3, 3e-3, 1e-4]
    rows = start()
    together, diverged = fitted(rows, factors(rates), TARGETS, batch_size)
    assert not diverged.any()
    for i, rate in enumerate(rates):
        module = NETWORK.build()
        layout = Layout.of(module)
        module.load_state_dict(layout.unflatten(rows[i]))
        adam = torch.optim.Adam(module.parameters(), lr=rate, weight_decay=1e-3)
        for epoch in range(1, 5):
            order = streams.permutation(SEEDS[i : i + 1], 1_000_000 + epoch, 42)[0]
            batches = order[:40].split(10) if batch_size == 10 else [torch.arange(42)]
            for batch in batches:
                adam.zero_grad()
                F.mse_loss(module(GRID[batch]), TARGETS[i, batch]).backward()
                adam.step()
        expected = layout.flatten(module.state_dict())
        assert (expected - rows[i]).abs().max() > 3 * rate
        torch.testing.assert_close(together[i], expected, rtol=1e-3, atol=1e-4)


def test_a_network_depends_on_its_own_signal_only():
    rows, h = start(), factors([1e-3] * 3)
    before, _ = fitted(rows, h, TARGETS, 42)
    after, _ = fitted(rows, h, torch.cat([TARGETS[:1], -TARGETS[1:]]), 42)
    assert after[0].equal(before[0]) and not after[1].equal(before[1])


def test_divergence_disturbs_nobody():
    rows = start()
    calm, _ = fitted(rows, factors([1e-3] * 3), TARGETS, 42)
    spoilt = TARGETS.clone()
    spoilt[1, 3] = float("nan")
    found, diverged = fitted(rows, factors([1e-3] * 3), spoilt, 42)
    assert diverged.tolist() == [0, 1, 0] and found.isfinite().all()
    assert found[[0, 2]].equal(calm[[0, 2]]) and found[1].equal(rows[1])


def test_fitting_fits():
    rows = start()
    errors = [signal_errors(NETWORK, rows, GRID, TARGETS)]
    last, _ = fitted(rows, factors([1e-2] * 3), TARGETS, 42, epochs=200)
    errors.append(signal_errors(NETWORK, last, GRID, TARGETS))
    assert (errors[1] < 0.3 * errors[0]).all()  # 202 parameters against 84 random values


def test_signals_and_errors_equal_each_network_alone():
    rows = torch.cat([start()] * 500)  # more than one block
    values = population_signals(NETWORK, rows, GRID)
    errors = signal_errors(NETWORK, rows, GRID, TARGETS.repeat(500, 1, 1))
    module = NETWORK.build()
    for i in (0, 1, 2, 1499):
        module.load_state_dict(Layout.of(module).unflatten(rows[i]))
        with torch.no_grad():
            expected = module(GRID)
        torch.testing.assert_close(values[i], expected, rtol=1e-4, atol=1e-5)
        pixels = ((expected + 1) / 2 - IMAGES[i % 3]).square().mean()
        torch.testing.assert_close(errors[i], pixels, rtol=1e-3, atol=1e-6)


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        fitted(start(), factors([1e-3] * 3), TARGETS, 0)
