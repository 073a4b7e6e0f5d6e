"""Traffic for the endpoint: real held-out images, as they are, corrupted, or with another mix of classes.

Does not cover: sending (`pipeline` does that through the client) and reading the images from the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from visionloop.corruptions import check_severity, corrupt, resolve
from visionloop.errors import MonitoringError
from visionloop.preprocess import PixelArray, PreprocessSpec, decode, encode_png, resize

NONE = "none"
PRIOR = "prior"
# Share of the favoured class under "prior", by severity: with ten classes 0.1 would be no shift.
PRIOR_SHARES = (0.15, 0.2, 0.3, 0.5, 0.8)


def simulate(
    images: Sequence[bytes],
    shift: str | None,
    severity: int,
    count: int,
    seed: int,
    *,
    labels: Sequence[str] | None = None,
    spec: PreprocessSpec | None = None,
) -> Iterator[bytes]:
    """Yield `count` encoded images, drawn from `images` without repeats as long as they last, then all over again.

    `shift` is None or "none" (the bytes unchanged), "prior" (one class, drawn by the seed, gets 15, 20, 30, 50 or 80 % of
    the traffic; needs `labels`, one per image), or a corruption of `visionloop.corruptions`, written as PNG so that no
    second loss is added. `severity` is 1 to 5. The same arguments give the same bytes.

    Corruptions are meant for small images, and their lengths are pixels: a photo of 12 megapixels that is blurred by one of
    them looks as before. So an image larger than the model's input, which `spec` tells, is brought to it first.

    >>> sent = list(simulate(images, "blur", severity=3, count=500, seed=0, spec=card.preprocess))

    Raises:
        ConfigError: an unknown shift or severity.
        MonitoringError: there are no images, or "prior" without labels.
    """
    name = resolve(shift or NONE, extra=(NONE, PRIOR))
    check_severity(severity)
    if not images:
        raise MonitoringError("There are no images to send; run `dvc repro split` to make the held-out ones.")
    rng = np.random.default_rng(seed)
    if name == PRIOR:
        order = _prior_order(len(images), labels, severity, count, rng)
    else:
        order = _rounds(np.arange(len(images)), count, rng)
    if name in (NONE, PRIOR):
        return (images[index] for index in order)
    return (encode_png(corrupt(_pixels(images[index], spec), name, severity, rng)) for index in order)


def _pixels(data: bytes, spec: PreprocessSpec | None) -> PixelArray:
    image = decode(data).image
    if spec is not None and image.width > spec.width and image.height > spec.height:
        return resize(image, spec)
    return np.array(image)


def _rounds(choices: np.typing.NDArray[np.int64], count: int, rng: np.random.Generator) -> list[int]:
    """`count` indices: every choice once in random order, then again in another order, and so on."""
    rounds = [rng.permutation(choices) for _ in range(-(-count // len(choices)))]
    return [int(index) for index in np.concatenate(rounds)[:count]] if rounds else []


def _prior_order(size: int, labels: Sequence[str] | None, severity: int, count: int, rng: np.random.Generator) -> list[int]:
    if labels is None or len(labels) != size:
        raise MonitoringError(
            f"The shift 'prior' needs one label per image; there are {len(labels or ())} for {size} images."
        )
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise MonitoringError("The shift 'prior' needs images of at least two classes.")
    favoured = classes[int(rng.integers(len(classes)))]
    inside = np.array([label == favoured for label in labels])
    many = rng.binomial(count, PRIOR_SHARES[severity - 1])
    order = _rounds(np.flatnonzero(inside), many, rng) + _rounds(np.flatnonzero(~inside), count - many, rng)
    return [int(index) for index in rng.permutation(order)]
