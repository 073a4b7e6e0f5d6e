"""Whether a model's probabilities can be believed, the one number that mends them, and what one may do with them then.

Everything is fitted on the validation side, whose images also chose the epoch that training kept: what is said of the test
side is the honest figure. Values in, values out; needs neither torch nor files, so that every later form of a model is
measured by the same lines.

Does not cover: images of none of the classes (`unknowns.py`), and a temperature per class or per image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp
from scipy.stats import binomtest, chi2

from visionloop.errors import DataError

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BINS = 15  # as in Guo et al. 2017
# Beyond these a fit says that the validation side is no guide, not that the network is so far off: Guo et al. report 1 to 3.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0
LEAST_IMAGES = 50  # with a mistake in twenty, two or three mistakes: the temperature would be theirs


@dataclass(frozen=True, slots=True)
class Temperature:
    """What the logits are divided by, with its interval; `note` says in a sentence what came of the fit."""

    value: float
    low: float | None  # None: it was not fitted
    high: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Bin:
    """Images of about the same confidence. Without a gap between confidence and accuracy the model is calibrated there."""

    images: int  # at least 1
    confidence: float  # mean of the largest probability
    accuracy: float
    low: float  # Wilson's interval of the accuracy
    high: float


@dataclass(frozen=True, slots=True)
class ClassThreshold:
    """From which probability on an answer of this class has the stated precision."""

    label: str
    threshold: float | None  # None: from none on
    support: int  # validation images that are answered with this class, at or above it (all of them where it is None)
    precision: float | None  # of these; None: there is none
    low: float | None  # Wilson's interval of that precision
    high: float | None


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left when the least certain answers go to a person."""

    images: int  # that are left
    reviewed: float  # share that went
    accuracy: float | None  # of what is left; None: nothing is
    low: float | None  # Wilson's interval
    high: float | None


def log_loss(logits: npt.NDArray[np.floating], targets: Numbers, temperature: float = 1.0) -> float:
    """Mean negative log likelihood in nats of logits [N, K] divided by `temperature`, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(targets)), targets]).mean())


def fit_temperature(logits: npt.NDArray[np.floating], targets: Numbers, confidence_level: float = 0.95) -> Temperature:
    """The temperature that gives the validation images [N] the highest likelihood (Guo et al. 2017, arXiv:1706.04599).

    The interval is that of the likelihood ratio: temperatures whose loss is not above the least one by more than half the
    quantile of chi-square with one degree of freedom, over N. Where the fit cannot say anything, the temperature is 1 and
    `note` says why: too few images, none wrong (the colder the likelier, without end) or none right.

    Raises:
        DataError: a logit is NaN or infinite.
    """
    count = len(targets)
    if not np.isfinite(logits).all():
        raise DataError("The temperature cannot be fitted: the model answers validation images with NaN or infinity.")
    if count < LEAST_IMAGES:
        return Temperature(
            1.0, None, None, f"The temperature stays 1: {count} validation images are too few, it takes {LEAST_IMAGES}."
        )
    wrong = int((np.asarray(logits).argmax(axis=1) != targets).sum())
    if wrong in (0, count):
        word = "right" if wrong == 0 else "wrong"
        return Temperature(
            1.0,
            None,
            None,
            f"The temperature stays 1: all {count} validation images are answered {word}, which bounds none.",
        )

    def loss(log_temperature: float) -> float:
        return log_loss(logits, targets, float(np.exp(log_temperature)))

    bounds = (float(np.log(LEAST_TEMPERATURE)), float(np.log(MOST_TEMPERATURE)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    best = float(found.x)
    limit = float(found.fun) + chi2.ppf(confidence_level, 1) / (2 * count)

    def edge(bound: float) -> float:
        return float(np.exp(bound if loss(bound) <= limit else brentq(lambda x: loss(x) - limit, bound, best)))

    low, high = edge(bounds[0]), edge(bounds[1])
    value = float(np.exp(best))
    said = f"The temperature is {value:.3g}, {confidence_level:.0%} interval {low:.3g} to {high:.3g}, by {wrong} mistakes"
    at_bound = min(abs(best - bound) for bound in bounds) < 1e-3
    end = f"; it is bounded to {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}, look at the model." if at_bound else "."
    return Temperature(value, low, high, f"{said} among {count} validation images{end}")


def reliability(
    confidence: Floats, correct: Flags, *, bins: int = BINS, adaptive: bool = False, confidence_level: float = 0.95
) -> list[Bin]:
    """Accuracy against confidence [N] in bins of equal width, or, `adaptive`, of about equally many images.

    Images of equal confidence share a bin; bins without an image are left out. Equal width as in Guo et al. 2017, equally
    many as in Nguyen and O'Connor 2015, arXiv:1508.05154.
    """
    if adaptive:
        ordered = np.sort(confidence)
        cuts = np.unique(ordered[[len(ordered) * i // bins for i in range(1, bins)]]) if len(ordered) else ordered
        place = np.searchsorted(cuts, confidence, side="right")
    else:
        place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    found = []
    for index in np.unique(place):
        mine = place == index
        right, count = int(correct[mine].sum()), int(mine.sum())
        low, high = share_interval(right, count, confidence_level)
        found.append(Bin(count, float(confidence[mine].mean()), right / count, low, high))
    return found


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, over images; 0 without any."""
    images = sum(one.images for one in bins)
    return sum(one.images * abs(one.confidence - one.accuracy) for one in bins) / images if images else 0.0


def calibration_error(probabilities: Floats, targets: Numbers, *, adaptive: bool = False) -> float:
    """Expected calibration error of the first class of probabilities [N, K] over 15 bins."""
    confidence, correct = first_class(probabilities, targets)
    return expected_error(reliability(confidence, correct, adaptive=adaptive))


def first_class(probabilities: Floats, targets: Numbers) -> tuple[Floats, Flags]:
    """The largest probability [N] and whether it stands at the target [N]."""
    return probabilities.max(axis=1, initial=0.0), probabilities.argmax(axis=1) == targets


def precision_thresholds(
    probabilities: Floats, targets: Numbers, labels: Sequence[str], precision: float, confidence_level: float = 0.95
) -> list[ClassThreshold]:
    """For each class the least probability from which on its answers have `precision` on these images.

    It is the smallest probability that was seen and does: nothing is claimed of smaller ones. The observed precision
    decides, and its interval says how much a few images prove.
    """
    confidence, correct = first_class(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    rows = []
    for index, label in enumerate(labels):
        mine = np.flatnonzero(predicted == index)
        mine = mine[np.argsort(-confidence[mine], kind="stable")]
        sure, right = confidence[mine], np.cumsum(correct[mine])
        counts = np.arange(1, len(mine) + 1)
        # A threshold takes all images of its probability, so only the last of equal ones ends a set.
        is_end = np.append(sure[1:] != sure[:-1], True)[: len(mine)]
        good = np.flatnonzero(is_end & (right >= precision * counts - 1e-9))
        last = int(good[-1]) if len(good) else len(mine) - 1
        support, hits = (int(counts[last]), int(right[last])) if len(mine) else (0, 0)
        low, high = share_interval(hits, support, confidence_level) if support else (None, None)
        threshold = float(sure[last]) if len(good) else None
        rows.append(ClassThreshold(label, threshold, support, hits / support if support else None, low, high))
    return rows


def thresholds_csv(rows: Sequence[ClassThreshold]) -> str:
    """One line per class; what is not defined is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("label", "threshold", "support", "precision", "precision_low", "precision_high"))
    for row in rows:
        numbers = (row.threshold, row.support, row.precision, row.low, row.high)
        writer.writerow((row.label, *("" if value is None else round(value, 4) for value in numbers)))
    return buffer.getvalue()


def review_threshold(confidence: Floats, share: float) -> float:
    """Below which confidence an answer goes to a person, so that at most `share` of these [N] do; 0 where none shall.

    Among equal confidences none goes, so the share can be less than asked for.
    """
    count = int(share * len(confidence) + 1e-9)
    return float(np.sort(confidence)[count]) if count else 0.0


def rest(confidence: Floats, correct: Flags, review_below: float, confidence_level: float = 0.95) -> Rest:
    """How accurate the answers are that do not go to a person."""
    left = confidence >= review_below
    images, right = int(left.sum()), int(correct[left].sum())
    low, high = share_interval(right, images, confidence_level) if images else (None, None)
    reviewed = 1 - images / len(left) if len(left) else 0.0
    return Rest(images, reviewed, right / images if images else None, low, high)


def risk_coverage(confidence: Floats, correct: Flags) -> tuple[Floats, Floats]:
    """Coverage [N] and risk [N]: the share of the most certain answers that is kept, and how many of these are wrong.

    El-Yaniv and Wiener 2010, as Geifman and El-Yaniv 2017, arXiv:1705.08500, use it. Images of equal confidence come in no
    order: each counts as their mean error.
    """
    _, group = np.unique(-confidence, return_inverse=True)
    wrong = (~correct).astype(np.float64)
    means = np.bincount(group, wrong) / np.bincount(group) if len(group) else wrong
    kept = np.arange(1, len(group) + 1)
    return kept / max(len(group), 1), np.cumsum(means[np.sort(group)]) / kept


def area_under_risk(confidence: Floats, correct: Flags) -> float:
    """AURC: the mean risk over all coverages (Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206); 0 is perfect.

    Raises:
        DataError: there is no image.
    """
    if not len(confidence):
        raise DataError("The risk cannot be measured: there is no image.")
    return float(risk_coverage(confidence, correct)[1].mean())


def share_interval(successes: int, trials: int, confidence_level: float) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    found = binomtest(successes, trials).proportion_ci(confidence_level, method="wilson")
    return float(found.low), float(found.high)
