"""Images in a zip or a tar file, from below `collect.path` or from a URL; nothing is unpacked to disk.

The layout inside is that of `folder`: class folders, or train|val|test above them; a folder around all is not looked at.

Does not cover: fetching (`data/download.py`), what makes an archive refused (`data/unpacking.py`), archives inside archives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import Field, model_validator

from visionloop.data.addresses import url_fault
from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions
from visionloop.data.sources.layout import place
from visionloop.data.unpacking import Limits, PinnedFile, open_archive
from visionloop.errors import DataError
from visionloop.paths import DOWNLOADS

_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")
_MEGABYTE = 1_000_000


class Options(SourceOptions):
    """Which archive, and how large it may be; sizes are in megabytes of 10^6 bytes."""

    file: str | None = Field(default=None, description="a zip or tar below collect.path")
    url: str | None = Field(default=None, description="or its address: https://, http:// or s3://bucket/key")
    sha256: str | None = Field(default=None, description="of the archive; needed for a URL, checked where given")
    allow_private_hosts: bool = Field(default=False, description="let the URL lead to this machine or its own network")
    # ImageNet's training images, the largest archive in common use, are 150 GB; other sets stay far below.
    max_download_megabytes: int = Field(default=20_000, ge=1, description="more is not fetched")
    max_unpacked_megabytes: int = Field(default=100_000, ge=1, description="more makes an archive refused")
    # A million entries are a large set; beyond two million the list itself takes gigabytes of memory.
    max_files: int = Field(default=2_000_000, ge=1, le=10_000_000, description="more entries make an archive refused")
    # Photos pack 1 to 1, drawings 20 to 1, made bombs 1000 to 1 and more.
    max_ratio: int = Field(default=100, ge=1, description="unpacked to packed; not asked below 64 MiB unpacked")

    @model_validator(mode="after")
    def _one_archive(self) -> Options:
        if (self.file is None) == (self.url is None):
            raise ValueError("the source `archive` needs either `file` (below collect.path) or `url`, and not both")
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise ValueError(f"sha256 is {self.sha256[:80]!r}; it must be 64 hexadecimal digits, as `sha256sum` prints them")
        if self.file is not None and (not self.file or {"..", "/"} & set(PurePosixPath(self.file).parts)):
            raise ValueError(f"file is {self.file!r}; it must name a file below collect.path")
        if self.url is not None:
            if fault := url_fault(self.url, allow_private_hosts=self.allow_private_hosts):
                raise ValueError(fault)
            if self.sha256 is None:
                raise ValueError("url needs sha256 beside it, since what an address holds may change; `sha256sum` prints it")
        return self


class ArchiveSource:
    """The images of one archive, in its own order; the whole listing is judged before the first one is read.

    An entry whose bytes are damaged is skipped; a damaged archive ends the stream.

    Raises:
        DataError: the archive cannot be fetched, is not the one that `sha256` names, is refused, or is not laid out as
            expected.
    """

    name = "archive"

    def __init__(self, root: Path, options: Options, downloads: Path = DOWNLOADS) -> None:
        if options.url is None:
            assert options.file is not None, "Options has one of the two"
            path = root / options.file
            where = f"collect.options.file: {path}"
            if not path.is_file():
                raise DataError(f"{where} {'is not a file' if path.exists() else 'does not exist'}; put the archive there.")
        else:
            from visionloop.data.download import fetch

            assert options.sha256 is not None, "Options asks for it with a URL"
            path = fetch(
                options.url,
                options.sha256.lower(),
                downloads,
                most_bytes=options.max_download_megabytes * _MEGABYTE,
                allow_private_hosts=options.allow_private_hosts,
            )
            where = f"collect.options.url: {options.url}"
        file = PinnedFile(path, where)
        if options.sha256 is not None:
            file.check_sha256(options.sha256.lower())
        self._archive = open_archive(
            file, Limits(options.max_unpacked_megabytes * _MEGABYTE, options.max_files, options.max_ratio)
        )
        listing = self._archive.check()
        self._placed, passed_over = place(listing.files, listing.folders, where=where, strip_root=True)
        self.skipped = listing.skipped + passed_over
        order = {name: index for index, name in enumerate(listing.files)}
        self._placed.sort(key=lambda placed: order[placed.name])

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[SourceImage]:
        entries = self._archive.read(placed.name for placed in self._placed)
        for placed, entry in zip(self._placed, entries, strict=True):
            if isinstance(entry.data, bytes):
                yield SourceImage(entry.data, placed.label, placed.path, entry.time, placed.side, labelled_by="folder")
            else:
                self.skipped.append(Skipped(placed.path, entry.data))
