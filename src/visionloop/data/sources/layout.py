"""The folder layout by names alone: `<class>/...`, or `train|val|test/<class>/...`; used by `folder` and by `archive`.

Does not cover: reading names from a disk or an archive, and judging what kind of file stands behind a name.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from visionloop.data.sources.base import Skipped, SkipReason, readable, shortened
from visionloop.errors import DataError
from visionloop.records import Split

LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train|val|test/<class>/*.jpg"

# Names that say "image", also of formats that `clean` refuses: the user should learn of them there, with the reason.
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".ico", ".svg", ".eps",
})  # fmt: skip
SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True, slots=True)
class Placed:
    """A file with the class and the side that its place gives it."""

    name: str  # as it was given
    label: str
    side: Split | None

    @property
    def path(self) -> str:
        """The name as text that any file can hold."""
        return readable(self.name)


def place(
    files: Iterable[str], folders: Iterable[str] = (), *, where: str, strip_root: bool = False
) -> tuple[list[Placed], list[Skipped]]:
    """Give each file its class and side, or the reason why it has none; both lists are sorted by path.

    `files` and `folders` are names with "/" between their parts and no "." or ".." among them. The label is the first
    folder, or the first below the side where the top folders are sides. Only empty class folders need to be in `folders`.
    `where` begins the messages. With `strip_root`, the folders that hold every image are not looked at, since archives often
    have one around all.

    Raises:
        DataError: sides stand beside classes, two classes differ only in case, a class name has control characters, or
            there is no image in a class folder.
    """
    skipped: set[tuple[str, SkipReason]] = set()
    shown: list[str] = []
    for name in files:
        if hidden := hidden_part(name):
            skipped.add((readable(hidden), "hidden"))
        elif is_image_name(name):
            shown.append(name)
        else:
            skipped.add((readable(name), "not_an_image"))
    base = _common_root(shown) if strip_root else ""
    named = [name.rstrip("/") for name in folders if name.startswith(base) and not hidden_part(name.rstrip("/"))]
    tops = {name[len(base) :].partition("/")[0] for name in shown if "/" in name[len(base) :]}
    has_sides = _has_sides(tops | {name[len(base) :].partition("/")[0] for name in named} - {""}, where)

    placed: list[Placed] = []
    labels: dict[str, str] = {}
    used: set[tuple[Split | None, str]] = set()
    for name in shown:
        parts = name[len(base) :].split("/", 2)
        side = SPLIT_FOLDERS[parts.pop(0).casefold()] if has_sides and len(parts) > 1 else None
        if len(parts) < 2:
            skipped.add((readable(name), "no_class"))
            continue
        label = labels.get(parts[0]) or labels.setdefault(parts[0], class_name(parts[0], where))
        placed.append(Placed(name, label, side))
        used.add((side, label))
    for name in named:
        parts = name[len(base) :].split("/")
        side = SPLIT_FOLDERS[parts.pop(0).casefold()] if has_sides else None
        if len(parts) == 1 and parts[0] and (side, class_name(parts[0], where)) not in used:
            skipped.add((readable(name), "empty_class"))
    if not placed:
        raise DataError(f"{where} holds no image in a class folder; put images there as {LAYOUT}.")
    refuse_clashes(labels.values(), where)
    placed.sort(key=lambda one: one.path)
    return placed, [Skipped(path, reason) for path, reason in sorted(skipped)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to an operating system or a version control."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def hidden_part(name: str) -> str:
    """The name up to its first hidden part, or "" where no part is hidden."""
    parts = name.split("/")
    for index, part in enumerate(parts):
        if is_hidden(part):
            return "/".join(parts[: index + 1])
    return ""


def is_image_name(name: str) -> bool:
    """Whether the ending says "image"."""
    return posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def side_of(name: str) -> Split | None:
    """The side that a word such as `train`, `valid` or `Test` means, else None."""
    return SPLIT_FOLDERS.get(name.strip().casefold())


def class_name(text: str, where: str) -> str:
    """A label in Unicode's composed form, so that one word written on two systems is one class.

    Raises:
        DataError: it is empty or has control characters.
    """
    label = unicodedata.normalize("NFC", readable(text))
    if not label or not label.isprintable():
        raise DataError(
            f"{where}: the class {label!r} {'has control characters in its name' if label else 'has no name'}; rename it, "
            "since class names are written one a line."
        )
    return label


def refuse_clashes(labels: Iterable[str], where: str) -> None:
    """Refuse labels that differ only in case.

    Raises:
        DataError: naming the two.
    """
    spellings: dict[str, str] = {}
    for label in sorted(set(labels)):
        other = spellings.setdefault(label.casefold(), label)
        if other != label:
            raise DataError(
                f"{where}: the classes {other!r} and {label!r} differ only in case; rename one, or merge the two, since "
                "they would be two classes here and one on another file system."
            )


def _has_sides(tops: set[str], where: str) -> bool:
    sides = sorted(name for name in tops if name.casefold() in SPLIT_FOLDERS)
    others = sorted(tops - set(sides))
    if sides and others:
        raise DataError(
            f"{where} holds {shortened(sides)} beside {shortened(others)}; it may hold sides (train, val, test) or class "
            "folders, not both: move or rename one of the two."
        )
    return bool(sides)


def _common_root(images: list[str]) -> str:
    """The folders that hold every image, with a final "/"; a side, and the folder right above an image, are kept."""
    if not images:
        return ""
    shared = posixpath.commonpath([posixpath.dirname(name) for name in images])
    parts = shared.split("/") if shared else []
    if parts and any(posixpath.dirname(name) == shared for name in images):
        parts.pop()  # the class, where there is only one
    for index, part in enumerate(parts):
        if part.casefold() in SPLIT_FOLDERS:
            parts = parts[:index]
            break
    return "".join(f"{part}/" for part in parts)
