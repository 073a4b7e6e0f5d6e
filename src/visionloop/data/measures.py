"""What `clean` measures of one image, decoded once: sizes, gray statistics, a perceptual hash and a small copy.

Runs in the processes of the pool, so it imports little. Does not cover: verdicts, which `cleaning` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionloop.errors import ImageError
from visionloop.preprocess import PixelArray, decode

THUMB_SIDE = 16
# Statistics come from an image reduced to this longest side: a 24-megapixel photo then costs no more than its decoding.
_STATISTICS_SIDE = 512
_HASH_SIDE = 32
_HASH_TERMS = 8


@dataclass(frozen=True, slots=True)
class Measurement:
    """One image's numbers. Where it cannot be decoded, `fault` is the reason and the rest is 0 or empty."""

    width_pixels: int = 0
    height_pixels: int = 0
    mode: str = ""
    format: str = ""
    brightness: float = 0.0  # mean of gray
    contrast: float = 0.0  # standard deviation of gray
    sharpness: float = 0.0  # variance of the 4-neighbour Laplacian of gray
    perceptual_hash: int = 0  # 64 bits
    thumb: bytes = b""  # uint8 RGB, THUMB_SIDE x THUMB_SIDE, for comparing pixels
    fault: str = ""
    fault_detail: str = ""


def measure(data: bytes, max_pixels: int) -> Measurement:
    """Decode encoded image bytes once and measure them; a fault is a result, not an error."""
    try:
        decoded = decode(data, max_pixels=max_pixels)
    except ImageError as error:
        return Measurement(fault=error.reason, fault_detail=str(error))
    image = decoded.image
    factor = -(-max(image.size) // _STATISTICS_SIDE)
    if factor > 1:
        image = image.reduce(factor)
    gray_image = image.convert("L")
    gray = np.asarray(gray_image, dtype=np.float32)
    hashed = np.asarray(gray_image.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    thumb = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    return Measurement(
        width_pixels=decoded.width_pixels,
        height_pixels=decoded.height_pixels,
        mode=decoded.mode,
        format=decoded.format,
        brightness=float(gray.mean()),
        contrast=float(gray.std()),
        sharpness=_sharpness(gray),
        perceptual_hash=perceptual_hash(hashed),
        thumb=thumb.tobytes(),
    )


@dataclass(frozen=True)
class MeasureBatch:
    """The work of one process on one batch of numbered, encoded images."""

    max_pixels: int

    def __call__(self, batch: Sequence[tuple[int, bytes]]) -> list[tuple[int, Measurement]]:
        return [(number, measure(data, self.max_pixels)) for number, data in batch]


def perceptual_hash(gray: npt.NDArray[np.float32]) -> int:
    """The 64 signs of the lowest cosine terms of a 32 x 32 gray image around their median.

    The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). Scaling, re-encoding
    and a change of brightness move a few bits.
    """
    terms = (_DCT @ gray @ _DCT.T).ravel()
    bits = terms > np.median(terms)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbs_of(measurements: Sequence[Measurement]) -> PixelArray:
    """The small copies as uint8 [N, THUMB_SIDE, THUMB_SIDE, 3]; all must have been decoded."""
    joined = b"".join(item.thumb for item in measurements)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(measurements), THUMB_SIDE, THUMB_SIDE, 3)


def _sharpness(gray: npt.NDArray[np.float32]) -> float:
    if min(gray.shape) < 3:
        return 0.0
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    return float(laplacian.var())


def _dct_rows() -> npt.NDArray[np.float32]:
    # Terms 1 to 8 of DCT-II: term 0 is the mean, which says nothing about the picture.
    term = np.arange(1, _HASH_TERMS + 1)[:, None]
    position = np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * term * (2 * position + 1) / (2 * _HASH_SIDE)).astype(np.float32)


_DCT = _dct_rows()
