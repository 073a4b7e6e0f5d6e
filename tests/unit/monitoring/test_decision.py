"""Each branch of the rule, with its reason in words and numbers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Literal

import pytest

from monitoring.decision import decide
from tests.drift_world import PARAMS, START
from visionloop.features import SignalGroup
from visionloop.records import DriftResult, SignalDrift, Window

THRESHOLD = 0.001 / 4
NAMES: tuple[tuple[str, SignalGroup], ...] = (
    ("p:0", "probability"),
    ("e:0", "embedding"),
    ("sharpness", "image"),
    ("label", "class"),
)


def _result(
    index: int = 5,
    *,
    drifted: tuple[str, ...] = (),
    estimated: float | None = 0.95,
    interval: tuple[float, float] | None = (0.93, 0.97),
    reference: float | None = 0.95,
    health: tuple[str, ...] = (),
    rows: int = 500,
    version: str = "3",
    suffix: str = "",
) -> DriftResult:
    start = START + timedelta(hours=index)
    window = Window(f"{version}-{index}{suffix}", version, start, start + timedelta(minutes=59), rows, 0)
    signals = tuple(_signal(name, group, name in drifted) for name, group in NAMES)
    return DriftResult(window, THRESHOLD, signals, estimated, reference, health, interval)


def _signal(name: str, group: SignalGroup, drifted: bool) -> SignalDrift:
    test: Literal["ks", "chisquare"] = "chisquare" if group == "class" else "ks"
    return SignalDrift(name, test, 0.4 if drifted else 0.03, 1e-9 if drifted else 0.4, drifted, group)


def test_no_drift_waits() -> None:
    decision = decide(_result(), [], PARAMS)
    assert (decision.action, decision.level, decision.window_id) == ("wait", "none", "3-5")
    assert decision.reason == (
        "None of 4 signals differs from the reference (smallest p is 0.4, of p:0; the threshold is 2.5e-04). "
        "Estimated accuracy 95.0% (95 % interval 93.0% to 97.0%), reference 95.0%."
    )


def test_too_few_rows_wait_and_say_that_this_is_no_verdict() -> None:
    decision = decide(replace(_result(rows=199), signals=(), estimated_accuracy=None), [], PARAMS)
    assert (decision.action, decision.level) == ("wait", "insufficient")
    assert decision.reason == (
        "Window 3-5 has 199 answered images; it closes at 500, and can be judged early from 200 on. "
        "This is not a finding of no drift."
    )


def test_an_image_signal_alone_alerts() -> None:
    decision = decide(_result(drifted=("sharpness",)), [], PARAMS)
    assert (decision.action, decision.level) == ("alert", "drift")
    assert decision.reason.startswith("1 of 4 signals differs from the reference at p < 2.5e-04: sharpness p=1.0e-09.")


def test_a_model_signal_alerts_once_and_retrains_when_it_lasts() -> None:
    now = _result(drifted=("p:0", "sharpness"))
    assert decide(now, [_result(4), _result(3)], PARAMS).action == "alert"
    decision = decide(now, [_result(3, drifted=("e:0",)), _result(4)], PARAMS)
    assert (decision.action, decision.level) == ("retrain", "harm")
    assert decision.reason.startswith("The model's own signals drifted in 2 of the last 3 windows (3-3, 3-5).")


@pytest.mark.parametrize(
    "history",
    [
        [_result(2, drifted=("p:0",)), _result(3), _result(4)],  # too long ago
        [_result(4, drifted=("sharpness",)), _result(3, drifted=("label",))],  # not the model's signals
        [_result(4, drifted=("p:0",), version="2")],  # another model
        [_result(4, drifted=("p:0",), suffix="-300")],  # judged before it closed: shares rows with a closed one
        [_result(5, drifted=("p:0",))],  # the same window, judged before
        [_result(6, drifted=("p:0",))],  # a later window
    ],
)
def test_alarms_that_do_not_make_this_one_lasting(history: list[DriftResult]) -> None:
    assert decide(_result(drifted=("p:0",)), history, PARAMS).action == "alert"


def test_two_old_alarms_and_a_clean_window_wait() -> None:
    history = [_result(4, drifted=("p:0",)), _result(3, drifted=("p:0",))]
    assert decide(_result(), history, PARAMS).action == "wait"


@pytest.mark.parametrize(
    ("estimated", "interval", "action"),
    [
        (0.91, (0.89, 0.93), "retrain"),
        (0.9199, (0.89, 0.949), "retrain"),
        (0.921, (0.91, 0.93), "alert"),  # 2.9 points: under the limit
        (0.90, (0.84, 0.96), "alert"),  # 5 points, but the interval holds the reference
    ],
)
def test_a_loss_of_accuracy_retrains_only_beyond_limit_and_interval(
    estimated: float, interval: tuple[float, float], action: str
) -> None:
    decision = decide(_result(drifted=("sharpness",), estimated=estimated, interval=interval), [], PARAMS)
    assert decision.action == action
    if action == "retrain":
        assert decision.reason.startswith(f"Estimated accuracy {estimated:.1%} (95 % interval")


def test_a_low_estimate_without_drift_waits_and_says_so() -> None:
    decision = decide(_result(estimated=0.90, interval=(0.87, 0.93)), [], PARAMS)
    assert (decision.action, decision.level) == ("wait", "none")
    assert decision.reason.endswith("most likely chance; feedback labels would tell.")


def test_broken_data_alert_and_never_retrain() -> None:
    faults = tuple(f"Fault {index}." for index in range(5))
    decision = decide(_result(drifted=("p:0",), estimated=0.5, interval=(0.4, 0.6), health=faults), [], PARAMS)
    assert (decision.action, decision.level) == ("alert", "health")
    assert decision.reason == (
        "Fault 0. Fault 1. Fault 2. (and 2 more) 1 of 4 signals differ too, but such data say nothing of the world."
    )


def test_broken_data_alert_in_a_window_that_is_too_small_too() -> None:
    result = replace(_result(rows=0, health=("300 of 300 images were refused.",)), signals=())
    many = replace(result, window=replace(result.window, rejected=300))
    assert decide(many, [], PARAMS).level == "health"
    few = replace(result, window=replace(result.window, rows=12, rejected=PARAMS.min_rows - 13))
    assert (decide(few, [], PARAMS).action, decide(few, [], PARAMS).level) == ("wait", "insufficient")


def test_a_reference_without_labels_still_gives_a_decision() -> None:
    decision = decide(_result(drifted=("p:0",), estimated=None, interval=None, reference=None), [], PARAMS)
    assert decision.action == "alert"
    assert decision.reason.endswith("The accuracy cannot be estimated, because the reference has no true labels.")
