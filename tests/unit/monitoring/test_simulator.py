"""Simulated traffic: unchanged bytes for no shift, repeatable, no image twice while others are left."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from monitoring.simulator import simulate
from tests.drift_world import world
from visionloop.errors import ConfigError, MonitoringError
from visionloop.preprocess import PreprocessSpec, decode, encode_png, preprocess

IMAGES = [encode_png(pixels) for pixels in world().images[:30]]
LABELS = world().labels[:30]


def test_no_shift_sends_the_bytes_as_they_are_each_once_before_any_twice() -> None:
    for shift in (None, "none"):
        sent = list(simulate(IMAGES, shift, 1, 70, seed=0))
        assert len(sent) == 70
        assert sorted(sent[:30]) == sorted(sent[30:60]) == sorted(IMAGES)
        assert sent[:30] != sent[30:60]


def test_a_corruption_changes_pixels_and_keeps_size_and_format() -> None:
    sent = list(simulate(IMAGES, "blur", 3, 30, seed=0))
    assert not set(sent) & set(IMAGES)
    decoded = decode(sent[0])
    assert (decoded.format, decoded.width_pixels, decoded.height_pixels) == ("PNG", 32, 32)


def test_a_photo_is_corrupted_at_the_models_input_where_its_blur_can_be_seen() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = encode_png(pixels.repeat(40, 0).repeat(40, 1))  # 480 x 640: blocks of 40 pixels, which a blur of one leaves
    spec = PreprocessSpec(height=24, width=24, fit="crop")
    clean = preprocess(photo, spec).astype(int)
    large, small = (next(simulate([photo], "blur", 3, 1, seed=0, spec=given)) for given in (None, spec))
    assert (decode(large).width_pixels, decode(small).width_pixels) == (640, 24)
    assert np.abs(preprocess(large, spec) - clean).mean() < 2
    assert np.abs(preprocess(small, spec) - clean).mean() > 10
    # The model sees the very pixels that were corrupted, and an image that is no larger than its input stays as it is.
    assert np.array_equal(preprocess(small, spec), np.array(decode(small).image))
    assert list(simulate(IMAGES, "blur", 3, 5, seed=0, spec=PreprocessSpec(32, 32))) == list(
        simulate(IMAGES, "blur", 3, 5, seed=0)
    )
    assert list(simulate([photo], "none", 3, 1, seed=0, spec=spec)) == [photo]


def test_the_same_seed_sends_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (list(simulate(IMAGES, "noise", 3, 10, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_prior_gives_one_class_its_share() -> None:
    label_of = dict(zip(IMAGES, LABELS, strict=True))
    counts = Counter(label_of[data] for data in simulate(IMAGES, "prior", 4, 1000, seed=0, labels=LABELS))
    assert counts.most_common(1)[0][1] / 1000 == pytest.approx(0.5, abs=0.06)


def test_bad_requests_are_refused_at_once_in_sentences() -> None:
    with pytest.raises(ConfigError, match="no shift 'blurr'; did you mean blur"):
        simulate(IMAGES, "blurr", 3, 10, seed=0)
    with pytest.raises(ConfigError, match="severity is 9"):
        simulate(IMAGES, "blur", 9, 10, seed=0)
    with pytest.raises(MonitoringError, match="no images to send"):
        simulate([], "blur", 3, 10, seed=0)
    with pytest.raises(MonitoringError, match="needs one label per image; there are 0 for 30 images"):
        simulate(IMAGES, "prior", 3, 10, seed=0)
    with pytest.raises(MonitoringError, match="at least two classes"):
        simulate(IMAGES[:3], "prior", 3, 10, seed=0, labels=["a", "a", "a"])


def test_nothing_to_send() -> None:
    assert list(simulate(IMAGES, "blur", 3, 0, seed=0)) == []
    assert list(simulate(IMAGES, "prior", 3, 0, seed=0, labels=LABELS)) == []


def test_digits_of_8_pixels_really_change() -> None:
    small = [encode_png(np.kron(np.eye(4, dtype=np.uint8) * 200, np.ones((2, 2), dtype=np.uint8)))]
    pixels = np.array(decode(next(simulate(small, "blur", 3, 1, seed=0))).image)
    assert np.abs(pixels.astype(int) - np.array(decode(small[0]).image)).mean() > 10
