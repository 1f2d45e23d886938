"""The protocol on a small zoo of digits networks: copies are found out, and all sources are measured alike."""

import polars as pl
import pytest
import torch

from weightspace import datasets, networks
from weightspace.errors import ConfigError, UnknownName, ZooError
from weightspace.evaluation.ensembles import scores
from weightspace.evaluation.fine_tuning import LEARNING_RATES, TUNED_NETWORKS
from weightspace.evaluation.generation import (
    GenerationTables,
    evaluate_generation,
    median_distance,
    noise_at_distance,
)
from weightspace.evaluation.novelty import Verdicts
from weightspace.generators import baselines
from weightspace.networks.layout import Layout
from weightspace.symmetry import align_runs, chain_groups, gather_index, mean_reference, random_permutations
from weightspace.zoo import Zoo, behaviour

COLUMNS = {  # the report reads these
    "networks": ["source", "model", "epoch", "accuracy", "loss", "distance_ratio", "max_iou"],
    "generation": [
        *["source", "epoch", "n", "accuracy_mean", "accuracy_std", "accuracy_min", "accuracy_max", "nll", "ece"],
        "learning_rate",
    ],
    "novelty": [
        *["source", "n", "distance_ratio_05", "distance_ratio_50", "distance_ratio_95", "z_u", "max_iou", "pair_iou"],
        *["disagreement", "sd_ratio", "nap_50", "nap_75", "nap_100", "verdict"],
    ],
    "ensembles": ["source", "members", "accuracy", "nll", "brier", "ece"],
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_memory(zoo: Zoo, rows: torch.Tensor, prefix: str = "") -> Zoo:
    """The zoo with other rows, and other names of its models."""
    table = zoo.table.drop("layout", "shard", "row").with_columns(pl.lit(prefix) + pl.col("model"))
    return Zoo.in_memory(rows, zoo.layout, table, zoo.header)


class Study:
    """30 MLPs of two activations, trained for 4 epochs and kept after 2 and 4."""

    def __init__(self):
        self.data = datasets.load("digits", train_limit=400)
        network = networks.MLP(hidden=(12,))
        table = pl.DataFrame(
            {
                "model": [f"{i:03d}" for i in range(30)],
                "step": [0] * 30,
                "config.activation": ["relu", "tanh"] * 15,
                "config.init": ["kaiming_uniform"] * 30,
                "config.init_scale": [0.7] * 30,
            }
        )
        layout = Layout.of(network.build())
        template = Zoo.in_memory(
            torch.zeros(30, layout.parameters), layout, table, {"network": networks.to_json(network)}
        )
        self.start = baselines.random_initialisation(template, 30, seeded())
        zoo = behaviour.fine_tune(
            self.start, self.data, epochs=4, learning_rate=1e-2, checkpoints=[2, 4], seed=7, label="training"
        )
        runs = sorted(zoo.models)
        self.training = zoo.where(pl.col("model").is_in(runs[:20]))
        self.heldout = zoo.where(pl.col("model").is_in(runs[20:])).last()
        rows, groups = self.training.last().weights(), chain_groups(layout)
        self.reference = mean_reference(rows, rows[0], layout, groups, seeded())
        self.prompts = in_memory(self.training, self.aligned(self.training))

    def aligned(self, zoo: Zoo) -> torch.Tensor:
        """Every run by its last checkpoint."""
        models = torch.tensor([zoo.models.index(name) for name in zoo.table["model"]])
        last = torch.tensor(zoo.table.select(pl.col("step") == pl.col("step").max().over("model"))["step"].to_list())
        groups = chain_groups(zoo.layout)
        return align_runs(zoo.weights(), self.reference, zoo.layout, groups, models, last, seeded())

    def evaluate(self, sources: dict[str, Zoo], **changes) -> GenerationTables:
        settings = {
            "training": self.prompts,
            "heldout": self.heldout,
            "align": self.aligned,
            "epochs": (0,),
        }
        return evaluate_generation(sources, self.data, **settings | changes)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study()


def novelty_of(tables: GenerationTables, source: str) -> dict:
    return tables.novelty.row(by_predicate=pl.col("source") == source, named=True)


def test_tables_have_the_columns_of_the_report(study):
    tables = study.evaluate({"random": study.start}, epochs=(0, 1), learning_rate=1e-2)
    for name, columns in COLUMNS.items():
        assert getattr(tables, name).columns == columns
    assert tables.novelty["source"].to_list() == ["random", "held-out", "training"]
    assert tables.generation.select("source", "epoch", "n").rows() == [
        ("random", 0, 30), ("held-out", 0, 10), ("training", 0, 40), ("random", 1, 30),
    ]  # fmt: skip
    assert tables.networks.height == 30 + 10 + 40 + 30
    assert tables.networks.filter(pl.col("epoch") > 0)["distance_ratio"].null_count() == 30
    assert tables.networks.filter(pl.col("epoch") == 0).null_count().sum_horizontal().item() == 0
    assert tables.ensembles.filter(pl.col("source") == "random")["members"].to_list() == [1, 2, 5, 10, 20]


def test_epoch_zero_is_measured_on_test_images(study):
    tables = study.evaluate({"random": study.start})
    zoo = study.training
    loss, accuracy = behaviour.metrics(zoo, study.data.test_images, study.data.test_labels)
    rows = tables.networks.filter(pl.col("source") == "training")
    assert rows["model"].to_list() == zoo.table["model"].to_list()
    # aligned weights have another order of units: sums of float32 differ, and one of 500 images may change sides
    torch.testing.assert_close(torch.tensor(rows["accuracy"].to_list()), accuracy, rtol=0, atol=1.01 / 500)
    torch.testing.assert_close(torch.tensor(rows["loss"].to_list()), loss, rtol=1e-4, atol=1e-5)
    summary = tables.generation.row(by_predicate=pl.col("source") == "training", named=True)
    values = scores(behaviour.logits(zoo, study.data.test_images).softmax(2), study.data.test_labels)
    assert summary["accuracy_mean"] == pytest.approx(float(accuracy.mean()), abs=1e-4)
    assert summary["accuracy_std"] == pytest.approx(float(accuracy.std()), abs=1e-4)
    assert summary["accuracy_min"] == pytest.approx(float(accuracy.min()), abs=1.01 / 500)
    assert summary["nll"] == pytest.approx(float(values["nll"].mean()), rel=1e-4)
    assert summary["ece"] == pytest.approx(float(values["ece"].mean()), abs=1e-4)


def test_copies_are_replicas_in_any_disguise(study):
    generator = seeded()
    groups = chain_groups(study.training.layout)
    index = gather_index(study.training.layout, groups, random_permutations(groups, len(study.training), generator))
    shuffled = in_memory(study.training, study.training.weights().gather(1, index), "new-")
    early = study.training.where(pl.col("step") == 2)  # not the last of their runs, which decide the prompts' order
    copies = {
        "prompts": in_memory(study.prompts, study.prompts.weights(), "new-"),
        "same names": study.prompts.last(),
        "raw and early": in_memory(early, early.weights(), "new-"),
        "shuffled": shuffled,
    }
    tables = study.evaluate(copies, fine_tune=())
    for name in copies:
        found = novelty_of(tables, name)
        assert found["distance_ratio_95"] == 0.0, name  # one hidden layer: the assignment is exact
        assert found["max_iou"] == 1.0 and found["nap_50"] == 0.0
        assert found["disagreement"] == pytest.approx(0, abs=0.01)  # rounding by another order of units
        assert found["z_u"] < -4
        assert "replica" in found["verdict"]


def test_noise_is_near_whichever_way_t_is_given(study):
    noisy = {"noise": baselines.noise(study.prompts, 40, seeded(), sigma=0.02)}
    for training in (study.training, study.prompts):  # in the order of training, and aligned by runs
        found = novelty_of(study.evaluate(noisy, training=training), "noise")
        assert found["distance_ratio_95"] < 0.05 and found["nap_50"] == 0.0


def test_distances_survive_an_unstable_alignment():
    """Two units with a key and a value each, ordered by their keys, which are almost equal."""

    def by_key(zoo: Zoo) -> torch.Tensor:
        keys, values = zoo.weights().chunk(2, dim=1)
        order = keys.argsort(1)
        return torch.cat([keys.gather(1, order), values.gather(1, order)], dim=1)

    def network(*weights: float) -> Zoo:
        table = pl.DataFrame({"model": ["a"], "step": [0]})
        return Zoo.in_memory(torch.tensor([weights]), Layout.of(torch.nn.Linear(3, 1)), table, {})

    training = network(1.001, 1.0, 9.0, 0.0)  # aligned: 1, 1.001, 0, 9
    noisy = network(1.002, 1.001, 0.0, 9.0)  # a copy of that; aligned: 1.001, 1.002, 9, 0
    assert median_distance(noisy, training, by_key) == pytest.approx(0.002, abs=1e-6)
    far = network(1.002, 1.001, 0.0, 5.0)
    assert median_distance(far, training, by_key) == pytest.approx(4, abs=1e-3)


def test_training_networks_are_compared_with_other_runs(study):
    tables = study.evaluate({})
    found = novelty_of(tables, "training")
    assert found["distance_ratio_50"] == pytest.approx(1.0, abs=1e-6)  # τ is their median
    assert found["max_iou"] < 0.9 and found["sd_ratio"] == 1.0
    assert novelty_of(study.evaluate({}, training=study.training), "training")["distance_ratio_05"] > 0.3


def test_held_out_networks_against_themselves(study):
    tables = study.evaluate({"again": study.heldout})
    again, held = novelty_of(tables, "again"), novelty_of(tables, "held-out")
    assert {**again, "source": "held-out"} == held
    assert held["z_u"] == 0.0
    # 10 runs like those of T, so that each passes c = 1 with probability ½ or so: 1 to 9 of them with 99.8 %
    assert 0.05 < held["nap_100"] < 0.95
    assert "replica" not in held["verdict"] and "average-like" not in held["verdict"]


def test_simple_sources_get_their_flags(study):
    sources = {
        "noise 0.01": baselines.noise(study.prompts, 12, seeded(), sigma=0.01),
        "noise 0.5": baselines.noise(study.prompts, 12, seeded(), sigma=0.5),
        "average": baselines.average(study.prompts, 12, seeded(), k=10),
        "random": study.start,
    }
    tables = study.evaluate(sources)
    verdicts = dict(tables.novelty.select("source", "verdict").rows())
    assert "replica" in verdicts["noise 0.01"]
    assert "average-like" in verdicts["average"]
    assert "inaccurate" in verdicts["random"]
    # a noise level with the highest accuracy, far away: everything else is below it
    renamed = {"quiet": sources["noise 0.01"], "noise": study.heldout}
    flagged = dict(study.evaluate(renamed).novelty.select("source", "verdict").rows())
    assert "below noise curve" in flagged["quiet"]
    lenient = Verdicts(copy_distance=0.0, copy_z=-100.0)
    assert "replica" not in novelty_of(study.evaluate(sources, verdicts=lenient), "noise 0.01")["verdict"]


def test_ensembles_of_independent_networks_gain(study):
    """Section 6: a deep ensemble is better than its members."""
    curve = study.evaluate({}).ensembles.filter(pl.col("source") == "held-out")
    assert curve["members"].to_list() == [1, 2, 5, 10]
    assert curve["accuracy"][-1] > curve["accuracy"][0] and curve["nll"][-1] < curve["nll"][0]


def test_fine_tuning_is_the_same_for_all_and_improves(study):
    random = study.start.take(range(8))
    some = study.heldout.take(range(8))
    tables = study.evaluate(
        {"random": random, "some": some}, epochs=[0, 1, 3], fine_tune=["random"], learning_rate=3e-3
    )
    curve = tables.generation.filter(pl.col("source") == "random")
    assert curve["epoch"].to_list() == [0, 1, 3]
    assert curve["learning_rate"].to_list() == [None, 3e-3, 3e-3]
    assert curve["accuracy_mean"].is_sorted() and curve["accuracy_mean"][2] > curve["accuracy_mean"][0] + 0.4
    assert tables.generation.filter(pl.col("source") == "some")["epoch"].to_list() == [0]
    after = behaviour.fine_tune(random, study.data, epochs=3, learning_rate=3e-3, checkpoints=[3])
    expected = dict(after.table.select("model", "metric.test_accuracy").rows())
    found = dict(
        tables.networks.filter(pl.col("source") == "random", pl.col("epoch") == 3).select("model", "accuracy").rows()
    )
    assert found == pytest.approx(expected, abs=1e-6)
    # network i of a source has the batches of network i of any other: a twin under another name goes the same way
    twin = study.evaluate({"twin": in_memory(random, random.weights(), "twin-")}, epochs=[0, 3], learning_rate=3e-3)
    assert twin.generation["accuracy_mean"][-1] == curve["accuracy_mean"][2]


def test_learning_rates_are_chosen_on_validation_images(study):
    random = study.start  # 30 networks: 16 of them choose
    tables = study.evaluate({"random": random, "held-out": study.heldout}, epochs=[1])
    some = random.take(torch.linspace(0, 29, TUNED_NETWORKS).round().long())
    accuracy = {}
    for rate in LEARNING_RATES:
        after = behaviour.fine_tune(some, study.data, epochs=1, learning_rate=rate, checkpoints=[1])
        accuracy[rate] = float(after.table["metric.validation_accuracy"].to_numpy().mean())
    chosen = dict(tables.generation.filter(pl.col("epoch") == 1).select("source", "learning_rate").rows())
    assert chosen["random"] == max(accuracy, key=accuracy.__getitem__)
    assert set(chosen) == {"random", "held-out"}  # all that were given
    swapped = datasets.Dataset(
        **{field: getattr(study.data, field) for field in ("name", "classes", "train_images", "train_labels")},
        validation_images=study.data.validation_images,
        validation_labels=(study.data.validation_labels + 1) % 10,  # now the worst is the best
        test_images=study.data.test_images,
        test_labels=study.data.test_labels,
    )
    misled = evaluate_generation(
        {"random": random},
        swapped,
        training=study.prompts,
        heldout=study.heldout,
        align=study.aligned,
        epochs=[1],
    )
    assert misled.generation["learning_rate"][-1] != chosen["random"]


def test_seeds_decide_and_sources_do_not_disturb_each_other(study):
    noisy = baselines.noise(study.prompts, 6, seeded(), sigma=0.3)
    first = study.evaluate({"x": noisy, "y": study.start}, epochs=[0, 1], fine_tune=["x"], learning_rate=1e-2)
    again = study.evaluate({"x": noisy}, epochs=[0, 1], fine_tune=["x"], learning_rate=1e-2)
    for name in COLUMNS:
        one, other = (getattr(tables, name).filter(pl.col("source") == "x") for tables in (first, again))
        assert one.equals(other), name
    other = study.evaluate({"x": noisy}, epochs=[0, 1], fine_tune=["x"], learning_rate=1e-2, seed=1)
    assert other.generation["accuracy_mean"][0] == again.generation["accuracy_mean"][0]
    assert not other.ensembles.equals(again.ensembles)
    assert other.generation["nll"][-1] != again.generation["nll"][-1]


def test_noise_is_put_at_a_distance(study):
    other = baselines.interpolation(study.prompts, 20, seeded())
    target = median_distance(other, study.prompts, study.aligned)
    assert target > 0
    made = noise_at_distance(study.prompts, target, 20, seeded(), align=study.aligned)
    ratio = median_distance(made, study.prompts, study.aligned) / target
    assert 1 <= ratio <= 1.001 + 1e-6
    sigma = made.table["config.sigma"][0]
    again = baselines.noise(study.prompts, 20, seeded(), sigma=sigma)
    assert torch.equal(made.weights(), again.weights())  # so it is a level of the noise curve
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        noise_at_distance(study.prompts, 0.0, 5, seeded(), align=Zoo.weights)
    same = in_memory(study.prompts, torch.ones(len(study.prompts), study.prompts.layout.parameters))
    with pytest.raises(ConfigError, match="give prompts that differ"):
        noise_at_distance(same, 1.0, 5, seeded(), align=Zoo.weights)


def test_one_network_and_null_values(study, tmp_path):
    tables = study.evaluate({"one": study.heldout.take([0])})
    found = novelty_of(tables, "one")
    assert found["pair_iou"] is None and found["sd_ratio"] is None
    assert tables.generation["accuracy_std"][0] is None
    tables.save(tmp_path / "run" / "tables")
    for name, columns in COLUMNS.items():
        back = pl.read_csv(tmp_path / "run" / "tables" / f"{name}.csv", infer_schema_length=None)
        assert back.columns == columns and back.height == getattr(tables, name).height
    tables.save(tmp_path / "run" / "tables")  # replaces
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give another folder"):
        tables.save(tmp_path / "file")


def test_bad_input_is_one_sentence(study):
    with pytest.raises(ConfigError, match=r"'random-\d+' is in both \(20 in all\): split by model"):
        study.evaluate({}, heldout=study.training.last())
    with pytest.raises(UnknownName, match="did you mean 'random'"):
        study.evaluate({"random": study.start}, fine_tune=["randon"])
    with pytest.raises(ConfigError, match="'prompts' needs one checkpoint a model"):
        study.evaluate({"prompts": study.prompts}, epochs=[0, 1])
    with pytest.raises(ConfigError, match="at least 0, got"):
        study.evaluate({}, epochs=[-1])
    with pytest.raises(ZooError, match="finite weights"):
        study.evaluate({"broken": in_memory(study.start, study.start.weights() * torch.nan)})
    with pytest.raises(ZooError, match="no networks to evaluate"):
        study.evaluate({"none": study.start.take([])})
