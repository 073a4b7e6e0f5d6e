"""Answers of cross-validation are handed to `clean` by a copy, and only when they are there and whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.experiments import accept, curve_shown, shown
from visionloop.data.out_of_fold import OutOfFold, write_out_of_fold
from visionloop.errors import ArtifactError
from visionloop.paths import OUT_OF_FOLD_ANSWERS, crossvalidate_report, learning_curve_report

ROOT = Path(__file__).parents[3]
FILE = crossvalidate_report("cnn") / "out_of_fold.parquet"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(data_id: str) -> None:
    chances = np.full((2, 2), 0.5, dtype=np.float32)
    write_out_of_fold(FILE, OutOfFold(("a", "b"), ("0", "1"), np.array([0, 1]), np.array([0, 1]), chances, "cnn", data_id))


def test_answers_are_copied_and_replaced(folder: Path) -> None:
    write("one")
    assert accept("cnn") == [
        f"2 answers of the cnn lie in {OUT_OF_FOLD_ANSWERS}.",
        "The next `dvc repro` judges the labels of these images by them; remove the file to take it back.",
    ]
    assert OUT_OF_FOLD_ANSWERS.read_bytes() == FILE.read_bytes()
    write("two")
    assert "in place of the cnn's" in accept("cnn")[0]
    OUT_OF_FOLD_ANSWERS.write_bytes(b"damaged")
    assert "in place" not in accept("cnn")[0]
    assert OUT_OF_FOLD_ANSWERS.read_bytes() == FILE.read_bytes()


def test_where_labels_are_not_judged_it_says_so(folder: Path) -> None:
    write("one")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("suspect_labels: true", "suspect_labels: false"))
    assert accept("cnn")[1] == "clean.suspect_labels is false, so nothing looks at them; set it to true in params.yaml."


def test_without_a_run_nothing_is_handed_over() -> None:
    with pytest.raises(ArtifactError, match="is not there; run `visionloop crossvalidate vit` first"):
        accept("vit")
    with pytest.raises(ArtifactError, match="has no report"):
        shown("vit")
    FILE.parent.mkdir(parents=True)
    FILE.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="is no table of out-of-fold answers"):
        accept("cnn")
    assert not OUT_OF_FOLD_ANSWERS.exists()


def test_the_report_is_told_in_sentences() -> None:
    numbers = {"accuracy": 0.9, "accuracy_spread": 0.02, "accuracy_low": 0.85, "accuracy_high": 0.94, "folds": 5}
    FILE.parent.mkdir(parents=True)
    (FILE.parent / "metrics.json").write_text(json.dumps(numbers))
    assert shown("cnn")[0] == (
        "cnn: 90.00% is the mean of 5 folds, spread 2.00%, 95 % interval 85.00% to 94.00%; see "
        "reports/crossvalidate/cnn/folds.png."
    )


def test_the_learning_curve_is_told_in_sentences() -> None:
    with pytest.raises(ArtifactError, match=r"has no report .* run `visionloop learning-curve vit`"):
        curve_shown("vit")
    points = [{"images": 157, "accuracy": 0.9}, {"images": 1257, "accuracy": 0.985}]
    folder = learning_curve_report("vit")
    folder.mkdir(parents=True)
    (folder / "curve.json").write_text(json.dumps({"points": points, "answer": "Yes."}))
    assert curve_shown("vit") == [
        "vit: 90.00% with 157, 98.50% with 1,257 training images.",
        "Yes.",
        "See reports/learning-curve/vit/learning_curve.png.",
    ]
