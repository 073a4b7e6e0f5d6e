"""Intervals cover what they say they cover, in simulated test sets of known truth, and hold where nothing is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, balanced_accuracy_score, precision_recall_fscore_support, roc_auc_score

from visionloop.evaluation.intervals import (
    Interval,
    area_intervals,
    average_intervals,
    averages,
    f1_interval,
    interval_numbers,
    intervals,
)
from visionloop.evaluation.metrics import per_class, summarize, wilson
from visionloop.evaluation.predictions import Floats, Numbers, SplitPredictions


def answers(targets: object, probabilities: object) -> SplitPredictions:
    numbers = np.array(targets, dtype=np.int64)
    return SplitPredictions(tuple(map(str, range(len(numbers)))), numbers, np.array(probabilities, dtype=np.float64))


def random(seed: int, count: int, classes: int, steps: int = 0) -> SplitPredictions:
    """Random answers; with `steps` the scores are of so many values, so that many are equal."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(classes), count)
    return answers(rng.integers(0, classes, count), np.round(scores * steps) / steps if steps else scores)


def truth(chances: Floats) -> dict[str, float]:
    """The averages of endlessly many images; the averages take any counts."""
    margins = (np.diagonal(chances), chances.sum(1), chances.sum(0))
    return {name: float(value[0]) for name, value in averages(*(part[None] * 1e9 for part in margins)).items()}


# Chance of each cell (actual, called): five unequal classes, of which the smallest has 5 % of the images.
SHARES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
RECALLS = np.array([0.95, 0.9, 0.85, 0.8, 0.8])
UNEQUAL: Floats = np.diag(SHARES * RECALLS) + (SHARES * (1 - RECALLS))[:, None] * (1 - np.eye(5)) / 4
# Ten equal classes, of which few images are wrong: a plain bootstrap fails here.
GOOD: Floats = (np.eye(10) * 0.98 + (1 - np.eye(10)) * 0.02 / 9) / 10


@pytest.mark.parametrize(("chances", "images"), [(UNEQUAL, 300), (GOOD, 180)])
def test_95_percent_intervals_cover_the_truth_in_92_to_100_percent_of_test_sets(chances: Floats, images: int) -> None:
    """Of 400 test sets; the standard error of a coverage of 95 % is then 1.1 %. Measured with this seed, in %:

    unequal, 300 images: accuracy 96.0, balanced accuracy 93.8, macro F1 93.0, recall of the smallest class 92.3;
    good, 180 images: accuracy 97.8, balanced accuracy 95.3, macro F1 96.3, recall of a class 93.3.
    """
    rng = np.random.default_rng(1)
    known, hits = truth(chances), dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "recall"), 0)
    accuracy, recall = float(np.trace(chances)), float(chances[-1, -1] / chances[-1].sum())
    for _ in range(400):
        matrix: Numbers = rng.multinomial(images, chances.ravel()).reshape(chances.shape).astype(np.int64)
        found = average_intervals(matrix, 0.95, rng, resamples=400)
        found["accuracy"] = Interval(*wilson(int(np.trace(matrix)), images, 0.95))
        found["recall"] = Interval(*wilson(int(matrix[-1, -1]), max(1, int(matrix[-1].sum())), 0.95))
        for name, value in (known | {"accuracy": accuracy, "recall": recall}).items():
            if name in hits:
                hits[name] += found[name].low <= value <= found[name].high
    for name, count in hits.items():
        assert 0.92 <= count / 400 <= 1, f"{name}: {count / 400:.3f}"


@pytest.mark.parametrize("area", [0.98, 0.9])
def test_95_percent_intervals_of_an_auc_cover_the_truth_in_92_to_100_percent_of_test_sets(area: float) -> None:
    """Normal scores, 20 positive of 120 images, 150 test sets; standard error 1.8 %. Measured: 99.3 and 92.7 %."""
    rng = np.random.default_rng(2)
    distance, hits = np.sqrt(2) * norm.ppf(area), 0
    targets = np.repeat([1, 0], [20, 100])
    for _ in range(150):
        scores = norm.cdf(rng.normal(size=120) + distance * targets)
        _, of_classes = area_intervals(answers(targets, np.stack([1 - scores, scores], 1)), 2, 0.95, rng, resamples=120)
        hits += of_classes[1]["roc_auc"].low <= area <= of_classes[1]["roc_auc"].high
    assert 0.92 <= hits / 150 <= 1


def test_a_model_without_a_mistake_is_not_certain() -> None:
    perfect = answers(np.arange(180) % 10, np.eye(10)[np.arange(180) % 10])
    found = intervals(perfect, 10, 0.95, 3)
    for name in ("accuracy", "top_3_accuracy", "macro_f1", "balanced_accuracy", "roc_auc_macro", "mean_average_precision"):
        assert 0.95 < found.whole[name].low < 1 == found.whole[name].high, name
    assert found.classes[0]["recall"] == Interval(*wilson(18, 18, 0.95))
    assert found.classes[0]["f1"].low < 0.95
    assert intervals(perfect, 10, 0.95, 3) == found
    numbers = interval_numbers(found)
    assert (numbers["accuracy_low"], numbers["accuracy_high"]) == (0.9791, 1.0)


def test_f1_by_hand() -> None:
    # 8 right, 1 missed, 1 wrongly called: 8 of 10 is Wilson's (0.4902, 0.9433), and 2 J / (1 + J) of either end.
    found = f1_interval(8, 1, 1, 0.95)
    assert (found.low, found.high) == pytest.approx((2 * 0.4902 / 1.4902, 2 * 0.9433 / 1.9433), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 6), st.sampled_from([0, 4]))
def test_what_is_resampled_is_scikit_learns_metric(seed: int, count: int, classes: int, steps: int) -> None:
    """The interval holds scikit-learn's value; ties, absent classes and a class with one image included."""
    predictions = random(seed, count, classes, steps)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (predictions.targets, predictions.predicted), 1)
    present = np.unique(predictions.targets)
    found = averages(np.diagonal(matrix)[None], matrix.sum(1)[None], matrix.sum(0)[None])
    assert found["balanced_accuracy"][0] == pytest.approx(np.mean([matrix[i, i] / matrix[i].sum() for i in present]))
    for average in ("macro", "weighted"):
        wanted = precision_recall_fscore_support(
            predictions.targets, predictions.predicted, labels=present, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), wanted, strict=False):
            assert found[f"{average}_{name}"][0] == pytest.approx(value)
    whole, _ = area_intervals(predictions, classes, 0.95, np.random.default_rng(0), resamples=20)
    binary = predictions.targets[:, None] == np.arange(classes)
    if not binary.all():
        area = roc_auc_score(binary.ravel(), predictions.probabilities.ravel())
        assert whole["roc_auc_micro"].low - 1e-9 <= area <= whole["roc_auc_micro"].high + 1e-9
    precision = np.mean([average_precision_score(binary[:, i], predictions.probabilities[:, i]) for i in present])
    assert whole["mean_average_precision"].low - 1e-9 <= precision <= whole["mean_average_precision"].high + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(2, 6), st.sampled_from([0, 3]))
def test_areas_under_real_weights_are_scikit_learns(seed: int, count: int, classes: int, steps: int) -> None:
    from visionloop.evaluation.intervals import _drawn_areas

    predictions = random(seed, count, classes, steps)
    _, own = _drawn_areas(predictions, classes, np.random.default_rng(0), 1)
    for index in np.unique(predictions.targets).tolist():
        positive, scores = predictions.targets == index, predictions.probabilities[:, index]
        assert own[index]["average_precision"][0] == pytest.approx(average_precision_score(positive, scores))
        assert ("roc_auc" in own[index]) == (not positive.all())
        if not positive.all():
            assert own[index]["roc_auc"][0] == pytest.approx(roc_auc_score(positive, scores))


def test_one_class_alone_has_no_roc_and_a_class_without_an_image_no_recall() -> None:
    one = answers([1, 1, 1], [[0.2, 0.8, 0], [0.3, 0.7, 0], [0.6, 0.4, 0]])
    found = intervals(one, 3, 0.95)
    assert "roc_auc_macro" not in found.whole
    assert "roc_auc_micro" in found.whole
    assert "roc_auc" not in found.classes[1]
    assert set(found.classes[0]) == {"precision", "f1"}  # called once, wrongly
    assert found.classes[2] == {}
    assert found.whole.keys() == {
        name for name in summarize(one, per_class(one, "abc"), 0.95) if name not in (
            "images", "mistakes", "accuracy_low", "accuracy_high", "calibration_error")
    }  # fmt: skip
    only = intervals(answers([0, 0], [[1.0], [1.0]]), 1, 0.95)
    assert only.whole["macro_f1"] == Interval(1.0, 1.0)


def test_a_thousand_classes_are_resampled_in_seconds() -> None:
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(3, 8, 1000))
    matrix[rng.integers(0, 1000, 500), rng.integers(0, 1000, 500)] += 1
    right = float(np.trace(matrix) / matrix.sum())
    found = average_intervals(matrix, 0.95, rng, resamples=100)
    assert found["weighted_recall"].low < right < found["weighted_recall"].high
    assert balanced_accuracy_score([0, 1], [0, 1]) == 1  # the reference is there
