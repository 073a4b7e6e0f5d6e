"""Classes count as much as the strength says, and no image is used much more often than another of its class."""

from __future__ import annotations

import numpy as np
import pytest

from visionloop.data.balancing import balanced_order, variant_sources

LABELS = np.repeat([0, 1, 2], [900, 90, 10])[np.random.default_rng(1).permutation(1000)]


@pytest.mark.parametrize(
    ("strength", "expected"), [(0, [900, 90, 10]), (1, [333.3, 333.3, 333.3]), (0.5, [703, 222.9, 74.1])]
)
def test_shares_of_the_classes(strength: float, expected: list[float]) -> None:
    order = balanced_order(LABELS, strength, np.random.default_rng(0))
    assert len(order) == 1000
    assert np.bincount(LABELS[order]) == pytest.approx(expected, abs=1)


def test_within_a_class_each_image_comes_equally_often_give_or_take_once() -> None:
    uses = np.bincount(balanced_order(LABELS, 1, np.random.default_rng(0)), minlength=1000)
    for label in range(3):
        of_class = uses[label == LABELS]
        assert of_class.max() - of_class.min() <= 1
    assert uses[LABELS == 2].min() == 33


def test_strength_0_shows_every_image_once_and_seeds_differ() -> None:
    first, again, other = (balanced_order(LABELS, 0, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_variants_fill_small_classes_up_in_turns() -> None:
    labels = np.array([0] * 7 + [1] * 3 + [2] * 7)
    sources = variant_sources(labels, 1)
    assert sources.tolist() == [7, 8, 9, 7]
    assert variant_sources(labels, 0).tolist() == []
    assert len(variant_sources(LABELS, 0.5)) == round((90 * 900) ** 0.5) - 90 + round((10 * 900) ** 0.5) - 10
