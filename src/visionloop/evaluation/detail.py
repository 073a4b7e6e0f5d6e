"""What does not fit into flat metrics: classes with intervals, slices, confused pairs, and sentences, as detail.json.

`reports/evaluate/<family>/detail.json` is what the report page reads. Shares are from 0 to 1, not rounded:

    {
      "confidence_level": 0.95,
      "images": 179,                         of the test side
      "labels": ["0", "1", ...],             of the model, in order; confusion.csv has what each image was called
      "notes": ["...", ...],                 sentences: what is not defined or could not be parted, and why
      "metrics": [                           the metrics that have an interval, in the order of metrics.json
        {"name": "accuracy", "value": 0.98, "low": 0.95, "high": 0.99}, ...],
      "per_class": [                         in the order of the labels; null: not defined, as the recall of no image
        {"label": "0", "support": 18, "predicted": 18,
         "precision": {"value": 1.0, "low": 0.82, "high": 1.0} or null,
         "recall": ..., "f1": ..., "roc_auc": ..., "average_precision": ...}, ...],
      "pairs": [                             the most confused first; share and interval are of the actual class's images
        {"actual": "8", "predicted": "1", "images": 2, "of": 17, "share": 0.12, "low": 0.03, "high": 0.34}, ...],
      "slices": [                            see `visionloop.evaluation.slices.Slice`
        {"kind": "brightness", "name": "61 to 72", "images": 45, "mistakes": 1, "accuracy": 0.978, "low": 0.884,
         "high": 0.996, "rest_accuracy": 0.993, "p_value": 1.0 or null, "verdict": "worse" | "not worse" | "too small",
         "sentence": "brightness 61 to 72: 97.78% of 45 images are right, ..."}, ...]
    }

Other stages' parts of an evaluation may stand beside these keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from visionloop.evaluation.intervals import Interval, Intervals
from visionloop.evaluation.metrics import ClassMetrics, confusion, csv_text, wilson
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.evaluation.slices import Slice

_PER_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")
_MOST_PAIRS = 20


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Images of one class that were called another."""

    actual: str
    predicted: str
    images: int
    of: int  # images of the actual class
    share: float
    low: float  # Wilson's interval of the share
    high: float


def confused_pairs(predictions: SplitPredictions, labels: Sequence[str], confidence_level: float) -> list[ConfusedPair]:
    """At most 20 pairs of classes, those with the most mistakes first; equals by the order of the labels."""
    matrix = confusion(predictions, len(labels))
    wrong = matrix * (1 - np.eye(len(labels), dtype=np.int64))
    pairs = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]:
        actual, called = divmod(int(place), len(labels))
        images, of = int(wrong[actual, called]), int(matrix[actual].sum())
        if images:
            interval = wilson(images, of, confidence_level)
            pairs.append(ConfusedPair(labels[actual], labels[called], images, of, images / of, *interval))
    return pairs


def notes(predictions: SplitPredictions, labels: Sequence[str], top_k: int) -> list[str]:
    """Sentences about what is not defined on these images, and about ties."""
    present = np.unique(predictions.targets)
    said = []
    if len(present) == 1:
        said.append(
            f"Every test image is of class {labels[present[0]]}: no ROC curve of a class is "
            "defined, and nothing here says how classes are told apart."
        )
    absent = [label for index, label in enumerate(labels) if index not in present]
    if absent:
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        said.append(
            f"{len(absent)} of {len(labels)} classes have no test image ({shown}): averages over classes leave them out."
        )
    if top_k >= len(labels):
        said.append(
            f"evaluate.top_k is {top_k} and there are {len(labels)} classes: a top-{top_k} accuracy would always be 1."
        )
    best = predictions.probabilities.max(1, keepdims=True)
    ties = int(((predictions.probabilities == best).sum(1) > 1).sum())
    if ties:
        said.append(f"On {ties} images several classes have the highest score; the first in the order of labels is taken.")
    return said


def detail(
    predictions: SplitPredictions,
    labels: Sequence[str],
    *,
    metrics: Mapping[str, float],
    classes: Sequence[ClassMetrics],
    intervals: Intervals,
    pairs: Sequence[ConfusedPair],
    slices: Sequence[Slice],
    notes: Sequence[str],
    confidence_level: float,
) -> dict[str, object]:
    """The content of detail.json; the module says what stands where. `metrics` are those of `summarize`."""
    return {
        "confidence_level": confidence_level,
        "images": len(predictions.targets),
        "labels": list(labels),
        "notes": list(notes),
        "metrics": [
            {"name": name, "value": value, **asdict(intervals.whole[name])}
            for name, value in metrics.items()
            if name in intervals.whole
        ],
        "per_class": [_class(row, found) for row, found in zip(classes, intervals.classes, strict=True)],
        "pairs": [asdict(pair) for pair in pairs],
        "slices": [asdict(one) for one in slices],
    }


def pairs_csv(pairs: Sequence[ConfusedPair]) -> str:
    """One line per pair, the most confused first, with `<actual> called <predicted>` in the column `pair`."""
    rows = (
        [f"{one.actual} called {one.predicted}", one.images, one.of, *(round(v, 4) for v in (one.share, one.low, one.high))]
        for one in pairs
    )
    return csv_text(("pair", "images", "of", "share", "low", "high"), rows)


def _class(row: ClassMetrics, found: Mapping[str, Interval]) -> dict[str, object]:
    numbers: dict[str, object] = {"label": row.label, "support": row.support, "predicted": row.predicted}
    for name in _PER_CLASS:
        value = getattr(row, name)
        numbers[name] = None if value is None else {"value": value, **asdict(found[name])}
    return numbers
