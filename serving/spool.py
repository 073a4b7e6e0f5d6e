"""The journal between the model server and the prediction store: an answered prediction is on file before its answer leaves.

`Spool.append` writes lines with one `os.write` on an O_APPEND descriptor, so the rows outlive the death of the process by
whatever signal. A thread closes the current segment about once a second, moves closed segments into the store and removes
them; the store takes a `prediction_id` once, so moving a segment twice is harmless. Segments that a dead process left are
moved by the next one (a living writer holds a lock on its own). Nothing here may fail or stall a prediction: where the
disk is full or the folder read-only, the row is counted as lost and the answer leaves all the same.

Does not cover a power cut: lines are not flushed to the disk one by one (that would cost 0.3 ms each).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import operator
import os
import threading
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import uuid6

from serving.store import Store
from visionloop.errors import ServingError
from visionloop.records import LoggedPrediction

SECONDS_BETWEEN_MOVES = 1.0  # a monitor sees a prediction after about this long
SECONDS_BETWEEN_RETRIES = 10.0  # while the store refuses
MAX_BYTES = 256 << 20  # about 200,000 rows may wait for a store that is down; further rows are lost, and counted
DRAIN_SECONDS = 2.0  # at the end; below the server's own exit timeout
_BATCH_ROWS = 2000
_SUFFIX = ".jsonl"
_TIME = "time"
_FIELDS = tuple(field.name for field in fields(LoggedPrediction))
_values = operator.attrgetter(*_FIELDS)
_TUPLES = tuple(field.name for field in fields(LoggedPrediction) if str(field.type).startswith("tuple"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replay:
    """What moving segments into the store did."""

    rows: int  # new in the store
    torn: int  # lines that a dying process did not finish; they were never acknowledged


def to_line(row: LoggedPrediction) -> bytes:
    """One row as one line of JSON."""
    values = dict(zip(_FIELDS, _values(row), strict=True))  # a fifth of what `asdict` takes, which copies every value
    values[_TIME] = row.time.isoformat()
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> LoggedPrediction:
    """The row of a line. Raises ValueError, KeyError or TypeError where the line is torn."""
    values = json.loads(line)
    values[_TIME] = datetime.fromisoformat(values[_TIME])
    for name in _TUPLES:
        if values[name] is not None:
            values[name] = tuple(values[name])
    return LoggedPrediction(**values)


class Spool:
    """One process's journal in `folder`, which several processes may share.

    >>> spool = Spool(Path("var/spool"), "sqlite:///var/store.db")
    >>> spool.append(row)
    True
    >>> spool.close()
    """

    def __init__(self, folder: Path, store_url: str, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._store_url = store_url
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._segment: _Segment | None = None
        self._waiting_bytes = 0  # in closed segments, as last seen by the thread
        self._lost = 0
        self._lost_noted = 0
        self._loss_reason = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Predictions of this process that were answered but could not be logged."""
        return self._lost

    def append(self, *rows: LoggedPrediction) -> bool:
        """Put rows on file with one write; False when they were lost (and counted).

        Never raises for a fault of disk or store.
        """
        try:
            lines = b"".join(map(to_line, rows))
            with self._lock:
                segment = self._segment or self._open()
                if self._waiting_bytes + segment.size + len(lines) > self._max_bytes:
                    raise OSError(f"the journal has reached its limit of {self._max_bytes >> 20} MiB")
                segment.append(lines)
        except (OSError, ValueError) as error:
            if self._lost == 0:
                _log.warning("A prediction was answered but not logged (%s).", _reason(error))
            self._lost += len(rows)
            self._loss_reason = _reason(error)
            return False
        return True

    def close(self) -> None:
        """Move what is on file into the store, for up to two seconds; the rest waits for the next process."""
        self._stop.set()
        self._thread.join(DRAIN_SECONDS)
        with self._lock:
            if self._segment is not None:
                self._segment.close()
                self._segment = None

    def _open(self) -> _Segment:
        self._segment = _Segment(self._folder)
        return self._segment

    def _run(self) -> None:
        wait = SECONDS_BETWEEN_MOVES
        store: Store | None = None
        refused = ""
        while True:
            last = self._stop.wait(wait)
            self._rotate()
            try:
                if store is None:
                    store = Store(self._store_url)
                    store.create()
                replay(self._folder, store)
                self._note_losses(store)
                wait, refused = SECONDS_BETWEEN_MOVES, ""
            except (ServingError, OSError) as error:
                if str(error) != refused:
                    _log.warning("Predictions wait in %s: %s", self._folder, error)
                wait, refused = SECONDS_BETWEEN_RETRIES, str(error)
                if store is not None:
                    store.close()
                    store = None
            self._waiting_bytes = _waiting_bytes(self._folder)
            if last:
                break
        if store is not None:
            store.close()

    def _rotate(self) -> None:
        with self._lock:
            segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    def _note_losses(self, store: Store) -> None:
        lost = self._lost
        if lost > self._lost_noted:
            store.write_losses(lost - self._lost_noted, self._loss_reason, datetime.now(UTC))
            self._lost_noted = lost


class _Segment:
    """A file that this process appends to, and holds locked while it does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.size = 0
        while True:
            path = folder / f"{uuid6.uuid7()}{_SUFFIX}"
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._handle).st_nlink == 1:
                    return
            except BlockingIOError as error:
                _log.debug("Another process took %s between its making and its locking (%s).", path, error)
            os.close(self._handle)  # it was taken for a dead process's segment; make another

    def append(self, lines: bytes) -> None:
        written = os.write(self._handle, lines)
        if written != len(lines):
            # The disk filled up in the middle: take the beginning back, so that the next line starts a line.
            os.ftruncate(self._handle, self.size)
            raise OSError("the disk is full")
        self.size += written

    def close(self) -> None:
        os.close(self._handle)


def replay(folder: Path, store: Store) -> Replay:
    """Move every segment that no living process writes into the store, oldest first, and remove it.

    Raises:
        ServingError: the store refuses; the segments stay.
    """
    rows = torn = 0
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # another process may have moved it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            batch: list[LoggedPrediction] = []
            for line in file:
                try:
                    batch.append(from_line(line))
                except (ValueError, KeyError, TypeError):
                    torn += 1
                if len(batch) == _BATCH_ROWS:
                    rows += store.write_predictions(batch)
                    batch = []
            if batch:
                rows += store.write_predictions(batch)
            path.unlink()
    if torn:
        _log.warning("%d unfinished lines in %s were left out; their predictions were never answered.", torn, folder)
    return Replay(rows, torn)


def _waiting_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
