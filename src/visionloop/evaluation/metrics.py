"""The numbers of one model on one side of the data set, as a whole and per class.

Averages over classes count the classes that have at least one image on this side: a class without any has no recall.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from visionloop.errors import DataError
from visionloop.evaluation.predictions import Numbers, SplitPredictions

_BINS = 15  # of the calibration error, as in Guo et al. 2017, arXiv:1706.04599
_LEAST_PROBABILITY = 1e-15  # a probability of 0 on the right class costs 34.5 nats, not infinitely many


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: each number from 0 to 1; None where it is not defined."""

    label: str
    precision: float | None  # None: never predicted
    recall: float | None  # None: no image
    f1: float | None
    average_precision: float | None
    support: int  # images of this class
    predicted: int  # images that were said to be of it


def summarize(predictions: SplitPredictions, classes: Sequence[ClassMetrics], confidence_level: float) -> dict[str, float]:
    """The flat numbers for `dvc metrics show`, rounded to four digits (losses too).

    `accuracy_low` and `accuracy_high` are Wilson's interval at `confidence_level`.

    Raises:
        DataError: there is no image.
    """
    count = len(predictions.targets)
    if count == 0:
        raise DataError("There is no image to evaluate on; raise the share of the test side in the section split.")
    right = int(predictions.correct.sum())
    low, high = wilson(right, count, confidence_level)
    present = [row for row in classes if row.support]
    shares = np.array([row.support for row in present]) / count
    values = {
        "images": count,
        "mistakes": count - right,
        "accuracy": right / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": _mean([row.recall for row in present]),
        "macro_precision": _mean([row.precision for row in present]),
        "macro_recall": _mean([row.recall for row in present]),
        "macro_f1": _mean([row.f1 for row in present]),
        "weighted_precision": float(shares @ [row.precision or 0.0 for row in present]),
        "weighted_recall": float(shares @ [row.recall or 0.0 for row in present]),
        "weighted_f1": float(shares @ [row.f1 or 0.0 for row in present]),
        "mean_average_precision": _mean([row.average_precision for row in present]),
        "log_loss": log_loss(predictions),
        "calibration_error": calibration_error(predictions),
    }
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}


def per_class(predictions: SplitPredictions, labels: Sequence[str]) -> list[ClassMetrics]:
    """Precision, recall, F1 and average precision of each class, in the order of `labels`."""
    numbers = np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=numbers, zero_division=0
    )
    predicted = np.bincount(predictions.predicted, minlength=len(labels))
    rows = []
    for index, label in enumerate(labels):
        there = int(support[index]) > 0
        area = None
        if there:
            area = float(average_precision_score(predictions.targets == index, predictions.probabilities[:, index]))
        rows.append(
            ClassMetrics(
                label=label,
                precision=float(precision[index]) if predicted[index] else None,
                recall=float(recall[index]) if there else None,
                f1=float(f1[index]) if there or predicted[index] else None,
                average_precision=area,
                support=int(support[index]),
                predicted=int(predicted[index]),
            )
        )
    return rows


def confusion(predictions: SplitPredictions, classes: int) -> Numbers:
    """How often class i was called class j, int64 [K, K]."""
    matrix: Numbers = confusion_matrix(predictions.targets, predictions.predicted, labels=np.arange(classes))
    return matrix


def wilson(successes: int, trials: int, confidence_level: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), which stays sensible at 0 and 1 and for few trials.

    >>> wilson(178, 180, 0.95)
    (0.9604..., 0.9969...)
    """
    z = NormalDist().inv_cdf(0.5 + confidence_level / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    # At either end the formula gives that end exactly, but for rounding.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


def log_loss(predictions: SplitPredictions) -> float:
    """Mean cross-entropy in nats."""
    chosen = predictions.probabilities[np.arange(len(predictions.targets)), predictions.targets]
    return float(-np.log(np.clip(chosen, _LEAST_PROBABILITY, 1.0)).mean())


def calibration_error(predictions: SplitPredictions) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over 15 bins of equal width."""
    confidence = predictions.probabilities.max(1)
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, confidence - predictions.correct, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def classes_csv(classes: Sequence[ClassMetrics]) -> str:
    """One line per class; a number that is not defined is an empty field."""
    names = ("label", "precision", "recall", "f1", "average_precision", "support", "predicted")
    rows = ([_field(getattr(row, name)) for name in names] for row in classes)
    return csv_text(names, rows)


def confusion_csv(predictions: SplitPredictions, labels: Sequence[str]) -> str:
    """One line per image, `actual,predicted`, as DVC's template `confusion` counts them."""
    pairs = zip(predictions.targets.tolist(), predictions.predicted.tolist(), strict=True)
    return csv_text(("actual", "predicted"), ([labels[actual], labels[predicted]] for actual, predicted in pairs))


def csv_text(header: Sequence[str], rows: object) -> str:
    """CSV with `\\n` at the end of each line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)  # type: ignore[arg-type]
    return buffer.getvalue()


def _field(value: object) -> object:
    return "" if value is None else round(value, 4) if isinstance(value, float) else value


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value or 0.0 for value in values]))
