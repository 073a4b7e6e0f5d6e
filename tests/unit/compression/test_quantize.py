"""visionloop.compression.quantize: what becomes integer, what stays float, and when INT8 is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.onnx_models import TEST, TRAIN, VAL, digits, linear_answer, linear_model
from tests.torch_models import Family, fresh_onnx
from visionloop.compression.parity import compare
from visionloop.compression.quantize import (
    Comparison,
    Figures,
    HeldOut,
    Recipe,
    calibration_indices,
    choose,
    flat,
    judge,
    measure,
    normalisation_nodes,
    quantize,
    weight_bits,
)
from visionloop.errors import ArtifactError
from visionloop.runtime import OnnxModel

CNN = Recipe(("Conv", "Gemm", "MatMul", "Add", "Relu"), weight_bits=weight_bits())
VIT = Recipe(("MatMul", "Gemm"), weight_bits=weight_bits())
RECIPES: dict[Family, Recipe] = {"cnn": CNN, "vit": VIT}
DATA = digits()
CALIBRATION = DATA.images[TRAIN][:70]  # not a multiple of the batch of 32
HELD_OUT = HeldOut(DATA.images[VAL][:60], DATA.labels[VAL][:60], DATA.images[TEST][:60], DATA.labels[TEST][:60])


def test_calibration_takes_each_class_by_its_share_and_none_is_left_out() -> None:
    labels = np.array([0] * 60 + [1] * 39 + [2])
    chosen = calibration_indices(labels, 10)
    assert [int((labels[chosen] == label).sum()) for label in range(3)] == [6, 4, 1]
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5, 60, 61, 62, 63, 99]
    assert calibration_indices(labels, 500).tolist() == list(range(100))


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_int8_answers_nearly_like_fp32_and_keeps_the_metadata(family: Family) -> None:
    fp32 = fresh_onnx(family)
    int8 = quantize(fp32, CALIBRATION, RECIPES[family])
    before, after = OnnxModel(fp32, threads=1), OnnxModel(int8, threads=1)
    images = HELD_OUT.test_images
    parity = compare(before.run(images), after.run(images))
    spread = float(before.run(images)[0].std())
    # A step of INT8 is 1/255 of a range; after a few layers of random weights a logit is off by some per cent of its spread.
    assert parity.max_logit_difference < 0.35 * spread
    assert parity.top1_agreement >= 0.85
    assert dict(before.metadata).items() <= dict(after.metadata).items()
    assert len(int8) < 0.6 * len(fp32)


def test_activations_are_uint8_and_weights_int8_with_a_scale_per_channel() -> None:
    graph = onnx.load_from_string(quantize(fresh_onnx("cnn"), CALIBRATION, CNN)).graph
    tensors = {item.name: item for item in graph.initializer}
    zero_points = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points
    assert {tensors[name].data_type for name in zero_points} == {onnx.TensorProto.UINT8}
    from_weights = {
        node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors
    }
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) >= 5
    for node in convolutions:
        weight, scale, *_ = from_weights[node.input[1]].input
        assert tensors[weight].data_type == onnx.TensorProto.INT8
        assert list(tensors[scale].dims) == [tensors[weight].dims[0]]


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_two_products_of_seven_bit_weights_fit_into_sixteen(bits: Literal[7, 8], largest: int) -> None:
    """2 x 255 x 64 is below 2^15, so no pair of products saturates on a CPU without VNNI; 127 has no room."""
    graph = onnx.load_from_string(quantize(fresh_onnx("cnn"), CALIBRATION, replace(CNN, weight_bits=bits))).graph
    weights = [numpy_helper.to_array(item) for item in graph.initializer if item.data_type == onnx.TensorProto.INT8]
    found = max(int(np.abs(item.astype(int)).max()) for item in weights if item.ndim > 1)
    assert found == largest


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_the_normalisation_of_the_input_stays_float(family: Family) -> None:
    graph = onnx.load_from_string(fresh_onnx(family)).graph
    names = normalisation_nodes(graph)
    assert [node.op_type for node in graph.node if node.name in names] == ["Transpose", "Cast", "Div", "Sub", "Div"]
    everything = Recipe(("Transpose", "Div", "Sub", "Add", "Conv", "Gemm", "MatMul"))
    quantized = onnx.load_from_string(quantize(fresh_onnx(family), CALIBRATION, everything)).graph
    makers = {output: node.op_type for node in quantized.node for output in node.output}
    for node in quantized.node:
        if node.name in names:
            assert "DequantizeLinear" not in {makers.get(name) for name in node.input}, node.name


def test_products_of_a_vit_stay_float_after_the_integer_product() -> None:
    graph = onnx.load_from_string(quantize(fresh_onnx("vit"), CALIBRATION, VIT)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    readers = {name: node.op_type for node in graph.node for name in node.input}
    assert len(products) == 2 * 6 + 1  # qkv, two of the attention, project, widen, narrow; the head
    assert {makers[name] for node in products for name in node.input[:2]} == {"DequantizeLinear"}
    assert "QuantizeLinear" not in {readers.get(node.output[0]) for node in products if node.op_type == "Gemm"}
    assert "LayerNormalization" in makers.values()
    assert "DequantizeLinear" not in {
        makers.get(node.input[0]) for node in graph.node if node.op_type in ("LayerNormalization", "Gelu", "Softmax")
    }


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_each_calibration_is_silent_and_gives_equal_bytes_twice(calibration: str, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = replace(CNN, calibration=calibration)  # type: ignore[arg-type]
    first = quantize(fresh_onnx("cnn"), CALIBRATION, recipe)
    assert quantize(fresh_onnx("cnn"), CALIBRATION, recipe) == first
    assert capfd.readouterr() == ("", "")
    assert b"/tmp" not in first
    domains = {item.domain for item in onnx.load_from_string(first).opset_import}
    assert domains == {""}


@pytest.mark.parametrize("brightest", [51, 204])
def test_the_range_is_that_of_the_images_given(brightest: int) -> None:
    """The Gemm of the linear model reads the mean colour, 0 to `brightest` here, in 255 steps."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1] = brightest
    graph = onnx.load_from_string(quantize(linear_model().SerializeToString(), images, Recipe(("Gemm",)))).graph
    (scale,) = (node.input[1] for node in graph.node if node.op_type == "QuantizeLinear")
    tensors = {item.name: item for item in graph.initializer}
    assert float(numpy_helper.to_array(tensors[scale])) == pytest.approx(brightest / 255)


def test_nothing_to_quantize_and_a_broken_graph_are_refused_in_one_sentence() -> None:
    with pytest.raises(ArtifactError, match=r"the graph has none of LSTM to quantize\); change `quantize\.operators`"):
        quantize(fresh_onnx("cnn"), CALIBRATION, Recipe(("LSTM",)))
    with pytest.raises(ArtifactError, match=r"^INT8 cannot be made \(") as error:
        quantize(b"no model", CALIBRATION, CNN)
    assert "\n" not in str(error.value)


FP32 = Figures(1.0, 0.990, 0.985, 1.0, 1.2, 2000.0, 0.01)


def comparison(*, val: float = 0.990, test: float = 0.985, batch_1: float = 1.5, batch_32: float = 2.0) -> Comparison:
    int8 = Figures(0.3, val, test, 1.0 / batch_1, 1.2 / batch_1, 2000.0 * batch_32, 0.02)
    return Comparison(FP32, int8, agreement=0.99, speedup_batch_1=batch_1, speedup_batch_32=batch_32)


@pytest.mark.parametrize(
    ("measured", "precision", "reason"),
    [
        (
            comparison(),
            "int8",
            "INT8 is shipped: it loses no accuracy on val (0.5 points allowed) and ran here at ",
        ),
        (comparison(val=0.986), "int8", "INT8 is shipped: it loses 0.40 points of accuracy on val"),
        (comparison(val=0.985), "int8", "INT8 is shipped: it loses 0.50 points"),
        (
            comparison(val=0.984),
            "fp32",
            "FP32 is shipped: INT8 loses 0.60 points of accuracy on val, more than the 0.5 allowed.",
        ),
        (comparison(test=0.5), "int8", "INT8 is shipped"),  # test is reported and does not decide
        (
            comparison(batch_1=1.09),
            "int8",
            "and ran here at 1.2 x the speed of FP32 over batch sizes 1 and 32 or more.",
        ),  # 1.48 over both
        (
            comparison(batch_1=1.07),
            "fp32",
            "FP32 is shipped: INT8 loses no accuracy on val, but ran here at less than 1.2 x the speed of FP32",
        ),
        (comparison(batch_32=1.07), "fp32", "ran here at less than 1.2 x the speed of FP32 over batch sizes 1 and 32."),
        (comparison(batch_1=1.19, batch_32=1.19), "fp32", "ran here at less than 1.2 x"),
        (comparison(batch_1=1.15, batch_32=1.3), "int8", "INT8 is shipped"),
        (comparison(val=0.999), "int8", "it loses no accuracy on val"),
    ],
)
def test_the_verdict_and_its_reason(measured: Comparison, precision: str, reason: str) -> None:
    verdict = judge(measured, max_accuracy_drop=0.005, min_speedup=1.2)
    assert verdict.precision == precision
    assert reason in verdict.reason


def test_figures_are_flat_numbers_with_units_in_their_names() -> None:
    numbers = flat(comparison())
    assert numbers["int8_images_per_second_batch_32"] == 4000
    assert numbers["fp32_latency_ms_batch_1"] == 1
    assert (numbers["speedup_batch_1"], numbers["speedup_batch_32"], numbers["int8_agreement"]) == (1.5, 2.0, 0.99)
    assert all(isinstance(value, float) for value in numbers.values())


def test_a_form_with_useless_work_is_measured_as_slower_and_refused() -> None:
    fast = linear_model(side=16).SerializeToString()
    slow = linear_model(side=16, useless_work=60).SerializeToString()
    held_out = linear_held_out()
    found = measure(fast, slow, held_out, seconds=0.2)
    assert (found.fp32.val_accuracy, found.int8.val_accuracy, found.agreement) == (1, 1, 1)
    assert found.speedup < 0.5
    verdict = judge(found, max_accuracy_drop=0.005, min_speedup=1.0)
    assert verdict.precision == "fp32"
    assert "ran here at less than 1 x the speed of FP32" in verdict.reason
    assert measure(slow, fast, held_out, seconds=0.2).speedup > 2


def test_choose_ships_fp32_with_the_reason_where_int8_cannot_be_made() -> None:
    fp32 = fresh_onnx("cnn")
    none = Recipe(("LSTM",))
    found = choose(fp32, CALIBRATION, HELD_OUT, none, max_accuracy_drop=1, min_speedup=0, beside={"other": OnnxModel(fp32)})
    assert (found.data, found.verdict.precision, found.comparison, found.int8) == (fp32, "fp32", None, None)
    assert found.verdict.reason.startswith("FP32 is shipped: INT8 cannot be made (the graph has none of LSTM")
    assert {name: [one.batch_size for one in speeds] for name, speeds in found.speeds.items()} == {
        "other": [1, 8, 32], "fp32": [1, 8, 32]
    }  # fmt: skip


def test_an_int8_that_is_not_shipped_is_measured_all_the_same() -> None:
    fp32 = fresh_onnx("cnn")
    found = choose(fp32, CALIBRATION, HELD_OUT, CNN, max_accuracy_drop=1, min_speedup=100)
    assert (found.data, found.verdict.precision) == (fp32, "fp32")
    assert found.int8 and len(found.int8) < len(fp32)
    assert found.comparison and found.comparison.int8.latency_ms_batch_1 == found.speeds["int8"][0].p50_ms


def linear_held_out() -> HeldOut:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    labels = linear_answer(images)[0].argmax(axis=1).astype(np.int64)
    return HeldOut(images[:20], labels[:20], images[20:], labels[20:])
