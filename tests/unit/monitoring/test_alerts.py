"""Alerts: one whole line each, sent once, tried again once, and never an exception."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from monitoring import alerts
from monitoring.alerts import alert
from visionloop.records import Decision

DECISION = Decision("retrain", "Estimated accuracy 80 %.", "3-7", "harm")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class _Receiver(ThreadingHTTPServer):
    """A webhook that answers with the given codes in turn and keeps what it got."""

    def __init__(self, codes: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes = codes
        self.got: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, _Receiver)
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.codes.pop(0))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        return


@pytest.fixture
def receiver() -> Iterator[_Receiver]:
    server = _Receiver([200])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "RETRY_AFTER_SECONDS", 0.0)


def test_a_decision_is_one_json_line(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "alerts.jsonl"
    assert alert(DECISION, log, now=NOW)
    assert alert(DECISION, log, now=NOW)
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0]) == {
        "time": "2026-03-01T12:00:00+00:00", "action": "retrain", "reason": "Estimated accuracy 80 %.", "window_id": "3-7",
        "level": "harm",
    }  # fmt: skip


def test_wait_is_not_told(tmp_path: Path) -> None:
    assert alert(Decision("wait", "", "3-1", "none"), tmp_path / "log", webhook="http://127.0.0.1:1/")
    assert not (tmp_path / "log").exists()


def test_the_webhook_gets_the_decision_and_a_text(tmp_path: Path, receiver: _Receiver) -> None:
    assert alert(DECISION, tmp_path / "log", webhook=receiver.url)
    assert len(receiver.got) == 1
    assert receiver.got[0]["text"] == "3-7: retrain. Estimated accuracy 80 %."
    assert receiver.got[0]["action"] == "retrain"


def test_a_failure_is_tried_once_more(tmp_path: Path, receiver: _Receiver) -> None:
    receiver.codes[:] = [500, 200]
    assert alert(DECISION, tmp_path / "log", webhook=receiver.url)
    assert len(receiver.got) == 2


def test_a_lasting_failure_is_logged_and_does_not_raise(
    tmp_path: Path, receiver: _Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.codes[:] = [500, 500]
    assert not alert(DECISION, tmp_path / "log", webhook=f"{receiver.url}?token=secret")
    assert len(receiver.got) == 2
    assert "could not be sent" in caplog.text
    assert "secret" not in caplog.text
    assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize("webhook", ["http://127.0.0.1:9/", "file:///etc/passwd", "no address", "http://["])
def test_an_unreachable_or_strange_address_does_not_raise(tmp_path: Path, webhook: str) -> None:
    assert not alert(DECISION, tmp_path / "log", webhook=webhook)
    assert (tmp_path / "log").exists()


def test_a_log_that_cannot_be_written_does_not_raise_and_the_webhook_is_still_told(
    tmp_path: Path, receiver: _Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert not alert(DECISION, tmp_path / "file" / "log", webhook=receiver.url)
    assert "could not be written" in caplog.text
    assert len(receiver.got) == 1
