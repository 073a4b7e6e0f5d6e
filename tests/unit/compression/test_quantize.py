"""visionloop.compression.quantize: what becomes integer, what stays float, and what cannot be made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.onnx_models import TEST, TRAIN, digits, linear_model
from tests.torch_models import Family, fresh_onnx
from visionloop.compression.graph import normalisation_nodes, prepare
from visionloop.compression.parity import compare
from visionloop.compression.quantize import Quantizer, Recipe, calibration_indices, chained, half, products, quantize
from visionloop.errors import ArtifactError
from visionloop.runtime import OnnxModel

CNN = Recipe(("Conv", "Gemm", "MatMul", "Add", "Relu"), seven_bits=True)  # so that no sum saturates, whatever the processor
VIT = Recipe(("MatMul", "Gemm"), seven_bits=True)
RECIPES: dict[Family, Recipe] = {"cnn": CNN, "vit": VIT}
DATA = digits()
CALIBRATION = DATA.images[TRAIN][:70]  # not a multiple of the batch of 32
IMAGES = DATA.images[TEST][:60]


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
    images = IMAGES
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


@pytest.mark.parametrize(("seven_bits", "largest"), [(False, 127), (True, 64)])
def test_two_products_of_seven_bit_weights_fit_into_sixteen(seven_bits: bool, largest: int) -> None:
    """2 x 255 x 64 is below 2^15, so no pair of products saturates on a CPU without VNNI; 127 has no room."""
    graph = onnx.load_from_string(quantize(fresh_onnx("cnn"), CALIBRATION, replace(CNN, seven_bits=seven_bits))).graph
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
    with pytest.raises(ArtifactError, match=r"the graph has none of LSTM to quantize\); take FP32"):
        quantize(fresh_onnx("cnn"), CALIBRATION, Recipe(("LSTM",)))
    with pytest.raises(ArtifactError, match=r"^INT8 cannot be made \(") as error:
        quantize(b"no model", CALIBRATION, CNN)
    assert "\n" not in str(error.value)


def test_a_graph_is_quantized_by_its_products_alone_or_with_what_lies_between() -> None:
    graph = prepare(fresh_onnx("cnn")).graph
    assert products(graph) == ("Conv", "Gemm")
    assert chained(graph) == ("Conv", "Gemm", "Add", "Relu")
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    names = [node.op_type for node in onnx.load_from_string(quantize(fresh_onnx("cnn"), CALIBRATION, CNN)).graph.node]
    assert names.count("Conv") == [node.op_type for node in graph.node].count("Conv")


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_the_prepared_graph_answers_like_the_exported_one(family: Family) -> None:
    before = OnnxModel(fresh_onnx(family), threads=1)
    after = OnnxModel(prepare(fresh_onnx(family)).SerializeToString(), threads=1)
    assert compare(before.run(IMAGES), after.run(IMAGES)).max_logit_difference < 1e-5
    assert after.metadata == before.metadata


def test_a_layer_that_is_left_out_stays_float_and_one_that_is_named_alone_is_integer() -> None:
    quantizer = Quantizer(prepare(fresh_onnx("cnn")), CALIBRATION)
    names = [node.name for node in quantizer.graph.graph.node if node.op_type == "Conv"]
    left = integer_convolutions(quantizer.static(replace(CNN, excluded=(names[1],))))
    assert left == {*names} - {names[1]}
    assert integer_convolutions(quantizer.static(CNN, only=[names[2]])) == {names[2]}


def test_dynamic_ranges_take_no_images_and_leave_convolutions_alone() -> None:
    vit = Quantizer(prepare(fresh_onnx("vit")), CALIBRATION[:1]).dynamic(seven_bits=True)
    parity = compare(OnnxModel(fresh_onnx("vit"), threads=1).run(IMAGES), OnnxModel(vit, threads=1).run(IMAGES))
    assert parity.top1_agreement >= 0.9
    kinds = [node.op_type for node in onnx.load_from_string(vit).graph.node]
    assert "DynamicQuantizeLinear" in kinds and "ConvInteger" not in kinds and "Conv" in kinds


def test_signed_activations_are_symmetric() -> None:
    graph = onnx.load_from_string(quantize(fresh_onnx("cnn"), CALIBRATION, replace(CNN, activations="int8"))).graph
    tensors = {item.name: item for item in graph.initializer}
    zero_points = [tensors[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {item.data_type for item in zero_points} == {onnx.TensorProto.INT8}
    assert {int(numpy_helper.to_array(item)) for item in zero_points} == {0}


def test_half_precision_halves_the_file_and_keeps_inputs_outputs_and_answers() -> None:
    fp32 = fresh_onnx("cnn")
    fp16 = half(prepare(fp32))
    assert len(fp16) < 0.6 * len(fp32)
    parity = compare(OnnxModel(fp32, threads=1).run(IMAGES), OnnxModel(fp16, threads=1).run(IMAGES))
    # Ten bits of mantissa: 0.1 % of each map, over a dozen layers.
    assert parity.max_logit_difference < 0.02 and parity.top1_agreement >= 0.98


def integer_convolutions(data: bytes) -> set[str]:
    graph = onnx.load_from_string(data).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type == "Conv" and all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
    }


def test_making_int8_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime writes remarks on initializers past Python, to the terminal of whoever runs the stage."""
    quantizer = Quantizer(prepare(fresh_onnx("cnn")), CALIBRATION[:8])
    quantizer.static(Recipe(chained(quantizer.graph.graph), calibration="entropy"))
    quantizer.dynamic()
    assert capfd.readouterr() == ("", "")


def test_with_dynamic_ranges_an_answer_depends_on_its_neighbours_and_with_static_ones_it_does_not() -> None:
    """A black and a white image beside it widen the range that its batch is rounded in."""
    quantizer = Quantizer(prepare(fresh_onnx("vit")), CALIBRATION)
    image = DATA.images[TEST][:1]
    crowd = np.concatenate([image, np.zeros_like(image), np.full_like(image, 255)])
    moved = {}
    for name, data in (
        ("dynamic", quantizer.dynamic()),
        ("static", quantizer.static(Recipe(products(quantizer.graph.graph), seven_bits=True))),
    ):
        model = OnnxModel(data, threads=1)
        moved[name] = float(np.abs(model.run(image)[0] - model.run(crowd)[0][:1]).max())
    assert moved["static"] < 1e-5
    assert moved["dynamic"] > 1e-3
