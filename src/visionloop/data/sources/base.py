"""What every source is made of: the image it yields, what it passes over, and the options that `collect.options` gives it.

A source is one file of this package with two classes, found by the file's name: `Options`, a `SourceOptions`, and one class
whose name ends in `Source`, made as `Source(root, options)`. See docs/sources.md.

Does not cover: where a source's data lies (its own file does), and what is done with the images (`data/shards.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from visionloop.records import Split

SkipReason = Literal[
    "hidden", "not_an_image", "no_class", "empty_class", "no_label", "outside", "symlink", "special", "unreadable",
    "missing", "vanished", "changed", "too_large",
]  # fmt: skip
# `symlink`, `outside` and `no_label` are choices of the person who laid out the data, and the rest are no images.
_FAULTS: frozenset[SkipReason] = frozenset({"unreadable", "missing", "vanished", "changed", "too_large", "special"})

# No photograph is larger; one file is read into memory whole.
MAX_FILE_BYTES = 256 << 20


class SourceOptions(BaseModel):
    """The options of a source: frozen, strict, unknown keys refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as a source has it."""

    data: bytes  # encoded
    label: str
    path: str  # below the source, with "/" between parts; one image has one path
    time: datetime  # UTC
    split_hint: Split | None
    group: str = ""  # what belongs together beyond this image: a patient, a camera
    labelled_by: str = ""  # who or what gave the label
    time_stated: bool = False  # False for a file's modification time, which copying changes: the first one seen is kept


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that a source passed over."""

    path: str
    reason: SkipReason

    @property
    def is_fault(self) -> bool:
        """Whether it should have been an image and could not be had; `collect.max_skipped_share` limits these."""
        return self.reason in _FAULTS


class Source(Protocol):
    """A named, finite stream of images in an order that does not change; `skipped` is complete once it has been read.

    `len` is how many images are expected; fewer come where some are skipped. A stream that cannot go on raises OSError or a
    VisionloopError: what was collected before it stays, and the next run goes on from there.
    """

    @property
    def name(self) -> str: ...

    @property
    def skipped(self) -> list[Skipped]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[SourceImage]: ...


def read_regular(file: str) -> tuple[bytes, datetime] | SkipReason:
    """The bytes and modification time of a regular file, or why there are none.

    A link, a pipe or a device is not opened, also where it took a file's place after that was listed.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                return "special"
            if before.st_size > MAX_FILE_BYTES:
                return "too_large"
            data = opened.read(MAX_FILE_BYTES + 1)
            after = os.fstat(handle)
    except FileNotFoundError:
        return "vanished"
    except OSError:
        return "unreadable"
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        return "changed"
    return data, utc_time(after.st_mtime_ns)


def utc_time(nanoseconds: int) -> datetime:
    """A file's time in nanoseconds since 1970, to the microsecond; 1970 where a clock was wrong by millennia."""
    try:
        return datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def readable(name: str) -> str:
    """A file name as text that any file can hold; bytes that are no UTF-8 are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shortened(names: list[str]) -> str:
    """Up to five names as a text, and how many there are beyond them."""
    shown = ", ".join(readable(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
