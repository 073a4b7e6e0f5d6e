"""The tests' p-values against scipy and by hand, merging of rare classes, the accuracy estimate, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from monitoring import drift
from monitoring.drift import chisquare, estimate_accuracy, kolmogorov_smirnov
from monitoring.frame import to_frame
from monitoring.window import WindowRows, newest_window
from tests.drift_world import COMPONENTS, LABELS, PARAMS, clean_rows, halves, pick, traffic, world
from visionloop.errors import MonitoringError
from visionloop.records import LoggedPrediction


def _split(seed: int = 0) -> tuple[list[LoggedPrediction], list[LoggedPrediction]]:
    reference, window = halves(seed)
    return pick(clean_rows(), reference), traffic(pick(clean_rows(), window[:500]))


def _window(rows: list[LoggedPrediction], partial: bool = False) -> WindowRows:
    window = newest_window(rows, PARAMS, partial=partial)
    assert window is not None
    return window


def _sample(**counts: int) -> pd.Series:
    return pd.Series([name for name, count in counts.items() for _ in range(count)])


def test_ks_is_scipys_and_leaves_out_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    reference, current = rng.normal(size=300), rng.normal(0.3, size=200)
    expected = stats.ks_2samp(reference, current, method="exact")
    assert kolmogorov_smirnov(reference, current) == (expected.statistic, expected.pvalue)
    holes = np.append(current, [np.nan, np.inf, -np.inf])
    assert kolmogorov_smirnov(reference, holes) == (expected.statistic, expected.pvalue)


def test_a_constant_column_is_no_drift_and_another_constant_is() -> None:
    assert kolmogorov_smirnov(np.zeros(300), np.zeros(200)) == (0.0, 1.0)
    statistic, p_value = kolmogorov_smirnov(np.zeros(300), np.ones(200))
    assert statistic == 1.0
    assert p_value < 1e-100


def test_a_column_without_values_is_no_evidence() -> None:
    assert kolmogorov_smirnov(np.full(300, np.nan), np.ones(200)) == (0.0, 1.0)


def test_chisquare_is_that_of_the_two_by_k_table() -> None:
    # By hand: 2 x 2 table (50, 50), (70, 30): statistic 200 * (50*30 - 50*70)^2 / (100*100*120*80) = 8.3333.
    statistic, p_value = chisquare(_sample(a=50, b=50), _sample(a=70, b=30))
    assert statistic == pytest.approx(200 * 2000**2 / (100 * 100 * 120 * 80))
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 1))


def test_rare_classes_are_merged_so_that_no_expected_count_is_under_5() -> None:
    reference, current = _sample(a=100, b=100, c=4, d=3, e=2), _sample(a=100, b=100, c=2, d=3, e=4)
    # c, d and e have 4.5 together at most on each side: 9 and 9 after merging.
    merged = stats.chi2_contingency([[100, 100, 9], [100, 100, 9]], correction=False)
    assert chisquare(reference, current) == pytest.approx((merged.statistic, merged.pvalue))


def test_a_new_and_an_absent_class_count_as_evidence() -> None:
    assert chisquare(_sample(a=250, b=250), _sample(a=200, b=200, new=100))[1] < 1e-20
    assert chisquare(_sample(a=250, b=250, c=100), _sample(a=250, b=250))[1] < 1e-19


def test_one_class_on_both_sides_is_no_evidence() -> None:
    assert chisquare(_sample(a=100), _sample(a=50)) == (0.0, 1.0)
    assert chisquare(_sample(a=3, b=2), _sample(a=2, b=2)) == (0.0, 1.0)


def test_each_signal_is_tested_at_alpha_over_the_number_of_signals() -> None:
    reference, rows = _split()
    result = drift.test_window(reference, _window(rows), LABELS, PARAMS)
    assert len(result.signals) == 26
    assert result.threshold == pytest.approx(0.001 / 26)
    assert [signal.test for signal in result.signals] == ["ks"] * 25 + ["chisquare"]
    assert all(signal.drifted == (signal.p_value < result.threshold) for signal in result.signals)
    assert not any(signal.drifted for signal in result.signals)
    assert result.health == ()


def test_the_estimate_on_the_reference_itself_is_its_accuracy() -> None:
    rows = clean_rows()
    frame = to_frame(rows, LABELS, COMPONENTS)
    estimate = estimate_accuracy(frame, frame)
    assert estimate is not None
    truth = np.mean([row.label == row.target for row in rows])
    assert estimate.reference_accuracy == pytest.approx(truth)
    assert estimate.estimated_accuracy == pytest.approx(truth)
    low, high = estimate.interval
    assert low < truth < high


def test_the_estimate_by_hand() -> None:
    confidence = np.linspace(0.01, 1, 100)
    correct = np.ones(100)
    correct[[3, 40, 41, 42, 43, 60, 61, 62, 63, 64]] = 0  # ten mistakes: the threshold is the 11th smallest, 0.11
    reference = pd.DataFrame({"confidence": confidence, "correct": correct})
    current = pd.DataFrame({"confidence": np.array([0.05, 0.10, 0.11, 0.5, 0.9])})
    estimate = estimate_accuracy(reference, current)
    assert estimate is not None
    assert estimate.threshold == pytest.approx(0.11)
    assert estimate.reference_accuracy == pytest.approx(0.9)
    assert estimate.estimated_accuracy == pytest.approx(3 / 5)


def test_a_reference_that_is_always_or_never_right() -> None:
    confidence = np.linspace(0.01, 1, 100)
    current = pd.DataFrame({"confidence": confidence})
    right = estimate_accuracy(pd.DataFrame({"confidence": confidence, "correct": np.ones(100)}), current)
    wrong = estimate_accuracy(pd.DataFrame({"confidence": confidence, "correct": np.zeros(100)}), current)
    assert right is not None
    assert wrong is not None
    assert (right.estimated_accuracy, right.reference_accuracy) == (1.0, 1.0)
    assert (wrong.estimated_accuracy, wrong.reference_accuracy) == (0.0, 0.0)


def test_without_true_labels_there_is_no_estimate() -> None:
    _, rows = _split()
    result = drift.test_window(traffic(clean_rows()), _window(rows), LABELS, PARAMS)
    assert (result.estimated_accuracy, result.reference_accuracy, result.estimated_interval) == (None, None, None)


def test_the_bootstrap_interval_has_about_its_stated_coverage() -> None:
    """Without drift the interval should leave out the reference accuracy in about 5 % of windows."""
    frame = to_frame(clean_rows(), LABELS, COMPONENTS)
    outside = 0
    for seed in range(200):
        reference, window = halves(seed)
        estimate = estimate_accuracy(frame.iloc[reference], frame.iloc[window[:500]], seed)
        assert estimate is not None
        outside += not estimate.interval[0] <= estimate.reference_accuracy <= estimate.interval[1]
    assert outside <= stats.binom.ppf(0.999, 200, 0.05)


def test_same_input_same_answer() -> None:
    reference, rows = _split()
    first, second = (drift.test_window(reference, _window(rows), LABELS, PARAMS) for _ in range(2))
    assert first == second


def test_too_few_rows_are_not_tested_but_their_health_is() -> None:
    reference, rows = _split()
    few = [replace(row, confidence=math.nan) for row in rows[:50]]
    result = drift.test_window(reference, _window(few), LABELS, PARAMS)
    assert result.signals == ()
    assert result.estimated_accuracy is None
    assert result.health == ("confidence is missing in 50 of 50 rows.",)


def test_refused_images_are_a_health_fault_above_their_share_with_the_reasons() -> None:
    reference, rows = _split()
    refused = [replace(row, prediction_id=f"r{index}") for index, row in enumerate(world().rejected(30))]
    result = drift.test_window(reference, _window(refused + rows), LABELS, PARAMS)
    assert result.health == ("30 of 530 images were refused (5.7%, at most 5.0% is healthy): truncated 30.",)
    assert drift.test_window(reference, _window(refused[:20] + rows), LABELS, PARAMS).health == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: replace(row, brightness=None),
        lambda row: replace(row, probabilities=None, confidence=None, entropy=None, margin=None),
        lambda row: replace(row, embedding=None),
        lambda row: replace(row, label=None),
        lambda row: replace(row, probabilities=(math.nan,) * 10),
        lambda row: replace(row, sharpness=math.inf),
        lambda row: replace(row, label="cat"),
    ],
)
def test_spoiled_rows_are_reported_and_never_crash(spoil: object) -> None:
    assert callable(spoil)
    reference, rows = _split()
    result = drift.test_window(reference, _window([spoil(row) for row in rows]), LABELS, PARAMS)
    assert len(result.signals) == 26
    assert result.health
    assert "500 of 500" in result.health[0]


def test_ten_percent_of_missing_values_are_reported_although_the_test_drops_them() -> None:
    reference, rows = _split()
    holes = [replace(row, brightness=math.nan) if index % 10 == 0 else row for index, row in enumerate(rows)]
    result = drift.test_window(reference, _window(holes), LABELS, PARAMS)
    assert not any(signal.drifted for signal in result.signals)
    assert result.health == ("brightness is missing in 50 of 500 rows.",)


def test_a_reference_of_another_model_or_preprocessing_is_refused() -> None:
    reference, rows = _split()
    other = [replace(row, model_sha256="b" * 64) for row in reference]
    with pytest.raises(
        MonitoringError, match="answered by model aaaaaaaaaaaa, the drift reference was scored by bbbbbbbbbbbb"
    ):
        drift.test_window(other, _window(rows), LABELS, PARAMS)
    other = [replace(row, preprocess_version="old") for row in reference]
    with pytest.raises(MonitoringError, match="another preprocessing; run `dvc repro reference`"):
        drift.test_window(other, _window(rows), LABELS, PARAMS)


def test_a_tiny_or_empty_reference_is_refused() -> None:
    reference, rows = _split()
    with pytest.raises(MonitoringError, match="has 49 answered rows, at least 50 are needed"):
        drift.test_window(reference[:49], _window(rows), LABELS, PARAMS)
    with pytest.raises(MonitoringError, match="has 0 answered rows"):
        drift.test_window([], _window(rows), LABELS, PARAMS)
