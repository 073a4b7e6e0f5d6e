"""The whole judgement: which window, which version, and what is said when there is little or the wrong thing to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from monitoring.watch import Judgement, judge
from tests.drift_world import COMPONENTS, LABELS, PARAMS, START, clean_rows, halves, pick, traffic, world
from visionloop.errors import MonitoringError
from visionloop.records import DriftResult, LoggedPrediction

REFERENCE, LIVE = halves(0)
# Seeded halves put the digits 500 to a window; two windows of other ids.
WINDOW = traffic(pick(clean_rows(), LIVE[:500]))


def _judge(rows: Sequence[LoggedPrediction], history: Sequence[DriftResult] = (), partial: bool = False) -> Judgement:
    return judge(pick(clean_rows(), REFERENCE), rows, LABELS, COMPONENTS, PARAMS, history, partial=partial)


def _refused(count: int) -> list[LoggedPrediction]:
    return [replace(row, prediction_id=f"r{index}", time=START) for index, row in enumerate(world().rejected(count))]


def test_clean_traffic_waits() -> None:
    window, result, decision = _judge(WINDOW)
    assert window is not None
    assert result is not None
    assert (window.state, decision.action, decision.level, decision.window_id) == ("closed", "wait", "none", "3-1")


def test_no_traffic_says_what_to_do() -> None:
    window, result, decision = _judge([])
    assert (window, result) == (None, None)
    assert (decision.action, decision.level, decision.window_id) == ("wait", "insufficient", "3-0")
    assert "run `visionloop simulate`" in decision.reason


def test_an_open_window_is_insufficient_and_judged_when_asked() -> None:
    window, result, decision = _judge(WINDOW[:300])
    assert window is not None
    assert (window.state, result, decision.level) == ("insufficient", None, "insufficient")
    assert decision.reason.startswith("Window 3-1-300 has 300 answered images; it closes at 500")
    window, result, decision = _judge(WINDOW[:300], partial=True)
    assert result is not None
    assert (decision.window_id, decision.level) == ("3-1-300", "none")


def test_a_flood_of_broken_images_alerts_although_no_window_closes() -> None:
    assert _judge(_refused(250)).decision.level == "health"
    first = _judge(WINDOW)
    assert first.result is not None
    rows = [*WINDOW, *_refused(250)]
    unseen = _judge(rows)
    assert unseen.decision.window_id == "3-1"
    _, result, decision = _judge(rows, [first.result])
    assert result is not None
    assert (decision.action, decision.level, decision.window_id) == ("alert", "health", "3-2-0")
    assert decision.reason.startswith("250 of 250 images were refused (100.0%")


def test_another_model_than_the_references_is_refused_with_both_named() -> None:
    newer = [replace(row, model_sha256="c" * 64, model_version="4", prediction_id=f"n{row.prediction_id}") for row in WINDOW]
    with pytest.raises(
        MonitoringError, match=r"version 4 \(model c{12}\), but the drift reference was scored by model a{12};"
    ):
        _judge([*WINDOW, *newer])


def test_the_newest_champion_chooses_the_version_and_a_canary_does_not() -> None:
    canary = replace(WINDOW[0], model_sha256="c" * 64, model_version="4", route="canary", prediction_id="canary")
    assert _judge([*WINDOW, canary]).decision.window_id == "3-1"


def test_a_version_number_that_came_back_with_another_model_keeps_only_the_new_rows() -> None:
    before = [replace(row, model_sha256="c" * 64, prediction_id=f"old{row.prediction_id}") for row in WINDOW[:300]]
    window = _judge([*before, *WINDOW]).window
    assert window is not None
    assert window.answered == tuple(WINDOW)
