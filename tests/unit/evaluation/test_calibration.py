"""visionloop.evaluation.calibration: known temperatures are found, and every share is the one that a hand would count."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from visionloop.card import Calibration
from visionloop.errors import DataError
from visionloop.evaluation.calibration import (
    area_under_risk,
    calibration_error,
    expected_error,
    first_class,
    fit_temperature,
    log_loss,
    precision_thresholds,
    reliability,
    rest,
    review_threshold,
    risk_coverage,
    share_interval,
    thresholds_csv,
)
from visionloop.evaluation.metrics import wilson
from visionloop.features import softmax


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 4] that are `temperature` times too large, and targets drawn from their true probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (count, 4))
    targets = np.array([rng.choice(4, p=row) for row in softmax(true)])
    return true * temperature, targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_the_logits_were_multiplied_by_is_found(temperature: float) -> None:
    logits, targets = drawn(4000, temperature)
    found = fit_temperature(logits, targets)
    assert found.value == pytest.approx(temperature, rel=0.08)
    assert found.low is not None and found.high is not None
    assert found.low < temperature < found.high
    reference = minimize_scalar(lambda t: sklearn_log_loss(targets, softmax(logits / t)), bounds=(0.1, 10), method="bounded")
    assert found.value == pytest.approx(reference.x, rel=1e-3)


def test_the_interval_holds_the_true_temperature_as_often_as_it_says() -> None:
    holds = 0
    for seed in range(60):
        found = fit_temperature(*drawn(300, 1.7, seed))
        assert found.low is not None and found.high is not None
        holds += found.low <= 1.7 <= found.high
    assert 52 <= holds <= 60  # 95 % of 60 are 57; below 52 falls one series in 300


def test_a_temperature_changes_no_answer_and_the_cards_form_of_it_agrees() -> None:
    logits, targets = drawn(200, 3.0)
    found = fit_temperature(logits, targets)
    calibration = Calibration(
        temperature=found.value, precision_thresholds={}, unknown=None, review_below=0.0, review_share=0.0
    )
    probabilities = calibration.apply(logits)
    assert (probabilities.argmax(1) == logits.argmax(1)).all()
    assert log_loss(logits, targets, found.value) == pytest.approx(sklearn_log_loss(targets, probabilities))
    assert log_loss(logits, targets, found.value) < log_loss(logits, targets)


@pytest.mark.parametrize(
    ("logits", "targets", "said"),
    [
        (np.eye(2).repeat(10, 0), np.arange(2).repeat(10), "20 validation images are too few, it takes 50"),
        (np.eye(2).repeat(50, 0), np.arange(2).repeat(50), "all 100 validation images are answered right"),
        (np.eye(2).repeat(50, 0), 1 - np.arange(2).repeat(50), "all 100 validation images are answered wrong"),
        (np.empty((0, 3)), np.empty(0, np.int64), "0 validation images are too few"),
    ],
)
def test_where_nothing_can_be_fitted_the_temperature_stays_one_and_says_why(
    logits: np.ndarray, targets: np.ndarray, said: str
) -> None:
    found = fit_temperature(logits, targets)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert said in found.note


def test_a_fit_beyond_the_bounds_says_so() -> None:
    logits, targets = drawn(200, 50.0)
    found = fit_temperature(logits, targets)
    assert found.value == pytest.approx(10, rel=1e-3)
    assert "bounded to 0.1 to 10" in found.note


def test_nan_is_answered_by_a_sentence() -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        fit_temperature(np.full((60, 2), np.nan), np.zeros(60, np.int64))


def test_bins_of_equal_width_by_hand() -> None:
    confidence, correct = np.array([0.5, 0.55, 0.95, 0.95]), np.array([True, False, True, True])
    bins = reliability(confidence, correct, bins=10)
    assert [(one.images, one.accuracy) for one in bins] == [(2, 0.5), (2, 1.0)]
    assert [one.confidence for one in bins] == pytest.approx([0.525, 0.95])
    assert (bins[0].low, bins[0].high) == pytest.approx(wilson(1, 2, 0.95))
    assert expected_error(bins) == pytest.approx((2 * 0.025 + 2 * 0.05) / 4)


def test_bins_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.01, 0.99, 500)
    correct = rng.uniform(size=500) < confidence**2
    for adaptive, strategy in ((False, "uniform"), (True, "quantile")):
        accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy=strategy)
        found = reliability(confidence, correct, bins=10, adaptive=adaptive)
        assert [one.accuracy for one in found] == pytest.approx(accuracy, abs=0.02 if adaptive else 1e-12)
        assert [one.confidence for one in found] == pytest.approx(mean, abs=0.005 if adaptive else 1e-12)


def test_equal_confidences_share_a_bin_whatever_their_order() -> None:
    confidence = np.array([0.9] * 30 + [0.6] * 2)
    correct = np.array([True] * 15 + [False] * 15 + [True] * 2)
    bins = reliability(confidence, correct, adaptive=True)
    assert [(one.images, one.accuracy) for one in bins] == [(2, 1.0), (30, 0.5)]
    turned = reliability(confidence[::-1], correct[::-1], adaptive=True)
    assert [one.images for one in turned] == [2, 30]


def test_a_perfectly_certain_and_right_model_has_no_error_and_an_empty_one_neither() -> None:
    assert calibration_error(np.eye(3), np.arange(3)) == 0
    assert calibration_error(np.empty((0, 3)), np.empty(0, np.int64)) == 0
    assert calibration_error(np.eye(3), np.array([1, 2, 0]), adaptive=True) == 1


def test_thresholds_by_hand() -> None:
    # Class 0 is answered with 0.9 (right), 0.8 (right), 0.7 (wrong), 0.6 (right); class 1 once, wrongly; class 2 never.
    first = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    probabilities = np.stack([first, [0.05, 0.1, 0.2, 0.3, 0.85], [0.05, 0.1, 0.1, 0.1, 0.05]], 1)
    targets = np.array([0, 0, 2, 0, 0])
    sure, wrong, never = precision_thresholds(probabilities, targets, ("a", "b", "c"), 0.99)
    assert (sure.threshold, sure.support, sure.precision) == (0.8, 2, 1.0)
    assert (sure.low, sure.high) == pytest.approx(wilson(2, 2, 0.95))
    assert (wrong.threshold, wrong.support, wrong.precision) == (None, 1, 0.0)
    assert (never.threshold, never.support, never.precision, never.low) == (None, 0, None, None)
    # Three of four is enough for 0.75, though two of three on the way there is not.
    assert precision_thresholds(probabilities, targets, ("a", "b", "c"), 0.75)[0].threshold == 0.6
    assert thresholds_csv([never]) == "label,threshold,support,precision,precision_low,precision_high\nc,,0,,,\n"


def test_equal_probabilities_are_on_one_side_of_a_threshold() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.8, 0.2]])
    [row, _] = precision_thresholds(probabilities, np.array([0, 1, 0]), ("a", "b"), 0.9)
    assert row.threshold is None  # 0.9 holds a right and a wrong answer
    assert row.support == 3


def test_the_review_share_is_the_share_below_its_threshold() -> None:
    confidence = np.random.default_rng(0).permutation(np.linspace(0.3, 0.99, 200))
    threshold = review_threshold(confidence, 0.05)
    assert (confidence < threshold).sum() == 10
    assert (confidence < review_threshold(confidence, 0.99)).sum() == 198
    assert review_threshold(confidence, 0.0) == 0
    assert review_threshold(np.full(10, 0.9), 0.5) == 0.9  # among equal ones none goes
    assert review_threshold(np.empty(0), 0.5) == 0


def test_what_is_left_after_the_review_by_hand() -> None:
    found = rest(np.array([0.9, 0.8, 0.5, 0.4]), np.array([True, False, True, False]), 0.5)
    assert (found.images, found.reviewed) == (3, 0.25)
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx(share_interval(2, 3, 0.95))
    nothing = rest(np.array([0.4]), np.array([True]), 0.5)
    assert (nothing.images, nothing.reviewed, nothing.accuracy) == (0, 1.0, None)


def test_risk_and_coverage_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.7, 0.9, 0.8]), np.array([False, True, True]))
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0, 0, 1 / 3])
    assert area_under_risk(np.array([0.7, 0.9, 0.8]), np.array([False, True, True])) == pytest.approx(1 / 9)
    # Equal ones have no order: each is half wrong, from the first on.
    assert risk_coverage(np.array([0.9, 0.9]), np.array([True, False]))[1] == pytest.approx([0.5, 0.5])
    with pytest.raises(DataError, match="no image"):
        area_under_risk(np.empty(0), np.empty(0, bool))


def test_the_first_of_equal_classes_is_the_answer() -> None:
    confidence, correct = first_class(np.array([[0.5, 0.5]]), np.array([0]))
    assert (confidence[0], correct[0]) == (0.5, True)
