"""What a person's label must be like, and reading many of them from a CSV file.

Nothing is guessed: a label that is nearly a class is refused with the class that was probably meant. What is written into a
CSV for people is escaped, so that no spreadsheet takes it for a formula, and unescaped when it comes back.

Does not cover: storing labels (`serving.store`), and whether they make sense as a whole (`pipeline.feedback`).
"""

from __future__ import annotations

import csv
import difflib
import io
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionloop.errors import LabelError

MAX_LABEL_CHARACTERS = 200
MAX_WHO_CHARACTERS = 200
MAX_CSV_BYTES = 64 << 20  # a million labels of 60 bytes
COLUMNS = ("prediction_id", "label", "who")
_DELIMITERS = (",", ";", "\t")
_SHOWN_CLASSES = 20
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a CSV file, as it stands there."""

    line: int  # where it begins, from 1
    prediction_id: str
    label: str
    who: str  # "" where the file says nothing


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not taken."""

    line: int
    reason: str  # a code, as `LabelError.reason`
    sentence: str


def check_label(text: str, classes: Sequence[str], given: Collection[str] = (), new: Collection[str] = ()) -> str:
    """The class that a label names, in Unicode's composed form.

    `classes` are the model's, in its order; `given` the labels that people gave before; `new` are allowed for the first
    time, unless one differs from a known one in case or spaces only.

    Raises:
        LabelError: the label is empty, too long, unprintable, or no class.
    """
    label = unicodedata.normalize("NFC", text) if len(text) <= MAX_LABEL_CHARACTERS else text
    if not label.strip():
        raise LabelError("empty", "The label is empty; name the class.")
    if len(label) > MAX_LABEL_CHARACTERS:
        raise LabelError(
            "too_long", f"The label has {len(label):,} characters; a class name has up to {MAX_LABEL_CHARACTERS}."
        )
    if not label.isprintable():
        raise LabelError("unprintable", f"The label {label!r} has control characters; write the class name alone.")
    known = [*classes, *sorted(set(given).difference(classes))]
    if label in known:
        return label
    alike = next((name for name in known if _folded(name) == _folded(label)), None)
    if alike is not None:
        raise LabelError("unknown_class", f"{label!r} is no class; did you mean {alike!r}?")
    if label != label.strip():
        raise LabelError("spaces", f"The label {label!r} has spaces around it; write {label.strip()!r}.")
    if label in {unicodedata.normalize("NFC", name) for name in new}:
        return label
    if label.isascii() and label.isdigit() and len(label) < 7 and int(label) < len(classes):
        number = int(label)
        raise LabelError(
            "unknown_class", f"Labels are names; {label!r} is none, and class number {number} is {classes[number]!r}."
        )
    near = difflib.get_close_matches(label, known, n=1, cutoff=0.6)
    if near:
        raise LabelError("unknown_class", f"{label!r} is no class; did you mean {near[0]!r}? --new-class allows a new one.")
    more = len(known) - _SHOWN_CLASSES
    shown = ", ".join(known[:_SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")
    raise LabelError("unknown_class", f"{label!r} is no class; known are {shown}. --new-class allows a new one.")


def check_who(text: str) -> str:
    """A person's or a program's name, without spaces around it.

    Raises:
        LabelError: it is too long or has control characters.
    """
    who = unicodedata.normalize("NFC", text.strip()) if len(text) <= 2 * MAX_WHO_CHARACTERS else text
    if len(who) > MAX_WHO_CHARACTERS:
        raise LabelError(
            "too_long", f"The name of who labelled has {len(who):,} characters; up to {MAX_WHO_CHARACTERS} are kept."
        )
    if not who.isprintable():
        raise LabelError("unprintable", f"The name {who!r:.80} of who labelled has control characters; leave them out.")
    return who


def read_labels(path: Path) -> Iterator[LabelRow | BadRow]:
    """The rows of a CSV file with the columns `prediction_id`, `label` and perhaps `who`; other columns are passed over.

    UTF-8 with or without a byte order mark; commas, semicolons or tabs; quotes; any line ends; columns in any order.

    Raises:
        LabelError: the file cannot be read, is no UTF-8 text, or lacks a column.
    """
    text = _read(path)
    delimiter, places, width = _header(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(len(text) + 1)  # an over-long label is one bad row, not the end of the file
    try:
        begun = False
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield BadRow(
                    line, "quotes", f"The quotes of the row do not match ({error}); double a quote inside of quotes."
                )
                continue
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not begun:
                begun = True  # the header
            elif len(cells) <= max(places["prediction_id"], places["label"]):
                yield BadRow(line, "cells", f"The row has {len(cells)} of the header's {width} cells; add what is missing.")
            elif any(cells[width:]):
                sentence = f"The row has {len(cells)} cells, the header {width}; quote a cell that holds the delimiter."
                yield BadRow(line, "cells", sentence)
            else:
                who = cells[places["who"]] if places.get("who", len(cells)) < len(cells) else ""
                label = unescaped(cells[places["label"]])
                yield LabelRow(line, cells[places["prediction_id"]].strip(), label, unescaped(who).strip())
    finally:
        csv.field_size_limit(limit)


def escaped(text: str) -> str:
    """A cell that a spreadsheet shows and does not compute: an apostrophe goes before what would begin a formula."""
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def unescaped(cell: str) -> str:
    """What `escaped` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*_FORMULA, "'")) else cell


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise LabelError("file", f"{path} has over {MAX_CSV_BYTES >> 20} MiB; cut it into several files.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError("file", f"{path} is not UTF-8; save it as CSV UTF-8.") from None
    except OSError as error:
        raise LabelError("file", f"{path} cannot be read ({error.strerror}).") from error


def _header(text: str, path: Path) -> tuple[str, dict[str, int], int]:
    """The delimiter, the place of each of our columns, and how many columns there are."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    for delimiter in _DELIMITERS:
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        places = {name: names.index(name) for name in COLUMNS if name in names}
        if "prediction_id" in places and "label" in places:
            return delimiter, places, len(names)
    begin = first.strip()[:80]
    raise LabelError(
        "file",
        f"{path} begins with {begin!r}; its first row must name the columns prediction_id and label, and may name who.",
    )


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
