"""What recognises an image: a perceptual hash, that of its mirror image, and a small copy of its pixels.

Runs in the processes of the pool, so it imports little. Does not cover: comparing fingerprints, which `duplicates` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionloop.data.thumbs import THUMB_SIDE

_TERMS = 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How an image is recognised."""

    hash: int  # 64 bits; see `perceptual_hashes`
    mirrored_hash: int  # the hash that the image would have, flipped left to right
    thumb: bytes  # uint8 RGB, THUMB_SIDE x THUMB_SIDE


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image of any size."""
    thumb = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR)
    plain, mirrored = perceptual_hashes(np.asarray(thumb.convert("L"), dtype=np.float32))
    return Fingerprint(plain, mirrored, thumb.tobytes())


def perceptual_hashes(gray: npt.NDArray[np.float32]) -> tuple[int, int]:
    """The 64 signs of the lowest cosine terms of a 32 x 32 gray image around their median, and those of its mirror image.

    The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). Scaling, re-encoding
    and a change of brightness move a few bits. Mirroring an image turns the sign of its odd horizontal terms.
    """
    terms = np.asarray(_DCT @ gray @ _DCT.T, dtype=np.float32)
    return _bits(terms), _bits(np.asarray(terms * _MIRROR, dtype=np.float32))


def _bits(terms: npt.NDArray[np.float32]) -> int:
    flat = terms.ravel()
    ordered = np.sort(flat)
    median = (ordered[len(flat) // 2 - 1] + ordered[len(flat) // 2]) / 2  # np.median takes ten times as long for so few
    return int.from_bytes(np.packbits(flat > median).tobytes(), "big")


def _dct_rows() -> npt.NDArray[np.float32]:
    # Terms 1 to 8 of DCT-II: term 0 is the mean, which says nothing about the picture.
    term = np.arange(1, _TERMS + 1)[:, None]
    position = np.arange(THUMB_SIDE)[None, :]
    return np.cos(np.pi * term * (2 * position + 1) / (2 * THUMB_SIDE)).astype(np.float32)


_DCT = _dct_rows()
_MIRROR: npt.NDArray[np.float32] = np.array([-1, 1] * (_TERMS // 2), dtype=np.float32)
