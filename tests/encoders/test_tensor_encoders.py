"""Encoders of sets and tensors: the symmetries that each has, what it cannot see, what it learns and refuses."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from torch.func import functional_call

from weightspace.encoders import (
    DWS,
    NFNHNP,
    NFNNP,
    NFT,
    UNF,
    DeepSets,
    DeepSetsAny,
    DeepSetsConfig,
    DWSConfig,
    NFNConfig,
    NFTConfig,
    Predictor,
    PredictorTraining,
    StatNN,
    StatNNConfig,
    UNFConfig,
    WeightEncoder,
)
from weightspace.errors import ConfigError, LayoutError
from weightspace.networks import CNN, MLP, Layout, ViT, WildPark, to_json
from weightspace.views.architecture import Architecture, Networks
from weightspace.zoo import Zoo

SMALL_NFN = NFNConfig(channels=(6, 6, 4), width=32)
CONFIGS = {
    StatNN: StatNNConfig(width=32),
    DeepSets: DeepSetsConfig(width=16, head_width=32),
    DeepSetsAny: DeepSetsConfig(width=16, head_width=32),
    NFNNP: SMALL_NFN,
    NFNHNP: SMALL_NFN,
    NFT: NFTConfig(channels=8, heads=2, layers=2, width=32),
    UNF: UNFConfig(channels=6, width=32),
    DWS: DWSConfig(channels=8, layers=3),
}
NETWORKS = {
    "mlp": MLP(hidden=(9, 7)),
    "cnn": CNN(hidden=(6,)),  # a flattened layer between its convolutions and its linear layers
    "park": WildPark(
        image_shape=(1, 8, 8), channels=(4, 8, 4), kernels=(3, 5, 3), activations=("relu",) * 3, skips=(None, None, 0)
    ),
    "vit": ViT(image_shape=(1, 8, 8), patch=(4, 4), width=8, depth=1, heads=2),
}
CHAINS = ("mlp", "cnn")
READS = [(encoder, name) for encoder in (StatNN, DeepSets, DeepSetsAny, UNF, NFT) for name in NETWORKS]
READS += [(encoder, name) for encoder in (NFNNP, NFNHNP) for name in CHAINS] + [(DWS, "mlp")]
ONCE = [*{encoder: (encoder, name) for encoder, name in READS}.values()]  # the last of each
SETS = (StatNN, DeepSets, DeepSetsAny)
ARCHITECTURES = {name: Architecture.of(network) for name, network in NETWORKS.items()}


def drawn(architecture, count=12, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, architecture.layout.parameters, generator=g, dtype=torch.float64)
    rows *= torch.rand(count, 1, generator=g, dtype=torch.float64)
    return Networks.of(rows.to(dtype), architecture)


def prepared(encoder, architectures, dtype=torch.float64, config=None):
    """The encoder with random parameters and statistics of random networks."""
    torch.manual_seed(0)
    module = encoder(config or CONFIGS[encoder], architectures, 2)
    module.prepare([drawn(architecture, seed=1, dtype=torch.float32) for architecture in architectures])
    return module.to(dtype).eval()


@torch.no_grad()
def change(module, some, moved):
    """Largest change of an output, relative to the largest output, and to how outputs differ between networks."""
    before, after = module(some), module(moved)
    worst = (before - after).abs().amax(0)
    return float(worst.max() / before.abs().max().clamp_min(1)), float((worst / before.std(0)).max())


def assert_invariant(module, some, tolerance):
    relative, of_spread = change(module, some, some.permuted(torch.Generator().manual_seed(2)))
    assert relative < tolerance
    assert of_spread < 10 * tolerance  # outputs of fresh encoders hardly differ; this is how much they do


def shown(encoder_and_name):
    return f"{encoder_and_name[0].name}-{encoder_and_name[1]}"


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_networks_compute_the_same(name):
    some = drawn(ARCHITECTURES[name], 3)
    moved = some.permuted(torch.Generator().manual_seed(2))
    module = NETWORKS[name].build().double().eval()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    layout = some.architecture.layout
    for before, after in zip(some.rows, moved.rows, strict=True):
        assert not torch.equal(before, after)
        outputs = [functional_call(module, layout.unflatten(row), (images,)) for row in (before, after)]
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", READS, ids=shown)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=("f32", "f64"))
def test_the_order_of_hidden_units_does_not_matter(case, dtype, tolerance):
    encoder, name = case
    module = prepared(encoder, [ARCHITECTURES[name]], dtype)
    assert_invariant(module, drawn(ARCHITECTURES[name], dtype=dtype), tolerance)


class Constant(WeightEncoder):
    name, Config = "constant", StatNNConfig

    def __init__(self, config, architectures, outputs):
        super().__init__(config, architectures, outputs)
        self.head = torch.nn.Identity()

    def encode(self, networks):
        return networks.rows.new_ones(len(networks), 2)


def test_a_constant_encoder_does_not_pass_for_invariant():
    some = drawn(ARCHITECTURES["mlp"])
    with pytest.raises(AssertionError):
        assert_invariant(Constant(StatNNConfig(), [some.architecture], 2), some, 1e-5)


@pytest.mark.parametrize("case", READS, ids=shown)
def test_units_that_are_torn_from_their_readers_are_seen_by_all_but_sets(case):
    """The outputs of one layer are renumbered, and neither its biases nor the next layer follow."""
    encoder, name = case
    some = drawn(ARCHITECTURES[name])
    group = some.architecture.groups[0]
    torn = replace(some.architecture, groups=(replace(group, places=group.places[:1]),))
    moved = replace(some, rows=torn.permuted(some.rows, torch.Generator().manual_seed(2)))
    _, of_spread = change(prepared(encoder, [ARCHITECTURES[name]]), some, moved)
    if encoder in SETS:
        assert of_spread < 1e-10
    else:
        assert of_spread > 1e-3


@pytest.mark.parametrize("case", ONCE, ids=shown)
def test_weights_in_any_order_are_seen_by_all(case):
    encoder, name = case
    some = drawn(ARCHITECTURES[name])
    rows = some.rows * torch.linspace(0.5, 1.5, some.rows.shape[1], dtype=torch.float64)
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(4))
    module = prepared(encoder, [ARCHITECTURES[name]])
    assert change(module, replace(some, rows=rows), replace(some, rows=rows[:, order]))[1] > 1e-2


@pytest.mark.parametrize("case", ONCE, ids=shown)
def test_networks_do_not_look_at_each_other(case):
    encoder, name = case
    some = drawn(ARCHITECTURES[name])
    module = prepared(encoder, [ARCHITECTURES[name]])
    torch.testing.assert_close(module(some[3:5]), module(some)[3:5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("encoder", [NFNNP, NFNHNP, NFT, UNF, DWS, DeepSets, StatNN])
def test_one_encoder_reads_any_hidden_widths(encoder):
    """Statistics come from both, and a network is read as if it were alone."""
    narrow, wide, wider = (Architecture.of(MLP(hidden=hidden)) for hidden in ((9, 7), (12, 5), (3, 21)))
    module = prepared(encoder, [narrow, wide])
    for architecture in (narrow, wide, wider):
        assert_invariant(module, drawn(architecture), 1e-12)


def test_sets_read_networks_of_any_depth_together():
    module = prepared(DeepSetsAny, list(ARCHITECTURES.values()))
    for architecture in ARCHITECTURES.values():
        assert_invariant(module, drawn(architecture), 1e-12)


@pytest.mark.parametrize("encoder", [NFNNP, NFNHNP])
def test_waves_of_weights_are_read(encoder):
    mlp = ARCHITECTURES["mlp"]
    config = NFNConfig(channels=(4,), width=16, frequencies=3, frequency_scale=0.1)
    module = prepared(encoder, [mlp], config=config)
    assert_invariant(module, drawn(mlp), 1e-12)
    waves = module.features(torch.tensor([[0.25, -1.0]], dtype=torch.float64)).unflatten(1, (2, 2, 3))[0]
    angles = 2 * torch.pi * torch.tensor([[0.25], [-1.0]], dtype=torch.float64) * module.features.frequencies
    torch.testing.assert_close(waves, torch.stack([angles.sin(), angles.cos()], dim=1))


@pytest.mark.parametrize("encoder", [NFNNP, NFNHNP, DWS, UNF, NFT])
def test_layers_without_biases_are_read(encoder):
    bare = Architecture.of(MLP(hidden=(9, 7), bias=False))
    assert_invariant(prepared(encoder, [bare]), drawn(bare), 1e-12)


@pytest.mark.parametrize(
    ("encoder", "other", "message"),
    [
        (StatNN, MLP(hidden=(9, 7, 5)), "at most 6 tensors.*has 8"),
        (DeepSets, MLP(hidden=(9, 7, 5)), "take deepsets-any"),
        (NFNNP, MLP(hidden=(9, 7, 5)), "chains of 3 layers.*one of 4"),
        (NFNHNP, MLP(hidden=(9, 7), classes=4), "outputs=10.*outputs=4"),
        (NFNHNP, NETWORKS["park"], "plain chains"),
        (DWS, MLP(hidden=(9, 7, 5)), "perceptrons of 3 layers"),
        (DWS, CNN(), "multi-layer perceptrons"),
        (UNF, MLP(hidden=(9, 7, 5)), "networks of 6 tensors"),
        (NFT, MLP(hidden=(9, 7, 5)), "networks of 6 tensors"),
        (UNF, MLP(hidden=(9, 7), image_shape=(1, 4, 4)), "kernels, inputs or outputs"),
    ],
)
def test_networks_that_an_encoder_was_not_made_for_are_refused(encoder, other, message):
    module = prepared(encoder, [ARCHITECTURES["mlp"]])
    with pytest.raises(LayoutError, match=message):
        module(drawn(Architecture.of(other)))
    if encoder is not StatNN:
        with pytest.raises(LayoutError):
            encoder(CONFIGS[encoder], [ARCHITECTURES["mlp"], Architecture.of(other)], 1)


def test_a_network_without_hidden_units_has_nothing_to_renumber():
    only = Architecture.of_layout(Layout.of(torch.nn.Linear(3, 2)))
    with pytest.raises(LayoutError, match="needs networks with a hidden layer"):
        NFNHNP(SMALL_NFN, [only], 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StatNNConfig(width=0),
        lambda: DeepSetsConfig(width=0),
        lambda: NFNConfig(channels=()),
        lambda: NFNConfig(dropout=1.0),
        lambda: NFNConfig(frequencies=-1),
        lambda: UNFConfig(layers=0),
        lambda: NFTConfig(heads=3),
        lambda: DWSConfig(channels=0),
    ],
)
def test_sizes_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def population(count, seed, prefix):
    """Networks of which the second layer is smaller or larger."""
    network = MLP(image_shape=(1, 2, 2), hidden=(8,), classes=3)
    layout = Layout.of(network.build())
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, layout.parameters, generator=g)
    balance = 2 * torch.rand(count, generator=g) - 1
    weights = layout.unflatten(rows)
    weights["fc2.weight"].mul_((2 * balance).exp()[:, None, None])
    table = pl.DataFrame({
        "model": [f"{prefix}{i}" for i in range(count)],
        "step": [0] * count,
        "metric.test_accuracy": torch.sigmoid(3 * balance).tolist(),
    })  # fmt: skip
    return Zoo.in_memory(rows, layout, table, {"network": to_json(network)})


@pytest.fixture(scope="module")
def zoos():
    return population(160, 0, "a"), population(40, 1, "b"), population(100, 2, "c")


@pytest.mark.parametrize("encoder", CONFIGS)
def test_what_is_learned_beats_a_constant_and_is_kept(encoder, zoos, tmp_path):
    train, validation, test = zoos
    optimisation = PredictorTraining(epochs=15, learning_rate=5e-3, accelerator="cpu")
    fitted = Predictor.fit(encoder, train, validation=validation, config=CONFIGS[encoder], optimisation=optimisation)
    true, predicted = test.table["metric.test_accuracy"], fitted.predict(test)["metric.test_accuracy"]
    assert (predicted - true).pow(2).mean() < 0.5 * true.var(ddof=0)
    fitted.save_pretrained(tmp_path)
    assert torch.equal(Predictor.load(tmp_path, encoder).outputs(test), fitted.outputs(test))
