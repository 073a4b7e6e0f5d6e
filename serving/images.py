"""Answered images, kept for labelling: their encoded bytes, each in a file that is named by its SHA-256.

`ImageKeeper.keep` puts an image into a bounded queue and returns; a thread writes it to `<folder>/<two digits>/<sha256>`,
under a temporary name first, so that a file of the final name is whole. Nothing here may fail or stall a prediction: where
the disk is full or the queue is, the image is dropped and counted. The folder stays below its bound: the oldest images go,
except those that were labelled and not pulled yet, as the store says.

Does not cover: labelling itself (`pipeline.feedback`), and a power cut, after which a file may be empty; a reader checks the
hash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.store import Store
from visionloop.errors import ServingError
from visionloop.files import sha256_bytes

MAX_WAITING_BYTES = 64 << 20  # images that wait for the disk; further ones are dropped
FREE_BYTES = 256 << 20  # left free on the disk for the journal of predictions, whose own bound this is
BLOCK_BYTES = 4096  # a file takes whole blocks of the disk, so a thousand tiny images are 4 MB
SECONDS_BETWEEN_ROUNDS = 0.1  # an image waits this long in memory; a death of the process in between loses it
PRUNED_SHARE = 0.9  # pruning goes down to this share of the bound, so that it is rare
SECONDS_BETWEEN_PRUNINGS = 10.0  # where pruning could not make room
DRAIN_SECONDS = 2.0  # at the end; below the server's own exit timeout
STALE_SECONDS = 60.0  # a temporary file this old is of a dead process
_HEX_DIGITS = 64

_log = logging.getLogger(__name__)


def image_path(folder: Path, sha256: str) -> Path:
    """Where the image of this hash lies, if it is kept."""
    return folder / sha256[:2] / sha256


def read_image(folder: Path, sha256: str) -> bytes | None:
    """The bytes of a kept image; None where there is no file, or one that does not hold these bytes."""
    try:
        data = image_path(folder, sha256).read_bytes()
    except OSError:
        return None
    return data if sha256_bytes(data) == sha256 else None


def count_images(folder: Path) -> int:
    """How many images are kept."""
    return sum(1 for _ in _files(folder))


class ImageKeeper:
    """Keeps images of one server process in `folder`, which several processes may share.

    `share` of all images are kept, chosen by their content, so that the same image is kept each time or never.

    >>> keeper = ImageKeeper(Path("var/images"), "sqlite:///var/store.db", share=1.0, max_megabytes=1000)
    >>> keeper.keep(row.image_sha256, data)
    >>> keeper.close()
    >>> keeper.counts()
    {'kept': 1, 'known': 0, 'dropped': 0, 'removed': 0}
    """

    def __init__(self, folder: Path, store_url: str, *, share: float, max_megabytes: float) -> None:
        self._folder = folder
        self._store_url = store_url
        self._share = share
        self._max_bytes = int(max_megabytes * 1e6)
        self._tag = secrets.token_hex(4)  # of temporary files; containers that share a folder share process ids
        self._lock = threading.Condition()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._stopping = False
        self._counts: Counter[str] = Counter()
        self._used_bytes: int | None = None  # of the disk, as the thread knows it; None before it looked
        self._next_pruning = self._next_look = 0.0  # time.monotonic()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)
        self._thread.start()

    def keep(self, sha256: str, data: bytes) -> None:
        """Have an image written soon, if it belongs to the share. Never waits for the disk, never raises for it."""
        if int(sha256[:8], 16) >= self._share * 2**32:
            return
        with self._lock:
            if self._waiting_bytes + len(data) > MAX_WAITING_BYTES:
                self._drop("the disk is slower than the images come")
                return
            self._waiting.append((sha256, data))
            self._waiting_bytes += len(data)

    def counts(self) -> dict[str, int]:
        """Images of this process so far: kept, known (kept before), dropped (for want of room or time), removed (pruned)."""
        with self._lock:
            return {name: self._counts[name] for name in ("kept", "known", "dropped", "removed")}

    def close(self) -> None:
        """Write what waits, for up to two seconds; what is left then is dropped."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self._thread.join(DRAIN_SECONDS)
        with self._lock:
            while self._waiting:
                self._waiting.popleft()
                self._drop("the server ends")

    def _drop(self, reason: str) -> None:
        self._counts["dropped"] += 1
        if reason not in self._said:
            self._said.add(reason)
            _log.warning("An answered image was not kept for labelling (%s).", reason)

    def _run(self) -> None:
        while True:
            # Woken by the clock and not by `keep`: a thread that starts to work in the moment in which an answer is about to
            # leave makes that answer wait.
            with self._lock:
                self._lock.wait_for(lambda: self._stopping, SECONDS_BETWEEN_ROUNDS)
                if self._stopping and not self._waiting:
                    return
            while item := self._next():
                sha256, data = item
                try:
                    outcome, reason = self._write(sha256, data), ""
                except (OSError, ServingError) as error:
                    outcome, reason = "dropped", (isinstance(error, OSError) and error.strerror) or str(error)
                with self._lock:
                    self._waiting_bytes -= len(data)
                    if outcome == "dropped":
                        self._drop(reason)
                    else:
                        self._counts[outcome] += 1

    def _next(self) -> tuple[str, bytes] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _write(self, sha256: str, data: bytes) -> str:
        """Write an image; "kept", or "known" where it was there. Raises OSError or ServingError where it has no place."""
        path = image_path(self._folder, sha256)
        tmp = path.with_name(f".{sha256}.{self._tag}.tmp")
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data):
                os.utime(path)  # seen again: it counts as new when the oldest are removed
                return "known"
        needed = _on_disk(len(data))
        used = self._make_room(needed)
        self._look_at_the_disk()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            handle = os.open(tmp, flags, 0o640)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(tmp, flags, 0o640)
        try:
            try:
                if os.write(handle, data) != len(data):
                    raise OSError("the disk is full")
            finally:
                os.close(handle)
            tmp.rename(path)
        except OSError:
            tmp.unlink(missing_ok=True)
            raise
        self._used_bytes = used + needed
        return "kept"

    def _look_at_the_disk(self) -> None:
        """Raise OSError where the disk is nearly full; asks it once a second, in which no disk takes FREE_BYTES."""
        now = time.monotonic()
        if now >= self._next_look:
            self._folder.mkdir(parents=True, exist_ok=True)
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < FREE_BYTES:
                raise OSError(f"under {FREE_BYTES >> 20} MiB of disk are free")
            self._next_look = now + 1

    def _make_room(self, needed: int) -> int:
        """Bytes in use once `needed` more fit below the bound. Raises OSError where they never do."""
        used = self._used_bytes
        if used is None:
            used = sum(found.disk_bytes for found in _kept(self._folder))
        if used + needed > self._max_bytes and needed <= self._max_bytes and time.monotonic() >= self._next_pruning:
            used, removed = prune(self._folder, self._store_url, int(self._max_bytes * PRUNED_SHARE) - needed)
            with self._lock:
                self._counts["removed"] += removed
        self._used_bytes = used
        if used + needed > self._max_bytes:
            self._next_pruning = time.monotonic() + SECONDS_BETWEEN_PRUNINGS
            raise OSError(
                f"serve.keep_images_megabytes is {self._max_bytes / 1e6:g}, and what is kept was labelled and waits for "
                "`visionloop feedback pull`, or is too large"
            )
        return used


@dataclass(frozen=True, slots=True)
class _Kept:
    path: str
    sha256: str
    seen_ns: int  # when it was last answered
    disk_bytes: int


def prune(folder: Path, store_url: str, goal_bytes: int) -> tuple[int, int]:
    """Remove the oldest images until at most `goal_bytes` of disk are used; return the bytes then in use and how many went.

    Images that were labelled and not pulled yet stay, whatever they take.

    Raises:
        ServingError: the store does not say which these are; nothing was removed.
    """
    with Store(store_url) as store:
        store.create()
        wanted = store.unpulled_images()
    found = sorted(_kept(folder), key=lambda kept: kept.seen_ns)
    used = sum(kept.disk_bytes for kept in found)
    removed = 0
    for kept in found:
        if used <= goal_bytes:
            break
        if kept.sha256 not in wanted:
            Path(kept.path).unlink(missing_ok=True)
            used -= kept.disk_bytes
            removed += 1
    return used, removed


def _kept(folder: Path) -> Iterator[_Kept]:
    """Every kept image. Removes what a process that died left half written."""
    for entry in _files(folder, unfinished=True):
        try:
            stat = entry.stat(follow_symlinks=False)
            if entry.name.startswith("."):
                if time.time() - stat.st_mtime > STALE_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
                continue
        except FileNotFoundError:  # another process removed it
            continue
        yield _Kept(entry.path, entry.name, stat.st_mtime_ns, _on_disk(stat.st_size))


def _files(folder: Path, *, unfinished: bool = False) -> Iterator[os.DirEntry[str]]:
    for number in range(256):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / f"{number:02x}") as entries:
            for entry in entries:
                if len(entry.name) == _HEX_DIGITS or (unfinished and entry.name.startswith(".")):
                    yield entry


def _on_disk(size: int) -> int:
    return -(-max(size, 1) // BLOCK_BYTES) * BLOCK_BYTES
