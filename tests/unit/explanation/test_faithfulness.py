"""The measures of maps themselves, on models whose evidence is known exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.explanation import tiny
from visionloop.explanation.faithfulness import (
    STEPS,
    TESTS,
    count_for,
    hits,
    insertion_deletion,
    placed,
    random_maps,
)
from visionloop.explanation.methods import heat_maps

SIDE = 16


def blobs(count: int = 30) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A square of the class's colour in the upper left quarter of black."""
    labels = np.arange(count) % 3
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[1:8, 1:8, label] = 255
    return images, labels


def test_evidence_lies_where_it_was_placed_and_true_maps_hit_it_always() -> None:
    images, labels = blobs()
    model = tiny.colours()
    sets = placed(model, images, labels, 12, seed=1)
    assert tuple(sets) == TESTS
    for name, one in sets.items():
        assert len(one) == 12, name
        assert one.chance == 0.25
        assert hits(heat_maps(model, one.images, one.classes, "gradcam"), one.boxes).mean() == 1
        wrong = heat_maps(model, one.images, (one.classes + 1) % 3, "gradcam")
        assert hits(wrong, one.boxes).mean() <= 0.25  # another class's map is empty there, or lies elsewhere
        # Only the quarter has the class's colour.
        own = np.take_along_axis(one.images, one.classes[:, None, None, None], 3)[..., 0] > 0
        assert not own[~one.boxes].any()
        assert own[one.boxes].any()
    again = placed(model, images, labels, 12, seed=1)
    assert all(np.array_equal(again[name].images, sets[name].images) for name in TESTS)
    assert not np.array_equal(placed(model, images, labels, 12, seed=2)["pair"].images, sets["pair"].images)


def test_no_image_is_placed_that_the_model_does_not_know_by_its_quarter() -> None:
    images, labels = blobs()
    deaf = tiny.colours(strength=0.0)  # answers class 0 to everything, with or without
    assert [len(one) for one in placed(deaf, images, labels, 12, seed=0).values()] == [0, 0, 0]
    none = placed(tiny.colours(), images[:0], labels[:0], 12, seed=0)
    assert [len(one) for one in none.values()] == [0, 0, 0]
    assert none["corner"].chance == 0
    of_one_class = placed(tiny.colours(), images[:1], labels[:1], 4, seed=0)
    assert [len(one) for one in of_one_class.values()] == [4, 0, 0]


def test_ties_hit_as_often_as_chance() -> None:
    box = np.zeros((3, 4, 4), np.bool_)
    box[:, :2, :2] = True
    maps = np.zeros((3, 4, 4), np.float32)
    maps[1, 1, 1], maps[2, 0, 0], maps[2, 3, 3] = 1, 1, 1
    assert hits(maps, box).tolist() == [0.25, 1, 0.5]


def test_deletion_by_the_true_map_takes_all_evidence_with_the_first_pixels() -> None:
    images, labels = blobs(6)
    model = tiny.colours()
    true = heat_maps(model, images, labels, "gradcam")
    right, reverse = (insertion_deletion(model, images, labels, maps) for maps in (true, 1 - true))
    evidence = 3  # steps after which the square's 49 pixels are through: each step takes a twelfth of 256
    assert STEPS == 12
    # Strength 60 times the share of the image is its logits; without any the three classes share.
    whole = np.exp(60 * 49 / 256) / (np.exp(60 * 49 / 256) + 2)
    assert right.deletion[:, 0] == pytest.approx(whole)
    assert right.deletion[:, evidence:] == pytest.approx(1 / 3)
    assert reverse.deletion[:, STEPS - evidence] == pytest.approx(whole)
    assert right.insertion[:, -1] == pytest.approx(whole)
    assert right.deletion_auc < 0.5
    assert reverse.deletion_auc > 0.8
    assert right.insertion_auc > reverse.insertion_auc
    by_hand = np.trapezoid(right.deletion.mean(0), np.linspace(0, 1, STEPS + 1))
    assert right.deletion_auc == pytest.approx(by_hand)


def test_random_maps_know_nothing_and_come_back() -> None:
    images = np.zeros((400, SIDE, SIDE, 3), np.uint8)
    maps = random_maps((8, 8), images, seed=3)
    assert np.array_equal(maps, random_maps((8, 8), images, seed=3))
    box = np.zeros((400, SIDE, SIDE), np.bool_)
    box[:, :8, :8] = True
    assert hits(maps, box).mean() == pytest.approx(0.25, abs=0.09)  # four deviations of 400 draws
    assert not len(random_maps((8, 8), images[:0], seed=3))


def test_large_images_are_fewer() -> None:
    assert [count_for(side, side) for side in (16, 96, 128, 224)] == [48, 48, 32, 16]
