"""The operations are Pillow's where Pillow has them, and each policy draws from them as its paper says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from visionloop.data import automatic
from visionloop.data import operations as ops
from visionloop.data.augmentation import augment_batch
from visionloop.data.automatic import OPERATIONS, Ranges, apply_kinds
from visionloop.data.extremes import extremes
from visionloop.data.policy import AugmentPolicy

RANGES = Ranges(0.3, 0.25, 0, 30, 0.9, (8, 4))


def photos(count: int = 6, side: int = 24) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Soft shapes with few dark and bright pixels, so that contrast and histograms have something to do."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 200, (count, 6, 6, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def change(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], name: str, magnitude: float, sign: float = 1.0
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    count = len(images)
    words = apply_kinds(
        ops.to_words(torch.from_numpy(images)),
        np.full(count, OPERATIONS.index(name)),
        np.full(count, magnitude),
        np.full(count, sign),
        ranges=RANGES,
        padding="edge",
    )
    return np.asarray(ops.to_bytes(words).numpy())


PILLOW: dict[str, tuple[str, float, float, Callable[[Image.Image], Image.Image], int]] = {
    # name, magnitude, sign, Pillow's way, and by how many gray levels rounding may differ
    "brighter": ("brightness", 0.5, 1, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1),
    "darker": ("brightness", 1, -1, lambda image: ImageEnhance.Brightness(image).enhance(0.1), 1),
    "contrast": ("contrast", 1, 1, lambda image: ImageEnhance.Contrast(image).enhance(1.9), 2),
    "flat": ("contrast", 1, -1, lambda image: ImageEnhance.Contrast(image).enhance(0.1), 2),
    "colour": ("colour", 1, 1, lambda image: ImageEnhance.Color(image).enhance(1.9), 2),
    "gray": ("colour", 1, -1, lambda image: ImageEnhance.Color(image).enhance(0.1), 2),
    "sharp": ("sharpness", 1, 1, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 2),
    "smooth": ("sharpness", 1, -1, lambda image: ImageEnhance.Sharpness(image).enhance(0.1), 1),
    "posterize": ("posterize", 1, 1, lambda image: ImageOps.posterize(image, 4), 0),
    "solarize": ("solarize", 0.5, 1, lambda image: ImageOps.solarize(image, 128), 0),
    "autocontrast": ("autocontrast", 0, 1, ImageOps.autocontrast, 1),
    "equalize": ("equalize", 0, 1, ImageOps.equalize, 0),
}


@pytest.mark.parametrize("case", PILLOW.values(), ids=PILLOW)
def test_operations_on_values_are_those_of_pillow(
    case: tuple[str, float, float, Callable[[Image.Image], Image.Image], int],
) -> None:
    name, magnitude, sign, pillow, tolerance = case
    images = photos()
    expected = np.stack([np.asarray(pillow(Image.fromarray(image))) for image in images]).astype(int)
    changed = change(images, name, magnitude, sign).astype(int)
    assert np.abs(changed - expected).max() <= tolerance
    assert np.abs(expected - images).max() > 10  # the case does something


@pytest.mark.parametrize("name", ["equalize", "autocontrast"])
def test_an_image_of_one_colour_stays(name: str) -> None:
    images = np.full((2, 5, 5, 3), 77, dtype=np.uint8)
    assert np.array_equal(change(images, name, 1), images)


def test_translations_are_by_whole_pixels_and_shears_keep_the_centre() -> None:
    images = photos()
    assert np.array_equal(change(images, "translate_x", 1)[:, :, :-6], images[:, :, 6:])
    assert np.array_equal(change(images, "translate_y", 1, -1)[:, 6:], images[:, :-6])
    line = np.zeros((1, 21, 21, 3), dtype=np.uint8)
    line[:, :, 10] = 255
    place = change(line, "shear_x", 1)[0, ..., 0].argmax(axis=1) - 10
    assert place == pytest.approx(-0.3 * (np.arange(21) - 10), abs=0.51)
    assert np.array_equal(change(line, "shear_y", 1)[0, 10], line[0, 10])


@pytest.mark.parametrize("name", OPERATIONS)
def test_at_magnitude_zero_nothing_changes_but_by_what_has_none(name: str) -> None:
    images = photos()
    same = np.array_equal(change(images, name, 0), images)
    assert same is (name not in ("autocontrast", "equalize"))


def test_each_operation_is_drawn_equally_often() -> None:
    """Told by what it does to one image at full strength."""
    image = photos(1, 16)
    count = 2800
    many = torch.from_numpy(np.repeat(image, count, axis=0))
    policy = AugmentPolicy(automatic="randaugment", randaugment_operations=1, randaugment_magnitude=30)
    changed = augment_batch(many, policy, np.random.default_rng(0)).numpy()
    _, counts = np.unique(changed.reshape(count, -1), axis=0, return_counts=True)
    # Nine of the fourteen have two signs; a shift by the same share up and down never looks the same here.
    assert len(counts) == 5 + 2 * 9
    assert (counts > 60).all()
    assert sorted(counts)[-5:] == pytest.approx([200] * 5, abs=50)


def test_trivialaugment_draws_every_magnitude() -> None:
    gray = torch.full((2000, 4, 4, 3), 101, dtype=torch.uint8)
    brightness = (OPERATIONS.index("brightness") + 0.5) / len(OPERATIONS)
    policy = AugmentPolicy(automatic="trivialaugment")
    changed = augment_batch(gray, policy, np.random.default_rng(0), {"kind_0": brightness, "sign_0": 0.9})
    steps = {round(101 * (1 + 0.99 * step / 30)) for step in range(31)}
    assert set(torch.unique(changed).tolist()) == steps


def test_randaugment_takes_as_many_operations_as_it_says() -> None:
    gray = torch.full((1, 4, 4, 3), 20, dtype=torch.uint8)
    brightness = (OPERATIONS.index("brightness") + 0.5) / len(OPERATIONS)
    for operations in (1, 2, 3):
        policy = AugmentPolicy(automatic="randaugment", randaugment_operations=operations, randaugment_magnitude=30)
        pinned = dict.fromkeys(automatic.columns(policy), 0.9)
        pinned |= {name: brightness for name in pinned if name.startswith("kind")}
        changed = augment_batch(gray, policy, np.random.default_rng(0), pinned)
        assert int(changed[0, 0, 0, 0]) == pytest.approx(20 * 1.9**operations, abs=1.5)


def test_augmix_averages_chains_with_the_original() -> None:
    """Whatever is drawn, a pixel of a mix lies between the darkest and the brightest of what is mixed."""
    images = torch.from_numpy(photos(200, 16))
    policy = AugmentPolicy(automatic="augmix", augmix_severity=3)
    free = augment_batch(images, policy, np.random.default_rng(0)).int()
    none = augment_batch(images, policy, np.random.default_rng(0), {"mixed": 0})
    assert torch.equal(none, images)  # the original alone
    distance = (free - images.int()).abs().float().mean(dim=(1, 2, 3))
    assert 2 < distance.mean() < 40
    whole = augment_batch(images, policy, np.random.default_rng(0), {"mixed": 1 - 1e-9}).int()
    assert (whole - images.int()).abs().float().mean() > 1.5 * distance.mean()


def test_extremes_of_an_automatic_policy_are_its_operations_but_identity() -> None:
    found = extremes(AugmentPolicy(automatic="randaugment", randaugment_magnitude=30, rotation_degrees=10))
    assert [one.name for one in found][:2] == ["rotation_degrees", "randaugment_shear_x"]
    assert len(found) == 1 + 13
    assert [len(one.ends) for one in found] == [2, *[2] * 9, *[1] * 4]
    image = torch.full((1, 6, 6, 3), 100, dtype=torch.uint8)
    (low, high) = next(one for one in found if one.name == "randaugment_brightness").ends
    alone = AugmentPolicy(automatic="randaugment", randaugment_operations=1, randaugment_magnitude=30)
    values = [int(augment_batch(image, alone, np.random.default_rng(0), end)[0, 0, 0, 0]) for end in (low, high)]
    assert values == [10, 190]
