"""Grad-CAM on images whose evidence is known: a coloured square whose place the test chooses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from visionloop.evaluation.gradcam import gradcam
from visionloop.models import Classifier, build
from visionloop.models.network import Option

SIZE, SQUARE = 16, 4
Pixels = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


def draw(labels: Classes, rng: np.random.Generator, place: tuple[int, int] | None = None) -> Pixels:
    """Noise; in class 1 with a red square, in class 2 with a green one, so nothing else in the image speaks for them."""
    images = rng.integers(60, 120, (len(labels), SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(0, SIZE - SQUARE + 1, 2) if place is None else place
        if label:
            image[row : row + SQUARE, column : column + SQUARE] = 60
            image[row : row + SQUARE, column : column + SQUARE, label - 1] = 250
    return images


def trained(architecture: str, options: dict[str, Option]) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        model = build(
            architecture, num_classes=3, image_size=(SIZE, SIZE), mean=(0.36,) * 3, std=(0.15,) * 3, options=options
        )
        optimizer = torch.optim.AdamW(model.parameters(), 0.003)
        for _ in range(150):
            labels = rng.integers(0, 3, 32)
            loss = F.cross_entropy(model(torch.from_numpy(draw(labels, rng)))[0], torch.from_numpy(labels))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("small_resnet", {"width": 8}),
        ("small_vit", {"width": 32, "depth": 2, "patch": 4}),
        ("small_vit", {"width": 32, "stem": "conv"}),
        (
            "small_vit",
            {"patch": 2, "width": 32, "depth": 2, "stem": "tokenizer", "pooling": "sequence", "flip_average": True},
        ),
    ],
)
def test_the_map_lies_where_the_evidence_is(architecture: str, options: dict[str, Option]) -> None:
    model = trained(architecture, options)
    for place in ((0, 0), (0, SIZE - SQUARE), (SIZE - SQUARE, 0), (4, 8)):
        labels = np.arange(30) % 2 + 1
        images = draw(labels, np.random.default_rng(7), place)
        with torch.inference_mode():
            assert (model(torch.from_numpy(images))[0].argmax(1).numpy() == labels).mean() > 0.9
        maps = gradcam(model, images, labels)
        assert maps.shape == (30, SIZE, SIZE)
        assert maps.min() >= 0
        assert maps.max(axis=(1, 2)).tolist() == [1] * 30
        near = np.zeros((SIZE, SIZE), dtype=bool)  # the square and two pixels around it, for the coarse grid of the map
        near[max(0, place[0] - 2) : place[0] + SQUARE + 2, max(0, place[1] - 2) : place[1] + SQUARE + 2] = True
        share = maps[:, near].sum() / maps.sum()
        assert share > 0.5, f"{place}: {share:.2f} of the map on {near.mean():.2f} of the image"


def test_no_image_gives_no_map_and_the_model_is_left_without_hooks() -> None:
    model = build("small_resnet", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, options={"width": 4})
    assert gradcam(model, np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64)).shape == (0, 8, 8)
    gradcam(model, np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 2]))
    assert not any(module._forward_hooks for module in model.modules())
