"""The PNG pictures of an evaluation. Values in, PNG bytes out; the same values give the same bytes."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from visionloop.evaluation.curves import MACRO, MICRO, PrCurve, RocCurve
from visionloop.evaluation.predictions import Floats, Numbers

Images = npt.NDArray[np.uint8]

_MOST_NUMBERED = 20  # classes up to which a cell of the confusion matrix has room for its number
_MOST_IN_LEGEND = 20
_COLUMNS = 8
_DOTS_PER_INCH = 110


def confusion_png(matrix: Numbers, labels: Sequence[str], title: str) -> bytes:
    """The confusion matrix [K, K] twice: counts, and shares of each actual class."""
    count = len(labels)
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = min(4 + 0.28 * count, 14)
    with drawing((2 * side, side), title) as (figure, buffer):
        for axes, values, name in zip(
            figure.subplots(1, 2), (matrix, shares), ("images", "share of the actual class"), strict=True
        ):
            # A square root lets single mistakes be seen beside a full diagonal.
            axes.imshow(np.sqrt(values / max(values.max(), 1e-9)), cmap="Blues", vmin=0, vmax=1)
            axes.set(xlabel="predicted", ylabel="actual", title=name)
            ticks = range(0, count, max(1, math.ceil(count / 60)))
            axes.set_xticks(ticks, [short(labels[i]) for i in ticks], rotation=90 if _is_long(labels) else 0)
            axes.set_yticks(ticks, [short(labels[i]) for i in ticks])
            if count <= _MOST_NUMBERED:
                for row, column in zip(*np.nonzero(values), strict=True):
                    value = values[row, column]
                    text = str(value) if values is matrix else f"{value:.2f}".removeprefix("0")
                    dark = math.sqrt(value / values.max()) > 0.6
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return buffer.getvalue()


def pr_curves_png(curves: Sequence[PrCurve], title: str) -> bytes:
    """All curves in one picture, the averages thick, the legend with each average precision (AP)."""
    lines = [(curve.name, curve.recall, curve.precision, f"AP {curve.average_precision:.3f}") for curve in curves]
    return _curves_png(lines, "recall", "precision", title, drawstyle="steps-pre")


def roc_curves_png(curves: Sequence[RocCurve], title: str) -> bytes:
    """All curves in one picture, the averages thick, the legend with each area under the curve (AUC)."""
    if not curves:
        return sentence_png("The images are of one class, so there are no false alarms and no ROC curve.", title)
    lines = [(one.name, one.false_positive_rate, one.true_positive_rate, f"AUC {one.area:.4f}") for one in curves]
    return _curves_png(lines, "false positive rate", "true positive rate", title, drawstyle="default")


def _curves_png(
    lines: Sequence[tuple[str, Floats, Floats, str]],
    x: str,
    y: str,
    title: str,
    *,
    drawstyle: Literal["default", "steps-pre"],
) -> bytes:
    averages = {MICRO: "-", MACRO: "--"}
    with drawing((8, 6), title) as (figure, buffer):
        axes = figure.subplots()
        for name, xs, ys, area in lines:
            average = name in averages
            axes.plot(
                xs,
                ys,
                drawstyle=drawstyle,
                linewidth=2 if average else 1,
                linestyle=averages.get(name, "-"),
                color="black" if average else None,
                zorder=3 if average else 2,
                label=f"{short(name)}, {area}",
            )
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        axes.grid(alpha=0.3)
        shown, classes = min(len(lines), _MOST_IN_LEGEND), len(lines) - len(averages)
        handles, names = axes.get_legend_handles_labels()
        note = None if shown == len(lines) else f"{shown - len(averages)} of {classes} classes"
        corner: Literal["lower left", "lower right"] = "lower left" if x == "recall" else "lower right"
        axes.legend(handles[:shown], names[:shown], loc=corner, fontsize=8, title=note)
    return buffer.getvalue()


def folds_png(
    folds: Sequence[tuple[float, float, float]],
    mean: tuple[float, float, float],
    recalls: Sequence[Sequence[float]],
    labels: Sequence[str],
    title: str,
) -> bytes:
    """Each fold's accuracy and the mean over the folds, each as (value, low, high); below, the recall of each class.

    `recalls` has a row per class with its recall in each fold, NaN where the fold has none of it; the classes with the
    lowest mean are shown, the worst first.
    """
    known = [[value for value in row if not math.isnan(value)] for row in recalls]
    order = sorted((index for index in range(len(labels)) if known[index]), key=lambda index: np.mean(known[index]))
    order = order[:_MOST_NUMBERED]
    with drawing((9, 6.5), title) as (figure, buffer):
        upper, lower = figure.subplots(2, 1)
        values, lows, highs = np.array(folds).T
        places = np.arange(1, len(folds) + 1)
        upper.axhspan(mean[1], mean[2], color="tab:blue", alpha=0.12, label=f"interval {mean[1]:.4f} to {mean[2]:.4f}")
        upper.axhline(mean[0], color="tab:blue", linewidth=1.5, label=f"mean {mean[0]:.4f}")
        errors = np.stack([values - lows, highs - values]).clip(0)
        upper.errorbar(
            places, values, errors, fmt="o", color="black", capsize=4, linewidth=1, label="fold, interval of its images"
        )
        upper.set(ylabel="accuracy", xlabel="fold", xticks=places)
        upper.legend(loc="best", fontsize=8)
        for place, index in enumerate(order):
            lower.plot([place] * len(known[index]), known[index], "o", color="black", alpha=0.35, markersize=5)
            lower.plot(place, np.mean(known[index]), "_", color="tab:blue", markersize=16, markeredgewidth=2)
        lower.set(ylabel="recall in each fold")
        names = [short(labels[index]) for index in order]
        lower.set_xticks(range(len(order)), names, rotation=45 if _is_long(names) else 0)
        few = (
            f"the {len(order)} hardest of {len(labels)} classes"
            if len(order) < len(labels)
            else "classes, the hardest first"
        )
        lower.set_xlabel(few)
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
    return buffer.getvalue()


def mistakes_png(
    images: Images,
    targets: Sequence[str],
    predicted: Sequence[str],
    probabilities: Floats,
    *,
    mistakes: int,
    of: int,
    title: str,
) -> bytes:
    """The given mistakes, worst first, each with its true class, the class it was called, and that class's probability.

    `mistakes` of `of` images were wrong in all; where there are none, the picture says so.
    """
    if mistakes == 0:
        return sentence_png(f"There are no mistakes: all {of} images are answered rightly.", title)
    if len(images) == 0:
        return sentence_png(f"{mistakes} of {of} are wrong; none was asked for (evaluate.mistake_images is 0).", title)
    columns = min(_COLUMNS, max(4, len(images)))
    rows = math.ceil(len(images) / columns)
    heading = f"{title}: {len(images)} of {mistakes} mistakes on {of} images, the most confident first"
    with drawing((columns * 1.6, rows * 2.2 + 0.4), heading) as (figure, buffer):
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, image, target, guess, probability in zip(
            grid.flat, images, targets, predicted, probabilities, strict=False
        ):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(f"is {short(target)}\ncalled {short(guess)}\n{probability:.0%}", fontsize=8)
    return buffer.getvalue()


def sentence_png(sentence: str, title: str) -> bytes:
    """A picture of one sentence, where there is nothing else to show."""
    with drawing((8, 2), title) as (figure, buffer):
        axes: Axes = figure.subplots()
        axes.axis("off")
        axes.text(0.5, 0.5, textwrap.fill(sentence, 80), ha="center", va="center", fontsize=12)
    return buffer.getvalue()


@contextmanager
def drawing(inches: tuple[float, float], title: str) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of its own, without pyplot's global state; it is drawn into the buffer when the block ends."""
    buffer = io.BytesIO()
    # A class may be called "$5": no text here is a formula.
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # A class name in a script that the font lacks shows boxes, which is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        yield figure, buffer
        figure.savefig(buffer, format="png", metadata={"Software": None})


def short(text: str) -> str:
    """A class name in at most 16 characters."""
    return text if len(text) <= 16 else text[:15] + "…"


def _is_long(labels: Sequence[str]) -> bool:
    return len(labels) > 12 or max(len(label) for label in labels) > 3
