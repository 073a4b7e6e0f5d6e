"""One picture in every file that people send: encoders' settings, orientations, colour modes, sizes, formats.

What two decoders may read differently is here, and what is refused, so that the served model can be compared with the
offline one on more than the files that a data set happens to hold. Does not cover: damaged files (`malformed`).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from visionloop.evaluation.malformed import png_chunk
from visionloop.preprocess import PixelArray, PreprocessSpec

ORIENTATION = 0x0112  # the EXIF tag
_T = Image.Transpose
# What turns an upright picture into the pixels that a file with this orientation stores.
_STORED = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_90,
           7: _T.TRANSVERSE, 8: _T.ROTATE_270}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OddFile:
    """Encoded bytes and what is odd about them."""

    kind: str
    data: bytes


def answered(picture: Image.Image, spec: PreprocessSpec) -> Iterator[OddFile]:
    """The files of an upright RGB picture that are answered, each kind once; the same picture gives the same bytes."""
    width, height = picture.size
    gray, alpha = picture.convert("L"), _slope(picture.size)
    yield from _jpegs(picture)
    for orientation in range(1, 9):
        stored = picture.transpose(_STORED[orientation]) if orientation in _STORED else picture
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield OddFile(f"JPEG, EXIF orientation {orientation}", _encoded(stored, "JPEG", quality=90, exif=exif))
    yield OddFile("PNG", _encoded(picture, "PNG"))
    yield OddFile("PNG, palette", _encoded(picture.quantize(64), "PNG"))
    yield OddFile("PNG, palette with a transparent colour", _encoded(picture.quantize(16), "PNG", transparency=0))
    yield OddFile("PNG, alpha", _encoded(_with_alpha(picture, alpha), "PNG"))
    yield OddFile("PNG, gray", _encoded(gray, "PNG"))
    yield OddFile("PNG, gray with alpha", _encoded(Image.merge("LA", [gray, alpha]), "PNG"))
    yield OddFile("PNG, 1 bit", _encoded(gray.convert("1"), "PNG"))
    wide = np.asarray(gray).astype(np.uint16) * 257 + np.arange(width, dtype=np.uint16) % 257
    yield OddFile("PNG, 16-bit gray", _encoded(Image.fromarray(wide.clip(0, 65_535).astype(np.uint16)), "PNG"))
    yield OddFile("PNG, 16-bit RGB", png_16_bit(np.asarray(picture).astype(np.uint16) * 257))
    yield OddFile("WebP, lossy", _encoded(picture, "WEBP", quality=80))
    yield OddFile("WebP, lossless", _encoded(picture, "WEBP", lossless=True))
    yield OddFile("WebP, alpha", _encoded(_with_alpha(picture, alpha), "WEBP", lossless=True))
    yield OddFile("BMP", _encoded(picture, "BMP"))
    yield OddFile("BMP, palette", _encoded(picture.quantize(64), "BMP"))
    sizes = {
        "1 pixel wide": (1, height), "1 pixel high": (width, 1), "1 x 1": (1, 1), "40 times as wide as high": (400, 10),
        "40 times as high as wide": (10, 400), "three times the input": (3 * spec.width, 3 * spec.height),
        "half the input": (max(1, spec.width // 2), max(1, spec.height // 2)),
        "the input's own size": (spec.width, spec.height), "a pixel larger": (spec.width + 1, spec.height + 1),
        "odd sides": (37, 53),
    }  # fmt: skip
    for kind, size in sizes.items():
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        yield OddFile(f"PNG, {kind}", _encoded(resized, "PNG"))
        yield OddFile(f"JPEG, {kind}", _encoded(resized, "JPEG", quality=90))


def refused(picture: Image.Image) -> Iterator[OddFile]:
    """Files that a client may take for an image and that are refused, offline and served."""
    jpeg = _encoded(picture, "JPEG")
    yield OddFile("TIFF", _encoded(picture, "TIFF"))
    yield OddFile("GIF", _encoded(picture, "GIF"))
    yield OddFile("JPEG without its end", jpeg[:-10])
    yield OddFile("PNG without its end", _encoded(picture, "PNG")[:-20])
    yield OddFile("a web page", b"<!DOCTYPE html><title>404</title>")
    yield OddFile("no bytes", b"")


def png_16_bit(pixels: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    """Uint16 [H, W, 3] as a PNG of 16 bits a channel, which Pillow reads and cannot write (w3.org/TR/png, 11.2)."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def _jpegs(picture: Image.Image) -> Iterator[OddFile]:
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for quality in (60, 75, 85, 95):
            data = _encoded(picture, "JPEG", quality=quality, subsampling=subsampling)
            yield OddFile(f"JPEG {subsampling}, quality {quality}", data)
    yield OddFile("JPEG, progressive", _encoded(picture, "JPEG", quality=85, progressive=True))
    yield OddFile("JPEG, progressive 4:4:4", _encoded(picture, "JPEG", quality=90, progressive=True, subsampling="4:4:4"))
    yield OddFile("JPEG, optimised", _encoded(picture, "JPEG", quality=80, optimize=True))
    yield OddFile("JPEG, restart markers", _encoded(picture, "JPEG", quality=85, restart_marker_blocks=1))
    yield OddFile("JPEG, gray", _encoded(picture.convert("L"), "JPEG", quality=85))
    yield OddFile("JPEG, CMYK", _encoded(picture.convert("CMYK"), "JPEG", quality=85))


def _encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _with_alpha(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    found = picture.convert("RGBA")
    found.putalpha(alpha)
    return found


def _slope(size: tuple[int, int]) -> Image.Image:
    """Alpha from transparent at the left to opaque at the right, uint8."""
    width, height = size
    line: PixelArray = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(line, (height, width)).copy())
