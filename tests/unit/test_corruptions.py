"""Corruptions follow CIFAR-10-C's parameters, at any size, and refuse what they do not know in a sentence."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from scipy import ndimage

from visionloop.corruptions import ALIASES, BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt, corrupt_all
from visionloop.corruptions.sampling import Border, mirror, nearest, reflect, sample, smear, zoom
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


def test_the_names_are_those_of_cifar_10_c() -> None:
    assert len(BENCHMARK) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


# An image of 8 x 8 may get none of spatter's drops, and zooms of a few per cent round to nothing on it.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in CORRUPTIONS
        for size in ((8, 8), (16, 16), (33, 57))
        if name not in ("spatter", "zoom_blur") or size != (8, 8)
    ],
)
def test_every_corruption_changes_an_image_of_any_size_and_keeps_its_shape(name: str, size: tuple[int, int]) -> None:
    image = _image(*size)
    for severity in SEVERITIES:
        changed = corrupt(image, name, severity, np.random.default_rng(0))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert _distance(changed, image) > 0.5, severity


COLOURS = {"saturate", "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "frost", "spatter"}


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - COLOURS))
def test_a_gray_digit_of_8_pixels_changes_and_stays_gray(name: str) -> None:
    changed = corrupt(_gray(), name, 3, np.random.default_rng(0))
    assert _distance(changed, _gray()) > 1
    assert int(np.ptp(changed.astype(int), axis=2).max()) <= 2  # JPEG rounds chroma


# How far pixels move does not rise with every severity of the published parameters: glass blur and spatter change two of
# them against each other, motion blur's fourth lengthens a trail that has ended, snow's third makes fewer, larger flakes,
# frost darkens more than it adds, elastic transform pulls less while its waves grow, saturate turns around at 3.
FALLING = {"glass_blur": 3, "motion_blur": 4, "snow": 3, "frost": 4, "elastic_transform": 2, "spatter": 4, "saturate": 3}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_moves_pixels_further(name: str) -> None:
    images = np.stack([_image(32, 32, seed) for seed in range(8)])
    moved = [_distance(corrupt_all(images, name, severity, np.random.default_rng(0)), images) for severity in SEVERITIES]
    if name in FALLING:
        turn = FALLING[name]
        assert moved[turn - 1] < moved[turn - 2] * 1.1, moved  # or it is no exception any more
    else:
        assert moved == sorted(moved) and moved[4] > 1.3 * moved[0], moved


def test_images_together_are_each_changed_as_alone_but_for_their_draws() -> None:
    images = np.stack([_image(seed=seed) for seed in range(40)])  # more than one block
    for name in ("gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate", "jpeg"):
        together = corrupt_all(images, name, 4, np.random.default_rng(0))
        alone = [corrupt(image, name, 4, np.random.default_rng(0)) for image in images]
        assert np.array_equal(together, alone), name
    twins = np.stack([images[0], images[0]])
    for name in ("glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter", "shot_noise"):
        first, second = corrupt_all(twins, name, 3, np.random.default_rng(0))
        assert not np.array_equal(first, second), name


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


def test_glass_blur_is_what_the_published_loop_does() -> None:
    """The loop of CIFAR-10-C, whose swap of NumPy views copies; with the same draws, in its order."""
    image = _image(9, 12)
    up, left = np.random.default_rng(4).integers(0, 2, (2, 1, 7, 10))
    expected = ndimage.gaussian_filter(image / 255.0, (0.4, 0.4, 0), mode="nearest")
    for row in range(8, 1, -1):
        for column in range(11, 1, -1):
            other = row - up[0, row - 2, column - 2], column - left[0, row - 2, column - 2]
            expected[row, column], expected[other] = expected[other], expected[row, column]
    expected = ndimage.gaussian_filter(expected, (0.4, 0.4, 0), mode="nearest")
    assert np.array_equal(corrupt(image, "glass_blur", 3, np.random.default_rng(4)), np.rint(expected * 255))


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.25, 1.75, 2.25])
def test_zoom_is_scipys_cut_to_size(factor: float) -> None:
    image = np.random.default_rng(0).random((32, 32, 3))
    part = math.ceil(32 / factor)
    start = (32 - part) // 2
    large = ndimage.zoom(image[start : start + part, start : start + part], (factor, factor, 1), order=1)
    trim = (len(large) - 32) // 2
    np.testing.assert_allclose(zoom(image[None], factor)[0], large[trim : trim + 32, trim : trim + 32], atol=1e-12)


def test_a_trail_is_a_sum_of_scipys_shifts() -> None:
    image, angle = np.random.default_rng(0).random((12, 15, 3)), 0.6
    weights = np.exp(-((np.arange(7) / 1.5) ** 2) / 2)
    shifted = [ndimage.shift(image, (step * math.sin(angle), step * math.cos(angle), 0), order=1, mode="nearest")
               for step in range(7)]  # fmt: skip
    expected = sum(weight * one for weight, one in zip(weights / weights.sum(), shifted, strict=True))
    np.testing.assert_allclose(smear(image[None], 3, 1.5, np.array([angle]))[0], expected, atol=2e-4)


@pytest.mark.parametrize(("border", "mode"), [(nearest, "nearest"), (mirror, "mirror"), (reflect, "reflect")])
def test_places_between_and_beyond_the_pixels_are_scipys(
    border: Border, mode: Literal["nearest", "mirror", "reflect"]
) -> None:
    rng = np.random.default_rng(0)
    image, rows, columns = rng.random((9, 11, 3)), rng.uniform(-7, 15, (6, 5)), rng.uniform(-7, 17, (6, 5))
    expected = [ndimage.map_coordinates(image[..., channel], [rows, columns], order=1, mode=mode) for channel in range(3)]
    got = sample(image[None], rows[None], columns[None], border)[0]
    np.testing.assert_allclose(got, np.stack(expected, axis=2), atol=1e-12)


def test_elastic_transform_takes_the_pulled_points_back() -> None:
    """At severity 1 it is affine: on a ramp, the value at a pulled point is the one that its corner has."""
    side = 32
    ramp = np.repeat(np.repeat(np.arange(side, dtype=np.uint8)[None, :, None] * 7, side, axis=0), 3, axis=2)
    got = corrupt(ramp, "elastic_transform", 1, np.random.default_rng(2))[6:26, 6:26, 0] / 7.0  # away from the borders
    rows, columns = np.mgrid[6:26, 6:26]
    plane, *_ = np.linalg.lstsq(np.stack([columns.ravel(), rows.ravel(), np.ones(400)], axis=1), got.ravel(), rcond=None)
    corners = np.array([[26, 26], [26, 6], [6, 6]])  # the middle, 16, and a third of the side, 10, to each side of it
    pulled = corners + np.random.default_rng(2).uniform(-0.08 * side, 0.08 * side, (1, 3, 2))[0]
    np.testing.assert_allclose(np.concatenate([pulled, np.ones((3, 1))], axis=1) @ plane, corners[:, 0], atol=0.05)


def test_speckle_grows_with_the_value() -> None:
    for level in (50, 150):
        flat = np.full((128, 128, 3), level, dtype=np.uint8)
        changed = corrupt(flat, "speckle_noise", 2, np.random.default_rng(0))
        assert changed.std() == pytest.approx(0.1 * level, rel=0.03)


def test_zoom_blur_is_a_mean_that_keeps_the_middle_and_flat_images() -> None:
    flat = np.full((32, 32, 3), 90, dtype=np.uint8)
    assert np.array_equal(corrupt(flat, "zoom_blur", 5, np.random.default_rng(0)), flat)
    point = np.zeros((33, 33, 3), dtype=np.uint8)
    point[16, 16] = 255
    changed = corrupt(point, "zoom_blur", 1, np.random.default_rng(0))[..., 0]
    assert changed.argmax() == 16 * 33 + 16


def test_water_and_mud_have_their_colours() -> None:
    black = np.zeros((32, 32, 3), dtype=np.uint8)
    wet = corrupt(black, "spatter", 3, np.random.default_rng(0)).reshape(-1, 3).astype(int)
    # The brightest drop is half of (175, 238, 238).
    assert wet[wet[:, 1].argmax()].tolist() == [88, 119, 119]
    assert np.allclose(wet[:, 0], wet[:, 1] * 175 / 238, atol=1)
    muddy = corrupt(np.full((32, 32, 3), 200, dtype=np.uint8), "spatter", 5, np.random.default_rng(0)).reshape(-1, 3)
    darkest = muddy[muddy[:, 0].argmin()].astype(int)
    assert np.abs(darkest - [63, 42, 20]).max() <= 10  # at least 0.8 of the cover is mud; here nearly all of it
    assert (muddy == 200).all(axis=1).mean() > 0.5


def test_frost_adds_bluish_ice_and_dims_the_image() -> None:
    black, gray = np.zeros((64, 64, 3), dtype=np.uint8), np.full((64, 64, 3), 100, dtype=np.uint8)
    ice = corrupt(black, "frost", 5, np.random.default_rng(0)).astype(int)
    assert np.allclose(ice[..., 0], ice[..., 2] * 0.86, atol=1)
    assert 0.35 * 0.45 * 255 - 1 < ice[..., 2].min() < ice[..., 2].max() <= 0.45 * 255 + 1
    assert np.allclose(corrupt(gray, "frost", 5, np.random.default_rng(0)) - ice, 75, atol=1)


def test_snow_is_white_paler_and_falls_both_ways() -> None:
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    changed = corrupt(black, "snow", 4, np.random.default_rng(0))
    assert int(np.ptp(changed.astype(int), axis=2).max()) == 0
    # 1 - 0.85 of the pale scene, which is 0.5 where it was black, is everywhere; flakes come on top.
    assert changed.min() == round(0.15 * 0.5 * 255)
    flakes = changed.astype(int)[..., 0] - changed.min()
    assert np.array_equal(flakes, flakes[::-1, ::-1])
    assert 0 < (flakes > 20).mean() < 0.7


def test_another_shape_or_type_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
        corrupt(_image()[..., 0], "fog", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="sides of 8 or more"):
        corrupt(_image(7, 9), "fog", 1, np.random.default_rng(0))
