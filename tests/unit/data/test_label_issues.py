"""Wrong labels that were planted are found, duplicates never vouch for each other, and limits get an answer."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from visionloop.data import embedding, label_issues
from visionloop.data.embedding import embed
from visionloop.data.label_issues import find_label_issues, out_of_fold
from visionloop.data.thumbs import Thumbs


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    bundled = load_digits()
    with Thumbs(len(bundled.images), tmp_path_factory.mktemp("thumbs")) as thumbs:
        for index, image in enumerate(bundled.images):
            small = Image.fromarray((image * (255 / 16)).astype(np.uint8)).convert("RGB")
            thumbs.put(index, small.resize((32, 32), Image.Resampling.BICUBIC).tobytes())
        return embed(thumbs, np.arange(len(bundled.images)), 0), bundled.target.astype(np.int64)


def plant(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    given = labels.copy()
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return given, wrong


def test_five_percent_wrong_digits_are_found(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits
    given, wrong = plant(labels, 0.05, 0)
    issues = find_label_issues(features, given, np.arange(len(labels)), 10, 0)
    hits = issues.suspect[wrong]
    assert hits.sum() / issues.suspect.sum() >= 0.95  # 0.99 was measured
    assert hits.mean() >= 0.88  # 0.92
    assert (issues.suggested[wrong][hits] == labels[wrong][hits]).mean() >= 0.98
    assert (issues.suggested[~issues.suspect] == -1).all()
    assert issues.quality[wrong].mean() < 0.1
    assert np.delete(issues.quality, wrong).mean() > 0.8
    assert issues.note == ""


def test_right_digits_are_left_alone(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits
    assert find_label_issues(features, labels, np.arange(len(labels)), 10, 0).suspect.mean() <= 0.01


def test_seed_decides_and_threads_do_not(digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = digits[0][:600], digits[1][:600]
    first = out_of_fold(features, labels, np.arange(600), 10, 0)
    monkeypatch.setattr(embedding, "_cores", lambda: 1)
    assert out_of_fold(features, labels, np.arange(600), 10, 0).tobytes() == first.tobytes()
    assert out_of_fold(features, labels, np.arange(600), 10, 1).tobytes() != first.tobytes()


def test_duplicates_of_one_wrong_label_do_not_vouch_for_each_other(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits
    wrong = np.arange(20)
    copies = 4  # of each wrong digit, all under the same wrong label
    given = np.concatenate(
        [(labels + np.isin(np.arange(len(labels)), wrong)) % 10, np.repeat((labels[wrong] + 1) % 10, copies)]
    )
    stacked = np.concatenate([features, np.repeat(features[wrong], copies, axis=0)])
    alone = np.arange(len(stacked))
    together = np.concatenate([np.arange(len(labels)), np.repeat(wrong, copies)])
    planted = (alone >= len(labels)) | (alone < len(wrong))
    joined = find_label_issues(stacked, given, together, 10, 0)
    apart = find_label_issues(stacked, given, alone, 10, 0)
    assert joined.suspect[planted].mean() >= 0.85
    assert joined.suspect[planted].mean() > apart.suspect[planted].mean() + 0.1  # what folds by image would have hidden


def test_groups_stay_in_one_fold_and_classes_are_dealt_evenly() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 300), rng.integers(0, 150, 300)
    fold = label_issues._folds(labels, groups, rng)
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in np.unique(groups))
    alone = label_issues._folds(labels, np.arange(300), rng)
    counts = np.array([np.bincount(alone[labels == label], minlength=5) for label in range(3)])
    assert np.ptp(counts, axis=1).max() <= 1


def blobs(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    features = np.random.default_rng(0).standard_normal((len(labels), 8)) * 0.1
    features[np.arange(len(labels)), labels] += 3
    return features.astype(np.float32), labels


@pytest.mark.parametrize(
    ("sizes", "note"),
    [
        ([1, 1], "takes 50 images, here are 0"),
        ([20, 20], "takes 50 images, here are 40"),
        ([80], "takes two classes"),
        ([60, 4], "takes two classes"),
    ],
)
def test_limits_are_answered_in_a_sentence(sizes: list[int], note: str) -> None:
    features, labels = blobs(sizes)
    issues = find_label_issues(features, labels, np.arange(len(labels)), len(sizes), 0)
    assert note in issues.note
    assert (issues.quality == 1).all() and (issues.suggested == -1).all() and not issues.suspect.any()


def test_equal_features_are_not_judged() -> None:
    features, labels = np.ones((60, 4), dtype=np.float32), np.arange(60) % 2
    assert "look the same" in find_label_issues(features, labels, np.arange(60), 2, 0).note


def test_a_class_smaller_than_the_folds_is_spared_and_the_others_are_judged() -> None:
    features, labels = blobs([60, 3, 60])
    labels[0] = 2  # a wrong one, next to the small class in the numbering
    issues = find_label_issues(features, labels, np.arange(len(labels)), 3, 0)
    assert issues.note == "1 class of fewer than 5 different images is not judged."
    assert (issues.quality[60:63] == 1).all() and not issues.suspect[60:63].any()
    assert issues.suspect.nonzero()[0].tolist() == [0] and issues.suggested[0] == 0
