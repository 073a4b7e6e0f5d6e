"""What a label must be like, and what a CSV file of labels may look like."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.labels import BadRow, LabelRow, check_label, check_who, escaped, read_labels, unescaped
from visionloop.errors import LabelError

CLASSES = ("cat", "dog", "grün", "T-shirt")


@pytest.mark.parametrize(
    ("text", "reason", "sentence"),
    [
        ("", "empty", "The label is empty; name the class."),
        ("  ", "empty", "The label is empty"),
        ("Cat", "unknown_class", "'Cat' is no class; did you mean 'cat'?"),
        (" cat", "unknown_class", "' cat' is no class; did you mean 'cat'?"),
        ("t-SHIRT ", "unknown_class", "did you mean 'T-shirt'?"),
        ("ｃａｔ", "unknown_class", "did you mean 'cat'?"),
        ("catt", "unknown_class", "'catt' is no class; did you mean 'cat'? --new-class allows a new one."),
        ("elephant", "unknown_class", "'elephant' is no class; known are cat, dog, grün, T-shirt. --new-class allows"),
        ("1", "unknown_class", "Labels are names; '1' is none, and class number 1 is 'dog'."),
        ("4", "unknown_class", "'4' is no class; known are"),
        ("null", "unknown_class", "'null' is no class"),
        ("<script>alert(1)</script>", "unknown_class", "is no class"),
        ("'; DROP TABLE feedback; --", "unknown_class", "is no class"),
        ("cat\n", "unprintable", r"The label 'cat\n' has control characters"),
        ("c\0at", "unprintable", "control characters"),
        ("\x1b[31mcat", "unprintable", "control characters"),
        ("cat\u202e", "unprintable", "control characters"),
        ("\udcff", "unprintable", "control characters"),
        ("x" * 201, "too_long", "The label has 201 characters; a class name has up to 200."),
        ("x" * 10_000_000, "too_long", "The label has 10,000,000 characters"),
    ],
)
def test_what_is_no_class_is_refused_with_what_was_meant(text: str, reason: str, sentence: str) -> None:
    with pytest.raises(LabelError) as caught:
        check_label(text, CLASSES)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_class_is_taken_however_its_letters_are_composed() -> None:
    assert check_label("grün", CLASSES) == "grün"
    assert check_label(unicodedata.normalize("NFD", "grün"), CLASSES) == "grün"


def test_a_new_class_is_taken_where_it_is_allowed() -> None:
    assert check_label("zebra", CLASSES, new=["zebra"]) == "zebra"
    assert check_label("=cmd()", CLASSES, new=["=cmd()"]) == "=cmd()"
    assert check_label("catt", CLASSES, new=["catt"]) == "catt"
    assert check_label("7", CLASSES, new=["7"]) == "7"
    assert check_label("zebra", CLASSES, given={"zebra"}) == "zebra"  # somebody named it before
    with pytest.raises(LabelError, match="did you mean 'zebra'"):
        check_label("Zebra", CLASSES, given={"zebra"}, new=["Zebra"])
    with pytest.raises(LabelError, match="did you mean 'cat'"):
        check_label("CAT", CLASSES, new=["CAT"])
    with pytest.raises(LabelError, match="has spaces around it; write 'zebra'"):
        check_label("zebra ", CLASSES, new=["zebra "])
    with pytest.raises(LabelError, match="control characters"):
        check_label("ze\tbra", CLASSES, new=["ze\tbra"])


def test_class_names_that_are_numbers_are_names() -> None:
    assert check_label("3", tuple(map(str, range(10)))) == "3"
    with pytest.raises(LabelError, match="'10' is no class"):
        check_label("10", tuple(map(str, range(10))))


def test_many_classes_are_not_all_listed() -> None:
    with pytest.raises(LabelError, match=r"known are c00, .*, c19 and 80 more\. --new"):
        check_label("zebra", [f"c{number:02}" for number in range(100)])


def test_a_name_of_who_labels_is_one_line() -> None:
    assert check_who(" Éva ") == "Éva"
    assert check_who("") == ""
    for text in ("a\nb", "x" * 201, "x" * 10_000_000):
        with pytest.raises(LabelError):
            check_who(text)


def _rows(tmp_path: Path, content: str | bytes) -> list[LabelRow | BadRow]:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_labels(path))


@pytest.mark.parametrize(
    "content",
    [
        "prediction_id,label,who\na,cat,Éva\nb,dog,\n",
        "\ufeffprediction_id;label;who\r\na;cat;Éva\r\nb;dog;\r\n",
        '"prediction_id","label","who"\n"a","cat","Éva"\n\n"b","dog",""',
        "Label\tPrediction_ID\timage\twho\ncat\ta\tx.png\tÉva\ndog\tb\ty.png\n",
        "prediction_id,label,who\ra,cat,Éva\rb,dog,\r",
    ],
)
def test_the_usual_forms_of_csv_are_read(tmp_path: Path, content: str) -> None:
    rows = _rows(tmp_path, content)
    assert [(row.prediction_id, row.label, row.who) for row in rows if isinstance(row, LabelRow)] == [
        ("a", "cat", "Éva"),
        ("b", "dog", ""),
    ]


def test_a_bad_row_is_named_by_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    text = 'prediction_id,label\na,cat\n"b\nb",dog\nc\nd,"do"g\ne,cat,more\nf,"=cmd()"\ng,"'
    found = _rows(tmp_path, text + "x" * 300_000 + '"\nh,"open')
    assert [row.line for row in found] == [2, 3, 5, 6, 7, 8, 9, 10]
    assert [row.reason if isinstance(row, BadRow) else row.label[:6] for row in found] == [
        "cat", "dog", "cells", "quotes", "cells", "=cmd()", "xxxxxx", "quotes",
    ]  # fmt: skip
    assert isinstance(found[2], BadRow)
    assert found[2].sentence == "The row has 1 of the header's 2 cells; add what is missing."
    assert csv.field_size_limit() == 131_072  # as it was


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with ''; its first row must name the columns prediction_id and label"),
        (b"a,cat\nb,dog\n", "begins with 'a,cat'; its first row must name"),
        (b"prediction_id,class\na,cat\n", "must name the columns"),
        ("prediction_id,label\na,grün\n".encode("latin-1"), "is not UTF-8; save it as CSV UTF-8"),
        ("prediction_id,label\na,cat\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_csv_of_labels_is_refused_whole(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        _rows(tmp_path, content)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"nowhere\.csv cannot be read \(No such file or directory\)"):
        list(read_labels(tmp_path / "nowhere.csv"))
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(LabelError, match="over 64 MiB; cut it"):
        list(read_labels(tmp_path / "large.csv"))


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "'tis", "'=x", "\tx", "cat"])
def test_no_cell_is_a_formula_and_it_comes_back(text: str) -> None:
    assert escaped(text)[0] not in "=+-@\t"
    assert unescaped(escaped(text)) == text


@given(st.text())
def test_any_label_survives_the_way_through_a_csv(text: str) -> None:
    assert unescaped(escaped(text)) == text
    out = io.StringIO()
    csv.writer(out).writerow([escaped(text)])
    assert out.getvalue().lstrip('"')[0] not in "=+-@"
