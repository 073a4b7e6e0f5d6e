"""docs/bad-inputs.md: each row names a test that exists, or says why there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bad-inputs.md"
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.read_text().splitlines()
        if re.match(r"\| [A-H]\d+ \|", line)]  # fmt: skip
# How many rows a section of the page has, so that none is lost.
SECTIONS = {"A": 48, "B": 47, "C": 60, "D": 14, "E": 16, "F": 18, "G": 6, "H": 32}


@pytest.mark.parametrize(("section", "count"), SECTIONS.items())
def test_a_section_has_all_its_rows(section: str, count: int) -> None:
    numbers = [int(row[0][1:]) for row in ROWS if row[0].startswith(section)]
    assert numbers == list(range(1, count + 1))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_a_test_that_exists_or_says_why_not(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])
    assert named or row[2].startswith("Not applicable: "), f"{row[0]} has neither a test nor a reason"
    for file, name in named:
        assert (ROOT / file).is_file(), f"{row[0]} names {file}, which is not there"
        assert f"def {name}(" in (ROOT / file).read_text(), f"{row[0]}: {file} has no {name}"
