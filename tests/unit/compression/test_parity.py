"""visionloop.compression.parity: the golden answers, and what counts as the same model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.onnx_models import linear_model
from visionloop.compression.parity import Golden, accuracy, compare, prove_parity
from visionloop.errors import ArtifactError, ParityError
from visionloop.runtime import OnnxModel

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
MODEL = OnnxModel(linear_model().SerializeToString(), threads=1)
GOLDEN = Golden(IMAGES, tuple("abcdef"), *MODEL.run(IMAGES))


def test_the_model_itself_passes_with_a_difference_of_nothing() -> None:
    parity = prove_parity(MODEL, GOLDEN, tolerance=1e-6)
    assert (parity.max_logit_difference, parity.max_embedding_difference, parity.top1_agreement) == (0, 0, 1)


def test_one_logit_beyond_the_tolerance_is_refused_with_the_figure() -> None:
    logits = GOLDEN.logits.copy()
    logits[3, 1] += 0.25
    with pytest.raises(
        ParityError, match=r"INT8 on 6 golden images at batch size 6: a logit differs by 0\.25, more than the 0\.1"
    ):
        prove_parity(MODEL, replace(GOLDEN, logits=logits), tolerance=0.1, name="INT8")


def test_another_first_class_within_the_tolerance_is_refused() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)  # logits are the bias: 0, 1, -1
    golden = Golden(images, ("a", "b"), *MODEL.run(images))
    logits = golden.logits.copy()
    logits[1] = (1.0, 0.5, -1.0)
    with pytest.raises(ParityError, match=r"1 of them get another first class, though no logit differs by more than 1;"):
        prove_parity(MODEL, replace(golden, logits=logits), tolerance=1.0)


def test_a_tie_may_break_either_way() -> None:
    weights = np.zeros((3, 3), np.float32)
    model = OnnxModel(linear_model(weights=weights).SerializeToString(), threads=1)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    logits = np.tile(np.array([1.00001, 1.0, -1.0], np.float32), (2, 1))
    golden = Golden(images, ("a", "b"), logits, model.run(images)[1])
    assert prove_parity(model, golden, tolerance=2.0).top1_agreement == 0  # by the logits 0, 1, -1 of the bias


def test_compare_says_how_far_apart_and_how_often_agreed() -> None:
    logits = np.array([[1, 2], [3, 1], [0, 5], [4, 0]], np.float32)
    other = np.array([[1, 2.5], [1, 3], [0, 5], [4, 0]], np.float32)
    embedding = np.zeros((4, 2), np.float32)
    parity = compare((logits, embedding), (other, embedding + 0.125))
    assert (parity.max_logit_difference, parity.max_embedding_difference, parity.top1_agreement) == (2, 0.125, 0.75)


def test_accuracy_is_the_share_of_right_first_classes() -> None:
    assert accuracy(np.array([[1, 2], [3, 1], [0, 5], [4, 0]], np.float32), [1, 0, 0, 0]) == 0.75


def test_golden_survives_the_file_and_equal_answers_give_equal_bytes() -> None:
    data = GOLDEN.to_bytes()
    read = Golden.from_bytes(data)
    assert read.ids == tuple("abcdef")
    np.testing.assert_array_equal(read.images, IMAGES)
    np.testing.assert_array_equal(read.logits, GOLDEN.logits)
    np.testing.assert_array_equal(read.embedding, GOLDEN.embedding)
    assert read.to_bytes() == data


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", GOLDEN.to_bytes()[:200]])
def test_a_damaged_golden_file_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"golden\.npz cannot be read .*rebuild it with `dvc repro export`"):
        Golden.from_bytes(data)
