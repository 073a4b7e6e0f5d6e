"""The sheet has the originals and variants where one looks for them."""

from __future__ import annotations

import numpy as np

from visionloop.data.contact_sheet import contact_sheet


def test_tiles_stand_in_rows_and_small_images_are_enlarged_whole() -> None:
    originals = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 60)])
    variants = np.stack([np.stack([np.full((8, 8, 3), value + step, np.uint8) for step in (1, 2, 3)]) for value in (10, 60)])
    sheet = np.asarray(contact_sheet(originals, variants, ["seven", "<b>" * 30], "rotation 12"))
    rows = sheet.shape[0] - 6
    tops = [top for top in range(rows) if (sheet[top, 110] == 10).all() or (sheet[top, 110] == 60).all()]
    assert len(tops) == 2 * 72
    assert [int(sheet[tops[0], 110 + column * 78, 0]) for column in range(4)] == [10, 11, 12, 13]
    assert [int(sheet[tops[-1], 110 + column * 78 + 71, 0]) for column in range(4)] == [60, 61, 62, 63]


def test_large_images_are_reduced_and_a_long_title_wraps() -> None:
    originals = np.zeros((1, 300, 150, 3), np.uint8)
    short, long = (contact_sheet(originals, originals[None], ["a"], title) for title in ("x", "word " * 60))
    assert short.size == (110 + 2 * (36 + 6) + 6, 52 + 72 + 6 + 6)
    assert long.width == short.width
    assert long.height > short.height + 3 * 18
