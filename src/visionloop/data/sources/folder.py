"""A folder of class sub-folders, nested or not; below `train`, `val` (`valid`, `validation`), `test` where they stand.

Does not cover: labels that are not folder names (see `csv`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from visionloop.data.sources.base import Skipped, SkipReason, SourceImage, SourceOptions, read_regular, readable
from visionloop.data.sources.layout import LAYOUT, is_hidden, place
from visionloop.errors import DataError


class Options(SourceOptions):
    """There is nothing to choose: the folders say it."""


class FolderSource:
    """Images below class folders; the label is the name of the first folder below the root or below the side.

    Links, pipes and devices are not followed. Files are listed when the source is made and read one at a time; one that
    vanishes or cannot be read is skipped.

    Raises:
        DataError: the folder is missing, empty, or not laid out as expected.
    """

    name = "folder"

    def __init__(self, root: Path, options: Options | None = None) -> None:
        del options
        self._root = root
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"collect.path: {root} {what}; put images there as {LAYOUT}.")
        files, folders, self.skipped = walk(root)
        self._files, passed_over = place(files, folders, where=f"collect.path: {root}")
        self.skipped += passed_over

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[SourceImage]:
        for placed in self._files:
            read = read_regular(os.path.join(self._root, placed.name))  # noqa: PTH118 - a million of them
            if isinstance(read, tuple):
                yield SourceImage(read[0], placed.label, placed.path, read[1], placed.side, labelled_by="folder")
            else:
                self.skipped.append(Skipped(placed.path, read))


def walk(root: Path) -> tuple[list[str], list[str], list[Skipped]]:
    """Every regular file and every folder below `root`, as names relative to it, and what is neither or cannot be listed.

    Hidden folders and links are not entered.
    """
    files: list[str] = []
    folders: list[str] = []
    skipped: list[Skipped] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    reason: SkipReason
                    if entry.is_symlink():
                        reason = "symlink"
                    elif is_hidden(entry.name):
                        reason = "hidden"
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                        waiting.append(f"{name}/")
                        continue
                    elif entry.is_file(follow_symlinks=False):
                        files.append(name)
                        continue
                    else:
                        reason = "special"
                    skipped.append(Skipped(readable(name), reason))
        except OSError:
            skipped.append(Skipped(readable(folder.rstrip("/")) or ".", "unreadable"))
    skipped.sort(key=lambda one: one.path)
    return files, folders, skipped
