"""What people decided is read as they wrote it, or refused with the line and what to write instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visionloop.data.decisions import Decision, read_decisions, resolve
from visionloop.errors import DataError

A, B, C = "a" * 64, "ab" * 32, "c" * 64
HEADER = "id,decision,label,who,why\n"


def read(tmp_path: Path, content: str | bytes) -> list[Decision]:
    path = tmp_path / "decisions.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_decisions(path)


def resolved(*decisions: Decision, ids: tuple[str, ...] = (A, B, C)) -> dict[str, Decision]:
    return resolve(decisions, np.sort(np.array(ids, dtype="S64")), {"cat", "dog"}, 3, Path("d.csv")).by_id


def test_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    found = read(tmp_path, f'{HEADER}{A},keep,,ann,"fine, really"\n\n{B[:12].upper()},Relabel,dog,ben,\n')
    assert found == [
        Decision(A, "keep", "", "ann", "fine, really", 2),
        Decision(B[:12], "relabel", "dog", "ben", "", 4),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + HEADER + f"{A},drop,,ann,x\n",
        (HEADER + f"{A},drop,,ann,x\n").replace("\n", "\r\n"),
        (HEADER + f"{A},drop,,ann,x\n").replace(",", ";"),
        "\ufeff" + (HEADER + f'{A},"drop","","ann","x"').replace(",", ";").replace("\n", "\r\n"),
    ],
    ids=["byte order mark", "CRLF", "semicolons", "all of them, quoted, without a last line break"],
)
def test_spreadsheets_write_it_in_their_own_ways(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == [Decision(A, "drop", "", "ann", "x", 2)]


def test_a_cell_that_a_spreadsheet_would_run_is_text_with_a_quote_before_it(tmp_path: Path) -> None:
    (found,) = read(tmp_path, f"{HEADER}{A},relabel,'=cmd(),'@ann,'n'est pas\n")
    assert (found.label, found.who, found.why) == ("=cmd()", "@ann", "'n'est pas")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (f"{A},hold,,ann,", "line 2: the decision is 'hold'; it must be keep, drop or relabel."),
        (f"{A},kep,,ann,", "line 2: the decision is 'kep'; did you mean keep?"),
        (f"{A},relabel,,ann,", "line 2: relabel needs the right label, and its cell is empty."),
        (f"{A},drop,cat,ann,", "line 2: drop takes no label and has 'cat'; write relabel to give one, else empty the cell."),
        (f"{A},keep,,,", "line 2: the cell who is empty; write who decided."),
        ("abc,keep,,ann,", "line 2: the id 'abc' is not the first 12 to 64 hexadecimal digits of an image's sha256;"),
        (f"{A}a,keep,,ann,", "line 2: the id 'aaaa"),
        ("cat/0001.jpg,keep,,ann,", "line 2: the id 'cat/0001.jpg' is not"),
        (f"{A},keep,ann", "line 2: it has 3 cells where id,decision,label,who,why are 5; quote a cell with commas."),
        (f"{A};keep;;ann;", "line 2: it has 1 cells where"),
        (f'{A},relabel,"c\nat",ann,', "line 2: the label 'c\\nat' has a line break or control character in it; remove it."),
        (f'{B},keep,,ann,\n{A},keep,,"a"nn,', "line 3: this is not CSV ("),
        (f'{B},keep,,ann,"a\nb"\n{A},kep,,ann,', "line 4: the decision is 'kep'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, f"{HEADER}{row}\n")
    assert str(error.value).startswith(f"{tmp_path}/decisions.csv, {sentence}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "line 1: the header is ''; it must be id,decision,label,who,why."),
        (b"id,label\n", "line 1: the header is 'id,label'; it must be"),
        (b"ID;decision,label;who;why\n", "line 1: the header is"),
        (b"\xff\xfei\x00d\x00", "is not UTF-8; save it as UTF-8."),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    assert sentence in str(error.value)


def test_a_missing_file_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file.*one line id,decision,label,who,why"):
        read_decisions(tmp_path / "none.csv")


def test_the_header_alone_decides_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER) == []


def keep(image: str, line: int = 2) -> Decision:
    return Decision(image, "keep", "", "ann", "", line)


def relabel(image: str, label: str, line: int = 2) -> Decision:
    return Decision(image, "relabel", label, "ann", "", line)


def test_a_shortened_id_is_enough_while_it_fits_one_image() -> None:
    assert resolved(keep(C[:12])) == {C: keep(C[:12])}
    with pytest.raises(DataError, match=r"d.csv, line 2: the id a{12} fits 2 images; write more of its digits."):
        resolved(keep("a" * 12), ids=(A, "a" * 13 + "b" * 51))
    assert resolved(keep("a" * 12), ids=(A, A, B)) == {A: keep("a" * 12)}  # two files of the same bytes are one image


def test_an_image_that_is_gone_is_counted() -> None:
    found = resolve([keep("d" * 64), keep(A)], np.array([A], dtype="S64"), {"cat"}, 3, Path("d.csv"))
    assert (set(found.by_id), found.unknown) == ({A}, 1)


def test_rows_that_contradict_each_other_are_refused_and_repeated_ones_are_not() -> None:
    assert resolved(keep(A, 2), keep(A, 3)) == {A: keep(A, 2)}
    with pytest.raises(DataError, match=r"line 7: it says drop of the image of which line 2 says keep; remove one"):
        resolved(keep(A), Decision(A[:20], "drop", "", "ann", "", 7))
    with pytest.raises(DataError, match=r"line 3: it says relabel to 'dog' of .* line 2 says relabel to 'cat'"):
        resolved(relabel(A, "cat"), relabel(A, "dog", 3))


def test_a_label_that_is_no_class_is_a_typing_error_until_enough_images_have_it() -> None:
    with pytest.raises(DataError, match=r"line 2: 'dgo' is no class; did you mean 'dog'\? A new class takes 3 .* are 1"):
        resolved(relabel(A, "dgo"))
    with pytest.raises(DataError, match=r"line 2: 'zebra' is no class; classes are 'cat', 'dog'. A new class takes 3"):
        resolved(relabel(A, "zebra"), relabel(B, "zebra", 3))
    assert len(resolved(*(relabel(image, "zebra", line) for line, image in enumerate((A, B, C), 2)))) == 3
    with pytest.raises(DataError, match=r"line 2: 'Cat' is no class; did you mean 'cat'\?$"):
        resolved(*(relabel(image, "Cat", line) for line, image in enumerate((A, B, C), 2)))
