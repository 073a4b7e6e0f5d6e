"""The pictures open, are the same for the same values, and bear any class name and any number of images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from visionloop.evaluation.curves import pr_curves
from visionloop.evaluation.pictures import confusion_png, folds_png, mistakes_png, pr_curves_png
from visionloop.evaluation.predictions import SplitPredictions

ODD = ("$5", "ein sehr langer Name einer Klasse", "$_{", "日本")


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


def test_confusion_matrix_of_odd_names_and_an_empty_row() -> None:
    matrix = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 2]])
    png = confusion_png(matrix, ODD, "a title with $ in it")
    assert png == confusion_png(matrix, ODD, "a title with $ in it")
    assert size(png)[0] > size(png)[1] > 300


def test_many_classes_stay_within_a_readable_size() -> None:
    labels = [f"class {number}" for number in range(120)]
    assert max(size(confusion_png(np.eye(120, dtype=np.int64), labels, "many"))) < 4000
    predictions = SplitPredictions(tuple(labels), np.arange(120), np.eye(120))
    assert size(pr_curves_png(pr_curves(predictions, labels), "many")) == (880, 660)


def test_mistakes_and_their_absence() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3)).astype(np.uint8)
    some = mistakes_png(images, ODD[:3], ODD[1:], np.array([0.9, 0.8, 0.5]), mistakes=7, of=20, title="t")
    none = mistakes_png(images[:0], [], [], np.zeros(0), mistakes=0, of=20, title="t")
    hidden = mistakes_png(images[:0], [], [], np.zeros(0), mistakes=7, of=20, title="t")
    assert size(some) != size(none)
    assert none != hidden


def test_folds_with_odd_names_and_a_class_that_a_fold_lacks() -> None:
    folds = [(0.9, 0.8, 0.95), (1.0, 0.9, 1.0)]
    recalls = [[0.8, 1.0], [1.0, float("nan")], [float("nan")] * 2, [0.5, 0.7]]
    png = folds_png(folds, (0.95, 0.7, 1.0), recalls, ODD, "folds with $")
    assert png == folds_png(folds, (0.95, 0.7, 1.0), recalls, ODD, "folds with $")
    assert size(png) == (990, 715)
    many = [[index / 200, index / 150] for index in range(100)]
    assert size(folds_png(folds, (0.95, 0.7, 1.0), many, [f"class {index}" for index in range(100)], "many")) == (990, 715)
