"""visionloop.features: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from visionloop.features import EmbeddingPCA, gray, image_features, output_features, signal_groups, softmax


def picture(rows: list[list[tuple[int, int, int]]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array(rows, dtype=np.uint8)


def test_half_black_half_white() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 255
    found = image_features(image)
    assert found.brightness == pytest.approx(127.5, abs=1e-4)
    assert found.contrast == pytest.approx(127.5, abs=1e-4)
    # Inner columns: 255 on the dark side of the edge, -255 on the bright one.
    assert found.sharpness == pytest.approx(255**2, rel=1e-5)
    assert (found.saturation, found.gray_entropy, found.clipped_share) == (0, 1, 1)


def test_pure_red() -> None:
    found = image_features(picture([[(255, 0, 0)] * 3] * 3))
    assert found.brightness == pytest.approx(0.299 * 255, abs=1e-4)
    assert (found.saturation, found.sharpness, found.gray_entropy, found.clipped_share) == (255, 0, 0, 0)


def test_four_grays_in_equal_shares_are_two_bits() -> None:
    image = np.repeat(np.array([[10, 80, 150, 240]], np.uint8), 4, axis=0)[..., None].repeat(3, axis=2)
    assert image_features(image).gray_entropy == pytest.approx(2)


@settings(deadline=None)  # a busy machine is no fault
@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=9).map(lambda s: (*s, 3))))
def test_image_features_are_finite_and_in_range(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    found = image_features(image)
    assert 0 <= found.brightness <= 255.001
    assert 0 <= found.contrast <= 127.501
    assert 0 <= found.sharpness < math.inf
    assert 0 <= found.saturation <= 255
    assert 0 <= found.gray_entropy <= 6
    assert 0 <= found.clipped_share <= 1


def test_gray_is_pillows_luma_within_its_rounding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).convert("L"), dtype=float)
    assert np.abs(gray(image) - pillow).max() <= 1
    assert gray(image[None]).shape == (1, 9, 7)


def test_softmax_of_known_logits_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 7.0]])), [[0.1, 0.2, 0.7]])
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, -1e4])), [0.5, 0.5, 0])


def test_output_of_known_probabilities() -> None:
    found = output_features(np.log(np.array([1.0, 2.0, 7.0])))
    assert found.probabilities == pytest.approx((0.1, 0.2, 0.7))
    assert found.confidence == pytest.approx(0.7)
    assert found.margin == pytest.approx(0.5)
    assert found.entropy == pytest.approx(-(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7)))
    assert found.energy == pytest.approx(-math.log(10))


def test_one_class_is_certain() -> None:
    found = output_features(np.array([3.0]))
    assert (found.confidence, found.margin, found.entropy, found.energy) == (1, 1, 0, -3)


@settings(deadline=None)
@given(npst.arrays(np.float32, st.integers(1, 12), elements=st.floats(-1e4, 1e4, width=32)))
def test_outputs_are_finite_and_in_range(logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    found = output_features(logits)
    classes = len(logits)
    assert sum(found.probabilities) == pytest.approx(1)
    assert 1 / classes - 1e-9 <= found.confidence <= 1
    assert -1e-9 <= found.entropy <= math.log(classes) + 1e-9
    assert 0 <= found.margin <= 1
    assert math.isfinite(found.energy)


def test_pca_finds_the_axis_of_a_line_with_a_fixed_sign() -> None:
    along = np.linspace(-1, 1, 11)[:, None] * np.array([[3.0, 0.0, -4.0]])
    pca = EmbeddingPCA.fit((along + np.array([1, 2, 3])).astype(np.float32), components=2)
    assert pca.mean == pytest.approx([1, 2, 3], abs=1e-6)
    assert pca.components[0] == pytest.approx([-0.6, 0, 0.8], abs=1e-6)  # the largest entry is positive
    assert pca.project(np.array([[4, 2, -1]], np.float32))[0, 0] == pytest.approx(-5, abs=1e-5)


def test_pca_gives_no_more_components_than_there_are() -> None:
    few = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    assert EmbeddingPCA.fit(few, 8).components.shape == (3, 10)
    flat = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert EmbeddingPCA.fit(flat, 8).components.shape == (4, 4)


def test_pca_survives_the_file_and_equal_ones_give_equal_bytes() -> None:
    pca = EmbeddingPCA.fit(np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32), 3)
    read = EmbeddingPCA.from_bytes(pca.to_bytes())
    np.testing.assert_array_equal(read.components, pca.components)
    assert read.to_bytes() == pca.to_bytes()


def test_ten_classes_and_eight_components_are_26_signals() -> None:
    groups = signal_groups(tuple("0123456789"), 8)
    assert len(groups) == 26
    assert list(groups)[:2] == ["p:0", "p:1"]
    assert list(groups)[10:15] == ["confidence", "entropy", "margin", "e:0", "e:1"]
    assert list(groups)[-1] == "label"
    assert sorted(set(groups.values())) == ["class", "confidence", "embedding", "image", "probability"]
    assert "p:0" not in signal_groups([str(index) for index in range(51)], 8)
