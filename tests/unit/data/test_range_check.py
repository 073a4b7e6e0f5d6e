"""What leaves the range of the data is named, and what stays in it is not."""

from __future__ import annotations

import numpy as np
import pytest

from visionloop.data.policy import AugmentPolicy
from visionloop.data.range_check import check_range, statistics
from visionloop.errors import DataError
from visionloop.features import image_features


def images(count: int = 600) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Coloured noise whose brightness differs from image to image by up to a fifth."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 20, (count, 12, 12, 3)) + rng.uniform(100, 140, (count, 1, 1, 1))
    return np.clip(noise, 0, 255).astype(np.uint8)


def test_flips_stay_within_and_a_strong_change_does_not() -> None:
    flips = check_range(images(), AugmentPolicy(horizontal_flip=True, vertical_flip=True), 0)
    assert flips.policy.share == pytest.approx(flips.originals.share, abs=0.02)
    assert flips.originals.share < 0.05
    assert flips.sentences() == []
    strong = check_range(images(), AugmentPolicy(horizontal_flip=True, brightness=0.6), 0)
    # Factors of 0.4 to 1.6 on means of 100 to 140: in about three quarters the mean leaves 100..140.
    assert 0.6 < strong.policy.share <= 1
    assert strong.operations["brightness"].share == 1  # at its strongest no image stays
    assert strong.sentences() == [
        "brightness alone, at its strongest, takes 100% of the images out of the originals' range, most often by "
        + strong.operations["brightness"].worst()
        + "."
    ]


def test_blur_is_found_by_sharpness_and_gray_by_saturation() -> None:
    blur = check_range(images(), AugmentPolicy(blur_pixels=1.5), 0).operations["blur_pixels"]
    assert (blur.share, blur.below["sharpness"]) == (1, 1)
    gray = check_range(images(), AugmentPolicy(saturation=0.9), 0).operations["saturation"]
    assert gray.below["saturation"] == pytest.approx(0.5, abs=0.02)  # one of the two ends
    assert gray.above["saturation"] == pytest.approx(0.5, abs=0.02)


def test_a_share_above_the_limit_is_refused_and_what_does_most_is_named() -> None:
    check = check_range(images(), AugmentPolicy(horizontal_flip=True, brightness=0.6, hue=0.02), 0)
    check.require(check.policy.share)
    with pytest.raises(DataError, match=r"augment\.max_out_of_range is 0\.3; weaken .*alone, brightness \(100%\), "):
        check.require(0.3)


def test_mixes_have_figures_too_and_metrics_are_flat_numbers() -> None:
    check = check_range(images(), AugmentPolicy(mixup=1.0, cutmix=1.0), 0)
    metrics = check.metrics()
    operations = metrics.pop("operations_out_of_range")
    assert isinstance(operations, dict)
    assert list(operations) == ["mixup", "cutmix"]
    assert operations["mixup"] > 0.3  # a mean of two noises has less contrast than any original
    assert operations["cutmix"] < 0.25
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["out_of_range"] == check.policy.share


def test_the_same_seed_gives_the_same_shares_and_data_of_one_colour_is_no_fault() -> None:
    policy = AugmentPolicy(contrast=0.3)
    assert check_range(images(), policy, 1).metrics() == check_range(images(), policy, 1).metrics()
    flat = np.full((5, 8, 8, 3), 90, dtype=np.uint8)
    assert check_range(flat, AugmentPolicy(rotation_degrees=30), 0).policy.share == 0


def test_statistics_are_those_that_monitoring_watches() -> None:
    some = images(3)
    features = image_features(some[1])
    assert statistics(some)[1].tolist() == [features.brightness, features.contrast, features.sharpness, features.saturation]
