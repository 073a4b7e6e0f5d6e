"""The workspace: made once, mended before the UI starts, cleaned by age. Without evidently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from monitoring.dashboard import Judged, read_history
from monitoring.workspace import PROJECT_ID, clean_up, prepare_workspace, quarantine, rename_into, ui_command, ui_environment
from tests.drift_world import START
from visionloop.files import write_json
from visionloop.records import Decision, DriftResult, SignalDrift, Window

DAY = 86_400
SNAPSHOT = {
    "report": {}, "timestamp": "", "metadata": {}, "tags": [], "metric_results": {}, "top_level_metrics": [], "widgets": [],
}  # fmt: skip


def _snapshot(workspace: Path, number: int, text: str | None = None) -> Path:
    path = workspace / str(PROJECT_ID) / "snapshots" / f"00000000-0000-0000-0000-{number:012}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(SNAPSHOT) if text is None else text)
    return path


def test_prepare_makes_one_project_and_changes_nothing_the_second_time(tmp_path: Path) -> None:
    workspace = tmp_path / "evidently"
    assert prepare_workspace(workspace) == []
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in workspace.rglob("*.json")}
    assert sorted(path.name for path in files) == ["dashboard.json", "metadata.json"]
    assert prepare_workspace(workspace) == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in workspace.rglob("*.json")} == files


def test_two_that_put_the_same_file_aside_do_not_quarrel(tmp_path: Path) -> None:
    workspace = tmp_path / "evidently"
    prepare_workspace(workspace)
    for number in range(50):
        _snapshot(workspace, number, "{")
    moved: list[Path] = []
    threads = [threading.Thread(target=lambda: moved.extend(quarantine(workspace))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moved) == len(set(moved)) == 50
    assert not list((workspace / str(PROJECT_ID) / "snapshots").iterdir())


@pytest.mark.parametrize("text", ["", "{", '{"report": {', "[]", '{"report": {}}', "\x00\x00", "[" * 100_000])
def test_a_broken_snapshot_is_put_aside_and_the_others_stay(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = tmp_path / "evidently"
    prepare_workspace(workspace)
    good, bad = _snapshot(workspace, 1), _snapshot(workspace, 2, text)
    moved = quarantine(workspace)
    assert len(moved) == 1
    assert moved[0].parent == tmp_path / "evidently.quarantine"
    assert moved[0].read_text() == text
    assert good.exists()
    assert not bad.exists()
    assert "was broken" in caplog.text
    assert quarantine(workspace) == []


def test_a_broken_project_file_is_put_aside_and_made_anew(tmp_path: Path) -> None:
    workspace = tmp_path / "evidently"
    prepare_workspace(workspace)
    metadata = workspace / str(PROJECT_ID) / "metadata.json"
    whole = metadata.read_text()
    metadata.write_text(whole[:20])
    assert len(prepare_workspace(workspace)) == 1
    assert metadata.read_text() == whole


def test_a_workspace_that_is_not_there_has_nothing_to_put_aside(tmp_path: Path) -> None:
    assert quarantine(tmp_path / "none") == []


def test_many_writers_at_once_leave_whole_files_and_no_leftovers(tmp_path: Path) -> None:
    workspace = tmp_path / "evidently"
    target = workspace / str(PROJECT_ID) / "snapshots" / f"{PROJECT_ID}.json"
    texts = [json.dumps({**SNAPSHOT, "writer": number, "fill": "x" * 200_000}) for number in range(8)]

    def write(text: str) -> None:
        prepare_workspace(workspace)
        rename_into(workspace, target, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in texts
    assert list(tmp_path.glob(".*")) == []
    assert sorted(path.name for path in (workspace / str(PROJECT_ID)).glob("*.json")) == ["dashboard.json", "metadata.json"]


def _judged(index: int, action: str = "wait") -> dict[str, object]:
    start = START + timedelta(hours=index)
    window = Window(f"3-{index}", "3", start, start + timedelta(minutes=59), 500, 2)
    signal = SignalDrift("p:0", "ks", 0.1, 0.5, False, "probability")
    result = DriftResult(window, 1e-5, (signal,), 0.9, 0.95, ("A fault.",), (0.88, 0.92))
    from pydantic import TypeAdapter

    decision = Decision(action, "why", window.window_id, "none")  # type: ignore[arg-type]
    plain: dict[str, object] = TypeAdapter(Judged).dump_python(Judged(result, decision), mode="json")
    return plain


def test_history_is_read_back_in_order_of_time_and_a_broken_file_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in (10, 9, 11):
        write_json(tmp_path / f"3-{index}.json", _judged(index))
    (tmp_path / "3-12.json").write_text('{"result": ')
    (tmp_path / "3-13.json").write_text('{"result": 1}')
    history = read_history(tmp_path)
    assert [past.window.window_id for past in history] == ["3-9", "3-10", "3-11"]
    assert history[0].window.start == START + timedelta(hours=9)
    assert history[0].estimated_interval == (0.88, 0.92)
    assert history[0].signals[0].p_value == 0.5
    assert caplog.text.count("is no drift result and is left out; delete it") == 2
    assert read_history(tmp_path / "none") == ()


def test_clean_up_goes_by_age_and_takes_quiet_pages_after_a_week(tmp_path: Path) -> None:
    folder, workspace = tmp_path / "drift", tmp_path / "evidently"
    prepare_workspace(workspace)
    now = 1_800_000_000.0
    ages = {"3-1": 91, "3-2": 89, "3-3": 8, "3-4": 6}
    kept_or_gone: dict[str, Path] = {}
    for name, days in ages.items():
        for kind, action in (("quiet", "wait"), ("loud", "alert")):
            result, page = folder / f"{name}-{kind}.json", folder / f"{name}-{kind}.html"
            write_json(result, _judged(1, action))
            page.write_text("page")
            for path in (result, page):
                os.utime(path, (now - days * DAY,) * 2)
                kept_or_gone[path.name] = path
    old, young = _snapshot(workspace, 1), _snapshot(workspace, 2)
    os.utime(old, (now - 91 * DAY,) * 2)
    os.utime(young, (now - 89 * DAY,) * 2)
    leftover = tmp_path / ".dead.evtmp"
    leftover.touch()
    os.utime(leftover, (now - 2 * DAY,) * 2)
    for path in (workspace / str(PROJECT_ID)).glob("*.json"):
        os.utime(path, (now - 1000 * DAY,) * 2)  # the project itself never goes

    gone = clean_up(folder, workspace, 90, now)

    expected = {"3-1-quiet.json", "3-1-quiet.html", "3-1-loud.json", "3-1-loud.html", "3-2-quiet.html", "3-3-quiet.html"}
    assert {path.name for path in gone} == expected | {old.name, leftover.name}
    assert {name for name, path in kept_or_gone.items() if not path.exists()} == expected
    assert young.exists()
    assert len(list((workspace / str(PROJECT_ID)).glob("*.json"))) == 2
    assert clean_up(folder, workspace, 90, now) == []


def test_the_ui_stays_on_loopback_without_telemetry_and_with_a_secret(tmp_path: Path) -> None:
    command = ui_command(tmp_path, 8085)
    assert command[1:4] == ["-m", "evidently.cli", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "8085"
    assert "s3cret" not in " ".join(command)  # a command line can be read by every user of the machine
    assert ui_environment("s3cret") == {"DO_NOT_TRACK": "1", "EVIDENTLY_SECRET": "s3cret"}


def test_importing_monitoring_imports_no_evidently_and_the_workspace_no_pandas() -> None:
    script = (
        "import sys, monitoring.workspace, monitoring.alerts; assert 'pandas' not in sys.modules;"
        "import monitoring.dashboard, monitoring.watch, monitoring.simulator;"
        "assert not {'evidently', 'torch', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
