"""Near duplicates: pictures that look the same although their bytes differ.

Perceptual hashes within a few bits make candidates, and small copies of the pixels confirm them. The search looks hashes up
by 16-bit bands, so its work grows with the number of images and of candidates, not with the number of pairs.

Does not cover: crops, mirror images and rotations, which are other pictures to a classifier.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.config import CleanParams
from visionloop.data.thumbs import Thumbs
from visionloop.preprocess import PixelArray

IntArray = npt.NDArray[np.int64]

_BANDS, _BAND_BITS = 4, 16
# Thousands of images can share a band, as product photos on one white ground do. Each is then compared with this many
# neighbours in the order of the whole hash: equal pictures have equal hashes and stand side by side.
_NEIGHBOURS = 32
_CHUNK = 1 << 12


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs that show the same picture, `first` before `second` in the order of the images searched; each field has [P]."""

    first: IntArray
    second: IntArray
    error: npt.NDArray[np.float64]  # see `pixel_error`
    mirrored: npt.NDArray[np.bool_]  # the one is like the other, flipped left to right
    bits: IntArray  # of the hashes that differ


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    mirrored: npt.NDArray[np.uint64],
    thumbs: Thumbs,
    usable: IntArray,
    *,
    params: CleanParams,
) -> NearPairs:
    """Find the pairs among the images at the positions `usable` that show the same picture.

    Args:
        hashes: uint64 [N], the perceptual hashes of all images.
        mirrored: uint64 [N], those of their mirror images.
        thumbs: the small copies of all N.
        usable: int64 [n], the positions to search, in ascending order.
        params: how close is close.

    Returns:
        Positions in 0..N-1, sorted by the first, then the second.
    """
    count = len(usable)
    both = np.concatenate([hashes[usable], mirrored[usable]])
    first, second = _candidates(both, params.near_duplicate_hash_bits)
    # Two mirror images of a pair are the pair again.
    first, second = first[first < count], second[first < count]
    flipped = second >= count
    second = np.where(flipped, second - count, second)
    keep = first < second
    first, second, flipped = first[keep], second[keep], flipped[keep]
    errors = np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        left, right = thumbs.read(usable[first[part]]), thumbs.read(usable[second[part]])
        right = np.where(flipped[part, None, None, None], right[:, :, ::-1], right)
        errors[part] = pixel_error(left, right)
    close = np.flatnonzero(errors <= params.near_duplicate_error)
    order = close[np.lexsort((errors[close], second[close], first[close]))]
    code = first[order] * max(count, 1) + second[order]
    order = order[np.diff(code, prepend=-1) > 0]  # the better one of plain and mirrored
    first, second, flipped = first[order], second[order], flipped[order]
    bits = hamming(both[first], both[np.where(flipped, second + count, second)])
    return NearPairs(usable[first], usable[second], errors[order], flipped, bits)


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
