"""What a model withstands: corruptions, changes of place, angle and size, in numbers that a budget can be set on.

Accuracies are shares of all images that were shown, those that are answered wrongly without any change included. A
corruption's number is the mean over its five severities; what is averaged over corruptions are the 15 of CIFAR-10-C, while
its 4 extra ones stand apart (Hendrycks and Dietterich 2019, arXiv:1903.12261).

The paper divides a model's errors by those of AlexNet, so that hard corruptions do not weigh more than easy ones. No AlexNet
exists for anyone's own classes; the reference here is the class whose mean training image is nearest in pixels
(`NearestMean`), which needs no training, no choice and no download. A relative error of 1 is as bad as that.

Does not cover: attacks (`visionloop.attacks`) and bytes that are no image (`malformed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from visionloop.config import RobustnessParams
from visionloop.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt_all
from visionloop.errors import DataError
from visionloop.evaluation.metrics import csv_text
from visionloop.progress import track

Images = npt.NDArray[np.uint8]  # [N, H, W, 3]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Answer = Callable[[Images], Numbers]  # the class of each image, as its position in the labels

_MOST_OF_A_CLASS = 500  # more move no mean by a level, and need not fit in memory


class NearestMean:
    """The class whose mean image is nearest, in pixels: what a model should at least be better than.

    >>> NearestMean(train.images, train.labels, classes=10)(test.images)
    """

    def __init__(self, images: Images, labels: Numbers, classes: int) -> None:
        """Learn from at most 500 images a class of uint8 [N, H, W, 3]; a class without any is never answered."""
        pixels = images.reshape(len(images), -1)
        counts = np.bincount(labels, minlength=classes)
        self._means = np.zeros((classes, pixels.shape[1]))
        for index in np.flatnonzero(counts):
            self._means[index] = pixels[np.flatnonzero(labels == index)[:_MOST_OF_A_CLASS]].mean(0, dtype=np.float64)
        self._lift = np.where(counts > 0, -(self._means**2).sum(1) / 2, -np.inf)

    def __call__(self, images: Images) -> Numbers:
        """The nearest class of each image."""
        # |x - m|^2 is |x|^2 - 2 x m + |m|^2, and |x|^2 is the same for every class.
        return np.asarray((images.reshape(len(images), -1) @ self._means.T + self._lift).argmax(1))


def choose(targets: Numbers, count: int, seed: int) -> Numbers:
    """Positions of at most `count` images, in order: all, or a draw in which each class has its share.

    Raises:
        DataError: there is no image.
    """
    if len(targets) == 0:
        raise DataError("There is no test image to measure robustness on; raise the share of the test side in split.")
    if count >= len(targets):
        return np.arange(len(targets))
    order = np.random.default_rng(seed).permutation(len(targets))
    by_class = order[np.argsort(targets[order], kind="stable")]
    return np.sort(by_class[np.linspace(0, len(targets) - 1, count).round().astype(np.int64)])


@dataclass(frozen=True)
class CorruptionTable:
    """Accuracy under each of `CORRUPTIONS` at each severity, of the model and of the reference."""

    accuracy: Floats  # [19, 5]
    reference: Floats  # [19, 5]
    classes: Floats  # [K], mean over the 15 and the severities; NaN where a class has no image
    clean: float
    reference_clean: float

    def of(self, names: Sequence[str]) -> Floats:
        """The accuracies [len(names), 5] of some corruptions."""
        return self.accuracy[[CORRUPTIONS.index(name) for name in names]]

    @property
    def relative_errors(self) -> dict[str, float]:
        """Of each corruption: the model's errors over all severities, divided by the reference's, where it made any."""
        own, others = (1 - self.accuracy).sum(1), (1 - self.reference).sum(1)
        return {name: float(own[i] / others[i]) for i, name in enumerate(CORRUPTIONS) if others[i] > 0}


def corruption_table(
    answer: Answer, reference: Answer, images: Images, targets: Numbers, *, classes: int, seed: int
) -> CorruptionTable:
    """Corrupt and answer the images uint8 [N, H, W, 3], N at least 1, whose classes are `targets` [N], with progress.

    Each corruption and severity draws from a generator of its own, so that leaving one out would not change another.
    """
    accuracy, others = np.zeros((2, len(CORRUPTIONS), len(SEVERITIES)))
    right = np.zeros(classes)
    cases = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    for name, severity in track(cases, "corruptions"):
        number = CORRUPTIONS.index(name)
        changed = corrupt_all(images, name, severity, np.random.default_rng([seed, number, severity]))
        correct = answer(changed) == targets
        accuracy[number, severity - 1] = correct.mean()
        others[number, severity - 1] = (reference(changed) == targets).mean()
        if name in BENCHMARK:
            right += np.bincount(targets[correct], minlength=classes)
    shown = np.bincount(targets, minlength=classes) * len(BENCHMARK) * len(SEVERITIES)
    return CorruptionTable(
        accuracy,
        others,
        np.divide(right, shown, out=np.full(classes, np.nan), where=shown > 0),
        float((answer(images) == targets).mean()),
        float((reference(images) == targets).mean()),
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy against the amount of a change, beginning with none."""

    change: str  # "shift", "rotation", "scale", "fgsm" or "pgd"
    unit: str
    amounts: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """`<change>_accuracy_<amount>` for each amount but none."""
        pairs = zip(self.amounts, self.accuracies, strict=True)
        none = 1.0 if self.change == "scale" else 0.0
        return {number_name(self.change, amount): accuracy for amount, accuracy in pairs if amount != none}


def number_name(change: str, amount: float) -> str:
    """The name of a number of a curve, as "rotation_accuracy_15"."""
    return f"{change}_accuracy_{amount:g}"


def invariance_curves(answer: Answer, images: Images, targets: Numbers, params: RobustnessParams) -> list[Curve]:
    """Shift (mean of up, down, left, right), rotation (mean of both senses) and scale, with progress.

    What comes in from beyond the border continues the border's pixels.
    """
    moves: dict[str, tuple[str, dict[float, list[Floats]]]] = {
        "shift": ("pixels", {0.0: [_affine()]}),
        "rotation": ("degrees", {0.0: [_affine()]}),
        "scale": ("factor", {1.0: [_affine()]}),
    }
    for pixels in params.shifts_pixels:
        moves["shift"][1][pixels] = [_affine(shift=(x * pixels, y * pixels)) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    for degrees in params.rotations_degrees:
        moves["rotation"][1][degrees] = [_affine(degrees=sign * degrees) for sign in (1, -1)]
    for factor in params.scales:
        moves["scale"][1][factor] = [_affine(scale=factor)]

    def accuracy(matrices: list[Floats]) -> float:
        return float(np.mean([(answer(moved(images, matrix)) == targets).mean() for matrix in matrices]))

    cases = [(change, amount) for change, (_, amounts) in moves.items() for amount in amounts]
    found = {(change, amount): accuracy(moves[change][1][amount]) for change, amount in track(cases, "shift, turn, scale")}
    return [
        Curve(change, unit, tuple(sorted(amounts)), tuple(found[change, amount] for amount in sorted(amounts)))
        for change, (unit, amounts) in moves.items()
    ]


def _affine(shift: tuple[float, float] = (0.0, 0.0), degrees: float = 0.0, scale: float = 1.0) -> Floats:
    """Where a pixel of the result comes from, [2, 3] in pixels from the middle: x and y of x, y and 1."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return np.concatenate([turn, -turn @ np.array(shift)[:, None]], axis=1)


def moved(images: Images, matrix: Floats) -> Images:
    """Images uint8 [N, H, W, 3] read at the places that `matrix` [2, 3] says, bilinear, the border continued."""
    height, width = images.shape[1:3]
    half = np.array([width / 2, height / 2])
    theta = matrix.copy()
    theta[:, :2] *= half / half[:, None]  # torch counts in half sides
    theta[:, 2] /= half
    grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 3, height, width], align_corners=False)
    parts = []
    for start in range(0, len(images), 256):  # bounds memory
        pixels = torch.from_numpy(images[start : start + 256].astype(np.float64)).permute(0, 3, 1, 2)
        grids = grid.expand(len(pixels), -1, -1, -1)
        read = F.grid_sample(pixels, grids, mode="bilinear", padding_mode="border", align_corners=False)
        parts.append(read.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))


def summarize(table: CorruptionTable, curves: Sequence[Curve], labels: Sequence[str]) -> dict[str, float | str]:
    """The flat numbers for `dvc metrics show`, rounded to four digits, with the names of the worst."""
    means = {name: float(row.mean()) for name, row in zip(CORRUPTIONS, table.accuracy, strict=True)}
    relative = [value for name, value in table.relative_errors.items() if name in BENCHMARK]
    worst = min(BENCHMARK, key=lambda name: means[name])
    worst_class = int(np.nanargmin(table.classes))
    accuracy = float(table.of(BENCHMARK).mean())
    values: dict[str, float | str] = {
        "clean_accuracy": table.clean,
        "corruption_accuracy": accuracy,
        "mean_corruption_error": 1 - accuracy,
        "extra_corruption_accuracy": float(table.of(EXTRA).mean()),
        **({"relative_corruption_error": float(np.mean(relative))} if relative else {}),
        "worst_corruption": worst,
        "worst_corruption_accuracy": means[worst],
        "worst_class": labels[worst_class],
        "worst_class_accuracy": float(table.classes[worst_class]),
        "reference_clean_accuracy": table.reference_clean,
        "reference_corruption_accuracy": float(table.reference[: len(BENCHMARK)].mean()),
        **{f"corruption_{name}": mean for name, mean in means.items()},
    }
    for curve in curves:
        values |= curve.numbers
    return {name: value if isinstance(value, str) else round(value, 4) for name, value in values.items()}


def corruptions_csv(table: CorruptionTable) -> str:
    """One line per corruption: its mean accuracy, the reference's, the relative error, and the accuracy at each severity."""
    severities = [f"severity_{severity}" for severity in SEVERITIES]
    header = ("corruption", "group", "accuracy", "reference_accuracy", "relative_error", *severities)
    relative = table.relative_errors
    rows = []
    for name, row, others in zip(CORRUPTIONS, table.accuracy, table.reference, strict=True):
        numbers = [row.mean(), others.mean(), relative.get(name), *row]
        fields = ["" if value is None else round(float(value), 4) for value in numbers]
        rows.append([name, "15" if name in BENCHMARK else "extra", *fields])
    return csv_text(header, rows)


def classes_csv(table: CorruptionTable, labels: Sequence[str]) -> str:
    """One line per class: its accuracy over the 15 corruptions and all severities; empty where it has no image."""
    fields = ["" if np.isnan(value) else round(float(value), 4) for value in table.classes]
    return csv_text(("label", "corruption_accuracy"), zip(labels, fields, strict=True))


def curves_csv(curves: Sequence[Curve]) -> str:
    """`change,unit,amount,accuracy`, one line per point."""
    return csv_text(("change", "unit", "amount", "accuracy"), _points(curves))


def attacks_csv(fgsm: Curve, pgd: Curve) -> str:
    """`epsilon,fgsm,pgd`, which DVC plots; both curves have the same epsilons."""
    rows = zip(fgsm.amounts, fgsm.accuracies, pgd.accuracies, strict=True)
    return csv_text(("epsilon", "fgsm", "pgd"), ([f"{epsilon:g}", round(a, 4), round(b, 4)] for epsilon, a, b in rows))


def _points(curves: Sequence[Curve]) -> Iterator[list[object]]:
    for curve in curves:
        for amount, accuracy in zip(curve.amounts, curve.accuracies, strict=True):
            yield [curve.change, curve.unit, f"{amount:g}", round(accuracy, 4)]


def only_numbers(values: Mapping[str, float | str]) -> dict[str, float]:
    """What a budget can be set on."""
    return {name: value for name, value in values.items() if not isinstance(value, str)}
