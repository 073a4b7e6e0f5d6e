"""Suspected wrong labels: what a model that never saw an image, nor its duplicates, says of the image's label.

The out-of-fold probabilities come from a kernel ridge classifier on the features of `embedding`, or for the images that it
answered from a cross-validated network; cleanlab judges them (Northcutt, Jiang and Chuang, "Confident learning", JAIR 2021).

Does not cover: images with several right labels, and faults that the whole class shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from visionloop.data.embedding import FloatArray, IntArray, all_alike, one_thread_blas, parallel
from visionloop.data.out_of_fold import Answers
from visionloop.progress import track

Scalar = TypeVar("Scalar", bound=np.generic)

FOLDS = 5
MIN_IMAGES = 50
# cleanlab suspects every hard picture where the classifier is weak: 1 in 5 is right on CIFAR-10. Under this probability of
# the given label it is 1 in 2. Chosen where F1 was near its best on CIFAR-10, clothing and digits with 5 % of wrong labels.
SUSPECT_QUALITY = 0.03
_CENTRES = 3000
_SCALE = np.float32(0.2)  # of the distance, in units of the features' root mean square
_RIDGE = 0.2
_BLOCK = 4096
_CALIBRATED = 20_000  # images that set the one number of the temperature
_LEAST_PROBABILITY = 1e-6  # a network may give 0
_JUDGED_AT_ONCE = 100_000  # cleanlab copies the probabilities several times: 0.4 GB each for a million images of 100 classes


@dataclass(frozen=True)
class LabelIssues:
    """The judgement of each label, in the order of the images."""

    quality: FloatArray  # [n] 0 to 1, out-of-fold probability of the given label; 1 where it is not judged
    suggested: IntArray  # [n] the out-of-fold answer where it disputes the label, else -1
    suspect: npt.NDArray[np.bool_]  # [n]
    note: str = ""  # a sentence for what is not judged, and why


def find_label_issues(
    features: FloatArray, labels: IntArray, groups: IntArray, classes: int, seed: int, *, answers: Answers | None = None
) -> LabelIssues:
    """Judge every label by models that were trained without the image's fold.

    Two kinds of models differ in how sure they are, and cleanlab compares an image with the others of its class. So all
    images are judged by the classifier on features, and those with `answers` then among themselves by these.

    Args:
        features: [n, D], see `embedding.embed`.
        labels: [n], 0 to `classes` - 1.
        groups: [n], equal for duplicates, which share a fold.
        classes: number of classes.
        seed: of the folds and the kernel's centres.
        answers: of networks, which count where they are.

    Where nothing can be judged (fewer than 50 images, one class, pictures that all look the same) there is no suspect, and
    the note says why. Classes with fewer different images than folds are left out.
    """
    count = len(labels)
    quality, suggested = np.ones(count, dtype=np.float32), np.full(count, -1, dtype=np.int64)
    suspect = np.zeros(count, dtype=bool)
    first = np.unique(groups, return_index=True)[1]
    enough = np.bincount(labels[first], minlength=classes) >= FOLDS
    judged = np.flatnonzero(enough[labels])
    if len(judged) < MIN_IMAGES:
        return LabelIssues(
            quality, suggested, suspect, f"Labels are not judged: that takes {MIN_IMAGES} images, here are {len(judged)}."
        )
    if enough.sum() < 2:
        return LabelIssues(quality, suggested, suspect, "Labels are not judged: that takes two classes.")
    if all_alike(features):
        return LabelIssues(quality, suggested, suspect, "Labels are not judged: all images look the same.")
    names = np.flatnonzero(enough)
    compact = np.searchsorted(names, labels[judged])
    chosen = features if len(judged) == count else features[judged]  # a copy is a gigabyte for a million images

    def judge(rows: IntArray, names: IntArray, probabilities: FloatArray) -> None:
        """Judge the images `rows`, of the classes `names`, by probabilities of these."""
        own = np.searchsorted(names, labels[rows])
        found = _pruned(own, probabilities, seed)
        quality[rows] = probabilities[np.arange(len(rows)), own].clip(0, 1).round(4)
        answer = probabilities.argmax(axis=1)
        suspect[rows] = found & (answer != own) & (quality[rows] < SUSPECT_QUALITY)
        suggested[rows] = np.where(suspect[rows], names[answer], -1)

    judge(judged, names, out_of_fold(chosen, compact, groups[judged], len(names), seed))
    if answers is not None:
        # cleanlab takes no class of which there is no image.
        there = enough & (np.bincount(labels[answers.places], minlength=classes) >= FOLDS)
        rows = np.flatnonzero(there[labels[answers.places]])
        if len(rows) >= MIN_IMAGES and there.sum() >= 2:
            places, known = answers.places[rows], np.flatnonzero(there)
            seen = np.log(answers.probabilities[rows][:, known].clip(_LEAST_PROBABILITY))
            own = np.searchsorted(known, labels[places])
            judge(places, known, _calibrated(seen, own, np.random.default_rng(seed)))
    few = int((np.bincount(labels, minlength=classes)[~enough] > 0).sum())
    what = (
        "1 class of fewer than {} different images is"
        if few == 1
        else f"{few} classes of fewer than {{}} different images are"
    )
    note = f"{what.format(FOLDS)} not judged." if few else ""
    return LabelIssues(quality, suggested, suspect, note)


def out_of_fold(features: FloatArray, labels: IntArray, groups: IntArray, classes: int, seed: int) -> FloatArray:
    """Probabilities [n, classes] of each image by a model that saw neither its label nor that of its group.

    Kernel ridge regression on the one-hot labels with the kernel exp(-0.2 |a - b|), restricted to some thousand centres
    (Nystroem), so that time and memory grow with n and not its square. The squared loss bears wrong labels well: no single
    one pulls far. Centres are pictures without their labels, so they may come from any fold.
    """
    from scipy.linalg import cho_factor, cho_solve

    rng = np.random.default_rng(seed)
    fold = _folds(labels, groups, rng)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.mean([((block - mean) ** 2).sum(axis=1).mean() for block in _blocks(features)])).astype(np.float32)
    centres = (features[np.sort(rng.permutation(len(labels))[:_CENTRES])] - mean) / spread
    share = np.bincount(labels, minlength=classes) / len(labels)
    size = len(centres)

    def kernel(rows: FloatArray) -> FloatArray:
        return np.concatenate(list(parallel(lambda part: _kernel((part - mean) / spread, centres), _blocks(rows, 512))))

    with one_thread_blas():
        grams = np.zeros((FOLDS, size, size))
        answers = np.zeros((FOLDS, size, classes))
        tiles = [slice(start, start + 256) for start in range(0, size, 256)]
        blocks = (rows for k in range(FOLDS) for rows in _blocks(np.flatnonzero(fold == k)))
        for rows in track(blocks, "learn labels", len(labels), len):
            k = fold[rows[0]]
            near = kernel(features[rows]).astype(np.float64)  # in float32 the sums are too coarse for the ridge
            below = parallel(partial(_lower, near), tiles)
            for tile, part in zip(tiles, below, strict=True):
                grams[k][tile.start :, tile] += part  # the lower half; the solver reads no other
            answers[k] += near.T @ (np.eye(classes)[labels[rows]] - share)
        total, answer = grams.sum(axis=0), answers.sum(axis=0)
        among = _kernel(centres, centres).astype(np.float64)
        among[np.diag_indices(size)] += 0.01  # equal pictures among the centres; float32 kernels err by 1e-4

        def solve(k: int) -> FloatArray:
            factor = cho_factor(total - grams[k] + _RIDGE * among, lower=True, overwrite_a=True, check_finite=False)
            return np.asarray(cho_solve(factor, answer - answers[k], check_finite=False), dtype=np.float32)

        weights = list(parallel(solve, range(FOLDS)))
        scores = np.empty((len(labels), classes), dtype=np.float32)
        for rows in track(_blocks(np.arange(len(labels))), "judge labels", len(labels), len):
            answers_of = kernel(features[rows])
            for k in range(FOLDS):
                mine = fold[rows] == k
                scores[rows[mine]] = answers_of[mine] @ weights[k] + share
    return _calibrated(scores, labels, rng)


def _lower(near: npt.NDArray[np.float64], tile: slice) -> npt.NDArray[np.float64]:
    """The columns `tile` of near^T near, from the diagonal down."""
    return np.asarray(near[:, tile.start :].T @ near[:, tile])


def _kernel(rows: FloatArray, centres: FloatArray) -> FloatArray:
    squared = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * (rows @ centres.T)
    return np.asarray(np.exp(-_SCALE * np.sqrt(squared.clip(0))), dtype=np.float32)


def _blocks(rows: npt.NDArray[Scalar], size: int = _BLOCK) -> Iterator[npt.NDArray[Scalar]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _folds(labels: IntArray, groups: IntArray, rng: np.random.Generator) -> IntArray:
    """A fold for each image: groups whole, the groups of each class dealt out evenly."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((rng.random(len(first)), labels[first]))
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[place]


def _calibrated(scores: FloatArray, labels: IntArray, rng: np.random.Generator) -> FloatArray:
    """Softmax of `scores`, in their place, at the temperature that makes the given labels of a sample likeliest."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    sample = np.sort(rng.permutation(len(labels))[:_CALIBRATED])
    seen, given = scores[sample].astype(np.float64), labels[sample]

    def loss(log_scale: float) -> float:
        return float(-log_softmax(np.exp(log_scale) * seen, axis=1)[np.arange(len(given)), given].mean())

    best = minimize_scalar(loss, bounds=(-3, 8), method="bounded").x
    for start in range(0, len(scores), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = np.exp(log_softmax(np.exp(best) * scores[block].astype(np.float64), axis=1))
    return scores


def _pruned(labels: IntArray, probabilities: FloatArray, seed: int) -> npt.NDArray[np.bool_]:
    """What cleanlab prunes by class, judged in samples that fit into memory; all at once up to 100,000 images."""
    from cleanlab.filter import find_label_issues as judge

    found = np.zeros(len(labels), dtype=bool)
    parts = -(-len(labels) // _JUDGED_AT_ONCE)
    order = np.random.default_rng(seed).permutation(len(labels)) if parts > 1 else np.arange(len(labels))
    for part in np.array_split(order, parts):
        found[part] = judge(labels[part], probabilities[part], filter_by="prune_by_class", n_jobs=1)
    return found
