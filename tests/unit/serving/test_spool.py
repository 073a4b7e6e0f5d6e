"""The journal: what was appended reaches the store once, whatever dies or fills up in between."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving import spool as spool_module
from serving.spool import Replay, Spool, from_line, replay, to_line
from serving.store import Store
from tests.helpers_serving import answered_row, rejected_row


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def _ids(url: str) -> list[str]:
    with Store(url) as store:
        return [row.prediction_id for row in store.recent_predictions()]


def test_a_line_says_the_whole_row() -> None:
    for row in (answered_row("a", label="grün\n<script>"), rejected_row("b", "truncated")):
        line = to_line(row)
        assert line.count(b"\n") == 1
        assert from_line(line) == row


def test_a_line_of_before_calibration_is_still_read() -> None:
    """As a journal holds it whose server was updated while rows waited."""
    values = json.loads(to_line(answered_row("a")))
    for name in ("unknown_score", "unknown", "review"):
        del values[name]
    assert from_line(json.dumps(values).encode()) == answered_row("a")


def test_closing_moves_all_rows_into_the_store_and_leaves_no_file(tmp_path: Path, url: str) -> None:
    spool = Spool(tmp_path / "spool", url)
    assert all(spool.append(answered_row(str(index))) for index in range(5))
    spool.close()
    assert _ids(url) == ["0", "1", "2", "3", "4"]
    assert list((tmp_path / "spool").iterdir()) == []


def test_rows_reach_the_store_while_the_writer_lives(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SECONDS_BETWEEN_MOVES", 0.05)
    spool = Spool(tmp_path / "spool", url)
    spool.append(answered_row("a"))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (
        (tmp_path / "store.db").exists() and not list((tmp_path / "spool").iterdir())
    ):
        time.sleep(0.02)
    assert _ids(url) == ["a"]
    spool.close()


_WRITER = """
import sys, itertools
from pathlib import Path
from serving import spool as module
from tests.helpers_serving import answered_row
module.SECONDS_BETWEEN_MOVES = 0.05
spool = module.Spool(Path(sys.argv[1]), sys.argv[2])
for index in itertools.count():
    if spool.append(answered_row(f"{sys.argv[3]}-{index}")):
        print(index, flush=True)  # acknowledged
"""


def test_an_acknowledged_row_outlives_kill_9(tmp_path: Path, database_url: str) -> None:
    acknowledged: list[str] = []
    for run in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "spool"), database_url, str(run)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1 + 0.1 * run)
        process.send_signal(signal.SIGKILL)
        # A line that the kill cut in two was not acknowledged whole.
        said = [0, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n"))]
        process.stdout.close()
        process.wait()
        acknowledged += [f"{run}-{index}" for index in said]
    with Store(database_url) as store:
        store.create()
        replay(tmp_path / "spool", store)
        found = {row.prediction_id for row in store.recent_predictions(limit=10_000_000)}
    assert len(acknowledged) > 100
    assert set(acknowledged) <= found
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_torn_line_is_left_out_and_counted(tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    whole, torn = to_line(answered_row("a")), to_line(answered_row("b"))[:100]
    (folder / "1.jsonl").write_bytes(whole + torn)
    (folder / "2.jsonl").write_bytes(torn + b"\n" + to_line(answered_row("c")) + b"[]\n{}\n\xff\n")
    with Store(url) as store:
        store.create()
        assert replay(folder, store) == Replay(rows=2, torn=5)
        assert replay(folder, store) == Replay(rows=0, torn=0)
    assert _ids(url) == ["a", "c"]
    assert "5 unfinished lines" in caplog.text


def test_moving_a_segment_again_adds_nothing(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    with Store(url) as store:
        store.create()
        for _ in range(2):  # the second time as after a death between commit and removal
            (folder / "1.jsonl").write_bytes(to_line(answered_row("a")) + to_line(answered_row("b")))
            replay(folder, store)
    assert _ids(url) == ["a", "b"]


def test_a_segment_that_a_living_process_writes_is_left_alone(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "1.jsonl").write_bytes(to_line(answered_row("a")))
    with (folder / "1.jsonl").open("ab") as living, Store(url) as store:
        store.create()
        fcntl.flock(living, fcntl.LOCK_EX)
        assert replay(folder, store) == Replay(0, 0)
    assert (folder / "1.jsonl").exists()


def test_a_store_that_is_down_only_delays(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SECONDS_BETWEEN_MOVES", 0.02)
    monkeypatch.setattr(spool_module, "SECONDS_BETWEEN_RETRIES", 0.02)
    (tmp_path / "store.db").mkdir()  # SQLite cannot open a folder
    spool = Spool(tmp_path / "spool", url)
    assert spool.append(answered_row("a"))
    time.sleep(0.2)
    (tmp_path / "store.db").rmdir()
    assert spool.append(answered_row("b"))
    spool.close()
    assert _ids(url) == ["a", "b"]


def test_a_full_journal_loses_rows_but_says_how_many(tmp_path: Path, url: str) -> None:
    line = len(to_line(answered_row("0")))
    spool = Spool(tmp_path / "spool", url, max_bytes=3 * line)
    assert [spool.append(answered_row(str(index))) for index in range(5)] == [True, True, True, False, False]
    assert spool.lost == 2
    spool.close()
    assert _ids(url) == ["0", "1", "2"]
    with Store(url) as store:
        assert store.counts()["lost"] == 2


def test_a_folder_that_cannot_be_made_loses_the_row_and_raises_nothing(tmp_path: Path, url: str) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    spool = Spool(tmp_path / "spool", url)
    assert spool.append(answered_row("a")) is False
    assert spool.lost == 1
    spool.close()


_FULL_DISK = """
import resource, sys
from pathlib import Path
from serving import spool as module
from tests.helpers_serving import answered_row
size = len(module.to_line(answered_row("0")))
spool = module.Spool(Path(sys.argv[1]), "sqlite:///" + sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 + size // 2, resource.RLIM_INFINITY))
print([spool.append(answered_row(str(index))) for index in range(4)], spool.lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(spool.append(answered_row("4")))
spool.close()
"""


def test_a_disk_that_fills_up_in_a_line_costs_that_line_only(tmp_path: Path, url: str) -> None:
    # A file-size limit cuts a write short exactly as a full disk does.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    result = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "spool"), str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert result.stdout.splitlines() == ["[True, True, False, False] 2", "True"]
    assert _ids(url) == ["0", "1", "4"]
