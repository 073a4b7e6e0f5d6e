"""`data/decisions.csv`: what people decided about single images. Read anew at each run; it wins over the machine's verdict.

One row per image, with the header `id,decision,label,who,why`. `id` is the image's sha256 or its first 12 digits and more,
`decision` is keep, drop or relabel, `label` is given for relabel alone, `who` is always given. Excel's ways are read too: a
byte order mark, CRLF, semicolons, and a quote before `=`, `+`, `-` or `@`, which keeps a spreadsheet from running a cell.

A label that is no class makes a new one when as many images as a class needs are given it; fewer are taken as a typing error
and refused with the nearest class. Does not cover: applying decisions, which `cleaning` does.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from visionloop.errors import DataError

Verb = Literal["keep", "drop", "relabel"]
HEADER = ("id", "decision", "label", "who", "why")
MIN_ID_DIGITS = 12
_ID_DIGITS = 64
_MAX_BYTES = 64 << 20
_ID = re.compile(rf"[0-9a-f]{{{MIN_ID_DIGITS},{_ID_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about one image."""

    id: str  # of 12 to 64 hexadecimal digits
    verb: Verb
    label: str  # the right one, for relabel; else ""
    who: str
    why: str
    line: int  # in the file


@dataclass(frozen=True)
class Resolved:
    """Decisions by image id."""

    by_id: dict[str, Decision]
    unknown: int  # decisions about images that the data version does not hold

    @classmethod
    def none(cls) -> Resolved:
        """No decision at all."""
        return cls({}, 0)


def read_decisions(path: Path) -> list[Decision]:
    """Read the file; every row is checked by itself.

    Raises:
        DataError: the file is missing, or a row is not understood; the message names its line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} has over {_MAX_BYTES >> 20} MiB; a decision takes about 120 bytes.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); bring it back from git, or write a file with the one line "
            f"{','.join(HEADER)}."
        ) from error
    head = text.partition("\n")[0].rstrip("\r")
    delimiter = ";" if head.replace('"', "") == ";".join(HEADER) else ","
    if head.replace('"', "").split(delimiter) != list(HEADER):
        raise DataError(f"{path}, line 1: the header is {head[:80]!r}; it must be {','.join(HEADER)}.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[Decision] = []
    line = 1
    try:
        next(reader)
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append(_decision(cells, line, f"{path}, line {line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: this is not CSV ({error}); a cell with a quote in it is quoted itself."
        ) from None
    return found


def resolve(
    decisions: Sequence[Decision], ids: npt.NDArray[np.bytes_], labels: set[str], least: int, path: Path
) -> Resolved:
    """Find the image of each decision.

    Args:
        decisions: see `read_decisions`.
        ids: S64 [N], the ids of the images, sorted.
        labels: the classes that the sources gave.
        least: images that make a class.
        path: stands in the messages.

    Raises:
        DataError: a shortened id fits several images, two rows contradict each other, or a label is no class.
    """
    by_id: dict[str, Decision] = {}
    unknown = 0
    for decision in decisions:
        where = f"{path}, line {decision.line}"
        start = int(np.searchsorted(ids, decision.id.encode()))
        end = int(np.searchsorted(ids, (decision.id + "g").encode()))  # "g" follows "f"
        different = set(np.unique(ids[start:end]).tolist())
        if len(different) > 1:
            raise DataError(f"{where}: the id {decision.id} fits {len(different)} images; write more of its digits.")
        if not different:
            unknown += 1
            continue
        image = different.pop().decode()
        known = by_id.setdefault(image, decision)
        if (known.verb, known.label) != (decision.verb, decision.label):
            raise DataError(
                f"{where}: it says {_said(decision)} of the image of which line {known.line} says {_said(known)}; "
                "remove one of the two."
            )
    _check_labels(by_id, labels, least, path)
    return Resolved(by_id, unknown)


def _check_labels(by_id: dict[str, Decision], labels: set[str], least: int, path: Path) -> None:
    given = Counter(decision.label for decision in by_id.values() if decision.verb == "relabel")
    folded = {label.casefold(): label for label in sorted(labels)}
    for decision in by_id.values():
        label = decision.label
        if decision.verb != "relabel" or label in labels:
            continue
        same = folded.get(label.casefold())
        if given[label] >= least and same is None:
            continue
        near = same or next(iter(difflib.get_close_matches(label, sorted(labels), n=1, cutoff=0.5)), None)
        hint = f"did you mean {near!r}?" if near else f"classes are {', '.join(map(repr, sorted(labels)[:10]))}."
        new = "" if same else f" A new class takes {least} relabelled images, and here are {given[label]}."
        raise DataError(f"{path}, line {decision.line}: {_shown(label)} is no class; {hint}{new}")


def _decision(cells: list[str], line: int, where: str) -> Decision:
    if len(cells) != len(HEADER):
        raise DataError(
            f"{where}: it has {len(cells)} cells where {','.join(HEADER)} are {len(HEADER)}; quote a cell with commas."
        )
    image, verb, label, who, why = (_plain(cell) for cell in cells)
    image, verb = image.lower(), verb.lower()
    if not _ID.fullmatch(image):
        raise DataError(
            f"{where}: the id {_shown(image)} is not the first {MIN_ID_DIGITS} to {_ID_DIGITS} hexadecimal digits of an "
            "image's sha256; copy it from reports/cleaning.html."
        )
    if verb not in get_args(Verb):
        near = difflib.get_close_matches(verb, get_args(Verb), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "it must be keep, drop or relabel."
        raise DataError(f"{where}: the decision is {_shown(verb)}; {hint}")
    if verb == "relabel" and not label:
        raise DataError(f"{where}: relabel needs the right label, and its cell is empty.")
    if verb != "relabel" and label:
        raise DataError(
            f"{where}: {verb} takes no label and has {_shown(label)}; write relabel to give one, else empty the cell."
        )
    if any(not character.isprintable() for character in label):
        raise DataError(f"{where}: the label {_shown(label)} has a line break or control character in it; remove it.")
    if not who:
        raise DataError(f"{where}: the cell who is empty; write who decided.")
    return Decision(image, cast(Verb, verb), label, who, why, line)


def _plain(cell: str) -> str:
    cell = cell.strip()
    return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@") else cell


def _said(decision: Decision) -> str:
    return f"relabel to {decision.label!r}" if decision.verb == "relabel" else decision.verb


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
