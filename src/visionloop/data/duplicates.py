"""Near duplicates: pictures that look the same although their bytes differ.

Perceptual hashes within a few bits make candidates, and small copies of the pixels confirm them. The search looks hashes up
by 16-bit bands, so its work grows with the number of images and of candidates, not with the number of pairs.

Does not cover: crops, mirror images and rotations, which are other pictures to a classifier.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from visionloop.preprocess import PixelArray

IntArray = npt.NDArray[np.int64]

_BANDS, _BAND_BITS = 4, 16
# Thousands of images can share a band, as product photos on one white ground do. Each is then compared with this many
# neighbours in the order of the whole hash: equal pictures have equal hashes and stand side by side.
_NEIGHBOURS = 32
_CHUNK = 1 << 16


def near_pairs(
    hashes: npt.NDArray[np.uint64], thumbs: PixelArray, most_bits: int, most_error: float
) -> tuple[IntArray, IntArray, npt.NDArray[np.float64]]:
    """Pairs (i < j) whose hashes differ in at most `most_bits` bits and whose pixels differ by at most `most_error`.

    Args:
        hashes: uint64 [N].
        thumbs: uint8 [N, S, S, 3].
        most_bits: 0 to 16.
        most_error: see `pixel_error`.

    Returns:
        i [P], j [P] and the pixel errors [P], sorted by i, then j.
    """
    first, second = _candidates(hashes, most_bits)
    errors = np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        errors[part] = pixel_error(thumbs[first[part]], thumbs[second[part]])
    close = errors <= most_error
    return first[close], second[close], errors[close]


def pixel_error(a: PixelArray, b: PixelArray) -> npt.NDArray[np.float64]:
    """How far two stacks of small images [P, S, S, 3] differ, whatever their brightness and contrast; float64 [P].

    The distance sqrt(2 - 2 r) of the standardised pixels, r their correlation: 0 for the same picture, about 1.4 for
    unrelated ones. Relative to each picture's own structure, so pale pictures on one ground do not count as equal.
    """
    left, right = _standardised(a), _standardised(b)
    correlation = np.einsum("pk,pk->p", left, right).astype(np.float64)
    return np.asarray(np.sqrt(np.clip(2 - 2 * correlation, 0, None)))


def connected(count: int, first: IntArray, second: IntArray) -> IntArray:
    """Name the group of each of `count` items, joined by the pairs, by its lowest member; int64 [count]."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(item) for item in range(count)], dtype=np.int64)


def hamming(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> IntArray:
    """Number of differing bits."""
    return np.asarray(np.bitwise_count(a ^ b), dtype=np.int64)


def _standardised(images: PixelArray) -> npt.NDArray[np.float32]:
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(norm, 1.0), dtype=np.float32)


def _candidates(hashes: npt.NDArray[np.uint64], most_bits: int) -> tuple[IntArray, IntArray]:
    """Multi-index hashing (Norouzi et al., CVPR 2012): one of four bands at least differs in <= most_bits // 4 bits."""
    count = len(hashes)
    masks = _masks(most_bits // _BANDS)
    found: list[IntArray] = []
    by_hash = np.argsort(hashes, kind="stable")
    for band in range(_BANDS):
        keys = ((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)).astype(np.int64)
        order = by_hash[np.argsort(keys[by_hash], kind="stable")]  # by band, then by the whole hash
        sorted_keys = keys[order]
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        starts = np.searchsorted(sorted_keys, np.arange((1 << _BAND_BITS) + 1))
        for mask in masks:
            target = keys ^ mask
            begin, end = starts[target], starts[target + 1]
            # Within one key only those after oneself; of two different keys only from the lower one.
            begin = place + 1 if mask == 0 else np.where(keys < target, begin, end)
            length = np.clip(end - begin, 0, _NEIGHBOURS)
            total = int(length.sum())
            if total:
                left = np.repeat(np.arange(count), length)
                offset = np.arange(total) - np.repeat(np.cumsum(length) - length, length)
                right = order[np.repeat(begin, length) + offset]
                close = hamming(hashes[left], hashes[right]) <= most_bits
                low, high = np.minimum(left[close], right[close]), np.maximum(left[close], right[close])
                found.append(low * count + high)
    # The bands find many pairs again. Sorting is ten times as fast here as numpy 2.4's unique, which hashes.
    codes = np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
    codes = codes[np.diff(codes, prepend=-1) > 0]
    return codes // max(count, 1), codes % max(count, 1)


def _masks(most_bits: int) -> list[int]:
    return [
        sum(1 << bit for bit in bits)
        for size in range(most_bits + 1)
        for bits in itertools.combinations(range(_BAND_BITS), size)
    ]
