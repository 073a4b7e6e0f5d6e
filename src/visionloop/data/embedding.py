"""Features of small images, learnt from the data set itself: nothing is downloaded and no labels are read.

One layer of random whitened patches, pooled over the quarters of the image, then principal components (Coates, Lee and Ng,
"An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011). What is learnt comes from a sample of
the images; all images then pass in a stream, so memory does not grow with their number beyond the features themselves.

The same thumbs, order and seed give the same bits whatever the number of threads, since each block of images is computed by
one thread. Another processor or another BLAS may differ in the last bits.

Does not cover: features of a trained classifier, which stand beside the model (see `visionloop.runtime`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from visionloop.preprocess import PixelArray

if TYPE_CHECKING:
    from visionloop.data.thumbs import Thumbs

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

FEATURES = 256
_PATCH_PIXELS = 6
_FILTERS = 256
_SAMPLE_IMAGES = 10_000
_SAMPLE_PATCHES = 50_000
_BLOCK = 64  # images; also what one thread computes at a time


def embed(thumbs: Thumbs, usable: IntArray, seed: int) -> FloatArray:
    """Features of the images `usable` int64 [n], in their order; float32 [n, D] with D at most 256."""
    if len(usable) == 0:
        return np.empty((0, 1), dtype=np.float32)
    rng = np.random.default_rng(seed)
    sample = usable[np.sort(rng.permutation(len(usable))[:_SAMPLE_IMAGES])]
    filters = _filters(thumbs, sample, rng)
    components, offset = _components(np.concatenate(list(_pooled(thumbs, sample, filters))))
    features = np.empty((len(usable), components.shape[1]), dtype=np.float32)
    start = 0
    for block in _pooled(thumbs, usable, filters):
        features[start : start + len(block)] = block @ components - offset
        start += len(block)
    return features


def parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map `function` over `items` in threads, in order, with BLAS held to one thread in each.

    So a result depends on its item alone, and not on how many threads there are.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(function, items)


Filters = tuple[FloatArray, FloatArray]  # weights [patch values, filters], bias [filters]


def _filters(thumbs: Thumbs, sample: IntArray, rng: np.random.Generator) -> Filters:
    per_image = -(-_SAMPLE_PATCHES // len(sample))
    found: list[FloatArray] = []
    for start in range(0, len(sample), _BLOCK):
        images = thumbs.read(sample[start : start + _BLOCK])
        side = images.shape[1] - _PATCH_PIXELS + 1
        windows = np.lib.stride_tricks.sliding_window_view(images, (_PATCH_PIXELS, _PATCH_PIXELS), axis=(1, 2))
        image = np.repeat(np.arange(len(images)), per_image)
        row, column = rng.integers(0, side, (2, len(image)))
        found.append(windows[image, row, column].transpose(0, 2, 3, 1).reshape(len(image), -1).astype(np.float32))
    patches = _standardised(np.concatenate(found)).astype(np.float64)
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches.T))
    whiten = vectors / np.sqrt(values.clip(0) + 0.01) @ vectors.T
    white = (patches - mean) @ whiten
    chosen = white[rng.permutation(len(white))[:_FILTERS]]
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True) + 1e-6
    weights = whiten @ chosen.T
    return weights.astype(np.float32), (-mean @ weights).astype(np.float32)


def _standardised(patches: FloatArray) -> FloatArray:
    patches = patches - patches.mean(axis=1, keepdims=True)
    return np.asarray(patches / np.sqrt(patches.var(axis=1, keepdims=True) + 10), dtype=np.float32)


def _pooled(thumbs: Thumbs, indices: IntArray, filters: Filters) -> Iterator[FloatArray]:
    blocks = (indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK))

    def pool(block: IntArray) -> FloatArray:
        return np.stack([_one(image, filters) for image in thumbs.read(block)])

    # A few blocks at a time: the pool would otherwise run ahead of the one who reads.
    while chunk := [block for _, block in zip(range(64), blocks, strict=False)]:
        yield from parallel(pool, chunk)


def _one(image: PixelArray, filters: Filters) -> FloatArray:
    weights, bias = filters
    windows = np.lib.stride_tricks.sliding_window_view(image, (_PATCH_PIXELS, _PATCH_PIXELS), axis=(0, 1))
    side = windows.shape[0]
    patches = windows.transpose(0, 1, 3, 4, 2).reshape(side * side, -1).astype(np.float32)
    answer = _standardised(patches) @ weights + bias
    maps = answer.reshape(side, side, -1)
    half = (side + 1) // 2
    quarters = [
        maps[y, x] for y in (slice(0, half), slice(side - half, side)) for x in (slice(0, half), slice(side - half, side))
    ]
    threshold = np.float32(0.25)
    return np.concatenate(
        [np.maximum(sign * q - threshold, 0).mean(axis=(0, 1)) for q in quarters for sign in (1, -1)]
    ).astype(np.float32)


def _components(sample: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Principal components of the sample [D, C] and what to subtract after the projection [C]."""
    mean = sample.mean(axis=0)
    centred = (sample - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(sample))
    order = np.argsort(-values, kind="stable")[: min(FEATURES, len(sample))]
    vectors = vectors[:, order]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    components = (vectors * np.where(signs == 0, 1, signs)).astype(np.float32)
    return components, mean @ components
