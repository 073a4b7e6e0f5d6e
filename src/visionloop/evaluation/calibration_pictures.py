"""Pictures of calibration, of a review share, and of how foreign images are told. Values in, PNG bytes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from visionloop.evaluation.calibration import (
    Bin,
    Floats,
    area_under_risk,
    expected_error,
    first_class,
    rest,
    risk_coverage,
)
from visionloop.evaluation.pictures import drawing
from visionloop.evaluation.trust import Trusted
from visionloop.evaluation.unknowns import Measured

_MOST_POINTS = 1000


def reliability_png(before: Sequence[Bin], after: Sequence[Bin], title: str) -> bytes:
    """Accuracy against confidence before and after the temperature, with each bin's interval and its number of images."""
    with drawing((10, 6), title) as (drawn, buffer):
        grid = drawn.subplots(2, 2, height_ratios=(3, 1), sharex=True)
        for column, (name, bins) in enumerate((("as trained", before), ("with the temperature", after))):
            upper, lower = grid[0, column], grid[1, column]
            upper.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
            confidence = [one.confidence for one in bins]
            accuracy = np.array([one.accuracy for one in bins])
            # Rounding may put an end of an interval a little beyond its middle.
            ends = [accuracy - [one.low for one in bins], np.array([one.high for one in bins]) - accuracy]
            upper.errorbar(confidence, accuracy, yerr=np.maximum(ends, 0), fmt="o", markersize=4, capsize=2)
            upper.set(xlim=(0, 1.02), ylim=(0, 1.02))
            upper.set_title(f"{name}: calibration error {expected_error(bins):.4f}", fontsize=10)
            upper.grid(alpha=0.3)
            lower.bar(confidence, [one.images for one in bins], width=0.02, color="tab:gray")
            lower.set(xlabel="confidence, mean of the bin", yscale="log" if bins else "linear")
            lower.set_ylim(bottom=0.5)  # so that a single image shows
            lower.yaxis.set_major_formatter("{x:g}")  # powers of ten would be formulas
            lower.yaxis.set_minor_formatter("")
            lower.grid(alpha=0.3)
        grid[0, 0].set_ylabel("accuracy")
        grid[1, 0].set_ylabel("images")
    return buffer.getvalue()


def risk_coverage_png(coverage: Floats, risk: Floats, *, area: float, reviewed: float, title: str) -> bytes:
    """How many of the kept answers are wrong, against how many are kept; a line where the review share leaves off."""
    with drawing((7, 4.5), f"{title}\narea under the curve (AURC) {area:.5f}") as (drawn, buffer):
        axes: Axes = drawn.subplots()
        shown = np.unique(np.linspace(0, len(coverage) - 1, min(len(coverage), _MOST_POINTS)).round().astype(np.int64))
        axes.plot(coverage[shown], risk[shown], drawstyle="steps-post")
        axes.axvline(1 - reviewed, color="firebrick", linestyle="--", linewidth=1, label=f"{reviewed:.1%} go to a person")
        axes.set(xlabel="share of answers kept, the most certain first", ylabel="share of these that is wrong")
        # Room beyond the frame: of a model with one mistake the curve is the lower edge and the right one.
        top = max(float(risk.max()), 1 / len(risk))
        axes.set(xlim=(0, 1.02), ylim=(-0.03 * top, 1.08 * top))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    return buffer.getvalue()


def trusted_png(trusted: Trusted, title: str) -> bytes:
    """The reliability picture of test images."""
    return reliability_png(trusted.bins(raw=True), trusted.bins(), title)


def rest_png(trusted: Trusted, title: str) -> bytes:
    """The risk-coverage picture of test images, with the review share that they have."""
    confidence, correct = first_class(trusted.predictions.probabilities, trusted.predictions.targets)
    reviewed = rest(confidence, correct, trusted.calibration.review_below).reviewed
    area = area_under_risk(confidence, correct)
    return risk_coverage_png(*risk_coverage(confidence, correct), area=area, reviewed=reviewed, title=title)


def unknowns_png(measured: Measured, title: str) -> bytes:
    """AUROC and FPR95 of each score on the kinds that did not choose it; the chosen score is named."""
    judged = measured.judged_by
    with drawing((10, 4.5), f"{title}\n{measured.score} was chosen, by other kinds than these") as (drawn, buffer):
        kinds = list(next(iter(judged.values())).auroc_of)
        places = np.arange(len(kinds))
        width = 0.8 / len(judged)
        charts = drawn.subplots(1, 2)
        for index, (score, one) in enumerate(judged.items()):
            shift = places + (index - (len(judged) - 1) / 2) * width
            charts[0].bar(shift, [one.auroc_of[kind] for kind in kinds], width, label=score)
            charts[1].bar(shift, [one.fpr95_of[kind] for kind in kinds], width, label=score)
        for axes, name in zip(
            charts, ("AUROC (1 is best)", "FPR95: foreign images that pass with 95 % of the known"), strict=True
        ):
            axes.set_xticks(places, kinds, rotation=30, ha="right")
            axes.set_ylim(0, 1.02)
            axes.set_title(name, fontsize=10)
            axes.grid(axis="y", alpha=0.3)
        charts[1].legend()
    return buffer.getvalue()
