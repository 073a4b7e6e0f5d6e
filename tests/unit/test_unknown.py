"""visionloop.unknown: the three scores by hand and by scipy, and what a calibration makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

from visionloop.card import Calibration, UnknownRule
from visionloop.errors import ArtifactError, DataError
from visionloop.evaluation.unknowns import fit_means, means_sample
from visionloop.unknown import ClassMeans, Score, judge, strangeness

LOGITS = np.array([[4.0, 0.0, 0.0], [0.5, 0.4, 0.3]])
EMBEDDING = np.zeros((2, 2), np.float32)


def test_probability_and_energy_by_hand_and_higher_is_stranger() -> None:
    peak = np.exp(4) / (np.exp(4) + 2)
    probability = strangeness("probability", LOGITS, EMBEDDING, None)
    assert probability[0] == pytest.approx(1 - peak)
    assert strangeness("energy", LOGITS, EMBEDDING, None) == pytest.approx(-logsumexp(LOGITS, axis=1))
    for score in ("probability", "energy"):
        certain, doubtful = strangeness(score, LOGITS, EMBEDDING, None)
        assert certain < doubtful


def test_the_distance_is_mahalanobis_to_the_nearest_mean_under_the_shared_covariance() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    spread = rng.normal(size=(5, 5))
    embedding = rng.normal(size=(90, 5)) @ spread + 4 * np.eye(5)[labels]
    means = np.stack([embedding[labels == index].mean(0) for index in range(3)])
    covariance, _ = ledoit_wolf(embedding - means[labels], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    asked = rng.normal(0, 3, (10, 5))
    expected = [min(mahalanobis(x, mean, inverse) ** 2 for mean in means) for x in asked]
    assert fit_means(embedding, labels).distances(asked) == pytest.approx(expected, rel=1e-4)


def test_a_dimension_that_never_varies_is_no_fault_and_none_at_all_is() -> None:
    embedding = np.column_stack([np.random.default_rng(1).normal(size=40), np.zeros(40)])
    means = fit_means(embedding, np.arange(40) % 2)
    inside, outside = means.distances(np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert np.isfinite([inside, outside]).all()
    assert outside > 10 * (inside + 1)
    alike = fit_means(np.ones((6, 2)), np.arange(6) % 2)
    assert alike.distances(np.ones((1, 2)))[0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="no training image"):
        fit_means(np.empty((0, 2)), np.empty(0, np.int64))


def test_the_means_are_fitted_on_each_class_alike_and_on_two_of_it_at_least() -> None:
    labels = np.array([0] * 100 + [1] * 3 + [2])
    chosen = labels[means_sample(labels, most=30)]
    assert np.bincount(chosen).tolist() == [10, 3, 1]
    assert np.bincount(labels[means_sample(labels, most=1)]).tolist() == [2, 2, 1]


def test_class_means_come_back_from_their_file_and_damage_is_named() -> None:
    means = ClassMeans(np.eye(3), np.arange(6.0).reshape(2, 3))
    back = ClassMeans.from_bytes(means.to_bytes())
    assert (back.whitening == means.whitening).all()
    assert (back.means == means.means).all()
    with pytest.raises(ArtifactError, match=r"class_means\.npz cannot be read"):
        ClassMeans.from_bytes(means.to_bytes()[:40])
    with pytest.raises(ArtifactError, match="there are none"):
        strangeness("distance", LOGITS, EMBEDDING, None)


@pytest.mark.parametrize(("score", "threshold"), [("probability", 0.3), ("energy", -3.0)])
def test_only_what_is_above_the_threshold_is_unknown(score: Score, threshold: float) -> None:
    rule = UnknownRule(score=score, threshold=threshold, kept=0.95)
    calibration = Calibration(temperature=1, precision_thresholds={}, unknown=rule, review_below=0.5, review_share=0.05)
    doubt = judge(calibration, LOGITS, EMBEDDING, None)
    assert doubt.unknown is not None and doubt.score is not None
    assert doubt.unknown.tolist() == [False, True]
    assert doubt.review.tolist() == [False, True]
    at_it = calibration.model_copy(update={"unknown": rule.model_copy(update={"threshold": float(doubt.score[1])})})
    assert judge(at_it, LOGITS, EMBEDDING, None).unknown is not None
    assert not judge(at_it, LOGITS, EMBEDDING, None).unknown.any()  # type: ignore[union-attr]


def test_without_a_rule_nothing_is_said_of_unknown_images() -> None:
    calibration = Calibration(temperature=1, precision_thresholds={}, unknown=None, review_below=0.0, review_share=0.0)
    doubt = judge(calibration, LOGITS, EMBEDDING, None)
    assert (doubt.score, doubt.unknown) == (None, None)
    assert not doubt.review.any()
