"""Charts as inline SVG, for pages that open without a network: points and lines between two axes.

Drawn here, since a plotting library's own would bring megabytes of JavaScript; the macro `chart` of `pages` writes them.
Does not cover: pictures of pixels, which stages draw as PNG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDE = (640, 260)
SMALL = (300, 190)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34


def number(value: object) -> str:
    """A value as people read it: four digits of a float, YAML's words for the rest."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Mark:
    """A point or a text in a picture, and what it says under the mouse."""

    x: float
    y: float
    says: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture: axes with ticks, points, and lines as SVG paths."""

    title: str
    width: int
    height: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    points: list[Mark]
    lines: list[tuple[str, str]]  # (path, class)
    x_label: str = ""


@dataclass(frozen=True)
class Axis:
    """From values to places: linear, logarithmic, or one place per choice."""

    low: float
    high: float
    log: bool = False
    choices: tuple[Any, ...] | None = None
    marks: tuple[float, ...] = ()  # where its ticks stand, if not at round values

    def share(self, value: Any) -> float:
        """Where a value stands, 0 to 1."""
        if self.choices is not None:
            names = [number(choice) for choice in self.choices]
            return (names.index(number(value)) + 0.5) / len(names)
        low, high, value = (math.log10(one) if self.log else one for one in (self.low, self.high, float(value)))
        return 0.5 if high <= low else float((value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Places, 0 to 1, and their words."""
        if self.choices is not None:
            return [(self.share(choice), number(choice)[:12]) for choice in self.choices]
        if self.marks:
            return [(self.share(value), f"{value:.3g}") for value in self.marks]
        if self.log:
            whole = [10.0**power for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]
            found = sorted({self.low, self.high, *whole}) if len(whole) < 2 else whole
        else:
            found = round_values(self.low, self.high)
        return [(self.share(value), f"{value:.3g}") for value in found]


def counted(low: int, high: int) -> Axis:
    """An axis of trials or epochs, with at most six ticks at whole numbers."""
    step = max(1, -(-(high - low) // 5))
    return Axis(low, high, marks=tuple(range(low, high + 1, step)))


def round_values(low: float, high: float) -> list[float]:
    """Two to seven values from `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(low, high)
    slack = (high - low) * 1e-9
    return [float(value) for value in found if low - slack <= value <= high + slack]


def _place(share_x: float, share_y: float, width: int, height: int) -> tuple[float, float]:
    """Shares, clipped to the frame, as pixels."""
    x = _LEFT + min(max(share_x, 0.0), 1.0) * (width - _LEFT - _RIGHT)
    y = height - _BOTTOM - min(max(share_y, 0.0), 1.0) * (height - _TOP - _BOTTOM)
    return round(x, 1), round(y, 1)


def picture(
    title: str,
    x_axis: Axis,
    y_axis: Axis,
    points: Sequence[tuple[Any, float, str, str]],  # x, y, what it says, its class
    lines: Sequence[tuple[Sequence[tuple[Any, float]], str]] = (),
    *,
    size: tuple[int, int] = WIDE,
    x_label: str = "",
    y_text: str = ".1%",
) -> Picture:
    """Points and lines in a frame of `size` units; the linear y axis has ticks written as the format `y_text` says."""
    width, height = size

    def at(x: Any, y: float) -> tuple[float, float]:
        return _place(x_axis.share(x), y_axis.share(y), width, height)

    return Picture(
        title,
        width,
        height,
        [(_place(share, 0, width, height)[0], text) for share, text in x_axis.ticks()],
        [(_place(0, y_axis.share(value), width, height)[1], format(value, y_text))
         for value in round_values(y_axis.low, y_axis.high)],
        [Mark(*at(x, y), says, kind) for x, y, says, kind in points],
        [(path([at(x, y) for x, y in line]), kind) for line, kind in lines],
        x_label,
    )  # fmt: skip


def path(places: Sequence[tuple[float, float]]) -> str:
    """An SVG path through these places."""
    return "M" + "L".join(f"{x} {y}" for x, y in places)
