"""visionloop.compression.repairs and sensitivity: float answers stay, planted faults are found and mended."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.torch_models import fresh_onnx
from visionloop.compression.graph import array, channel_statistics, prepare, tensors, weighted_nodes
from visionloop.compression.parity import logit_error
from visionloop.compression.quantize import Quantizer, Recipe
from visionloop.compression.repairs import bias_corrected, equalised, smoothed
from visionloop.compression.sensitivity import layer_errors
from visionloop.runtime import OnnxModel

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
CNN = Recipe(("Conv", "Gemm", "Relu"), seven_bits=True, per_channel=False)


def chain(*, uneven: float = 1.0, outlier: float = 1.0, biased: bool = False) -> onnx.ModelProto:
    """Three convolutions over ReLUs, a mean, a head. Channel 0 between the first two is `uneven` times larger and read that
    much less; the second has one weight `outlier` times the others; `biased` weights of the third all round up."""
    weights = [RNG_WEIGHTS[0].copy(), RNG_WEIGHTS[1].copy(), RNG_WEIGHTS[2].copy()]
    weights[0][0] *= uneven
    weights[1][:, 0] /= uneven
    weights[1][1, 1, 1, 1] *= outlier
    if biased:  # the largest is 1, so a step is 1/63 with 7 bits, and each other weight lies 0.4 steps below a whole one
        weights[2] = np.full((8, 8, 3, 3), 20.4 / 63, np.float32)
        weights[2][:, 0, 0, 0] = 1
    nodes = [
        helper.make_node("Transpose", ["images"], ["channels"], perm=[0, 3, 1, 2], name="layout"),
        helper.make_node("Cast", ["channels"], ["float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Div", ["float", "levels"], ["x0"], name="scale"),
    ]
    for index in range(3):
        names = [f"x{index}", f"w{index}", f"b{index}"]
        nodes.append(helper.make_node("Conv", names, [f"y{index}"], name=f"conv{index}", pads=[int(index < 2)] * 4))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"], name=f"relu{index}"))
    nodes += [
        helper.make_node("ReduceMean", ["x3", "axes"], ["embedding"], keepdims=0, name="mean"),
        helper.make_node("Gemm", ["embedding", "head", "head_bias"], ["logits"], name="head_node"),
    ]
    known: dict[str, npt.NDArray[np.generic]] = {
        "levels": np.array(255, np.float32),
        "axes": np.array([2, 3], np.int64),
        **{f"w{index}": one for index, one in enumerate(weights)},
        **{f"b{index}": np.full(8, 0.05, np.float32) for index in range(3)},
        "head": RNG_WEIGHTS[3],
        "head_bias": np.zeros(3, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8]),
        ],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(proto, {"labels": json.dumps(["a", "b", "c"])})
    return prepare(proto.SerializeToString())


RNG_WEIGHTS = [RNG.normal(0, 0.2, shape).astype(np.float32) for shape in ((8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (8, 3))]


def answers(data: bytes | onnx.ModelProto) -> npt.NDArray[np.float32]:
    raw = data if isinstance(data, bytes) else data.SerializeToString()
    return OnnxModel(raw, threads=1).run(IMAGES)[0]


def test_equalised_convolutions_answer_the_same_and_have_like_ranges() -> None:
    graph = chain(uneven=100)
    changed, places = equalised(graph)
    assert places == 2
    assert logit_error(answers(graph), answers(changed)) < 1e-5
    known = tensors(changed.graph)
    first, second, _ = (array(known[node.input[1]]) for node in weighted_nodes(changed.graph)[:3])
    out, into = np.abs(first).max(axis=(1, 2, 3)), np.abs(second).max(axis=(0, 2, 3))
    assert out[0] == pytest.approx(into[0] * out[1] / into[1], rel=0.5)  # channel 0 is one among others again
    before, after = (logit_error(answers(graph), answers(Quantizer(one, IMAGES).static(CNN))) for one in (graph, changed))
    assert after < 0.5 * before


def test_a_vit_has_nothing_to_equalise_and_its_smoothed_form_answers_the_same() -> None:
    graph = prepare(fresh_onnx("vit"))
    images = RNG.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    changed, places = smoothed(graph, images)
    assert places == 2 * 2  # both norms of both blocks; the last norm is read by the mean
    before, after = (OnnxModel(one.SerializeToString(), threads=1).run(images)[0] for one in (graph, changed))
    assert logit_error(before, after) < 1e-5
    norms = [node.output[0] for node in graph.graph.node if node.op_type == "LayerNormalization"][:1]
    assert np.ptp(channel_statistics(changed, norms, images)[norms[0]][1]) != np.ptp(
        channel_statistics(graph, norms, images)[norms[0]][1]
    )
    assert equalised(graph)[1] == 0


def test_smoothing_takes_an_outlier_channel_out_of_the_activations() -> None:
    graph = prepare(fresh_onnx("vit"))
    norm = next(node for node in graph.graph.node if node.op_type == "LayerNormalization")
    known = tensors(graph.graph)
    scale = array(known[norm.input[1]]).copy()
    scale[0] *= 1000
    known[norm.input[1]].CopyFrom(numpy_helper.from_array(scale, norm.input[1]))
    images = RNG.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    changed, _ = smoothed(graph, images)
    spread = []
    for one in (graph, changed):
        most = channel_statistics(one, [norm.output[0]], images)[norm.output[0]][1]
        spread.append(float(most.max() / np.median(most)))
    assert spread[0] > 300 and spread[1] < 0.15 * spread[0]


def test_bias_correction_takes_out_a_planted_bias() -> None:
    """All weights but the largest round the same way, so that the mean of each channel moves."""
    graph = chain(biased=True)
    plain = Quantizer(graph, IMAGES).static(CNN)
    changed, places = bias_corrected(graph, plain, IMAGES)
    assert places == 4
    corrected = Quantizer(changed, IMAGES).static(CNN)
    expected = OnnxModel(graph.SerializeToString(), threads=1).run(IMAGES)[1].mean(axis=0)
    before, after = (
        float(np.abs(OnnxModel(one, threads=1).run(IMAGES)[1].mean(axis=0) - expected).max()) for one in (plain, corrected)
    )
    assert after < 0.4 * before


def test_the_layer_with_an_outlier_is_the_most_sensitive() -> None:
    graph = chain(outlier=300)
    expected = answers(graph)
    found = layer_errors(Quantizer(graph, IMAGES), CNN, IMAGES, expected)
    assert [one.operator for one in found].count("Conv") == 3
    assert found[0].name == "conv1"
    assert found[0].error > 3 * found[1].error
    even = layer_errors(Quantizer(chain(), IMAGES), CNN, IMAGES, answers(chain()))
    assert max(one.error for one in even) < 0.3 * found[0].error


def test_the_sensitivity_ends_on_time() -> None:
    assert layer_errors(Quantizer(chain(), IMAGES), CNN, IMAGES, answers(chain()), deadline=0) == ()


def test_the_error_is_a_share_of_the_spread_and_ignores_what_changes_no_answer() -> None:
    expected = np.array([[1, 0], [0, 1]], np.float32)
    assert logit_error(expected, expected + 5) == 0
    assert logit_error(expected, 2 * expected) == pytest.approx(1)
