"""Where images come from: scikit-learn's digits, or a folder with one sub-folder per class.

A source yields encoded bytes as they are; whether they are an image at all is judged in `cleaning`. What a source passes
over stands in its `skipped`, with the reason.

Does not cover: archives, URLs, and labels in a CSV file.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from visionloop.config import CollectParams
from visionloop.errors import DataError
from visionloop.preprocess import encode_png
from visionloop.records import Split

SkipReason = Literal[
    "hidden", "not_an_image", "no_class", "empty_class", "symlink", "special", "unreadable", "vanished", "changed",
    "too_large",
]  # fmt: skip

# Names that say "image", also of formats that `clean` refuses: the user should learn of them there, with the reason.
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".ico", ".svg", ".eps",
})  # fmt: skip
SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
# No photograph is larger; one file is read into memory whole.
MAX_FILE_BYTES = 256 << 20
# When the digits were given to the UCI repository; a fixed time keeps the shards equal from run to run.
DIGITS_TIME = datetime(1998, 7, 1, tzinfo=UTC)

LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train|val|test/<class>/*.jpg"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as a source has it."""

    data: bytes  # encoded
    label: str
    path: str  # below the source, with "/" between parts
    time: datetime  # UTC
    split_hint: Split | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that a source passed over."""

    path: str
    reason: SkipReason


class Source(Protocol):
    """A named, finite stream of images; `skipped` is complete once the stream has been read."""

    @property
    def name(self) -> str: ...

    @property
    def skipped(self) -> list[Skipped]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[SourceImage]: ...


def open_source(params: CollectParams) -> Source:
    """The source that the `collect` section names.

    Raises:
        DataError: the folder is missing, empty, or not laid out as expected.
    """
    return DigitsSource() if params.source == "digits" else FolderSource(Path(params.path))


class DigitsSource:
    """The 1,797 handwritten digits of scikit-learn, as gray PNG of 8 x 8 pixels; 0..16 becomes 0..255."""

    name = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # a second of importing that the `folder` source does not need

        bunch = load_digits()
        self._pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8)
        self._labels = [str(label) for label in bunch.target]
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[SourceImage]:
        for index, (pixels, label) in enumerate(zip(self._pixels, self._labels, strict=True)):
            yield SourceImage(encode_png(pixels), label, f"{label}/{index:04d}.png", DIGITS_TIME, None)


@dataclass(frozen=True, slots=True)
class _Found:
    file: str  # as the operating system names it
    path: str
    label: str
    split_hint: Split | None


class FolderSource:
    """A folder of class sub-folders, nested or not; below `train`, `val` (`valid`, `validation`), `test` where they stand.

    The label is the name of the first folder below the root or below the side. Links, pipes and devices are not followed.
    Files are listed when the source is made and read one at a time; one that vanishes or cannot be read is skipped.
    """

    name = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.skipped: list[Skipped] = []
        self._files: list[_Found] = []
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"collect.path: {root} {what}; put images there as {LAYOUT}.")
        for side, folder in self._sides():
            self._list_side(side, folder)
        self._files.sort(key=lambda found: found.path)
        if not self._files:
            raise DataError(f"collect.path: {root} holds no image in a class folder; put images there as {LAYOUT}.")
        _refuse_clashes(sorted({found.label for found in self._files}))

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[SourceImage]:
        for found in self._files:
            read = self._read(found)
            if isinstance(read, tuple):
                yield SourceImage(read[0], found.label, found.path, read[1], found.split_hint)
            else:
                self.skipped.append(Skipped(found.path, read))

    def _sides(self) -> list[tuple[Split | None, str]]:
        folders = [entry.name for entry in self._entries(str(self._root)) if entry.is_dir(follow_symlinks=False)]
        folders = [name for name in folders if not _is_hidden(name)]
        sides = [name for name in folders if name.casefold() in SPLIT_FOLDERS]
        if not sides:
            return [(None, str(self._root))]
        if others := sorted(set(folders) - set(sides)):
            raise DataError(
                f"collect.path: {self._root} holds {_names(sides)} beside {_names(others)}; it may hold sides (train, val, "
                "test) or class folders, not both: move or rename one of the two."
            )
        self._note_files(str(self._root))
        return [(SPLIT_FOLDERS[name.casefold()], str(self._root / name)) for name in sides]

    def _list_side(self, side: Split | None, folder: str) -> None:
        self._note_files(folder)
        for entry in self._entries(folder):
            if not entry.is_dir(follow_symlinks=False) or _is_hidden(entry.name):
                continue
            label = unicodedata.normalize("NFC", _readable(entry.name))
            if not label.isprintable():
                raise DataError(
                    f"collect.path: the class folder {label!r} has control characters in its name; rename it, since class "
                    "names are written one a line."
                )
            before = len(self._files)
            self._list_class(side, label, entry.path)
            if len(self._files) == before:
                self.skipped.append(Skipped(self._relative(entry.path), "empty_class"))

    def _list_class(self, side: Split | None, label: str, folder: str) -> None:
        waiting = [folder]
        while waiting:
            for entry in self._entries(waiting.pop()):
                if (reason := _passed_over(entry)) is not None:
                    self.skipped.append(Skipped(self._relative(entry.path), reason))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    self._files.append(_Found(entry.path, self._relative(entry.path), label, side))

    def _note_files(self, folder: str) -> None:
        """Files that stand above the class folders have no label."""
        for entry in self._entries(folder):
            reason = _passed_over(entry)
            if reason is not None or not entry.is_dir(follow_symlinks=False):
                self.skipped.append(Skipped(self._relative(entry.path), reason or "no_class"))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self.skipped.append(Skipped(self._relative(folder), "unreadable"))
            return []

    def _relative(self, file: str) -> str:
        return _readable(os.path.relpath(file, self._root)).replace(os.sep, "/")

    @staticmethod
    def _read(found: _Found) -> tuple[bytes, datetime] | SkipReason:
        """The bytes and time of a regular file; a file exchanged for a link or a pipe since it was listed is not opened."""
        try:
            handle = os.open(found.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                before = os.fstat(handle)
                if not stat.S_ISREG(before.st_mode):
                    return "special"
                if before.st_size > MAX_FILE_BYTES:
                    return "too_large"
                data = file.read(MAX_FILE_BYTES + 1)
                after = os.fstat(handle)
        except FileNotFoundError:
            return "vanished"
        except OSError:
            return "unreadable"
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
            return "changed"
        return data, _time(after.st_mtime_ns)


def _passed_over(entry: os.DirEntry[str]) -> SkipReason | None:
    if entry.is_symlink():
        return "symlink"
    if _is_hidden(entry.name):
        return "hidden"
    if entry.is_dir(follow_symlinks=False):
        return None
    if not entry.is_file(follow_symlinks=False):
        return "special"
    return None if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS else "not_an_image"  # noqa: PTH122


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def _readable(name: str) -> str:
    """A file name as text that any file can hold; bytes that are no UTF-8 are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _time(nanoseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    except (OverflowError, ValueError, OSError):  # a clock that was wrong by millennia
        return datetime.fromtimestamp(0, UTC)


def _refuse_clashes(labels: list[str]) -> None:
    spellings: dict[str, str] = {}
    for label in labels:
        other = spellings.setdefault(label.casefold(), label)
        if other != label:
            raise DataError(
                f"The class folders {other!r} and {label!r} differ only in case; rename one, or merge the two, since they "
                "would be two classes here and one on another file system."
            )


def _names(names: list[str]) -> str:
    shown = ", ".join(_readable(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
