"""visionloop.onnx_file: evil and damaged ONNX files are refused from their bytes, and what real exporters write passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from tests.onnx_models import WEIGHTS, linear_model
from tests.torch_models import fresh_onnx
from visionloop.errors import ArtifactError
from visionloop.onnx_file import check_onnx
from visionloop.runtime import OnnxModel

GOOD = linear_model()


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.ModelProto()
    proto.CopyFrom(GOOD)
    change(proto)
    return bytes(proto.SerializeToString())


def initializer(proto: onnx.ModelProto, name: str = "weights") -> onnx.TensorProto:
    found: onnx.TensorProto = next(item for item in proto.graph.initializer if item.name == name)
    return found


def outside(path: str) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        weights = initializer(proto)
        set_external_data(weights, path)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL

    return change


def value_before_key(proto: onnx.ModelProto) -> None:
    """The same in an order of fields that no library writes and every one reads."""
    weights = initializer(proto)
    weights.ClearField("raw_data")
    entry = b"\x12\x0b/etc/passwd" + b"\x0a\x08location"
    weights.MergeFromString(b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01")
    assert weights.external_data[0].key == "location"


def constant_outside(proto: onnx.ModelProto) -> None:
    """Not among the initializers, but in an attribute of a node, in a graph of another node."""
    tensor = numpy_helper.from_array(WEIGHTS, "hidden")
    set_external_data(tensor, "../../weights.bin")
    tensor.ClearField("raw_data")
    inner = helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "inner", [], [])
    proto.graph.node.append(helper.make_node("If", ["images"], ["y"], then_branch=inner, else_branch=inner))


def numbers_of_nothing(dims: list[int]) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        del initializer(proto).dims[:]
        initializer(proto).dims.extend(dims)

    return change


def nan(kind: type[np.floating]) -> Callable[[onnx.ModelProto], object]:
    weights = WEIGHTS.astype(kind)
    weights[1, 1] = np.nan
    return lambda proto: initializer(proto).CopyFrom(numpy_helper.from_array(weights, "weights"))


def unpacked_nan(proto: onnx.ModelProto) -> None:
    initializer(proto).CopyFrom(helper.make_tensor("weights", TensorProto.FLOAT, [3, 3], [0.0] * 8 + [float("nan")]))


def foreign(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Shell", ["images"], ["y"], domain="evil.example"))


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on: deeper than any library of protobuf would write."""
    graph = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # graph of an attribute, attribute of a node, node of a graph
            graph = tag + bytes([len(graph) & 127 | 128, len(graph) >> 7]) + graph
    return b"\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7]) + graph


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"has no bytes; rebuild it with `dvc repro`\.$"),
        (changed(lambda _: None)[:-1], r"cannot be loaded \(it is cut short or damaged\)"),
        (changed(lambda _: None)[:300], r"cannot be loaded \(it is cut short or damaged\)"),
        (b"<!DOCTYPE html><html></html>", r"cannot be loaded \(it is no ONNX file\)"),
        (b"\x00" * 64, r"cannot be loaded \(it is no ONNX file\)"),
        (b"\xff" * 64, r"cannot be loaded \(it is no ONNX file\)"),
        (b"\x08\x0a", r"cannot be loaded \(it has no graph\)"),
        (b"\x38\x01", r"cannot be loaded \(a number stands where a message should\)"),
        (changed(outside("weights.bin")), r"keeps the weights 'weights' in another file"),
        (changed(outside("../../../../etc/passwd")), r"keeps the weights 'weights' in another file"),
        (changed(outside("/etc/passwd")), r"keeps the weights 'weights' in another file"),
        (changed(value_before_key), r"keeps the weights 'weights' in another file"),
        (changed(constant_outside), r"keeps the weights 'hidden' in another file"),
        (changed(foreign), r"has the operator 'Shell' of 'evil\.example', which is in a library of its own"),
        (changed(numbers_of_nothing([1 << 40])), r"declares 1099511627776 numbers for the weights 'weights' and holds 9"),
        (changed(numbers_of_nothing([1 << 31, 1 << 31])), r"declares 2147483648 x 2147483648 numbers"),
        (changed(numbers_of_nothing([-3, -3])), r"numbers for the weights 'weights' and holds 9"),
        (changed(nan(np.float32)), r"has NaN among the weights 'weights'"),
        (changed(nan(np.float64)), r"has NaN among the weights 'weights'"),
        (changed(nan(np.float16)), r"has NaN among the weights 'weights'"),
        (changed(unpacked_nan), r"has NaN among the weights 'weights'"),
        (nested(1000), r"has graphs within graphs, over 32 deep"),
    ],
    ids=[
        "empty", "last byte gone", "cut in half", "html", "zeros", "ones", "no graph", "a number for a graph", "outside",
        "path traversal", "absolute path", "fields in another order", "in a subgraph", "foreign operator", "a terabyte",
        "overflow", "negative", "nan", "nan in double", "nan in half", "nan unpacked", "nested",
    ],
)  # fmt: skip
def test_evil_and_damage_are_refused_before_any_library_loads_them(
    data: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("ONNX Runtime was asked")

    monkeypatch.setattr("onnxruntime.InferenceSession", never)
    with pytest.raises(ArtifactError, match=sentence) as error:
        OnnxModel(data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_damaged_byte_is_a_sentence_or_nothing_that_the_walk_could_see() -> None:
    good = GOOD.SerializeToString()
    refused = 0
    for position, bit in itertools.product(range(len(good)), (1, 128)):
        data = bytearray(good)
        data[position] ^= bit
        try:
            check_onnx(bytes(data))
        except ArtifactError as error:
            assert str(error).startswith("The ONNX model ")
            refused += 1
    assert 0.1 < refused / (2 * len(good)) < 0.9  # names and weights may be anything; their hash is in the card


def test_what_exporters_write_passes(tmp_path: Path) -> None:
    for data in (GOOD.SerializeToString(), fresh_onnx("cnn"), fresh_onnx("vit")):
        check_onnx(data)
    # Infinity is what attention masks are made of.
    mask = np.full((3, 3), -np.inf, np.float32)
    check_onnx(changed(lambda proto: initializer(proto).CopyFrom(numpy_helper.from_array(mask, "weights"))))
    check_onnx(changed(lambda proto: initializer(proto).CopyFrom(numpy_helper.from_array(np.zeros((0, 3)), "weights"))))
    for kind, size in ((TensorProto.INT4, 8), (TensorProto.FLOAT16, 4), (TensorProto.BOOL, 4), (TensorProto.BFLOAT16, 4)):
        tensor = helper.make_tensor("more", kind, [size], [0] * size)
        check_onnx(changed(lambda proto, tensor=tensor: proto.graph.initializer.append(tensor)))  # type: ignore[misc]


def test_operators_that_the_model_brings_itself_pass() -> None:
    twice = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 20)]
    )

    def change(proto: onnx.ModelProto) -> None:
        proto.functions.append(twice)
        proto.graph.node.append(helper.make_node("Twice", ["logits"], ["more"], domain="own"))

    check_onnx(changed(change))


def test_many_nodes_pass() -> None:
    check_onnx(changed(lambda proto: proto.graph.node.extend(helper.make_node("Sin", ["a"], ["b"]) for _ in range(20_000))))
