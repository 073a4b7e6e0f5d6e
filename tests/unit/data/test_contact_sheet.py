"""The sheets show the pixels that training sees, in their places."""

from __future__ import annotations

import numpy as np
import torch

from visionloop.data.augmentation import augment_batch
from visionloop.data.contact_sheet import Row, draw_sheet, operations_sheet, policy_sheet
from visionloop.data.policy import AugmentPolicy

LEFT, STEP = 150, 72 + 6  # of the first tile, and from one to the next


def images(count: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 36, 36, 3)).astype(np.uint8)


def tile(
    sheet: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], top: int, left: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return sheet[top : top + 72 : 2, left : left + 72 : 2]


def test_a_row_holds_the_original_and_its_variants_enlarged_by_whole_numbers() -> None:
    shown = images()
    policy = AugmentPolicy(rotation_degrees=30, brightness=0.3)
    sheet = np.asarray(policy_sheet(shown, ["seven", "<b>" * 30, "two"], policy, np.random.default_rng(5)))
    variants = augment_batch(torch.from_numpy(np.repeat(shown, 7, axis=0)), policy, np.random.default_rng(5)).numpy()
    head = sheet.shape[0] - 3 * STEP - 6
    for row in range(3):
        assert np.array_equal(tile(sheet, head + row * STEP, LEFT), shown[row])
        for column in range(7):
            assert np.array_equal(tile(sheet, head + row * STEP, LEFT + (column + 1) * STEP), variants[row * 7 + column])
    assert (sheet[:head, :LEFT] < 200).any()  # a title


def test_a_mixed_policy_has_captions_below_its_tiles() -> None:
    plain, mixed = (
        policy_sheet(images(), ["a", "b", "c"], policy, np.random.default_rng(0))
        for policy in (AugmentPolicy(horizontal_flip=True), AugmentPolicy(mixup=1.0))
    )
    assert mixed.height - plain.height == 3 * 2 * 13  # two lines of 13 pixels in each row


def test_each_operation_has_a_row_with_both_ends_and_a_flip_has_one() -> None:
    policy = AugmentPolicy(vertical_flip=True, crop_padding_pixels=3, padding="edge", cutmix=1.0)
    shown = images(2)
    sheet = np.asarray(operations_sheet(shown, ["a", "b"], policy, np.random.default_rng(0)))
    head = sheet.shape[0] - 3 * STEP - 2 * 13 - 6
    second = LEFT + 3 * STEP + 12
    assert np.array_equal(tile(sheet, head, LEFT + STEP), shown[0, ::-1])
    assert (tile(sheet, head, LEFT + 2 * STEP) == 250).all()
    assert np.array_equal(tile(sheet, head, second + STEP), shown[1, ::-1])
    assert np.array_equal(tile(sheet, head + STEP, second + STEP)[3:, 3:], shown[1, :-3, :-3])
    assert np.array_equal(tile(sheet, head + STEP, second + 2 * STEP)[:-3, :-3], shown[1, 3:, 3:])
    assert np.array_equal(tile(sheet, head + 2 * STEP, LEFT), shown[0])


def test_a_policy_that_does_nothing_says_so() -> None:
    sheet = operations_sheet(images(), ["a", "b", "c"], AugmentPolicy(), np.random.default_rng(0))
    assert (np.asarray(sheet) < 200).any()


def test_long_titles_wrap_and_large_images_shrink() -> None:
    large = [np.zeros((300, 150, 3), dtype=np.uint8)] * 4
    short, long = (draw_sheet([Row("a", large)], title, ("", "")) for title in ("x", "word " * 60))
    assert long.height > short.height + 50
    assert long.width == short.width == LEFT + 4 * (36 + 6) + 6
