"""What is put comes back, in any order, and nothing stays on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionloop.data.thumbs import Thumbs


def pixels(number: int) -> bytes:
    return bytes([number % 251]) * (32 * 32 * 3)


@settings(max_examples=30)
@given(wanted=st.lists(st.integers(0, 19), max_size=40))
def test_reads_in_the_order_asked_for(wanted: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    with Thumbs(20, tmp_path_factory.mktemp("thumbs")) as thumbs:
        for index in range(20):
            thumbs.put(index, pixels(index))
        read = thumbs.read(np.array(wanted, dtype=np.int64))
    assert read.shape == (len(wanted), 32, 32, 3) and read.dtype == np.uint8
    assert [one.tobytes() for one in read] == [pixels(index) for index in wanted]


def test_batches_bring_all_and_the_last_is_shorter(tmp_path: Path) -> None:
    with Thumbs(5, tmp_path) as thumbs:
        thumbs.put(4, pixels(9))
        found = [(start, len(batch), int(batch.max())) for start, batch in thumbs.batches(2)]
    assert found == [(0, 2, 0), (2, 2, 0), (4, 1, 9)]


def test_no_file_has_a_name_in_the_folder(tmp_path: Path) -> None:
    with Thumbs(3, tmp_path / "new") as thumbs:
        thumbs.put(0, pixels(1))
        assert list((tmp_path / "new").iterdir()) == []
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("index", "data"), [(3, pixels(1)), (-1, pixels(1)), (0, b"short")])
def test_a_wrong_put_is_a_programming_error(index: int, data: bytes, tmp_path: Path) -> None:
    with Thumbs(3, tmp_path) as thumbs, pytest.raises(AssertionError):
        thumbs.put(index, data)
