"""The real Evidently: its verdicts are ours, its page says the decision, its UI shows each window despite broken files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring.dashboard import (
    ReportPaths,
    build_snapshot,
    evidently_verdicts,
    import_evidently,
    read_history,
    write_report,
)
from monitoring.frame import to_frame
from monitoring.watch import Judgement, judge
from monitoring.workspace import PROJECT_ID, prepare_workspace, project_page, ui_command, ui_environment
from serving.server import free_port
from tests.drift_world import COMPONENTS, LABELS, PARAMS, START, clean_rows, halves, pick, shifted_rows, traffic
from visionloop.records import LoggedPrediction

REFERENCE_INDICES, LIVE = halves(2)
REFERENCE = pick(clean_rows(), REFERENCE_INDICES)


def _live(shift: str, severity: int = 3, window: int = 0) -> list[LoggedPrediction]:
    rows = clean_rows() if shift == "none" else shifted_rows(shift, severity)
    sent = traffic(pick(rows, LIVE[:500]), START + timedelta(hours=window))
    return [replace(row, prediction_id=f"{window}-{index}") for index, row in enumerate(sent)]


def _judge(rows: list[LoggedPrediction]) -> Judgement:
    return judge(REFERENCE, rows, LABELS, COMPONENTS, PARAMS)


def _write(rows: list[LoggedPrediction], root: Path) -> tuple[Judgement, ReportPaths]:
    judged = _judge(rows)
    assert judged.window is not None
    assert judged.result is not None
    paths = write_report(
        REFERENCE, judged.window, judged.result, judged.decision,
        labels=LABELS, components=COMPONENTS, folder=root / "drift", workspace=root / "evidently",
    )  # fmt: skip
    return judged, paths


def _one_class_missing() -> list[LoggedPrediction]:
    return [replace(row, label="0" if row.label == "1" else row.label) for row in _live("none")]


@pytest.mark.parametrize(
    ("shift", "least", "most"), [("none", 0, 0), ("gaussian_blur", 1, 10), ("fog", 15, 26), ("class missing", 1, 1)]
)
def test_evidently_finds_the_same_signals_drifted_as_we_do(shift: str, least: int, most: int) -> None:
    rows = _one_class_missing() if shift == "class missing" else _live(shift)
    judged = _judge(rows)
    result = judged.result
    assert result is not None
    frames = to_frame(REFERENCE, LABELS, COMPONENTS), to_frame(rows, LABELS, COMPONENTS)
    snapshot, _ = build_snapshot(*frames, result, judged.decision, labels=LABELS, components=COMPONENTS)
    ours = {signal.signal: signal.drifted for signal in result.signals}
    assert evidently_verdicts(snapshot) == ours
    assert least <= sum(ours.values()) <= most
    metrics = snapshot.dict()["metrics"]
    assert metrics[0]["value"]["count"] == sum(ours.values())
    scores = {
        metric["config"]["column"]: metric["value"] for metric in metrics if metric["config"]["type"].endswith(":ValueDrift")
    }
    assert scores == pytest.approx({signal.signal: signal.p_value for signal in result.signals})
    failed = [test["name"] for test in snapshot.dict()["tests"] if test["status"].value != "SUCCESS"]
    assert len(failed) == sum(ours.values()) + bool(sum(ours.values()))  # each drifted signal, and the window as a whole


def test_a_window_leaves_a_result_a_page_that_says_the_decision_and_one_snapshot(tmp_path: Path) -> None:
    import_evidently()
    from evidently._pydantic_compat import parse_obj_as
    from evidently.core.serialization import SnapshotModel

    judged, paths = _write(_live("fog"), tmp_path)
    assert judged.decision.action == "retrain"
    assert paths.page is not None
    assert paths.snapshot is not None
    page = paths.page.read_text()
    assert "Window 3-1: retrain" in page
    assert judged.decision.reason.split(" (")[0] in page
    assert "http://" not in page.split("<script")[0]
    assert read_history(tmp_path / "drift") == (judged.result,)
    assert paths.snapshot.stat().st_size < 1_500_000
    model = parse_obj_as(SnapshotModel, json.loads(paths.snapshot.read_text()))
    assert model.tags == ["retrain", "harm"]
    assert model.metadata["reason"] == judged.decision.reason
    _write(_live("fog"), tmp_path)
    assert [path.name for path in paths.snapshot.parent.iterdir()] == [paths.snapshot.name]


def test_evidently_reads_our_dashboard_as_its_own_panels(tmp_path: Path) -> None:
    import_evidently()
    from evidently._pydantic_compat import parse_obj_as
    from evidently.sdk.models import DashboardModel, PanelMetric
    from evidently.sdk.panels import bar_plot_panel, counter_panel, line_plot_panel

    prepare_workspace(tmp_path)
    read = parse_obj_as(DashboardModel, json.loads((tmp_path / str(PROJECT_ID) / "dashboard.json").read_text()))
    assert len(read.tabs) == 1  # the open-source UI refuses more
    assert read.tabs[0].panels == [panel.id for panel in read.panels]
    values = [PanelMetric(metric="MeanValue")]
    made = {
        "counter": counter_panel("", values, aggregation="last").plot_params,
        "line": line_plot_panel("", values).plot_params,
        "bar": bar_plot_panel("", values, stacked=True).plot_params,
    }
    for panel in read.panels:
        assert panel.plot_params == made[panel.plot_params["plot_type"]]
        assert all(value.metric.startswith("evidently:metric_v2:") for value in panel.values)


@pytest.mark.parametrize("signal", ["confidence", "total_ms", "label"])
def test_a_column_without_values_makes_an_alert_and_a_page_all_the_same(signal: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {signal: None if signal in ("label", "total_ms") else math.nan}
    judged, paths = _write([replace(row, **fields) for row in _live("none")], tmp_path)
    assert judged.decision.level == ("none" if signal == "total_ms" else "health")
    assert paths.page is not None
    assert paths.snapshot is not None


def test_a_flood_of_refused_images_leaves_a_result_without_a_page(tmp_path: Path) -> None:
    from tests.drift_world import world

    refused = [replace(row, prediction_id=f"r{index}") for index, row in enumerate(world().rejected(300))]
    judged, paths = _write(refused, tmp_path)
    assert judged.decision.level == "health"
    assert (paths.page, paths.snapshot) == (None, None)
    assert len(read_history(tmp_path / "drift")) == 1


def test_two_monitors_at_once_leave_one_project_and_whole_snapshots(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.e2e.test_evidently import _live, _write, import_evidently\n"
        "rows = _live('none') + _live('fog', window=1); import_evidently(); print('ready', flush=True)\n"
        "_write(rows, Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        while other.poll() is None:
            _write(_live("none"), tmp_path)
    assert other.returncode == 0
    projects = [path.name for path in (tmp_path / "evidently").iterdir()]
    assert projects == [str(PROJECT_ID)]
    snapshots = list((tmp_path / "evidently" / projects[0] / "snapshots").iterdir())
    assert len(snapshots) == 2  # the same window, judged many times, is one snapshot
    assert {tuple(json.loads(path.read_text())["tags"]) for path in snapshots} == {("wait", "none"), ("retrain", "harm")}
    assert list(tmp_path.glob(".*")) == []


class _Ui:
    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own loopback address
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None

    def reports(self) -> list[dict[str, Any]]:
        code, found = self.ask(f"/api/projects/{PROJECT_ID}/reports")
        assert code == 200
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Ui]:
    """The real UI on a workspace with one window and one snapshot that was cut off half way."""
    root = tmp_path_factory.mktemp("ui")
    _, paths = _write(_live("none"), root)
    assert paths.snapshot is not None
    half = paths.snapshot.read_bytes()[: paths.snapshot.stat().st_size // 2]
    paths.snapshot.with_name("00000000-0000-0000-0000-000000000001.json").write_bytes(half)
    assert len(prepare_workspace(root / "evidently")) == 1
    port = free_port(0)
    environment = {**os.environ, **ui_environment("s3cret")}
    with (root / "ui.log").open("w") as log:
        process = subprocess.Popen(ui_command(root / "evidently", port), env=environment, stdout=log, stderr=log, cwd=root)
        try:
            here = _Ui(root, port)
            _wait_until_up(here, process)
            yield here
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_up(ui: _Ui, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, (ui.root / "ui.log").read_text()
        try:
            if ui.ask("/api/version")[0] == 200:
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError((ui.root / "ui.log").read_text())


def test_the_ui_lists_the_window_and_not_the_broken_snapshot(ui: _Ui) -> None:
    assert [(report["name"], report["tags"]) for report in ui.reports()[:1]] == [("window 3-1: wait", ["wait", "none"])]
    with urllib.request.urlopen(project_page(ui.port), timeout=30) as answer:  # noqa: S310 - as above
        assert answer.status == 200


def test_a_new_window_shows_in_the_running_ui_with_its_numbers(ui: _Ui) -> None:
    judged, _ = _write(_live("none") + _live("fog", window=1), ui.root)
    assert judged.result is not None
    deadline = time.monotonic() + 20
    while len(ui.reports()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert {report["name"] for report in ui.reports()} == {"window 3-1: wait", "window 3-2: retrain"}
    dashboard = json.loads((ui.root / "evidently" / str(PROJECT_ID) / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        wanted = [{key: value[key] for key in ("tags", "metadata", "metric", "metric_labels")} for value in panel["values"]]
        code, found = ui.ask(f"/api/v2/snapshots/{PROJECT_ID}/data_series_batch", {"series_filter": wanted})
        assert code == 201, panel["title"]
        assert {series["filter_index"] for series in found["series"]} == set(range(len(wanted))), panel["title"]
        newest = max(range(2), key=lambda index: str(found["sources"][index]["timestamp"]))
        values = [series["values"][newest] for series in found["series"]]
        if panel["title"] == "Accuracy, %":
            assert judged.result.estimated_accuracy is not None
            assert judged.result.reference_accuracy is not None
            assert values == pytest.approx([100 * judged.result.estimated_accuracy, 100 * judged.result.reference_accuracy])
        if panel["title"].startswith("Level:"):
            assert values == [4.0]
        if panel["title"] == "p-value of each signal":
            assert len(values) == 26


def test_nobody_deletes_the_project_without_the_secret(ui: _Ui) -> None:
    code, _ = ui.ask(f"/api/projects/{PROJECT_ID}", method="DELETE")
    assert code == 403
    assert (ui.root / "evidently" / str(PROJECT_ID) / "metadata.json").exists()
