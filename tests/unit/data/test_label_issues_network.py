"""Wrong labels that were planted among the digits: networks that never saw an image find them at least as well."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from visionloop.config import load_params
from visionloop.crossvalidation import cross_validate
from visionloop.data.embedding import embed
from visionloop.data.label_issues import LabelIssues, find_label_issues
from visionloop.data.out_of_fold import Answers
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.data.thumbs import Thumbs
from visionloop.preprocess import PreprocessSpec

ROOT = Path(__file__).parents[3]


def rates(issues: LabelIssues, wrong: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the suspects."""
    hits = issues.suspect[wrong].sum()
    return float(hits / issues.suspect.sum()), float(hits / len(wrong))


def test_planted_wrong_labels_are_found_at_least_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundled = load_digits()
    count = len(bundled.target)
    rng = np.random.default_rng(0)
    wrong = rng.permutation(count)[: round(0.05 * count)]
    given = bundled.target.astype(np.int64)
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    pixels = np.repeat((bundled.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=3)
    with Thumbs(count, tmp_path) as thumbs:
        for index, image in enumerate(pixels):
            thumbs.put(index, Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).tobytes())
        features = embed(thumbs, np.arange(count), 0)

    ids = [f"{index:04}" for index in range(count)]
    meta = PackedMeta(
        labels=tuple("0123456789"),
        preprocess=PreprocessSpec(8, 8),
        mean=(0.3, 0.3, 0.3),
        std=(0.37, 0.37, 0.37),
        counts={"train": count, "val": 0, "test": 0},
        policy=AugmentPolicy(crop_padding_pixels=1, rotation_degrees=10),
        data_id="0" * 64,
    )
    params = load_params(ROOT / "params.yaml").train.model_copy(update={"epochs": 12, "warmup_epochs": 1.0})
    params = params.model_copy(update={"cnn": params.cnn.model_copy(update={"learning_rate": 0.006})})
    result = cross_validate(
        "cnn", [PackedSplit(pixels, given, ids)], {name: index % 3 for index, name in enumerate(ids)}, meta, params,
        folder=tmp_path,
    )  # fmt: skip

    groups = np.arange(count)
    before = find_label_issues(features, given, groups, 10, 0)
    answers = Answers(groups, result.answers.probabilities)
    after = find_label_issues(features, given, groups, 10, 0, answers=answers)
    by_features, by_network = rates(before, wrong), rates(after, wrong)
    with capsys.disabled():
        print(f"\nprecision, recall of suspects: features {by_features}, network {by_network}")  # noqa: T201
    # Features of digits are hard to beat: 0.99 and 0.93 here, where the network has 0.98 and 0.94 of 90 wrong labels.
    assert by_network[0] >= max(0.95, by_features[0] - 0.02)
    assert by_network[1] >= max(0.90, by_features[1] - 0.02)
    hits = after.suspect[wrong]
    assert (after.suggested[wrong][hits] == bundled.target[wrong][hits]).mean() >= 0.95

    # Where only half of the images have answers, the others are judged as before.
    half = dataclasses.replace(answers, places=groups[::2], probabilities=answers.probabilities[::2])
    mixed = find_label_issues(features, given, groups, 10, 0, answers=half)
    assert np.array_equal(mixed.quality[1::2], before.quality[1::2])
    assert np.array_equal(mixed.suspect[1::2], before.suspect[1::2])
    assert not np.array_equal(mixed.quality[::2], before.quality[::2])


def test_a_class_without_answers_is_judged_as_before() -> None:
    labels = np.repeat(np.arange(3), 60)
    features = np.random.default_rng(0).standard_normal((180, 8)).astype(np.float32) * 0.1
    features[np.arange(180), labels] += 3
    sure = np.full((120, 3), 0.01, dtype=np.float32)
    sure[np.arange(120), labels[:120]] = 0.98
    sure[7] = (0.005, 0.99, 0.005)
    issues = find_label_issues(features, labels, np.arange(180), 3, 0, answers=Answers(np.arange(120), sure))
    assert issues.suspect.nonzero()[0].tolist() == [7] and issues.suggested[7] == 1
