"""Images that are of none of the classes: made ones to measure by, and which score tells them from the known ones best.

The score is chosen on some kinds of foreign images and judged on others (`CHOSEN_BY`, `JUDGED_BY`), so that the figures
say what to expect of images that nobody thought of. The threshold is set on known images alone: it keeps a stated share.

Does not cover: the scores themselves (`visionloop.unknown`), and training with foreign images.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from sklearn.covariance import ledoit_wolf

from visionloop.errors import ArtifactError, ConfigError, DataError, ImageError
from visionloop.preprocess import PreprocessSpec, preprocess
from visionloop.unknown import SCORES, ClassMeans, Score

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]

IMAGES_OF_A_KIND = 100
FOLDER = "folder"  # the kind of the owner's own foreign images: they judge, and never choose
MOST_OF_FOLDER = 1000
# What looks the same to a person, too, is not foreign.
_LOOK_ALIKE = {"0": "Oo", "1": "Il", "O": "o0", "l": "I1"}


def made(kind: str, count: int, height: int, width: int, *, gray: bool, known: Sequence[str] = (), seed: int = 0) -> Images:
    """`count` foreign images uint8 [N, height, width, 3] of a kind of `KINDS`; the same arguments give the same images.

    `gray` leaves colour out, for data without any. `known` are the class names: letters that are one are not drawn.
    """
    # A kind's own stream: another kind, or another number of its images, leaves this one as it is.
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    if kind in _LETTERS:
        alike = {other for name in known for other in (name, *_LOOK_ALIKE.get(name, ""))}
        letters = [letter for letter in _LETTERS[kind] if letter not in alike] or list("&%?")
        planes = np.stack([_letter(rng, letters[i % len(letters)], height, width) for i in range(count)])
    else:
        planes = np.stack([_TEXTURES[kind](rng, height, width) for _ in range(count)])
    return _coloured(rng, planes, gray)


def folder_images(folder: Path, spec: PreprocessSpec) -> tuple[Images, int]:
    """The owner's foreign images as the model takes them, uint8 [N, H, W, 3], and how many files were no usable image.

    All files below `folder` but hidden ones; of more than 1,000 every second, third, ...

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"calibrate.foreign is {folder}, and there is no such folder; make it (it may be empty).")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    found, refused = [], 0
    for path in files[:: max(1, -(-len(files) // MOST_OF_FOLDER))]:
        try:
            found.append(preprocess(path.read_bytes(), spec))
        except ImageError:
            refused += 1
    return np.stack(found) if found else np.empty((0, spec.height, spec.width, 3), np.uint8), refused


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a score tells foreign images from known ones, each kind counting alike."""

    auroc: float  # the chance that a foreign image scores above a known one, ties as half
    low: float  # DeLong's interval
    high: float
    fpr95: float  # share of foreign images that pass for known where 95 % of the known ones do
    auroc_of: Mapping[str, float]  # per kind
    fpr95_of: Mapping[str, float]


def separation(known: Floats, foreign: Mapping[str, Floats], confidence_level: float = 0.95) -> Separation:
    """Compare scores [N] of known images with those of each kind of foreign ones; higher scores are stranger.

    The interval is that of DeLong, DeLong and Clarke-Pearson 1988, over known and foreign images both.

    Raises:
        DataError: one side is empty, or a score is NaN.
    """
    groups = {kind: scores for kind, scores in foreign.items() if len(scores)}
    if not len(known) or not groups:
        raise DataError("Known and foreign images cannot be told apart: one side has none.")
    if np.isnan(known).any() or any(np.isnan(scores).any() for scores in groups.values()):
        raise DataError("Known and foreign images cannot be told apart: a score is NaN; train the model again.")
    threshold = kept_threshold(known, 0.95)
    auroc, fpr95, variance = {}, {}, 0.0
    of_known = np.zeros(len(known))
    for kind, scores in groups.items():
        of_foreign = _share_below(known, scores)
        auroc[kind] = float(of_foreign.mean())
        fpr95[kind] = float((scores <= threshold).mean())
        variance += _variance(of_foreign) / len(groups) ** 2
        of_known += (1 - _share_below(scores, known)) / len(groups)
    mean = float(np.mean(list(auroc.values())))
    half = NormalDist().inv_cdf(0.5 + confidence_level / 2) * float(np.sqrt(variance + _variance(of_known)))
    return Separation(
        auroc=mean,
        low=max(0.0, mean - half),
        high=min(1.0, mean + half),
        fpr95=float(np.mean(list(fpr95.values()))),
        auroc_of=auroc,
        fpr95_of=fpr95,
    )


def kept_threshold(known: Floats, kept: float) -> float:
    """The least score at or below which at least the share `kept` of the known images [N], N at least 1, lies."""
    return float(np.sort(known)[max(0, int(np.ceil(kept * len(known) - 1e-9)) - 1)])


@dataclass(frozen=True)
class Measured:
    """What was measured of each score, and which one is taken."""

    score: Score
    reason: str  # a sentence with the figures that chose
    chosen_by: Mapping[Score, Separation]  # on the kinds of `CHOSEN_BY`
    judged_by: Mapping[Score, Separation]  # on all other kinds


def choose(known: Mapping[Score, Floats], foreign: Mapping[Score, Mapping[str, Floats]]) -> Measured:
    """Take the score with the highest AUROC on the kinds of `CHOSEN_BY`, and judge all on the others.

    `known` are the scores of validation images [N], `foreign` those of each kind. AUROC counts to a thousandth; among equal
    scores the one that needs least is taken (the order of `SCORES`).
    """

    def parts(chooses: bool) -> dict[Score, Separation]:
        return {
            score: separation(
                known[score], {kind: x for kind, x in foreign[score].items() if (kind in CHOSEN_BY) == chooses}
            )
            for score in SCORES
        }

    by, judged = parts(True), parts(False)
    best = max(SCORES, key=lambda score: (round(by[score].auroc, 3), -SCORES.index(score)))
    others = ", ".join(f"{score} {by[score].auroc:.3f}" for score in SCORES if score != best)
    reason = (
        f"{best.capitalize()} is the score for unknown images: AUROC "
        f"{by[best].auroc:.3f} over {', '.join(by[best].auroc_of)}; "
        f"{others}."
    )
    return Measured(best, reason, by, judged)


def unknowns_csv(measured: Measured) -> str:
    """`score,kind,role,auroc,fpr95`: each score on each kind, and whether the kind chose or judged."""
    lines = ["score,kind,role,auroc,fpr95"]
    for role, parts in (("chose", measured.chosen_by), ("judged", measured.judged_by)):
        for score, part in parts.items():
            lines += [f"{score},{kind},{role},{part.auroc_of[kind]:.4f},{part.fpr95_of[kind]:.4f}" for kind in part.auroc_of]
    return "\n".join(lines) + "\n"


def foreign_csv(measured: Measured, scores: Mapping[str, Floats]) -> str:
    """`kind,score` of the kinds that judge, one line per image: what `evaluate` compares the test images with."""
    kinds = measured.judged_by[measured.score].auroc_of
    return "\n".join(["kind,score", *(f"{kind},{float(x)!r}" for kind in kinds for x in scores[kind])]) + "\n"


def read_foreign(path: Path) -> dict[str, Floats]:
    """Read what `foreign_csv` made: scores by kind.

    Raises:
        ArtifactError: the file is missing or something else.
    """
    found: dict[str, list[float]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            kind, _, score = line.partition(",")
            found.setdefault(kind, []).append(float(score))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run `dvc repro calibrate`.") from error
    return {kind: np.array(scores) for kind, scores in found.items()}


def fit_means(embedding: npt.NDArray[np.floating], labels: Numbers) -> ClassMeans:
    """Class means and shared covariance of embeddings [N, D] with labels [N] (Lee et al. 2018, arXiv:1807.03888).

    The covariance is that within classes, shrunk after Ledoit and Wolf 2004, because with few images or many dimensions it
    could not be inverted. A dimension that never varies counts as if it varied a millionth of the others' mean.

    Raises:
        DataError: there is no image.
    """
    if not len(labels):
        raise DataError("The distance to class means cannot be fitted: there is no training image.")
    wide = np.asarray(embedding, np.float64)
    numbers, place = np.unique(labels, return_inverse=True)
    means = np.stack([wide[place == index].mean(axis=0) for index in range(len(numbers))])
    covariance, _ = ledoit_wolf(wide - means[place], assume_centered=True)
    values, axes = np.linalg.eigh(covariance)
    floor = max(float(values.mean()) * 1e-6, 1e-12)  # the second for embeddings that are all equal
    whitening = axes / np.sqrt(np.maximum(values, floor))
    # As the file will hold them, so that what is measured now is what is served.
    return ClassMeans.from_bytes(ClassMeans(whitening, means @ whitening).to_bytes())


def means_sample(labels: Numbers, most: int = 3000) -> Numbers:
    """Positions of the training images that fit the means: of each class alike, at least two, about `most` in all.

    Packed images stand in the order of their hash, so the first of each class are a fair draw.
    """
    numbers = np.unique(labels)
    each = max(2, most // max(1, len(numbers)))
    return np.sort(np.concatenate([np.flatnonzero(labels == number)[:each] for number in numbers] or [labels]))


def _share_below(reference: Floats, scores: Floats) -> Floats:
    """For each score the share of the reference below it, equal ones as half."""
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return np.asarray(below / (2 * len(ordered)), np.float64)


def _variance(placements: Floats) -> float:
    return float(placements.var(ddof=1) / len(placements)) if len(placements) > 1 else 0.0


def _coloured(rng: np.random.Generator, planes: Floats, gray: bool) -> Images:
    """Planes [N, H, W] from 0 to 1, laid between two random levels or colours that are at least 60 levels apart."""
    channels = 1 if gray else 3
    first = rng.uniform(0, 255, (len(planes), 1, 1, channels))
    step = rng.uniform(60, 127, first.shape) * np.where(first < 127.5, 1, -1)
    images = first + planes[..., None] * step * rng.uniform(1, 2, (len(planes), 1, 1, 1))
    return np.broadcast_to(images.clip(0, 255).round().astype(np.uint8), (*planes.shape, 3)).copy()


def _places(height: int, width: int) -> tuple[Floats, Floats]:
    """Row and column of each pixel, in units of the shorter side."""
    rows, columns = np.mgrid[:height, :width] / min(height, width)
    return rows, columns


def _along(rng: np.random.Generator, height: int, width: int) -> Floats:
    """How far each pixel lies along a random direction."""
    rows, columns = _places(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(rows * np.sin(angle) + columns * np.cos(angle))


def _grating(rng: np.random.Generator, height: int, width: int) -> Floats:
    cycles = rng.uniform(1.5, max(2.0, min(height, width) / 4))
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * cycles * _along(rng, height, width) + rng.uniform(0, 2 * np.pi)))


def _checkers(rng: np.random.Generator, height: int, width: int) -> Floats:
    rows, columns = _places(height, width)
    cells = rng.uniform(2, max(3.0, min(height, width) / 3))
    shift = rng.uniform(0, 1, 2)
    return np.asarray((np.floor(rows * cells + shift[0]) + np.floor(columns * cells + shift[1])) % 2)


def _gradient(rng: np.random.Generator, height: int, width: int) -> Floats:
    return _stretched(_along(rng, height, width))


def _noise(exponent: float) -> Callable[[np.random.Generator, int, int], Floats]:
    def draw(rng: np.random.Generator, height: int, width: int) -> Floats:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        frequency[0, 0] = 1.0
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency**exponent
        return _stretched(np.fft.ifft2(spectrum).real)

    return draw


def _stretched(plane: Floats) -> Floats:
    low, high = float(plane.min()), float(plane.max())
    return np.asarray((plane - low) / max(high - low, 1e-12))


def _letter(rng: np.random.Generator, letter: str, height: int, width: int) -> Floats:
    """A letter of Pillow's own font, filling most of the plane, drawn four times as large for smooth edges."""
    side = 4 * min(height, width)
    canvas = Image.new("L", (4 * width, 4 * height))
    font = ImageFont.load_default(size=side * rng.uniform(0.8, 1.1))
    middle = (2 * width + side * rng.uniform(-0.08, 0.08), 2 * height + side * rng.uniform(-0.08, 0.08))
    ImageDraw.Draw(canvas).text(middle, letter, fill=255, font=font, anchor="mm")
    turned = canvas.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((width, height), Image.Resampling.BOX), np.float64) / 255


_TEXTURES: Mapping[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "gratings": _grating,
    "white noise": _noise(0),
    "checkers": _checkers,
    "pink noise": _noise(1),  # the amplitude falls as 1/f, as in photos
    "brown noise": _noise(2),  # clouds
    "gradients": _gradient,
}
_LETTERS: Mapping[str, str] = {"small letters": string.ascii_lowercase, "capital letters": string.ascii_uppercase}
CHOSEN_BY = ("gratings", "white noise", "brown noise", "small letters")
JUDGED_BY = ("checkers", "pink noise", "gradients", "capital letters")
KINDS = (*CHOSEN_BY, *JUDGED_BY)
