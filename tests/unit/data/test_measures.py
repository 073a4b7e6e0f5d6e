"""One image's numbers, compared with numbers worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.conftest import Draw
from visionloop.data.measures import MeasureBatch, Measurement, measure, thumbs_of
from visionloop.preprocess import PixelArray, encode_png

MEGAPIXEL = 1_000_000


def distance(a: Measurement, b: Measurement) -> int:
    return (a.perceptual_hash ^ b.perceptual_hash).bit_count()


def checkerboard(side: int = 20) -> PixelArray:
    return np.asarray((np.indices((side, side)).sum(axis=0) % 2) * 200, dtype=np.uint8)


def test_statistics_of_a_checkerboard() -> None:
    measured = measure(encode_png(checkerboard()), MEGAPIXEL)
    assert (measured.width_pixels, measured.height_pixels, measured.mode, measured.format) == (20, 20, "L", "PNG")
    assert (measured.brightness, measured.contrast) == (100, 100)
    # Each inner pixel has four neighbours of the other value: the Laplacian is 800 or -800, half each.
    assert measured.sharpness == 800**2
    assert measured.fault == ""


def test_size_is_that_of_the_upright_image() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(checkerboard()[:10]).save(buffer, "JPEG", exif=exif)
    measured = measure(buffer.getvalue(), MEGAPIXEL)
    assert (measured.width_pixels, measured.height_pixels) == (10, 20)


def test_an_image_of_one_pixel_has_no_sharpness() -> None:
    measured = measure(encode_png(np.full((1, 1), 7, np.uint8)), MEGAPIXEL)
    assert (measured.brightness, measured.contrast, measured.sharpness) == (7, 0, 0)


@pytest.mark.parametrize(
    ("change", "most_bits"),
    [
        (lambda image: image.resize((24, 24), Image.Resampling.LANCZOS), 4),
        (lambda image: image.resize((96, 96), Image.Resampling.BICUBIC), 4),
        (lambda image: image.point(lambda value: int(value * 0.8)), 4),
        (lambda image: image.point(lambda value: value // 2 + 60), 4),
    ],
)
def test_hash_hardly_moves_for_the_same_picture(draw: Draw, change: object, most_bits: int) -> None:
    data = draw(1)
    changed = change(Image.open(io.BytesIO(data)))  # type: ignore[operator]
    buffer = io.BytesIO()
    changed.save(buffer, "JPEG", quality=70)
    assert distance(measure(data, MEGAPIXEL), measure(buffer.getvalue(), MEGAPIXEL)) <= most_bits


def test_hashes_of_different_pictures_are_far_apart(draw: Draw) -> None:
    measured = [measure(draw(seed), MEGAPIXEL) for seed in range(30)]
    distances = [distance(a, b) for i, a in enumerate(measured) for b in measured[:i]]
    assert min(distances) > 12
    assert 28 < np.mean(distances) < 36  # half of 64 bits agree by chance


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
    assert measure(draw(0, kind="JPEG")[:-30], MEGAPIXEL).fault == "truncated"


def test_a_batch_keeps_its_numbers(draw: Draw) -> None:
    got = MeasureBatch(MEGAPIXEL)([(5, draw(0)), (2, b"")])
    assert [(number, item.fault) for number, item in got] == [(5, ""), (2, "empty")]


def test_thumbs_are_small_copies(draw: Draw) -> None:
    thumbs = thumbs_of([measure(encode_png(np.full((40, 30), value, np.uint8)), MEGAPIXEL) for value in (3, 250)])
    assert thumbs.shape == (2, 16, 16, 3)
    assert (thumbs[0] == 3).all()
    assert (thumbs[1] == 250).all()
