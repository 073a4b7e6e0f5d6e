"""visionloop.compression.parity: the golden answers, and what counts as the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.helpers_serving import ship
from tests.onnx_models import digits, linear_model
from tests.torch_models import OPSET, trained
from visionloop.card import ModelCard
from visionloop.compression.export import onnx_bytes
from visionloop.compression.graph import prepare
from visionloop.compression.parity import Golden, accuracy, check_golden, compare, prove_parity
from visionloop.compression.quantize import Quantizer, Recipe
from visionloop.compression.targets import processor
from visionloop.errors import ArtifactError, ParityError
from visionloop.paths import GOLDEN as GOLDEN_FILE
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


def _published(folder: Path, golden: Golden, **changes: Any) -> ModelCard:
    """A folder with golden answers, and its card."""
    (folder / GOLDEN_FILE).write_bytes(golden.to_bytes())
    card = ship(folder / "any")
    return card.model_copy(update=changes).with_files(folder, (GOLDEN_FILE,))


def test_a_model_that_answers_as_where_it_was_made_may_serve(tmp_path: Path) -> None:
    nearly = replace(GOLDEN, logits=GOLDEN.logits + np.float32(1e-4))
    check_golden(MODEL, _published(tmp_path, nearly), tmp_path)


def test_a_card_without_golden_answers_is_asked_nothing(tmp_path: Path) -> None:
    check_golden(MODEL, ship(tmp_path / "any").model_copy(update={"files": {}}), tmp_path)


@pytest.mark.parametrize(
    ("made_and_here", "precision", "cause"),
    [
        (("cpu-vnni", "cpu"), "int8", "quantized on a processor with VNNI, and this one has none"),
        (("cpu-vnni", "cpu"), "fp32", "another processor or runtime than where it was made"),
        (("cpu", "cpu-vnni"), "int8", "another processor or runtime than where it was made"),
    ],
)
def test_a_model_that_answers_otherwise_here_is_refused_with_the_probable_cause(
    made_and_here: tuple[str, str], precision: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, here = made_and_here
    monkeypatch.setattr("visionloop.compression.parity.processor", lambda: here)
    mean = GOLDEN.logits.mean(axis=0)
    wider = replace(GOLDEN, logits=mean + 2 * (GOLDEN.logits - mean))  # the model's lie half of their spread away
    card = _published(tmp_path, wider, precision=precision, lineage={"processor": made})
    with pytest.raises(
        ArtifactError, match=rf"answers 6 golden images otherwise here: .* 0\.50 of .*0\.05 is allowed.*{cause}"
    ):
        check_golden(MODEL, card, tmp_path)


def test_eight_bits_of_a_processor_with_vnni_do_not_serve_on_one_without(tmp_path: Path) -> None:
    model, card = trained("cnn")
    images = digits().images
    graph = prepare(onnx_bytes(model, card=card, opset=OPSET))
    for seven_bits in (False, True):
        data = Quantizer(graph, images[:256]).static(Recipe(("Conv", "Gemm", "Relu"), seven_bits=seven_bits))
        # Not optimised, the graph is calculated in floats, which hold the integers and their sums exactly, as VNNI does.
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        logits, embedding = onnxruntime.InferenceSession(data, options).run(
            ["logits", "embedding"], {"images": images[-32:]}
        )
        golden = Golden(images[-32:], ("",) * 32, logits, embedding)
        (tmp_path / GOLDEN_FILE).write_bytes(golden.to_bytes())
        made = card.model_copy(update={"precision": "int8", "lineage": {"processor": "cpu-vnni"}})
        served = made.with_files(tmp_path, (GOLDEN_FILE,))
        if seven_bits or processor() == "cpu-vnni":
            check_golden(OnnxModel(data, threads=1), served, tmp_path)
        else:
            with pytest.raises(ArtifactError, match="quantized on a processor with VNNI, and this one has none"):
                check_golden(OnnxModel(data, threads=1), served, tmp_path)


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
