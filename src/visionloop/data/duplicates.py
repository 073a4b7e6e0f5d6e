"""Near duplicates: images that show the same picture although their bytes differ.

Copies that were re-encoded, resized, brightened, made gray, mirrored, or cropped by up to about 5 % a side are found. The
search has three steps. Low cosine terms of the gray picture, and of its inner part, are compared within the leaves of a few
random trees, so its work grows as n log n. The two of a candidate pair are then laid over each other (shift, zoom,
brightness and contrast are fitted) and compared by their fine structure, since products on one ground are alike in the
large. At last groups are held together by their first member, so that a chain of small steps does not join pictures that
differ.

Does not cover: rotations, larger crops, overlaid text, and two photos of one thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.config import CleanParams
from visionloop.data.embedding import one_thread_blas, parallel
from visionloop.data.thumbs import THUMB_SIDE, Thumbs
from visionloop.preprocess import PixelArray
from visionloop.progress import track

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BATCH = 256  # images at a time: they fit into the cache

# Candidates. Copies have a cosine of 0.96 or more (98 % of those where 5 % a side are cut off), and so have 0.12 others an
# image among 60,000 of CIFAR-10, and 0.65 among 3,781 photos of clothing. One inner part serves crops of 2 to 5 %.
_TERMS = 8  # cosine terms (u, v) with u + v <= 8, without the mean: 44 numbers
_INNER = 0.04
_COSINE = 0.96
_TREES = 10  # find all of the 1,119 pairs that comparing each with each finds among 60,000 images of CIFAR-10; 6 miss 13
_LEAF = 256
_PARTNERS = 6  # the nearest in a leaf: work in a crowd of equal pictures grows with this number
_LEAVES = 4  # compared at a time: their products fit into the cache
_DIRECTIONS = 12  # principal axes that the trees cut along

# Verification.
_PAIRS = 128  # at a time: they fit into the cache
_SIDE = THUMB_SIDE // 2
_NOISE = 0.5  # gray levels squared: what is finer than rounding is no structure
_HOPELESS = 0.7  # a pair this far apart in gray at half size is not looked at in colour and at full size
_ITERATIONS = 3
_MOST_SHIFT = 1.6  # of 16 pixels: 10 % of the picture
_GRAY_SPREAD = 4  # mean difference of the largest and the smallest channel; JPEG leaves some in a gray picture
_WHOLE_WEIGHT = 1.5  # the fine structure of the same picture differs more than the whole, which still must agree
_REDUCED = 1.3  # times the limit for a copy that was reduced to under 32 pixels: its fine structure is gone
_LOOSE = 1.5  # times the limit, between a group's first image and the others: two crops of one picture


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs that show the same picture, `first` before `second` in the order of the images searched; each field has [P]."""

    first: IntArray
    second: IntArray
    error: npt.NDArray[np.float64]  # up to the limit; see `picture_error`
    mirrored: npt.NDArray[np.bool_]  # the one is like the other, flipped left to right
    bits: IntArray  # of the hashes that differ


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    mirrored: npt.NDArray[np.uint64],
    thumbs: Thumbs,
    usable: IntArray,
    *,
    sides: IntArray,
    params: CleanParams,
) -> NearPairs:
    """Find the pairs among the images at the positions `usable` that show the same picture.

    Images of under 32 pixels have less detail to differ in, so their limit is lower, with the square root of the side: among
    the 1,797 handwritten digits of 8 x 8 pixels, 670 pairs of different ones lie below 0.45 and one pair below 0.225. A copy
    reduced to under 32 pixels is allowed 1.3 times the limit.

    Where many images are alike, each is paired with its nearest ones and with early ones, not with all. `connected` makes
    the groups; every member of a group agrees with its first one within 1.5 times the limit.

    Args:
        hashes: uint64 [N], the perceptual hashes of all images; only for the number of differing bits.
        mirrored: uint64 [N], those of their mirror images.
        thumbs: the small copies of all N.
        usable: int64 [n], the positions to search, in ascending order.
        sides: int64 [N], the shorter side of each image in pixels; of a pair the larger counts, since a copy may be small.
        params: `near_duplicate_error` is the limit of `picture_error`.

    Returns:
        Positions in 0..N-1, sorted by the first, then the second.
    """
    # Thousands of small products: threads of BLAS would spend their time in waiting for each other.
    with one_thread_blas():
        return _near_pairs(hashes, mirrored, thumbs, usable, _Limits(sides, params.near_duplicate_error))


@dataclass(frozen=True, slots=True)
class _Limits:
    """The limit of a pair by the shorter sides of its images."""

    sides: IntArray  # [N], pixels
    limit: float

    def of(self, a: IntArray, b: IntArray) -> FloatArray:
        large, small = np.maximum(self.sides[a], self.sides[b]), np.minimum(self.sides[a], self.sides[b])
        reduced = (small < THUMB_SIDE) & (large >= THUMB_SIDE)
        factor = np.sqrt(np.minimum(large / THUMB_SIDE, 1)) * np.where(reduced, _REDUCED, 1)
        return np.asarray(self.limit * factor, dtype=np.float32)


def _near_pairs(
    hashes: npt.NDArray[np.uint64], mirrored: npt.NDArray[np.uint64], thumbs: Thumbs, usable: IntArray, limits_of: _Limits
) -> NearPairs:
    first, second, flipped = candidates(thumbs, usable)
    limits = limits_of.of(usable[first], usable[second])
    error = _errors(thumbs, usable[first], usable[second], flipped, limits, show="lay over each other")
    close = np.flatnonzero(error <= limits)
    order = close[np.lexsort((error[close], second[close], first[close]))]
    same = (np.diff(first[order], prepend=-1) == 0) & (np.diff(second[order], prepend=-1) == 0)
    order = order[~same]  # of plain and mirrored the better one
    first, second, flipped, error = first[order], second[order], flipped[order], error[order]
    kept = _held_together(thumbs, usable, first, second, limits_of)
    first, second, flipped, error = usable[first[kept]], usable[second[kept]], flipped[kept], error[kept]
    bits = hamming(hashes[first], np.where(flipped, mirrored[second], hashes[second]))
    return NearPairs(first, second, error.astype(np.float64), flipped, bits)


def candidates(thumbs: Thumbs, usable: IntArray) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    """Pairs worth a closer look: positions in `usable`, first < second, and whether the second is to be mirrored.

    Exact among up to 128 images. Beyond that each of ten trees halves the images along random directions until 256 plain and
    inner pictures are left together; both are split by terms that mirroring does not change.
    """
    count = len(usable)
    if count < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_)
    even, odd = _points(thumbs, usable)
    key = _key(even, odd)
    trees = range(_TREES if _depth(2 * count) else 1)
    found = parallel(lambda tree: _within(even, odd, _leaves(key, tree), count), trees)
    codes, likeness = zip(*track(found, "compare", len(trees) * count, lambda _: count), strict=True)
    code, cosine = np.concatenate(codes), np.concatenate(likeness)
    order = np.lexsort((-cosine, code))
    order = order[np.diff(code[order], prepend=-1) > 0]
    code, cosine = code[order], cosine[order]
    first, second, flipped = code // 2 // count, code // 2 % count, code % 2 == 1
    keep = _nearest(first, second, cosine, count)
    return first[keep], second[keep], flipped[keep]


def _points(thumbs: Thumbs, usable: IntArray) -> tuple[FloatArray, FloatArray]:
    """The terms of `usable` and then those of their inner parts, each picture's of length 1.

    float32 [2 n + 1, 24] of those that mirroring keeps, and [2 n + 1, 20] of those whose sign it turns. The last rows are 0:
    they are like nothing, and fill the leaves.
    """
    count = len(usable)
    even, odd = (np.zeros((2 * count + 1, len(places)), dtype=np.float32) for places in (_EVEN, _ODD))

    def compute(start: int) -> int:
        gray = thumbs.read(usable[start : start + _BATCH]).astype(np.float32) @ _LUMA
        for part, rows in enumerate(_ROWS):
            terms = (rows @ gray @ rows.T).reshape(len(gray), -1)
            low = terms[:, _LOW]
            low /= np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-3)
            here = slice(part * count + start, part * count + start + len(gray))
            even[here], odd[here] = low[:, : len(_EVEN)], low[:, len(_EVEN) :]
        return len(gray)

    done = sum(parallel(compute, range(0, count, _BATCH)))
    assert done == count, (done, count)
    return even, odd


def _key(even: FloatArray, odd: FloatArray) -> FloatArray:
    """What the trees cut: the principal components of what mirroring keeps, float32 [points, 12]."""
    terms = [even[:-1], np.abs(odd[:-1])]
    sample = np.concatenate([part[:: max(1, len(part) // 20_000)] for part in terms], axis=1)
    _, axes = np.linalg.eigh(np.cov(sample.T.astype(np.float64)))
    chosen = axes[:, -_DIRECTIONS:].astype(np.float32)
    return np.asarray(terms[0] @ chosen[: even.shape[1]] + terms[1] @ chosen[even.shape[1] :])


def _leaves(key: FloatArray, tree: int) -> IntArray:
    """The leaves of one tree: int64 [leaves, images] of places in `key`, and its length where a leaf is not full."""
    count = len(key)
    depth = _depth(count)
    size = -(-count // 2**depth)
    rng = np.random.default_rng(tree)
    order = np.full(size * 2**depth, count)
    order[:count] = rng.permutation(count)  # equal pictures fall into other leaves in each tree
    for level in range(depth):
        along = np.append(key @ rng.normal(size=_DIRECTIONS).astype(np.float32), np.float32(0))
        values = along.take(order).reshape(2**level, -1)
        place = np.argpartition(values, values.shape[1] // 2, axis=1)
        order = np.take_along_axis(order.reshape(values.shape), place, axis=1).ravel()
    return order.reshape(2**depth, size)


def _depth(points: int) -> int:
    return max(0, int(np.ceil(np.log2(points / _LEAF))))


Found = tuple[IntArray, FloatArray]


def _within(even: FloatArray, odd: FloatArray, leaves: IntArray, count: int) -> Found:
    """The close pairs within leaves, coded (first * count + second) * 2 + mirrored, and their cosines."""
    leaves = np.sort(leaves, axis=1)  # whole pictures before inner parts
    size = leaves.shape[1]
    # Memory for all products: fresh pages would cost as much as the arithmetic.
    room = np.empty((2, _LEAVES * size * size), dtype=np.float32)
    found: list[tuple[IntArray, IntArray]] = []
    for start in range(0, len(leaves), _LEAVES):
        some = leaves[start : start + _LEAVES]
        rows = int((some < count).sum(axis=1).max())  # two inner parts say nothing new
        products = []
        for points, memory in zip((even, odd), room, strict=True):
            held = points.take(some, axis=0)  # four times as fast as points[some]
            out = memory[: len(some) * rows * size].reshape(len(some), rows, size)
            products.append(np.matmul(held[:, :rows], held.transpose(0, 2, 1), out=out))
        # The cosine is kept + turned, that with the mirror image kept - turned.
        kept, turned = products
        best = np.add(kept, np.abs(turned, out=turned), out=kept)
        close = np.flatnonzero(best.reshape(-1) >= _COSINE)
        if len(close) > _PARTNERS * some.size:
            found.append(_crowd(even[some], odd[some], some, count))
        else:
            leaf, row, column = close // (size * rows), close // size % rows, close % size
            found.append((some[leaf, row], some[leaf, column]))
    a, b = (np.concatenate(places) for places in zip(*found, strict=True))
    return _coded(even, odd, a, b, count)


def _crowd(even: FloatArray, odd: FloatArray, leaves: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """Pairs of leaves full of close ones: of each picture its nearest, and the earliest, which ties the crowd together."""
    best = even @ even.transpose(0, 2, 1) + np.abs(odd @ odd.transpose(0, 2, 1))
    close = best >= _COSINE
    near = np.argpartition(-best, 2 * _PARTNERS, axis=2)[:, :, : 2 * _PARTNERS]
    kept = np.zeros_like(close)
    np.put_along_axis(kept, near, True, axis=2)
    early = np.where(close, (leaves % count)[:, None, :], count).argmin(axis=2)
    np.put_along_axis(kept, early[:, :, None], True, axis=2)
    leaf, row, column = np.nonzero(close & kept)
    return leaves[leaf, row], leaves[leaf, column]


def _coded(even: FloatArray, odd: FloatArray, a: IntArray, b: IntArray, count: int) -> Found:
    """See `_within`; without pairs of an image with itself and of two inner parts."""
    use = (np.minimum(a, b) < count) & (a % count != b % count)
    a, b = a[use], b[use]
    kept, turned = (np.einsum("pt,pt->p", points[a], points[b]) for points in (even, odd))
    a, b = a % count, b % count
    code = (np.minimum(a, b) * count + np.maximum(a, b)) * 2 + (turned < 0)
    # A picture that is nearly its own mirror image is like the other one both ways; the pixels say which it is.
    other = kept - np.abs(turned)
    either = other >= _COSINE
    return np.concatenate([code, code[either] ^ 1]), np.concatenate([kept + np.abs(turned), other[either]])


def _nearest(first: IntArray, second: IntArray, cosine: FloatArray, count: int) -> npt.NDArray[np.bool_]:
    """Which pairs are among the nearest `_PARTNERS` of one of their images, or lead to the earliest that it is like."""
    keep = np.zeros(len(first), dtype=np.bool_)
    for image, other in ((first, second), (second, first)):
        for order, most in ((np.lexsort((other, -cosine, image)), _PARTNERS), (np.lexsort((other, image)), 1)):
            begins = np.flatnonzero(np.diff(image[order], prepend=-1))
            rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
            keep[order[rank < most]] = True
    return keep


def _errors(
    thumbs: Thumbs, a: IntArray, b: IntArray, flipped: npt.NDArray[np.bool_], limits: FloatArray, *, show: str = ""
) -> FloatArray:
    """`picture_error` of the pairs at positions a [P] and b [P]; the cores share the work."""
    lowest = float(limits.min(initial=np.inf))

    def part(start: int) -> FloatArray:
        chosen = slice(start, start + _PAIRS)
        left, right = thumbs.read(a[chosen]), thumbs.read(b[chosen])
        return picture_error(left, np.where(flipped[chosen, None, None, None], right[:, :, ::-1], right), lowest)

    done = parallel(part, range(0, len(a), _PAIRS))
    parts = list(track(done, show, len(a), len) if show else done)
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def picture_error(a: PixelArray, b: PixelArray, limit: float = 0.0) -> FloatArray:
    """How far two stacks of small images [P, 32, 32, 3] are from showing the same picture; float32 [P].

    The larger of two distances sqrt(2 - 2 r), r a correlation of the pixels at half size: of what a blur takes away, and,
    times 1.5, of the whole. 0 is the same picture, 1.4 and more are unrelated ones; brightness and contrast do not count,
    nor does colour where one of the two is gray. A pair above `limit` is compared again with the one laid over the other.
    """
    gray = (_colour(a) < _GRAY_SPREAD) | (_colour(b) < _GRAY_SPREAD)
    left, right = (_halved(images.astype(np.uint16)) for images in (a, b))
    for images in (left, right):
        images[gray] = (images[gray] @ _LUMA)[..., None]
    error = _distance(left, right)
    far = np.flatnonzero(error > limit)
    if len(far):
        small = left[far] @ _LUMA, right[far] @ _LUMA
        error[far] = np.minimum(error[far], _laid_over(a[far], b[far], gray[far], *small, limit=limit))
    return error


def _pixels(images: PixelArray, gray: npt.NDArray[np.bool_]) -> FloatArray:
    """As float32, with three equal channels where `gray` [P] says so."""
    pixels = images.astype(np.float32)
    pixels[gray] = (pixels[gray] @ _LUMA)[..., None]
    return pixels


def _laid_over(
    a: PixelArray, b: PixelArray, gray: npt.NDArray[np.bool_], small_a: FloatArray, small_b: FloatArray, *, limit: float
) -> FloatArray:
    """The distance after shift and zoom of the one are fitted to the other, over what both show.

    `small_a` and `small_b` [P, 16, 16] are gray; `gray` says which pairs are compared without colour.
    """
    move = _fit(small_a, small_b, np.zeros((len(a), 4), dtype=np.float32))
    # The one that shows less is laid over the other: enlarging a part would blur it.
    inner = move[:, 1] + move[:, 3] < 0
    if inner.any():
        small_a[inner], small_b[inner] = small_b[inner], small_a[inner]
        move[inner] = _fit(small_a[inner], small_b[inner], -move[inner])
    rough, shown = _warped(small_a[..., None], move)
    error = _WHOLE_WEIGHT * _apart(rough, small_b[..., None], shown[..., None])
    near = np.flatnonzero(error <= max(limit, _HOPELESS))
    if len(near):
        swapped = inner[near, None, None, None]
        left = _pixels(np.where(swapped, b[near], a[near]), gray[near])
        right = _pixels(np.where(swapped, a[near], b[near]), gray[near])
        moved, shown = _warped(left, 2 * move[near])
        whole = _halved(shown[..., None]) == 1
        error[near] = _distance(_halved(moved), _halved(right), whole.astype(np.float32))
    return error


def _fit(left: FloatArray, right: FloatArray, move: FloatArray) -> FloatArray:
    """Shift and zoom per axis [P, 4] in pixels, so that left(x + shift + zoom * u) = right(x); u is -1 to 1 over the image.

    Gauss-Newton steps of Lucas and Kanade (IJCAI 1981), with a gain and an offset of brightness among the unknowns.
    """
    count = len(left)
    u = _axis(_SIDE)
    target = right.reshape(count, -1, 1)
    diagonal = np.arange(6)
    for _ in range(_ITERATIONS):
        moved, shown = _warped(left[..., None], move)
        picture = moved[..., 0]
        shown[:, [0, -1]] = 0
        shown[:, :, [0, -1]] = 0
        across, down = np.zeros_like(picture), np.zeros_like(picture)
        across[:, :, 1:-1] = (picture[:, :, 2:] - picture[:, :, :-2]) / 2
        down[:, 1:-1] = (picture[:, 2:] - picture[:, :-2]) / 2
        columns = (across, across * u, down, down * u[:, None], picture, np.ones_like(picture))
        slopes = np.stack(columns, axis=1).reshape(count, 6, -1)
        weighted = slopes * shown.reshape(count, 1, -1)
        normal = weighted @ slopes.transpose(0, 2, 1)
        normal[:, diagonal, diagonal] *= 1 + 1e-4  # an even picture leaves some unknowns free
        normal[:, diagonal, diagonal] += 1e-3
        solved = np.linalg.solve(normal, weighted @ target)[..., 0]
        gain = np.where(np.abs(solved[:, 4]) < 0.05, 0.05, solved[:, 4])
        move = np.clip(move + solved[:, :4] / gain[:, None], -_MOST_SHIFT, _MOST_SHIFT).astype(np.float32)
    return move


def _warped(images: FloatArray, move: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Images [P, S, S, C] sampled after the move, and 1 where the sample lies inside, else 0, [P, S, S]."""
    side = images.shape[1]
    u, place = _axis(side), np.arange(side, dtype=np.float32)
    shown = np.ones(images.shape[:3], dtype=np.float32)
    first_line = np.arange(len(images))[:, None] * side
    for axis in (1, 0):  # rows, then columns
        at = place + move[:, 2 * axis, None] + move[:, 2 * axis + 1, None] * u
        inside = (at >= -0.5) & (at <= side - 0.5)
        shown *= inside[:, :, None] if axis else inside[:, None, :]
        at = np.clip(at, 0, side - 1)
        low = np.minimum(at.astype(np.int64), side - 2)
        share = (at - low).astype(np.float32)[:, :, None]
        turned = images if axis else images.transpose(0, 2, 1, 3)
        lines = np.ascontiguousarray(turned).reshape(len(images) * side, -1)
        before = lines.take(first_line + low, axis=0)
        moved = before + (lines.take(first_line + low + 1, axis=0) - before) * share
        images = moved.reshape(turned.shape) if axis else moved.reshape(turned.shape).transpose(0, 2, 1, 3)
    return images, shown


def _distance(left: FloatArray, right: FloatArray, shown: FloatArray | None = None) -> FloatArray:
    fine = _apart(left - _blurred(left), right - _blurred(right), shown)
    return np.asarray(np.maximum(fine, _WHOLE_WEIGHT * _apart(left, right, shown)))


def _apart(left: FloatArray, right: FloatArray, shown: FloatArray | None) -> FloatArray:
    """sqrt(2 - 2 r) of images [P, S, S, C], everywhere or where `shown` [P, S, S, 1] is 1."""
    weights = None if shown is None else np.broadcast_to(shown, left.shape).reshape(len(left), -1)
    size = np.float32(left[0].size) if weights is None else np.maximum(weights.sum(axis=1), 1)
    spread: list[FloatArray] = []
    for images in (left, right):
        flat = images.reshape(len(images), -1)
        if weights is None:
            spread.append(flat - flat.mean(axis=1, keepdims=True))
        else:
            mean = np.asarray(np.einsum("pk,pk->p", flat, weights) / size)
            spread.append((flat - mean[:, None]) * weights)
    together = np.einsum("pk,pk->p", spread[0], spread[1])
    alone = np.sqrt(np.einsum("pk,pk->p", spread[0], spread[0]) * np.einsum("pk,pk->p", spread[1], spread[1]))
    noise = _NOISE * size
    return np.asarray(np.sqrt(np.clip(2 - 2 * (together + noise) / (alone + noise), 0, None)), dtype=np.float32)


def _blurred(images: FloatArray) -> FloatArray:
    """Weights 1, 2, 1 along both axes, the border repeated."""
    for _ in range(2):
        sides: FloatArray = np.empty_like(images)
        np.add(images[:, :-2], images[:, 2:], out=sides[:, 1:-1])
        np.add(images[:, 0], images[:, 1], out=sides[:, 0])
        np.add(images[:, -2], images[:, -1], out=sides[:, -1])
        images = np.asarray(images / 2 + sides / 4, dtype=np.float32).swapaxes(1, 2)
    return images


def _halved(images: FloatArray | npt.NDArray[np.uint16]) -> FloatArray:
    tall = images[:, ::2] + images[:, 1::2]
    return (tall[:, :, ::2] + tall[:, :, 1::2]).astype(np.float32) / np.float32(4)


def _colour(images: PixelArray) -> FloatArray:
    """The mean difference of the largest and the smallest channel, [P]."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return np.asarray(spread.mean(axis=(1, 2), dtype=np.float32))


def _axis(side: int) -> FloatArray:
    return np.asarray((np.arange(side) + 0.5) * 2 / side - 1, dtype=np.float32)


def _held_together(
    thumbs: Thumbs, usable: IntArray, first: IntArray, second: IntArray, limits_of: _Limits
) -> npt.NDArray[np.bool_]:
    """Which pairs stay, so that every member of a group shows the picture of the group's first image.

    Groups start as single images. In each round a coin decides which groups may take in others; a group is taken in when all
    of its members agree with the other's first image within `_LOOSE` times the limit, else the two stay apart for good.
    """
    count = len(usable)
    closure = connected(count, first, second)
    group = np.where(np.bincount(closure, minlength=count)[closure] <= 2, closure, np.arange(count))
    refused = np.empty(0, dtype=np.int64)
    rng = np.random.default_rng(0)
    while True:
        a, b = group[first], group[second]
        code = np.unique(np.minimum(a, b)[a != b] * count + np.maximum(a, b)[a != b])
        code = code[~np.isin(code, refused)]
        if not len(code):
            return np.asarray(group[first] == group[second])
        coin = rng.random(count) < 0.5
        code = code[coin[code // count] & ~coin[code % count]]
        head, taken = code // count, code % count
        _, once = np.unique(taken, return_index=True)  # codes are sorted: the earliest group that may take it in
        head, taken = head[once], taken[once]
        head_of = np.full(count, -1)
        head_of[taken] = head
        member = np.flatnonzero(head_of[group] >= 0)
        joined = head_of[group[member]]
        agrees = _alike(thumbs, usable[joined], usable[member], _LOOSE * limits_of.of(usable[joined], usable[member]))
        broken = np.unique(group[member[~agrees]])
        refused = np.union1d(refused, head_of[broken] * count + broken)
        stays = ~np.isin(group[member], broken)
        group[member[stays]] = joined[stays]


def _alike(thumbs: Thumbs, a: IntArray, b: IntArray, limits: FloatArray) -> npt.NDArray[np.bool_]:
    plain = _errors(thumbs, a, b, np.zeros(len(a), dtype=np.bool_), limits) <= limits
    rest = np.flatnonzero(~plain)
    plain[rest] = _errors(thumbs, a[rest], b[rest], np.ones(len(rest), dtype=np.bool_), limits[rest]) <= limits[rest]
    return plain


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


def _cosine_rows(cut: float) -> FloatArray:
    """The cosine terms 0 to 8 [9, 32] of one axis, after the share `cut` is cut off at both of its ends."""
    at = (np.arange(THUMB_SIDE) + 0.5) * (1 - 2 * cut) + THUMB_SIDE * cut - 0.5
    low = np.clip(np.floor(at).astype(int), 0, THUMB_SIDE - 2)
    zoom = np.zeros((THUMB_SIDE, THUMB_SIDE))
    zoom[np.arange(THUMB_SIDE), low] = 1 - (at - low)
    zoom[np.arange(THUMB_SIDE), low + 1] = at - low
    term, place = np.arange(_TERMS + 1)[:, None], np.arange(THUMB_SIDE)
    rows = np.cos(np.pi * term * (2 * place + 1) / (2 * THUMB_SIDE)) * np.where(term, np.sqrt(2), 1)
    return np.asarray(rows @ zoom, dtype=np.float32)


_U, _V = np.mgrid[: _TERMS + 1, : _TERMS + 1].reshape(2, -1)
_SOME = (_U + _V > 0) & (_U + _V <= _TERMS)
# Places among all (_TERMS + 1)^2 terms. Mirroring turns the sign of the odd ones.
_EVEN, _ODD = np.flatnonzero(_SOME & (_V % 2 == 0)), np.flatnonzero(_SOME & (_V % 2 == 1))
_LOW = np.concatenate([_EVEN, _ODD])
_ROWS = (_cosine_rows(0), _cosine_rows(_INNER))
