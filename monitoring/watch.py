"""The whole judgement of the newest window in one call: choose the window, test it, decide.

Does not cover: reading the store, keeping decisions, drawing pages (`dashboard.py`) and telling people (`alerts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monitoring.decision import decide
from monitoring.drift import test_window
from monitoring.window import WindowRows, mostly_refused, newest_window, open_window
from visionloop.config import MonitorParams
from visionloop.errors import MonitoringError
from visionloop.records import Decision, DriftResult, LoggedPrediction

ROUTE = "champion"  # whose traffic chooses the version; a canary has few rows


class Judgement(NamedTuple):
    """A window, what the tests say of it (None where it was not judged), and what to do."""

    window: WindowRows | None  # None where there are no rows at all
    result: DriftResult | None  # None where the level is "insufficient"
    decision: Decision


def judge(  # noqa: PLR0917 - in the order in which a caller comes by them
    reference_rows: Sequence[LoggedPrediction],
    rows: Sequence[LoggedPrediction],
    labels: Sequence[str],
    components: int,
    params: MonitorParams,
    history: Sequence[DriftResult] = (),
    *,
    model_version: str | None = None,
    earlier: int = 0,
    partial: bool = False,
) -> Judgement:
    """Judge the newest closed window of one model version, or with `partial` the open one that follows it.

    `rows` stand in the order of the store, answered and refused, of all versions; `history` holds earlier results
    (`dashboard.read_history`). Without `model_version` the version of the newest champion's answer is taken.
    `earlier` as in `newest_window`. When the newest closed window is in `history` already and the rows since then are mostly
    refused images, those are judged instead: a flood of broken images never closes a window.

    >>> window, result, decision = judge(reference_rows, rows, labels, 8, params, history)
    >>> decision.action, decision.reason
    ('wait', 'None of 26 signals differs from the reference (smallest p is 0.012, of e:3; ...')

    Raises:
        MonitoringError: the reference is too small, or was scored by another model than the one that answers.
    """
    model, model_version = _model(reference_rows, rows, model_version)
    rows = [row for row in rows if row.status != "ok" or row.model_version != model_version or row.model_sha256 == model]
    window = newest_window(rows, params, model_version=model_version, earlier=earlier, partial=partial)
    if window is None:
        reason = "No image was answered yet; send some to the endpoint, or run `visionloop simulate`."
        return Judgement(None, None, Decision("wait", reason, f"{model_version}-0", "insufficient"))
    if window.state == "closed" and any(past.window == window.window for past in history):
        flood = open_window(rows, params, model_version=model_version, earlier=earlier)
        if flood is not None and mostly_refused(flood, params):
            window = flood
    result = test_window(reference_rows, window, labels, params, components=components)
    decision = decide(result, history, params)
    return Judgement(window, None if decision.level == "insufficient" else result, decision)


def _model(
    reference_rows: Sequence[LoggedPrediction], rows: Sequence[LoggedPrediction], version: str | None
) -> tuple[str, str]:
    """Hash of the reference's model and the version to judge.

    A version number can come back with another model, when a model repository is made anew, so rows are taken by both.
    """
    model = next((row.model_sha256 for row in reference_rows if row.status == "ok"), "")
    answered = [row for row in rows if row.status == "ok" and row.model_version == (version or row.model_version)]
    newest = next((row for row in reversed(answered) if row.route == ROUTE), None)
    if newest is None:
        return model, version or next((row.model_version for row in reversed((*reference_rows, *rows))), "")
    if newest.model_sha256 != model:
        raise MonitoringError(
            f"The newest answers come from version {newest.model_version} (model {newest.model_sha256[:12]}), but the drift "
            f"reference was scored by model {model[:12]}; run `dvc repro reference` for the deployed model."
        )
    return model, newest.model_version
