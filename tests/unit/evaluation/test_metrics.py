"""Numbers that are known beforehand, and data sets that have made other tools crash."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from visionloop.errors import DataError
from visionloop.evaluation.curves import MACRO, MICRO, curves_csv, micro_csv, pr_curves, roc_curves
from visionloop.evaluation.metrics import (
    brier_terms,
    classes_csv,
    confusion,
    confusion_csv,
    per_class,
    summarize,
    top_k_correct,
    wilson,
)
from visionloop.evaluation.predictions import SplitPredictions, spread, worst_mistakes


def answers(targets: list[int], probabilities: list[list[float]]) -> SplitPredictions:
    ids = tuple(f"image-{index}" for index in range(len(targets)))
    return SplitPredictions(ids, np.array(targets, dtype=np.int64), np.array(probabilities, dtype=np.float64))


FOUR = answers([0, 0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])


def test_wilson_by_hand_and_at_the_ends() -> None:
    low, high = wilson(178, 180, 0.95)
    assert (round(low, 4), round(high, 4)) == (0.9604, 0.9969)
    assert wilson(0, 10, 0.95)[0] == 0
    low, high = wilson(10, 10, 0.95)
    assert (round(low, 4), high) == (0.7225, 1.0)


def test_four_images_by_hand() -> None:
    classes = per_class(FOUR, ("a", "b"))
    assert [(row.precision, row.recall, row.support, row.predicted) for row in classes] == [
        (1.0, 0.5, 2, 1), (pytest.approx(2 / 3), 1.0, 2, 3)
    ]  # fmt: skip
    numbers = summarize(FOUR, classes, 0.95)
    assert numbers["accuracy"] == 0.75
    assert numbers["mistakes"] == 1
    assert numbers["balanced_accuracy"] == 0.75
    assert numbers["macro_f1"] == round((2 / 3 + 0.8) / 2, 4)
    assert numbers["log_loss"] == round(-(math.log(0.9) + math.log(0.2) + math.log(0.6) + math.log(0.7)) / 4, 4)
    # Confidences 0.9 (right), 0.8 (wrong), 0.6 and 0.7 (right), each in a bin of its own: gaps 0.1, 0.8, 0.4, 0.3.
    assert numbers["calibration_error"] == pytest.approx(0.4)
    assert confusion(FOUR, 2).tolist() == [[1, 1], [0, 2]]
    assert confusion_csv(FOUR, ("a", "b")) == "actual,predicted\na,a\na,b\nb,b\nb,b\n"


def test_a_class_absent_from_the_test_side_is_left_out_of_averages_and_has_empty_fields() -> None:
    three = answers([0, 0, 1], [[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    classes = per_class(three, ("a", "b", "ç, d"))
    numbers = summarize(three, classes, 0.9)
    assert numbers["balanced_accuracy"] == 0.75
    assert numbers["macro_precision"] == 1.0
    assert classes_csv(classes).splitlines()[-1] == '"ç, d",0.0,,0.0,,,0,1'
    assert [curve.name for curve in pr_curves(three, ("a", "b", "ç, d"))] == [MICRO, MACRO, "a", "b"]


@pytest.mark.parametrize("probabilities", [[[1.0], [1.0]], [[1.0]]])
def test_a_single_class(probabilities: list[list[float]]) -> None:
    one = answers([0] * len(probabilities), probabilities)
    numbers = summarize(one, per_class(one, ("only",)), 0.95)
    assert (numbers["accuracy"], numbers["log_loss"], numbers["mean_average_precision"]) == (1.0, 0.0, 1.0)
    assert pr_curves(one, ("only",))[2].average_precision == 1.0


def test_ties_take_the_first_class_and_a_certain_mistake_has_a_finite_loss() -> None:
    ties = answers([1, 0], [[0.5, 0.5], [0.0, 1.0]])
    assert ties.predicted.tolist() == [0, 1]
    assert summarize(ties, per_class(ties, ("a", "b")), 0.95)["log_loss"] < 20


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="no image to evaluate on"):
        summarize(SplitPredictions((), np.zeros(0, np.int64), np.zeros((0, 2))), [], 0.95)


def test_curves_by_hand_and_bounded_in_length() -> None:
    curve = pr_curves(FOUR, ("a", "b"))[3]
    assert curve.average_precision == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)  # scores of b: 0.1-, 0.8-, 0.6+, 0.7+
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], 3000)
    many = SplitPredictions(tuple("x" * 3000), rng.integers(0, 3, 3000), probabilities)
    curves = pr_curves(many, ("a", "b", "c"))
    assert len(curves_csv(curves).splitlines()) == 1 + 5 * 200
    lines = micro_csv(curves).splitlines()
    assert (lines[0], lines[1], len(lines)) == ("recall,precision", "0.0,1.0", 201)


def test_pictures_are_chosen_over_the_classes_and_mistakes_by_confidence() -> None:
    many = answers([1, 1, 1, 0, 0, 1], [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.4, 0.6], [0.8, 0.2], [0.2, 0.8]])
    assert spread(many, 4).tolist() == [3, 0, 4, 1]
    assert worst_mistakes(many, 2).tolist() == [0, 2]
    assert worst_mistakes(many, 0).tolist() == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 80), st.integers(3, 7), st.integers(2, 4))
def test_random_answers_get_scikit_learns_numbers(seed: int, count: int, classes: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, classes, count), rng.dirichlet(np.ones(classes), count)
    many = SplitPredictions(tuple(map(str, range(count))), targets, scores)
    found = summarize(many, per_class(many, [str(i) for i in range(classes)]), 0.95, k)
    present, numbers = np.unique(targets), np.arange(classes)
    wanted: dict[str, float] = {
        "accuracy": metrics.accuracy_score(targets, many.predicted),
        "balanced_accuracy": metrics.recall_score(targets, many.predicted, labels=present, average="macro", zero_division=0),
        "log_loss": metrics.log_loss(targets, scores, labels=numbers),
        "brier": metrics.brier_score_loss(targets, scores, labels=numbers, scale_by_half=False),
        "average_precision_micro": metrics.average_precision_score(targets[:, None] == numbers, scores, average="micro"),
        "roc_auc_micro": metrics.roc_auc_score((targets[:, None] == numbers).ravel(), scores.ravel()),
    }
    if k < classes:
        wanted[f"top_{k}_accuracy"] = metrics.top_k_accuracy_score(targets, scores, k=k, labels=numbers)
    for average in ("macro", "weighted"):
        three = metrics.precision_recall_fscore_support(
            targets, many.predicted, labels=present, average=average, zero_division=0
        )
        wanted |= {f"{average}_{name}": value for name, value in zip(("precision", "recall", "f1"), three, strict=False)}
    if len(present) == classes:
        wanted["roc_auc_macro"] = metrics.roc_auc_score(targets, scores, multi_class="ovr")
        wanted["mean_average_precision"] = metrics.average_precision_score(targets[:, None] == numbers, scores)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=6e-5), name  # of four digits
    assert (confusion(many, classes) == metrics.confusion_matrix(targets, many.predicted, labels=numbers)).all()


def test_top_k_and_brier_by_hand() -> None:
    # The target is first, second, and third of three; then it is tied with the second place and comes after it.
    scores = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]
    made = answers([0, 1, 2, 2], scores)
    assert top_k_correct(made, 2).tolist() == [True, True, False, False]
    assert top_k_correct(made, 1).tolist() == made.correct.tolist()
    assert brier_terms(made) == pytest.approx([0.26, 0.86, 1.26, 0.74])
    assert "top_3_accuracy" not in summarize(made, per_class(made, "abc"), 0.95, 3)
    assert summarize(made, per_class(made, "abc"), 0.95, 2)["top_2_accuracy"] == 0.5


def test_macro_curves_have_the_mean_of_the_areas() -> None:
    rng = np.random.default_rng(4)
    targets, scores = rng.integers(0, 3, 400), rng.dirichlet([1, 1, 1], 400)
    scores[np.arange(400), targets] += 0.4
    many = SplitPredictions(tuple(map(str, range(400))), targets, scores / scores.sum(1, keepdims=True))
    micro, macro, *classes = roc_curves(many, "abc")
    assert (micro.name, macro.name) == (MICRO, MACRO)
    assert macro.area == pytest.approx(np.mean([one.area for one in classes]))
    assert np.trapezoid(macro.true_positive_rate, macro.false_positive_rate) == pytest.approx(macro.area, abs=0.005)
    steps = pr_curves(many, "abc")[1]
    assert float((np.diff(steps.recall) * steps.precision[1:]).sum()) == pytest.approx(steps.average_precision, abs=0.005)
    assert curves_csv([micro]).splitlines()[:2] == ["class,false_positive_rate,true_positive_rate", "micro-average,0.0,0.0"]
    one = answers([0, 0], [[0.9, 0.1], [0.8, 0.2]])
    assert roc_curves(one, "ab") == []
    assert micro_csv(roc_curves(one, "ab")) == "false_positive_rate,true_positive_rate\n"
