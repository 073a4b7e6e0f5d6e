"""Features of small pictures: the same for the same seed, blind to mirroring, alike for alike pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visionloop.data import embedding
from visionloop.data.embedding import embed
from visionloop.data.thumbs import Thumbs
from visionloop.preprocess import PixelArray


def stripes(count: int, period: int, seed: int) -> PixelArray:
    """Upright or level stripes with a little noise."""
    rng = np.random.default_rng(seed)
    wave = (np.arange(32) // period % 2 * 120 + 60)[None, :, None]
    noise = rng.integers(0, 30, (count, 32, 32, 3))
    return np.asarray(np.broadcast_to(wave, (32, 32, 3)) + noise, dtype=np.uint8)


def features_of(images: PixelArray, folder: Path, seed: int = 0) -> np.ndarray:
    with Thumbs(len(images), folder) as thumbs:
        for index, image in enumerate(images):
            thumbs.put(index, image.tobytes())
        return embed(thumbs, np.arange(len(images)), seed)


@pytest.fixture
def images() -> PixelArray:
    level = stripes(60, 3, 1).transpose(0, 2, 1, 3)
    return np.concatenate([stripes(60, 3, 0), level, np.random.default_rng(2).integers(0, 256, (60, 32, 32, 3), np.uint8)])


def test_equal_pictures_are_nearer_than_others(images: PixelArray, tmp_path: Path) -> None:
    features = features_of(images, tmp_path)
    assert features.shape == (180, 180) and features.dtype == np.float32
    kind = np.repeat([0, 1, 2], 60)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (kind[distance.argmin(axis=1)] == kind).all()


def test_seed_decides_and_threads_do_not(images: PixelArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features_of(images, tmp_path)
    monkeypatch.setattr(embedding, "_cores", lambda: 1)
    assert features_of(images, tmp_path).tobytes() == first.tobytes()
    assert features_of(images, tmp_path, seed=1).tobytes() != first.tobytes()


def test_what_lies_beyond_the_sample_gets_the_same_features(
    images: PixelArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_SAMPLE_IMAGES", 120)
    twice = np.concatenate([images, images])
    features = features_of(twice, tmp_path)
    assert features.shape == (360, 120)
    np.testing.assert_allclose(features[:180], features[180:], atol=1e-4)  # float32 sums of another block


def test_a_mirror_image_has_the_same_features(images: PixelArray, tmp_path: Path) -> None:
    features = features_of(np.concatenate([images, images[:, :, ::-1]]), tmp_path)
    np.testing.assert_allclose(features[:180], features[180:], atol=1e-4)  # the two halves are summed in another order


def test_order_is_that_of_the_indices(images: PixelArray, tmp_path: Path) -> None:
    with Thumbs(180, tmp_path) as thumbs:
        for index, image in enumerate(images):
            thumbs.put(index, image.tobytes())
        chosen = np.array([170, 3, 65, 3], dtype=np.int64)
        features = embed(thumbs, chosen, 0)
        np.testing.assert_allclose(features[1], features[3], atol=1e-5)
        assert np.linalg.norm(features[0] - features[1]) > 0.1
        assert embed(thumbs, chosen[:0], 0).shape[0] == 0


def test_equal_pictures_only_have_equal_finite_features(tmp_path: Path) -> None:
    features = features_of(np.full((60, 32, 32, 3), 90, dtype=np.uint8), tmp_path)
    assert np.isfinite(features).all() and np.ptp(features, axis=0).max() < 1e-4
