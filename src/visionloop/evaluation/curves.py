"""Precision against recall, per class and over all decisions together (micro-averaged)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from visionloop.evaluation.metrics import csv_text
from visionloop.evaluation.predictions import Floats, SplitPredictions

MICRO = "micro-average"
_MOST_POINTS = 200  # of one curve in the file; more are not seen in a plot


@dataclass(frozen=True)
class PrCurve:
    """One curve from recall 0 to recall 1; `precision[i]` belongs to `recall[i]`."""

    name: str  # the class, or `MICRO`
    recall: Floats
    precision: Floats
    average_precision: float


def pr_curves(predictions: SplitPredictions, labels: Sequence[str]) -> list[PrCurve]:
    """The micro-averaged curve first, then each class that has an image, in the order of `labels`."""
    targets = predictions.targets[:, None] == np.arange(len(labels))[None]
    curves = [_curve(MICRO, targets.ravel(), predictions.probabilities.ravel())]
    for index, label in enumerate(labels):
        if targets[:, index].any():
            curves.append(_curve(label, targets[:, index], predictions.probabilities[:, index]))
    return curves


def curves_csv(curves: Sequence[PrCurve]) -> str:
    """`class,recall,precision`, at most 200 lines a curve."""
    return csv_text(("class", "recall", "precision"), ([curve.name, *point] for curve in curves for point in _points(curve)))


def micro_csv(curves: Sequence[PrCurve]) -> str:
    """`recall,precision` of the micro-averaged curve, which DVC plots."""
    return csv_text(("recall", "precision"), _points(curves[0]))


def _curve(name: str, positive: object, scores: Floats) -> PrCurve:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return PrCurve(name, recall[::-1], precision[::-1], float(average_precision_score(positive, scores)))


def _points(curve: PrCurve) -> list[list[float]]:
    count = len(curve.recall)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.int64))
    return [[round(float(curve.recall[i]), 4), round(float(curve.precision[i]), 4)] for i in chosen]
