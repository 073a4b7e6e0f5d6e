"""Foreign points are found, also as a clump; a clean set has few; limits get an answer."""

from __future__ import annotations

import numpy as np
import pytest

from visionloop.data.outliers import find_outliers


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


def no_labels(features: np.ndarray) -> np.ndarray:
    return np.zeros(len(features), dtype=np.int64)


def test_a_clump_of_two_percent_is_found_and_little_else() -> None:
    rng = np.random.default_rng(1)
    clump = (rng.standard_normal((40, 16)) * 0.1 + 3).astype(np.float32)
    features = np.concatenate([cloud(1960), clump])
    found = find_outliers(features, no_labels(features), 0)
    assert found.outlier[1960:].all() and found.score[1960:].min() > found.score[:1960].max()
    assert found.outlier[:1960].mean() <= 0.01
    assert found.note == ""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_set_has_at_most_one_percent(seed: int) -> None:
    features = cloud(3000, seed)
    found = find_outliers(features, no_labels(features), seed)
    assert found.outlier.mean() <= 0.01
    assert ((found.score >= 0) & (found.score <= 1)).all()


def test_beyond_the_sample_of_references() -> None:
    features = np.concatenate([cloud(6000), cloud(60, 1) * 0.1 + 4]).astype(np.float32)
    found = find_outliers(features, no_labels(features), 0)
    assert found.outlier[6000:].all() and found.outlier[:6000].mean() <= 0.01
    assert found.score.tobytes() == find_outliers(features, no_labels(features), 0).score.tobytes()


@pytest.mark.parametrize(
    ("features", "note"),
    [
        (cloud(2), "takes 50 images, here are 2"),
        (cloud(0), "takes 50 images, here are 0"),
        (np.ones((100, 4), dtype=np.float32), "all images look the same"),
    ],
)
def test_limits_are_answered_in_a_sentence(features: np.ndarray, note: str) -> None:
    found = find_outliers(features, no_labels(features), 0)
    assert not found.outlier.any() and (found.score == 0).all()
    assert note in found.note


def test_measures_show_what_features_do_not() -> None:
    """Ten images of common features whose brightness no other image has."""
    features = cloud(500)
    measures = np.random.default_rng(1).normal(100, 10, (500, 2))
    measures[:10, 0] = 220
    assert not find_outliers(features, no_labels(features), 0).outlier[:10].any()
    found = find_outliers(features, no_labels(features), 0, measures)
    assert found.outlier[:10].all()
    assert found.outlier[10:].mean() <= 0.05
