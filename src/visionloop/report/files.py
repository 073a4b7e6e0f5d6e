"""Reading what the stages wrote, leniently: a file that is missing or damaged gives nothing, and is told.

Does not cover: measuring anything anew; what is in no file is not in the report.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visionloop.paths import REPORT_PAGE

MAX_PICTURE_BYTES = 1_500_000
MAX_PICTURES_BYTES = 5_500_000  # of all pictures together; Base64 makes 7.3 MB of it
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Image:
    """A PNG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


class RunFiles:
    """The files of one run below `root`, each read when it is asked for.

    >>> RunFiles(Path()).json(Path("reports/select.json")).get("selected")
    'cnn'
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[str] = []  # sentences
        self.md5s: dict[str, str] = {}  # path -> md5 of each file that was read, as DVC hashes it
        self._room = MAX_PICTURES_BYTES

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        return (self.root / path).is_file()

    def json(self, path: Path) -> dict[str, Any]:
        """The object in a JSON file; empty where there is none."""
        text = self._text(path)
        try:
            found = json.loads(text) if text is not None else {}
        except ValueError as error:
            return self._damaged(path, f"is no JSON ({error})")
        return found if isinstance(found, dict) else self._damaged(path, "holds no object")

    def yaml(self, path: Path) -> dict[str, Any]:
        """The mapping in a YAML file; empty where there is none."""
        text = self._text(path)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
        try:
            found = yaml.load(text, loader) if text is not None else {}  # noqa: S506 - both loaders are safe ones
        except yaml.YAMLError as error:
            return self._damaged(path, f"is no YAML ({str(error).splitlines()[0]})")
        return found if isinstance(found, dict) else self._damaged(path, "holds no mapping")

    def rows(self, path: Path) -> list[dict[str, str]]:
        """The rows of a CSV file, or of a TSV file by its ending; none where there is no file."""
        text = self._text(path)
        if text is None:
            return []
        reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
        return [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]

    def image(self, path: Path) -> Image | None:
        """A PNG; None where there is none, it is damaged, or the page has no room left for it."""
        data = self._bytes(path)
        if data is None:
            return None
        if len(data) < 24 or not data.startswith(_PNG):
            self._damaged(path, "is no PNG")
            return None
        if len(data) > min(MAX_PICTURE_BYTES, self._room):
            self.damaged.append(f"{path} has {len(data) / 1e6:.1f} MB, too much for this page; open it beside.")
            return None
        self._room -= len(data)
        width, height = struct.unpack(">II", data[16:24])
        return Image(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)

    def _text(self, path: Path) -> str | None:
        data = self._bytes(path)
        try:
            return None if data is None else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._damaged(path, "is no UTF-8")
            return None

    def _bytes(self, path: Path) -> bytes | None:
        try:
            data = (self.root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._damaged(path, f"cannot be read ({error.strerror})")
            return None
        self.md5s[str(path)] = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return data

    def _damaged(self, path: Path, what: str) -> dict[str, Any]:
        sentence = f"{path} {what}; rebuild it with `dvc repro`."
        if sentence not in self.damaged:  # several sections read the same file
            self.damaged.append(sentence)
        return {}


def not_as_locked(lock: Mapping[str, Any], md5s: Mapping[str, str]) -> list[str]:
    """Files whose content is not what `dvc.lock` names, sorted: somebody ran a stage by hand, or changed a file."""
    named = {
        out["path"]: out.get("md5")
        for stage in (lock.get("stages") or {}).values()
        for out in stage.get("outs") or []
        if "path" in out
    }
    return sorted(path for path, md5 in md5s.items() if named.get(path) not in (None, md5))


def of_earlier_run(lock: Mapping[str, Any], md5s: Mapping[str, str]) -> list[str]:
    """Stages whose results were made from files that other stages have made anew since, in the order of `dvc.lock`.

    Those that follow them are among them; a stage with a file that is not as the lock names it has run since. What lies
    within the folder that another stage writes is not looked at. The stage that writes the page is left out: while it runs,
    the lock still has its last run.
    """
    stages = {
        name: stage
        for name, stage in (lock.get("stages") or {}).items()
        if str(REPORT_PAGE) not in {out.get("path") for out in stage.get("outs") or []}
    }
    made = {
        out["path"]: (name, out.get("md5"))
        for name, stage in stages.items()
        for out in stage.get("outs") or []
        if "path" in out
    }
    used = {
        name: [(*made[dep["path"]], dep.get("md5")) for dep in stage.get("deps") or [] if dep.get("path") in made]
        for name, stage in stages.items()
    }
    found = {name for name, deps in used.items() if any(now != then for _, now, then in deps)}
    while more := {name for name, deps in used.items() if found & {maker for maker, _, _ in deps}} - found:
        found |= more
    anew = {made[path][0] for path in not_as_locked(lock, md5s)}
    return [name for name in stages if name in found - anew]


def earlier_words(stages: Sequence[str]) -> list[str]:
    """The sentence about the stages of `of_earlier_run`; none where there is none."""
    if not stages:
        return []
    return [
        f"Of an earlier run, since what they are made from has changed: {', '.join(stages)}. `dvc repro` brings all in line."
    ]
