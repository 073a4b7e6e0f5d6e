"""Each rule of the gate: its verdict, its figures and its sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionloop.config import GateParams
from visionloop.evaluation.comparison import PairedAnswers
from visionloop.evaluation.gate import Champion, Decision, Evidence, judge
from visionloop.promotion import Promotion

LABELS = ("a", "b")
PARAMS: dict[str, Any] = {
    "confidence_level": 0.95, "require": "no_worse", "max_drop": 0.02, "newest": "unseen", "min_newest_images": 100,
    "max_newest_drop": 0.05, "min_accuracy": 0.5, "max_class_drop": 0.1, "max_latency_ratio": 2.0,
    "allow_removed_classes": False,
}  # fmt: skip


def answers(images: int, gained: int, lost: int, of_class: int | None = None) -> PairedAnswers:
    """Both right but for `gained` images that only the new model answers rightly, and `lost` that only the champion does."""
    targets = np.arange(images) % 2
    mine = np.flatnonzero(targets == of_class) if of_class is not None else np.arange(images)
    first, second = targets.copy(), targets.copy()
    second[mine[:gained]] = 1 - targets[mine[:gained]]
    first[mine[gained : gained + lost]] = 1 - targets[mine[gained : gained + lost]]
    return PairedAnswers(targets, first, second)


def decide(
    frozen: PairedAnswers,
    fresh: PairedAnswers | None = None,
    *,
    labels: tuple[str, ...] = LABELS,
    served: tuple[str, ...] = LABELS,
    latency_ms: float = 1.0,
    right: float = 0.9,
    forced: Promotion | None = None,
    **params: Any,
) -> Decision:
    champion = Champion(3, served, frozen, fresh, learnt=0, latency_ms=1.0)
    correct = np.arange(200) < 200 * right
    return judge(Evidence(labels, correct, latency_ms, champion), GateParams(**{**PARAMS, **params}), forced)


def rule(decision: Decision, name: str) -> tuple[bool | None, str]:
    (found,) = (one for one in decision.rules if one.name == name)
    return found.passed, found.reason


def test_an_equal_model_passes_on_enough_images_and_is_blocked_on_too_few() -> None:
    decision = decide(answers(1000, 4, 4))
    assert decision.passed
    assert decision.verdict == (
        "On the frozen test set it has 99.60% right against the 99.60% of version 3: not worse by more than 2 points: "
        "equally good (95 % interval -0.6 to 0.6 on 1,000 images)."
    )
    few = decide(answers(100, 1, 1))
    assert not few.passed
    assert few.verdict == (
        "Version 3 stays served. On the frozen test set it has 99.00% right against the 99.00% of version 3: cannot be told "
        "apart on 100 images: equally good, 95 % interval -4 to 4; a difference of 2 points would need about 770 images; a "
        "loss above 2 points (gate.max_drop) cannot be ruled out, which takes more labelled images."
    )


def test_a_worse_model_is_blocked_and_a_better_one_passes() -> None:
    worse = decide(answers(1000, 5, 40))
    assert rule(worse, "frozen") == (
        False,
        "On the frozen test set it has 96.00% right against the 99.50% of version 3: worse by 3.5 points (95 % interval "
        "-4.8 to -2.2 on 1,000 images); gate.max_drop allows a loss of 2 points.",
    )
    assert decide(answers(1000, 40, 5), require="better").passed
    assert rule(decide(answers(1000, 4, 4), require="better"), "frozen")[1].endswith("gate.require asks for a proved gain.")


def test_the_newest_images_are_judged_once_there_are_enough() -> None:
    assert rule(decide(answers(1000, 4, 4), answers(99, 0, 60)), "newest") == (
        None,
        "The newest images are not judged: of the test images that are newer than version 3 there are 99, and "
        "gate.min_newest_images is 100.",
    )
    worse = decide(answers(1000, 4, 4), answers(200, 0, 40))
    assert (worse.passed, rule(worse, "newest")[0]) == (False, False)
    assert decide(answers(1000, 4, 4), answers(200, 40, 0)).passed
    assert "has no list of the images" in rule(decide(answers(1000, 4, 4), None), "newest")[1]
    assert "gate.newest is none" in rule(decide(answers(1000, 4, 4), None, newest="none"), "newest")[1]


def test_nothing_to_be_compared_on_blocks_unless_no_class_is_shared() -> None:
    nothing = answers(0, 0, 0)
    assert "share no test images" in decide(nothing, answers(20, 0, 0)).verdict
    assert decide(nothing, answers(200, 4, 4)).passed
    other = decide(nothing, nothing, served=("x", "y"), allow_removed_classes=True)
    assert other.passed
    assert other.verdict == (
        "The classes 'x', 'y' are gone, which gate.allow_removed_classes allows. The classes 'a', 'b' are new."
    )


def test_a_class_that_is_gone_blocks_unless_that_is_allowed() -> None:
    gone = decide(answers(1000, 4, 4), served=("a", "b", "c"))
    assert rule(gone, "labels") == (
        False,
        "It no longer knows the class 'c', which version 3 answers and users may count on; bring images of it back, or set "
        "gate.allow_removed_classes to true.",
    )
    assert decide(answers(1000, 4, 4), served=("a", "b", "c"), allow_removed_classes=True).passed
    assert rule(decide(answers(1000, 4, 4), labels=("a", "b", "n")), "labels") == (
        True,
        "No class is gone. The class 'n' is new.",
    )


def test_a_class_that_falls_blocks_and_one_that_falls_by_chance_does_not() -> None:
    # The overall difference is within the limit in both: what one class loses is 1.2 and 0.6 points of all.
    fallen = decide(answers(100, 0, 12, of_class=1), max_drop=0.5)
    assert rule(fallen, "worst_class") == (
        False,
        "Class 'b' falls by 24 points against version 3: 12 of 50 images lost and 0 gained (p = 0.00024). "
        "gate.max_class_drop allows a loss of 10 points.",
    )
    chance = decide(answers(20, 0, 3, of_class=1), max_drop=0.5)
    assert rule(chance, "worst_class") == (
        True, "The worst change of a class is that of 'b': 100.0% to 70.0% of 10 images, which chance explains."
    )  # fmt: skip
    assert chance.passed


def test_latency_and_the_least_accuracy() -> None:
    slow = decide(answers(1000, 4, 4), latency_ms=2.5)
    assert slow.verdict == (
        "Version 3 stays served. One image takes 2.5 ms, 2.50 times the 1 ms of version 3; gate.max_latency_ratio is 2, so "
        "train a smaller network or raise that."
    )
    poor = judge(Evidence(LABELS, np.arange(100) < 40, 1.0, None), GateParams(**PARAMS))
    assert not poor.passed
    assert poor.verdict.startswith("It answers 40.00% of 100 test images rightly (95% interval 30.94% to 49.80%)")


def test_the_first_model_passes_with_the_reason() -> None:
    first = judge(Evidence(LABELS, np.arange(100) < 90, 1.0, None), GateParams(**PARAMS))
    assert first.passed
    assert first.verdict.startswith("No model is served yet, so there is nothing to compare with. It answers 90.00%")


def test_a_persons_decision_wins_and_the_rules_are_kept() -> None:
    forced = Promotion("0" * 64, "ana", "the old one is broken", "2026-01-01T00:00:00+00:00")
    decision = decide(answers(1000, 5, 40), forced=forced)
    assert decision.passed
    assert decision.verdict.startswith(
        "ana publishes it on 2026-01-01T00:00:00+00:00: the old one is broken. The rules said: On the"
    )
    report = decision.report("new", "old", 3)
    assert (report["passed"], report["forced"], report["champion"]) == (1, 1, ["old"])
    assert [one["rule"] for one in report["rules"] if one["passed"] is False] == ["frozen"]


@pytest.mark.parametrize("frozen", [answers(1000, 4, 4), answers(0, 0, 0)])
def test_a_report_is_flat_numbers_and_lists(frozen: PairedAnswers) -> None:
    report = decide(frozen, answers(200, 1, 1)).report("new", "old", 3)
    assert all(isinstance(value, int | float | list) for value in report.values())
    assert report["newest_images"] == 200
    assert ("frozen_difference" in report) == (len(frozen) > 0)
