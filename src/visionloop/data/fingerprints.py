"""What recognises an image: a perceptual hash, that of its mirror image, and a small copy of its pixels.

Runs in the processes of the pool, so it imports little. Does not cover: comparing fingerprints, which `duplicates` does.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    thumb = small_copy(image)
    plain, mirrored = perceptual_hashes([thumb])
    return Fingerprint(int(plain[0]), int(mirrored[0]), thumb.tobytes())


def small_copy(image: Image.Image) -> Image.Image:
    """An image of any size at THUMB_SIDE x THUMB_SIDE pixels."""
    return image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR)


def perceptual_hashes(thumbs: Sequence[Image.Image]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The 64 signs of the lowest cosine terms of gray RGB thumbs around their median, and those of their mirror images.

    The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). Scaling, re-encoding
    and a change of brightness move a few bits. Mirroring an image turns the sign of its odd horizontal terms.
    """
    gray = np.frombuffer(b"".join(thumb.convert("L").tobytes() for thumb in thumbs), dtype=np.uint8)
    terms = _DCT @ gray.reshape(-1, THUMB_SIDE, THUMB_SIDE).astype(np.float32) @ _DCT.T
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
