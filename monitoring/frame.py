"""Rows of the prediction store as the table that the drift tests and the dashboard read, and what is wrong with those rows.

A malformed row (wrong number of probabilities, NaN, unknown label) never raises: its cells become NaN and `faults` says so.
Does not cover: which rows make a window (`window.py`) and any comparison with the reference (`drift.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from visionloop.features import CLASS_SIGNAL, CONFIDENCE_SIGNALS, IMAGE_SIGNALS, signal_groups
from visionloop.records import LoggedPrediction

FloatArray = npt.NDArray[np.float64]

# Softmax in float32 sums to 1 within 1e-6; a sum off by more than this is another quantity (logits, a cut list).
PROBABILITY_SUM_TOLERANCE = 1e-3
# The tests take rows as independent; when most of a window is one image over again they are not.
MAX_REPEATED_SHARE = 0.5
NO_LABEL = "(none)"
LATENCY = "total_ms"


def to_frame(rows: Sequence[LoggedPrediction], labels: Sequence[str], components: int) -> pd.DataFrame:
    """One line per row, in the given order: the signals of `signal_groups`, and what the dashboard shows beside them.

    Columns: prediction_id, time, model_version, the signals ("p:<label>", confidence, entropy, margin, "e:<i>", brightness,
    contrast, sharpness, saturation, label), total_ms, correct (1, 0, or NaN where the true label is unknown).
    Numbers are float64; what is absent or not finite is NaN.

    >>> to_frame(rows, ["cat", "dog"], components=8)["p:cat"].mean()
    0.48
    """
    columns: dict[str, object] = {
        "prediction_id": [row.prediction_id for row in rows],
        "time": [row.time for row in rows],
        "model_version": [row.model_version for row in rows],
    }
    numbers = _numbers(rows, labels, components)
    numbers[~np.isfinite(numbers)] = np.nan
    for index, name in enumerate(_number_names(labels, components)):
        columns[name] = numbers[:, index]
    columns[CLASS_SIGNAL] = [NO_LABEL if row.label is None else str(row.label) for row in rows]
    columns["correct"] = np.array(
        [np.nan if row.target is None or row.label is None else float(row.label == row.target) for row in rows], dtype=float
    )
    frame = pd.DataFrame(columns)
    signals = list(signal_groups(labels, components))
    return frame[["prediction_id", "time", "model_version", *signals, LATENCY, "correct"]]


def probabilities(rows: Sequence[LoggedPrediction], classes: int) -> FloatArray:
    """Probabilities float64 [N, K]; a row of NaN where their number is not K."""
    return np.array([_vector(row.probabilities, classes) for row in rows], dtype=np.float64).reshape(len(rows), classes)


def faults(rows: Sequence[LoggedPrediction], labels: Sequence[str], components: int) -> tuple[str, ...]:
    """Sentences, with counts, on values that a healthy server cannot log; empty when all is well."""
    if not rows:
        return ()
    total = len(rows)
    found: list[str] = []
    found += _probability_faults(rows, labels)
    bad_embedding = sum(row.embedding is None or len(row.embedding) != components for row in rows)
    if bad_embedding:
        found.append(f"{bad_embedding} of {total} rows have no embedding of {components} components.")
    numbers = _numbers(rows, labels, components)
    # A vector of the wrong length is one fault, said above, and not one per component.
    expected = {"p": total - _rows_with(rows, len(labels)), "e": bad_embedding}
    for name, column in zip(_number_names(labels, components), numbers.T, strict=True):
        infinite = int(np.isinf(column).sum())
        missing = int(np.isnan(column).sum()) - (expected[name[0]] if name[1] == ":" else 0)
        if infinite:
            found.append(f"{name} is infinite in {infinite} of {total} rows.")
        if missing and name != LATENCY:
            found.append(f"{name} is missing in {missing} of {total} rows.")
    known = set(labels)
    strange = Counter(NO_LABEL if row.label is None else str(row.label) for row in rows if row.label not in known)
    if strange:
        named = ", ".join(f"{label!r} ({count})" for label, count in strange.most_common(3))
        found.append(f"{strange.total()} of {total} rows have a label that the model does not know: {named}.")
    hashes = Counter(row.image_sha256 for row in rows if row.image_sha256)
    repeated = hashes.total() - len(hashes)
    if repeated > MAX_REPEATED_SHARE * total:
        found.append(
            f"{repeated} of {total} images repeat another of the window byte for byte, so the rows are not independent; "
            "look for a client that sends the same image again and again."
        )
    naive = sum(row.time.tzinfo is None for row in rows)
    if naive:
        found.append(f"{naive} of {total} rows have a time without a zone; they are read as UTC.")
    return tuple(found)


def _probability_faults(rows: Sequence[LoggedPrediction], labels: Sequence[str]) -> list[str]:
    total, classes = len(rows), len(labels)
    found = []
    wrong = total - _rows_with(rows, classes)
    if wrong:
        seen = Counter(0 if row.probabilities is None else len(row.probabilities) for row in rows)
        other = next(length for length, _ in seen.most_common() if length != classes)
        found.append(f"{wrong} of {total} rows do not have {classes} probabilities (most of them have {other}).")
    matrix = probabilities(rows, classes)
    whole = matrix[np.isfinite(matrix).all(axis=1)]
    sums = whole.sum(axis=1)
    off = np.abs(sums - 1) > PROBABILITY_SUM_TOLERANCE
    if off.any():
        found.append(f"The probabilities of {off.sum()} of {total} rows do not sum to 1 (one sums to {sums[off][0]:.3g}).")
    negative = int((whole < 0).any(axis=1).sum())
    if negative:
        found.append(f"{negative} of {total} rows have a negative probability.")
    return found


def _rows_with(rows: Sequence[LoggedPrediction], classes: int) -> int:
    return sum(row.probabilities is not None and len(row.probabilities) == classes for row in rows)


def _number_names(labels: Sequence[str], components: int) -> list[str]:
    embedding = [f"e:{index}" for index in range(components)]
    return [*(f"p:{label}" for label in labels), *embedding, *CONFIDENCE_SIGNALS, *IMAGE_SIGNALS, LATENCY]


def _numbers(rows: Sequence[LoggedPrediction], labels: Sequence[str], components: int) -> FloatArray:
    """All numbers of the rows, float64 [N, len(_number_names)], as they were logged: NaN where absent, infinite if so."""
    embedding = np.array([_vector(row.embedding, components) for row in rows], dtype=np.float64)
    scalars = np.array(
        [[_number(getattr(row, name)) for name in (*CONFIDENCE_SIGNALS, *IMAGE_SIGNALS, LATENCY)] for row in rows],
        dtype=np.float64,
    )
    shape = len(rows), -1
    return np.hstack(
        [
            probabilities(rows, len(labels)),
            embedding.reshape(len(rows), components),
            scalars.reshape(shape) if rows else scalars.reshape(0, len(CONFIDENCE_SIGNALS) + len(IMAGE_SIGNALS) + 1),
        ]
    )


def _vector(values: Sequence[float] | None, length: int) -> Sequence[float]:
    return values if values is not None and len(values) == length else (np.nan,) * length


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | np.number) else np.nan
