"""Ticks of charts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.charts import Axis, picture, round_values


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.8412, 0.9756, [0.85, 0.9, 0.95]),
        (0.0, 1.393, [0.0, 0.5, 1.0]),
        (-3.1, 7.4, [-2.0, 0.0, 2.0, 4.0, 6.0]),
    ],
)
def test_ticks_stand_at_round_values(low: float, high: float, values: list[float]) -> None:
    assert round_values(low, high) == pytest.approx(values)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_two_to_seven_and_evenly_apart(low: float, width: float) -> None:
    found = round_values(low, low + width)
    assert 2 <= len(found) <= 7
    step = found[1] - found[0]
    assert all(math.isclose(b - a, step, rel_tol=1e-5) for a, b in pairwise(found))


def test_a_tick_of_a_picture_stands_where_a_point_of_its_value_does() -> None:
    drawn = picture("", Axis(0.0, 1.0), Axis(0.83, 0.97), [(0.4, 0.9, "", "")])
    (point,) = drawn.points
    assert {text: place for place, text in drawn.y_ticks}["90.0%"] == point.y
    assert {text: place for place, text in drawn.x_ticks}["0.4"] == point.x
