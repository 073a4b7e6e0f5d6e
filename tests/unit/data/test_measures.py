"""One image's numbers, compared with numbers worked out by hand; its faults, compared with those that serving sees."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.unit.data.conftest import Draw, draw_picture
from visionloop.data.measures import MeasureBatch, Measures, measure
from visionloop.data.thumbs import Thumbs
from visionloop.errors import ImageError
from visionloop.preprocess import PixelArray, decode, encode_png

MEGAPIXEL = 1_000_000


def checkerboard(side: int = 20) -> PixelArray:
    return np.asarray((np.indices((side, side)).sum(axis=0) % 2) * 200, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 400, height: int = 300, seed: int = 0) -> Image.Image:
    """Detail at every scale, as in natural pictures."""
    rng = np.random.default_rng(seed)
    total: npt.NDArray[np.float64] = np.zeros((height, width))
    for cells in (4, 8, 16, 32, 64, 128, 256):
        coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * 60 / cells**0.5
    return Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8)).convert("RGB")


def test_statistics_of_a_checkerboard() -> None:
    measured = measure(encode_png(checkerboard()), MEGAPIXEL)
    assert (measured.width_pixels, measured.height_pixels, measured.mode, measured.format) == (20, 20, "L", "PNG")
    assert (measured.brightness, measured.contrast, measured.entropy) == (100, 100, 1)
    assert (measured.darkest, measured.brightest, measured.colourfulness) == (0, 200, 0)
    # Each inner pixel has four neighbours of the other value: the Laplacian is 800 or -800, half each; every step is 200.
    assert measured.sharpness == 800**2
    assert measured.steepness == pytest.approx(np.log(800**2 / 200**2), abs=1e-4)
    assert measured.fault == ""


def test_colourfulness_is_that_of_the_paper() -> None:
    """Half red, half blue: R-G is 255 or 0, (R+G)/2-B is 127.5 or -255."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :, 0] = 255
    pixels[16:, :, 2] = 255
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, -63.75)
    assert measure(encode_png(pixels), MEGAPIXEL).colourfulness == pytest.approx(expected)


def test_size_is_that_of_the_upright_image_however_small_it_was_decoded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = measure(encoded(Image.fromarray(checkerboard()[:10]), "JPEG", exif=exif), MEGAPIXEL)
    large = measure(encoded(photo(601, 401), "JPEG", exif=exif), MEGAPIXEL)
    assert (small.width_pixels, small.height_pixels, small.exif_orientation) == (10, 20, 6)
    assert (large.width_pixels, large.height_pixels, large.exif_orientation) == (401, 601, 6)


def test_an_orientation_that_does_not_exist_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    measured = measure(encoded(photo(60, 40), "JPEG", exif=exif), MEGAPIXEL)
    assert (measured.width_pixels, measured.exif_orientation) == (60, 1)
    assert measure(encoded(photo(60, 40), "JPEG", exif=b"Exif\0\0garbage"), MEGAPIXEL).exif_orientation == 1


GRAY16 = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)


@pytest.mark.parametrize(
    ("data", "bit_depth", "alpha", "animated"),
    [
        (encoded(photo(30, 20), "PNG"), 8, False, False),
        (encoded(photo(30, 20).convert("1"), "PNG"), 1, False, False),
        (encoded(photo(30, 20).quantize(4), "PNG"), 8, False, False),
        (encoded(GRAY16, "PNG"), 16, False, False),
        (encoded(photo(30, 20).convert("RGBA"), "PNG"), 8, False, False),
        (encoded(Image.new("RGBA", (30, 20), (9, 9, 9, 254)), "PNG"), 8, True, False),
        (encoded(Image.new("LA", (30, 20), (9, 0)), "PNG"), 8, True, False),
        (encoded(photo(30, 20), "WEBP", save_all=True, append_images=[photo(30, 20, 1)]), 8, False, True),
        (encoded(photo(30, 20), "PNG", save_all=True, append_images=[photo(30, 20, 1)]), 8, False, True),
        (encoded(photo(30, 20), "BMP"), 8, False, False),
        (encoded(photo(30, 20).convert("CMYK"), "JPEG"), 8, False, False),
    ],
    ids=["RGB", "1 bit", "palette", "16 bit", "opaque RGBA", "RGBA", "LA", "moving WebP", "moving PNG", "BMP", "CMYK"],
)
def test_what_the_file_says_of_itself(data: bytes, bit_depth: int, alpha: bool, animated: bool) -> None:
    measured = measure(data, MEGAPIXEL)
    assert (measured.bit_depth, measured.alpha, measured.animated) == (bit_depth, alpha, animated)
    assert (measured.width_pixels, measured.height_pixels, measured.fault) == (30, 20, "")


def test_an_image_of_one_pixel_has_no_sharpness() -> None:
    measured = measure(encode_png(np.full((1, 1), 7, np.uint8)), MEGAPIXEL)
    assert (measured.brightness, measured.contrast, measured.sharpness, measured.entropy) == (7, 0, 0, 0)


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000)])
def test_a_line_is_measured(size: tuple[int, int]) -> None:
    measured = measure(encoded(Image.new("L", size, 90), "JPEG"), MEGAPIXEL)
    assert (measured.width_pixels, measured.height_pixels, measured.brightness, measured.fault) == (*size, 90, "")


@pytest.mark.parametrize("side", [256, 512, 1000])
def test_a_jpeg_decoded_small_measures_as_its_png_does(side: int) -> None:
    """JPEG scales while it decodes, PNG afterwards: the same numbers within what JPEG itself loses."""
    picture = photo(side, side * 3 // 4)
    jpeg = measure(encoded(picture, "JPEG", quality=95), MEGAPIXEL)
    png = measure(encoded(picture, "PNG"), MEGAPIXEL)
    assert jpeg.brightness == pytest.approx(png.brightness, abs=0.5)
    assert jpeg.contrast == pytest.approx(png.contrast, rel=0.05)
    assert jpeg.entropy == pytest.approx(png.entropy, abs=0.1)
    assert jpeg.steepness == pytest.approx(png.steepness, abs=0.25)
    assert (jpeg.hash ^ png.hash).bit_count() <= 2


def test_steepness_falls_with_blur_and_not_with_contrast() -> None:
    picture = photo(200, 200)
    sharp = measure(encoded(picture, "PNG"), MEGAPIXEL).steepness
    pale = measure(encoded(picture.point(lambda value: value // 3 + 80), "PNG"), MEGAPIXEL).steepness
    soft = measure(encoded(picture.filter(ImageFilter.GaussianBlur(3)), "PNG"), MEGAPIXEL).steepness
    assert abs(sharp - pale) < 0.1
    assert soft < sharp - 2


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"", "empty"), (b"GIF89a", "unsupported_format"), (b"x", "unreadable"), (b"<html>", "unsupported_format")],
)
def test_a_fault_is_a_result(data: bytes, fault: str) -> None:
    measured = measure(data, MEGAPIXEL)
    assert measured.fault == fault
    assert measured.fault_detail
    assert (measured.width_pixels, measured.thumb) == (0, b"")


def test_too_many_pixels_and_cut_off(draw: Draw) -> None:
    assert measure(draw(0, side=40), 1599).fault == "too_large"
    assert measure(draw(0, side=40), 1600).fault == ""
    assert measure(draw(0, side=300, kind="JPEG"), 89_999).fault == "too_large"
    for missing in (2, 30, 400):
        assert measure(draw(0, side=300, kind="JPEG")[:-missing], MEGAPIXEL).fault == "truncated"


def fault_of(data: bytes) -> tuple[str, str]:
    """What `decode`, which serving uses, says of the bytes."""
    try:
        decode(data, max_pixels=MEGAPIXEL)
    except ImageError as error:
        return error.reason, str(error)
    return "", ""


WHOLE = {
    "baseline": encoded(photo(300, 260), "JPEG", quality=80),
    "progressive": encoded(photo(300, 260), "JPEG", quality=80, progressive=True),
    "restarts": encoded(photo(300, 260), "JPEG", quality=80, restart_marker_rows=2),
    "gray": encoded(photo(270, 300).convert("L"), "JPEG"),
    "CMYK": encoded(photo(270, 300).convert("CMYK"), "JPEG"),
    "tiny": draw_picture(1, side=20, kind="JPEG"),
    "PNG": encoded(photo(150, 140), "PNG"),
    "WebP": encoded(photo(150, 140), "WEBP"),
    "BMP": encoded(photo(20, 14), "BMP"),
}


@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
    st.one_of(st.none(), st.floats(0, 1), st.integers(-40, -1)),
)
def test_a_damaged_file_has_the_fault_that_serving_sees(
    name: str, flips: list[tuple[float, int]], end: float | int | None
) -> None:
    """JPEG is decoded at a part of its size here and whole there; neither may see a fault that the other does not."""
    data = bytearray(WHOLE[name])
    for place, change in flips:
        data[min(int(place * len(data)), len(data) - 1)] ^= change
    cut = bytes(data[: int(end * len(data)) if isinstance(end, float) else end])
    measured = measure(cut, MEGAPIXEL)
    assert (measured.fault, measured.fault_detail) == fault_of(cut)


@pytest.mark.parametrize("name", ["baseline", "progressive", "restarts", "gray", "CMYK"])
def test_every_short_cut_of_a_jpeg_is_found(name: str) -> None:
    whole = WHOLE[name]
    for end in [*range(len(whole) - 24, len(whole)), *range(0, len(whole), len(whole) // 40)]:
        found = measure(whole[:end], MEGAPIXEL)
        assert found.fault == fault_of(whole[:end])[0]
        # Of a CMYK file without its end marker every pixel is there, and Pillow says nothing.
        assert found.fault != "" or end >= len(whole) - 2


def test_a_polyglot_is_the_picture_that_it_begins_with() -> None:
    clean, appended = (measure(WHOLE["baseline"] + tail, MEGAPIXEL) for tail in (b"", b"PK\x03\x04 and a page"))
    assert clean == appended


def test_a_text_bomb_is_refused() -> None:
    text = b"comment\0\0" + zlib.compress(bytes(5_000_000))
    chunk = len(text).to_bytes(4, "big") + b"zTXt" + text + zlib.crc32(b"zTXt" + text).to_bytes(4, "big")
    png = WHOLE["PNG"]
    assert measure(png[:33] + chunk + png[33:], MEGAPIXEL).fault == "unreadable"


def test_a_batch_becomes_columns_and_small_copies(draw: Draw, tmp_path: Path) -> None:
    colours = [np.full((40, 30, 3), value, np.uint8) for value in (3, 250)]
    batch = MeasureBatch(MEGAPIXEL)([(2, encode_png(colours[0])), (1, b""), (0, encode_png(colours[1]))])
    measures = Measures.empty(4)
    with Thumbs(4, tmp_path) as thumbs:
        measures.put(batch, thumbs)
        small = thumbs.read(np.arange(4))
    assert measures.brightness.tolist() == [250, 0, 3, 0]
    assert measures.mode.tolist() == ["RGB", "", "RGB", ""]
    assert measures.faults == {1: fault_of(b"")}
    assert [int(image.max()) for image in small] == [250, 0, 3, 0]
    assert len(measures) == 4


def test_an_image_measures_the_same_alone_and_among_others() -> None:
    """Images of one size are measured together, in strips of memory that run over the ends of rows."""
    sizes = [(40, 30), (256, 256), (30, 40), (256, 256), (3, 3), (40, 30), (2, 9), (200, 129), (256, 256)]
    files = [encoded(photo(width, height + 64).crop((0, 0, width, height)), "PNG") for width, height in sizes]
    batch = MeasureBatch(MEGAPIXEL)(list(enumerate(files)))
    for place, data in enumerate(files):
        alone = measure(data, MEGAPIXEL)
        assert batch.thumbs[place] == alone.thumb
        for name, column in batch.columns.items():
            assert column[place] == getattr(alone, name), (name, sizes[place])


def test_sharpness_is_the_variance_of_the_laplacian_up_to_the_largest() -> None:
    pixels = np.random.default_rng(0).choice([0, 255], (127, 90)).astype(np.uint8)
    wide = pixels.astype(np.int64)
    laplacian = wide[1:-1, 2:] + wide[1:-1, :-2] + wide[2:, 1:-1] + wide[:-2, 1:-1] - 4 * wide[1:-1, 1:-1]
    assert measure(encode_png(pixels), MEGAPIXEL).sharpness == np.float32(laplacian.var())


def test_a_million_images_take_a_hundred_megabytes() -> None:
    one = Measures.empty(1)
    columns = [value for value in vars(one).values() if isinstance(value, np.ndarray)]
    assert sum(column.itemsize for column in columns) <= 110
