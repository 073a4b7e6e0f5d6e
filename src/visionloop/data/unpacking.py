"""Read files out of a zip or a tar without unpacking it: the whole listing is judged before the first byte is given out.

Nothing is written to disk, so no name can hurt; a hostile name is refused all the same, since it says what the archive was
made for. `docs/sources.md` lists what is refused, what is skipped and what is harmless.

Does not cover: which files are images and of which class (`sources/layout.py`), and how the archive got here
(`data/download.py`).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, cast

from visionloop.data.sources.base import MAX_FILE_BYTES, Skipped, SkipReason, readable, utc_time
from visionloop.errors import DataError
from visionloop.progress import track

# Below this, any ratio is harmless: a few drawings of one colour shrink a thousandfold.
ALWAYS_ALLOWED_BYTES = 64 << 20
# File systems take 255 bytes a part and 4096 a path; a longer text than this names nothing.
MAX_NAME_CHARACTERS = 1024
# A zip's list of entries is read at once: about 130 bytes an entry, so this holds some four million.
MAX_LISTING_BYTES = 512 << 20
# Long names and extended attributes stand in blocks of their own, which `tarfile` reads at once whatever size they claim; in
# Python 3.11.7 it also searches them in quadratic time (CVE-2024-6232): 0.16 s at this size.
MAX_TAR_EXTENSION_BYTES = 16 << 10

_MEGABYTE = 1_000_000
_ZIP_DIRECTORY_ENTRY = b"PK\x01\x02"
_ZIP_ENCRYPTED = 0x1 | 0x40 | 0x2000
_ZIP_UTF8 = 0x800
_ZIP_HEADER_BYTES = 30  # before name and extra fields, ahead of each entry's data
_TAR_EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most."""

    unpacked_bytes: int
    files: int
    ratio: int  # unpacked to packed; not asked below `ALWAYS_ALLOWED_BYTES`

    def bytes_from(self, packed_bytes: int) -> int:
        """How many bytes an archive of this size may unpack to."""
        return min(self.unpacked_bytes, max(ALWAYS_ALLOWED_BYTES, self.ratio * packed_bytes))


@dataclass
class Listing:
    """The names in an archive, in its order, with "/" between the parts and no "." or ".." among them."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One file of an archive: its bytes, or why there are none."""

    name: str
    time: datetime  # UTC
    data: bytes | SkipReason


class Archive(Protocol):
    """A zip or a tar; it is opened for each of the two calls, and an exchanged file is noticed."""

    def check(self) -> Listing:
        """Judge every entry.

        Raises:
            DataError: the archive is damaged, encrypted, larger than its limits, or holds an entry that no archive of images
                has: a path or a link out of it, a device, a name twice, entries that share their bytes.
        """
        ...

    def read(self, names: Iterable[str]) -> Iterator[Unpacked]:
        """Read the named files, one at a time; `names` stand in the order of the listing.

        Raises:
            DataError: the archive is damaged, or was changed since it was opened.
        """
        ...


class PinnedFile:
    """A file that must stay the same from the check of its content to the end of its use."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self._identity = self._identity_of(path.stat())

    @property
    def size_bytes(self) -> int:
        return self._identity[0]

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """The file, open for reading.

        Raises:
            DataError: it was exchanged or written to since this object was made.
        """
        with self.path.open("rb") as file:
            self._compare(file)
            yield file
            self._compare(file)

    def check_sha256(self, sha256: str) -> None:
        """Read the whole file once.

        Raises:
            DataError: its SHA-256 is not `sha256` (64 hexadecimal digits, lower case).
        """
        digest = hashlib.sha256()
        with self.open() as file:
            pieces = iter(lambda: file.read(_MEGABYTE), b"")
            for piece in track(pieces, f"hash {self.path.name[:40]}, MB", -(-self.size_bytes // _MEGABYTE)):
                digest.update(piece)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{self.where}: {self.path} has the sha256 {digest.hexdigest()}, collect.options.sha256 says {sha256}; it "
                "is damaged or another file: remove it and fetch it again, or correct the option if that is wrong."
            )

    def _compare(self, file: io.BufferedReader) -> None:
        if self._identity_of(os.fstat(file.fileno())) != self._identity:
            raise DataError(f"{self.where} was changed while it was read; run this again once it is whole.")

    @staticmethod
    def _identity_of(status: os.stat_result) -> tuple[int, ...]:
        # The change time cannot be set back, unlike the modification time.
        return status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def open_archive(file: PinnedFile, limits: Limits) -> Archive:
    """Open a zip or a tar (plain, gzip, bzip2, xz, zstd), told by its first bytes and not by its name.

    Raises:
        DataError: it is neither.
    """
    with file.open() as opened:
        start = opened.read(512)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _Zip(file, limits)
    for magic, opener in _DECOMPRESSORS.items():
        if start.startswith(magic):
            return _Tar(file, limits, opener)
    if start[257:262] == b"ustar" or _is_old_tar(start):
        return _Tar(file, limits, io.BufferedReader)
    if start.lstrip()[:1] == b"<":
        what = "looks like a web page"
    else:
        what = f"begins with the bytes {start[:6].hex(' ')}" if start else "is empty"
    raise DataError(
        f"{file.where} {what}, and is neither a zip nor a tar (plain, gz, bz2, xz, zst); fetch it again, or pack the images "
        "as one."
    )


@dataclass
class _Judge:
    """Takes the entries of an archive one by one, and refuses the archive at the first that it should not have."""

    file: PinnedFile
    limits: Limits
    listing: Listing = field(default_factory=Listing)
    seen: set[str] = field(default_factory=set)
    entries: int = 0

    def refuse(self, why: str) -> NoReturn:
        raise DataError(f"{self.file.where} {why}; nothing was read from it.")

    def refuse_entry(
        self, name: str, why: str, advice: str = "pack the images anew if you trust where it comes from"
    ) -> NoReturn:
        shown = name if len(name) <= 80 else f"{name[:60]}…{name[-15:]}"
        raise DataError(
            f"{self.file.where}: the entry {readable(shown)!r} {why}; nothing was read from the archive: {advice}."
        )

    def count(self, entries: int) -> None:
        if entries > self.limits.files:
            self.refuse(f"holds more than {self.limits.files:,} entries; raise collect.options.max_files if it should")

    def name(self, name: str) -> str:
        """The name without "." and empty parts, once it is found harmless; every entry's passes here."""
        self.entries += 1
        self.count(self.entries)
        for fault, found in _NAME_FAULTS.items():
            if found(name):
                self.refuse_entry(name, fault)
        return _plain(name)

    def add_file(self, name: str) -> None:
        if not name or name in self.seen:
            self.refuse_entry(name, "stands in the archive twice, and programs differ in which of the two counts")
        self.seen.add(name)
        self.listing.files.append(name)

    def add_folder(self, name: str) -> None:
        if name and name not in self.seen:
            self.seen.add(name)
            self.listing.folders.append(name)

    def add_link(self, name: str, target: str, base: str) -> None:
        """A link, from the folder `base` of the archive to `target`; one that stays inside is merely not followed."""
        outside = posixpath.normpath(posixpath.join(base, target)).split("/")[0] == ".."
        if outside or target.startswith("/") or "\\" in target or _DRIVE.match(target):
            self.refuse_entry(name, f"is a link out of the archive, to {readable(target[:80])!r}")
        self.listing.skipped.append(Skipped(readable(name), "symlink"))

    def check_size(self, unpacked_bytes: int) -> None:
        """Refuse more bytes than an archive of this size may hold."""
        packed = self.file.size_bytes
        most = self.limits.bytes_from(packed)
        if unpacked_bytes > most:
            key = "max_unpacked_megabytes" if most == self.limits.unpacked_bytes else "max_ratio"
            self.refuse(
                f"unpacks to more than {most / 1e6:,.0f} MB from {packed / 1e6:,.3f} MB, as bombs do: "
                f"raise collect.options.{key} if that is right"
            )


_NAME_FAULTS: dict[str, Callable[[str], object]] = {
    "has a NUL character in its name": lambda name: "\0" in name,
    "has an absolute path": lambda name: name.startswith("/"),
    "begins with a drive letter": _DRIVE.match,
    "has a backslash in its name": lambda name: "\\" in name,
    "leads out of the archive": lambda name: ".." in name.split("/"),
    f"has a name of more than {MAX_NAME_CHARACTERS:,} characters": lambda name: len(name) > MAX_NAME_CHARACTERS,
}


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


class _Zip:
    def __init__(self, file: PinnedFile, limits: Limits) -> None:
        self._file, self._limits = file, limits

    def check(self) -> Listing:
        judge = _Judge(self._file, self._limits)
        with self._open() as (opened, infos):
            judge.check_size(sum(info.file_size for info in infos))
            following = [*(info.header_offset for info in infos[1:]), self._file.size_bytes]
            for info, end in zip(infos, following, strict=True):
                if info.header_offset + _ZIP_HEADER_BYTES + info.compress_size > end:
                    judge.refuse_entry(info.filename, "shares bytes with the next one, as in an archive made to fill a disk")
            for info in track(infos, f"check {self._file.path.name[:40]}", len(infos)):
                self._judge(judge, opened, info)
        return judge.listing

    def read(self, names: Iterable[str]) -> Iterator[Unpacked]:
        waiting = iter(names)
        name = next(waiting, None)
        with self._open() as (opened, infos):
            for info in infos:
                if _plain(_zip_name(info)) == name:
                    yield Unpacked(name, _zip_time(info), _zip_content(opened, info))
                    name = next(waiting, None)
        assert name is None, "names come from the listing, in its order"

    @contextmanager
    def _open(self) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
        """The zip and its entries in the order of their bytes."""
        with self._file.open() as file:
            try:
                opened = zipfile.ZipFile(_Directory(file, _Judge(self._file, self._limits)))
            except _ZIP_FAULTS as error:
                raise _damaged(self._file, error) from error
            infos = sorted(opened.infolist(), key=lambda info: info.header_offset)
            yield opened, infos

    @staticmethod
    def _judge(judge: _Judge, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        name = judge.name(_zip_name(info))
        if info.is_dir():
            judge.add_folder(name)
            return
        if info.flag_bits & _ZIP_ENCRYPTED:
            judge.refuse_entry(name, "is encrypted", "unpack it with its password and pack it without one")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile cannot bound what bzip2 and lzma inflate to, and knows no other method.
            judge.refuse_entry(name, f"is packed by method {info.compress_type}", "pack it with deflate, as `zip -r` does")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            target = _zip_content(opened, info) if info.file_size <= MAX_NAME_CHARACTERS else "unreadable"
            judge.add_link(name, os.fsdecode(target) if isinstance(target, bytes) else "/", posixpath.dirname(name))
        elif kind in (0, stat.S_IFREG):
            judge.add_file(name)
        else:
            judge.refuse_entry(name, "is a device, a pipe or a socket")


class _Borrowed(io.RawIOBase):
    """A file that stays open when its user closes it."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)


class _Directory(io.BufferedReader):
    """A zip file whose list of entries is counted before `zipfile` makes an object of each."""

    def __init__(self, file: io.BufferedReader, judge: _Judge) -> None:
        super().__init__(_Borrowed(file))
        self._judge = judge

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LISTING_BYTES:
            self._judge.refuse(f"claims a list of entries of {size / 1e6:,.0f} MB, above {MAX_LISTING_BYTES / 1e6:,.0f} MB")
        data = super().read(size)
        if data.startswith(_ZIP_DIRECTORY_ENTRY):
            self._judge.count(data.count(_ZIP_DIRECTORY_ENTRY))
        return data


# What zipfile and zlib raise for a file that is not what it says; ValueError covers names and places in the file.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError, NotImplementedError,
    RuntimeError,
)  # fmt: skip


def _zip_content(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | SkipReason:
    """The bytes of an entry; `unreadable` where they are not those that the listing promises."""
    if info.file_size > MAX_FILE_BYTES:
        return "too_large"
    try:
        with opened.open(info) as entry:
            # With a size, zipfile inflates no more than that, whatever the entry holds; and it compares the checksum.
            data = entry.read(info.file_size + 1)
    except _ZIP_FAULTS:
        return "unreadable"
    return data if len(data) == info.file_size else "unreadable"


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name as it stands in the archive; zipfile cuts `filename` at a NUL.

    macOS writes UTF-8 without saying so, and zipfile then reads code page 437.
    """
    name: str = info.orig_filename
    if info.flag_bits & _ZIP_UTF8 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _zip_time(info: zipfile.ZipInfo) -> datetime:
    """A zip tells the local time without its zone, in steps of two seconds; it is taken for UTC."""
    try:
        return datetime(*info.date_time, tzinfo=UTC)
    except ValueError:
        return utc_time(0)


class _Tar:
    """A tar; it has no list of entries, so each of the two calls is a pass over the whole."""

    def __init__(self, file: PinnedFile, limits: Limits, opener: Callable[[io.RawIOBase], IO[bytes]]) -> None:
        self._file, self._limits, self._opener = file, limits, opener

    def check(self) -> Listing:
        judge = _Judge(self._file, self._limits)
        megabytes = -(-self._file.size_bytes // _MEGABYTE)
        for _ in track(self._judged(judge, megabytes), f"check {self._file.path.name[:40]}, MB", megabytes):
            continue
        return judge.listing

    def read(self, names: Iterable[str]) -> Iterator[Unpacked]:
        waiting = iter(names)
        name = next(waiting, None)
        with self._open() as (tar, _, _):
            while name is not None and (info := _next(tar)) is not None:
                if info.isreg() and _plain(info.name) == name:
                    yield Unpacked(name, _tar_time(info), _tar_content(tar, info))
                    name = next(waiting, None)
        assert name is None, "names come from the listing, in its order"

    def _judged(self, judge: _Judge, megabytes: int) -> Iterator[None]:
        """Judge every header, keeping names only; yields once for each packed megabyte."""
        shown = 0
        with self._open() as (tar, stream, file):
            while (info := _next(tar)) is not None:
                self._judge(judge, info)
                while shown < file.tell() // _MEGABYTE:
                    shown += 1
                    yield
            stream.drain()
        for _ in range(shown, megabytes):
            yield

    @staticmethod
    def _judge(judge: _Judge, info: tarfile.TarInfo) -> None:
        name = judge.name(info.name)
        if info.isdir():
            judge.add_folder(name)
        elif info.isreg():
            judge.add_file(name)
        elif info.issym() or info.islnk():
            judge.add_link(name, info.linkname, posixpath.dirname(name) if info.issym() else "")
        elif info.isdev():
            judge.refuse_entry(name, "is a device or a pipe")
        else:  # a volume label, or a kind of a later time
            judge.listing.skipped.append(Skipped(readable(name), "special"))

    @contextmanager
    def _open(self) -> Iterator[tuple[tarfile.TarFile, _Stream, io.BufferedReader]]:
        judge = _Judge(self._file, self._limits)
        with self._file.open() as file:
            try:
                with self._opener(_Borrowed(file)) as plain:
                    stream = _Stream(plain, judge.check_size)
                    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=_Header) as tar:
                        yield tar, stream, file
            except _TAR_FAULTS as error:
                raise _damaged(self._file, error) from error


class _Stream:
    """Bytes as they leave the decompressor, counted, so that a bomb ends at the limit and not at its own size."""

    def __init__(self, plain: IO[bytes], check: Callable[[int], None]) -> None:
        self._plain, self._check = plain, check
        self._given = 0

    def read(self, size: int) -> bytes:
        """The next bytes; `tarfile` asks for none behind the end mark, and never stops to ask where a size was a lie."""
        if data := self._next(size):
            return data
        raise EOFError("it ends early")

    def drain(self) -> None:
        """Read what is left, and so the checksum of a compressed file."""
        while self._next(_MEGABYTE):
            continue

    def _next(self, size: int) -> bytes:
        data = self._plain.read(size)
        self._given += len(data)
        self._check(self._given)
        return data


class _HeaderError(Exception):
    """A tar header at which `tarfile` would end in silence, or trust the size that it claims."""


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark at the end, the one way to end; tarfile takes a damaged or missing header for it too
            raise _HeaderError(str(error)) from error
        if header.size < 0:
            raise _HeaderError("a negative size")
        if header.type in _TAR_EXTENSIONS and header.size > MAX_TAR_EXTENSION_BYTES:
            raise _HeaderError(f"a name or attributes of {header.size:,} bytes; `tar --no-xattrs` leaves attributes out")
        if header.type == tarfile.GNUTYPE_SPARSE:
            header._proc_gnusparse_10()
        return header

    # Here tarfile reads maps of holes, of any size; the test of a sparse tar tells if these are no longer the names.
    def _proc_gnusparse_10(self, *_: Any) -> NoReturn:
        raise _HeaderError("a file with holes; pack it without `--sparse`")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


_TAR_FAULTS = (
    tarfile.TarError, _HeaderError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, OverflowError, RecursionError,
)  # fmt: skip


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    # tarfile keeps every header and every global attribute that it has met.
    tar.members = []  # type: ignore[attr-defined]  # long-standing, yet not in the documentation
    tar.pax_headers = {}
    return tar.next()


def _tar_content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | SkipReason:
    if info.size > MAX_FILE_BYTES:
        return "too_large"
    entry = tar.extractfile(info)
    assert entry is not None, "a regular file has content"
    return entry.read()


def _tar_time(info: tarfile.TarInfo) -> datetime:
    try:
        return utc_time(int(info.mtime * 1_000_000) * 1000)
    except (ValueError, OverflowError):  # not a number, or infinity
        return utc_time(0)


def _is_old_tar(block: bytes) -> bool:
    """Whether a block is the header of a tar from before 1988, which has no magic bytes."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _zstd(file: io.RawIOBase) -> IO[bytes]:
    import pyarrow as pa  # it is the one library here that has zstd

    stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return stream


_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _damaged(file: PinnedFile, error: Exception) -> DataError:
    why = str(error).split("\n")[0][:120] or type(error).__name__
    return DataError(
        f"{file.where} is cut off or damaged ({why}); fetch it again, or compare its sha256 with the published one."
    )
