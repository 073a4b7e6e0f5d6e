"""Rows of two sides as one side: the same pixels, labels and ids, whatever is asked for."""

from __future__ import annotations

import numpy as np

from visionloop.data.packing import PackedSplit
from visionloop.data.views import take


def side(first: int, ids: list[str]) -> PackedSplit:
    images = np.arange(first, first + len(ids), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)
    return PackedSplit(images, np.arange(first, first + len(ids)), ids)


def test_slices_and_rows_of_several_sides() -> None:
    found = take([side(0, ["a", "b", "c"]), side(3, ["d", "e", "c+1"])], np.array([4, 0, 2, 3, 5]))
    assert found.ids == ["e", "a", "c", "d", "c+1"]
    assert found.labels.tolist() == [4, 0, 2, 3, 5]
    assert (found.variants, found.originals) == (1, 4)
    assert found.images.shape == (5, 2, 2, 3) and len(found.images) == 5
    assert found.images[np.array([3, 1, 1])][:, 0, 0, 0].tolist() == [3, 0, 0]
    assert found.images[1:4][:, 1, 1, 2].tolist() == [0, 2, 3]
    assert np.asarray(found.images).dtype == np.uint8
    assert np.array_equal(np.array(found.images), found.images[:])
