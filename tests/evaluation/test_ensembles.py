"""Scores of probabilities and ensembles against plain formulas in NumPy."""

import math

import numpy as np
import pytest
import torch

from weightspace.errors import ConfigError
from weightspace.evaluation.ensembles import ensemble_curve, scores


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predictions(m: int, n: int, k: int, skill: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(k, (n,), generator=seeded(1))
    logits = 1.5 * torch.randn(m, n, k, generator=seeded(2)) + skill * torch.nn.functional.one_hot(labels, k)
    return logits.softmax(2), labels


def plain(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """One network, one image at a time, in float64."""
    n, k = p.shape
    right, nll, brier = 0, 0.0, 0.0
    bins: list[list[tuple[bool, float]]] = [[] for _ in range(15)]
    for i in range(n):
        hit, confidence = p[i].argmax() == y[i], p[i].max()
        right += hit
        nll -= math.log(p[i, y[i]])
        brier += sum((p[i, c] - (c == y[i])) ** 2 for c in range(k))
        number = next(b for b in range(15) if confidence <= (b + 1) / 15 or b == 14)
        bins[number].append((hit, confidence))
    ece = sum(len(b) / n * abs(np.mean([h for h, _ in b]) - np.mean([c for _, c in b])) for b in bins if b)
    return {"accuracy": right / n, "nll": nll / n, "brier": brier / n, "ece": ece}


def test_scores_equal_plain_formulas():
    probabilities, labels = predictions(4, 300, 5)
    found = scores(probabilities, labels)
    for i in range(4):
        expected = plain(probabilities[i].double().numpy(), labels.numpy())
        for name, value in expected.items():
            # float32 sums of 300 values below 10: 1e-5 is ample
            assert float(found[name][i]) == pytest.approx(value, abs=1e-5), name


def test_known_answers():
    labels = torch.arange(10) % 5
    sure = torch.nn.functional.one_hot(labels, 5).float()
    wrong = sure.roll(1, dims=1)
    found = scores(torch.stack([sure, wrong, torch.full((10, 5), 0.2)]), labels)
    assert found["accuracy"].tolist() == pytest.approx([1, 0, 0.2])
    assert found["nll"].tolist() == pytest.approx(
        [0, -math.log(torch.finfo(torch.float32).tiny), math.log(5)], abs=1e-5
    )
    assert found["brier"].tolist() == pytest.approx([0, 2, 0.8], abs=1e-6)
    assert found["ece"].tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_a_calibrated_network_has_no_calibration_error():
    """Labels drawn from the predicted probabilities: ECE falls as 1 / √n."""
    n = 200_000
    probabilities = (2 * torch.randn(1, n, 3, generator=seeded())).softmax(2)
    labels = torch.multinomial(probabilities[0], 1, generator=seeded(1))[:, 0]
    # each of 15 bins adds at most √(n_b / 4) · .8 / n: together below 15 · √(n / 15) / 2 · .8 / n = .0035
    assert float(scores(probabilities, labels)["ece"]) < 0.0035
    overconfident = (4 * probabilities.log()).softmax(2)
    assert float(scores(overconfident, labels)["ece"]) > 0.1


def test_ends_of_the_curve_are_single_networks_and_all_of_them():
    probabilities, labels = predictions(10, 200, 4)
    curve = ensemble_curve(probabilities, labels, generator=seeded())
    assert curve["members"].to_list() == [1, 2, 5, 10]
    single, every = scores(probabilities, labels), scores(probabilities.mean(0, keepdim=True), labels)
    for name in ("accuracy", "nll", "brier", "ece"):
        assert curve[name][0] == pytest.approx(float(single[name].mean()), abs=1e-6)
        assert curve[name][3] == pytest.approx(float(every[name]), abs=1e-6)


def test_more_members_are_better():
    """Independent members: NLL and Brier of a mean are below the mean of theirs (Jensen), and accuracy rises."""
    curve = ensemble_curve(*predictions(50, 500, 5), generator=seeded())
    assert curve["nll"].diff().drop_nulls().max() < 0 and curve["brier"].diff().drop_nulls().max() < 0
    assert curve["accuracy"][-1] > curve["accuracy"][0] + 0.1


def test_members_are_distinct_and_random():
    """Three networks that are each sure of a class: a pair has Brier .5 if it holds the right one, else 1.5."""
    probabilities, labels = torch.eye(3)[:, None], torch.tensor([0])
    curve = ensemble_curve(probabilities, labels, generator=seeded(), members=[2], resamples=3000)
    # two of three pairs hold it; a pair of the same network twice would have 0 or 2. Standard error √(2/9 / 3000)
    assert curve["brier"][0] == pytest.approx((0.5 + 0.5 + 1.5) / 3, abs=5 * math.sqrt(2 / 9 / 3000))
    again = ensemble_curve(probabilities, labels, generator=seeded(), members=[2], resamples=3000)
    assert curve.equals(again)


def test_identical_networks_gain_nothing():
    one, labels = predictions(1, 100, 4)
    curve = ensemble_curve(one.expand(20, -1, -1).contiguous(), labels, generator=seeded())
    for name in ("accuracy", "nll", "brier", "ece"):
        assert curve[name].max() - curve[name].min() == pytest.approx(0, abs=1e-5)  # rounding of the mean


def test_bad_input_is_one_sentence():
    probabilities, labels = predictions(3, 10, 4)
    with pytest.raises(ConfigError, match="got 0 networks"):
        ensemble_curve(probabilities[:0], labels, generator=seeded())
    with pytest.raises(ConfigError, match=r"\[0\] members"):
        ensemble_curve(probabilities, labels, generator=seeded(), members=[0])
