"""What recognises an image: a perceptual hash, that of its mirror image, and a small copy of its pixels.

Runs in the processes of the pool, so it imports little. Does not cover: comparing fingerprints, which `duplicates` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionloop.data.thumbs import THUMB_SIDE
from visionloop.preprocess import PixelArray

_TERMS = 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How an image is recognised."""

    hash: int  # 64 bits; see `perceptual_hashes`
    mirrored_hash: int  # the hash that the image would have, flipped left to right
    thumb: bytes  # uint8 RGB, THUMB_SIDE x THUMB_SIDE


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image of any size."""
    thumb = small_pixels(image)
    plain, mirrored = perceptual_hashes(np.frombuffer(thumb, dtype=np.uint8).reshape(1, THUMB_SIDE, THUMB_SIDE, 3))
    return Fingerprint(int(plain[0]), int(mirrored[0]), thumb)


def small_pixels(image: Image.Image) -> bytes:
    """An image of any size, in mode "RGB", "RGBX" or "L", at THUMB_SIDE x THUMB_SIDE pixels: uint8 RGB."""
    if image.size != (THUMB_SIDE, THUMB_SIDE):
        image = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR)
    return (image.convert("RGB") if image.mode == "L" else image).tobytes("raw", "RGB")


def perceptual_hashes(thumbs: PixelArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The 64 signs of the lowest cosine terms of RGB thumbs [N, 32, 32, 3] in gray, and those of their mirror images.

    A sign is taken around the median of the terms: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual
    Image Hash Functions" (2010). Scaling, re-encoding and a change of brightness move a few bits. Mirroring an image turns
    the sign of its odd horizontal terms.
    """
    # As Pillow makes gray of RGB, in one go for all.
    red, green, blue = (thumbs[..., channel].astype(np.uint32) for channel in range(3))
    gray = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    terms = _DCT @ gray.astype(np.float32) @ _DCT.T
    return _bits(terms), _bits(terms * _MIRROR)


def _bits(terms: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    flat = terms.reshape(len(terms), -1)
    ordered = np.sort(flat, axis=1)
    middle = flat.shape[1] // 2
    median = (ordered[:, middle - 1] + ordered[:, middle]) / 2  # np.median takes ten times as long for so few
    return np.packbits(flat > median[:, None], axis=1).view(">u8")[:, 0].astype(np.uint64)


def _dct_rows() -> npt.NDArray[np.float32]:
    # Terms 1 to 8 of DCT-II: term 0 is the mean, which says nothing about the picture.
    term = np.arange(1, _TERMS + 1)[:, None]
    position = np.arange(THUMB_SIDE)[None, :]
    return np.cos(np.pi * term * (2 * position + 1) / (2 * THUMB_SIDE)).astype(np.float32)


_DCT = _dct_rows()
_MIRROR: npt.NDArray[np.float32] = np.array([-1, 1] * (_TERMS // 2), dtype=np.float32)
