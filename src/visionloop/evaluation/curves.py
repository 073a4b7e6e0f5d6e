"""Precision against recall, and the ROC curve: per class, macro (the mean of the classes) and micro (all decisions at once).

The macro curve is the mean of the classes' curves at each recall, or at each share of false alarms, so that its area is the
mean of their areas, which is what metrics.json says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from visionloop.evaluation.metrics import csv_text
from visionloop.evaluation.predictions import Floats, SplitPredictions

MICRO = "micro-average"
MACRO = "macro-average"
_MOST_POINTS = 200  # of one curve in the file; more are not seen in a plot


@dataclass(frozen=True)
class PrCurve:
    """One curve from recall 0 to recall 1; `precision[i]` belongs to the recalls above `recall[i - 1]` up to `recall[i]`."""

    name: str  # the class, `MICRO` or `MACRO`
    recall: Floats
    precision: Floats
    average_precision: float


@dataclass(frozen=True)
class RocCurve:
    """One curve from (0, 0) to (1, 1), straight between its points."""

    name: str  # the class, `MICRO` or `MACRO`
    false_positive_rate: Floats
    true_positive_rate: Floats
    area: float


def pr_curves(predictions: SplitPredictions, labels: Sequence[str]) -> list[PrCurve]:
    """The micro- and the macro-averaged curve, then each class that has an image, in the order of `labels`."""
    targets = predictions.targets[:, None] == np.arange(len(labels))[None]
    micro = _pr_curve(MICRO, targets.ravel(), predictions.probabilities.ravel())
    curves = [
        _pr_curve(label, targets[:, index], predictions.probabilities[:, index])
        for index, label in enumerate(labels)
        if targets[:, index].any()
    ]
    recall = np.linspace(0, 1, _MOST_POINTS + 1)
    precision = np.mean([curve.precision[np.searchsorted(curve.recall, recall)] for curve in curves], 0)
    macro = PrCurve(MACRO, recall, precision, float(np.mean([curve.average_precision for curve in curves])))
    return [micro, macro, *curves]


def roc_curves(predictions: SplitPredictions, labels: Sequence[str]) -> list[RocCurve]:
    """The micro- and the macro-averaged curve, then each class that has an image and is not the only one.

    Empty where the images are of one class: without another there are no false alarms.
    """
    targets = predictions.targets[:, None] == np.arange(len(labels))[None]
    some = [index for index in range(len(labels)) if 0 < targets[:, index].sum() < len(targets)]
    if not some:
        return []
    micro = _roc_curve(MICRO, targets.ravel(), predictions.probabilities.ravel())
    curves = [_roc_curve(labels[index], targets[:, index], predictions.probabilities[:, index]) for index in some]
    rate = np.linspace(0, 1, _MOST_POINTS)
    # Where a curve rises straight up, its highest point counts; each begins at 0.
    found = np.mean([np.interp(rate, curve.false_positive_rate, curve.true_positive_rate) for curve in curves], 0)
    area = float(np.mean([curve.area for curve in curves]))
    return [micro, RocCurve(MACRO, np.append(0.0, rate), np.append(0.0, found), area), *curves]


def curves_csv(curves: Sequence[PrCurve] | Sequence[RocCurve]) -> str:
    """`class,recall,precision` or `class,false_positive_rate,true_positive_rate`, at most 200 lines a curve."""
    header = ("class", *_axes(curves[0])) if curves else ("class", "false_positive_rate", "true_positive_rate")
    return csv_text(header, ([curve.name, *point] for curve in curves for point in _points(curve)))


def micro_csv(curves: Sequence[PrCurve] | Sequence[RocCurve]) -> str:
    """`recall,precision` or `false_positive_rate,true_positive_rate` of the micro-averaged curve, which DVC plots."""
    return csv_text(_axes(curves[0]), _points(curves[0])) if curves else "false_positive_rate,true_positive_rate\n"


def _pr_curve(name: str, positive: object, scores: Floats) -> PrCurve:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return PrCurve(name, recall[::-1], precision[::-1], float(average_precision_score(positive, scores)))


def _roc_curve(name: str, positive: object, scores: Floats) -> RocCurve:
    false, true, _ = roc_curve(positive, scores)
    return RocCurve(name, false, true, float(roc_auc_score(positive, scores)))


def _axes(curve: PrCurve | RocCurve) -> tuple[str, str]:
    return ("recall", "precision") if isinstance(curve, PrCurve) else ("false_positive_rate", "true_positive_rate")


def _points(curve: PrCurve | RocCurve) -> list[list[float]]:
    x, y = (getattr(curve, name) for name in _axes(curve))
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(np.int64))
    return [[round(float(x[i]), 4), round(float(y[i]), 4)] for i in chosen]
