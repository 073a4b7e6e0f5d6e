"""Pictures of the measures: classes and slices with their intervals, confused pairs, a training's epochs. PNG bytes out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from visionloop.evaluation.detail import ConfusedPair
from visionloop.evaluation.history import History
from visionloop.evaluation.intervals import Interval
from visionloop.evaluation.metrics import ClassMetrics
from visionloop.evaluation.pictures import drawing, sentence_png, short
from visionloop.evaluation.slices import Slice

_MOST_CLASSES = 30
_MEASURES = ("precision", "recall", "f1", "roc_auc", "average_precision")
_COLOURS = {"worse": "firebrick", "not worse": "black", "too small": "gray"}


def classes_png(classes: Sequence[ClassMetrics], intervals: Sequence[Mapping[str, Interval]], title: str) -> bytes:
    """Each measure of each class with its interval, the classes with the lowest F1 on top; at most 30 of them."""
    order = sorted(
        range(len(classes)), key=lambda index: 2.0 if classes[index].f1 is None else float(classes[index].f1 or 0)
    )
    shown = order[:_MOST_CLASSES]
    heading = title if len(shown) == len(classes) else f"{title}: the {len(shown)} worst of {len(classes)} classes"
    with drawing((13, 1.6 + 0.3 * len(shown)), heading) as (figure, buffer):
        grid = figure.subplots(1, len(_MEASURES), sharey=True)
        for axes, name in zip(grid, _MEASURES, strict=True):
            rows = []
            for place, index in enumerate(shown):
                value, interval = getattr(classes[index], name), intervals[index].get(name)
                if value is not None and interval is not None:
                    rows.append((place, value, interval.low, interval.high, "black"))
            _dots(axes, rows)
            axes.set_title(name.replace("_", " ").replace("roc auc", "ROC AUC"), fontsize=10)
        grid[0].set_yticks(range(len(shown)), [f"{short(classes[i].label)} ({classes[i].support})" for i in shown])
        grid[0].set_ylim(len(shown) - 0.5, -0.5)
        grid[0].set_ylabel("class (test images)")
    return buffer.getvalue()


def slices_png(found: Sequence[Slice], accuracy: float, title: str) -> bytes:
    """Each part's accuracy with its interval against that of all images; red where it is worse than the rest."""
    if not found:
        return sentence_png("The test images cannot be parted: whatever is known of them is the same for all.", title)
    with drawing((9, 1.6 + 0.27 * len(found)), title) as (figure, buffer):
        axes = figure.subplots()
        axes.axvline(accuracy, color="tab:blue", linewidth=1, label=f"all images, {accuracy:.2%}")
        for verdict, colour in _COLOURS.items():
            rows = [
                (place, one.accuracy, one.low, one.high, colour) for place, one in enumerate(found) if one.verdict == verdict
            ]
            _dots(
                axes,
                rows,
                {"worse": "worse than the rest", "not worse": "not proved worse"}.get(verdict, "too small to judge"),
            )
        names = [f"{one.kind}: {one.name} ({one.images:,})".replace("\n", " ") for one in found]
        axes.set_yticks(range(len(found)), [name if len(name) <= 60 else name[:59] + "…" for name in names])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlabel("accuracy, with interval")
        figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return buffer.getvalue()


def pairs_png(pairs: Sequence[ConfusedPair], title: str) -> bytes:
    """The most confused pairs: which share of a class's images is called another, with its interval."""
    if not pairs:
        return sentence_png("No class is taken for another: there are no mistakes.", title)
    with drawing((8, 1.6 + 0.27 * len(pairs)), title) as (figure, buffer):
        axes = figure.subplots()
        _dots(axes, [(place, one.share, one.low, one.high, "black") for place, one in enumerate(pairs)])
        names = [f"{short(one.actual)} called {short(one.predicted)} ({one.images} of {one.of})" for one in pairs]
        axes.set_yticks(range(len(pairs)), names)
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlabel("share of the class's images, with interval")
        axes.set_xlim(left=0)
    return buffer.getvalue()


def training_png(history: History, title: str) -> bytes:
    """The losses, the validation measures and the learning rate of each epoch."""
    panels = (
        ("loss", ("train_loss", "val_loss")),
        ("validation", ("val_accuracy", "val_balanced_accuracy", "val_macro_f1")),
        ("learning rate", ("learning_rate",)),
    )
    with drawing((12, 3.6), title) as (figure, buffer):
        for axes, (heading, names) in zip(figure.subplots(1, 3), panels, strict=True):
            for name in names:
                if name in history:
                    steps, values = history[name]
                    axes.plot(steps, values, marker="." if len(steps) < 40 else "", label=name.replace("_", " "))
            axes.set(title=heading, xlabel="epoch")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return buffer.getvalue()


def learning_curve_png(
    points: Sequence[tuple[int, float, float, float]],
    law: tuple[float, float],
    twice: tuple[float, float, float],
    answer: str,
    title: str,
) -> bytes:
    """Accuracy against the number of training images on a logarithmic axis, and the answer in words.

    Each of `points` is (images, accuracy, low, high); `law` is (a, b) of mistakes = a n^-b; `twice` is the law's (accuracy,
    low, high) with twice as many images as the last point.
    """
    with drawing((8, 5.5), title) as (figure, buffer):
        axes = figure.subplots()
        numbers, values, lows, highs = np.array(points, dtype=np.float64).T
        ends = np.maximum(np.stack([values - lows, highs - values]), 0)
        axes.errorbar(numbers, values, yerr=ends, fmt="o", color="black", capsize=4, label="trained, with interval")
        last = numbers[-1]
        many = np.geomspace(numbers[0], 2 * last, 100)
        lawful = 1 - np.minimum(1.0, law[0] * many ** -law[1])
        seen = many <= last
        axes.plot(many[seen], lawful[seen], color="tab:blue", label=f"power law, mistakes ~ n^-{law[1]:.2f}")
        axes.plot(many[~seen], lawful[~seen], color="tab:blue", linestyle="--")
        ends = np.maximum(np.array([[twice[0] - twice[1]], [twice[2] - twice[0]]]), 0)
        axes.errorbar([2 * last], [twice[0]], yerr=ends, fmt="s", color="tab:blue", capsize=4, label="by the law")
        axes.set_xscale("log", base=2)
        ticks = [*numbers.tolist(), 2 * last]
        axes.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks])
        axes.minorticks_off()
        axes.set(ylabel="accuracy on the test images")
        axes.set_xlabel("training images\n\n" + textwrap.fill(answer, 95))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    return buffer.getvalue()


def _dots(axes: Axes, rows: Sequence[tuple[int, float, float, float, str]], label: str | None = None) -> None:
    """A dot and its interval per row of (place, value, low, high, colour)."""
    axes.grid(alpha=0.3)
    if not rows:
        return
    places, values, lows, highs = np.array([row[:4] for row in rows], dtype=np.float64).T
    # Rounding may put an end of an interval a little beyond its value.
    ends = np.maximum(np.stack([values - lows, highs - values]), 0)
    colour = rows[0][4]
    axes.errorbar(values, places, xerr=ends, fmt="o", markersize=4, capsize=2, linewidth=1, color=colour, label=label)
