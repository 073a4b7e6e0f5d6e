"""Does a window differ from the reference, and what accuracy is left? Two-sample tests, and an estimate without labels.

Numbers: Kolmogorov-Smirnov (scipy, exact to 10,000 rows); the predicted class: chi-square on the 2 x K table of counts, rare
classes merged. Each signal is tested at alpha / signals (Bonferroni), which keeps the chance of one false alarm per window
at or under alpha; softmax values with KS and Bonferroni are the best detector overall in Rabanser, Guennemann and Lipton,
"Failing Loudly" (NeurIPS 2019). Accuracy: ATC (Garg et al., "Leveraging Unlabeled Data to Predict Out-of-Distribution
Performance", ICLR 2022) on the largest probability.

Does not cover: concept drift (the same images, a new meaning), which only labels can show. ATC is blind where a model is
wrong with confidence (digits at contrast 5: 11 % right, 99 % estimated); the tests see that, and `decision.py` acts when an
alarm lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from monitoring.frame import faults, to_frame
from monitoring.window import WindowRows
from visionloop.config import MonitorParams
from visionloop.errors import MonitoringError
from visionloop.features import signal_groups
from visionloop.records import DriftResult, LoggedPrediction, SignalDrift

FloatArray = npt.NDArray[np.float64]

# Under an expected count of 5 the chi-square distribution no longer fits (Cochran 1954).
MIN_EXPECTED = 5.0
# Below this a reference says too little: its own sampling error in accuracy is above 5 points.
MIN_REFERENCE_ROWS = 50
# The 2.5 % and 97.5 % points of 400 resamples are stable to about a tenth of the interval's width.
BOOTSTRAP_SAMPLES = 400


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """What ATC says of a window."""

    threshold: float  # a confidence at or above it counts as correct
    reference_accuracy: float
    estimated_accuracy: float
    interval: tuple[float, float]  # 95 %, the reference accuracy less the bootstrap interval of the drop


def test_window(
    reference_rows: Sequence[LoggedPrediction],
    window: WindowRows,
    labels: Sequence[str],
    params: MonitorParams,
    *,
    components: int | None = None,
) -> DriftResult:
    """Test a window against the reference; of one that is "insufficient" only the health is judged.

    `components` is the length of the logged embedding; without it, that of the reference.

    >>> test_window(reference_rows, newest_window(rows, params), labels, params).signals[0].p_value
    0.41

    Raises:
        MonitoringError: the reference is too small, or was scored by another model than the window.
    """
    reference_rows = check_reference(reference_rows, window)
    if components is None:
        components = len(reference_rows[0].embedding or ())
    health = _health(window, labels, components, params)
    groups = signal_groups(labels, components)
    threshold = params.alpha / len(groups)
    if window.state == "insufficient":
        return DriftResult(window.window, threshold, (), None, None, health)
    reference = to_frame(reference_rows, labels, components)
    current = to_frame(window.answered, labels, components)
    estimate = estimate_accuracy(reference, current)
    return DriftResult(
        window=window.window,
        threshold=threshold,
        signals=test_signals(reference, current, labels, components, threshold),
        estimated_accuracy=None if estimate is None else estimate.estimated_accuracy,
        reference_accuracy=None if estimate is None else estimate.reference_accuracy,
        health=health,
        estimated_interval=None if estimate is None else estimate.interval,
    )


def check_reference(reference_rows: Sequence[LoggedPrediction], window: WindowRows) -> list[LoggedPrediction]:
    """The answered rows of the reference.

    Raises:
        MonitoringError: there are too few of them, or another model scored them.
    """
    answered = [row for row in reference_rows if row.status == "ok"]
    if len(answered) < MIN_REFERENCE_ROWS:
        raise MonitoringError(
            f"The drift reference has {len(answered)} answered rows, at least {MIN_REFERENCE_ROWS} are needed; "
            "collect more images and run `dvc repro reference`."
        )
    theirs = {(row.model_sha256, row.preprocess_version) for row in answered}
    ours = {(row.model_sha256, row.preprocess_version) for row in window.answered}
    if ours - theirs:
        model, _ = min(ours - theirs)
        reference_model, _ = min(theirs)
        raise MonitoringError(
            f"Window {window.window.window_id} was answered by model {model[:12]}, the drift reference was scored by "
            f"{reference_model[:12]} or with another preprocessing; run `dvc repro reference` for the deployed model."
        )
    return answered


def test_signals(
    reference: pd.DataFrame, current: pd.DataFrame, labels: Sequence[str], components: int, threshold: float
) -> tuple[SignalDrift, ...]:
    """Test each signal of two frames of `to_frame` at `threshold`, in the order of `signal_groups`.

    Values that are not finite are left out (`faults` reports them). A signal without any value on one side gets p = 1.
    """
    found = []
    for name, group in signal_groups(labels, components).items():
        if group == "class":
            statistic, p_value = chisquare(reference[name], current[name])
            found.append(SignalDrift(name, "chisquare", statistic, p_value, p_value < threshold, group))
        else:
            statistic, p_value = kolmogorov_smirnov(reference[name].to_numpy(), current[name].to_numpy())
            found.append(SignalDrift(name, "ks", statistic, p_value, p_value < threshold, group))
    return tuple(found)


def kolmogorov_smirnov(reference: FloatArray, current: FloatArray) -> tuple[float, float]:
    """Largest distance of the two distribution functions and its two-sided p-value; NaN is left out.

    scipy's "auto" is exact up to 10,000 rows a side. With ties, as in a constant column, the p-value is too large
    (conservative), never too small.
    """
    reference, current = reference[np.isfinite(reference)], current[np.isfinite(current)]
    if not len(reference) or not len(current):
        return 0.0, 1.0
    result = stats.ks_2samp(reference, current)
    return float(result.statistic), float(result.pvalue)


def chisquare(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    """Statistic and p-value of the chi-square test that two samples of class names have the same shares.

    Both samples count as samples. (Evidently's "chisquare" takes the reference's shares as exact, which gives too small
    p-values when the reference is not many times the window, and fails on a class that the reference lacks.) Classes with an
    expected count under 5 on either side are merged into one, the rarest first, until none is left.
    """
    names = sorted(set(reference) | set(current))
    table = np.array(
        [reference.value_counts().reindex(names, fill_value=0), current.value_counts().reindex(names, fill_value=0)]
    )
    table = _merge_rare(table.astype(np.float64))
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return 0.0, 1.0
    result = stats.chi2_contingency(table, correction=False)
    return float(result.statistic), float(result.pvalue)


def _merge_rare(table: FloatArray) -> FloatArray:
    """Merge the rarest columns of a table of counts [2, K] until each expected count is at least `MIN_EXPECTED`."""
    share = table.sum(axis=1).min() / max(table.sum(), 1.0)  # of the smaller sample
    table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    while table.shape[1] > 1 and table[:, 0].sum() * share < MIN_EXPECTED:
        merged = table[:, 0] + table[:, 1]
        table = np.column_stack([merged, table[:, 2:]])
        table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    return table


def estimate_accuracy(reference: pd.DataFrame, current: pd.DataFrame, seed: int = 0) -> AccuracyEstimate | None:
    """Estimate the accuracy on `current` without its labels, from two frames of `to_frame`; None where that cannot be done.

    ATC: the threshold is the confidence that as many reference rows stay under as were predicted wrongly; the estimate is
    the share of `current` at or above it. The interval bootstraps both, so a threshold that rests on a handful of mistakes
    (a small or an easy reference) makes it wide. Same input and seed, same answer.
    """
    known = reference[["confidence", "correct"]].dropna().sort_values("confidence", kind="stable")
    confidence, wrong = known["confidence"].to_numpy(), 1 - known["correct"].to_numpy()
    window = np.sort(current["confidence"].dropna().to_numpy())
    if len(confidence) < MIN_REFERENCE_ROWS or not len(window):
        return None
    size, mistakes = len(confidence), int(wrong.sum())
    threshold = _threshold(confidence, mistakes)
    estimated = _share_from(window, threshold)
    rng = np.random.default_rng(seed)
    # A resample of the reference is a count per row; rows are sorted by confidence, so its threshold is where the running
    # count passes its number of mistakes. That needs no sorting per resample.
    drawn = (
        rng.integers(size, size=(BOOTSTRAP_SAMPLES, size), dtype=np.int32) + (np.arange(BOOTSTRAP_SAMPLES) * size)[:, None]
    )
    counts = np.bincount(drawn.ravel(), minlength=BOOTSTRAP_SAMPLES * size).reshape(BOOTSTRAP_SAMPLES, size)
    resampled_mistakes = np.rint(counts @ wrong).astype(np.int64)
    position = (np.cumsum(counts, axis=1) <= resampled_mistakes[:, None]).sum(axis=1)
    thresholds = np.append(confidence, np.inf)[position]
    shares = 1 - np.searchsorted(window, thresholds, side="left") / len(window)
    drops = (1 - resampled_mistakes / size) - rng.binomial(len(window), shares) / len(window)
    low, high = np.quantile(drops, [0.025, 0.975])
    accuracy = 1 - mistakes / size
    return AccuracyEstimate(threshold, accuracy, estimated, (float(accuracy - high), float(accuracy - low)))


def _threshold(sorted_confidence: FloatArray, mistakes: int) -> float:
    return float(np.append(sorted_confidence, np.inf)[mistakes])


def _share_from(sorted_values: FloatArray, threshold: float) -> float:
    return float(1 - np.searchsorted(sorted_values, threshold, side="left") / len(sorted_values))


def _health(window: WindowRows, labels: Sequence[str], components: int, params: MonitorParams) -> tuple[str, ...]:
    found = list(faults(window.answered, labels, components))
    rejected, total = window.window.rejected, window.window.rows + window.window.rejected
    # One image refused out of two says nothing: the share is judged from min_rows images on.
    if total >= params.min_rows and rejected > params.max_reject_share * total:
        reasons = pd.Series([row.reason or "no reason" for row in window.rejected]).value_counts().head(3)
        named = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        found.append(
            f"{rejected} of {total} images were refused ({rejected / total:.1%}, at most {params.max_reject_share:.1%} is "
            f"healthy): {named}."
        )
    return tuple(found)
