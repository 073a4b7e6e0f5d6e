"""Plain JPEG files, decoded at a part of their size to the pixels that `preprocess.load` gives, in less than its time.

Plain is a baseline or progressive file, gray or of three colours, whose header says nothing beyond its tables, JFIF and
comments, and that decodes without a warning. Everything else is left to `preprocess.load`, so what is said of EXIF, of other
colour spaces and of damage is said in one place.

Pillow and simplejpeg both decode with libjpeg-turbo; Pillow's way around it costs a third of the whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import simplejpeg
from PIL import Image

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_JFIF = 0xE0
_SCAN = 0xDA
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # Huffman, quantization, restart interval, comment
_FRAME = struct.Struct(">BHHB")  # bits, height, width, components
_SCALES = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """A decoded file."""

    image: Image.Image  # mode "L" or "RGBX", whose fourth channel means nothing
    mode: str  # "L" or "RGB", as the file stores it
    width_pixels: int  # as stored; `image` may be smaller
    height_pixels: int


def read_plain_jpeg(data: bytes, *, max_pixels: int, least_side: int) -> PlainJpeg | None:
    """Decode a plain JPEG at a whole, a half, a quarter or an eighth of its size; see `preprocess.load` for `least_side`.

    None where the file is not plain, is damaged or has over `max_pixels`.
    """
    frame = _frame(data)
    if frame is None:
        return None
    bits, height, width, components = frame
    if bits != 8 or components not in (1, 3) or not 0 < width * height <= max_pixels:
        return None
    # As Pillow's `draft` does for this size.
    factor = max(1, max(width, height) // least_side)
    most = min(width // max(1, width // factor), height // max(1, height // factor))
    scale = next(scale for scale in _SCALES if scale <= most)
    size = -(-width // scale), -(-height // scale)
    mode = "L" if components == 1 else "RGBX"
    least = size if scale > 1 else (0, 0)  # a size to keep could be met by a scale of 7/8 for images under 8 pixels
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "GRAY" if components == 1 else mode, min_width=least[0], min_height=least[1], min_factor=scale
        )
    except ValueError:  # also for what libjpeg only warns of
        return None
    if pixels.shape[1::-1] != size:
        return None
    # Shares the memory of `pixels`: both modes lie in Pillow's images as they do in the array.
    return PlainJpeg(Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1), mode[:3], width, height)


def _frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Bits, height, width and number of components; None where a header is not plain."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame = None
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _FRAMES and frame is None and length >= 8 and place + 12 <= len(data):
            frame = _FRAME.unpack_from(data, place + 4)
        elif marker == _JFIF:
            if length < 16 or data[place + 4 : place + 9] != b"JFIF\0":  # Pillow refuses shorter ones
                return None
        elif marker == _SCAN:
            return frame
        elif marker not in _TABLES:
            return None
        place += 2 + length
    return None
