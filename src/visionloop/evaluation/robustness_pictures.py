"""The pictures of what a model withstands. Values in, PNG bytes out; the same values give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from visionloop.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES, corrupt
from visionloop.evaluation.pictures import drawing
from visionloop.evaluation.robustness import CorruptionTable, Curve

_SHOWN = (1, 3, 5)  # severities on the sheet
_ACROSS = 3  # corruptions side by side on it


def corruptions_png(table: CorruptionTable, title: str) -> bytes:
    """Accuracy under each corruption at each severity, their mean, and the reference's; the 4 extra ones below a line."""
    shown = np.concatenate([table.accuracy, table.accuracy.mean(1)[:, None], table.reference.mean(1)[:, None]], axis=1)
    columns = [*(str(severity) for severity in SEVERITIES), "mean", "nearest\nmean"]
    with drawing((7.5, 8), title) as (drawn, buffer):
        axes = drawn.subplots()
        picture = axes.imshow(shown, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        drawn.colorbar(picture, ax=axes, label="accuracy", shrink=0.6)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(CORRUPTIONS)), [name.replace("_", " ") for name in CORRUPTIONS])
        axes.set_xlabel("severity")
        for (row, column), value in np.ndenumerate(shown):
            ink = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axes.axhline(len(BENCHMARK) - 0.5, color="black", linewidth=2)
        for line in (4.5, 5.5):
            axes.axvline(line, color="white", linewidth=4)
    return buffer.getvalue()


def attacks_png(curves: Sequence[Curve], title: str) -> bytes:
    """Accuracy against epsilon, a line for each attack."""
    with drawing((6.5, 4.5), title) as (drawn, buffer):
        axes = drawn.subplots()
        for curve in curves:
            axes.plot(curve.amounts, curve.accuracies, marker="o", label=curve.change.upper())
        axes.set(xlabel="largest change of a pixel, in levels of 255", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend()
        axes.grid(alpha=0.3)
    return buffer.getvalue()


def invariance_png(curves: Sequence[Curve], title: str) -> bytes:
    """Accuracy against shift, angle and size, side by side."""
    with drawing((4.2 * len(curves), 4), title) as (drawn, buffer):
        grid = drawn.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, curve in zip(grid, curves, strict=True):
            axes.plot(curve.amounts, curve.accuracies, marker="o")
            axes.set(xlabel=f"{curve.change}, {curve.unit}", ylim=(-0.02, 1.02))
            axes.grid(alpha=0.3)
        grid[0].set_ylabel("accuracy")
    return buffer.getvalue()


def sheet_png(image: npt.NDArray[np.uint8], seed: int, title: str) -> bytes:
    """One image uint8 [H, W, 3] under every corruption at severity 1, 3 and 5."""
    rows = -(-len(CORRUPTIONS) // _ACROSS)
    with drawing((11, 1.0 * rows + 0.4), title) as (drawn, buffer):
        grid = drawn.subplots(rows, _ACROSS * (len(_SHOWN) + 1), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for number, name in enumerate(CORRUPTIONS):
            row, column = divmod(number, _ACROSS)
            words, *pictures = grid[row, column * (len(_SHOWN) + 1) :][: len(_SHOWN) + 1]
            words.text(1, 0.5, name.replace("_", "\n"), ha="right", va="center", fontsize=9)
            for axes, severity in zip(pictures, _SHOWN, strict=True):
                axes.imshow(corrupt(image, name, severity, np.random.default_rng(seed)), interpolation="nearest")
                if row == 0:
                    axes.set_title(str(severity), fontsize=8)
        last = grid[-1, -2]
        last.imshow(image, interpolation="nearest")
        last.set_title("unchanged", fontsize=8)
    return buffer.getvalue()
