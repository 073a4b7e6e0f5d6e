"""Corruptions follow CIFAR-10-C's parameters, at any size, and refuse what they do not know in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from visionloop.corruptions import ALIASES, CORRUPTIONS, SEVERITIES, corrupt
from visionloop.errors import ConfigError
from visionloop.preprocess import PixelArray


def _image(height: int = 32, width: int = 32, seed: int = 0) -> PixelArray:
    """A colourful image with soft edges, far from black and white, so that clipping does not matter."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (1, 1, 0), mode="wrap")
    return np.asarray(np.clip(120 + 30 * noise / noise.std(), 30, 210), dtype=np.uint8)


def _gray(side: int = 8) -> PixelArray:
    return np.repeat(_image(side, side)[:, :, :1], 3, axis=2)


def _distance(changed: PixelArray, image: PixelArray) -> float:
    return float(np.abs(changed.astype(int) - image).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (33, 57)])
def test_every_corruption_changes_an_image_of_any_size_and_keeps_its_shape(name: str, size: tuple[int, int]) -> None:
    image = _image(*size)
    for severity in SEVERITIES:
        changed = corrupt(image, name, severity, np.random.default_rng(0))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert _distance(changed, image) > 0.5, severity


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"saturate", "gaussian_noise", "shot_noise", "impulse_noise"}))
def test_a_gray_digit_of_8_pixels_changes_and_stays_gray(name: str) -> None:
    changed = corrupt(_gray(), name, 3, np.random.default_rng(0))
    assert _distance(changed, _gray()) > 1
    assert int(np.ptp(changed.astype(int), axis=2).max()) <= 2  # JPEG rounds chroma


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"saturate"}))  # saturate 1 and 2 fade, 3 to 5 do the opposite
def test_severity_5_changes_more_than_severity_1(name: str) -> None:
    image = _image(64, 64)
    low, high = (_distance(corrupt(image, name, severity, np.random.default_rng(0)), image) for severity in (1, 5))
    assert high > low


def test_same_generator_state_gives_the_same_pixels() -> None:
    for name in CORRUPTIONS:
        first, second = (corrupt(_image(), name, 3, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(first, second), name


def test_gaussian_noise_has_the_stated_deviation() -> None:
    flat = np.full((128, 128, 3), 128, dtype=np.uint8)
    for severity, sigma in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        changed = corrupt(flat, "gaussian_noise", severity, np.random.default_rng(0))
        assert changed.std() / 255 == pytest.approx(sigma, rel=0.02)


def test_impulse_noise_has_the_stated_share_half_black_half_white() -> None:
    changed = corrupt(np.full((128, 128, 3), 128, dtype=np.uint8), "impulse_noise", 5, np.random.default_rng(0))
    assert (changed == 0).mean() == pytest.approx(0.035, abs=0.003)
    assert (changed == 255).mean() == pytest.approx(0.035, abs=0.003)


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation() -> None:
    image = np.full((8, 8, 3), (100, 50, 25), dtype=np.uint8)
    # V = 100/255 + 0.15 = 0.5422 -> 138; the ratios 4 : 2 : 1 stay.
    assert corrupt(image, "brightness", 3, np.random.default_rng(0))[0, 0].tolist() == [138, 69, 35]
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    assert corrupt(black, "brightness", 3, np.random.default_rng(0))[0, 0].tolist() == [38, 38, 38]


def test_saturate_follows_hsv() -> None:
    image = np.full((8, 8, 3), (200, 150, 100), dtype=np.uint8)  # V = 200/255, S = 0.5
    # S becomes 0.5 x 0.3 = 0.15: the weakest channel is 200 x 0.85, the middle one half way.
    assert corrupt(image, "saturate", 1, np.random.default_rng(0))[0, 0].tolist() == [200, 185, 170]


def test_contrast_moves_pixels_towards_the_mean() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:4] = 200
    changed = corrupt(image, "contrast", 2, np.random.default_rng(0))  # factor 0.5 around 100
    assert sorted(np.unique(changed).tolist()) == [50, 150]


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
def test_blur_spreads_a_point_and_keeps_its_light(name: str) -> None:
    image = np.zeros((17, 17, 3), dtype=np.uint8)
    image[8, 8] = 255
    changed = corrupt(image, name, 5, np.random.default_rng(0)).astype(int)
    assert changed[8, 8, 0] < 100
    assert changed[..., 0].sum() == pytest.approx(255, abs=20)  # each of some 20 pixels is rounded
    assert changed[8, 7, 0] == changed[8, 9, 0] == changed[7, 8, 0]


def test_motion_blur_leaves_a_trail_on_one_side() -> None:
    image = np.zeros((33, 33, 3), dtype=np.uint8)
    image[16, 16] = 255
    changed = corrupt(image, "motion_blur", 5, np.random.default_rng(0)).astype(int)[..., 0]
    assert changed[:, :15].sum() == 0
    assert changed[:, 17:].sum() > 100


def test_blur_is_an_alias_and_an_unknown_name_is_answered_with_near_ones() -> None:
    image = _image()
    assert ALIASES["blur"] == "gaussian_blur"
    blurred = corrupt(image, "blur", 3, np.random.default_rng(0))
    assert np.array_equal(blurred, corrupt(image, "gaussian_blur", 3, np.random.default_rng(0)))
    with pytest.raises(ConfigError, match="no shift 'brigthness'; did you mean brightness"):
        corrupt(image, "brigthness", 3, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="known are gaussian_noise, shot_noise"):
        corrupt(image, "zzz", 3, np.random.default_rng(0))


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_severity_outside_1_to_5_is_refused(severity: int) -> None:
    with pytest.raises(ConfigError, match=f"severity is {severity}; it must be 1"):
        corrupt(_image(), "fog", severity, np.random.default_rng(0))


def test_another_shape_or_type_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
        corrupt(_image()[..., 0], "fog", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="sides of 8 or more"):
        corrupt(_image(7, 9), "fog", 1, np.random.default_rng(0))
