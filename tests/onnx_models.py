"""Models for tests: a linear one whose answers can be worked out by hand, and small trained networks on the digits."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from visionloop.card import ModelCard
from visionloop.paths import MODEL_ONNX
from visionloop.preprocess import PreprocessSpec

LABELS = ("ant", "bee", "cat")
SIDE = 4
Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

# logits = means of R, G, B over the image (0 to 255) @ WEIGHTS + BIAS; embedding = these means.
WEIGHTS = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
BIAS = np.array([0, 1, -1], dtype=np.float32)


def linear_answer(images: Images) -> tuple[Floats, Floats]:
    """What `linear_model` answers, worked out by numpy."""
    means = images.astype(np.float64).mean(axis=(1, 2))
    return (means @ WEIGHTS + BIAS).astype(np.float32), means.astype(np.float32)


def linear_model(
    *,
    weights: npt.NDArray[np.float32] = WEIGHTS,
    labels: tuple[str, ...] = LABELS,
    side: int = SIDE,
    input_type: int = TensorProto.UINT8,
    batch: str | int = "batch",
    embedding_name: str = "embedding",
    opset: int = 20,
    useless_work: int = 0,
) -> onnx.ModelProto:
    """An ONNX classifier uint8 [batch, side, side, 3] -> logits [batch, 3], embedding [batch, 3], made node by node.

    `useless_work` adds so many sines over the whole image to the way of the logits, times zero.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], [embedding_name], keepdims=0),
        helper.make_node("Gemm", [embedding_name, "weights", "bias"], ["plain" if useless_work else "logits"]),
    ]
    if useless_work:
        names = ["float", *(f"sine{index}" for index in range(useless_work))]
        nodes += [helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names)]
        nodes += [
            helper.make_node("ReduceMax", [names[-1], "axes"], ["top"], keepdims=0),
            helper.make_node("Mul", ["top", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", input_type, [batch, side, side, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, weights.shape[1]]),
            helper.make_tensor_value_info(embedding_name, TensorProto.FLOAT, [batch, 3]),
        ],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(BIAS[: weights.shape[1]], "bias"),
            *([numpy_helper.from_array(np.zeros(1, np.float32), "zero")] if useless_work else []),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(proto, {"labels": json.dumps(labels)})
    return proto


def linear_card(**changes: object) -> ModelCard:
    """The card of `linear_model`, without files."""
    card = ModelCard(
        family="cnn",
        architecture="linear",
        labels=LABELS,
        preprocess=PreprocessSpec(SIDE, SIDE),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        embedding_size=3,
        precision="fp32",
        parameters=12,
    )
    return card.model_copy(update=changes)


def write_linear(folder: Path, proto: onnx.ModelProto | None = None, **changes: object) -> ModelCard:
    """A model folder with `linear_model` and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_ONNX).write_bytes((proto or linear_model()).SerializeToString())
    card = linear_card(**changes).with_files(folder, (MODEL_ONNX,))
    card.write(folder)
    return card


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits at 16 x 16, as the pipeline packs them, in a fixed random order."""

    images: Images  # [1797, 16, 16, 3]
    labels: npt.NDArray[np.int64]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


TRAIN, VAL, TEST = slice(0, 1257), slice(1257, 1617), slice(1617, 1797)


@functools.cache
def digits() -> Digits:
    """The digits; loaded once per process."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    gray = [Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)) for image in bunch.images[order]]
    resized = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) for image in gray])
    images = np.repeat(resized[..., None], 3, axis=3)
    share = images[TRAIN] / 255
    mean, std = float(share.mean()), float(share.std())
    return Digits(images, bunch.target[order].astype(np.int64), (mean,) * 3, (std,) * 3)
