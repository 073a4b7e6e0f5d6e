"""Which rows are judged: windows of one model version, one after the other, without overlap.

Rows are taken in the order given, which is the order in which the store wrote them; times are not trusted for it, because a
clock can be set back. Windows that do not overlap are independent, so the false-alarm rate of one is that of all
(`reference/drift.md` 1.4 of the project's notes). Does not cover: reading the store (`pipeline` passes rows in).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from visionloop.config import MonitorParams
from visionloop.errors import MonitoringError
from visionloop.records import LoggedPrediction, Window

State = Literal["closed", "partial", "insufficient"]


@dataclass(frozen=True, slots=True)
class WindowRows:
    """A window and its rows.

    `state` is "closed" (window_rows answered rows), "partial" (at least min_rows, asked for before the window closed) or
    "insufficient" (not judged).
    """

    window: Window
    answered: tuple[LoggedPrediction, ...]
    rejected: tuple[LoggedPrediction, ...]
    state: State


def newest_window(
    rows: Iterable[LoggedPrediction],
    params: MonitorParams,
    *,
    model_version: str | None = None,
    earlier: int = 0,
    partial: bool = False,
) -> WindowRows | None:
    """The newest closed window of one model version; with `partial`, the open one that follows it if that can be judged.

    A repeated prediction id counts once. Refused images have no version of their own to trust: those that stand between the
    window before and this one's last row are counted. Without `model_version` the version of the last answered row is
    taken. `earlier` is the number of answered rows of that version that the store holds before the first given one, so that
    a caller may pass only the end of a long history and windows keep their index.

    Returns None where there is not one row to speak of. A window that is not closed has the id "<version>-<index>-<rows>",
    so that judging it does not take the closed one's place.

    >>> newest_window(rows, params).window.window_id
    '3-17'

    Raises:
        MonitoringError: `earlier` leaves the newest closed window without its first rows.
    """
    distinct = _distinct(rows)
    if model_version is None:
        model_version = next((row.model_version for row in reversed(distinct) if row.status == "ok"), None)
    if model_version is None:
        model_version = distinct[-1].model_version if distinct else ""
    spans = _spans(distinct, model_version, params.window_rows, earlier)
    if not spans:
        return None
    *older, last = spans
    if last.state == "closed":
        return _whole(last, params)
    if partial and len(last.answered) >= params.min_rows:
        return replace(last, state="partial")
    return _whole(older[-1], params) if older else last


def open_window(
    rows: Iterable[LoggedPrediction], params: MonitorParams, *, model_version: str, earlier: int = 0
) -> WindowRows | None:
    """The rows after the newest closed window, as an "insufficient" window; None where there are none."""
    spans = _spans(_distinct(rows), model_version, params.window_rows, earlier)
    return spans[-1] if spans and spans[-1].state != "closed" else None


def utc(time: datetime) -> datetime:
    """A time with a zone; one without is read as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def is_closed_id(window_id: str, model_version: str) -> bool:
    """Whether an id names a closed window of a version, and not an open one that was judged early."""
    return window_id.removeprefix(f"{model_version}-").isdigit()


def mostly_refused(window: WindowRows, params: MonitorParams) -> bool:
    """Whether at least `min_rows` images came and more of them than `max_reject_share` were refused."""
    total = window.window.rows + window.window.rejected
    return total >= params.min_rows and window.window.rejected > params.max_reject_share * total


def _whole(closed: WindowRows, params: MonitorParams) -> WindowRows:
    if len(closed.answered) == params.window_rows:
        return closed
    if mostly_refused(closed, params):  # refused images fill what was read of the store; that alone is worth an alert
        window_id = f"{closed.window.window_id}-{len(closed.answered)}"
        return replace(closed, window=replace(closed.window, window_id=window_id), state="insufficient")
    raise MonitoringError(
        f"Window {closed.window.window_id} has {len(closed.answered)} of its {params.window_rows} rows at hand; read "
        f"at least the newest {2 * params.window_rows} answered rows of "
        f"version {closed.window.model_version} from the store."
    )


def _distinct(rows: Iterable[LoggedPrediction]) -> list[LoggedPrediction]:
    return list({row.prediction_id: row for row in rows}.values())


def _spans(rows: Sequence[LoggedPrediction], version: str, size: int, earlier: int) -> list[WindowRows]:
    """All windows of a version in order; the last may be open, the first may lack rows that were not passed."""
    spans: list[WindowRows] = []
    answered: list[LoggedPrediction] = []
    rejected: list[LoggedPrediction] = []
    position = earlier
    for row in rows:
        if row.status != "ok":
            rejected.append(row)
        elif row.model_version == version:
            answered.append(row)
            position += 1
            if position % size == 0:
                spans.append(_close(version, position // size, answered, rejected, "closed"))
                answered, rejected = [], []
    if answered or rejected:
        spans.append(_close(version, position // size + 1, answered, rejected, "insufficient"))
    return spans


def _close(
    version: str, index: int, answered: Sequence[LoggedPrediction], rejected: Sequence[LoggedPrediction], state: State
) -> WindowRows:
    times = [utc(row.time) for row in (*answered, *rejected)]
    window_id = f"{version}-{index}" if state == "closed" else f"{version}-{index}-{len(answered)}"
    window = Window(window_id, version, min(times), max(times), len(answered), len(rejected))
    return WindowRows(window, tuple(answered), tuple(rejected), state)
