"""Windows: closed ones do not overlap, keep their index, hold one version, and count the refused images in their span."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.window import is_closed_id, newest_window, open_window
from tests.drift_world import PARAMS, START, clean_rows, world
from visionloop.errors import MonitoringError
from visionloop.records import LoggedPrediction

SMALL = PARAMS.model_copy(update={"window_rows": 10, "min_rows": 4})


def _rows(count: int, version: str = "3", first: int = 0) -> list[LoggedPrediction]:
    base = clean_rows()[0]
    return [
        replace(base, prediction_id=f"{version}.{index}", model_version=version, time=START + timedelta(minutes=index))
        for index in range(first, first + count)
    ]


def _rejected(name: str, minute: int = 0) -> LoggedPrediction:
    return replace(world().rejected(1)[0], prediction_id=name, time=START + timedelta(minutes=minute))


def _ids(rows: tuple[LoggedPrediction, ...]) -> list[str]:
    return [row.prediction_id for row in rows]


def test_the_newest_closed_window_is_the_last_full_ten() -> None:
    window = newest_window(_rows(27), SMALL)
    assert window is not None
    assert (window.state, window.window.window_id, window.window.rows) == ("closed", "3-2", 10)
    assert _ids(window.answered) == [f"3.{index}" for index in range(10, 20)]
    assert (window.window.start, window.window.end) == (START + timedelta(minutes=10), START + timedelta(minutes=19))


def test_the_same_rows_and_more_give_the_same_closed_window() -> None:
    assert newest_window(_rows(20), SMALL) == newest_window(_rows(29), SMALL)


def test_a_window_that_is_not_full_is_insufficient_unless_asked_for() -> None:
    waiting = newest_window(_rows(7), SMALL)
    assert waiting is not None
    assert (waiting.state, waiting.window.window_id) == ("insufficient", "3-1-7")
    asked = newest_window(_rows(7), SMALL, partial=True)
    assert asked is not None
    assert (asked.state, asked.window.window_id, asked.window.rows) == ("partial", "3-1-7", 7)


def test_asking_early_with_too_few_rows_gives_the_closed_window_or_an_insufficient_one() -> None:
    few = newest_window(_rows(3), SMALL, partial=True)
    assert few is not None
    assert few.state == "insufficient"
    closed = newest_window(_rows(13), SMALL, partial=True)
    assert closed is not None
    assert (closed.state, closed.window.window_id) == ("closed", "3-1")
    later = newest_window(_rows(14), SMALL, partial=True)
    assert later is not None
    assert (later.state, later.window.window_id) == ("partial", "3-2-4")


def test_no_rows_make_no_window() -> None:
    assert newest_window([], SMALL) is None
    assert open_window([], SMALL, model_version="3") is None


def test_versions_are_not_mixed() -> None:
    mixed = [row for pair in zip(_rows(15, "3"), _rows(15, "4"), strict=True) for row in pair]
    window = newest_window(mixed, SMALL)
    assert window is not None
    assert {row.model_version for row in window.answered} == {"4"}
    older = newest_window(mixed, SMALL, model_version="3")
    assert older is not None
    assert older.window.window_id == "3-1"
    assert _ids(older.answered) == [f"3.{index}" for index in range(10)]


def test_repeated_ids_count_once() -> None:
    window = newest_window([row for row in _rows(12) for _ in range(3)], SMALL)
    assert window is not None
    assert _ids(window.answered) == [f"3.{index}" for index in range(10)]


def test_refused_images_belong_to_the_window_that_closes_after_them() -> None:
    rows = _rows(24)
    rows.insert(20, _rejected("r3"))  # after the 20th answer: the third, open window
    rows.insert(15, _rejected("r2", minute=99))
    rows.insert(5, _rejected("r1"))
    window = newest_window(rows, SMALL)
    assert window is not None
    assert (window.window.window_id, _ids(window.rejected), window.window.rejected) == ("3-2", ["r2"], 1)
    assert window.window.end == START + timedelta(minutes=99)
    tail = open_window(rows, SMALL, model_version="3")
    assert tail is not None
    assert (tail.window.window_id, tail.state, _ids(tail.rejected)) == ("3-3-4", "insufficient", ["r3"])


def test_only_refused_images_make_a_window_without_answers() -> None:
    window = newest_window([_rejected("a"), _rejected("b")], SMALL)
    assert window is not None
    assert (window.state, window.window.window_id, window.window.rows, window.window.rejected) == (
        "insufficient",
        "3-1-0",
        0,
        2,
    )


def test_a_long_history_need_not_be_passed_whole() -> None:
    whole = newest_window(_rows(95), SMALL)
    end = newest_window(_rows(25, first=70), SMALL, earlier=70)
    assert whole == end
    uneven = newest_window(_rows(22, first=73), SMALL, earlier=73)
    assert uneven == whole
    with pytest.raises(MonitoringError, match="Window 3-9 has 7 of its 10 rows at hand; read at least the newest 20"):
        newest_window(_rows(12, first=83), SMALL, earlier=83)


def test_refused_images_that_crowd_out_the_answers_are_judged_with_what_is_at_hand() -> None:
    refused = [_rejected(f"r{index}") for index in range(30)]
    window = newest_window([*_rows(3, first=83), *refused, *_rows(5, first=86)], SMALL, earlier=83)
    assert window is not None
    assert (window.state, window.window.window_id, window.window.rejected) == ("insufficient", "3-9-7", 30)


def test_times_without_a_zone_and_a_clock_set_back_do_not_matter_to_the_order() -> None:
    rows = [replace(row, time=datetime(2026, 3, 1, 12, 59 - index)) for index, row in enumerate(_rows(10))]
    window = newest_window([*rows, *_rows(1, first=50)], SMALL)
    assert window is not None
    assert _ids(window.answered) == [f"3.{index}" for index in range(10)]
    assert (window.window.start, window.window.end) == (
        datetime(2026, 3, 1, 12, 50, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 59, tzinfo=UTC),
    )


def test_only_closed_ids_count_as_closed() -> None:
    assert is_closed_id("3-17", "3")
    assert not is_closed_id("3-17-212", "3")
    assert not is_closed_id("4-17", "3")
