"""What a folder may hold, and what is said of what it may not."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from visionloop.config import CollectParams
from visionloop.data.sources import open_source
from visionloop.data.sources.digits import DigitsSource
from visionloop.data.sources.folder import FolderSource
from visionloop.data.sources.layout import place
from visionloop.errors import DataError
from visionloop.preprocess import decode

Write = Callable[[dict[str, bytes]], Path]


def skipped(source: FolderSource) -> dict[str, str]:
    return {item.path: item.reason for item in source.skipped}


def test_digits_are_gray_png_of_8_pixels_with_16_as_white() -> None:
    source = DigitsSource()
    first = next(iter(source))
    decoded = decode(first.data)
    assert (len(source), first.label, first.path, first.split_hint) == (1797, "0", "0/0000.png", None)
    assert (decoded.format, decoded.mode, decoded.width_pixels, decoded.height_pixels) == ("PNG", "L", 8, 8)
    expected = np.rint(load_digits().images[0] * 255 / 16)
    assert np.array_equal(np.asarray(decoded.image)[:, :, 0], expected)


def test_label_is_the_first_folder_and_content_is_not_looked_at(write: Write) -> None:
    root = write({"cat/a.JPG": b"1", "cat/deep/er/b.Png": b"2", "hündin/ø 猫.webp": b"3"})
    found = [(image.label, image.path, image.data) for image in FolderSource(root)]
    assert found == [
        ("cat", "cat/a.JPG", b"1"),
        ("cat", "cat/deep/er/b.Png", b"2"),
        ("hündin", "hündin/ø 猫.webp", b"3"),
    ]


def test_time_is_that_of_the_file(write: Write) -> None:
    root = write({"cat/a.jpg": b"1"})
    os.utime(root / "cat/a.jpg", (1_700_000_000, 1_700_000_000))
    assert next(iter(FolderSource(root))).time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(("folder", "side"), [("train", "train"), ("valid", "val"), ("Validation", "val"), ("test", "test")])
def test_sides_are_kept_as_hints(write: Write, folder: str, side: str) -> None:
    root = write({f"{folder}/cat/sub/a.jpg": b"1"})
    (image,) = FolderSource(root)
    assert (image.label, image.split_hint, image.path) == ("cat", side, f"{folder}/cat/sub/a.jpg")


def test_sides_beside_classes_are_refused(write: Write) -> None:
    root = write({"train/cat/a.jpg": b"1", "dog/a.jpg": b"2"})
    with pytest.raises(DataError, match=r"holds train beside dog; it may hold sides \(train, val, test\) or class folders"):
        FolderSource(root)


def test_what_is_passed_over_is_named(write: Write, tmp_path: Path) -> None:
    root = write(
        {
            "cat/a.jpg": b"1", "cat/.hidden.jpg": b"", "cat/Thumbs.db": b"", "cat/notes.txt": b"", "loose.jpg": b"",
            ".git/objects/x.jpg": b"",
        }
    )  # fmt: skip
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    (root / "cat/link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "linked").symlink_to(tmp_path)
    os.mkfifo(root / "cat/pipe.jpg")
    (root / "empty").mkdir()
    source = FolderSource(root)
    assert [image.data for image in source] == [b"1"]
    assert skipped(source) == {
        "cat/.hidden.jpg": "hidden", "cat/Thumbs.db": "hidden", "cat/notes.txt": "not_an_image", "cat/link.jpg": "symlink",
        "cat/pipe.jpg": "special", "empty": "empty_class", ".git": "hidden", "linked": "symlink", "loose.jpg": "no_class",
    }  # fmt: skip


def test_loose_files_beside_sides_are_named(write: Write) -> None:
    root = write({"train/cat/a.jpg": b"1", "loose.jpg": b"", "LICENSE": b"", "train/b.png": b""})
    source = FolderSource(root)
    assert skipped(source) == {"LICENSE": "not_an_image", "loose.jpg": "no_class", "train/b.png": "no_class"}


def test_a_file_that_goes_or_becomes_a_link_does_not_stop_the_run(write: Write, tmp_path: Path) -> None:
    root = write({"cat/a.jpg": b"1", "cat/b.jpg": b"2", "cat/c.jpg": b"3"})
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    source = FolderSource(root)
    (root / "cat/a.jpg").unlink()
    (root / "cat/b.jpg").unlink()
    (root / "cat/b.jpg").symlink_to(tmp_path / "outside.jpg")
    assert [image.data for image in source] == [b"3"]
    assert skipped(source) == {"cat/a.jpg": "vanished", "cat/b.jpg": "unreadable"}


def test_a_file_over_the_limit_is_passed_over(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.data.sources.base.MAX_FILE_BYTES", 10)
    source = FolderSource(write({"cat/a.jpg": b"0123456789", "cat/b.jpg": b"0123456789a"}))
    assert [image.path for image in source] == ["cat/a.jpg"]
    assert skipped(source) == {"cat/b.jpg": "too_large"}


def test_a_name_that_is_no_utf8_is_shown_and_read(write: Write) -> None:
    root = write({"cat/a.jpg": b"1"})
    Path(os.fsdecode(os.fsencode(root) + b"/cat/\xff.jpg")).write_bytes(b"2")
    assert [(image.path, image.data) for image in FolderSource(root)] == [("cat/\\xff.jpg", b"2"), ("cat/a.jpg", b"1")]


@pytest.mark.parametrize("other", ["CAT", "Cat"])
def test_classes_that_differ_in_case_are_refused(write: Write, other: str) -> None:
    with pytest.raises(DataError, match=rf"'{other}' and 'cat' differ only in case; rename one"):
        FolderSource(write({"train/cat/a.jpg": b"1", f"test/{other}/b.jpg": b"2"}))


def test_a_class_name_with_a_line_break_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"'a\\nb' has control characters"):
        FolderSource(write({"a\nb/a.jpg": b"1"}))


def test_class_names_that_mean_something_elsewhere_are_just_names(write: Write) -> None:
    root = write({f"{name}/a.jpg": name.encode() for name in ("1", "null", "yes", "<script>", "x" * 200)})
    assert {image.label for image in FolderSource(root)} == {"1", "null", "yes", "<script>", "x" * 200}


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("")])
def test_no_folder_no_class_and_no_image_say_what_is_expected(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "raw")
    params = CollectParams(
        source="folder", path=str(tmp_path / "raw"), options={}, feedback=False, images_per_shard=10, max_skipped_share=0.05
    )
    with pytest.raises(
        DataError, match=r"put images there as <folder>/<class>/\*.jpg, or <folder>/train\|val\|test/<class>"
    ):
        open_source(params)


def test_images_without_a_class_folder_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"holds no image in a class folder"):
        FolderSource(write({"a.jpg": b"1", "b.jpg": b"2"}))


def test_odd_file_names_are_kept_as_they_are(write: Write) -> None:
    names = ["a\nb.jpg", "é" * 120 + ".jpg", "😀 '\"&<x>.jpg", "..jpg.jpg.JPG", "x;rm -rf.jpg"]
    root = write({f"cat/{name}": name.encode() for name in names})
    source = FolderSource(root)
    assert {image.path: image.data for image in source} == {
        f"cat/{name}": name.encode() for name in names if not name.startswith(".")
    }
    assert skipped(source) == {"cat/..jpg.jpg.JPG": "hidden"}


def test_a_file_that_grows_while_it_is_read_is_skipped(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"cat/a.jpg": b"12", "cat/b.jpg": b"3"})
    source, fstat, asked = FolderSource(root), os.fstat, list[int]()

    def and_another_program_writes(handle: int) -> os.stat_result:
        asked.append(handle)
        found = fstat(handle)
        if len(asked) == 1:  # a.jpg, before it is read
            with (root / "cat/a.jpg").open("ab") as file:
                file.write(b"more")
        return found

    monkeypatch.setattr("os.fstat", and_another_program_writes)
    assert [image.path for image in source] == ["cat/b.jpg"]
    assert skipped(source) == {"cat/a.jpg": "changed"}


def test_a_file_that_cannot_be_opened_is_skipped(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    source, opened = FolderSource(write({"cat/a.jpg": b"1", "cat/b.jpg": b"2"})), os.open

    def denied(path: str, flags: int) -> int:
        if path.endswith("a.jpg"):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    monkeypatch.setattr("os.open", denied)  # root may read anything, so a file mode would not do
    assert [image.path for image in source] == ["cat/b.jpg"]
    assert skipped(source) == {"cat/a.jpg": "unreadable"}


def test_a_class_of_one_image_and_the_same_image_in_two_classes_come_in(write: Write) -> None:
    source = FolderSource(write({"cat/a.jpg": b"1", "dog/a.jpg": b"1", "bee/deep/nested/c.jpg": b"2"}))
    assert [(image.label, image.data) for image in source] == [("bee", b"2"), ("cat", b"1"), ("dog", b"1")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/a.jpg", "dog/b.jpg"], [("cat", None), ("dog", None)]),
        (["photos/cat/a.jpg", "photos/dog/b.jpg", "README.md"], [("cat", None), ("dog", None)]),
        (["x/y/train/cat/a.jpg", "x/y/Test/cat/b.jpg"], [("cat", "test"), ("cat", "train")]),
        (["train/cat/a.jpg", "train/cat/b.jpg"], [("cat", "train"), ("cat", "train")]),
        (["cat/a.jpg"], [("cat", None)]),
        ([f"{'c' * 300}/a.jpg"], [("c" * 300, None)]),
    ],
)
def test_an_archive_s_outer_folders_are_not_looked_at(names: list[str], expected: list[tuple[str, str | None]]) -> None:
    placed, _ = place(names, where="x.zip", strip_root=True)
    assert [(one.label, one.side) for one in placed] == expected
