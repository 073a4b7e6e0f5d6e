"""The folder that Evidently's UI shows: project, dashboard, snapshots; whole or absent, and mended before the UI starts.

Evidently writes snapshots in place, and one half-written file makes each page of its UI answer 500. Here files are written
beside the workspace and renamed into it (the UI watches the workspace and sees one event, of a whole file), and what is
broken all the same is put aside. Needs neither evidently nor pandas, so a supervisor that starts the UI stays small.

Does not cover: making snapshots (`dashboard.py`) and running the UI (`pipeline`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from visionloop.features import CLASS_SIGNAL
from visionloop.files import sync_folder

LOG = logging.getLogger(__name__)

PROJECT = "visionloop"
PROJECT_ID = uuid.uuid5(uuid.NAMESPACE_URL, "visionloop/monitoring")  # fixed, so two writers cannot make two projects
# A page carries 3.7 MB of scripts, so pages of windows without a finding go after a week; their numbers stay.
QUIET_PAGE_DAYS = 7
SECONDS_A_DAY = 86_400
_SNAPSHOT_KEYS = {"report", "timestamp", "metadata", "tags", "metric_results", "top_level_metrics", "widgets"}
_UUID_FILE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.json")


def disable_telemetry() -> None:
    """Switch off Evidently's reports to its makers, for this process and its children; before evidently is imported."""
    os.environ["DO_NOT_TRACK"] = "1"


def ui_command(workspace: Path, port: int) -> list[str]:
    """The command line of Evidently's UI on loopback; run it in `ui_environment`, after `prepare_workspace`."""
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workspace", str(workspace)]
    return [sys.executable, "-m", "evidently.cli", "ui", *arguments]


def ui_environment(secret: str) -> dict[str, str]:
    """What the UI's environment needs beside the usual: no telemetry, and a secret for writes.

    Without a secret anyone who reaches the port can delete the project, a web page in the user's browser included.
    """
    return {"DO_NOT_TRACK": "1", "EVIDENTLY_SECRET": secret}


def project_page(port: int) -> str:
    """Address of the dashboard."""
    return f"http://127.0.0.1:{port}/projects/{PROJECT_ID}"


def prepare_workspace(workspace: Path) -> list[Path]:
    """Put broken files aside, and make the project and its dashboard where they lack or differ; before the UI starts.

    Returns what `quarantine` moved. Safe to call from several processes at once, and while the UI runs.
    """
    moved = quarantine(workspace) if workspace.exists() else []
    project = workspace / str(PROJECT_ID)
    (project / "snapshots").mkdir(parents=True, exist_ok=True)
    described = {
        "id": str(PROJECT_ID),
        "name": PROJECT,
        "description": "Each point is a window of predictions, tested against held-out images.",
        "created_at": "2026-01-01T00:00:00",
    }
    for name, content in (("dashboard.json", _dashboard()), ("metadata.json", described)):
        text = json.dumps(content, indent=1)
        path = project / name
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            rename_into(workspace, path, text)
    return moved


def quarantine(workspace: Path) -> list[Path]:
    """Move snapshots and project files that Evidently could not read to `<workspace>.quarantine`; say so in the log.

    Returns where they lie now. One such file would make each page of the UI answer 500.
    """
    moved = []
    for path in sorted(workspace.glob("*/*.json")) + sorted(workspace.glob("*/snapshots/*.json")):
        needed = _SNAPSHOT_KEYS if path.parent.name == "snapshots" else set()
        fault = _fault(path, needed)
        if fault is None:
            continue
        target = workspace.with_name(f"{workspace.name}.quarantine") / f"{int(time.time())}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.replace(target)
        except FileNotFoundError:  # another process puts it aside too
            continue
        LOG.warning("%s was broken (%s) and is now %s; judge the window again to draw it anew.", path, fault, target)
        moved.append(target)
    return moved


def clean_up(folder: Path, workspace: Path, keep_days: int, now: float | None = None) -> list[Path]:
    """Remove results, pages and snapshots older than `keep_days`, pages without a finding after a week, and leftovers of a
    writer that was killed. Age is the time since the file was written; `now` is in seconds since 1970. Returns what went.
    """
    now = time.time() if now is None else now
    ages = dict.fromkeys([*folder.glob("*.json"), *folder.glob("*.html")], keep_days)
    ages.update({path: keep_days for path in workspace.glob("*/snapshots/*.json") if _UUID_FILE.fullmatch(path.name)})
    for path in folder.glob("*.html"):
        if path.with_suffix(".json").exists() and _is_quiet(path.with_suffix(".json")):
            ages[path] = min(QUIET_PAGE_DAYS, keep_days)
    ages.update(dict.fromkeys(workspace.parent.glob(".*.evtmp"), 1))
    gone = []
    for path, days in ages.items():
        try:
            if now - path.stat().st_mtime > days * SECONDS_A_DAY:
                path.unlink()
                gone.append(path)
        except FileNotFoundError:  # another monitor cleans up too
            continue
    return sorted(gone)


def prepare_workspace_if_missing(workspace: Path) -> None:
    """Make the project unless it is there, without looking at its snapshots."""
    if not (workspace / str(PROJECT_ID) / "metadata.json").exists():
        prepare_workspace(workspace)


def rename_into(workspace: Path, target: Path, text: str) -> None:
    """Write beside the workspace (same disk, not watched by the UI), flush, and rename into it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = workspace.resolve().parent / f".{uuid.uuid4()}.evtmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fault(path: Path, needed: set[str]) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(content, dict):
        return "not a JSON object"
    lacking = needed - set(content)
    return f"without {', '.join(sorted(lacking))}" if lacking else None


def _is_quiet(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["decision"]["action"] == "wait")
    except (OSError, ValueError, KeyError, TypeError):  # then its page is kept the longer time
        return False


def _dashboard() -> dict[str, Any]:
    """The dashboard as Evidently keeps it in `dashboard.json`; a test reads it with Evidently's own model."""
    level = "1 none, 2 health, 3 drift, 4 harm"
    panels = [
        _panel("Level of the newest window", "counter", [_series("MeanValue", level, column="level")], size="half"),
        _panel("Estimated accuracy, newest window, %", "counter",
               [_series("MeanValue", "without labels, by ATC", column="estimated_accuracy")], size="half"),
        _panel(f"Level: {level}", "line", [_series("MeanValue", "level", column="level")], size="half"),
        _panel("Share of drifted signals", "line",
               [_series("DriftedColumnsCount", "share", value_type="share")], size="half"),
        _panel("Accuracy, %", "line",
               [_series("MeanValue", "estimated", column="estimated_accuracy"),
                _series("MeanValue", "reference", column="reference_accuracy")], size="half"),
        _panel("Mean confidence", "line", [_series("MeanValue", "confidence", column="confidence")], size="half"),
        _panel("Strongest signal, -log10 p (drawn up to 20)", "line",
               [_series("MeanValue", "smallest p", column="strongest_signal"),
                _series("MeanValue", "alarm above", column="alarm_line")], size="half"),
        _panel("Latency, 99th percentile, ms", "line", [_series("MeanValue", "p99", column="latency_p99_ms")], size="half"),
        _panel("p-value of each signal", "line", [_series("ValueDrift", "{{column}}")]),
        _panel("Share of refused images", "line", [_series("MeanValue", "refused", column="rejected_share")]),
        _panel("Predicted classes", "bar",
               [_series("UniqueValueCount", "{{label}}", column=CLASS_SIGNAL, value_type="share")], stacked=True),
    ]  # fmt: skip
    tab = {"id": str(uuid.uuid5(PROJECT_ID, "tab")), "title": "Live", "panels": [panel["id"] for panel in panels]}
    return {"tabs": [tab], "panels": panels}


def _series(metric: str, legend: str, **labels: str) -> dict[str, Any]:
    return {
        "legend": legend, "tags": [], "metadata": {}, "metric": f"evidently:metric_v2:{metric}", "metric_labels": labels,
        "view_params": {},
    }  # fmt: skip


def _panel(
    title: str, kind: str, values: list[dict[str, Any]], *, size: str = "full", stacked: bool = False
) -> dict[str, Any]:
    plot: dict[str, Any] = {"plot_type": kind}
    if kind == "counter":
        plot["aggregation"] = "last"
    if kind == "bar":
        plot["is_stacked"] = stacked
    return {
        "id": str(uuid.uuid5(PROJECT_ID, title)), "title": title, "subtitle": None, "size": size, "values": values,
        "plot_params": plot,
    }  # fmt: skip
