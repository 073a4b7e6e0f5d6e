"""Numbers that are known beforehand, and data sets that have made other tools crash."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visionloop.errors import DataError
from visionloop.evaluation.curves import MACRO, MICRO, curves_csv, micro_csv, pr_curves
from visionloop.evaluation.metrics import classes_csv, confusion, confusion_csv, per_class, summarize, wilson
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
