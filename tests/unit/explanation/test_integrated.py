"""Integrated gradients: exact where the model is linear, complete where it is not."""

from __future__ import annotations

import numpy as np
import torch

from tests.unit.explanation import tiny
from visionloop.explanation.integrated import blank_colour, integrated_gradients
from visionloop.models import build


def test_a_linear_models_pixels_are_told_exactly() -> None:
    weight = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 0.0]])
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    classes = np.array([1, 0, 1])
    found = integrated_gradients(tiny.linear(weight), images, classes, steps=4)
    change = (images.astype(np.float64) - blank_colour(images)) / 255
    by_hand = (weight.numpy()[classes][:, None, None] / 20 * change).sum(-1)
    np.testing.assert_allclose(found.values, by_hand, atol=1e-6)
    np.testing.assert_allclose(found.differences, by_hand.sum((1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.gaps, 0, atol=1e-5)


def test_pixels_add_up_to_the_score_that_the_image_adds_to_a_blank_one() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(
            "small_vit", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3,
            options={"width": 16, "depth": 2},
        ).eval()  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    classes = np.array([0, 1, 2])
    found = integrated_gradients(model, images, classes, steps=128)
    blanks = np.broadcast_to(blank_colour(images), images.shape).copy()
    with torch.inference_mode():
        score, of_blank = (model(torch.from_numpy(one))[0].numpy()[np.arange(3), classes] for one in (images, blanks))
    np.testing.assert_allclose(found.differences, score - of_blank, atol=1e-4)
    np.testing.assert_allclose(found.values.sum((1, 2)), score - of_blank, atol=0.01)
    assert np.abs(integrated_gradients(model, images, classes, steps=4).gaps).max() > np.abs(found.gaps).max()


def test_the_blank_is_the_median_of_the_border() -> None:
    images = np.full((1, 6, 6, 3), 200, np.uint8)
    images[0, 0], images[0, :, 0] = (10, 20, 30), (10, 20, 30)
    images[0, 2:4, 2:4] = 0
    assert blank_colour(images).ravel().tolist() == [10, 20, 30]  # of 14 of the 24 pixels on its sides
    assert integrated_gradients(tiny.colours(), images[:0], np.zeros(0, np.int64)).values.shape == (0, 6, 6)
