"""Drawn images in every mode and fault: equal to a known RGB array, or refused with a known reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from visionloop.errors import ImageError
from visionloop.preprocess import PixelArray, PreprocessSpec, decode, encode_png, preprocess

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
PICTURE = Image.fromarray(RGB)
SMOOTH = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> PixelArray:
    return np.asarray(decode(data).image)


def three(gray: PixelArray) -> PixelArray:
    return np.repeat(gray[..., None], 3, axis=2)


def over_white(color: PixelArray, alpha: PixelArray) -> Any:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


@pytest.mark.parametrize(
    ("data", "file_format", "mode"),
    [
        (encoded(PICTURE, "PNG"), "PNG", "RGB"),
        (encoded(PICTURE, "BMP"), "BMP", "RGB"),
        (encoded(PICTURE, "WEBP", lossless=True), "WEBP", "RGB"),
        (encoded(PICTURE.quantize(256), "PNG"), "PNG", "P"),
        (encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (8, 6))]), "WEBP", "RGB"),
        (encoded(PICTURE, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 6))]), "PNG", "RGB"),
        (encoded(PICTURE, "PNG") + b"PK\x03\x04 and what follows", "PNG", "RGB"),
    ],
    ids=["PNG", "BMP", "lossless WebP", "palette", "animated WebP: first frame", "animated PNG: first frame", "polyglot"],
)
def test_pixels_are_kept_to_the_bit(data: bytes, file_format: str, mode: str) -> None:
    found = decode(data)
    np.testing.assert_array_equal(np.asarray(found.image), RGB)
    assert (found.format, found.mode, found.width_pixels, found.height_pixels) == (file_format, mode, 8, 6)


@pytest.mark.parametrize(
    ("data", "expected", "mode"),
    [
        (encoded(Image.fromarray(GRAY), "PNG"), three(GRAY), "L"),
        (encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"), three(GRAY), "I;16"),
        (encoded(Image.fromarray(GRAY > 127), "PNG"), three((GRAY > 127).astype(np.uint8) * 255), "1"),
    ],
    ids=["8-bit gray", "16-bit gray", "1 bit"],
)
def test_gray_becomes_three_equal_channels(data: bytes, expected: PixelArray, mode: str) -> None:
    np.testing.assert_array_equal(pixels(data), expected)
    assert decode(data).mode == mode


def test_16_bit_gray_is_rounded_not_cut() -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    found = pixels(encoded(Image.fromarray(values), "PNG"))[0, :, 0]
    assert found.tolist() == [round(value / 257) for value in values[0].tolist()]


def test_alpha_is_laid_over_white() -> None:
    rgba = np.dstack([RGB, RGB[::-1, :, 1]])
    # Pillow composes in 8-bit arithmetic: one gray level of rounding.
    np.testing.assert_allclose(pixels(encoded(Image.fromarray(rgba), "PNG")), over_white(RGB, rgba[..., 3]), atol=1)
    la = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(rgba[..., 3])])
    np.testing.assert_allclose(pixels(encoded(la, "PNG")), over_white(three(GRAY), rgba[..., 3]), atol=1)


def test_a_transparent_palette_colour_is_white() -> None:
    palette = PICTURE.quantize(48)
    index = palette.getpixel((2, 3))
    found = pixels(encoded(palette, "PNG", transparency=index))
    expected = np.array(palette.convert("RGB"))
    expected[np.asarray(palette) == index] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_near_the_picture_in_every_colour_space(mode: str) -> None:
    found = decode(encoded(SMOOTH.convert(mode), "JPEG", quality=95, subsampling=0))
    expected = np.asarray(SMOOTH.convert(mode).convert("RGB"), dtype=int)
    assert (found.format, found.mode) == ("JPEG", mode)
    assert np.abs(np.asarray(found.image, dtype=int) - expected).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)),
        (7, np.rot90(RGB, -1)[:, ::-1][::-1, ::-1]),
        (8, np.rot90(RGB)),
        (99, RGB),
        (0, RGB),
    ],
)
def test_exif_orientation_is_applied_and_nonsense_is_ignored(orientation: int, upright: PixelArray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(PICTURE, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(found.image), upright)
    assert (found.height_pixels, found.width_pixels) == upright.shape[:2]


def test_a_broken_exif_block_does_not_matter() -> None:
    assert pixels(encoded(PICTURE, "JPEG", exif=b"Exif\0\0garbage")).shape == (6, 8, 3)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, content: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b"")


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def with_text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 5_000_000, zip=True)
    return encoded(PICTURE, "PNG", pnginfo=info)


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8))
JPEG, PNG, WEBP, BMP = (encoded(NOISE, name) for name in ("JPEG", "PNG", "WEBP", "BMP"))


@pytest.mark.parametrize(
    ("data", "reason", "sentence"),
    [
        (b"", "empty", "The image has no bytes; send the content of a JPEG, PNG, WebP or BMP file."),
        (b"\xff", "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (b"\x00" * 1000, "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (b"a cat, in words", "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (b"<!DOCTYPE html><p>404", "unsupported_format", "The bytes are HTML; send JPEG, PNG, WebP or BMP."),
        (b"\n <HTML>", "unsupported_format", "The bytes are HTML; send JPEG, PNG, WebP or BMP."),
        (encoded(PICTURE, "GIF"), "unsupported_format", "The bytes are GIF; send JPEG, PNG, WebP or BMP."),
        (encoded(PICTURE, "TIFF"), "unsupported_format", "The bytes are TIFF; send JPEG, PNG, WebP or BMP."),
        (encoded(PICTURE, "ICO"), "unsupported_format", "The bytes are ICO; send JPEG, PNG, WebP or BMP."),
        (encoded(PICTURE, "PDF"), "unsupported_format", "The bytes are PDF; send JPEG, PNG, WebP or BMP."),
        (b"%!PS-Adobe-3.0 EPSF", "unsupported_format", "The bytes are EPS; send JPEG, PNG, WebP or BMP."),
        (b"<svg onload='x()'/>", "unsupported_format", "The bytes are SVG; send JPEG, PNG, WebP or BMP."),
        (b"\0\0\0\x18ftypheic", "unsupported_format", "The bytes are HEIC; send JPEG, PNG, WebP or BMP."),
        (b"\0\0\0\x1cftypavif", "unsupported_format", "The bytes are AVIF; send JPEG, PNG, WebP or BMP."),
        (JPEG[: len(JPEG) // 2], "truncated", "The image is damaged (image file is truncated"),
        (PNG[: len(PNG) // 2], "truncated", "The image is damaged (Truncated File Read); export or download it again."),
        (PNG[:-12], "truncated", "The image is damaged (truncated PNG file)"),
        (BMP[: len(BMP) // 2], "truncated", "The image is damaged (image file is truncated"),
        (WEBP[: len(WEBP) // 2], "truncated", "The image is damaged (the WebP file is cut short)"),
        (JPEG[:20], "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (PNG[:30], "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (flipped(PNG, len(PNG) // 2), "unreadable", "The image is damaged (broken PNG file"),
        (png(8, 6), "truncated", "The image is damaged (image file is truncated"),
        (png(0, 6), "unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image."),
        (png(12_000, 12_000), "too_large", "The image has 12000 x 12000 pixels, more than the limit of 50 megapixels;"),
        (png(60_000, 60_000), "too_large", "The image says that it has over 178 megapixels, which is never decoded;"),
        (png(2**31 - 1, 2**31 - 1), "too_large", "The image says that it has over 178 megapixels"),
        (BMP[:18] + struct.pack("<ii", 10**5, 10**5) + BMP[26:], "too_large", "The image says that it has over 178"),
        (with_text_bomb(), "unreadable", "The image header cannot be read (Decompressed data too large"),
    ],
    ids=[
        "nothing", "one byte", "zeros", "text", "HTML", "HTML in capitals", "GIF", "TIFF", "ICO", "PDF", "EPS", "SVG",
        "HEIC", "AVIF", "half a JPEG", "half a PNG", "PNG without its end", "half a BMP", "half a WebP", "JPEG header",
        "PNG header", "PNG with a wrong CRC", "PNG without pixels", "PNG 0 x 6", "bomb of 144 megapixels",
        "bomb of 3,600 megapixels", "sides of 2^31 - 1", "BMP bomb", "text bomb",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_reason(data: bytes, reason: str, sentence: str) -> None:
    with pytest.raises(ImageError) as error:
        decode(data)
    assert error.value.reason == reason
    assert str(error.value).startswith(sentence)


def test_the_pixel_limit_is_the_callers() -> None:
    assert decode(PNG, max_pixels=8100).width_pixels == 90
    with pytest.raises(ImageError, match=r"The image has 90 x 90 pixels, more than the limit of 0\.008 megapixels") as error:
        decode(PNG, max_pixels=8000)
    assert error.value.reason == "too_large"


def test_what_the_file_is_called_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(PICTURE, "PNG"))
    assert decode(path.read_bytes()).format == "PNG"


# A wide image: left half black, right half white, 4 high and 8 wide.
WIDE = encode_png(three(np.repeat(np.array([[0, 255]], np.uint8), 4, axis=0).repeat(4, axis=1)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (PreprocessSpec(2, 2, "stretch", "box"), [[0, 255], [0, 255]]),
        (PreprocessSpec(4, 4, "crop", "nearest"), [[0, 0, 255, 255]] * 4),
        (PreprocessSpec(8, 8, "letterbox", "nearest"), [[114] * 8] * 2 + [[0] * 4 + [255] * 4] * 4 + [[114] * 8] * 2),
        (PreprocessSpec(4, 8, "stretch", "lanczos"), [[0] * 4 + [255] * 4] * 4),
        (PreprocessSpec(1, 1, "stretch", "box"), [[128]]),
    ],
)
def test_fit_and_filter_do_what_they_say(spec: PreprocessSpec, expected: list[list[int]]) -> None:
    found = preprocess(WIDE, spec)
    assert (found.dtype.name, found.shape) == ("uint8", (spec.height, spec.width, 3))
    np.testing.assert_array_equal(found, three(np.array(expected, np.uint8)))


def test_a_large_image_is_averaged_and_not_sampled() -> None:
    """One white column in ten, made ten times narrower: a tenth of white everywhere, where sampling gives stripes."""
    stripes = np.zeros((40, 400), np.uint8)
    stripes[:, ::10] = 255
    found = preprocess(encode_png(stripes), PreprocessSpec(4, 40, "stretch", "bilinear"))
    assert set(found[:, 1:-1].ravel().tolist()) == {26}  # at the two borders the filter has one side only


def test_the_version_names_every_part_of_the_spec() -> None:
    specs = [
        PreprocessSpec(16, 16),
        PreprocessSpec(16, 17),
        PreprocessSpec(17, 16),
        PreprocessSpec(16, 16, "crop"),
        PreprocessSpec(16, 16, "stretch", "box"),
    ]
    assert len({spec.version for spec in specs}) == len(specs)
    assert PreprocessSpec(16, 16).version == PreprocessSpec(16, 16).version
    # Logged with each prediction: a change of the rules must change it, and nothing else may.
    assert PreprocessSpec(16, 16).version == "5deeb8d68375"


def test_png_of_an_array_is_the_array_again_and_always_the_same_bytes() -> None:
    assert encode_png(RGB) == encode_png(RGB.copy())
    np.testing.assert_array_equal(pixels(encode_png(RGB)), RGB)
    np.testing.assert_array_equal(pixels(encode_png(GRAY)), three(GRAY))
