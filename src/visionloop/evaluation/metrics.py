"""The numbers of one model on one side of the data set, as a whole and per class.

Averages over classes count the classes that have at least one image on this side: a class without any has no recall.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from visionloop.errors import DataError
from visionloop.evaluation import calibration
from visionloop.evaluation.predictions import Floats, Numbers, SplitPredictions

_LEAST_PROBABILITY = 1e-15  # a probability of 0 on the right class costs 34.5 nats, not infinitely many


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: each number from 0 to 1; None where it is not defined."""

    label: str
    precision: float | None  # None: never predicted
    recall: float | None  # None: no image
    f1: float | None
    average_precision: float | None
    roc_auc: float | None  # None: no image, or every image is of this class
    support: int  # images of this class
    predicted: int  # images that were said to be of it


def require_images(predictions: SplitPredictions) -> None:
    """Refuse an empty side.

    Raises:
        DataError: there is no image.
    """
    if not len(predictions.targets):
        raise DataError("There is no image to evaluate on; raise the share of the test side in the section split.")


class Bounds(Protocol):
    """An interval, see `intervals.Interval`."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def summarize(
    predictions: SplitPredictions, classes: Sequence[ClassMetrics], confidence_level: float, top_k: int | None = None
) -> dict[str, float]:
    """The flat numbers for `dvc metrics show`, rounded to four digits (losses too).

    `accuracy_low` and `accuracy_high` are Wilson's interval at `confidence_level`; `intervals` has those of the others. What
    is not defined on these images is not there: the area under a ROC curve of a single class, a top-k accuracy where k is
    not below the number of classes and would be 1 whatever the model says.

    Raises:
        DataError: there is no image.
    """
    require_images(predictions)
    count = len(predictions.targets)
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
        **_top_k(predictions, top_k),
        "balanced_accuracy": _mean([row.recall for row in present]),
        "macro_precision": _mean([row.precision for row in present]),
        "macro_recall": _mean([row.recall for row in present]),
        "macro_f1": _mean([row.f1 for row in present]),
        "weighted_precision": float(shares @ [row.precision or 0.0 for row in present]),
        "weighted_recall": float(shares @ [row.recall or 0.0 for row in present]),
        "weighted_f1": float(shares @ [row.f1 or 0.0 for row in present]),
        "mean_average_precision": _mean([row.average_precision for row in present]),
        **_areas(predictions, present),
        "log_loss": log_loss(predictions),
        "brier": float(brier_terms(predictions).mean()),
        "calibration_error": calibration_error(predictions),
    }
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}


def per_class(predictions: SplitPredictions, labels: Sequence[str]) -> list[ClassMetrics]:
    """Precision, recall, F1, average precision and area under the ROC curve of each class, in the order of `labels`."""
    numbers = np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=numbers, zero_division=0
    )
    predicted = np.bincount(predictions.predicted, minlength=len(labels))
    rows = []
    for index, label in enumerate(labels):
        there = int(support[index]) > 0
        area = roc = None
        if there:
            area = float(average_precision_score(predictions.targets == index, predictions.probabilities[:, index]))
        if 0 < support[index] < len(predictions.targets):
            roc = float(roc_auc_score(predictions.targets == index, predictions.probabilities[:, index]))
        rows.append(
            ClassMetrics(
                label=label,
                precision=float(precision[index]) if predicted[index] else None,
                recall=float(recall[index]) if there else None,
                f1=float(f1[index]) if there or predicted[index] else None,
                average_precision=area,
                roc_auc=roc,
                support=int(support[index]),
                predicted=int(predicted[index]),
            )
        )
    return rows


def confusion(predictions: SplitPredictions, classes: int) -> Numbers:
    """How often class i was called class j, int64 [K, K]."""
    # scikit-learn warns where there is only one class.
    matrix: Numbers = np.bincount(predictions.targets * classes + predictions.predicted, minlength=classes * classes)
    return matrix.reshape(classes, classes)


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
    return float(log_loss_terms(predictions).mean())


def log_loss_terms(predictions: SplitPredictions) -> Floats:
    """[N], the cross-entropy of each image in nats."""
    chosen = predictions.probabilities[np.arange(len(predictions.targets)), predictions.targets]
    terms: Floats = -np.log(np.clip(chosen, _LEAST_PROBABILITY, 1.0))
    return terms


def brier_terms(predictions: SplitPredictions) -> Floats:
    """[N], the squared distance of the probabilities from the truth, summed over classes: 0 to 2 (Brier 1950)."""
    truth = predictions.targets[:, None] == np.arange(predictions.probabilities.shape[1])
    terms: Floats = ((predictions.probabilities - truth) ** 2).sum(1)
    return terms


def top_k_correct(predictions: SplitPredictions, k: int) -> npt.NDArray[np.bool_]:
    """[N], whether the target is among the `k` classes with the highest probabilities; of equals the first come first."""
    scores, targets = predictions.probabilities, predictions.targets[:, None]
    own = np.take_along_axis(scores, targets, 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < targets))
    found: npt.NDArray[np.bool_] = before.sum(1) < k
    return found


def calibration_error(predictions: SplitPredictions) -> float:
    """Expected calibration error over 15 bins of equal width, see `calibration`."""
    return calibration.calibration_error(predictions.probabilities, predictions.targets)


def classes_csv(classes: Sequence[ClassMetrics], intervals: Sequence[Mapping[str, Bounds]] = ()) -> str:
    """One line per class, with `<metric>_low` and `<metric>_high` where `intervals` has them, a mapping per class.

    A number that is not defined is an empty field.
    """
    names = ("label", "precision", "recall", "f1", "average_precision", "roc_auc", "support", "predicted")
    bounded = names[1:6] if intervals else ()
    header = [*names, *(f"{name}_{end}" for name in bounded for end in ("low", "high"))]
    rows = []
    for index, row in enumerate(classes):
        found = [intervals[index].get(name) for name in bounded]
        ends = [value for one in found for value in ((one.low, one.high) if one else (None, None))]
        rows.append([_field(value) for value in (*(getattr(row, name) for name in names), *ends)])
    return csv_text(header, rows)


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


def _top_k(predictions: SplitPredictions, k: int | None) -> dict[str, float]:
    if k is None or k >= predictions.probabilities.shape[1]:
        return {}
    return {f"top_{k}_accuracy": float(top_k_correct(predictions, k).mean())}


def _areas(predictions: SplitPredictions, present: Sequence[ClassMetrics]) -> dict[str, float]:
    """The areas over all classes: macro as a mean over classes, micro as one ranking of all decisions."""
    targets = (predictions.targets[:, None] == np.arange(predictions.probabilities.shape[1])).ravel()
    scores = predictions.probabilities.ravel()
    areas = {"average_precision_micro": float(average_precision_score(targets, scores))}
    known = [row.roc_auc for row in present if row.roc_auc is not None]
    if known:
        areas["roc_auc_macro"] = float(np.mean(known))
    if not targets.all():
        areas["roc_auc_micro"] = float(roc_auc_score(targets, scores))
    return areas


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value or 0.0 for value in values]))
