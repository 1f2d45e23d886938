"""Initial weights: each named law, and that they belong to the seed."""

from math import sqrt

import pytest
import torch
from scipy import stats

from weightspace.errors import ConfigError, UnknownName
from weightspace.networks import CNN, MLP, SIREN, Layout, ViT
from weightspace.networks.initialisation import INITIALISATIONS, initial_rows

SEEDS = torch.tensor([11, 22, 33, 44])
LAWS = [name for name in INITIALISATIONS if name not in ("siren", "orthogonal")]


@pytest.mark.parametrize("init", LAWS)
def test_initial_weights_follow_their_law(init):
    network = CNN(channels=(8, 6), hidden=(20,), batch_norm=True)
    layout = Layout.of(network.build())
    seeds, scale = torch.arange(300), torch.full((300,), 0.5)
    rows = initial_rows(network, seeds, init, scale, bias=0.25)
    for name, values in layout.unflatten(rows).items():
        spec = layout.by_name[name]
        if spec.layer == "norm":
            assert (values == float(spec.role in ("weight", "running_var"))).all()
            continue
        if spec.role != "weight" and init != "torch":
            assert (values == 0.25).all()
            continue
        shape = layout.by_name[f"{spec.layer_name}.weight"].shape
        receptive = shape[2] * shape[3] if spec.layer == "conv" else 1
        fan_out, fan_in = shape[0] * receptive, shape[1] * receptive
        gain = {"kaiming": sqrt(2 / fan_in), "xavier": sqrt(2 / (fan_in + fan_out))}.get(init.partition("_")[0])
        if init == "uniform":
            law = stats.uniform(0, 0.5)
        elif init == "truncated_normal":
            law = stats.truncnorm(-2, 2, scale=0.5)
        elif init == "torch":
            half = (0.5 if spec.role == "weight" else 1.0) / sqrt(fan_in)
            law = stats.uniform(-half, 2 * half)
        elif init.endswith("uniform"):
            law = stats.uniform(-sqrt(3) * gain * 0.5, 2 * sqrt(3) * gain * 0.5)
        else:
            law = stats.norm(0, 0.5 * (gain or 1))
        x = values.double().flatten().numpy()
        mean, variance, kurtosis = (float(v) for v in law.stats("mvk"))
        assert abs(x.mean() - mean) < 4 * sqrt(variance / len(x))
        assert abs(x.var() - variance) < 4 * variance * sqrt((kurtosis + 2) / len(x))
        assert stats.kstest(x[:5000], law.cdf).pvalue > 1e-5


def test_initial_weights_belong_to_the_seed():
    network = MLP()
    together = initial_rows(network, SEEDS, "kaiming_normal", torch.tensor([1.0, 2.0, 1.0, 1.0]))
    alone = initial_rows(network, SEEDS[1:2], "kaiming_normal", torch.ones(1))
    torch.testing.assert_close(together[1], 2 * alone[0], rtol=1e-6, atol=0)
    assert together.unique(dim=0).shape == together.shape


def test_orthogonal_weights_are_orthonormal_and_uniform():
    network = CNN(channels=(4, 30), hidden=(7,))  # wide and tall matrices
    layout = Layout.of(network.build())
    rows = initial_rows(network, torch.arange(200), "orthogonal", torch.full((200,), 3.0))
    for name, values in layout.unflatten(rows).items():
        if name.endswith("weight"):
            matrix = values.flatten(2) / 3
            gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
            torch.testing.assert_close(gram, torch.eye(gram.shape[1]).expand_as(gram), rtol=0, atol=1e-5)
            first = matrix[:, 0, 0].double()  # without the signs of the diagonal it would never be positive, or always
            assert abs(float(first.mean())) < 4 * float(first.std()) / sqrt(200)


@pytest.mark.parametrize("convention", ["nfn", "dws"])
def test_sirens_begin_within_their_bounds(convention):
    network = SIREN(convention=convention)
    layout = Layout.of(network.build())
    rows = initial_rows(network, torch.arange(100), "siren", torch.ones(100))
    first = 1 / 2 if convention == "nfn" else sqrt(6 / 2) / 30
    inner = sqrt(6 / 32) / 30
    weights = [first, inner, inner if convention == "nfn" else 1 / sqrt(32)]
    biases = [1 / sqrt(2), *[1 / sqrt(32)] * 2] if convention == "nfn" else [0, 0, 1 / sqrt(32)]
    bounds = [bound for pair in zip(weights, biases, strict=True) for bound in pair]
    for bound, values in zip(bounds, layout.unflatten(rows).values(), strict=True):
        assert values.abs().max() <= bound * (1 + 1e-6)
        if bound:
            assert stats.kstest(values.flatten()[:5000].numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-5


def test_embeddings_begin_small_and_norms_as_the_identity():
    layout = Layout.of(ViT().build())
    state = layout.unflatten(initial_rows(ViT(), torch.arange(20), "kaiming_normal", torch.ones(20)))
    assert (state["norm.weight"] == 1).all() and (state["blocks.0.norm1.bias"] == 0).all()
    assert stats.kstest(state["pos_embed"].flatten()[:5000].numpy(), stats.norm(0, 0.02).cdf).pvalue > 1e-5


def test_wrong_initialisations_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'kaiming_normal'"):
        initial_rows(MLP(), SEEDS, "kaiming_norml", torch.ones(4))
    with pytest.raises(ConfigError, match="for SIRENs only"):
        initial_rows(MLP(), SEEDS, "siren", torch.ones(4))
