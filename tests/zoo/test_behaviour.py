"""What networks do: in table order, as each checkpoint does it alone, and fine-tuned in pairs."""

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from weightspace import networks
from weightspace.datasets import load
from weightspace.errors import ConfigError, DatasetError, ZooError
from weightspace.networks.population import with_activation
from weightspace.zoo import Zoo
from weightspace.zoo.behaviour import by_activation, fine_tune, logits, metrics, training_stages
from weightspace.zoo.recipe import Recipe
from weightspace.zoo.train import train

SEED = 5
DIGITS = load("digits", train_limit=300, seed=SEED)  # the images that the zoo's recipe is trained on


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    """Ten networks of three activations, two checkpoints each, in an order that mixes the activations."""
    recipe = Recipe(
        network="cnn", models=10, epochs=2, checkpoints=(0, 2), train_limit=300, dropout=(0.0, 0.1),
        activation=("relu", "tanh", "gelu"), init=("kaiming_uniform", "kaiming_normal"), init_scale=(0.3, 2.0),
        seed=SEED,
    )  # fmt: skip
    made = train(tmp_path_factory.mktemp("zoo") / "digits", recipe, workers=1)
    assert made.table["config.activation"].n_unique() == 3
    return made.take(np.random.default_rng(0).permutation(len(made)))


@pytest.fixture(scope="module")
def expected(zoo) -> torch.Tensor:
    """Logits of each checkpoint, one after another."""
    found = []
    for row, name in zip(zoo.weights(), zoo.table["config.activation"], strict=True):
        module = with_activation(networks.from_json(zoo.header["network"]), name).build().eval()
        module.load_state_dict(zoo.layout.unflatten(row))
        with torch.no_grad():
            found.append(module(DIGITS.test_images))
    return torch.stack(found)


def test_logits_are_in_table_order(zoo, expected):
    found = logits(zoo, DIGITS.test_images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))  # float32 sums
    reverse = list(range(len(zoo)))[::-1]
    torch.testing.assert_close(logits(zoo.take(reverse), DIGITS.test_images), found.flip(0), rtol=1e-5, atol=1e-5)


def test_metrics_equal_their_formula(zoo, expected):
    loss, accuracy = metrics(zoo, DIGITS.test_images, DIGITS.test_labels)
    x, labels = expected.double().numpy(), DIGITS.test_labels.numpy()
    log_sum = np.log(np.exp(x - x.max(2, keepdims=True)).sum(2)) + x.max(2)
    nats = log_sum - x[:, np.arange(len(labels)), labels]
    np.testing.assert_allclose(loss.numpy(), nats.mean(1), rtol=1e-5)
    np.testing.assert_allclose(accuracy.numpy(), (x.argmax(2) == labels).mean(1), rtol=1e-6)
    np.testing.assert_allclose(zoo.table["metric.test_accuracy"].to_numpy(), accuracy.numpy(), atol=1e-6)
    np.testing.assert_allclose(zoo.table["metric.test_loss"].to_numpy(), loss.numpy(), rtol=1e-5)


def test_every_checkpoint_has_one_activation(zoo):
    places = []
    for network, place in by_activation(zoo):
        assert set(zoo.table[place.tolist()]["config.activation"]) == {network.activation}
        places += place.tolist()
    assert sorted(places) == list(range(len(zoo)))


def test_a_zoo_without_that_column_has_the_activation_of_its_network(zoo):
    chosen = zoo.where(pl.col("config.activation") == networks.from_json(zoo.header["network"]).activation)
    table = chosen.table.select("model", "step")
    bare = Zoo.in_memory(chosen.weights(), chosen.layout, table, chosen.header)
    assert logits(bare, DIGITS.test_images).equal(logits(chosen, DIGITS.test_images))


@pytest.fixture(scope="module")
def starts(zoo) -> Zoo:
    return zoo.where(pl.col("step") == 0)


@pytest.fixture(scope="module")
def tuned(starts) -> Zoo:
    return fine_tune(starts, DIGITS, epochs=3, learning_rate=3e-3, seed=1)


def test_fine_tuning_learns(starts, tuned):
    assert sorted(tuned.table["step"].unique()) == [0, 1, 2, 3] and len(tuned) == 4 * len(starts)
    means = tuned.table.group_by("step").agg(pl.col("metric.test_accuracy", "metric.test_loss").mean()).sort("step")
    accuracy, loss = means["metric.test_accuracy"].to_list(), means["metric.test_loss"].to_list()
    assert accuracy[0] < 0.25 and accuracy[3] > accuracy[0] + 0.3
    assert loss[3] < loss[1] < loss[0]


def test_epoch_zero_is_the_zoo_itself(starts, tuned):
    before = tuned.where(pl.col("step") == 0)
    order = [before.table["model"].to_list().index(model) for model in starts.table["model"]]
    assert before.take(order).weights().equal(starts.weights())
    loss, accuracy = metrics(before, DIGITS.validation_images, DIGITS.validation_labels)
    assert before.table["metric.validation_loss"].to_list() == pytest.approx(loss.tolist(), rel=1e-5)
    assert before.table["metric.validation_accuracy"].to_list() == pytest.approx(accuracy.tolist(), abs=1e-6)


def test_fine_tuning_is_an_ordinary_adam_loop(starts, tuned):
    """Network i of the table: plain Adam on the batches that the seed and i give."""
    from weightspace.networks import streams

    for i in (0, len(starts) - 1):
        name = starts.table["config.activation"][i]
        module = with_activation(networks.from_json(starts.header["network"]), name).build().eval()
        module.load_state_dict(starts.layout.unflatten(starts.weights()[i]))
        adam = torch.optim.Adam(module.parameters(), lr=3e-3)
        seed, n = torch.tensor([i + (1 << 32)]), len(DIGITS.train_images)
        own = streams.permutation(seed, 1, n)[0]
        order = own[streams.permutation(seed, 1_000_001, n)[0]]
        for batch in order[: n // 32 * 32].split(32):
            adam.zero_grad()
            F.cross_entropy(module(DIGITS.train_images[batch]), DIGITS.train_labels[batch]).backward()
            adam.step()
        found = tuned.where((pl.col("model") == starts.table["model"][i]) & (pl.col("step") == 1)).weights()[0]
        # nine steps in float32, in which Adam enlarges rounding of small gradients
        torch.testing.assert_close(found, starts.layout.flatten(module.state_dict()), rtol=1e-3, atol=1e-4)


def test_pairs_share_their_batches(starts):
    """Equal networks at equal places of two zoos stay equal, whatever stands at the others; another seed parts them."""
    zeros = torch.zeros_like(starts.weights())
    rows = starts.weights()
    rows[1:] = 0.1 * torch.randn(rows[1:].shape, generator=torch.Generator().manual_seed(0))
    table = starts.table.drop("layout", "shard", "row")
    other = Zoo.in_memory(rows, starts.layout, table, starts.header)

    def first(zoo: Zoo, seed: int) -> torch.Tensor:
        made = fine_tune(zoo, DIGITS, epochs=1, learning_rate=1e-3, seed=seed, checkpoints=[1])
        return made.where(pl.col("model") == table["model"][0]).weights()

    assert first(starts, 0).equal(first(other, 0)) and not first(starts, 0).equal(first(other, 1))
    twins = Zoo.in_memory(
        zeros + starts.weights()[0],
        starts.layout,
        table.with_columns(pl.lit("relu").alias("config.activation")),
        starts.header,
    )
    apart = fine_tune(twins, DIGITS, epochs=1, learning_rate=1e-3, checkpoints=[1]).weights()
    assert apart.unique(dim=0).shape == apart.shape, "two places of one zoo have different batches"


def test_kept_epochs(starts):
    made = fine_tune(starts.take([0, 1]), DIGITS, epochs=2, learning_rate=1e-3, checkpoints=[2, 0])
    assert made.table.group_by("model").agg(pl.col("step").sort())["step"].to_list() == [[0, 2]] * 2


def test_looking_within_an_epoch_changes_nothing(starts):
    """Nine steps an epoch: a tenth is the first one; whole epochs are those of a run that is looked at less often."""
    options = {"epochs": 2, "learning_rate": 1e-2, "optimiser": "sgd", "schedule": "one_cycle", "seed": 4}
    often = dict(training_stages(starts, DIGITS, checkpoints=(0, 0.01, 0.1, 0.2, 1, 2), **options))
    assert list(often) == [0, 0.01, 0.1, 0.2, 1, 2] and often[0].equal(starts.weights())
    seldom = fine_tune(starts, DIGITS, checkpoints=(1, 2), **options)
    for epoch in (1, 2):
        assert often[epoch].equal(seldom.where(pl.col("step") == epoch).weights())
    assert often[0.01].equal(often[0.1]) and not often[0.1].equal(often[0.2])
    short = dict(training_stages(starts, DIGITS, epochs=0.2, learning_rate=1e-2, seed=4))
    assert list(short) == [0]
    ((_, brief),) = training_stages(starts, DIGITS, epochs=0.2, learning_rate=1e-2, seed=4, checkpoints=[0.2])
    whole = training_stages(starts, DIGITS, epochs=1, learning_rate=1e-2, seed=4, checkpoints=[0.2])
    assert brief.equal(next(whole)[1])  # a constant rate does not know how long the run is


def test_a_zoo_is_trained_further_in_its_own_way(starts):
    """SGD with momentum, one cycle and weight decay: PyTorch's, on the batches that the seed gives."""
    from weightspace.networks import streams

    own = starts.take([3])
    module = with_activation(
        networks.from_json(own.header["network"]), own.table["config.activation"][0]
    ).build().eval()  # fmt: skip
    module.load_state_dict(own.layout.unflatten(own.weights()[0]))
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=9, cycle_momentum=False)
    seed, n = torch.tensor([0]), len(DIGITS.train_images)
    order = streams.permutation(seed, 1, n)[0][streams.permutation(seed, 1_000_001, n)[0]]
    for batch in order[: 9 * 32].split(32):
        sgd.zero_grad()
        F.cross_entropy(module(DIGITS.train_images[batch]), DIGITS.train_labels[batch]).backward()
        sgd.step()
        if cycle.last_epoch < 8:
            cycle.step()
    made = fine_tune(
        own, DIGITS, epochs=1, learning_rate=0.1, checkpoints=[1], optimiser="sgd", schedule="one_cycle", momentum=0.5,
        weight_decay=1e-2,
    )  # fmt: skip
    torch.testing.assert_close(made.weights()[0], own.layout.flatten(module.state_dict()), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"momentum must lie in \[0, 1\)"):
        fine_tune(own, DIGITS, epochs=1, learning_rate=0.1, momentum=1.0)


def test_wrong_requests_are_refused(zoo, starts):
    with pytest.raises(ZooError, match="no checkpoints to run"):
        logits(zoo.take([]), DIGITS.test_images)
    with pytest.raises(ZooError, match=r"zoo\.last\(\)"):
        fine_tune(zoo, DIGITS, epochs=1, learning_rate=1e-3)
    for kept in ([3], [-1], []):
        with pytest.raises(ConfigError, match="checkpoints must lie between 0 and 2"):
            fine_tune(starts, DIGITS, epochs=2, learning_rate=1e-3, checkpoints=kept)
    with pytest.raises(DatasetError, match=r"\(1, 8, 8\), got \(1, 28, 28\)"):
        logits(zoo, torch.zeros(2, 1, 28, 28))


def test_a_zoo_of_several_architectures_runs_each_with_its_own(tmp_path):
    """Accuracies of one layout, computed anew, are those in the table."""
    recipe = Recipe(
        network="wild_park", activation=("relu", "tanh"), models=6, epochs=1, train_limit=100, seed=3,
        models_per_architecture=2,
    )  # fmt: skip
    zoo = train(tmp_path / "park", recipe, workers=1)
    data = load("digits", train_limit=100, seed=3)
    for digest in zoo.table["layout"].unique():
        some = zoo.where(pl.col("layout") == digest)
        _, accuracy = metrics(some, data.test_images, data.test_labels)
        torch.testing.assert_close(
            accuracy.double(), torch.tensor(some.table["metric.test_accuracy"].to_list()).double(), atol=1e-6, rtol=0
        )


def test_a_zoo_that_does_not_name_its_network_is_refused(zoo):
    nameless = Zoo.in_memory(zoo.weights(), zoo.layout, zoo.table.drop("layout", "shard", "row"), {"name": "nameless"})
    with pytest.raises(ZooError, match="does not say what its network is"):
        metrics(nameless, DIGITS.test_images, DIGITS.test_labels)
