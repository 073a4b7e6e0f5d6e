"""The tables of robustness against answers worked out by hand, and moves against numpy and scipy."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from visionloop.config import RobustnessParams
from visionloop.corruptions import BENCHMARK, CORRUPTIONS, EXTRA
from visionloop.errors import DataError
from visionloop.evaluation.budgets import judge
from visionloop.evaluation.robustness import (
    CorruptionTable,
    Curve,
    NearestMean,
    attacks_csv,
    choose,
    classes_csv,
    corruption_table,
    corruptions_csv,
    curves_csv,
    invariance_curves,
    moved,
    only_numbers,
    summarize,
)
from visionloop.evaluation.robustness import _affine as affine
from visionloop.evaluation.robustness_pictures import attacks_png, corruptions_png, invariance_png, sheet_png

Images = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


def params(**changes: Any) -> RobustnessParams:
    values: dict[str, Any] = {
        "images": 10, "attack_images": 5, "seed": 0, "epsilons": [2, 4], "pgd_steps": 3, "shifts_pixels": [1, 3],
        "rotations_degrees": [90], "scales": [0.5, 2], "budgets": {},
    }  # fmt: skip
    return RobustnessParams(**{**values, **changes})


def table(**changes: Any) -> CorruptionTable:
    """Half of everything is right, with the reference at a quarter."""
    shape = (len(CORRUPTIONS), 5)
    values: dict[str, Any] = {
        "accuracy": np.full(shape, 0.5),
        "reference": np.full(shape, 0.25),
        "classes": np.array([0.6, np.nan, 0.4]),
        "clean": 0.9,
        "reference_clean": 0.3,
    }
    return CorruptionTable(**{**values, **changes})


def bright(images: Images) -> Numbers:
    """Class 1 where the mean is above 127."""
    return np.asarray(images.mean((1, 2, 3)) > 127, dtype=np.int64)


def test_the_table_counts_what_is_answered_rightly() -> None:
    images = np.stack([np.full((16, 16, 3), level, dtype=np.uint8) for level in (40, 60, 180, 200)])
    targets = np.array([0, 0, 1, 1])
    found = corruption_table(bright, lambda batch: np.zeros(len(batch), np.int64), images, targets, classes=3, seed=0)
    assert found.accuracy.shape == (19, 5)
    # Blur, noise, pixels and contrast around each image's own mean leave the means, and so the answers, alone.
    for name in ("gaussian_noise", "defocus_blur", "glass_blur", "pixelate", "jpeg_compression", "contrast", "zoom_blur"):
        assert found.of([name]).tolist() == [[1.0] * 5], name
    # Brightness adds 0.3 at severity 5: 60 becomes 136.5 and is called class 1; 40 becomes 116.5.
    assert found.of(["brightness"]).tolist() == [[1.0, 1.0, 1.0, 1.0, 0.75]]
    assert (found.reference == 0.5).all() and found.reference_clean == 0.5 and found.clean == 1.0
    # Class 2 has no image; class 1 only gets brighter or stays, but under fog.
    assert np.isnan(found.classes[2])
    assert found.classes[0] < 1
    # The same seed, the same table.
    again = corruption_table(bright, lambda batch: np.zeros(len(batch), np.int64), images, targets, classes=3, seed=0)
    assert np.array_equal(again.accuracy, found.accuracy)


def test_the_numbers_are_means_over_the_15_and_apart_over_the_4() -> None:
    accuracy = np.full((len(CORRUPTIONS), 5), 0.8)
    accuracy[CORRUPTIONS.index("fog")] = (0.5, 0.4, 0.3, 0.2, 0.1)  # mean 0.3
    accuracy[[CORRUPTIONS.index(name) for name in EXTRA]] = 0.1
    reference = np.full((len(CORRUPTIONS), 5), 0.6)
    reference[CORRUPTIONS.index("snow")] = 1.0  # the reference makes no error: no ratio
    found = summarize(table(accuracy=accuracy, reference=reference), [], ("ant", "bee", "cat"))
    assert found["corruption_accuracy"] == round((14 * 0.8 + 0.3) / 15, 4)
    assert found["mean_corruption_error"] == round(1 - (14 * 0.8 + 0.3) / 15, 4)
    # By hand: 0.2 / 0.4 for 13 of them, 0.7 / 0.4 for fog, none for snow.
    assert found["relative_corruption_error"] == round((13 * 0.5 + 1.75) / 14, 4)
    assert found["extra_corruption_accuracy"] == 0.1
    assert (found["worst_corruption"], found["worst_corruption_accuracy"]) == ("fog", 0.3)
    assert (found["worst_class"], found["worst_class_accuracy"]) == ("cat", 0.4)
    assert found["corruption_fog"] == 0.3


def test_a_reference_without_any_error_leaves_the_relative_number_out() -> None:
    found = summarize(table(reference=np.ones((len(CORRUPTIONS), 5))), [], ("ant", "bee", "cat"))
    assert "relative_corruption_error" not in found
    over = judge(only_numbers(found), {"relative_corruption_error": 1.0}, "robustness")
    assert over == [
        "relative_corruption_error could not be measured, which robustness.budgets.relative_corruption_error: 1 asks for"
    ]


def test_nearest_mean_is_scikit_learns() -> None:
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(0)
    centres = rng.integers(60, 190, (3, 1, 8, 8, 3))
    images = np.clip(centres[np.repeat(np.arange(3), 30)][:, 0] + rng.normal(0, 60, (90, 8, 8, 3)), 0, 255).astype(np.uint8)
    labels = np.repeat([0, 2, 3], 30)  # class 1 has no image and is never answered
    others = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    theirs = NearestCentroid().fit(images.reshape(90, -1).astype(float), labels)
    assert np.array_equal(NearestMean(images, labels, 4)(others), theirs.predict(others.reshape(200, -1).astype(float)))


def test_a_sample_has_each_class_by_its_share() -> None:
    targets = np.repeat([0, 1, 2], [500, 300, 200])
    chosen = choose(targets, 100, seed=3)
    assert np.bincount(targets[chosen]).tolist() == pytest.approx([50, 30, 20], abs=1)
    assert len(set(chosen.tolist())) == 100 and list(chosen) == sorted(chosen)
    assert not np.array_equal(chosen, choose(targets, 100, seed=4))
    assert choose(targets, 1000, seed=0).tolist() == list(range(1000))
    with pytest.raises(DataError, match="no test image"):
        choose(np.array([], dtype=np.int64), 5, seed=0)


def test_moves_are_numpys_and_scipys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    assert np.array_equal(moved(images, affine()), images)
    # Two to the right, one down: the border's pixels follow.
    shifted = np.pad(images, ((0, 0), (1, 0), (2, 0), (0, 0)), mode="edge")[:, :12, :12]
    assert np.array_equal(moved(images, affine(shift=(2, 1))), shifted)
    turned = moved(images, affine(degrees=90))
    assert np.array_equal(turned, np.rot90(images, axes=(1, 2))) or np.array_equal(turned, np.rot90(images, -1, axes=(1, 2)))
    # Not square, an angle between: scipy reads at the same places.
    wide = np.random.default_rng(1).integers(0, 256, (1, 10, 17, 3), dtype=np.uint8)
    matrix = affine(degrees=25, scale=1.3)
    y, x = np.mgrid[:10, :17] + 0.5
    places = np.einsum("ij,jhw->ihw", matrix[:, :2], np.stack([x - 8.5, y - 5])) + np.array([8.5, 5])[:, None, None] - 0.5
    expected = [
        ndimage.map_coordinates(wide[0, :, :, channel].astype(float), places[::-1], order=1, mode="nearest")
        for channel in range(3)
    ]
    difference = moved(wide, matrix)[0].astype(float) - np.rint(np.stack(expected, axis=2))
    assert np.abs(difference).max() <= 1  # a half may be rounded either way


def test_curves_begin_without_a_change_and_take_the_mean_of_the_directions() -> None:
    # A bright left third of a dark image: whether it is there is asked of the first column alone.
    images = np.zeros((4, 9, 9, 3), dtype=np.uint8)
    images[:, :, :3] = 255
    targets = np.ones(4, dtype=np.int64)

    def left_is_bright(batch: Images) -> Numbers:
        return (batch[:, 4, 0, 0] > 127).astype(np.int64)

    shift, rotation, scale = invariance_curves(left_is_bright, images, targets, params())
    # By one pixel to any side the first column stays bright, since what comes in continues it; 3 to the left it is gone.
    assert (shift.amounts, shift.accuracies) == ((0.0, 1.0, 3.0), (1.0, 1.0, 0.75))
    # Turned by a quarter either way, the middle row begins dark.
    assert (rotation.amounts, rotation.accuracies) == ((0.0, 90.0), (1.0, 0.0))
    # Half as large: the border continues it. Twice as large: what was at column 2.25 stands at the left.
    assert (scale.amounts, scale.accuracies) == ((0.5, 1.0, 2.0), (1.0, 1.0, 1.0))
    assert shift.numbers == {"shift_accuracy_1": 1.0, "shift_accuracy_3": 0.75}
    assert scale.numbers == {"scale_accuracy_0.5": 1.0, "scale_accuracy_2": 1.0}


def test_budgets_say_which_number_is_on_the_wrong_side() -> None:
    numbers = {"corruption_accuracy": 0.7, "relative_corruption_error": 1.2, "fgsm_accuracy_2": 0.9}
    budgets = {"corruption_accuracy": 0.75, "relative_corruption_error": 1.0, "fgsm_accuracy_2": 0.9, "pgd_accuracy_2": None}
    assert judge(numbers, budgets, "robustness") == [
        "corruption_accuracy is 0.7000, below robustness.budgets.corruption_accuracy: 0.75",
        "relative_corruption_error is 1.2000, above robustness.budgets.relative_corruption_error: 1",
    ]
    assert judge(numbers, dict.fromkeys(budgets), "robustness") == []
    # NaN is neither above nor below anything.
    assert judge({"corruption_accuracy": float("nan")}, {"corruption_accuracy": 0.75}, "robustness") == [
        "corruption_accuracy could not be measured, which robustness.budgets.corruption_accuracy: 0.75 asks for"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budgets": {"fgsm_accuracy_3": 0.5}}, "budgets has 'fgsm_accuracy_3', which .* did you mean 'fgsm_accuracy_"),
        ({"budgets": {"zzz": 0.5}}, "there are clean_accuracy, .* scale_accuracy_2"),
        ({"budgets": {"corruption_accuracy": -1}}, "greater than or equal to 0"),
        ({"budgets": {"corruption_accuracy": 75}}, "budgets.corruption_accuracy is 75, .* as a share; write it from 0 to 1"),
        ({"scales": [0.5, 1], "budgets": {"scale_accuracy_1": 0.5}}, "scale_accuracy_1', which the report does not measure"),
        ({"epsilons": [4, 2]}, "a list of numbers above 0, each above the one before it"),
        ({"scales": [0, 1]}, "a list of numbers above 0"),
        ({"shifts_pixels": []}, "at least 1"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        params(**changes)


def test_tables_as_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(corruptions_csv(table()))))
    assert [row["corruption"] for row in rows] == list(CORRUPTIONS)
    assert [row["group"] for row in rows].count("extra") == len(CORRUPTIONS) - len(BENCHMARK)
    assert rows[0]["relative_error"] == str(round(0.5 / 0.75, 4)) and rows[0]["severity_5"] == "0.5"
    assert classes_csv(table(), ("ant", "bee", "cat")) == "label,corruption_accuracy\nant,0.6\nbee,\ncat,0.4\n"
    fgsm, pgd = Curve("fgsm", "levels", (0.0, 2.0), (1.0, 0.5)), Curve("pgd", "levels", (0.0, 2.0), (1.0, 0.25))
    assert attacks_csv(fgsm, pgd) == "epsilon,fgsm,pgd\n0,1.0,1.0\n2,0.5,0.25\n"
    assert curves_csv([pgd]) == "change,unit,amount,accuracy\npgd,levels,0,1.0\npgd,levels,2,0.25\n"


def test_pictures_are_the_same_each_time_and_large_enough_to_read() -> None:
    curve = Curve("pgd", "levels", (0.0, 2.0), (1.0, 0.25))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    draws: tuple[Callable[[], bytes], ...] = (
        lambda: corruptions_png(table(), "accuracy of $5"),
        lambda: attacks_png([curve], "attacks"),
        lambda: invariance_png([curve, curve, curve], "moves"),
        lambda: sheet_png(image, 0, "sheet"),
    )
    for draw in draws:
        first = draw()
        assert first == draw()
        assert min(Image.open(io.BytesIO(first)).size) > 300
