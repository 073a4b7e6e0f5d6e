"""Bytes that are no image, damaged ones and odd ones, against the one preprocessing: what is answered, what refused and why.

Every case of an image file in docs/bad-inputs.md (section A) that bytes alone can show, and images at the end of what a
model may meet: one colour, noise, one pixel. A case passes if it ends as expected; any error but `ImageError` is a crash.

Does not cover: names, links, folders and duplicates, which are met where images are collected.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, PngImagePlugin

from visionloop.errors import ImageError
from visionloop.preprocess import PixelArray, PreprocessSpec, preprocess

ANSWERED = "answered"
_SIDE = 48
_BOMB_BYTES = 50_000_000  # of text in a PNG of 50 kB


@dataclass(frozen=True)
class Case:
    """Bytes and how they should end: `ANSWERED`, or the reason of the refusal."""

    kind: str
    make: Callable[[], bytes]
    expected: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    kind: str
    outcome: Literal["answered", "refused", "crashed"]
    reason: str  # of a refusal; of a crash the error's name
    detail: str  # the sentence, or the answer
    passed: bool


def run(spec: PreprocessSpec, answer: Callable[[PixelArray], str], cases: Iterable[Case] | None = None) -> list[Outcome]:
    """Give every case to `preprocess`, and what it makes of it, uint8 [height, width, 3], to `answer`, which says a class.

    `cases` are those of `all_cases` unless named.
    """
    return [_outcome(case, spec, answer) for case in (all_cases() if cases is None else cases)]


def _outcome(case: Case, spec: PreprocessSpec, answer: Callable[[PixelArray], str]) -> Outcome:
    data = case.make()
    try:
        said = answer(preprocess(data, spec))
    except ImageError as error:
        return Outcome(case.kind, "refused", error.reason, str(error), error.reason == case.expected)
    except Exception as error:  # noqa: BLE001 - whatever else comes is what this table is for
        return Outcome(case.kind, "crashed", type(error).__name__, str(error).split("\n")[0][:200], False)
    return Outcome(case.kind, "answered", "", said, case.expected == ANSWERED)


def all_cases() -> tuple[Case, ...]:
    """The cases in the order of docs/bad-inputs.md, then the images at the end of what a model may meet."""
    rgb = _picture(0)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8))

    def png(image: Image.Image, **options: Any) -> Callable[[], bytes]:
        return lambda: _encoded(image, "PNG", **options)

    def file(image: Image.Image, kind: str, **options: Any) -> Callable[[], bytes]:
        return lambda: _encoded(image, kind, **options)

    def flat(level: int) -> Image.Image:
        return Image.new("RGB", (_SIDE, _SIDE), (level, level, level))

    checks = (np.indices((_SIDE, _SIDE)).sum(0) % 2 * 255).astype(np.uint8)
    refused = (
        ("no bytes", lambda: b"", "empty"),
        ("one byte", lambda: b"\xff", "unreadable"),
        ("text", lambda: b"a cat, in words", "unreadable"),
        ("HTML error page", lambda: b"<!DOCTYPE html><p>404", "unsupported_format"),
        ("JPEG cut in half", lambda: _half(_encoded(noise, "JPEG")), "truncated"),
        ("JPEG without its last 2 bytes", lambda: _encoded(rgb, "JPEG")[:-2], "truncated"),
        ("JPEG header alone", lambda: _encoded(rgb, "JPEG")[:20], "unreadable"),
        ("PNG with flipped bytes inside", lambda: _flipped(_encoded(noise, "PNG"), 3000), "unreadable"),
        ("PNG with a bad CRC", lambda: _flipped(_encoded(rgb, "PNG"), -6), "unreadable"),
        ("PNG with empty IDAT", lambda: _bare_png(8, 8), "truncated"),
        ("PNG of 0 x 0", lambda: _bare_png(0, 0), "unreadable"),
        ("PNG that says 100,000 x 100,000", lambda: _bare_png(100_000, 100_000), "too_large"),
        ("PNG with sides of 2^31 - 1", lambda: _bare_png(2**31 - 1, 2**31 - 1), "too_large"),
        ("PNG of 144 megapixels", lambda: _bare_png(12_000, 12_000), "too_large"),
        ("PNG with a text of 50 MB (zTXt)", _text_bomb, "unreadable"),
        ("GIF", file(rgb, "GIF"), "unsupported_format"),
        ("TIFF", file(rgb, "TIFF"), "unsupported_format"),
        ("SVG with a script", lambda: b"<svg onload='alert(1)'><script/></svg>", "unsupported_format"),
        ("EPS", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format"),
        ("ICO", file(rgb, "ICO"), "unsupported_format"),
        ("HEIC", lambda: b"\0\0\0\x18ftypheic" + bytes(40), "unsupported_format"),
        ("WebP cut in half", lambda: _half(_encoded(noise, "WEBP")), "truncated"),
    )
    answered = (
        ("animated WebP, its first frame", file(rgb, "WEBP", save_all=True, append_images=[_picture(2)])),
        ("1 x 1 pixel", png(rgb.resize((1, 1)))),
        ("10,000 x 1 pixels", png(rgb.resize((10_000, 1)))),
        ("1 x 10,000 pixels", png(rgb.resize((1, 10_000)))),
        ("palette", png(rgb.quantize(64))),
        ("RGBA", png(rgb.convert("RGBA"))),
        ("wholly transparent", png(Image.new("RGBA", (_SIDE, _SIDE)))),
        ("gray with alpha (LA)", png(rgb.convert("LA"))),
        ("gray of 16 bits", png(Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257))),
        ("1 bit", png(rgb.convert("1"))),
        ("CMYK JPEG", file(rgb.convert("CMYK"), "JPEG")),
        ("gray JPEG", file(rgb.convert("L"), "JPEG")),
        ("EXIF orientation 6", lambda: _turned(rgb, 6)),
        ("EXIF orientation 99", lambda: _turned(rgb, 99)),
        ("JPEG with a ZIP behind it", lambda: _encoded(rgb, "JPEG") + b"PK\x03\x04and a ZIP"),
        ("all black", png(flat(0))),
        ("all white", png(flat(255))),
        ("all gray", png(flat(128))),
        ("noise", png(noise)),
        ("checks of one pixel", png(Image.fromarray(checks))),
        ("pure red", png(Image.new("RGB", (_SIDE, _SIDE), (255, 0, 0)))),
    )
    return (
        *(Case(kind, make, expected) for kind, make, expected in refused),
        *(Case(kind, make, ANSWERED) for kind, make in answered),
    )


def _picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG: its length, name, content and CRC."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _bare_png(width: int, height: int) -> bytes:
    """A PNG whose header says a size and which holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    )


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place:][1:]


def _text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * _BOMB_BYTES, zip=True)
    return _encoded(_picture(3), "PNG", pnginfo=info)


def _turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(image.crop((0, 0, _SIDE, 32)), "JPEG", exif=exif)
