"""Images that are foreign to their data set: how far each lies from its neighbours in feature space.

Does not cover: images of the right kind with a wrong label, which `label_issues` finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.data.embedding import FloatArray, IntArray

MIN_IMAGES = 50
OUTLIER_SCORE = 0.9
_REFERENCES = 5000
_BLOCK = 2048


@dataclass(frozen=True)
class Outliers:
    """How foreign each image is, in the order of the images."""

    score: FloatArray  # [n] 0 to 1
    outlier: npt.NDArray[np.bool_]  # [n]
    note: str = ""  # a sentence for what is not judged, and why


def find_outliers(features: FloatArray, labels: IntArray, seed: int, threshold: float = OUTLIER_SCORE) -> Outliers:
    """Score every image (see `outlier_scores`) and call those at `threshold` or above outliers."""
    score = outlier_scores(features, labels, seed)
    note = (
        ""
        if len(score) >= MIN_IMAGES
        else f"Outliers are not sought: that takes {MIN_IMAGES} images, here are {len(score)}."
    )
    return Outliers(score, score >= threshold, note)


def outlier_scores(features: FloatArray, labels: IntArray, seed: int) -> FloatArray:
    """How far each image lies from its neighbours; float32 [n], 0 to 1. All 0 for fewer than 50 images."""
    count = len(features)
    if count < MIN_IMAGES:
        return np.zeros(count, dtype=np.float32)
    rng = np.random.default_rng(seed)
    references = features[np.sort(rng.permutation(count)[:_REFERENCES])]
    neighbours = max(5, len(references) // 33)
    squares = (references**2).sum(axis=1)
    distance = np.empty(count, dtype=np.float32)
    for start in range(0, count, _BLOCK):
        block = features[start : start + _BLOCK]
        squared = (block**2).sum(axis=1)[:, None] - 2 * block @ references.T + squares
        distance[start : start + len(block)] = np.sqrt(np.partition(squared, neighbours, axis=1)[:, neighbours].clip(0))
    median, high = np.percentile(distance, [50, 95])
    if high <= median:
        return np.zeros(count, dtype=np.float32)
    # 0.5 at the 95th percentile's distance from the median, 0.9 at nearly twice that.
    excess = ((distance - median) / (high - median)).clip(0)
    return np.asarray(excess**3 / (1 + excess**3), dtype=np.float32)
