"""Tell people of a decision: one line in a log file, a webhook where one is named; never a reason to fail.

Does not cover: who is on call, repeats and silences; the receiver of the webhook does that.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from dataclasses import asdict
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

from visionloop.records import Decision

LOG = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 1.0


def alert(
    decision: Decision, log: Path, *, webhook: str | None = None, timeout_seconds: float = 5.0, now: datetime | None = None
) -> bool:
    """Tell of an alert or retrain decision; a "wait" is not told. Returns whether all that was asked for was done.

    The log gets one JSON line (time, action, level, window_id, reason) by one write, so lines of several processes do not
    mix. The webhook gets the same object by POST, with `text` beside it for chat services; a failure is tried once more.

    >>> alert(decision, LOGS / "alerts.jsonl", webhook="http://127.0.0.1:9000/hook")
    True
    """
    if decision.action == "wait":
        return True
    content = {"time": (now or datetime.now(UTC)).isoformat(), **asdict(decision)}
    logged = _append(log, content)
    sent = webhook is None or _post(webhook, content, timeout_seconds)
    return logged and sent


def _append(log: Path, content: dict[str, str]) -> bool:
    line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        LOG.error("The alert could not be written to %s (%s): %s", log, error.strerror, content["reason"])
        return False
    if written != len(line):
        LOG.error("The alert was cut off in %s, is the disk full? It was: %s", log, content["reason"])
        return False
    return True


def _post(webhook: str, content: dict[str, str], timeout_seconds: float) -> bool:
    if not webhook.startswith(("http://", "https://")):
        LOG.error("The webhook %r is no http:// or https:// address; the alert was only logged.", webhook)
        return False
    body = json.dumps({**content, "text": f"{content['window_id']}: {content['action']}. {content['reason']}"}).encode()
    fault = ""
    for attempt in range(2):
        if attempt:
            time.sleep(RETRY_AFTER_SECONDS)
        try:
            request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
            with urllib.request.urlopen(request, timeout=timeout_seconds):  # noqa: S310
                return True
        except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
            fault = str(error)
    LOG.error("The alert could not be sent to %s (%s); it stands in the log.", webhook.partition("?")[0], fault)
    return False
