"""The audit of networks from anywhere: planted copies are flagged however hidden, held-out networks are not."""

import polars as pl
import pytest
import torch

from weightspace import datasets
from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.errors import LayoutError, ZooError
from weightspace.evaluation import best_prompts, novelty_audit
from weightspace.evaluation.generation import evaluate_generation
from weightspace.networks import CNN, Layout, to_json
from weightspace.symmetry import chain_groups, gather_index, random_permutations
from weightspace.zoo import Zoo

DIGITS = datasets.load("digits", train_limit=200, seed=3)


def renamed(zoo: Zoo, rows=None) -> Zoo:
    """Without anything that says where they come from."""
    kept = ["step", "config.activation"]
    table = zoo.table.select(pl.Series("model", [f"new-{i}" for i in range(len(zoo))]), *kept).with_columns(step=0)
    return Zoo.in_memory(zoo.weights() if rows is None else rows, zoo.layout, table, {"network": zoo.header["network"]})


def permuted(zoo: Zoo, seed: int = 0) -> torch.Tensor:
    groups = chain_groups(zoo.layout)
    index = gather_index(zoo.layout, groups, random_permutations(groups, len(zoo), torch.Generator().manual_seed(seed)))
    return zoo.weights().gather(1, index)


@pytest.fixture(scope="module")
def sides(digits_zoo):
    return digits_zoo.split(0)


def audit(networks, zoo):
    tables = novelty_audit(networks, zoo, DIGITS, fraction=1.0)
    return tables, tables.novelty.filter(source="networks").row(0, named=True)


def test_permuted_copies_are_replicas(digits_zoo, sides):
    best = best_prompts(sides[0], 1.0)
    tables, row = audit(renamed(best, permuted(best)), digits_zoo)
    assert row["distance_ratio_95"] < 0.02 and "replica" in row["verdict"]  # zero but for sums in another order
    assert {"networks", "noise 0.1", "average of 4", "held-out", "training"} <= set(tables.novelty["source"])
    assert set(tables.generation["epoch"]) == {0}


def test_copies_of_an_early_checkpoint_are_replicas(digits_zoo, sides):
    """They would look new to somebody who compares with the last checkpoints alone."""
    train, _, test = sides
    copies = renamed(train.where(pl.col("step") == 0))
    _, row = audit(copies, digits_zoo)
    assert row["distance_ratio_95"] < 0.02 and "replica" in row["verdict"]
    reference = training_reference(train)
    blind = evaluate_generation(
        {"networks": copies}, DIGITS, training=best_prompts(train, 1.0), heldout=best_prompts(test, 1.0),
        align=lambda zoo: aligned_rows(zoo, reference), epochs=[0],
    ).novelty.filter(source="networks")  # fmt: skip
    assert blind["distance_ratio_50"].item() > 0.1


def test_held_out_networks_are_not_replicas(digits_zoo, sides):
    _, row = audit(renamed(sides[2].last(), permuted(sides[2].last())), digits_zoo)
    assert row["distance_ratio_50"] > 0.7 and "replica" not in row["verdict"] and "inaccurate" not in row["verdict"]
    assert row["z_u"] == pytest.approx(0.0, abs=1.0)


def test_training_networks_are_not_compared_with_their_own_runs(digits_zoo):
    tables, _ = audit(renamed(digits_zoo.split(0)[2].last()), digits_zoo)
    assert tables.novelty.filter(source="training")["distance_ratio_05"].item() > 0.3


def test_what_cannot_be_audited(digits_zoo):
    network = CNN()
    rows = torch.zeros(1, Layout.of(network.build()).parameters)
    table = pl.DataFrame({"model": ["a"], "step": [0]})
    other = Zoo.in_memory(rows, Layout.of(network.build()), table, {"network": to_json(network)})
    with pytest.raises(LayoutError, match="another architecture"):
        novelty_audit(other, digits_zoo, DIGITS, fraction=1.0)
    broken = digits_zoo.last().weights()
    broken[0, 0] = torch.nan
    with pytest.raises(ZooError, match="finite"):
        novelty_audit(renamed(digits_zoo.last(), broken), digits_zoo, DIGITS, fraction=1.0)
