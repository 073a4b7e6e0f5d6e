"""Where a model is worse: its accuracy on parts of the test images, each against the rest.

Images are parted by what `clean` measured of the files as they came: size, brightness, contrast and sharpness in quarters,
the source, whether near-duplicates were found, and the pairs of classes that are taken for each other most often.

A part is called worse when Fisher's exact test, one-sided, says so after Holm's correction (Holm 1979): the parts by
attribute are one family of tests, the pairs of classes another. The pairs that are shown were chosen by their mistakes, so
the correction there counts every pair that there is. A part with fewer than 20 images, or with fewer than 20 outside it, is
shown and not judged: at 95 % right Wilson's interval of 20 images is 23 points long.

Near-duplicates count as independent images, as everywhere here. Does not cover: parts by what the image shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import hypergeom

from visionloop.errors import ArtifactError
from visionloop.evaluation.metrics import confusion, csv_text, wilson
from visionloop.evaluation.predictions import Floats, SplitPredictions
from visionloop.records import CleanRow
from visionloop.tables import read_table, schema_of

LEAST_IMAGES = 20  # of a part that is judged, and of its rest
_QUARTERS = 4
_MOST_SOURCES = 20  # the largest ones
_MOST_PAIRS = 5

Verdict = Literal["worse", "not worse", "too small"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attributes:
    """What is known of each test image, in the order of the predictions; each [N]."""

    pixels: Floats  # width times height of the file's image
    brightness: Floats  # mean of gray, 0 to 255
    contrast: Floats  # standard deviation of gray
    sharpness: Floats  # variance of the Laplacian of gray
    sources: tuple[str, ...]
    has_duplicates: Mask  # another image that is kept is the same picture, or nearly


class _Part(NamedTuple):
    kind: str
    name: str
    mask: Mask


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the test images."""

    kind: str  # size, brightness, contrast, sharpness, source, near-duplicates, class pair
    name: str
    images: int
    mistakes: int
    accuracy: float
    low: float  # Wilson's interval
    high: float
    rest_accuracy: float | None  # None: there is no other image
    p_value: float | None  # corrected by Holm; None: not judged
    verdict: Verdict
    sentence: str


def read_attributes(path: Path, ids: Sequence[str]) -> Attributes:
    """Look the images up in data/clean.parquet.

    Raises:
        ArtifactError: the file is missing or damaged, or is of another data version and lacks an image.
    """
    names = ("id", "source", "cluster", "verdict", "width_pixels", "height_pixels", "brightness", "contrast", "sharpness")
    whole = schema_of(CleanRow)
    table = read_table(path, pa.schema([whole.field(name) for name in names]))
    table = table.filter(pc.equal(table["verdict"], "keep")).combine_chunks()
    found = pc.index_in(pa.array(list(ids), pa.string()), value_set=table["id"])
    if found.null_count:
        missing = ids[pc.index(pc.is_null(found), True).as_py()]
        raise ArtifactError(
            f"{found.null_count} of {len(ids)} test images are not among those that {path} keeps (first: {missing[:12]}); "
            "run `dvc repro`, so that all stages see this data version."
        )
    sizes = pc.value_counts(table["cluster"])
    several = sizes.field("values").filter(pc.greater(sizes.field("counts"), 1))
    mine = table.take(found)

    def numbers(name: str) -> Floats:
        return np.asarray(mine[name].to_numpy(), dtype=np.float64)

    return Attributes(
        pixels=numbers("width_pixels") * numbers("height_pixels"),
        brightness=numbers("brightness"),
        contrast=numbers("contrast"),
        sharpness=numbers("sharpness"),
        sources=tuple(mine["source"].to_pylist()),
        has_duplicates=pc.is_in(mine["cluster"], value_set=several).to_numpy(),
    )


def slices(
    predictions: SplitPredictions, labels: Sequence[str], attributes: Attributes, confidence_level: float
) -> tuple[list[Slice], list[str]]:
    """Every part with its verdict, in rising order of the attribute, and sentences about what could not be parted.

    An attribute that is the same for all images makes no part and a sentence.
    """
    parts: list[_Part] = []
    notes = []
    for kind, values, unit in (
        ("size", attributes.pixels, " pixels"),
        ("brightness", attributes.brightness, ""),
        ("contrast", attributes.contrast, ""),
        ("sharpness", attributes.sharpness, ""),
    ):
        found = [_Part(kind, name + unit, mask) for name, mask in quarters(values)]
        if len(found) < 2:
            notes.append(f"All test images have the same {kind} ({values[0]:,.4g}{unit}), so there are no parts by {kind}.")
        else:
            parts += found
    sources = sorted(set(attributes.sources), key=lambda name: (-attributes.sources.count(name), name))
    if len(sources) < 2:
        notes.append(f"All test images are of one source ({sources[0]}), so there are no parts by source.")
    else:
        every = np.array(attributes.sources, dtype=object)
        parts += [_Part("source", name, every == name) for name in sources[:_MOST_SOURCES]]
        if len(sources) > _MOST_SOURCES:
            notes.append(f"The {_MOST_SOURCES} largest of {len(sources)} sources are shown.")
    several = attributes.has_duplicates
    if several.all() or not several.any():
        which = "Every" if several.all() else "No"
        notes.append(f"{which} test image has near-duplicates, so there are no parts by them.")
    else:
        parts += [_Part("near-duplicates", "has some", several), _Part("near-duplicates", "has none", ~several)]
    pairs = _pairs(predictions, labels)
    classes = len(labels)
    judged = _judge(predictions.correct, parts, len(parts), confidence_level)
    return judged + _judge(predictions.correct, pairs, classes * (classes - 1) // 2, confidence_level), notes


def slices_csv(found: Sequence[Slice]) -> str:
    """One line per part, with its name in the column `slice`; what is not known is an empty field."""
    header = ("slice", "images", "mistakes", "accuracy", "low", "high", "rest_accuracy", "p_value", "verdict")
    rows = [
        [f"{one.kind}: {one.name}", one.images, one.mistakes]
        + ["" if value is None else round(value, 4) for value in (one.accuracy, one.low, one.high, one.rest_accuracy)]
        + ["" if one.p_value is None else f"{one.p_value:.3g}", one.verdict]
        for one in found
    ]
    return csv_text(header, rows)


def quarters(values: Floats) -> list[tuple[str, Mask]]:
    """The values in four parts of about as many images each, or one part per value where there are at most four.

    Equal values stay together, so that parts may be unequal, or fewer.

    >>> [(name, mask.sum()) for name, mask in quarters(np.array([1.0, 1, 2]))]
    [('1', 2), ('2', 1)]
    """
    distinct = np.unique(values)
    if len(distinct) <= _QUARTERS:
        number = np.searchsorted(distinct, values)
    else:
        number = np.searchsorted(np.quantile(values, np.arange(1, _QUARTERS) / _QUARTERS), values, side="left")
    parts = []
    for part in np.unique(number):
        mask = number == part
        low, high = values[mask].min(), values[mask].max()
        parts.append((_shown(low) if low == high else f"{_shown(low)} to {_shown(high)}", mask))
    return parts


def holm(p_values: Sequence[float], tests: int) -> list[float]:
    """Holm's corrected p-values, at most 1, of `tests` tests, of which those that are not given are not smaller.

    Where some that are not given are smaller, the corrected values are too large, which is safe.

    >>> holm([0.01, 0.04, 0.02], 3)
    [0.03, 0.04, 0.04]
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (tests - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _pairs(predictions: SplitPredictions, labels: Sequence[str]) -> list[_Part]:
    """The images of the two classes, for the pairs that are taken for each other most often."""
    matrix = confusion(predictions, len(labels))
    both = np.triu(matrix + matrix.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = []
    for first, second in zip(*np.unravel_index(order, both.shape), strict=True):
        if both[first, second]:
            mask = (predictions.targets == first) | (predictions.targets == second)
            pairs.append(_Part("class pair", f"{labels[first]} or {labels[second]}", mask))
    return pairs


def _judge(correct: Mask, parts: Sequence[_Part], tests: int, confidence_level: float) -> list[Slice]:
    sizes = [(int(part.mask.sum()), int((~correct[part.mask]).sum())) for part in parts]
    total, mistakes = len(correct), int((~correct).sum())
    large = [index for index, (size, _) in enumerate(sizes) if min(size, total - size) >= LEAST_IMAGES]
    # Fisher's test: as many mistakes or more among so many images drawn from all, by chance.
    raw = [float(hypergeom.sf(sizes[index][1] - 1, total, mistakes, sizes[index][0])) for index in large]
    corrected = dict(zip(large, holm(raw, tests), strict=True))
    found = []
    for index, (part, (size, wrong)) in enumerate(zip(parts, sizes, strict=True)):
        accuracy = 1 - wrong / size
        low, high = wilson(size - wrong, size, confidence_level)
        rest = 1 - (mistakes - wrong) / (total - size) if total > size else None
        p_value = corrected.get(index)
        verdict: Verdict = "not worse"
        sentence = f"{part.kind} {part.name}: {accuracy:.2%} of {size:,} images are right"
        if p_value is None or rest is None:
            verdict = "too small"
            sentence += f", too few here or outside to judge; {LEAST_IMAGES} are needed."
        else:
            verdict = "worse" if p_value < 1 - confidence_level else "not worse"
            said = "worse" if verdict == "worse" else "not proved worse"
            sentence += f", {rest:.2%} of the rest: {said} (corrected p = {p_value:.2g})."
        found.append(Slice(part.kind, part.name, size, wrong, accuracy, low, high, rest, p_value, verdict, sentence))
    return found
