"""Accuracy against the number of training images, and what twice as many of them would bring.

The same recipe is trained on an eighth, a quarter, a half and all of the training images, each part holding the one before,
and every model answers the same test images. Each training takes as many steps as the whole one, so a smaller part is gone
through more often: with equal epochs the small parts would be short of training and not only of images, and more images
would seem to help more than they do.

The mistakes e of n images are taken to fall as a power, e = a n^-b (Hestness et al. 2017, arXiv:1712.00409), fitted by
Poisson regression: the number of mistakes at each point is as likely as can be. A power law has no floor, and wrong or
ambiguous labels are one, so what it says of more images is the most that can be hoped for.

Intervals are over the test images, drawn anew together for all points. Does not cover: how much another seed or other images
of the same number would change a point, for each is one training; other data than more of the same kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from visionloop.config import TrainParams
from visionloop.crossvalidation import finished_answers, store_answers
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.data.views import take
from visionloop.errors import ConfigError, DataError
from visionloop.evaluation.intervals import Interval
from visionloop.evaluation.metrics import csv_text, wilson
from visionloop.evaluation.predictions import Floats, predict
from visionloop.models import Family
from visionloop.models.devices import choose_device
from visionloop.records import Split
from visionloop.training import EpochRecord, clear_resume, train
from visionloop.training.loop import fingerprint

SHARES = (0.125, 0.25, 0.5, 1.0)
CONFIDENCE = 0.95  # the usual one
_RESAMPLES = 2000
_WORTH = 0.005  # half a point: a gain that is worth labelling as many images again
_STEPS = 10  # of the regression; the fifth changes the slope by less than 1e-6 on the digits
_LEAST_POINTS = 3  # two would fit any power law without a remainder

Verdict = Literal["yes", "hardly", "not known"]


@dataclass(frozen=True, slots=True)
class Point:
    """One training."""

    share: float
    images: int  # training images, without stored variants
    accuracy: float  # of the test images
    low: float  # Wilson's interval
    high: float


@dataclass(frozen=True)
class Trained:
    """What every training of the curve answered."""

    images: tuple[int, ...]  # training images of each point, rising
    shares: tuple[float, ...]
    correct: npt.NDArray[np.bool_]  # [points, test images]
    notes: tuple[str, ...]  # what was decided on the way, in sentences


@dataclass(frozen=True, slots=True)
class Curve:
    """The power law through the points, and the answer."""

    points: tuple[Point, ...]
    factor: float  # a
    exponent: float  # b; 0.3 means that twice the images leave 81 % of the mistakes
    exponent_interval: Interval
    twice: float  # accuracy with twice the images, by the law
    twice_interval: Interval
    gain: float  # of the law, from all images to twice as many
    gain_interval: Interval
    verdict: Verdict
    answer: str


def learning_curve(
    family: Family,
    sides: Mapping[Split, PackedSplit],
    meta: PackedMeta,
    params: TrainParams,
    *,
    folder: Path,
    on_epoch: Callable[[float, EpochRecord], None] = lambda share, record: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Trained:
    """Train once per share of `SHARES` of the train side and let each model answer the test images.

    A part with fewer images than a batch is left out. A training that was finished, and the checkpoint of the one that was
    not, lie in `folder`: an interrupted run goes on there. The caller clears it with `crossvalidation.clear` once it has
    stored the result.

    Raises:
        ConfigError: training images are not packed, or the family learns from a teacher, who has seen all images.
        DataError: fewer than three parts have a batch's worth of images, or there is no test image.
    """
    settings, own = params.family(family), params.of(family)
    data, val, test = sides["train"], sides["val"], sides["test"]
    if settings.teacher != "none":
        raise ConfigError(
            f"train.{family}.teacher is '{settings.teacher}', who has learnt from all images and passes on what a part of "
            "them does not show; set it to none for a learning curve."
        )
    if meta.store == "stream":
        raise ConfigError("augment.store is stream, and parts are taken from packed arrays; set it to packed.")
    if not len(test.ids):
        raise DataError("There is no test image to judge by; raise the share of the test side in the section split.")
    parts = {share: part_rows(data, share) for share in SHARES}
    enough = [share for share in SHARES if len(parts[share]) >= own.batch_size]
    if len(enough) < _LEAST_POINTS:
        raise DataError(
            f"{data.originals} training images are too few for a learning curve: {_LEAST_POINTS} of its parts must have a "
            f"batch of {own.batch_size} images; lower train.batch_size, or collect more."
        )
    notes = [
        f"The part of {share:g} has {len(parts[share])} images, fewer than a batch of {own.batch_size}, and is left out."
        for share in SHARES
        if share not in enough
    ]
    for note in notes:
        say(note)

    correct, images = np.zeros((len(enough), len(test.ids)), dtype=bool), []
    for index, share in enumerate(enough):
        part, recipe = take([data], parts[share]), stretched(own, share)
        images.append(part.originals)
        about = meta.model_copy(
            update={
                "data_id": hashlib.sha256(f"{meta.data_id}\0learning curve\0{share}".encode()).hexdigest(),
                "counts": {"train": len(part.ids), "val": len(val.ids), "test": len(test.ids)},
                "variants": part.variants,
            }
        )
        place = folder / f"share-{share:g}"
        stored = folder / f"share-{share:g}.npz"
        name = fingerprint(family, about, recipe)
        answers = finished_answers(stored, name, (len(test.ids), len(meta.labels)))
        if answers is None:
            say(f"{part.originals:,} images, {recipe.epochs} epochs.")
            place.mkdir(parents=True, exist_ok=True)
            result = train(family, part, val, about, recipe, resume=place, on_epoch=partial(on_epoch, share), say=say)
            device = choose_device(recipe.device)
            answers = predict(result.classifier, test.images, device, f"{family} {share:g}").astype(np.float32)
            store_answers(stored, name, answers)
            clear_resume(place)
        else:
            say(f"The training on {part.originals:,} images was finished by an earlier, interrupted run.")
        correct[index] = answers.argmax(1) == test.labels
        say(f"{part.originals:,} images: {correct[index].mean():.2%} of the test images are answered rightly.")
    return Trained(tuple(images), tuple(enough), correct, tuple(notes))


def part_rows(data: PackedSplit, share: float) -> npt.NDArray[np.int64]:
    """The rows of a part of the training images, the stored variants of its images last.

    Of each class as many as the share says, rounded up, the first by id: ids are hashes, so the choice is random, the same
    each time, and a larger part holds the smaller one.
    """
    names = np.array([name.partition("+")[0] for name in data.ids])
    originals = np.arange(data.originals)
    chosen = []
    for label in np.unique(data.labels):
        mine = originals[data.labels[: data.originals] == label]
        mine = mine[np.argsort(names[mine], kind="stable")]
        chosen.append(mine[: int(np.ceil(share * len(mine)))])
    rows = np.sort(np.concatenate(chosen))
    variants = np.arange(data.originals, len(data.ids))
    return np.concatenate([rows, variants[np.isin(names[variants], names[rows])]])


def stretched(params: TrainParams, share: float) -> TrainParams:
    """The settings for a part: as many steps as for all images, so whatever is counted in epochs grows."""
    if share == 1:
        return params
    counts = ("epochs", "step_epochs", "early_stopping_epochs")
    longer: dict[str, float] = {name: round(getattr(params, name) / share) for name in counts}
    return params.model_copy(update={**longer, "warmup_epochs": params.warmup_epochs / share})


def fit(trained: Trained) -> Curve:
    """The power law through the points, with intervals, and whether twice as many images would help."""
    points = []
    for share, number, correct in zip(trained.shares, trained.images, trained.correct, strict=True):
        interval = wilson(int(correct.sum()), len(correct), CONFIDENCE)
        points.append(Point(share, number, float(correct.mean()), *interval))
    images = np.array(trained.images, dtype=np.float64)
    count = trained.correct.shape[1]
    patterns, times = np.unique(~trained.correct, axis=1, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(count, times / count, _RESAMPLES)
    a, b = power_law(images, (~trained.correct).sum(1)[None], count)
    many_a, many_b = power_law(images, drawn @ patterns.T.astype(np.int64), count)

    def interval_of(values: Floats) -> Interval:
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(float(low), float(high))

    def accuracy(a: Floats, b: Floats, number: float) -> Floats:
        return 1 - np.minimum(1.0, a * number**-b)

    last = images[-1]
    twice, many_twice = accuracy(a, b, 2 * last), accuracy(many_a, many_b, 2 * last)
    gain, many_gain = twice - accuracy(a, b, last), many_twice - accuracy(many_a, many_b, last)
    gains = interval_of(many_gain)
    verdict: Verdict = "not known" if gains.low <= 0 else "yes" if gain[0] >= _WORTH else "hardly"
    return Curve(
        points=tuple(points),
        factor=float(a[0]),
        exponent=float(b[0]),
        exponent_interval=interval_of(many_b),
        twice=float(twice[0]),
        twice_interval=interval_of(many_twice),
        gain=float(gain[0]),
        gain_interval=gains,
        verdict=verdict,
        answer=_answer(verdict, points[-1], float(twice[0]), float(gain[0]), gains),
    )


def power_law(images: Floats, mistakes: npt.NDArray[np.int64], count: int) -> tuple[Floats, Floats]:
    """a and b, each [B], of e = a n^-b through the mistakes [B, P] among `count` test images, at `images` [P].

    Half a mistake is added to each point: without it no law of finite slope would fit points that have none.

    >>> power_law(np.array([100.0, 200, 400]), np.array([[4000, 2000, 1000]]), 100_000)
    (array([3.99...]), array([0.99...]))
    """
    seen, x = mistakes + 0.5, np.log(images)
    logarithm, weights = np.log(seen), seen
    for _ in range(_STEPS):
        total = weights.sum(1)
        mean_x, mean_y = (weights * x).sum(1) / total, (weights * logarithm).sum(1) / total
        away = x - mean_x[:, None]
        slope = (weights * away * (logarithm - mean_y[:, None])).sum(1) / (weights * away**2).sum(1)
        line = mean_y[:, None] + slope[:, None] * away
        weights = np.exp(line)
        logarithm = line + seen / weights - 1
    return np.exp(mean_y - slope * mean_x) / count, -slope


def numbers(curve: Curve) -> dict[str, float]:
    """The flat numbers for `dvc metrics show`, rounded to four digits."""
    last = curve.points[-1]
    values: dict[str, float] = {"images": last.images, "accuracy": last.accuracy}
    values |= {"accuracy_low": last.low, "accuracy_high": last.high}
    for name, value, interval in (
        ("exponent", curve.exponent, curve.exponent_interval),
        ("twice_accuracy", curve.twice, curve.twice_interval),
        ("twice_gain", curve.gain, curve.gain_interval),
    ):
        values |= {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}


def report(curve: Curve, notes: Sequence[str]) -> dict[str, object]:
    """The whole result for JSON: the points, the law with its intervals, the verdict and the answer in words."""
    return {
        "confidence_level": CONFIDENCE,
        **asdict(curve),
        "points": [asdict(one) for one in curve.points],
        "notes": list(notes),
    }


def points_csv(curve: Curve) -> str:
    """`images,accuracy,low,high,share`, one line per point."""
    rows = ([one.images, *(round(v, 4) for v in (one.accuracy, one.low, one.high)), one.share] for one in curve.points)
    return csv_text(("images", "accuracy", "low", "high", "share"), rows)


def _answer(verdict: Verdict, last: Point, twice: float, gain: float, gains: Interval) -> str:
    interval = f"{CONFIDENCE:.0%} interval {100 * gains.low:.2f} to {100 * gains.high:.2f}"
    law = f"from {last.images:,} to {2 * last.images:,} images the power law gains {100 * gain:.2f} points ({interval})"
    if verdict == "not known":
        return f"Whether twice as many labelled images would help is not known: {law}, which may be nothing."
    begin = (
        "Yes, twice as many labelled images should help"
        if verdict == "yes"
        else "Twice as many labelled images would hardly help"
    )
    return f"{begin}: {law}, to {twice:.2%}; it knows no floor, so this is the most to hope for."
