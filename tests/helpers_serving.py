"""A tiny shipped model folder, made without torch (a mean colour through two matrices), and rows as the server logs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, Calibration, ModelCard, Runtime, UnknownRule
from visionloop.compression.parity import Golden
from visionloop.config import DeployParams
from visionloop.features import EmbeddingPCA
from visionloop.files import write_bytes
from visionloop.paths import CLASS_MEANS, EMBEDDING_PCA, GOLDEN, MODEL_ONNX
from visionloop.preprocess import PreprocessSpec
from visionloop.records import LoggedPrediction
from visionloop.runtime import OnnxModel
from visionloop.unknown import ClassMeans

LABELS = ("blau", "grün", "rot")
SPEC = PreprocessSpec(height=8, width=8)
DEPLOY = DeployParams(
    backend="python",
    max_batch_size=8,
    max_queue_delay_microseconds=200,
    instances=1,
    threads=1,
    keep_versions=3,
)


def calibrated(*, review_below: float = 0.5, threshold: float = 1.0) -> Calibration:
    """A calibration by the distance to class means."""
    return Calibration(
        temperature=1.0,
        precision_thresholds=dict.fromkeys(LABELS, 0.9),
        unknown=UnknownRule(score="distance", threshold=threshold, kept=0.95),
        review_below=review_below,
        review_share=0.05,
    )


def ship(
    folder: Path,
    *,
    seed: int = 0,
    labels: tuple[str, ...] = LABELS,
    spec: PreprocessSpec = SPEC,
    calibration: Calibration | None = None,
    runtime: Runtime = "onnxruntime",
) -> ModelCard:
    """Write model.onnx, embedding_pca.npz, golden.npz and card.json of a model that `seed` draws; equal seeds, equal bytes.

    With a `calibration` the mean of its one class lies at the embedding of a black image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "widen"], [EMBEDDING_NAME]),
        helper.make_node("MatMul", [EMBEDDING_NAME, "head"], [LOGITS_NAME]),
    ]
    weights = [
        numpy_helper.from_array(np.array(255, np.float32), "scale"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(rng.normal(size=(3, 12)).astype(np.float32), "widen"),
        numpy_helper.from_array(rng.normal(size=(12, len(labels))).astype(np.float32), "head"),
    ]
    inputs = [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", spec.height, spec.width, 3])]
    outputs = [
        helper.make_tensor_value_info(LOGITS_NAME, TensorProto.FLOAT, ["batch", len(labels)]),
        helper.make_tensor_value_info(EMBEDDING_NAME, TensorProto.FLOAT, ["batch", 12]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="labels", value=json.dumps(labels))
    onnx.checker.check_model(model)
    write_bytes(folder / MODEL_ONNX, model.SerializeToString())
    pca = EmbeddingPCA.fit(rng.normal(size=(64, 12)).astype(np.float32), 8)
    write_bytes(folder / EMBEDDING_PCA, pca.to_bytes())
    if calibration is not None:
        write_bytes(folder / CLASS_MEANS, ClassMeans(np.eye(12), np.zeros((1, 12))).to_bytes())
    images = np.broadcast_to(rng.integers(0, 256, (6, 1, 1, 3), dtype=np.uint8), (6, spec.height, spec.width, 3)).copy()
    answers = OnnxModel(model.SerializeToString(), threads=1).run(images)
    write_bytes(folder / GOLDEN, Golden(images, tuple("abcdef"), *answers).to_bytes())
    card = ModelCard(
        family="cnn",
        architecture="tiny",
        labels=labels,
        preprocess=spec,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        embedding_size=12,
        precision="fp32",
        parameters=36 + 12 * len(labels),
        calibration=calibration,
        runtime=runtime,
    ).with_files(folder, (MODEL_ONNX, EMBEDDING_PCA, GOLDEN, *([CLASS_MEANS] if calibration else [])))
    card.write(folder)
    return card


def answered_row(
    prediction_id: str, *, version: str = "1", label: str = "rot", probabilities: tuple[float, ...] = (0.2, 0.3, 0.5)
) -> LoggedPrediction:
    """A row as the server logs it."""
    return LoggedPrediction(
        prediction_id=prediction_id,
        request_id="",
        time=datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC),
        status="ok",
        reason="",
        model_name="classifier",
        model_version=version,
        model_sha256="0" * 64,
        preprocess_version="abc",
        precision="fp32",
        route="champion",
        label=label,
        probabilities=probabilities,
        confidence=max(probabilities),
        entropy=1.0 / 3.0,
        margin=0.2,
        energy=-1.5,
        embedding=(0.1, -0.2),
        image_sha256="1" * 64,
        file_bytes=100,
        width_pixels=8,
        height_pixels=8,
        mode="RGB",
        format="PNG",
        brightness=100.0,
        contrast=10.0,
        sharpness=5.0,
        saturation=1.0,
        gray_entropy=2.0,
        clipped_share=0.0,
        decode_ms=0.5,
        infer_ms=1.0,
        total_ms=2.0,
        batch_size=1,
    )


def rejected_row(prediction_id: str, reason: str) -> LoggedPrediction:
    """A row of a refused image: every number of the model is absent."""
    absent = (
        "label probabilities confidence entropy margin energy embedding width_pixels height_pixels mode format brightness "
        "contrast sharpness saturation gray_entropy clipped_share decode_ms infer_ms total_ms"
    )
    changes: dict[str, Any] = dict.fromkeys(absent.split())
    return replace(answered_row(prediction_id), status="rejected", reason=reason, batch_size=0, **changes)
