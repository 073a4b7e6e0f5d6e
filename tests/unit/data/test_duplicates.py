"""The search by bands finds exactly what comparing every pair finds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.data.duplicates import connected, hamming, near_pairs, pixel_error
from visionloop.preprocess import PixelArray


def flat_thumbs(count: int) -> PixelArray:
    """Equal small pictures, so that only the hashes decide."""
    one = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    return np.repeat(one, count, axis=0)


def every_pair(hashes: np.ndarray, most_bits: int) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= most_bits
    }


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
def test_bands_find_what_all_pairs_find(base: list[int], data: st.DataObject) -> None:
    most_bits = data.draw(st.sampled_from([0, 1, 3, 4, 6, 8]))
    flips = st.sets(st.integers(0, 63), max_size=most_bits + 2)
    values = base + [value ^ sum(1 << bit for bit in data.draw(flips)) for value in base]
    hashes = np.array(values, dtype=np.uint64)
    first, second, errors = near_pairs(hashes, flat_thumbs(len(values)), most_bits, 0.25)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == every_pair(hashes, most_bits)
    assert (errors < 1e-3).all()


def test_pairs_are_ordered_and_single() -> None:
    hashes = np.array([7, 9, 7, 7], dtype=np.uint64)
    first, second, _ = near_pairs(hashes, flat_thumbs(4), 1, 0.25)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]


def test_equal_hashes_of_different_pixels_are_no_pair() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    first, _, _ = near_pairs(np.array([5, 5], dtype=np.uint64), thumbs, 6, 0.25)
    assert len(first) == 0


def test_pixel_error_is_blind_to_brightness_and_contrast_only() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(50, 150, (1, 16, 16, 3), dtype=np.uint8)
    other = rng.integers(50, 150, (1, 16, 16, 3), dtype=np.uint8)
    assert pixel_error(picture, picture + 40)[0] == pytest.approx(0, abs=1e-3)
    assert pixel_error(picture, picture // 2)[0] == pytest.approx(0, abs=0.03)  # rounding
    assert pixel_error(picture, other)[0] == pytest.approx(2**0.5, abs=0.1)
    assert pixel_error(picture, 255 - picture)[0] == pytest.approx(2, abs=1e-3)


def test_pale_pictures_on_one_ground_are_told_apart() -> None:
    white = np.full((2, 16, 16, 3), 255, dtype=np.uint8)
    white[0, 4:8, 4:8] = 245
    white[1, 9:13, 4:8] = 245
    plain = np.sqrt(np.mean((white[0].astype(float) - white[1]) ** 2)) / 255
    assert plain < 0.02  # an absolute measure would join them
    assert pixel_error(white[:1], white[1:])[0] > 1


def test_hamming() -> None:
    assert hamming(np.array([0, 2**64 - 1], np.uint64), np.array([5, 0], np.uint64)).tolist() == [2, 64]


def test_connected_groups_are_named_by_their_lowest() -> None:
    assert connected(6, np.array([1, 3, 4]), np.array([3, 5, 4])).tolist() == [0, 1, 2, 1, 4, 1]


@pytest.mark.parametrize("kind", ["random", "equal"])
def test_a_hundred_thousand_hashes_take_seconds(kind: str) -> None:
    """Comparing all 5,000,000,000 pairs would take minutes even in numpy; also when thousands share one hash."""
    count = 100_000
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    if kind == "equal":
        hashes[:20_000] = hashes[0]
    start = time.perf_counter()
    first, second, _ = near_pairs(hashes, flat_thumbs(count), 6, 0.25)
    assert time.perf_counter() - start < 30
    if kind == "equal":
        assert len(set(connected(count, first, second)[:20_000].tolist())) == 1
