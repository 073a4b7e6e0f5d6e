"""Images that are foreign to their data set: how far each lies from its neighbours, against how far those lie from theirs.

The local outlier factor (Breunig and others, SIGMOD 2000) against a sample of the images instead of all, as Sugiyama and
Borgwardt do (NeurIPS 2013): time grows with the number of images, and a clump of foreign images of 1 or 2 % of the set
cannot vouch for itself.

Does not cover: images of the right kind with a wrong label, which `label_issues` finds; foreign images whose edges and
textures are those of the set, since the features know little else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.data.embedding import FloatArray, IntArray, all_alike, one_thread_blas, parallel
from visionloop.progress import track

MIN_IMAGES = 50
_REFERENCES = 4000
_NEIGHBOUR_SHARE = 0.03  # of the references; a larger clump of foreign images is a part of the set
_NEAREST = 20  # of these neighbours, evenly spread, say how dense the place is
_HALF = 3.3  # spreads above the median where the score is 0.5: 0.5 to 1 % of clean CIFAR-10, clothing and digits lie there
_MEASURES_WEIGHT = np.float32(0.8)  # at 1 twice as many clean images of CIFAR-10 were flagged and no more foreign ones
_BLOCK = 1024


@dataclass(frozen=True)
class Outliers:
    """How foreign each image is, in the order of the images."""

    score: FloatArray  # [n] 0 to 1, see `outlier_scores`
    outlier: npt.NDArray[np.bool_]  # [n]
    note: str = ""  # a sentence where nothing is judged, and why


def find_outliers(
    features: FloatArray, labels: IntArray, seed: int, measures: npt.NDArray[np.float64] | None = None
) -> Outliers:
    """Score every image by its features and by its measures (see `outlier_scores`), and call those of 0.5 and more outliers.

    The larger score counts, that of the measures times 0.8. `measures` float64 [n, M] are brightness, contrast and the like,
    which the features hardly know; they are brought to one spread here. A set of fewer than 50 images, or of images that all
    look the same, has no outliers; the note says so.
    """
    score = outlier_scores(features, labels, seed)
    if measures is not None and len(measures) >= MIN_IMAGES:
        low, middle, high = np.percentile(measures, [16, 50, 84], axis=0)
        scaled = (measures - middle) / np.where(high > low, high - low, 1)
        by_measures = _MEASURES_WEIGHT * outlier_scores(scaled.astype(np.float32), labels, seed)
        score = np.maximum(score, by_measures).round(4)
    note = ""
    if len(score) < MIN_IMAGES:
        note = f"Outliers are not sought: that takes {MIN_IMAGES} images, here are {len(score)}."
    elif all_alike(features):
        note = "Outliers are not sought: all images look the same."
    return Outliers(score, score >= 0.5, note)


def outlier_scores(features: FloatArray, labels: IntArray, seed: int) -> FloatArray:
    """How foreign each image is to the set; float32 [n], 0 to 1, rounded to 4 digits.

    The factor f is the distance to the neighbour of rank 3 % in a sample of 4,000 images, over the mean of that distance for
    the neighbours. With z = (f - median) / (84th percentile - median), the score is z^2 / (z^2 + 3.3^2); 0 below the median.

    Args:
        features: [n, D], see `embedding.embed`.
        labels: [n]; the score is of the whole set, so they are not looked at: a wrong label makes no foreign image.
        seed: of the sample.
    """
    assert len(features) == len(labels), (len(features), len(labels))
    count = len(features)
    zeros = np.zeros(count, dtype=np.float32)
    if count < MIN_IMAGES or all_alike(features):
        return zeros
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:_REFERENCES])
    references = features[chosen]
    squares = (references**2).sum(axis=1)
    rank = max(5, round(len(chosen) * _NEIGHBOUR_SHARE))
    # The farther half: the nearer one may be the clump itself.
    ranks = np.unique(np.linspace(rank // 2, rank, _NEAREST).round().astype(np.int64))

    def look(block: FloatArray) -> tuple[FloatArray, IntArray]:
        squared = (block**2).sum(axis=1)[:, None] - 2 * (block @ references.T) + squares
        nearest = np.argpartition(squared, rank, axis=1)[:, : rank + 1]
        near = np.take_along_axis(squared, nearest, axis=1)
        order = np.argsort(near, axis=1, kind="stable")
        distance = np.sqrt(near.max(axis=1).clip(0))
        return distance, np.take_along_axis(nearest, order[:, ranks], axis=1)

    with one_thread_blas():
        looked = parallel(look, (features[start : start + _BLOCK] for start in range(0, count, _BLOCK)))
        seen = list(track(looked, "outliers", count, lambda one: len(one[0])))
    distance = np.concatenate([one for one, _ in seen])
    neighbours = np.concatenate([one for _, one in seen])
    usual = distance[chosen][neighbours].mean(axis=1)
    factor = np.divide(distance, usual, out=np.ones_like(distance), where=usual > 0)
    median, high = np.percentile(factor, [50, 84])
    if high - median < 1e-6:
        return zeros
    z = ((factor - median) / (high - median)).clip(0)
    return np.asarray((z**2 / (z**2 + _HALF**2)).round(4), dtype=np.float32)
