"""Suspected wrong labels: what a model that never saw an image, nor its duplicates, says of the image's label.

The out-of-fold probabilities come from a kernel ridge classifier on the features of `embedding`; cleanlab judges them
(Northcutt, Jiang and Chuang, "Confident learning", JAIR 2021).

Does not cover: images with several right labels, and faults that the whole class shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.data.embedding import FloatArray, IntArray

FOLDS = 5
MIN_IMAGES = 50
_CENTRES = 2000


@dataclass(frozen=True)
class LabelIssues:
    """The judgement of each label, in the order of the images."""

    quality: FloatArray  # [n] 0 to 1, out-of-fold probability of the given label; 1 where it is not judged
    suggested: IntArray  # [n] the out-of-fold answer where it disputes the label, else -1
    suspect: npt.NDArray[np.bool_]  # [n]
    note: str = ""  # a sentence for what is not judged, and why


def find_label_issues(features: FloatArray, labels: IntArray, groups: IntArray, classes: int, seed: int) -> LabelIssues:
    """Judge every label by models that were trained without the image's fold.

    Args:
        features: [n, D], see `embedding.embed`.
        labels: [n], 0 to `classes` - 1.
        groups: [n], equal for duplicates, which share a fold.
        classes: number of classes.
        seed: of the folds and the kernel's centres.
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
    if not np.ptp(features[judged], axis=0).any():
        return LabelIssues(quality, suggested, suspect, "Labels are not judged: all images look the same.")
    names = np.flatnonzero(enough)
    compact = np.searchsorted(names, labels[judged])
    probabilities = out_of_fold(features[judged], compact, groups[judged], len(names), seed)

    from cleanlab.filter import find_label_issues as judge

    found = judge(compact, probabilities, filter_by="both", n_jobs=1)
    quality[judged] = np.clip(probabilities[np.arange(len(judged)), compact], 0, 1)
    answer = probabilities.argmax(axis=1)
    suspect[judged] = found & (answer != compact)
    suggested[judged] = np.where(found & (answer != compact), names[answer], -1)
    few = int((~enough).sum())
    note = f"{few} classes of fewer than {FOLDS} different images are not judged." if few else ""
    return LabelIssues(quality, suggested, suspect, note)


def out_of_fold(features: FloatArray, labels: IntArray, groups: IntArray, classes: int, seed: int) -> FloatArray:
    """Probabilities [n, classes] of each image by a model that saw neither it nor its group."""
    rng = np.random.default_rng(seed)
    fold = _folds(labels, groups, rng)
    hidden = _kernel_features(features, rng)
    targets = np.eye(classes)[labels] - 1 / classes
    grams = [hidden[fold == k].T @ hidden[fold == k] for k in range(FOLDS)]
    answers = [hidden[fold == k].T.astype(np.float64) @ targets[fold == k] for k in range(FOLDS)]
    scores = np.empty((len(labels), classes))
    for k in range(FOLDS):
        gram = sum(g.astype(np.float64) for i, g in enumerate(grams) if i != k)
        answer = sum(a for i, a in enumerate(answers) if i != k)
        gram = gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        scores[fold == k] = hidden[fold == k] @ np.linalg.solve(gram, answer)
    return _calibrated(scores, labels)


def _folds(labels: IntArray, groups: IntArray, rng: np.random.Generator) -> IntArray:
    """A fold for each image: groups whole, the groups of each class dealt out evenly."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((rng.random(len(first)), labels[first]))
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[place]


def _kernel_features(features: FloatArray, rng: np.random.Generator) -> FloatArray:
    centred = features - features.mean(axis=0)
    centred /= np.sqrt((centred**2).sum(axis=1).mean())
    weights = rng.standard_normal((features.shape[1], _CENTRES)).astype(np.float32) * 1.0
    phase = rng.uniform(0, 2 * np.pi, _CENTRES).astype(np.float32)
    hidden = np.cos(centred @ weights + phase) * np.float32(np.sqrt(2 / _CENTRES))
    return np.concatenate([hidden, np.ones((len(hidden), 1), dtype=np.float32)], axis=1)


def _calibrated(scores: npt.NDArray[np.float64], labels: IntArray) -> FloatArray:
    """Softmax at the temperature that makes the given labels likeliest."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_scale: float) -> float:
        return float(-log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=(-3, 8), method="bounded").x
    return np.asarray(np.exp(log_softmax(np.exp(best) * scores, axis=1)), dtype=np.float32)
