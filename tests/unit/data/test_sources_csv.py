"""What a table may look like, and what is said, with the line, of one that it may not."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from visionloop.data.sources.base import SourceImage
from visionloop.data.sources.csv import CsvSource, Options
from visionloop.errors import DataError

Write = Callable[[dict[str, bytes]], Path]
IMAGES = {"a.jpg": b"1", "b.jpg": b"2", "sub/ø 猫.png": b"3"}


@pytest.fixture
def table(write: Write) -> Callable[..., CsvSource]:
    def make(text: str | bytes, images: dict[str, bytes] = IMAGES, **options: Any) -> CsvSource:
        data = text if isinstance(text, bytes) else text.encode()
        return CsvSource(write({**images, "labels.csv": data}), Options(**options))

    return make


def read(source: CsvSource) -> list[tuple[str, str, bytes]]:
    return [(image.path, image.label, image.data) for image in source]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.jpg,cat\nsub/ø 猫.png,dog\n",
        "\ufeffimage;label\r\na.jpg;cat\r\nsub/ø 猫.png;dog\r\n",
        '"label"\t"image"\ncat\ta.jpg\n\ndog\t"sub/ø 猫.png"',
        " image | label \n a.jpg | cat \n sub\\ø 猫.png | dog \n",
        'image,label,note\n"a.jpg","cat","x, y; z"\n./sub/ø 猫.png,dog,"two\nlines"\n',
    ],
)
def test_forms_of_one_table_read_the_same(table: Callable[..., CsvSource], text: str) -> None:
    source = table(text)
    assert (len(source), read(source), source.skipped) == (2, [("a.jpg", "cat", b"1"), ("sub/ø 猫.png", "dog", b"3")], [])


def test_every_column_reaches_the_image(table: Callable[..., CsvSource]) -> None:
    source = table(
        "file,class,group,time,split,labelled_by\n"
        "a.jpg,cat,patient 1,2026-05-04T12:30:00+02:00,Valid,Éva\n"
        "b.jpg,dog,,2026-05-04,,\n",
        image="file",
        label="class",
    )
    assert list(source) == [
        SourceImage(b"1", "cat", "a.jpg", datetime(2026, 5, 4, 10, 30, tzinfo=UTC), "val", "patient 1", "Éva", True),
        SourceImage(b"2", "dog", "b.jpg", datetime(2026, 5, 4, tzinfo=UTC), None, "", "", True),
    ]


def test_without_its_columns_time_is_the_file_s_and_the_table_gave_the_label(table: Callable[..., CsvSource]) -> None:
    source = table("image,label\na.jpg,cat\n")
    (image,) = source
    assert (image.labelled_by, image.group, image.split_hint, image.time_stated) == ("labels.csv", "", None, False)


def test_columns_of_other_names_are_used_when_named(table: Callable[..., CsvSource]) -> None:
    (image,) = table("image,label,camera\na.jpg,cat,left\n", group="camera")
    assert image.group == "left"


def test_rows_that_bring_no_image_are_skipped_with_the_reason(table: Callable[..., CsvSource], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.jpg").write_bytes(b"secret")
    rows = ["a.jpg,cat", "b.jpg,", "gone.jpg,cat", "../outside/x.jpg,cat", "/etc/passwd,cat", "C:\\x.jpg,cat",
            "link.jpg,cat", "door/x.jpg,cat", "sub/../../outside/x.jpg,cat"]  # fmt: skip
    source = table("image,label\n" + "\n".join(rows))
    raw = tmp_path / "raw"
    (raw / "link.jpg").symlink_to(tmp_path / "outside/x.jpg")
    (raw / "door").symlink_to(tmp_path / "outside")
    assert read(source) == [("a.jpg", "cat", b"1")]
    assert {item.path: item.reason for item in source.skipped} == {
        "b.jpg": "no_label", "gone.jpg": "missing", "../outside/x.jpg": "outside", "/etc/passwd": "outside",
        "C:/x.jpg": "outside", "link.jpg": "unreadable", "door/x.jpg": "outside",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,lable\na.jpg,cat\n", r"no column 'label'; did you mean 'lable'\?"),
        ("Image,Label\na.jpg,cat\n", r"no column 'image'; did you mean 'Image'\?"),
        ("x;y\n", r"no column 'image'; there are 'x', 'y'\."),
        ("", r"no column 'image'; there are none\."),
        ("image,label,label\na.jpg,cat,dog\n", r"the column 'label' stands twice; rename one"),
        ("image,label\na.jpg,cat\nb.jpg\n", r"line 3: it has 1 fields, the header has 2"),
        ("image,label\n,cat\n", r"line 2: the column 'image' is empty"),
        ('image,label\na.jpg,"cat\n', r"line 2: unexpected end of data; mend the line"),
        ("image,label,time\na.jpg,cat,2026-05-04\nb.jpg,cat,4.5.2026\n", r"line 3: '4.5.2026' is no time; write it as"),
        ("image,label,split\na.jpg,cat,tset\n", r"line 2: 'tset' is no side; write train, val or test"),
        ('image,label\na.jpg,"c\nat"\n', r"line 3: the class 'c\\nat' has control characters"),
        ("image,label\na.jpg,cat\nb.jpg,Cat\n", r"classes 'Cat' and 'cat' differ only in case"),
        ("image,label\na.jpg,\xe9".encode("latin-1"), r"is not UTF-8; save it as UTF-8"),
        ("image,label\na.jpg,cat\n".encode("utf-16"), r"is not UTF-8; save it as UTF-8"),
    ],
)  # fmt: skip
def test_what_a_table_may_not_say_is_answered_with_the_line(
    table: Callable[..., CsvSource], text: str | bytes, sentence: str
) -> None:
    with pytest.raises(DataError, match=rf"labels.csv.*{sentence}"):
        table(text)


def test_a_named_column_must_be_there(table: Callable[..., CsvSource]) -> None:
    with pytest.raises(DataError, match=r"no column 'camera'; there are 'image', 'label'"):
        table("image,label\na.jpg,cat\n", group="camera")


def test_a_table_that_is_not_there_or_elsewhere_is_refused(table: Callable[..., CsvSource]) -> None:
    with pytest.raises(DataError, match=r"other.csv cannot be read \(No such file or directory\); set collect.path"):
        table("", file="other.csv")
    with pytest.raises(DataError, match=r"file is '../x.csv'; it must lie below collect.path"):
        table("", file="../x.csv")


def test_labels_that_mean_something_elsewhere_are_just_words(table: Callable[..., CsvSource]) -> None:
    labels = ["yes", "null", "1", "=cmd()", "<script>"]
    source = table("image,label\n" + "".join(f"a.jpg,{label}\n" for label in labels))
    assert [image.label for image in source] == labels


def test_a_table_in_a_sub_folder_names_images_from_there(write: Write) -> None:
    root = write({"meta/t.csv": b"image,label\nx.jpg,cat\n", "meta/x.jpg": b"1"})
    os.utime(root / "meta/x.jpg", (1_700_000_000, 1_700_000_000))
    (image,) = CsvSource(root, Options(file="meta/t.csv"))
    assert (image.path, image.time) == ("x.jpg", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
