"""Two models on the same images: what they differ by, how sure that is, and the verdict in words.

Everything is paired: an image that both answer rightly, or both wrongly, says nothing about which is better, so intervals
are narrower than those of two separate accuracies would suggest. A difference is a share, from -1 to 1, first minus second.

Does not cover: what to do about a difference (`selection`, `gate`), and intervals of one model alone (`metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest

from visionloop.errors import ArtifactError, DataError

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy", "macro_f1")

_RESAMPLES = 10_000
_CELL_RESAMPLES = 4_000  # of whole confusion tables; the ends of a 95 % interval then move by 2 % of its width
_CHUNK_CELLS = 4_000_000  # bounds the memory of one chunk of resamples to some 100 MB
_POWER = 0.8  # of the comparison that `images_needed` plans, as is usual


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same images."""

    only_first: int  # images that only the first answers rightly
    only_second: int
    images: int
    p_value: float  # exact McNemar
    difference: float  # accuracy of the first minus that of the second
    low: float  # paired bootstrap interval of the difference
    high: float
    confidence_level: float = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of two models on the same images, and the interval of the difference, first minus second."""

    metric: Metric
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first - self.second


@dataclass(frozen=True, slots=True)
class ClassChange:
    """One class: how many of its images each model recalls, and whether chance could have taken as many from the first."""

    label: str
    images: int
    first: float  # recall
    second: float
    gained: int  # images of the class that only the first answers rightly
    lost: int  # that only the second does
    p_worse: float  # exact McNemar, one-sided: that chance takes so many or more from the first

    @property
    def difference(self) -> float:
        """Recall of the first minus that of the second."""
        return self.first - self.second


@dataclass(frozen=True)
class PairedAnswers:
    """What two models say of the same images, all three as positions in one list of classes; -1 for a class that is not
    in it, which is wrong whatever the target."""

    targets: Numbers  # [N]
    first: Numbers  # [N]
    second: Numbers  # [N]

    def __post_init__(self) -> None:
        if not len(self.targets) == len(self.first) == len(self.second):
            raise ArtifactError(
                f"{len(self.first)} and {len(self.second)} answers to {len(self.targets)} images cannot be compared."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def chosen(self, where: npt.NDArray[np.bool_]) -> PairedAnswers:
        """Those images alone."""
        return PairedAnswers(self.targets[where], self.first[where], self.second[where])


def compare(first: Mapping[str, bool], second: Mapping[str, bool], confidence_level: float) -> Comparison:
    """Compare two models by the images that only one of them answers rightly; `first` is id -> answered rightly.

    Raises:
        ArtifactError: the two were not evaluated on the same images, or on none.
    """
    if first.keys() != second.keys() or not first:
        raise ArtifactError(
            f"The two models were evaluated on {len(first)} and {len(second)} test images that are not the same; "
            "run `dvc repro evaluate` so that both see this data version."
        )
    only_first = sum(right and not second[name] for name, right in first.items())
    only_second = sum(right and not first[name] for name, right in second.items())
    return compare_counts(only_first, only_second, len(first), confidence_level)


def compare_answers(answers: PairedAnswers, confidence_level: float) -> Comparison:
    """As `compare`, of answers in arrays.

    Raises:
        DataError: there is no image.
    """
    first, second = answers.first == answers.targets, answers.second == answers.targets
    return compare_counts(int((first & ~second).sum()), int((second & ~first).sum()), len(answers), confidence_level)


def compare_counts(only_first: int, only_second: int, images: int, confidence_level: float) -> Comparison:
    """Compare by the number of images that one of the two alone answers rightly, of `images` in all.

    McNemar's test in its exact form: under no difference each such image falls to either side with probability 1/2, so
    the p-value is binomial, also for few images. The interval is the percentile bootstrap over images: resampling N images
    is a multinomial draw of the three outcomes +1, -1 and 0, which is drawn directly, with a fixed seed. One image is added
    to each side before (Bonett and Price 2012, doi:10.3102/1076998611411915): the plain bootstrap of two models that never
    disagree has no width at all, on 20 images as on 20,000, and misses a small true difference too often.

    Raises:
        DataError: there is no image.
    """
    if images == 0:
        raise DataError("There is no image to compare two models on.")
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    shares = np.array([only_first + 1, only_second + 1, images - discordant]) / (images + 2)
    draws = np.random.default_rng(0).multinomial(images, shares, size=_RESAMPLES)
    low, high = _interval((draws[:, 0] - draws[:, 1]) / images, confidence_level)
    difference = (only_first - only_second) / images
    return Comparison(only_first, only_second, images, p_value, difference, low, high, confidence_level)


def differences(answers: PairedAnswers, num_classes: int, confidence_level: float) -> list[Difference]:
    """Accuracy, balanced accuracy and macro F1 of both, each with the interval of its difference.

    Both averages are over the classes that have an image, as in `metrics`. The interval of the accuracy is that of
    `compare_answers`; the other two are percentile bootstraps over images: images with the same target and the same two
    answers are one cell, and resampling N images is a multinomial draw of the cells, however many images there are. As
    there, one image is added to each side, spread over the classes by their shares.

    Raises:
        DataError: there is no image.
    """
    comparison = compare_answers(answers, confidence_level)
    # -1, a class of no name here, gets a number of its own that no target has.
    triples = np.stack([answers.targets, *(np.where(one < 0, num_classes, one) for one in (answers.first, answers.second))])
    cells, counts = np.unique(triples, axis=1, return_counts=True)
    measured = _averages(cells, counts[None], num_classes)
    cells, weights = _with_added(cells, counts, num_classes)
    drawn: dict[Metric, list[Floats]] = {"balanced_accuracy": [], "macro_f1": []}
    rng = np.random.default_rng(0)
    size = max(1, min(_CELL_RESAMPLES, _CHUNK_CELLS // len(weights)))
    for start in range(0, _CELL_RESAMPLES, size):
        draws = rng.multinomial(len(answers), weights / weights.sum(), size=min(size, _CELL_RESAMPLES - start))
        for metric, (first, second) in _averages(cells, draws, num_classes).items():
            drawn[metric].append(first - second)
    found = [
        Difference(
            "accuracy",
            float((answers.first == answers.targets).mean()),
            float((answers.second == answers.targets).mean()),
            comparison.low,
            comparison.high,
        )
    ]
    for metric, parts in drawn.items():
        first, second = measured[metric]
        found.append(
            Difference(metric, float(first[0]), float(second[0]), *_interval(np.concatenate(parts), confidence_level))
        )
    return found


def class_changes(answers: PairedAnswers, labels: Sequence[str]) -> list[ClassChange]:
    """Each class that has an image, in the order of `labels`."""
    first, second = answers.first == answers.targets, answers.second == answers.targets
    found = []
    for number, label in enumerate(labels):
        mine = answers.targets == number
        if not mine.any():
            continue
        gained, lost = int((mine & first & ~second).sum()), int((mine & second & ~first).sum())
        p_worse = float(binom.sf(lost - 1, gained + lost, 0.5)) if lost else 1.0
        recalls = float(first[mine].mean()), float(second[mine].mean())
        found.append(ClassChange(label, int(mine.sum()), *recalls, gained, lost, p_worse))
    return found


def images_needed(comparison: Comparison, difference: float, power: float = _POWER) -> int | None:
    """About how many images would tell a true `difference` (a share) from none, four times in five.

    From the share of images on which the two differ, as it is here (Connor 1987, doi:10.2307/2531961). None where no number
    of images can: a difference of 0, or one above that share.
    """
    gap = abs(difference)
    share = (comparison.only_first + comparison.only_second + 2) / (comparison.images + 2)
    if gap == 0 or gap >= share:
        return None
    normal = NormalDist()
    level, chance = normal.inv_cdf(0.5 + comparison.confidence_level / 2), normal.inv_cdf(power)
    return math.ceil(((level * math.sqrt(share) + chance * math.sqrt(share - gap * gap)) / gap) ** 2)


def verdict(comparison: Comparison, margin: float | None = None) -> str:
    """How the first compares with the second, in words; `margin` is the loss that is accepted, a share.

    >>> verdict(compare_counts(15, 5, 1000, 0.95))
    'better by 1 point (95 % interval 0.1 to 2 on 1,000 images)'
    """
    numbers = f"{interval_words(comparison)} on {counted(comparison.images, 'image')}"
    if comparison.low > 0:
        return f"better by {points(comparison.difference)} ({numbers})"
    if comparison.high < 0:
        return f"worse by {points(-comparison.difference)} ({numbers})"
    if margin is not None and comparison.low >= -margin:
        return f"not worse by more than {points(margin)}: {_direction(comparison.difference)} ({numbers})"
    asked = margin or abs(comparison.difference) or 0.01
    needed = images_needed(comparison, asked)
    enough = (
        f"; a difference of {points(asked)} would need about {counted(_rounded(needed), 'image')}"
        if needed and needed > comparison.images
        else ""
    )
    return (
        f"cannot be told apart on {counted(comparison.images, 'image')}: {_direction(comparison.difference)}, "
        f"{interval_words(comparison)}{enough}"
    )


def interval_words(comparison: Comparison | Difference, confidence_level: float = 0.95) -> str:
    """`95 % interval 0.2 to 1.4`, in points."""
    level = comparison.confidence_level if isinstance(comparison, Comparison) else confidence_level
    return f"{level:.0%} interval {_number(comparison.low)} to {_number(comparison.high)}".replace("%", " %", 1)


def points(share: float) -> str:
    """A share as percentage points: `0.8 points`, `1 point`, `20 points`."""
    text = _number(share)
    return f"{text} {'point' if text in ('1', '-1') else 'points'}"


def counted(count: int, noun: str) -> str:
    """`1 image`, `1,800 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _number(share: float) -> str:
    text = f"{100 * share:.1f}".removesuffix(".0")
    # A small difference is not none.
    text = f"{100 * share:.2g}" if text in ("0", "-0") and share else text
    return "0" if text == "-0" else text


def _direction(difference: float) -> str:
    if difference == 0:
        return "equally good"
    return f"{points(abs(difference))} {'better' if difference > 0 else 'worse'}"


def _rounded(count: int) -> int:
    """To two digits: it is a plan, not a measurement."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def _interval(values: Floats, confidence_level: float) -> tuple[float, float]:
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _averages(cells: Numbers, draws: Numbers, num_classes: int) -> dict[Metric, tuple[Floats, Floats]]:
    """Balanced accuracy and macro F1 [B] of both models, for draws [B, M] of the cells [3, M]."""
    targets = cells[0]
    support = _per_class(draws, targets, num_classes)
    present = support > 0
    both: list[dict[Metric, Floats]] = []
    for answers in cells[1:]:
        right = answers == targets
        hits = _per_class(draws[:, right], targets[right], num_classes)
        named = _per_class(draws, answers, num_classes + 1)[:, :num_classes]
        recall = np.divide(hits, support, out=np.zeros(hits.shape), where=present)
        f1 = np.divide(2 * hits, support + named, out=np.zeros(hits.shape), where=present)
        both.append({"balanced_accuracy": recall.sum(1) / present.sum(1), "macro_f1": f1.sum(1) / present.sum(1)})
    return {metric: (both[0][metric], both[1][metric]) for metric in both[0]}


def _with_added(cells: Numbers, counts: Numbers, num_classes: int) -> tuple[Numbers, Floats]:
    """The cells and one image more that the first alone answers rightly, and one that the second does, over all classes."""
    present, support = np.unique(cells[0], return_inverse=True)
    shares = np.bincount(support, counts) / counts.sum()
    wrong = np.full(len(present), num_classes)
    added = np.concatenate([np.stack([present, present, wrong]), np.stack([present, wrong, present])], axis=1)
    return np.concatenate([cells, added], axis=1), np.concatenate([counts, shares, shares])


def _per_class(draws: Numbers, numbers: Numbers, count: int) -> Numbers:
    """Draws [B, M] summed over the cells of each class: [B, `count`]."""
    sums = np.zeros((len(draws), count), dtype=np.int64)
    if len(numbers) == 0:
        return sums
    order = np.argsort(numbers, kind="stable")
    present, starts = np.unique(numbers[order], return_index=True)
    sums[:, present] = np.add.reduceat(draws[:, order], starts, axis=1)
    return sums
