"""Malformed bytes as a table: each ends as expected, and one that crashes or is answered by mistake is a failure."""

from __future__ import annotations

import numpy as np
import pytest

from visionloop.evaluation.malformed import ANSWERED, Case, Outcome, all_cases, run
from visionloop.preprocess import PixelArray, PreprocessSpec, encode_png

SPEC = PreprocessSpec(16, 16)
GOOD = encode_png(np.zeros((9, 9, 3), dtype=np.uint8))


def named(pixels: PixelArray) -> str:
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    return f"level {int(pixels.max())}"


def crash(pixels: PixelArray) -> str:
    raise RuntimeError("no answer\nat all")


def test_every_case_ends_as_expected() -> None:
    outcomes = run(SPEC, named)
    assert [one for one in outcomes if not one.passed] == []
    found = {one.kind: one for one in outcomes}
    assert len(found) == len(outcomes) > 40
    assert found["PNG with a text of 50 MB (zTXt)"].reason == "unreadable"
    assert found["all white"].detail == "level 255"
    assert found["wholly transparent"].detail == "level 255"  # laid over white


@pytest.mark.parametrize(
    ("case", "outcome", "reason"),
    [
        (Case("a good image", lambda: GOOD, "truncated"), "answered", ""),
        (Case("another reason", lambda: b"", "truncated"), "refused", "empty"),
        (Case("a refusal", lambda: b"", ANSWERED), "refused", "empty"),
    ],
)
def test_what_ends_otherwise_has_not_passed(case: Case, outcome: str, reason: str) -> None:
    (found,) = run(SPEC, named, [case])
    assert (found.outcome, found.reason, found.passed) == (outcome, reason, False)


def test_a_crash_is_a_row_and_the_next_case_runs() -> None:
    cases = [Case("good", lambda: GOOD, ANSWERED), Case("empty", lambda: b"", "empty")]
    first, second = run(SPEC, crash, cases)
    assert first == Outcome("good", "crashed", "RuntimeError", "no answer", False)
    assert second.passed


def test_the_bytes_are_the_same_each_time() -> None:
    for one, other in zip(all_cases(), all_cases(), strict=True):
        if "50 MB" not in one.kind:
            assert one.make() == other.make(), one.kind
