"""The drift reference: held-out images scored the way the server scores live ones, as the same rows.

Does not cover: which images are held out (`data/splitting.py`) and what is tested against the reference (`monitoring`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice

import numpy as np

from visionloop.errors import DataError, ImageError
from visionloop.observe import Observer
from visionloop.preprocess import DecodedImage, PixelArray, decode, resize
from visionloop.records import ImageRow, LoggedPrediction
from visionloop.runtime import OnnxModel

_BATCH_IMAGES = 64
# `clean` has judged the size of every image that comes here.
_MAX_PIXELS = 2_000_000_000


def score(
    images: Iterable[tuple[ImageRow, bytes]], targets: Mapping[str, str], model: OnnxModel, observer: Observer
) -> Iterator[LoggedPrediction]:
    """Yield one row per image, in the order given; `targets` maps an image's id to its true label.

    The same images and model give the same rows: ids and times come from the images, and nothing is timed.

    Raises:
        DataError: an image cannot be decoded, though `clean` kept it.
    """
    stream = iter(images)
    while batch := list(islice(stream, _BATCH_IMAGES)):
        decoded, pixels = zip(*(_decode(row, data, observer) for row, data in batch), strict=True)
        logits, embedding = model.run(np.stack(pixels))
        for index, (row, data) in enumerate(batch):
            yield observer.answered(
                data,
                decoded[index],
                pixels[index],
                logits[index],
                embedding[index],
                prediction_id=prediction_id(row.id, row.time),
                time=row.time,
                batch_size=len(batch),
                target=targets[row.id],
            )


def prediction_id(image_sha256: str, time: datetime) -> str:
    """A UUID version 7 (RFC 9562, 5.7) whose time is the image's and whose random bits are its hash."""
    milliseconds = max(0, int(time.timestamp() * 1000))
    noise = int(image_sha256, 16)
    value = (milliseconds % 2**48) << 80 | 7 << 76 | (noise >> 62) % 2**12 << 64 | 2 << 62 | noise % 2**62
    return str(uuid.UUID(int=value))


def _decode(row: ImageRow, data: bytes, observer: Observer) -> tuple[DecodedImage, PixelArray]:
    try:
        decoded = decode(data, max_pixels=_MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"{row.path} was kept by `clean` but cannot be decoded now: {error}") from error
    return decoded, resize(decoded.image, observer.card.preprocess)
