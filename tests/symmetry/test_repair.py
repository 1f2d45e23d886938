"""Laws of REPAIR: statistics are met exactly on the given inputs, ends stay, and networks do not see each other."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import ResNet18
from weightspace.networks.layout import Layout
from weightspace.symmetry import chain_groups, recalibrated, repaired

CNN = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7), nn.ReLU()]


@pytest.fixture
def cnn():
    network = nn.Sequential(*CNN, nn.Linear(7, 4))
    layout = Layout.of(network)
    return network, layout, chain_groups(layout)


def statistics(network, layout, row, inputs):
    """Mean and deviation of every hidden pre-activation channel, layer by layer, in float64."""
    network = network.double().eval()
    network.load_state_dict({k: v.double() for k, v in layout.unflatten(row).items()}, strict=False)
    x, found = inputs.double(), []
    with torch.no_grad():
        for layer in network[:-1]:
            x = layer(x)
            if isinstance(layer, nn.Linear | nn.Conv2d):
                channels = x.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
                found.append((channels.mean(1), channels.std(1, correction=0)))
    network.float()
    return found


def test_statistics_are_interpolated_exactly(cnn, random_rows, examples):
    network, layout, groups = cnn
    ends, inputs = random_rows(layout, 2, 1), examples(network, 50, 2)
    shares = torch.tensor([0.0, 0.3, 0.5, 1.0])
    rows = torch.lerp(ends[:1], ends[1:], shares[:, None])
    mended = repaired(network, rows, ends, shares, groups, inputs)
    first, second = (statistics(network, layout, end, inputs) for end in ends)
    differs = 0.0
    for share, raw, row in zip(shares, rows, mended, strict=True):
        before = statistics(network, layout, raw, inputs)
        for a, b, was, now in zip(first, second, before, statistics(network, layout, row, inputs), strict=True):
            for one, other, old, found in zip(a, b, was, now, strict=True):
                wanted = (1 - share) * one + share * other
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # rows are float32
                differs = max(differs, float((old - wanted).abs().max()))
    assert differs > 0.05  # they are not interpolated by themselves
    torch.testing.assert_close(mended[[0, 3]], ends, rtol=1e-4, atol=1e-5)
    last = slice(layout.slices["7.weight"].start, None)
    assert torch.equal(mended[:, last], rows[:, last])  # the logits are not hidden


def test_recalibrated_batch_norms_have_the_statistics_of_the_inputs(random_rows, examples):
    network = nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)],
    )
    layout = Layout.of(network)
    rows, inputs = random_rows(layout, 3, 1), examples(network, 40, 2)
    found = layout.unflatten(recalibrated(network, rows, inputs))
    for i, row in enumerate(rows):  # the same by torch's own training mode, one network at a time
        network.load_state_dict(layout.unflatten(row), strict=False)
        network.train()
        for part in network:
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                part.momentum = None
        with torch.no_grad():
            network(inputs)
        for name, side in (("1", 36), ("4", 16)):
            count = len(inputs) * side
            own = network.get_submodule(name)
            torch.testing.assert_close(found[f"{name}.running_mean"][i], own.running_mean, rtol=1e-4, atol=1e-5)
            biased = own.running_var * (count - 1) / count
            torch.testing.assert_close(found[f"{name}.running_var"][i], biased, rtol=1e-4, atol=1e-5)
    for name, values in layout.unflatten(rows).items():
        assert torch.equal(found[name], values) == ("running" not in name)


def test_repair_leaves_layers_before_a_batch_norm_to_it(random_rows, examples):
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    layout = Layout.of(network)
    ends, inputs = random_rows(layout, 2, 1), examples(network, 30, 2)
    middle = ends.mean(0, keepdim=True)
    found = repaired(network, middle, ends, torch.tensor([0.5]), chain_groups(layout), inputs)
    assert torch.equal(found, recalibrated(network, middle, inputs))


def test_networks_are_mended_alone_and_in_parts(cnn, random_rows, examples, monkeypatch):
    network, layout, groups = cnn
    ends, inputs = random_rows(layout, 2, 1), examples(network, 20, 2)
    shares = torch.linspace(0, 1, 5)
    rows = torch.lerp(ends[:1], ends[1:], shares[:, None])
    kept = rows.clone()
    together = repaired(network, rows, ends, shares, groups, inputs)
    assert torch.equal(rows, kept)
    monkeypatch.setattr("weightspace.symmetry.repair.VALUES_AT_ONCE", 1)
    torch.testing.assert_close(repaired(network, rows, ends, shares, groups, inputs), together)
    assert not network[0]._forward_hooks and network.training


def test_residual_networks_are_recalibrated(random_rows):
    network = ResNet18(width=4).build()
    layout = Layout.of(network)
    rows, inputs = random_rows(layout, 2, 1), torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = recalibrated(network, rows, inputs)
    torch.testing.assert_close(recalibrated(network, found, inputs), found, rtol=1e-4, atol=1e-4)
    row = found[0]
    out = functional_call(network.eval(), layout.unflatten(row), inputs)
    network.load_state_dict(layout.unflatten(rows[0]), strict=False)
    torch.testing.assert_close(out, network.train()(inputs), rtol=1e-3, atol=1e-3)  # batch statistics, biased as ours


def test_what_cannot_be_mended_is_named(random_rows):
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    layout = Layout.of(network)
    ends = random_rows(layout, 2, 1)
    groups = chain_groups(layout)
    with pytest.raises(LayoutError, match="'0' has neither a bias nor a batch norm"):
        repaired(network, ends, ends, torch.tensor([0.0, 1.0]), groups, torch.zeros(5, 3))
    with pytest.raises(ConfigError, match="need inputs"):
        recalibrated(network, ends, torch.zeros(0, 3))
