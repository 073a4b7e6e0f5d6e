"""visionloop.evaluation.odd_images: every kind is what it says, and what is refused is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from visionloop.errors import ImageError
from visionloop.evaluation import odd_images
from visionloop.preprocess import PreprocessSpec, decode, preprocess

SPEC = PreprocessSpec(16, 24)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((60, 40))
FILES = {file.kind: file.data for file in odd_images.answered(PICTURE, SPEC)}


def opened(kind: str) -> Image.Image:
    return Image.open(io.BytesIO(FILES[kind]))


def test_every_kind_is_there_once_and_is_answered() -> None:
    assert len(FILES) == len(list(odd_images.answered(PICTURE, SPEC))) == 60
    assert all(preprocess(data, SPEC).shape == (16, 24, 3) for data in FILES.values())
    assert {file.kind: file.data for file in odd_images.answered(PICTURE, SPEC)} == FILES  # the same bytes again


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_is_the_same_picture_upright(orientation: int) -> None:
    kind = f"JPEG, EXIF orientation {orientation}"
    assert opened(kind).getexif()[odd_images.ORIENTATION] == orientation
    assert opened(kind).size == ((40, 60) if orientation > 4 else (60, 40))
    found = np.asarray(decode(FILES[kind]).image, dtype=int)
    assert found.shape == (40, 60, 3)
    assert np.abs(found - np.asarray(PICTURE, dtype=int)).mean() < 12  # a JPEG of quality 90, whichever way it lies


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG, CMYK", "CMYK"), ("JPEG, gray", "L"), ("PNG, palette", "P"), ("PNG, alpha", "RGBA"), ("PNG, 1 bit", "1"),
        ("PNG, gray with alpha", "LA"), ("PNG, 16-bit gray", "I;16"), ("WebP, alpha", "RGBA"), ("BMP, palette", "P"),
    ],
)  # fmt: skip
def test_modes_are_stored(kind: str, mode: str) -> None:
    assert opened(kind).mode == mode


def test_settings_of_the_encoder_are_in_the_file() -> None:
    assert {opened(f"JPEG {name}, quality 75").layer[0][1:3] for name in ("4:4:4", "4:2:2", "4:2:0")} == {  # type: ignore[attr-defined]
        (1, 1), (2, 1), (2, 2),
    }  # fmt: skip
    assert opened("JPEG, progressive").info["progressive"] == 1
    assert len(FILES["JPEG 4:2:0, quality 60"]) < len(FILES["JPEG 4:4:4, quality 95"])
    assert b"\xff\xdd" in FILES["JPEG, restart markers"]  # the marker DRI


def test_sixteen_bits_a_channel_are_read_as_eight() -> None:
    assert FILES["PNG, 16-bit RGB"][24] == 16  # bit depth in the header
    np.testing.assert_array_equal(np.asarray(decode(FILES["PNG, 16-bit RGB"]).image), np.asarray(PICTURE))


def test_sizes_are_those_of_the_names() -> None:
    sizes = {
        kind: opened(f"PNG, {kind}").size for kind in ("1 pixel wide", "1 x 1", "40 times as wide as high", "odd sides")
    }
    assert list(sizes.values()) == [(1, 40), (1, 1), (400, 10), (37, 53)]
    assert opened("JPEG, three times the input").size == (72, 48)


def test_what_is_refused_has_a_reason() -> None:
    reasons = {}
    for file in odd_images.refused(PICTURE):
        with pytest.raises(ImageError) as error:
            decode(file.data)
        reasons[file.kind] = error.value.reason
    assert reasons == {
        "TIFF": "unsupported_format", "GIF": "unsupported_format", "JPEG without its end": "truncated",
        "PNG without its end": "truncated", "a web page": "unsupported_format", "no bytes": "empty",
    }  # fmt: skip
