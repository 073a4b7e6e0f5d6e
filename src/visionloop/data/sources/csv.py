"""A table of images and labels: a CSV file beside the images.

Read as UTF-8 with or without a byte order mark, any line ending, quotes as RFC 4180 has them. Does not cover: more than one
label per image, and images that lie elsewhere than below the table's folder.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions, read_regular
from visionloop.data.sources.layout import class_name, refuse_clashes, side_of
from visionloop.errors import DataError
from visionloop.records import Split

_DELIMITERS = ",;\t|"
# An Excel or database export of a million rows has about 100 MB.
MAX_TABLE_BYTES = 1 << 30


class Options(SourceOptions):
    """The table and its columns; an optional column that is not named here is used where the table has it by that name."""

    file: str = Field(default="labels.csv", min_length=1, description="the table, below collect.path")
    image: str = Field(default="image", description="column: the image's path, relative to the table's folder")
    label: str = Field(default="label", description="column: its class")
    group: str | None = Field(default=None, description="column: what belongs on one side of the split (`group`)")
    time: str | None = Field(default=None, description="column: ISO 8601; without a zone it is UTC (`time`)")
    split: str | None = Field(default=None, description="column: train, val or test (`split`)")
    labelled_by: str | None = Field(default=None, description="column: who gave the label (`labelled_by`)")
    delimiter: str | None = Field(default=None, min_length=1, max_length=1, description="found in the header where null")


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    label: str
    group: str
    time: datetime | None
    split: Split | None
    labelled_by: str


class CsvSource:
    """Images that a table lists. The whole table is checked when the source is made; the images are read one at a time.

    Rows without a label, and images that are missing or lie outside of the table's folder, are skipped.

    Raises:
        DataError: the table is missing or no such table, lacks a column, or has a value that cannot be read, with its line.
    """

    name = "csv"

    def __init__(self, root: Path, options: Options) -> None:
        self._table = root / options.file
        self._folder = self._table.parent
        self.skipped: list[Skipped] = []
        if not _is_inside(options.file):
            raise DataError(f"collect.options.file is {options.file!r}; it must lie below collect.path ({root}).")
        self._rows = list(self._read(options))
        refuse_clashes({row.label for row in self._rows}, str(self._table))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[SourceImage]:
        top = os.path.realpath(self._folder)
        inside: dict[str, bool] = {"": True}
        for row in self._rows:
            folder = posixpath.dirname(row.path)
            if folder not in inside:  # a folder on the way may be a link
                real = os.path.realpath(self._folder / folder)
                inside[folder] = real == top or real.startswith(top + os.sep)
            if not (inside[folder] and _is_inside(row.path)):
                self.skipped.append(Skipped(row.path, "outside"))
                continue
            read = read_regular(str(self._folder / row.path))
            if isinstance(read, tuple):
                time = row.time or read[1]
                yield SourceImage(
                    read[0],
                    row.label,
                    row.path,
                    time,
                    row.split,
                    row.group,
                    row.labelled_by,
                    time_stated=row.time is not None,
                )
            else:
                self.skipped.append(Skipped(row.path, "missing" if read == "vanished" else read))

    def _read(self, options: Options) -> Iterator[_Row]:
        text = self._text()
        delimiter = options.delimiter or _delimiter(text, options)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            columns = self._columns(header, options)
            labels: dict[str, str] = {}
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{self._table}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(f"{where}: it has {len(cells)} fields, the header has {len(header)}; mend the line.")
                said = {key: cells[index].strip() for key, index in columns.items()}
                path = posixpath.normpath(said["image"].replace("\\", "/")) if said["image"] else ""
                if not path:
                    raise DataError(f"{where}: the column {options.image!r} is empty; name an image or remove the line.")
                if not said["label"]:
                    self.skipped.append(Skipped(path, "no_label"))
                    continue
                label = labels.get(said["label"]) or labels.setdefault(said["label"], class_name(said["label"], where))
                yield _Row(
                    path,
                    label,
                    said.get("group", ""),
                    _time(said.get("time", ""), where),
                    _side(said.get("split", ""), where),
                    said.get("labelled_by", self._table.name),
                )
        except csv.Error as error:
            raise DataError(f"{self._table}, line {reader.line_num}: {error}; mend the line.") from None

    def _text(self) -> str:
        try:
            if self._table.stat().st_size > MAX_TABLE_BYTES:
                raise DataError(
                    f"{self._table} has over {MAX_TABLE_BYTES >> 30} GiB; split it, or use Parquet (huggingface)."
                )
            return self._table.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{self._table} is not UTF-8; save it as UTF-8 (in Excel: CSV UTF-8).") from None
        except OSError as error:
            raise DataError(
                f"{self._table} cannot be read ({error.strerror}); set collect.path to the folder of the table and "
                "collect.options.file to its name."
            ) from error

    def _columns(self, header: list[str], options: Options) -> dict[str, int]:
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise DataError(f"{self._table}: the column {twice[0]!r} stands twice; rename one.")
        found: dict[str, int] = {}
        for key in ("image", "label", "group", "time", "split", "labelled_by"):
            named: str | None = getattr(options, key)
            if (named or key) in header:
                found[key] = header.index(named or key)
            elif named is not None:
                raise DataError(
                    f"{self._table}: there is no column {named!r}; {nearest(named, header)} Its columns: "
                    f"{', '.join(header)}. collect.options names those to use, as {{image: file_name, label: class}}."
                )
        return found


def nearest(wanted: str, names: Sequence[str]) -> str:
    """The end of a sentence about a name that is not there."""
    near = difflib.get_close_matches(wanted.casefold(), [name.casefold() for name in names], n=1, cutoff=0.5)
    if near:
        return f"did you mean {next(name for name in names if name.casefold() == near[0])!r}?"
    return f"there are {', '.join(map(repr, names[:20])) or 'none'}."


def _delimiter(text: str, options: Options) -> str:
    """The one that finds both columns in the header, else the one that cuts it into the most fields."""
    line = re.match(r"(?:\"[^\"]*\"|[^\r\n])*", text)
    header = line.group() if line else ""
    cut = {one: [cell.strip() for cell in next(csv.reader([header], delimiter=one), [])] for one in _DELIMITERS}
    return max(_DELIMITERS, key=lambda one: ({options.image, options.label} <= {*cut[one]}, len(cut[one])))


def _is_inside(path: str) -> bool:
    return (
        not posixpath.isabs(path) and ".." not in path.split("/") and not re.match(r"[A-Za-z]:", path) and "\0" not in path
    )


def _time(text: str, where: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: {text[:60]!r} is no time; write it as 2026-05-04 or 2026-05-04T12:30:00+02:00.") from None


def _side(text: str, where: str) -> Split | None:
    if text and side_of(text) is None:
        raise DataError(f"{where}: {text[:60]!r} is no side; write train, val or test, or leave it empty.")
    return side_of(text)
