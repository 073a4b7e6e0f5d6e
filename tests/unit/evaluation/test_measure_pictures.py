"""The pictures open, are the same for the same values, and bear odd names and nothing to show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from visionloop.evaluation.curves import roc_curves
from visionloop.evaluation.detail import confused_pairs
from visionloop.evaluation.intervals import intervals
from visionloop.evaluation.measure_pictures import classes_png, learning_curve_png, pairs_png, slices_png, training_png
from visionloop.evaluation.metrics import per_class
from visionloop.evaluation.pictures import roc_curves_png
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.evaluation.slices import Attributes, slices

ODD = ("$5", "ein sehr langer Name einer Klasse", "$_{", "日本")


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


@pytest.fixture(scope="module")
def made() -> SplitPredictions:
    rng = np.random.default_rng(0)
    return SplitPredictions(tuple(map(str, range(90))), rng.integers(0, 3, 90), rng.dirichlet(np.ones(4), 90))


def test_classes_slices_and_pairs_of_odd_names(made: SplitPredictions) -> None:
    known = np.random.default_rng(1).random((4, 90))
    given = Attributes(known[0], known[1], known[2], known[3], ("$", "b") * 45, np.arange(90) < 5)
    parts, _ = slices(made, ODD, given, 0.95)
    assert {one.kind for one in parts} > {"size", "source", "near-duplicates", "class pair"}
    png = slices_png(parts, 0.25, "slices of $")
    assert png == slices_png(parts, 0.25, "slices of $")
    assert size(png) != size(slices_png([], 1.0, "none"))
    found = intervals(made, 4, 0.95)
    assert size(classes_png(per_class(made, ODD), found.classes, "classes"))[0] == 1430
    assert size(pairs_png(confused_pairs(made, ODD, 0.95), "pairs"))[0] == 880
    assert size(pairs_png([], "no pair")) == (880, 220)


def test_roc_curves_and_their_absence(made: SplitPredictions) -> None:
    assert size(roc_curves_png(roc_curves(made, ODD), "roc")) == (880, 660)
    one = SplitPredictions(("a",), np.array([0]), np.array([[0.9, 0.1]]))
    assert roc_curves(one, ("a", "b")) == []
    assert size(roc_curves_png([], "none")) == (880, 220)


def test_training_and_learning_curve() -> None:
    history = {"train_loss": ([1, 2], [2.0, 1.0]), "val_accuracy": ([1, 2], [0.5, 0.6]), "learning_rate": ([1], [0.1])}
    assert training_png(history, "t") != training_png({**history, "val_loss": ([1, 2], [2.0, 1.5])}, "t")
    points = [(100, 0.8, 0.7, 0.9), (200, 0.85, 0.8, 0.9), (400, 0.9, 0.85, 0.95)]
    png = learning_curve_png(points, (2.0, 0.5), (0.93, 0.9, 0.96), "Yes, " + "it would help " * 20, "curve")
    assert size(png) == (880, 605)
