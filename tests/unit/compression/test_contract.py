"""visionloop.compression.contract: what every ONNX file keeps to, and the sentence for each that does not."""

from __future__ import annotations

import json
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from tests.torch_models import OPSET, Family, fresh, fresh_onnx
from visionloop.card import ModelCard
from visionloop.compression.contract import check_graph
from visionloop.errors import ArtifactError
from visionloop.preprocess import PreprocessSpec

NAME = "models/shipped/model.onnx"


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.load_from_string(fresh_onnx("cnn"))
    change(proto)
    return bytes(proto.SerializeToString())


def dimension(item: onnx.ValueInfoProto, place: int) -> onnx.TensorShapeProto.Dimension:
    found: onnx.TensorShapeProto.Dimension = item.type.tensor_type.shape.dim[place]
    return found


def entry(proto: onnx.ModelProto, key: str) -> onnx.StringStringEntryProto:
    found: onnx.StringStringEntryProto = next(item for item in proto.metadata_props if item.key == key)
    return found


def fix_batch(proto: onnx.ModelProto) -> None:
    for item in (*proto.graph.input, *proto.graph.output):
        dimension(item, 0).dim_value = 4
    del proto.graph.value_info[:]


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "pixels"
    for node in proto.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]


def second_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 16, 16, 3]))


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_what_export_writes_keeps_to_it(family: Family) -> None:
    _, card = fresh(family)
    facts = check_graph(fresh_onnx(family), card, NAME)
    assert (facts.opset, facts.domains, facts.metadata) == (OPSET, ("",), 11)
    assert facts.megabytes == len(fresh_onnx(family)) / 1e6
    assert facts.nodes > 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (fix_batch, r"its inputs have a fixed batch, .*'images', 2, \[4, 16, 16, 3\]"),
        (rename_input, r"its inputs are .*'pixels'.* after the batch"),
        (second_output, r"its outputs are .*'logits'.*'embedding'.*'images'"),
        (lambda proto: proto.graph.output.pop(), r"its outputs are .*'logits'.*not .*'embedding'"),
        (lambda proto: entry(proto, "labels").__setattr__("value", '["a"]'), r"its metadata say '\[\"a\"\]' of labels"),
        (lambda proto: entry(proto, "mean").__setattr__("value", "{"), r"its metadata say '\{' of mean"),
        (lambda proto: proto.metadata_props.remove(entry(proto, "preprocess")), r"say 'nothing' of preprocess"),
    ],
    ids=["batch", "input", "third output", "no embedding", "labels", "no JSON", "no preprocessing"],
)
def test_another_form_is_refused(change: Callable[[onnx.ModelProto], object], sentence: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^models/shipped/model\.onnx: .*{sentence}"):
        check_graph(changed(change), fresh("cnn")[1], NAME)


def test_a_graph_whose_shapes_contradict_each_other_is_refused() -> None:
    def wrong(proto: onnx.ModelProto) -> None:
        dimension(next(item for item in proto.graph.output if item.name == "logits"), 1).dim_value = 11

    with pytest.raises(ArtifactError, match=r"^models/shipped/model\.onnx is not valid ONNX \(.*\); export it again"):
        check_graph(changed(wrong), fresh("cnn")[1], NAME)
    with pytest.raises(ArtifactError, match="is not valid ONNX"):
        check_graph(changed(lambda proto: proto.graph.node.pop(0)), fresh("cnn")[1], NAME)


@pytest.mark.parametrize(
    ("update", "key"),
    [
        ({"labels": tuple("1023456789")}, "labels"),
        ({"preprocess": PreprocessSpec(16, 16, fit="crop")}, "preprocess"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean"),
    ],
)
def test_a_card_that_says_otherwise_is_refused(update: dict[str, object], key: str) -> None:
    card: ModelCard = fresh("cnn")[1].model_copy(update=update)
    with pytest.raises(ArtifactError, match=rf"metadata say .* of {key}, its card") as error:
        check_graph(fresh_onnx("cnn"), card, NAME)
    assert json.dumps(update[key] if key != "preprocess" else "crop")[:10] in str(error.value) or key == "preprocess"
