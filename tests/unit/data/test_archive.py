"""Images from a zip or a tar: what is read, what is passed over, and what makes the whole refused before it is read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.config import CollectParams
from visionloop.data import unpacking
from visionloop.data.sources import open_source
from visionloop.data.sources.archive import ArchiveSource, Options
from visionloop.data.sources.base import SourceImage
from visionloop.errors import ConfigError, DataError
from visionloop.files import sha256_bytes

Entries = Iterable[tuple[str, bytes]]
Pack = Callable[[Entries], bytes]
NEWEST = {"format": tarfile.PAX_FORMAT}
GOOD = [("cat/a.jpg", b"first"), ("dog/b.png", b"second")]


def pack_tar(entries: Entries, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **(NEWEST | options)) as tar:
        for name, data in entries:
            tar.addfile(tar_entry(name, len(data)), io.BytesIO(data))
    return buffer.getvalue()


def tar_entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mtime = size, kind, 1_700_000_000
    for key, value in values.items():
        setattr(info, key, value)
    return info


def pack_zip(entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zip_entry(name, method), data)
    return buffer.getvalue()


def zip_entry(name: str, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x", (2023, 11, 14, 22, 13, 20))
    info.filename = info.orig_filename = name  # the constructor would mend it
    info.compress_type, info.external_attr = method, mode << 16
    return info


def pack_zstd(data: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(data)
    return bytes(buffer.getvalue())


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., ArchiveSource]:
    def open_bytes(data: bytes, name: str = "images", **options: Any) -> ArchiveSource:
        (tmp_path / name).write_bytes(data)
        return ArchiveSource(tmp_path, Options(file=name, **options))

    return open_bytes


Opened = Callable[..., ArchiveSource]


def content(source: ArchiveSource) -> list[tuple[str, bytes]]:
    return [(image.path, image.data) for image in source]


def reasons(source: ArchiveSource) -> dict[str, str]:
    list(source)
    return {item.path: item.reason for item in source.skipped}


# --- what is read


@pytest.mark.parametrize(
    "pack",
    [
        pack_zip,
        lambda entries: pack_zip(entries, zipfile.ZIP_STORED),
        pack_tar,
        lambda entries: pack_tar(entries, format=tarfile.GNU_FORMAT),
        lambda entries: pack_tar(entries, format=tarfile.USTAR_FORMAT),
        lambda entries: gzip.compress(pack_tar(entries)),
        lambda entries: bz2.compress(pack_tar(entries)),
        lambda entries: lzma.compress(pack_tar(entries)),
        lambda entries: pack_zstd(pack_tar(entries)),
    ],
    ids=["zip", "zip-stored", "tar", "tar-gnu", "tar-ustar", "gz", "bz2", "xz", "zst"],
)
def test_every_kind_of_archive_gives_the_same_images(opened: Opened, pack: Pack) -> None:
    entries = [
        ("train/cat/a.jpg", b"1" * 700),
        ("train/cat/deep/b.png", b""),
        ("test/hündin/猫.webp", b"3"),
        ("README", b"4"),
    ]
    source = opened(pack(entries))
    time = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert len(source) == 3
    assert list(source) == [
        SourceImage(b"1" * 700, "cat", "train/cat/a.jpg", time, "train", "", "folder"),
        SourceImage(b"", "cat", "train/cat/deep/b.png", time, "train", "", "folder"),
        SourceImage(b"3", "hündin", "test/hündin/猫.webp", time, "test", "", "folder"),
    ]
    assert reasons(source) == {"README": "not_an_image"}


def test_the_source_opens_by_its_name_and_reads_below_the_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/set.zip").write_bytes(pack_zip(GOOD))
    params = CollectParams(
        source="archive", path=str(tmp_path), options={"file": "sub/set.zip"}, feedback=False, images_per_shard=10,
        max_skipped_share=0,
    )  # fmt: skip
    source = open_source(params)
    assert (source.name, [image.data for image in source]) == ("archive", [b"first", b"second"])


def test_a_folder_around_all_is_not_a_class_and_stays_in_the_path(opened: Opened) -> None:
    found = list(opened(pack_tar([("set/cat/a.jpg", b"1"), ("set/dog/b.jpg", b"2"), ("set/README.txt", b"3")])))
    assert [(image.label, image.path) for image in found] == [("cat", "set/cat/a.jpg"), ("dog", "set/dog/b.jpg")]


def test_dots_and_double_slashes_in_names_mean_nothing(opened: Opened) -> None:
    assert content(opened(pack_tar([("./cat//a.jpg", b"1"), ("./dog/./b.jpg", b"2")]))) == [
        ("cat/a.jpg", b"1"),
        ("dog/b.jpg", b"2"),
    ]


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_images_come_in_the_order_of_the_archive_twice(opened: Opened, pack: Pack) -> None:
    names = ["dog/z.jpg", "cat/y.jpg", "dog/a.jpg", "cat/b.jpg"]
    source = opened(pack([(name, name.encode()) for name in names]))
    assert [image.path for image in source] == names
    assert [image.path for image in source] == names


def test_names_that_macos_writes_into_a_zip_are_read_as_utf8(opened: Opened) -> None:
    data = pack_zip([("h\u00fc/a.jpg", b"1")])
    assert data.count("hü/a.jpg".encode()) == 2
    unflagged = bytearray(data)
    for marker, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        unflagged[data.index(marker) + place : data.index(marker) + place + 2] = b"\0\0"
    assert [image.label for image in opened(bytes(unflagged))] == ["hü"]


def test_a_tar_with_bytes_that_are_no_utf8_in_a_name_is_read(opened: Opened) -> None:
    data = pack_tar([(os.fsdecode(b"cat/\xff.jpg"), b"1")], format=tarfile.GNU_FORMAT, encoding="utf-8")
    assert content(opened(data)) == [("cat/\\xff.jpg", b"1")]


def test_a_tar_of_before_1988_is_read(opened: Opened) -> None:
    data = bytearray(pack_tar(GOOD, format=tarfile.USTAR_FORMAT))
    for start in (0, 1024):
        data[start + 257 : start + 265] = b"\0" * 8
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    assert content(opened(bytes(data))) == GOOD


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\.:"), min_size=1).map(
                lambda name: f"cat/{name}.jpg"
            ),
            st.binary(max_size=1500),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda entry: entry[0],
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_names_and_bytes_come_back_from_tar_and_zip(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes]], kind: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for data in (pack_tar(entries, format=kind), pack_zip(entries)):
        (folder / "images").write_bytes(data)
        assert content(ArchiveSource(folder, Options(file="images"))) == entries


# --- what is passed over, with its reason


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_what_is_no_image_is_skipped_and_archives_within_are_not_opened(opened: Opened, pack: Pack) -> None:
    source = opened(
        pack(
            [*GOOD, ("cat/inner.zip", pack_zip(GOOD)), ("cat/.DS_Store", b""), ("__MACOSX/cat/._a.jpg", b""), ("x.jpg", b"")]
        )
    )
    assert content(source) == GOOD
    assert reasons(source) == {
        "cat/inner.zip": "not_an_image",
        "cat/.DS_Store": "hidden",
        "__MACOSX": "hidden",
        "x.jpg": "no_class",
    }


def test_an_empty_class_folder_is_told(opened: Opened) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tar_entry("cat/a.jpg", 1), io.BytesIO(b"1"))
        tar.addfile(tar_entry("owl", kind=tarfile.DIRTYPE))
    assert reasons(opened(buffer.getvalue())) == {"owl": "empty_class"}
    assert reasons(opened(pack_zip([("cat/a.jpg", b"1"), ("owl/", b"")]))) == {"owl": "empty_class"}


def test_links_that_stay_inside_are_not_followed(opened: Opened) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tar_entry("set/cat/a.jpg", 1), io.BytesIO(b"1"))
        tar.addfile(tar_entry("set/dog/s.jpg", kind=tarfile.SYMTYPE, linkname="../cat/a.jpg"))
        tar.addfile(tar_entry("set/dog/h.jpg", kind=tarfile.LNKTYPE, linkname="set/cat/a.jpg"))
    source = opened(buffer.getvalue())
    assert content(source) == [("set/cat/a.jpg", b"1")]
    assert reasons(source) == {"set/dog/s.jpg": "symlink", "set/dog/h.jpg": "symlink"}


def test_a_damaged_entry_of_a_zip_is_skipped_and_the_rest_is_read(opened: Opened) -> None:
    data = bytearray(pack_zip(GOOD, zipfile.ZIP_STORED))
    data[data.index(b"first")] ^= 1
    source = opened(bytes(data))
    assert content(source) == [("dog/b.png", b"second")]
    assert reasons(source) == {"cat/a.jpg": "unreadable"}


def test_setuid_bits_are_harmless_since_no_file_is_made(opened: Opened) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tar_entry("cat/a.jpg", 1, mode=0o6777), io.BytesIO(b"1"))
    assert content(opened(buffer.getvalue())) == [("cat/a.jpg", b"1")]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(zip_entry("cat/a.jpg", mode=stat.S_IFREG | 0o6777), b"1")
    assert content(opened(zipped.getvalue())) == [("cat/a.jpg", b"1")]


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_names_longer_than_file_systems_take_are_read_up_to_1024_characters(opened: Opened, pack: Pack) -> None:
    long = f"cat/{'n' * 300}.jpg"
    assert content(opened(pack([(long, b"1")]))) == [(long, b"1")]
    with pytest.raises(DataError, match="has a name of more than 1,024 characters"):
        opened(pack([(f"cat/{'n' * 1024}.jpg", b"1")]))


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_files_that_differ_in_case_are_two_files_and_classes_are_refused(opened: Opened, pack: Pack) -> None:
    files = [("cat/a.jpg", b"1"), ("cat/A.jpg", b"2")]
    assert content(opened(pack(files))) == files
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only in case"):
        opened(pack([("cat/a.jpg", b"1"), ("Cat/b.jpg", b"2")]))


def test_a_file_larger_than_any_photo_is_skipped(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_FILE_BYTES", 5)
    for data in (pack_zip(GOOD), pack_tar(GOOD)):
        source = opened(data)
        assert content(source) == [("cat/a.jpg", b"first")]
        assert reasons(source) == {"dog/b.png": "too_large"}


# --- what makes the whole archive refused


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../x.jpg", "leads out of the archive"),
        ("cat/../../x.jpg", "leads out of the archive"),
        ("/etc/x.jpg", "has an absolute path"),
        ("..\\..\\w.jpg", "has a backslash in its name"),
        ("C:\\x.jpg", "begins with a drive letter"),
        ("c:/x.jpg", "begins with a drive letter"),
    ],
)
def test_a_path_out_of_the_archive_is_refused(opened: Opened, pack: Pack, name: str, why: str) -> None:
    with pytest.raises(DataError, match=f"the entry .* {why}; nothing was read from the archive"):
        opened(pack([*GOOD, (name, b"1")]))


def test_a_nul_in_a_name_is_refused(opened: Opened) -> None:
    named = pack_zip([*GOOD, ("cat/x?.jpg", b"1")]).replace(b"cat/x?.jpg", b"cat/x\0.jpg")
    with pytest.raises(DataError, match="has a NUL character"):
        opened(named)
    data = pack_tar([*GOOD, (f"cat/?{'x' * 200}.jpg", b"1")])
    with pytest.raises(DataError, match="has a NUL character"):
        opened(data.replace(b"=cat/?", b"=cat/\0"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "..", "C:/x", "..\\x"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_out_of_the_archive_is_refused(opened: Opened, kind: bytes, target: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tar_entry("cat/a.jpg", 1), io.BytesIO(b"1"))
        tar.addfile(tar_entry("evil.jpg", kind=kind, linkname=target))
    with pytest.raises(DataError, match=r"'evil.jpg' is a link out of the archive"):
        opened(buffer.getvalue())


@pytest.mark.parametrize(("target", "refused"), [("/etc/passwd", True), ("../../x", True), ("../cat/a.jpg", False)])
def test_links_in_a_zip_are_judged_by_where_they_lead(opened: Opened, target: str, refused: bool) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zip_entry("cat/a.jpg"), b"1")
        archive.writestr(zip_entry("dog/l.jpg", mode=stat.S_IFLNK | 0o777), target)
    if refused:
        with pytest.raises(DataError, match=r"'dog/l.jpg' is a link out of the archive"):
            opened(buffer.getvalue())
    else:
        assert reasons(opened(buffer.getvalue())) == {"dog/l.jpg": "symlink"}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_in_a_tar_is_refused(opened: Opened, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tar_entry("cat/a.jpg", 1), io.BytesIO(b"1"))
        tar.addfile(tar_entry("cat/b.jpg", kind=kind))
    with pytest.raises(DataError, match=r"'cat/b.jpg' is a device or a pipe"):
        opened(buffer.getvalue())


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_device_in_a_zip_is_refused(opened: Opened, kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zip_entry("cat/a.jpg", mode=kind | 0o666), b"1")
    with pytest.raises(DataError, match=r"'cat/a.jpg' is a device, a pipe or a socket"):
        opened(buffer.getvalue())


@pytest.mark.parametrize(
    "pack", [pack_zip, lambda entries: gzip.compress(pack_tar(entries)), lambda entries: pack_zstd(pack_tar(entries))]
)
def test_a_bomb_of_300_kb_that_unpacks_to_300_mb_is_refused(opened: Opened, pack: Pack) -> None:
    data = pack((f"cat/{index}.bmp", bytes(10_000_000)) for index in range(30))
    assert len(data) < 310_000
    with pytest.raises(DataError, match=r"unpacks to more than 67 MB from 0\.\d+ MB.*raise collect.options.max_ratio"):
        opened(data)
    assert len(opened(data, max_ratio=100_000)) == 30


def test_more_than_max_unpacked_megabytes_is_refused(opened: Opened) -> None:
    entries = [("cat/a.jpg", os.urandom(800_000)), ("cat/b.jpg", os.urandom(800_000))]
    for data in (pack_zip(entries), pack_tar(entries)):
        with pytest.raises(DataError, match=r"unpacks to more than 1 MB.*raise collect.options.max_unpacked_megabytes"):
            opened(data, max_unpacked_megabytes=1)


def test_a_bomb_behind_the_end_mark_is_refused(opened: Opened) -> None:
    data = gzip.compress(pack_tar(GOOD) + bytes(100 << 20))
    with pytest.raises(DataError, match="unpacks to more than 67 MB"):
        opened(data)


def test_zip_entries_that_share_their_bytes_are_refused(opened: Opened) -> None:
    """Fifield's bombs name the same compressed bytes many times (USENIX WOOT 2019)."""
    data = bytearray(pack_zip(GOOD))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    with pytest.raises(DataError, match="shares bytes with the next one"):
        opened(bytes(data))


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_more_entries_than_max_files_are_refused(opened: Opened, pack: Pack) -> None:
    data = pack((f"cat/{index}.jpg", b"") for index in range(1000))
    assert len(opened(data, max_files=1000)) == 1000
    with pytest.raises(DataError, match=r"holds more than 999 entries; raise collect.options.max_files"):
        opened(data, max_files=999)


def test_a_zip_that_claims_a_huge_list_of_entries_is_refused_before_it_is_read(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack_zip((f"cat/{index:04}.jpg", b"") for index in range(200))
    monkeypatch.setattr(unpacking, "MAX_LISTING_BYTES", 10_000)
    with pytest.raises(DataError, match="claims a list of entries of 0 MB"):
        opened(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
@pytest.mark.parametrize("again", ["cat/a.jpg", "./cat//a.jpg"])
def test_a_name_that_stands_twice_is_refused(opened: Opened, pack: Pack, again: str) -> None:
    with pytest.raises(DataError, match=r"'cat/a.jpg' stands in the archive twice"):
        opened(pack([*GOOD, (again, b"other")]))


def test_an_encrypted_zip_is_refused(opened: Opened) -> None:
    data = bytearray(pack_zip(GOOD))
    data[data.index(b"PK\x03\x04") + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match=r"is encrypted; .* pack it without one"):
        opened(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded_are_refused(opened: Opened, method: int) -> None:
    with pytest.raises(DataError, match=f"is packed by method {method}; .* pack it with deflate"):
        opened(pack_zip(GOOD, method))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "pack",
    [
        pack_zip,
        pack_tar,
        lambda entries: gzip.compress(pack_tar(entries)),
        lambda entries: bz2.compress(pack_tar(entries)),
        lambda entries: lzma.compress(pack_tar(entries)),
        lambda entries: pack_zstd(pack_tar(entries)),
    ],
    ids=["zip", "tar", "gz", "bz2", "xz", "zst"],
)
def test_an_archive_that_is_cut_off_is_refused(opened: Opened, pack: Pack, share: float) -> None:
    # A tar ends in up to 10,240 zeros, less than a hundredth of these.
    data = pack((f"cat/{index}.jpg", os.urandom(100_000)) for index in range(20))
    with pytest.raises(DataError, match=r"is cut off or damaged \(.*\); fetch it again"):
        opened(data[: int(len(data) * share)])


def test_a_tar_that_ends_between_two_entries_is_refused(opened: Opened) -> None:
    with pytest.raises(DataError, match="is cut off or damaged"):
        opened(pack_tar(GOOD)[:1024])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"Rar!\x1a\x07\x00 and more", "begins with the bytes 52 61 72 21 1a 07"),
        (b"\n<!DOCTYPE html><html>", "looks like a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "begins with the bytes ff d8 ff e0 00 00"),
        (b"GIF89a" + pack_zip(GOOD), "begins with the bytes 47 49 46"),
    ],
)
def test_what_is_no_archive_is_named(opened: Opened, data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"{what}.*neither a zip nor a tar"):
        opened(data, "set.zip")


def test_a_compressed_file_that_is_no_tar_is_refused(opened: Opened) -> None:
    with pytest.raises(DataError, match=r"is cut off or damaged \(invalid header\)"):
        opened(gzip.compress(b"x" * 2000))


def test_the_sha256_of_a_file_is_checked_where_it_is_given(opened: Opened) -> None:
    data = pack_tar(GOOD)
    assert len(opened(data, sha256=sha256_bytes(data).upper())) == 2
    with pytest.raises(DataError, match=rf"has the sha256 {sha256_bytes(data)}, collect.options.sha256 says 0000"):
        opened(data, sha256="0" * 64)


def test_a_zip_entry_that_holds_more_than_it_says_gives_no_more_and_is_skipped(opened: Opened) -> None:
    """10 bytes promised, 50 MB held: what is inflated stays bounded, and the checksum tells."""
    data = bytearray(pack_zip([("cat/a.bmp", bytes(50_000_000)), ("cat/b.bmp", b"good")]))
    for marker, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(marker) + place
        data[start : start + 4] = struct.pack("<L", 10)
    source = opened(bytes(data))
    assert content(source) == [("cat/b.bmp", b"good")]
    assert reasons(source) == {"cat/a.bmp": "unreadable"}


@pytest.mark.parametrize("size", [3, 10_000_000, 8**11 - 1])
def test_a_tar_entry_with_a_wrong_size_makes_the_next_header_wrong(opened: Opened, size: int) -> None:
    """A size that swallows the next entries whole cannot be told; the sha256 of the archive tells."""
    data = bytearray(pack_tar([("cat/a.jpg", os.urandom(600)), ("cat/b.jpg", b"2")], format=tarfile.USTAR_FORMAT))
    data[124:136] = b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(DataError, match="is cut off or damaged"):
        opened(bytes(data))


def test_a_damaged_header_is_not_taken_for_the_end(opened: Opened) -> None:
    """`tarfile` alone ends there in silence, and half of the images would be missing."""
    data = bytearray(pack_tar([(f"cat/{index}.jpg", b"1") for index in range(4)], format=tarfile.USTAR_FORMAT))
    data[2048 + 5] ^= 1
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 2
    with pytest.raises(DataError, match=r"is cut off or damaged \(bad checksum\)"):
        opened(bytes(data))


def test_attributes_of_a_size_that_fills_memory_are_refused(opened: Opened) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tar_entry("cat/a.jpg", pax_headers={"SCHILY.xattr.x": "y" * 20_000}))
    with pytest.raises(DataError, match=r"a name or attributes of 20,\d\d\d bytes; `tar --no-xattrs`"):
        opened(buffer.getvalue())


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9999999999"},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999999999"},
        {"GNU.sparse.size": "9999999999"},
    ],
)
def test_files_with_holes_are_refused(opened: Opened, headers: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tar_entry("cat/a.jpg", 5, pax_headers=headers), io.BytesIO(b"1\n0\n1"))
    with pytest.raises(DataError, match=r"a file with holes; pack it without `--sparse`"):
        opened(buffer.getvalue())
    old = bytearray(pack_tar([("cat/a.jpg", b"1")], format=tarfile.USTAR_FORMAT))
    old[156:157] = tarfile.GNUTYPE_SPARSE
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:512])
    with pytest.raises(DataError, match="a file with holes"):
        opened(bytes(old))


@pytest.mark.parametrize("headers", [{"size": "-512"}, {"size": "9" * 30}, {"mtime": "nan"}, {"mtime": "1e400"}])
def test_impossible_numbers_end_in_a_sentence_or_in_an_image(opened: Opened, headers: dict[str, str]) -> None:
    """A negative size made `tarfile` go in circles (CVE-2025-8194)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tar_entry("cat/a.jpg", 1, pax_headers=headers), io.BytesIO(b"1"))
        tar.addfile(tar_entry("cat/b.jpg", 1), io.BytesIO(b"2"))
    if "size" in headers:
        with pytest.raises(DataError, match="is cut off or damaged"):
            opened(buffer.getvalue())
    else:
        assert [image.time.year for image in opened(buffer.getvalue())] == [1970, 2023]


@given(st.data())
def test_a_flipped_byte_ends_in_images_or_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pack = data.draw(st.sampled_from([pack_zip, pack_tar, lambda entries: gzip.compress(pack_tar(entries), mtime=0)]))
    packed = bytearray(pack(GOOD))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "images").write_bytes(packed)
    try:
        found = content(ArchiveSource(folder, Options(file="images")))
    except DataError as error:
        assert "images" in str(error)
    else:
        assert len(found) <= len(GOOD)


def test_a_file_that_changes_after_the_check_is_noticed(opened: Opened, tmp_path: Path) -> None:
    source = opened(pack_tar(GOOD))
    (tmp_path / "images").write_bytes(pack_tar([("cat/a.jpg", b"other"), ("dog/b.png", b"second")]))
    with pytest.raises(DataError, match="was changed while it was read"):
        list(source)


def test_memory_does_not_grow_with_the_bytes_of_the_archive(opened: Opened) -> None:
    import tracemalloc

    data = pack_tar((f"cat/{index}.jpg", zlib.compress(os.urandom(1_000_000), 0)) for index in range(20))
    source = opened(data)
    del data
    tracemalloc.start()
    assert sum(len(image.data) for image in source) > 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# --- options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "needs either `file` (below collect.path) or `url`"),
        ({"file": "a.zip", "url": "https://example.org/a.zip"}, "and not both"),
        ({"url": "https://example.org/a.zip"}, "url needs sha256 beside it"),
        ({"url": "https://10.0.0.1/a.zip", "sha256": "0" * 64}, "leads to 10.0.0.1"),
        ({"file": "../a.zip"}, "must name a file below collect.path"),
        ({"file": "/etc/passwd"}, "must name a file below collect.path"),
        ({"file": "a.zip", "sha256": "123"}, "must be 64 hexadecimal digits"),
        ({"file": "a.zip", "max_files": 0}, "collect.options.max_files"),
        ({"fill": "a.zip"}, "did you mean 'file'?"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    params = CollectParams(
        source="archive", path=str(tmp_path), options=options, feedback=False, images_per_shard=10, max_skipped_share=0
    )
    with pytest.raises(ConfigError) as caught:
        open_source(params)
    assert why in str(caught.value)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set.zip does not exist; put the archive there"):
        ArchiveSource(tmp_path, Options(file="set.zip"))
    with pytest.raises(DataError, match="is not a file"):
        ArchiveSource(tmp_path.parent, Options(file=tmp_path.name))
