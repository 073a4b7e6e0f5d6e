"""Predictions as a table that comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from visionloop.errors import ArtifactError
from visionloop.evaluation.predictions import SplitPredictions, predict, read_correct, write_predictions
from visionloop.models import build


def test_the_table_has_the_columns_of_the_contract(tmp_path: Path) -> None:
    val = SplitPredictions(("a",), np.array([0]), np.array([[0.25, 0.75]]))
    test = SplitPredictions(("b", "c"), np.array([1, 1]), np.array([[0.5, 0.5], [0.1, 0.9]]))
    write_predictions(tmp_path / "p.parquet", ("id", "label"), {"val": val, "test": test})
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert rows[0] == {
        "id": "a", "split": "val", "label": "id", "predicted": "label", "correct": False, "p:id": 0.25, "p:label": 0.75
    }  # fmt: skip
    assert read_correct(tmp_path / "p.parquet", "test") == {"b": False, "c": True}
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="run `dvc repro evaluate`"):
        read_correct(tmp_path / "p.parquet", "test")


def test_probabilities_do_not_depend_on_the_batch_and_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("small_resnet", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, options={"width": 4})
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    whole = predict(model, images, torch.device("cpu"), "whole")
    assert whole.sum(1) == pytest.approx(np.ones(5))
    monkeypatch.setattr("visionloop.evaluation.predictions._BATCH_PIXELS", 2 * 64)
    # The sums of a convolution may be ordered otherwise for another batch; float32 keeps about 7 digits.
    assert predict(model, images, torch.device("cpu"), "in parts") == pytest.approx(whole, abs=1e-5)
    assert predict(model, images[:0], torch.device("cpu"), "none").shape == (0, 3)
    with torch.no_grad():
        model.network.head.bias[0] = torch.nan
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        predict(model, images, torch.device("cpu"), "broken")
