"""Evidently's page and snapshot of a judged window, made from our own tests: same signals, same thresholds, same verdicts.

Evidently chooses other tests by default, whose thresholds carry no error rate (on 200 rows without drift they flag at least
one of 8 columns in 88 % of windows); so every method and threshold is given. A window leaves `<folder>/<window id>.json`
(result and decision), `<folder>/<window id>.html` and one snapshot in the workspace. Importing this module does not import
evidently, which takes several seconds; `write_report` does.

Does not cover: the workspace as such (`workspace.py`), running the UI (`pipeline`) and keeping decisions in the store.
"""

from __future__ import annotations

import html
import importlib
import json
import logging
import math
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from monitoring.drift import chisquare
from monitoring.frame import LATENCY, to_frame
from monitoring.window import WindowRows
from monitoring.workspace import PROJECT_ID, disable_telemetry, prepare_workspace_if_missing, rename_into
from visionloop.features import CLASS_SIGNAL, signal_groups
from visionloop.files import write_json, write_text
from visionloop.records import Decision, DriftResult, LoggedPrediction, Window

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

LOG = logging.getLogger(__name__)

CHISQUARE = "visionloop_chisquare"
# From 1 on, because the counter of Evidently's dashboard shows a 0 as "no value".
LEVELS: Mapping[str, float] = {"insufficient": 1, "none": 1, "health": 2, "drift": 3, "harm": 4}
STRONGEST_SHOWN = 20.0  # of -log10 p; a gross shift has hundreds and would flatten the rest of the curve


@dataclass(frozen=True, slots=True)
class Judged:
    """The content of a window's JSON file."""

    result: DriftResult
    decision: Decision


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """What was written of a window. `page` and `snapshot` are None where there was nothing to test."""

    result: Path
    page: Path | None
    snapshot: Path | None


def write_report(
    reference_rows: Sequence[LoggedPrediction],
    window: WindowRows,
    result: DriftResult,
    decision: Decision,
    *,
    labels: Sequence[str],
    components: int,
    folder: Path,
    workspace: Path,
) -> ReportPaths:
    """Write a judged window's result, page and snapshot, each whole or not at all; a second time replaces the first.

    >>> paths = write_report(reference_rows, window, result, decision, labels=labels, components=8,
    ...                      folder=DRIFT_REPORTS, workspace=EVIDENTLY_WORKSPACE)
    """
    name = _file_name(window.window.window_id)
    page = snapshot_path = None
    if result.signals:
        reference = to_frame([row for row in reference_rows if row.status == "ok"], labels, components)
        current = to_frame(window.answered, labels, components)
        snapshot, numbers = build_snapshot(reference, current, result, decision, labels=labels, components=components)
        page = folder / f"{name}.html"
        write_text(page, _page(snapshot, result, decision))
        snapshot_path = _add_snapshot(workspace, result.window, snapshot, numbers)
    path = folder / f"{name}.json"
    write_json(path, TypeAdapter(Judged).dump_python(Judged(result, decision), mode="json"))
    return ReportPaths(path, page, snapshot_path)


def read_history(folder: Path) -> tuple[DriftResult, ...]:
    """The results that `write_report` left, oldest first. A file that cannot be read is left out, with a warning."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(TypeAdapter(Judged).validate_json(path.read_bytes()).result)
        except (OSError, ValidationError) as error:
            LOG.warning("%s is no drift result and is left out; delete it (%s).", path, str(error).split("\n")[0])
    return tuple(sorted(found, key=lambda result: result.window.end))


def build_snapshot(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    result: DriftResult,
    decision: Decision,
    *,
    labels: Sequence[str],
    components: int,
) -> tuple[Snapshot, Snapshot]:
    """Run Evidently on two frames of `to_frame`: the report that people read, and the numbers that only the dashboard draws.

    A column without any value on one side is left out, because Evidently fails on it; `health` names it.
    """
    import_evidently()
    from evidently import Dataset, Report
    from evidently.metrics import MeanValue, RowCount, UniqueValueCount
    from evidently.presets import DataDriftPreset
    from evidently.tests import gte

    _register_chisquare()
    signals = [
        name
        for name in signal_groups(labels, components)
        if name == CLASS_SIGNAL or (reference[name].notna().any() and current[name].notna().any())
    ]
    latency = current[LATENCY].dropna()
    smallest = min(signal.p_value for signal in result.signals)
    values = {
        "level": LEVELS[decision.level],
        "estimated_accuracy": None if result.estimated_accuracy is None else 100 * result.estimated_accuracy,
        "reference_accuracy": None if result.reference_accuracy is None else 100 * result.reference_accuracy,
        "latency_p99_ms": float(latency.quantile(0.99)) if len(latency) else None,
        "strongest_signal": min(-math.log10(max(smallest, 1e-300)), STRONGEST_SHOWN),
        "alarm_line": -math.log10(result.threshold),
        "rejected_share": result.window.rejected / max(result.window.rows + result.window.rejected, 1),
    }
    verdict = {name: float(value) for name, value in values.items() if value is not None}
    report = Report(
        [
            DataDriftPreset(
                columns=signals,
                num_method="ks",
                cat_method=CHISQUARE,
                num_threshold=result.threshold,
                cat_threshold=result.threshold,
                drift_share=0.5 / len(signals),  # the window counts as drifted when any signal is
            ),
            RowCount(tests=[gte(1)]),  # Evidently's own test compares with the reference's number of rows
            *([MeanValue(column="confidence", tests=[])] if "confidence" in signals else []),
            UniqueValueCount(column=CLASS_SIGNAL, tests=[]),
        ],
        include_tests=True,
    )
    numbers = Report([MeanValue(column=name) for name in verdict])
    definition = _definition([name for name in signals if name != CLASS_SIGNAL], [CLASS_SIGNAL])
    constants = pd.DataFrame({name: [value] for name, value in verdict.items()})
    when: Mapping[str, Any] = {
        "timestamp": result.window.end,
        "metadata": {
            "window_id": result.window.window_id,
            "model_version": result.window.model_version,
            "action": decision.action,
            "level": decision.level,
            "reason": decision.reason,
        },
        "tags": [decision.action, decision.level],
        "name": f"window {result.window.window_id}: {decision.action}",
    }
    with warnings.catch_warnings():
        # numpy warns while Evidently draws the density of a constant column, such as the saturation of gray images.
        warnings.simplefilter("ignore")
        return (
            report.run(
                Dataset.from_pandas(current[signals], data_definition=definition),
                Dataset.from_pandas(reference[signals], data_definition=definition),
                **when,
            ),
            numbers.run(Dataset.from_pandas(constants, data_definition=_definition(list(verdict), [])), None, **when),
        )


def import_evidently() -> None:
    """Import evidently with its telemetry off; its use of numpy's old names warns, which is no fault of the caller."""
    disable_telemetry()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("evidently.presets")
        importlib.import_module("evidently.metrics")


def evidently_verdicts(snapshot: Snapshot) -> dict[str, bool]:
    """Which signals drifted according to Evidently's own tests in a snapshot of `build_snapshot`."""
    tests = snapshot.dict()["tests"]
    return {
        test["metric_config"]["params"]["column"]: test["status"].value == "FAIL"
        for test in tests
        if test["metric_config"]["params"]["type"].endswith(":ValueDrift")
    }


def _register_chisquare() -> None:
    """Teach Evidently our test of the class mix, so that its page shows the p-value that decided."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def run(reference: pd.Series, current: pd.Series, feature_type: object, threshold: float) -> tuple[float, bool]:
        p_value = chisquare(reference, current)[1]
        return p_value, p_value < threshold

    name = "chi-square of two samples, rare classes merged, p_value"
    register_stattest(StatTest(CHISQUARE, name, [ColumnType.Categorical]), default_impl=run)


def _definition(numbers: list[str], categories: list[str]) -> Any:
    from evidently import DataDefinition

    # All kinds are given, else Evidently guesses the rest from the values.
    return DataDefinition(
        numerical_columns=numbers, categorical_columns=categories, text_columns=[], datetime_columns=[], unknown_columns=[],
        list_columns=[],
    )  # fmt: skip


def _add_snapshot(workspace: Path, window: Window, snapshot: Snapshot, numbers: Snapshot) -> Path:
    """Write a snapshot so that the running UI sees it, and never half of it. The same window gives the same file."""
    from evidently.legacy.utils import NumpyEncoder

    prepare_workspace_if_missing(workspace)
    model = snapshot.to_snapshot_model().dict()
    model["metric_results"] = {**model["metric_results"], **numbers.to_snapshot_model().dict()["metric_results"]}
    for metric in model["metric_results"].values():
        metric["widget"] = []  # the page draws `widgets`; the copy per metric doubles the file
    snapshot_id = uuid.uuid5(PROJECT_ID, f"{window.window_id} {window.start.isoformat()}")
    target = workspace / str(PROJECT_ID) / "snapshots" / f"{snapshot_id}.json"
    rename_into(workspace, target, json.dumps(model, cls=NumpyEncoder))
    return target


def _page(snapshot: Snapshot, result: DriftResult, decision: Decision) -> str:
    """Evidently's page with the decision above it."""
    colour = {"wait": "#2e7d32", "alert": "#e68a00", "retrain": "#c62828"}[decision.action]
    window = result.window
    drifted = [signal for signal in result.signals if signal.drifted]
    rows = "".join(
        f"<tr><td>{html.escape(signal.signal)}</td><td>{signal.group}</td><td>{signal.test}</td>"
        f"<td>{signal.statistic:.3g}</td><td>{signal.p_value:.2g}</td></tr>"
        for signal in sorted(drifted, key=lambda signal: signal.p_value)
    )
    table = (
        "<table cellpadding='4'><tr align='left'><th>drifted signal</th><th>group</th><th>test</th><th>statistic</th>"
        f"<th>p</th></tr>{rows}</table>"
        if drifted
        else ""
    )
    head = (
        "<div style='font-family:sans-serif;max-width:1100px;margin:24px auto;padding:16px 24px;background:#fafafa;"
        f"border-left:8px solid {colour}'><h1 style='margin:0'>Window {html.escape(window.window_id)}: "
        f"{decision.action}</h1>"
        f"<p>{html.escape(decision.reason)}</p>"
        f"<p>Model version {html.escape(window.model_version)}, {window.rows} answered and {window.rejected} refused "
        f"images, {window.start:%Y-%m-%d %H:%M:%S} to {window.end:%Y-%m-%d %H:%M:%S} UTC. A signal drifts at p &lt; "
        f"{result.threshold:.2g}.</p>{table}</div>"
    )
    text = str(snapshot.get_html_str(as_iframe=False))
    return re.sub(r"<body[^>]*>", lambda match: match.group(0) + head, text, count=1)


def _file_name(window_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", window_id)
