"""What in the folders that people fill would make DVC fail or wait for ever, before `collect` could pass it over.

DVC hashes `collect.path`, `calibrate.foreign` and `data/feedback` whole. Measured with DVC 3.67: it waits without end on a
pipe or an endless device, and fails on a socket, a link that leads nowhere, a name that is no UTF-8, and a `.dvcignore`.

Does not cover: files that come or go while DVC reads them; DVC names these, and the next run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from visionloop.config import CalibrateParams, CollectParams, load_section
from visionloop.data.sources.base import readable
from visionloop.paths import FEEDBACK, PARAMS


def obstacles(root: Path = Path()) -> list[str]:
    """One sentence for each kind of obstacle, with the first of its paths; an empty list when DVC can read all.

    Raises:
        ConfigError: `params.yaml` cannot be read.
    """
    found: dict[str, list[str]] = {}
    own = load_section(CollectParams, root / PARAMS).path, load_section(CalibrateParams, root / PARAMS).foreign
    for folder in dict.fromkeys((*own, str(FEEDBACK))):
        for path, kind in _obstacles(os.fspath(root / folder)):
            found.setdefault(kind, []).append(readable(os.path.relpath(path, root)))
    sentences = []
    for kind, paths in found.items():
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        verb = "are" if more else "is"
        sentences.append(
            f"{min(paths)}{more} {verb} {kind}, which DVC cannot hash; remove or rename {'them' if more else 'it'}."
        )
    return sentences


def _obstacles(top: str) -> Iterator[tuple[str, str]]:
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if kind := _kind(entry):
                        yield entry.path, kind
        except FileNotFoundError:
            return  # DVC says so
        except PermissionError as error:
            yield str(error.filename), "not readable"


def _kind(entry: os.DirEntry[str]) -> str | None:
    if "\\x" in readable(entry.name) and "\\x" not in entry.name:
        return "of a name that is no UTF-8"
    if entry.name == ".dvcignore":
        return "DVC's own"
    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 - a million of them
        return "a link that leads nowhere"
    if entry.is_dir():
        return None
    if not entry.is_file():
        return "a pipe, socket or device"
    return None if os.access(entry.path, os.R_OK) else "not readable"
