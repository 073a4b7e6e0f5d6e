"""How far a number may be off because the test images are a sample: an interval for every metric, by method and measured.

Shares of images (accuracy, top-k accuracy, the recall and the precision of a class) have Wilson's interval, which a
bootstrap does not reach near 1. F1 of a class is 2 J / (1 + J) of the share J = right / (right + missed + wrongly called),
so its interval is Wilson's of J, turned: the indirect method of Lam et al. 2023, arXiv:2309.14621.

Averages over classes, and areas under curves, are resampled over images (percentile bootstrap, Efron 1979), all at once: N
images with replacement are one multinomial draw of the cells of the confusion matrix, or of the images' weights. One thing
is added to what is drawn from: a single image's worth of wrong answers. A plain bootstrap of a model without a mistake
says that it is certain to make none; with the one image the interval there is about as long as Wilson's.

Coverage of 95 % intervals in simulated test sets of known truth, 200 to 400 for each number:

    ====================================  ============  ==========  =======  =======
    test set                              metric        percentile  BCa      here
    ====================================  ============  ==========  =======  =======
    180 images, 10 classes, 98.3 % right  macro F1      93.0 %      95.0 %   96.5 %
    180 images, 10 classes, 98.3 % right  balanced      90.8 %      94.2 %   97.5 %
    180 images, 10 classes, 98.3 % right  class recall  22.0 %      22.0 %   95.8 %
    300 images, 5 unequal classes, 90 %   macro F1      94.5 %      94.5 %   94.0 %
    300 images, 5 unequal classes, 90 %   balanced      92.5 %      93.0 %   91.5 %
    300 images, 5 unequal classes, 90 %   class recall  91.0 %      91.8 %   94.5 %
    180 images, 18 positive               AUC of 0.998  70.3 %               100 %
    180 images, 18 positive               AUC of 0.980  81.3 %               99.0 %
    180 images, 18 positive               AUC of 0.900  93.0 %               91.0 %
    1,000 images, 100 positive            AUC of 0.980  92.7 %               96.0 %
    ====================================  ============  ==========  =======  =======

An average over classes of which one has 15 images is a little too sure of itself (91.5 %), by every method here. BCa (Efron
1987) repairs the averages and not what shows no mistake, so it is not used. The log loss and the Brier score are means of
images and have the plain percentile bootstrap. `tests/unit/evaluation/test_intervals.py` repeats a simulation.

Images that are not independent (near-duplicates, frames of a film) count here as if they were, and the interval is then too
short. Does not cover: what another training run of the same recipe would give; two models against each other (`comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from visionloop.evaluation.metrics import brier_terms, confusion, log_loss_terms, top_k_correct, wilson
from visionloop.evaluation.predictions import Floats, Numbers, SplitPredictions

RESAMPLES = 2000  # of the confusion matrix; the ends of an interval then move by about 1 % of its length
CURVE_RESAMPLES = 1000  # of the curves, which cost a pass over all scores each
_LEAST_RESAMPLES = 200  # where images times classes are many
_MOST_WORK = 100_000_000  # images times classes times resamples of the curves: about 4 s of one core
_AT_ONCE = 1 << 17  # numbers of one array: what fits in a core's cache is added up twice as fast
_PSEUDO_ROWS = 200  # answers that are paired with another image's class, to stand for the one added image


Counts = Numbers | Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the number lies with the confidence that was asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """The intervals of one evaluation."""

    whole: Mapping[str, Interval]  # by the name in metrics.json
    classes: tuple[Mapping[str, Interval], ...]  # [K], by the field of `ClassMetrics`; what is not defined is not there


def intervals(
    predictions: SplitPredictions, classes: int, confidence_level: float, top_k: int | None = None, seed: int = 0
) -> Intervals:
    """An interval for each metric that is defined on these answers; the same answers give the same intervals.

    `classes` is K, the number of labels. See the module for the method of each and for what it covers.
    """
    count = len(predictions.targets)
    matrix = confusion(predictions, classes)
    tail = (1 - confidence_level) / 2
    rng = np.random.default_rng(seed)

    whole = {"accuracy": Interval(*wilson(int(predictions.correct.sum()), count, confidence_level))}
    if top_k is not None and top_k < classes:
        right = int(top_k_correct(predictions, top_k).sum())
        whole[f"top_{top_k}_accuracy"] = Interval(*wilson(right, count, confidence_level))
    whole |= average_intervals(matrix, confidence_level, rng)
    terms = np.stack([log_loss_terms(predictions), brier_terms(predictions)])
    for name, means in zip(("log_loss", "brier"), _drawn_means(terms, rng), strict=True):
        whole[name] = _percentile(means, tail)

    areas, of_classes = area_intervals(predictions, classes, confidence_level, rng)
    own = tuple(_class_shares(matrix, index, confidence_level) | of_classes.get(index, {}) for index in range(classes))
    return Intervals(whole | areas, own)


def average_intervals(
    matrix: Numbers, confidence_level: float, rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Of the averages over classes, by name, from the confusion matrix [K, K]."""
    tail = (1 - confidence_level) / 2
    estimates = averages(*(part[None] for part in (np.diagonal(matrix), matrix.sum(1), matrix.sum(0))))
    drawn = _drawn_averages(matrix, rng, resamples)
    return {name: _percentile(drawn[name], tail, float(value[0])) for name, value in estimates.items()}


def area_intervals(
    predictions: SplitPredictions,
    classes: int,
    confidence_level: float,
    rng: np.random.Generator,
    resamples: int = CURVE_RESAMPLES,
) -> tuple[dict[str, Interval], dict[int, dict[str, Interval]]]:
    """Of the ROC AUC and the average precision: macro and micro by name, and each class's by its position and field."""
    tail = (1 - confidence_level) / 2
    whole, own = _drawn_areas(predictions, classes, rng, resamples)

    def ends(found: Mapping[str, _Drawn]) -> dict[str, Interval]:
        return {name: _percentile(values, tail, estimate) for name, (estimate, values) in found.items()}

    return ends(whole), {index: ends(found) for index, found in own.items()}


def interval_numbers(found: Intervals) -> dict[str, float]:
    """`<metric>_low` and `<metric>_high` for metrics.json, rounded to four digits."""
    numbers = {}
    for name, interval in found.whole.items():
        numbers[f"{name}_low"], numbers[f"{name}_high"] = round(interval.low, 4), round(interval.high, 4)
    return numbers


def averages(right: Counts, there: Counts, called: Counts) -> dict[str, Floats]:
    """The averages over classes, each [B], of B test sets; a class without an image is left out.

    All three are counts [B, K]: images of the class that were answered rightly, images of the class, and images called it.

    >>> averages(np.array([[3, 2]]), np.array([[4, 2]]), np.array([[3, 3]]))["balanced_accuracy"]
    array([0.875])
    """
    parts = {"recall": _ratio(right, there), "precision": _ratio(right, called), "f1": _ratio(2 * right, there + called)}
    present = there > 0
    number, total = np.maximum(present.sum(1), 1), np.maximum(there.sum(1), 1)
    result = {"balanced_accuracy": (parts["recall"] * present).sum(1) / number}
    for name, values in parts.items():
        result[f"macro_{name}"] = (values * present).sum(1) / number
        result[f"weighted_{name}"] = (values * there).sum(1) / total
    return result


def f1_interval(right: int, missed: int, wrongly: int, confidence_level: float) -> Interval:
    """The interval of one class's F1; `missed` images were called otherwise, `wrongly` are of other classes."""
    low, high = wilson(right, right + missed + wrongly, confidence_level)
    return Interval(2 * low / (1 + low), 2 * high / (1 + high))


def _class_shares(matrix: Numbers, index: int, confidence_level: float) -> dict[str, Interval]:
    right, there, called = int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum())
    found = {}
    if there:
        found["recall"] = Interval(*wilson(right, there, confidence_level))
    if called:
        found["precision"] = Interval(*wilson(right, called, confidence_level))
    if there or called:
        found["f1"] = f1_interval(right, there - right, called - right, confidence_level)
    return found


def _drawn_averages(matrix: Numbers, rng: np.random.Generator, resamples: int) -> dict[str, Floats]:
    """The averages of test sets drawn from the matrix and one wrong image, each [resamples].

    The wrong image is of each class by the class's share, and called the next class in order: of many classes most cells
    of the matrix are empty, and only those that are drawn from are looked at.
    """
    classes = len(matrix)
    there = matrix.sum(1)
    shares = matrix.astype(np.float64)
    if classes > 1:
        shares[np.arange(classes), (np.arange(classes) + 1) % classes] += there / there.sum()
    actual, called = np.nonzero(shares)
    chances = shares[actual, called] / shares.sum()
    cells = np.arange(len(chances))
    # [K, cells] each: which cells a margin of the matrix sums up.
    of_class = csr_array((np.ones(len(cells)), (actual, cells)), (classes, len(cells)))
    as_class = csr_array((np.ones(len(cells)), (called, cells)), (classes, len(cells)))
    rightly = csr_array(((actual == called).astype(np.float64), (actual, cells)), (classes, len(cells)))
    step = max(1, _AT_ONCE // max(len(cells), classes))
    parts = []
    for start in range(0, resamples, step):
        drawn = rng.multinomial(int(there.sum()), chances, min(step, resamples - start)).T.astype(np.float64)
        margins = (np.asarray(which @ drawn).T for which in (rightly, of_class, as_class))
        parts.append(averages(*margins))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _drawn_means(terms: Floats, rng: np.random.Generator) -> Floats:
    """Means [M, RESAMPLES] of the images' terms [M, N]."""
    count = terms.shape[1]
    step = max(1, _AT_ONCE // count)
    parts = []
    for start in range(0, RESAMPLES, step):
        chosen = rng.integers(0, count, (min(step, RESAMPLES - start), count))
        parts.append(terms[:, chosen].mean(2))
    return np.concatenate(parts, 1)


_Drawn = tuple[float, Floats]  # the metric on the images as they are, and on each resample


def _drawn_areas(
    predictions: SplitPredictions, classes: int, rng: np.random.Generator, resamples: int
) -> tuple[dict[str, _Drawn], dict[int, dict[str, _Drawn]]]:
    """ROC AUC and average precision of each class, macro and micro, on the images and on resamples.

    The first weights are the images as they are; the others are drawn from the images and one more, which stands for
    answers that know nothing: rows of scores with another image's class.
    """
    count = len(predictions.targets)
    pseudo = min(count, _PSEUDO_ROWS)
    rows = rng.permutation(count)[:pseudo]
    targets = np.concatenate([predictions.targets, predictions.targets[rng.permutation(count)[:pseudo]]])
    scores = np.concatenate([predictions.probabilities, predictions.probabilities[rows]])
    chances = np.concatenate([np.ones(count), np.full(pseudo, 1 / pseudo)]) / (count + 1)

    positive = targets[:, None] == np.arange(classes)
    present = [index for index in range(classes) if positive[:count, index].any()]
    rankings = {index: _Ranking(positive[:, index], scores[:, index]) for index in present}
    micro = _Ranking(positive.ravel(), scores.ravel(), repeat=classes)
    resamples = min(resamples, max(_LEAST_RESAMPLES, _MOST_WORK // (len(targets) * classes)))
    step = max(1, _AT_ONCE // len(targets))

    real = np.concatenate([np.ones(count), np.zeros(pseudo)])[:, None]
    found: dict[int | None, list[tuple[Floats, Floats]]] = {index: [] for index in (*present, None)}
    done = -1
    while done < resamples:
        if done < 0:
            weights, done = real, 0
        else:
            size = min(step, resamples - done)
            weights, done = rng.multinomial(count, chances, size).T.astype(np.float64), done + size
        for index, ranking in rankings.items():
            found[index].append(ranking.areas(weights))
        found[None].append(micro.areas(weights))
    areas = {index: [np.concatenate([part[which] for part in parts]) for which in (0, 1)] for index, parts in found.items()}

    whole: dict[str, _Drawn] = {}
    names = (
        ("roc_auc", "roc_auc_macro", "roc_auc_micro"),
        ("average_precision", "mean_average_precision", "average_precision_micro"),
    )
    own: dict[int, dict[str, _Drawn]] = {index: {} for index in present}
    for which, (name, macro_name, micro_name) in enumerate(names):
        every = np.stack([areas[index][which] for index in present])
        # A resample may lack a class, whose curve is then not defined in it.
        known = np.isfinite(every)
        macro = np.where(known, every, 0).sum(0) / np.maximum(known.sum(0), 1)
        macro[~known.any(0)] = np.nan
        for index, values in zip(present, every, strict=True):
            own[index][name] = (float(values[0]), values[1:])
        whole[macro_name] = (float(macro[0]), macro[1:])
        whole[micro_name] = (float(areas[None][which][0]), areas[None][which][1:])
    defined = {name: drawn for name, drawn in whole.items() if np.isfinite(drawn[0])}
    return defined, {
        index: {name: drawn for name, drawn in found.items() if np.isfinite(drawn[0])} for index, found in own.items()
    }


class _Ranking:
    """Scores sorted once, whose areas are asked for under many weights."""

    def __init__(self, positive: np.ndarray, scores: Floats, repeat: int = 1) -> None:
        """`repeat` scores in a row belong to one image and share its weight."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self._rows = order // repeat
        self._positive = positive[order].astype(np.float64)[:, None]
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of equal scores

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """ROC AUC (trapezoids) and average precision (steps), as scikit-learn defines them, [B] of weights [R, B]."""
        step = max(1, _AT_ONCE // len(self._rows))
        parts = [self._areas(weights[:, start : start + step]) for start in range(0, weights.shape[1], step)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _areas(self, weights: Floats) -> tuple[Floats, Floats]:
        ranked = weights[self._rows]
        right = np.cumsum(ranked * self._positive, 0)[self._ends]
        every = np.cumsum(ranked, 0)[self._ends]
        new_right = np.diff(right, axis=0, prepend=0)
        new_wrong = np.diff(every - right, axis=0, prepend=0)
        positives, negatives = right[-1], every[-1] - right[-1]
        area = (new_wrong * (right - new_right / 2)).sum(0)
        precision = _ratio(right, every)
        undefined = np.full(weights.shape[1], np.nan)
        return (
            np.divide(area, positives * negatives, out=undefined.copy(), where=(positives > 0) & (negatives > 0)),
            np.divide((new_right * precision).sum(0), positives, out=undefined.copy(), where=positives > 0),
        )


def _percentile(values: Floats, tail: float, estimate: float | None = None) -> Interval:
    """The middle of the resampled values; it always holds the estimate, which the added image may have moved out."""
    low, high = np.nanquantile(values, [tail, 1 - tail])
    if estimate is not None:
        low, high = min(low, estimate), max(high, estimate)
    return Interval(float(low), float(high))


def _ratio(part: Counts, whole: Counts) -> Floats:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
