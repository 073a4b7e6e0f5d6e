"""detail.json has the form that its module states, for odd data sets too, and says in sentences what is not defined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visionloop.errors import ArtifactError, DataError
from visionloop.evaluation.detail import confused_pairs, detail, notes, pairs_csv
from visionloop.evaluation.history import read_history
from visionloop.evaluation.intervals import intervals
from visionloop.evaluation.metrics import per_class, require_images, summarize, wilson
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.evaluation.slices import Attributes, slices
from visionloop.files import write_json


def answers(targets: list[int], probabilities: list[list[float]]) -> SplitPredictions:
    return SplitPredictions(tuple(f"i{n}" for n in range(len(targets))), np.array(targets), np.array(probabilities))


def called(targets: list[int], called: list[int], classes: int) -> SplitPredictions:
    return answers(targets, (np.eye(classes)[called] * 0.9 + 0.1 / classes).tolist())


def written(predictions: SplitPredictions, labels: tuple[str, ...], path: Path) -> dict[str, Any]:
    classes, count = per_class(predictions, labels), len(predictions.targets)
    same = np.ones(count)
    known = Attributes(same, same, same, same, ("s",) * count, np.zeros(count, dtype=bool))
    parts, no_parts = slices(predictions, labels, known, 0.95)
    write_json(
        path,
        detail(
            predictions,
            labels,
            metrics=summarize(predictions, classes, 0.95, 3),
            classes=classes,
            intervals=intervals(predictions, len(labels), 0.95, 3),
            pairs=confused_pairs(predictions, labels, 0.95),
            slices=parts,
            notes=[*notes(predictions, labels, 3), *no_parts],
            confidence_level=0.95,
        ),
    )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_form_that_the_module_states(tmp_path: Path) -> None:
    made = called([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2], 4)
    found = written(made, ("a", "b", "c", "d"), tmp_path / "detail.json")
    assert list(found) == ["confidence_level", "images", "labels", "notes", "metrics", "per_class", "pairs", "slices"]
    metrics = {one["name"]: one for one in found["metrics"]}
    assert metrics["accuracy"]["value"] == 0.5
    assert metrics["top_3_accuracy"].keys() == {"name", "value", "low", "high"}
    assert {"macro_f1", "weighted_f1", "balanced_accuracy", "log_loss", "brier", "roc_auc_macro"} <= metrics.keys()
    a, *_, d = found["per_class"]
    assert (a["label"], a["support"], a["predicted"], a["recall"]["value"]) == ("a", 3, 2, pytest.approx(1 / 3))
    assert d == {
        "label": "d", "support": 0, "predicted": 0,
        "precision": None, "recall": None, "f1": None, "roc_auc": None, "average_precision": None,
    }  # fmt: skip
    low, high = wilson(2, 3, 0.95)
    first = {"actual": "a", "predicted": "b", "images": 2, "of": 3, "share": 2 / 3, "low": low, "high": high}
    assert found["pairs"][0] == first
    assert found["slices"][0]["kind"] == "class pair"
    assert found["slices"][0]["verdict"] == "too small"
    assert found["notes"][0].startswith("1 of 4 classes have no test image (d): averages")


def test_a_single_class_a_single_image_and_no_mistake(tmp_path: Path) -> None:
    found = written(called([1], [1], 2), ("a", "b"), tmp_path / "detail.json")
    assert found["pairs"] == []
    said = " ".join(found["notes"])
    assert "Every test image is of class b: no ROC curve of a class is defined" in said
    assert "evaluate.top_k is 3 and there are 2 classes: a top-3 accuracy would always be 1." in said
    only = written(called([0, 0], [0, 0], 1), ("a",), tmp_path / "only.json")
    assert only["per_class"][0]["roc_auc"] is None


def test_ties_are_counted_and_pairs_ordered() -> None:
    tied = answers([0, 1, 1], [[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])
    (said,) = notes(tied, ("a", "b"), 1)
    assert said == "On 2 images several classes have the highest score; the first in the order of labels is taken."
    pairs = confused_pairs(called([0, 0, 1, 2, 2], [1, 1, 0, 0, 0], 3), ("a", "b", "c"), 0.95)
    assert [(one.actual, one.predicted, one.images) for one in pairs] == [("a", "b", 2), ("c", "a", 2), ("b", "a", 1)]
    assert pairs_csv(pairs).splitlines()[1].startswith("a called b,2,2,1.0,")


@pytest.mark.parametrize(
    ("targets", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5], [float("nan"), 0.5]], r"scores of 1 of 2 images are NaN or infinite \(first: i1\)"),
        ([0], [[float("inf"), 0.0]], "NaN or infinite"),
        ([2], [[0.5, 0.5]], "Image i0 is of class number 2, and the model knows 2 classes"),
        ([0, 1], [[0.5, 0.5]], "2 ids, 2 targets and 1 rows of scores do not belong together"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    targets: list[int], probabilities: list[list[float]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        answers(targets, probabilities)
    with pytest.raises(DataError, match="There is no image to evaluate on"):
        require_images(SplitPredictions((), np.zeros(0, np.int64), np.zeros((0, 3))))


def test_the_history_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "val_loss.tsv").write_text("step\tval_loss\n1\t2.5\n2\t1.25\n")
    assert read_history(tmp_path) == {"val_loss": ([1, 2], [2.5, 1.25])}
    (tmp_path / "train_loss.tsv").write_text("step\tother\n1\t2.5\n")
    with pytest.raises(ArtifactError, match=r"train_loss.tsv is no table of epochs"):
        read_history(tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no epoch of a training; run `dvc repro train`"):
        read_history(tmp_path / "none")
