"""Plain JPEG files: the pixels are those of Pillow, and whatever is not plain is left to it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionloop.data.plain_jpeg import read_plain_jpeg
from visionloop.preprocess import load

MEGAPIXEL = 1_000_000


def drawn(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(coarse) // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0, "quality": 97},
    "4:2:2": {"subsampling": 1},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True, "quality": 60},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "comment": {"comment": b"a cat"},
    "stored as RGB": {"keep_rgb": True},
    "coarse": {"quality": 3},
}


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (20, 30), (255, 100), (256, 256), (601, 401), (97, 1030), (1100, 900)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    picture = drawn(*size)
    for image in (picture, picture.convert("L")):
        data = encoded(image, **({"quality": 3} if image.mode == "L" and kind == "coarse" else KINDS[kind]))
        found, expected = read_plain_jpeg(data, max_pixels=MEGAPIXEL, least_side=128), load(data, least_side=128)
        if kind == "stored as RGB" and image.mode == "RGB":  # has Adobe's header
            assert found is None
            continue
        assert found is not None
        assert (found.width_pixels, found.height_pixels, found.mode) == (*size, image.mode)
        pixels = np.asarray(found.image)
        assert np.array_equal(pixels[..., :3] if image.mode == "RGB" else pixels, np.asarray(expected.image))


PLAIN = encoded(drawn(300, 200))
TURNED = Image.Exif()
TURNED[0x0112] = 6


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        encoded(drawn(30, 20), exif=TURNED),
        encoded(drawn(30, 20), icc_profile=b"profile"),
        encoded(drawn(30, 20).convert("CMYK")),
        PLAIN[:2] + segment(0xE0, b"JFIF\0") + PLAIN[20:],
        PLAIN[:2] + segment(0xE0, b"other header of many bytes") + PLAIN[20:],
        PLAIN[:-2],
        PLAIN[:-300],
        PLAIN[:200],
        PLAIN[:-400] + bytes(200) + PLAIN[-200:],
        encoded(drawn(1001, 1000)),
        b"\x89PNG\r\n" + PLAIN,
    ],
    ids=[
        "nothing", "a beginning", "EXIF", "profile", "CMYK", "short JFIF", "no JFIF", "no end", "cut in the scan",
        "cut in the header", "zeros in the scan", "over the limit", "PNG",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_pillow(data: bytes) -> None:
    assert read_plain_jpeg(data, max_pixels=MEGAPIXEL, least_side=128) is None


def test_it_says_no_more_than_it_must_of_its_limit() -> None:
    assert read_plain_jpeg(PLAIN, max_pixels=60_000, least_side=128) is not None
    assert read_plain_jpeg(PLAIN, max_pixels=59_999, least_side=128) is None
