"""The fingerprint of an image, of its mirror image, and of its copies."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.unit.data.conftest import draw_picture
from visionloop.data.fingerprints import fingerprint


def drawn(seed: int, side: int = 64) -> Image.Image:
    return Image.open(io.BytesIO(draw_picture(seed, side=side))).convert("RGB")


@pytest.mark.parametrize("side", [1, 16, 32, 100])
def test_the_thumb_has_32_pixels_whatever_the_size(side: int) -> None:
    assert len(fingerprint(drawn(0, side)).thumb) == 32 * 32 * 3


def test_an_image_of_32_pixels_is_its_own_thumb() -> None:
    image = drawn(0, 32)
    assert fingerprint(image).thumb == image.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_the_mirrored_hash_is_that_of_the_mirror_image(seed: int) -> None:
    image = drawn(seed)
    plain, mirrored = fingerprint(image), fingerprint(ImageOps.mirror(image))
    assert (plain.mirrored_hash ^ mirrored.hash).bit_count() <= 2  # rounding of the thumb
    assert (plain.hash ^ mirrored.hash).bit_count() > 10


def test_a_halved_image_moves_few_bits_and_another_image_many() -> None:
    hashes = [fingerprint(drawn(seed)).hash for seed in range(20)]
    halved = [fingerprint(drawn(seed).resize((32, 32))).hash for seed in range(20)]
    assert np.mean([(a ^ b).bit_count() for a, b in zip(hashes, halved, strict=True)]) < 3
    assert np.mean([(a ^ b).bit_count() for a, b in pairwise(hashes)]) == pytest.approx(32, abs=4)
