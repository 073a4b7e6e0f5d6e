"""The paired test against hand-made counts and resampled images, the intervals' coverage, and the verdict in words."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from visionloop.errors import ArtifactError, DataError
from visionloop.evaluation.comparison import (
    PairedAnswers,
    class_changes,
    compare,
    compare_answers,
    compare_counts,
    differences,
    images_needed,
    verdict,
)


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[dict[str, bool], dict[str, bool]]:
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second + [(False, False)] * neither
    return {str(i): a for i, (a, _) in enumerate(pairs)}, {str(i): b for i, (_, b) in enumerate(pairs)}


def world(images: int, seed: int, noise: tuple[float, float] = (0.1, 0.15), classes: int = 4) -> PairedAnswers:
    """Two models that err alike in half of their errors."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, images)
    shared = rng.random(images)
    answers = []
    for share in noise:
        wrong = np.where(rng.random(images) < 0.5, shared, rng.random(images)) < share
        answers.append(np.where(wrong, (targets + 1) % classes, targets))
    return PairedAnswers(targets, answers[0], answers[1])


def test_exact_mcnemar_by_hand() -> None:
    comparison = compare(*outcomes(90, 8, 1, 1), 0.95)
    # Two sides of a fair coin thrown 9 times: 2 * (1 + 9) / 2 ** 9.
    assert comparison.p_value == pytest.approx(20 / 512)
    assert comparison.difference == pytest.approx(0.07)
    assert 0 < comparison.low < 0.07 < comparison.high < 0.16
    assert compare(*outcomes(10, 0, 0, 2), 0.95).p_value == 1.0


def test_the_interval_agrees_with_resampled_images() -> None:
    first, second = outcomes(150, 20, 5, 5)
    comparison = compare(first, second, 0.95)
    values = np.array(list(first.values()), dtype=float) - np.array(list(second.values()), dtype=float)
    rng = np.random.default_rng(1)
    means = values[rng.integers(0, 180, (20_000, 180))].mean(1)
    assert (comparison.low, comparison.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.008)


@pytest.mark.parametrize(
    ("images", "only_first", "only_second"), [(50, 0.03, 0.03), (180, 0.01, 0.0), (180, 0.04, 0.01), (1000, 0.02, 0.015)]
)
def test_the_interval_covers_the_true_difference_at_least_as_often_as_it_says(
    images: int, only_first: float, only_second: float
) -> None:
    shares = [only_first, only_second, 1 - only_first - only_second]
    drawn = np.random.default_rng(5).multinomial(images, shares, size=1000)
    found = [compare_counts(int(a), int(b), images, 0.95) for a, b, _ in np.unique(drawn, axis=0)]
    weights = np.unique(drawn, axis=0, return_counts=True)[1]
    covered = np.array([one.low - 1e-9 <= only_first - only_second <= one.high + 1e-9 for one in found])
    # 95 % of 1,000 trials, less twice the spread of such a count.
    assert covered @ weights / 1000 >= 0.95 - 2 * (0.95 * 0.05 / 1000) ** 0.5


def test_two_models_that_never_disagree_are_not_surely_equal() -> None:
    few, many = compare_counts(0, 0, 20, 0.95), compare_counts(0, 0, 2000, 0.95)
    assert few.low < -0.05 < 0.05 < few.high
    assert -0.003 < many.low < 0 < many.high < 0.003


def test_the_averages_over_classes_are_scikit_learns() -> None:
    answers = world(300, 2)
    accuracy, balanced, macro = differences(answers, 4, 0.95)
    for one, reference in (
        (accuracy, lambda t, p: float((t == p).mean())),
        (balanced, balanced_accuracy_score),
        (macro, lambda t, p: f1_score(t, p, average="macro")),
    ):
        assert one.first == pytest.approx(reference(answers.targets, answers.first), abs=1e-12)
        assert one.second == pytest.approx(reference(answers.targets, answers.second), abs=1e-12)
        assert one.low < one.difference < one.high


@pytest.mark.parametrize("noise", [(0.1, 0.15), (0.01, 0.02)])
def test_the_intervals_of_the_averages_cover_the_true_difference(noise: tuple[float, float]) -> None:
    true = {one.metric: one.difference for one in differences(world(400_000, 7, noise), 4, 0.95)}
    trials, hits = 150, dict.fromkeys(true, 0)
    for seed in range(trials):
        for one in differences(world(200, seed, noise), 4, 0.95):
            hits[one.metric] += one.low <= true[one.metric] <= one.high
    for metric, count in hits.items():
        assert 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5 <= count / trials <= 1, metric


def test_a_class_that_is_absent_or_unknown_to_a_model() -> None:
    # Class 2 has no image and counts in no average; the second model answers a class of no name here (-1) once.
    answers = PairedAnswers(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), np.array([0, -1, 1, 1]))
    _, balanced, macro = differences(answers, 3, 0.95)
    assert (balanced.first, balanced.second) == (0.75, 0.75)
    assert macro.first == pytest.approx((1 + 2 / 3) / 2)
    assert macro.second == pytest.approx((2 / 3 + 1) / 2)
    only = PairedAnswers(np.zeros(5, np.int64), np.zeros(5, np.int64), np.zeros(5, np.int64))
    assert [(one.first, one.difference) for one in differences(only, 1, 0.95)] == [(1, 0)] * 3
    assert all(one.low < 0 < one.high for one in differences(only, 1, 0.95))  # five images prove no equality


def test_class_changes_by_hand() -> None:
    targets = np.repeat([0, 1], [10, 10])
    first, second = targets.copy(), targets.copy()
    first[10:14], second[19] = 0, 0
    (change,) = class_changes(PairedAnswers(targets, first, second), ["a", "b", "none"])[1:]
    assert (change.label, change.images, change.gained, change.lost) == ("b", 10, 1, 4)
    assert (change.first, change.second) == (0.6, 0.9)
    assert change.difference == pytest.approx(-0.3)
    assert change.p_worse == pytest.approx((5 + 1) / 32)  # four or five heads of five


def test_planned_images_reach_their_power() -> None:
    now = compare_counts(30, 20, 1000, 0.95)
    needed = images_needed(now, 0.01)
    assert needed is not None
    share = 52 / 1002
    drawn = np.random.default_rng(3).multinomial(needed, [(share + 0.01) / 2, (share - 0.01) / 2, 1 - share], size=400)
    told = np.mean([compare_counts(int(a), int(b), needed, 0.95).p_value < 0.05 for a, b, _ in drawn])
    assert told == pytest.approx(0.8, abs=0.06)
    assert images_needed(now, 0) is None
    assert images_needed(now, 0.5) is None


@pytest.mark.parametrize(
    ("counts", "margin", "words"),
    [
        ((15, 5, 1000), None, "better by 1 point (95 % interval 0.1 to 2 on 1,000 images)"),
        ((5, 25, 1000), 0.01, "worse by 2 points (95 % interval -3.1 to -0.9 on 1,000 images)"),
        ((10, 11, 10_000), 0.01, "not worse by more than 1 point: 0.01 points worse (95 % interval -0.1 to 0.1 on 10,000 "
         "images)"),
        ((2, 3, 180), None, "cannot be told apart on 180 images: 0.6 points worse, 95 % interval -3.3 to 2.2; "
         "a difference of 0.6 points would need about 9,800 images"),
        ((2, 3, 180), 0.01, "cannot be told apart on 180 images: 0.6 points worse, 95 % interval -3.3 to 2.2; "
         "a difference of 1 point would need about 3,100 images"),
        ((0, 0, 10), None, "cannot be told apart on 10 images: equally good, 95 % interval -30 to 30; "
         "a difference of 1 point would need about 14,000 images"),
    ],
)  # fmt: skip
def test_verdicts(counts: tuple[int, int, int], margin: float | None, words: str) -> None:
    assert verdict(compare_counts(*counts, 0.95), margin) == words


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ArtifactError, match="not the same"):
        compare({"a": True}, {"b": True}, 0.95)
    with pytest.raises(ArtifactError, match="on 0 and 0"):
        compare({}, {}, 0.95)
    empty = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no image"):
        compare_answers(PairedAnswers(empty, empty, empty), 0.95)
    with pytest.raises(ArtifactError, match="2 and 1 answers to 2"):
        PairedAnswers(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64))


def test_a_thousand_classes_are_compared_in_seconds() -> None:
    begin = time.process_time()
    differences(world(20_000, 1, classes=1000), 1000, 0.95)
    assert time.process_time() - begin < 20
