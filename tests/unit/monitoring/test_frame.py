"""Rows become a table of signals; what is wrong with them is said in sentences and never raises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from monitoring.frame import faults, to_frame
from tests.drift_world import COMPONENTS, LABELS, clean_rows
from visionloop.features import signal_groups
from visionloop.records import LoggedPrediction


def _faults(rows: list[LoggedPrediction]) -> str:
    return "\n".join(faults(rows, LABELS, COMPONENTS))


def test_the_frame_has_every_signal_with_the_logged_values() -> None:
    rows = clean_rows()[:20]
    frame = to_frame(rows, LABELS, COMPONENTS)
    assert list(frame.columns) == [
        "prediction_id", "time", "model_version", *signal_groups(LABELS, COMPONENTS), "total_ms", "correct",
    ]  # fmt: skip
    row = rows[3]
    assert row.probabilities is not None
    assert row.embedding is not None
    line = frame.iloc[3]
    assert [line[f"p:{label}"] for label in LABELS] == list(row.probabilities)
    assert [line[f"e:{index}"] for index in range(COMPONENTS)] == list(row.embedding)
    assert (line["confidence"], line["sharpness"], line["label"]) == (row.confidence, row.sharpness, row.label)
    assert line["correct"] == float(row.label == row.target)


def test_healthy_rows_have_no_faults_and_no_rows_make_an_empty_frame() -> None:
    assert faults(clean_rows(), LABELS, COMPONENTS) == ()
    assert faults([], LABELS, COMPONENTS) == ()
    assert to_frame([], LABELS, COMPONENTS).shape == (0, 31)


def test_not_finite_values_are_nan_in_the_frame_and_counted_in_sentences() -> None:
    rows = list(clean_rows()[:10])
    rows[0] = replace(rows[0], brightness=math.inf)
    rows[1] = replace(rows[1], brightness=math.nan)
    rows[2] = replace(rows[2], brightness=None, total_ms=None)
    frame = to_frame(rows, LABELS, COMPONENTS)
    assert frame["brightness"].isna().tolist() == [True, True, True] + [False] * 7
    assert _faults(rows) == "brightness is infinite in 1 of 10 rows.\nbrightness is missing in 2 of 10 rows."


def test_probabilities_of_the_wrong_number_sum_or_sign() -> None:
    rows = list(clean_rows()[:10])
    rows[0] = replace(rows[0], probabilities=(0.5, 0.5))
    rows[1] = replace(rows[1], probabilities=None)
    rows[2] = replace(rows[2], probabilities=(0.12,) * 10)
    rows[3] = replace(rows[3], probabilities=(1.1, -0.1, *[0.0] * 8))
    said = _faults(rows)
    assert "2 of 10 rows do not have 10 probabilities (most of them have 2)." in said
    assert "The probabilities of 1 of 10 rows do not sum to 1 (one sums to 1.2)." in said
    assert "1 of 10 rows have a negative probability." in said
    assert "p:0 is missing" not in said
    assert int(to_frame(rows, LABELS, COMPONENTS)["p:0"].isna().sum()) == 2


def test_an_embedding_of_another_length_is_one_sentence() -> None:
    rows = [replace(row, embedding=(0.1, 0.2)) for row in clean_rows()[:10]]
    assert _faults(rows) == "10 of 10 rows have no embedding of 8 components."


def test_labels_that_the_model_does_not_know() -> None:
    rows = list(clean_rows()[:10])
    rows[0] = replace(rows[0], label="cat")
    rows[1] = replace(rows[1], label=None)
    assert _faults(rows) == "2 of 10 rows have a label that the model does not know: 'cat' (1), '(none)' (1)."
    assert to_frame(rows, LABELS, COMPONENTS)["label"][1] == "(none)"


def test_one_image_again_and_again() -> None:
    rows = list(clean_rows()[:10])
    half = [replace(row, image_sha256=rows[index % 5].image_sha256) for index, row in enumerate(rows)]
    assert _faults(half) == ""  # five images twice: not more than half repeat
    same = [replace(row, image_sha256="f" * 64) for row in rows]
    assert _faults(same).startswith("9 of 10 images repeat another of the window byte for byte")


def test_times_without_a_zone() -> None:
    rows = [replace(row, time=row.time.replace(tzinfo=None)) for row in clean_rows()[:3]]
    assert _faults(rows) == "3 of 3 rows have a time without a zone; they are read as UTC."


def test_more_classes_than_are_tested_one_by_one() -> None:
    labels = [f"c{index:02}" for index in range(60)]
    rows = [replace(row, probabilities=tuple(np.full(60, 1 / 60)), label="c00") for row in clean_rows()[:3]]
    frame = to_frame(rows, labels, COMPONENTS)
    assert "p:c00" not in frame
    assert faults(rows, labels, COMPONENTS) == ()
