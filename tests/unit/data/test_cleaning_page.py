"""The page shows every reason with pictures, escapes what files are called, and needs no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.data.conftest import Draw
from visionloop.data.cleaning import summary
from visionloop.data.cleaning_page import MAX_PICTURES, chosen, pictures, render
from visionloop.records import CleanRow, ImageRow

MakeClean = Callable[..., CleanRow]


@pytest.fixture
def rows(clean_row: MakeClean) -> list[CleanRow]:
    rows = [clean_row(number, "cat") for number in range(6)]
    rows[1] = replace(rows[1], cluster=rows[0].id, reason="near_duplicate", detail="Looks like cat/0.png.")
    rows[2] = replace(rows[2], verdict="reject", reason="blank", detail="flat")
    rows[3] = replace(
        rows[3], verdict="reject", reason="unreadable", width_pixels=0, label="<script>alert(1)</script>", path='"><b>x\n'
    )
    return rows


def test_page_tells_reasons_numbers_and_classes(rows: list[CleanRow]) -> None:
    page = render(rows, summary(rows), {rows[2].id: "data:image/png;base64,AAAA"})
    assert "<strong>6</strong>images" in page
    assert re.findall(r'<h2 id="(\w+)">', page) == ["unreadable", "blank", "near_duplicate"]
    assert page.count("data:image/png;base64,AAAA") == 1
    assert "brightness\n100, contrast 50.0" in page
    assert page.count('<span class="badge reject">rejected</span>') == 2


def test_names_are_escaped_and_nothing_is_fetched(rows: list[CleanRow]) -> None:
    page = render(rows, summary(rows), {})
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '"><b>x' not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?:", page)


def test_page_without_remarks(clean_row: MakeClean) -> None:
    kept = [clean_row(1, "cat")]
    assert "No remarks" in render(kept, summary(kept), {})


def test_look_alikes_are_shown_as_one_group_with_the_first(rows: list[CleanRow]) -> None:
    assert chosen(rows) == {"unreadable": [[3]], "blank": [[2]], "near_duplicate": [[0, 1]]}


def test_no_more_than_sixty_of_a_reason(clean_row: MakeClean) -> None:
    many = [clean_row(number, "cat", verdict="reject", reason="blank") for number in range(100)]
    groups = chosen(many)["blank"]
    assert len(groups) == MAX_PICTURES == 60
    assert "The first 60 are shown" in render(many, summary(many), {})


def test_pictures_are_small_and_broken_ones_have_none(draw: Draw, image_row: Callable[..., ImageRow]) -> None:
    data = {"a/small.png": draw(0, side=16), "a/large.jpg": draw(1, side=600, kind="JPEG"), "a/bad.jpg": b"x"}
    encoded = [(image_row(content, path), content) for path, content in data.items()]
    found = pictures(encoded, 10**6)
    assert [found.get(row.id, "")[:16] for row, _ in encoded] == ["data:image/png;b", "data:image/jpeg;", ""]
    assert len(found[encoded[1][0].id]) < 8000
