"""Features of small images, learnt from the data set itself: nothing is downloaded and no labels are read.

One layer of whitened patches found by k-means, pooled over a grid of 3 x 3 cells, then principal components (Coates, Lee and
Ng, "An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011). An image and its mirror image get
the same features. What is learnt comes from a sample of the images; all images then pass in a stream, so memory does not
grow with their number beyond the features themselves.

The same thumbs, order and seed give the same bits whatever the number of threads, since each block of images is computed by
one thread. Another processor or another BLAS may differ in the last bits.

Does not cover: features of a trained classifier, which stand beside the model (see `visionloop.runtime`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from visionloop.preprocess import PixelArray
from visionloop.progress import track

if TYPE_CHECKING:
    from visionloop.data.thumbs import Thumbs

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

FEATURES = 256
_PATCH_PIXELS = 6
_STRIDE = 2
_CELLS = 3  # a side; 2 lose 5 points of average precision on CIFAR-10's planted wrong labels
_FILTERS = 128  # 256 take twice as long and rank wrong labels no better
_ROUNDS = 8  # of k-means
_SHRINK = np.float32(0.25)  # what an answer must exceed to count, in units of a whitened patch
_CONTRAST = np.float32(10)  # added to a patch's variance, in squared gray levels, so that flat patches stay flat
_WHITENING = 0.01  # added to the variances of patches; Coates' ZCA constant is of this size after standardising
_SAMPLE_IMAGES = 8_000
_SAMPLE_PATCHES = 40_000
_BLOCK = 32  # images; what one thread computes at a time, small enough for its cache
_CHUNK = 32  # blocks; the pool would otherwise run ahead of the one who takes the results


def embed(thumbs: Thumbs, usable: IntArray, seed: int) -> FloatArray:
    """Features of the images `usable` int64 [n], in their order; float32 [n, D], D at most 256.

    Images that are all the same get features that are all the same.
    """
    if len(usable) == 0:
        return np.empty((0, 1), dtype=np.float32)
    rng = np.random.default_rng(seed)
    sample = usable[np.sort(rng.permutation(len(usable))[:_SAMPLE_IMAGES])]
    with one_thread_blas():
        filters = _filters(thumbs, sample, rng)
        pooled = np.concatenate(list(track(_pooled(thumbs, sample, filters), "learn features", len(sample), len)))
        mean = pooled.mean(axis=0)
        components = _components(pooled - mean, rng)
        offset = mean @ components
        everything = len(sample) == len(usable)
        features = np.empty((len(usable), components.shape[1]), dtype=np.float32)
        start = 0
        rest = _blocks(pooled) if everything else track(_pooled(thumbs, usable, filters), "features", len(usable), len)
        for block in rest:
            features[start : start + len(block)] = block @ components - offset
            start += len(block)
    return features


def all_alike(features: FloatArray) -> bool:
    """Whether the images differ by no more than rounding: a picture's own features have a length of 1 to 10."""
    return bool(np.ptp(features, axis=0).max() < 1e-3)


def one_thread_blas() -> AbstractContextManager[object]:
    """BLAS held to one thread: sums then have one order on any number of cores, and `parallel` brings the speed."""
    from threadpoolctl import threadpool_limits

    return cast(AbstractContextManager[object], threadpool_limits(1, user_api="blas"))


def parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map `function` over `items` in threads, one per core, a few ahead; results in order."""
    with ThreadPoolExecutor(_cores()) as pool:
        iterator = iter(items)
        while chunk := list(itertools.islice(iterator, _CHUNK)):
            yield from pool.map(function, chunk)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blocks(rows: FloatArray) -> Iterator[FloatArray]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


Filters = tuple[FloatArray, FloatArray]  # weights [patch values, filters], bias [filters]


def _filters(thumbs: Thumbs, sample: IntArray, rng: np.random.Generator) -> Filters:
    """Directions of whitened patches, by spherical k-means in which a patch and its negative are one."""
    per_image = -(-_SAMPLE_PATCHES // len(sample))
    found: list[FloatArray] = []
    for start in range(0, len(sample), _BLOCK):
        windows = _windows(thumbs.read(sample[start : start + _BLOCK]))
        image = np.repeat(np.arange(len(windows)), per_image)
        row, column = rng.integers(0, windows.shape[1], (2, len(image)))
        found.append(windows[image, row, column].reshape(len(image), -1).astype(np.float32))
    patches = _standardised(np.concatenate(found))
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches.T.astype(np.float64)))
    whiten = (vectors / np.sqrt(values.clip(0) + _WHITENING) @ vectors.T).astype(np.float32)
    white = (patches - mean) @ whiten
    centres = _unit(white[rng.permutation(len(white))[:_FILTERS]])
    for _ in range(_ROUNDS):
        answers = white @ centres.T
        nearest = np.abs(answers).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        taken, first = np.unique(nearest[order], return_index=True)
        signed = white[order] * answers[order, nearest[order]][:, None]
        centres[taken] = np.add.reduceat(signed, first, axis=0)
        centres = _unit(centres)
    weights = whiten @ centres.T
    return weights, -mean @ weights


def _windows(images: PixelArray) -> PixelArray:
    """A view of every patch, uint8 [n, rows, columns, P, P, 3]."""
    view = np.lib.stride_tricks.sliding_window_view(images, (_PATCH_PIXELS, _PATCH_PIXELS), axis=(1, 2))
    return np.moveaxis(view, 3, -1)


def _standardised(patches: FloatArray) -> FloatArray:
    patches = patches - patches.mean(axis=1, keepdims=True)
    variance = np.einsum("pk,pk->p", patches, patches) / np.float32(patches.shape[1])
    patches /= np.sqrt(variance + _CONTRAST)[:, None]
    return patches


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _pooled(thumbs: Thumbs, indices: IntArray, filters: Filters) -> Iterator[FloatArray]:
    """The filters' mean answers in each cell, a block of images at a time; float32 [block, cells * 2 * filters]."""
    blocks = (indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK))

    def pool(block: IntArray) -> FloatArray:
        images = thumbs.read(block)
        # The square root tames the few strong answers: they would own the principal components.
        return np.sqrt((_cells(images, filters) + _cells(images[:, :, ::-1], filters)) / 2)

    return parallel(pool, blocks)


def _cells(images: PixelArray, filters: Filters) -> FloatArray:
    weights, bias = filters
    windows = _windows(images)[:, ::_STRIDE, ::_STRIDE]
    count, side = windows.shape[:2]
    answers = _standardised(windows.reshape(count * side * side, -1).astype(np.float32)) @ weights
    answers += bias
    answers = answers.reshape(count, side * side, -1)
    both = np.concatenate([answers, -answers], axis=2)
    both -= _SHRINK
    np.maximum(both, 0, out=both)
    return np.asarray(_grid(side) @ both, dtype=np.float32).reshape(count, -1)


def _grid(side: int) -> FloatArray:
    """Weights [cells, side * side] that average a square map over each of its cells, which overlap by a row at most."""
    line = np.zeros((_CELLS, side))
    for cell in range(_CELLS):
        line[cell, cell * side // _CELLS : -(-(cell + 1) * side // _CELLS)] = 1
    line /= line.sum(axis=1, keepdims=True)
    return np.kron(line, line).astype(np.float32)


def _components(centred: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Principal components [D, C] of the rows, by subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011)."""
    count, size = centred.shape
    wanted = min(FEATURES, count, size)
    basis = rng.standard_normal((size, min(wanted + 16, size))).astype(np.float32)
    for _ in range(4):
        basis = np.linalg.qr(_product(centred, basis))[0]
    small = centred @ basis
    values, vectors = np.linalg.eigh((small.T @ small).astype(np.float64))
    components = basis @ vectors[:, np.argsort(-values, kind="stable")[:wanted]].astype(np.float32)
    signs = np.sign(components[np.abs(components).argmax(axis=0), np.arange(wanted)])
    return np.asarray(components * np.where(signs == 0, 1, signs), dtype=np.float32)


def _product(rows: FloatArray, basis: FloatArray) -> FloatArray:
    """rows^T rows basis, summed over blocks in their order."""
    size = 1024
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    total = np.zeros_like(basis)
    for part in parallel(lambda part: part.T @ (part @ basis), parts):
        total += part
    return total
