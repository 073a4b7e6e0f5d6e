"""The newest window of predictions, judged, drawn and kept: what `visionloop monitor`, the hourly flow and `make run` share.

Serving and monitoring do not know each other; here rows go from the store to the judge, and the decision back.
Does not cover: acting on a decision (`flows.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.repository import champion_folder
from serving.store import Store
from visionloop.card import load_card
from visionloop.config import MonitorParams
from visionloop.paths import DRIFT_REPORTS, EVIDENTLY_WORKSPACE, LOGS, MODEL_REPOSITORY, REFERENCE
from visionloop.records import Decision, DriftResult, LoggedPrediction
from visionloop.tables import read_rows

WEBHOOK_VARIABLE = "VISIONLOOP_ALERT_WEBHOOK"


@dataclass(frozen=True, slots=True)
class Watched:
    """A judged window. `page` and `result` are None where there was nothing to test."""

    decision: Decision
    result: DriftResult | None
    page: Path | None
    new: bool  # False when this window was judged before, or nothing is to be kept of it


def watch(
    store: Store,
    params: MonitorParams,
    *,
    folder: Path = DRIFT_REPORTS,
    workspace: Path = EVIDENTLY_WORKSPACE,
    alerts: Path = LOGS / "alerts.jsonl",
    partial: bool = False,
) -> Watched:
    """Judge the newest closed window (with `partial` the open one, if it can be judged), draw it and keep the decision.

    A closed window is written to the store once, together with its decision; judging it again changes nothing. A decision
    that is no "wait" is told once: a line in `alerts`, and a POST to the address in VISIONLOOP_ALERT_WEBHOOK if it is set.

    Raises:
        ArtifactError: no model was deployed, or there is no reference.
        MonitoringError: the reference belongs to another model.
        ServingError: the store refuses.
    """
    from monitoring.alerts import alert
    from monitoring.dashboard import read_history, write_report
    from monitoring.watch import judge
    from monitoring.workspace import clean_up

    champion = champion_folder(MODEL_REPOSITORY)
    labels = load_card(champion).labels
    reference = read_rows(REFERENCE, LoggedPrediction)
    components = len(next((row.embedding for row in reference if row.embedding), ()))
    rows = store.recent_predictions(limit=_enough(params))
    history = read_history(folder)
    judgement = judge(
        reference,
        rows,
        labels,
        components,
        params,
        history,
        model_version=champion.name,
        earlier=_earlier(store, rows, champion.name, reference),
        partial=partial,
    )
    window, result, decision = judgement
    if window is None or result is None:
        return Watched(decision, None, None, False)
    closed = window.state == "closed"
    last = window.answered[-1].prediction_id if window.answered else window.rejected[-1].prediction_id
    page: Path | None = folder / f"{window.window.window_id}.html"
    if not any(
        past.window == window.window for past in history
    ):  # drawing takes seconds, and a closed window stays as it is
        page = write_report(
            reference, window, result, decision, labels=labels, components=components, folder=folder, workspace=workspace
        ).page
    # The row in the store is the durable one; what acts on a decision reads it there. An open window leaves a row only
    # where something is to be done.
    new = store.write_window(window.window, last) if closed else _is_news(store, decision)
    if new:
        store.write_decision(decision)
        alert(decision, alerts, webhook=os.environ.get(WEBHOOK_VARIABLE))
    clean_up(folder, workspace, params.keep_days)
    return Watched(decision, result, page if page and page.exists() else None, new)


def _is_news(store: Store, decision: Decision) -> bool:
    return decision.action != "wait" and decision not in store.decisions(limit=20)


def _enough(params: MonitorParams) -> int:
    """Rows that hold the newest closed window and the open one after it, with room for refused images between."""
    return 4 * params.window_rows


def _earlier(store: Store, rows: Sequence[LoggedPrediction], version: str, reference: Sequence[LoggedPrediction]) -> int:
    """Answered rows of the model before the first of `rows`, so that windows keep their index however few are read."""
    model = next((row.model_sha256 for row in reference), "")
    first = next(
        (row for row in rows if row.status == "ok" and row.model_version == version and row.model_sha256 == model), None
    )
    return store.answered_before(first) if first else 0
