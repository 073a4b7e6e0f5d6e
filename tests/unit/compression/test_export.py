"""visionloop.compression.export: a file that says what it is, holds no path, and answers like torch."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.onnx_models import TEST, digits
from tests.torch_models import OPSET, Family, fresh, fresh_onnx
from visionloop.card import Calibration
from visionloop.compression.export import Calibrated, export_onnx, onnx_bytes, torch_answers
from visionloop.compression.parity import Golden, prove_parity
from visionloop.errors import ArtifactError, ParityError
from visionloop.features import softmax
from visionloop.preprocess import RULES
from visionloop.runtime import OnnxModel, check_agreement

FAMILIES: tuple[Family, ...] = ("cnn", "vit")
IMAGES = digits().images[TEST][:9]


@pytest.mark.parametrize("family", FAMILIES)
def test_input_outputs_and_opset_are_as_promised(family: Family) -> None:
    proto = onnx.load_from_string(fresh_onnx(family))
    onnx.checker.check_model(proto, full_check=True)
    (images,) = proto.graph.input
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 16, 16, 3]
    size = fresh(family)[1].embedding_size
    outputs = {
        item.name: [d.dim_param or d.dim_value for d in item.type.tensor_type.shape.dim] for item in proto.graph.output
    }
    assert outputs == {"logits": ["batch", 10], "embedding": ["batch", size]}
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", OPSET)]


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_and_onnx_agree_at_every_batch_size(family: Family) -> None:
    model, _ = fresh(family)
    golden = Golden(IMAGES, tuple("abcdefghi"), *torch_answers(model, IMAGES))
    parity = prove_parity(OnnxModel(fresh_onnx(family)), golden, tolerance=1e-4)
    # Both sum float32 in another order; logits are of the order of 1, so 1e-5 is some tens of roundings.
    assert parity.max_logit_difference < 1e-5
    assert parity.max_embedding_difference < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_temperature_is_in_the_graph_and_the_embedding_is_untouched(family: Family) -> None:
    model, card = fresh(family)
    calibration = Calibration(temperature=2.5, precision_thresholds={}, unknown=None, review_below=0.0, review_share=0.0)
    calibrated = Calibrated(model, calibration.temperature)
    data = onnx_bytes(calibrated, card=card.model_copy(update={"calibration": calibration}), opset=OPSET)
    onnx_model = OnnxModel(data)
    golden = Golden(IMAGES, tuple("abcdefghi"), *torch_answers(calibrated, IMAGES))
    assert prove_parity(onnx_model, golden, tolerance=1e-5).top1_agreement == 1
    raw, embedding = torch_answers(model, IMAGES)
    logits, same = onnx_model.run(IMAGES)
    assert logits * 2.5 == pytest.approx(raw, abs=1e-5)
    assert same == pytest.approx(embedding, abs=1e-4)
    assert softmax(logits) == pytest.approx(calibration.apply(raw), abs=1e-6)
    assert onnx_model.metadata["temperature"] == "2.5"
    with pytest.raises(ParityError, match="so this is not the model"):
        prove_parity(onnx_model, Golden(IMAGES, tuple("abcdefghi"), raw, embedding), tolerance=1e-3)


def test_another_preprocessing_is_no_parity() -> None:
    model, _ = fresh("cnn")
    golden = Golden(IMAGES, tuple("abcdefghi"), *torch_answers(model, IMAGES // 2))
    with pytest.raises(ParityError, match="so this is not the model that gave the golden answers"):
        prove_parity(OnnxModel(fresh_onnx("cnn")), golden, tolerance=1e-3)


def test_no_path_and_no_debugging_note_is_inside() -> None:
    data = fresh_onnx("cnn")
    for trace in (b".py", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/", b"stack_trace", b"site-packages"):
        assert trace not in data
    proto = onnx.load_from_string(data)
    assert not [node.name for node in proto.graph.node if node.doc_string or node.metadata_props]
    assert not [item for item in proto.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]


def test_the_file_says_of_itself_what_a_reader_needs() -> None:
    _, card = fresh("cnn")
    model = OnnxModel(fresh_onnx("cnn"))
    said = dict(model.metadata)
    assert json.loads(said.pop("labels")) == list("0123456789")
    spec = {"height": 16, "width": 16, "fit": "stretch", "filter": "bilinear"}
    assert json.loads(said.pop("preprocess")) == {**spec, **RULES}
    assert json.loads(said.pop("mean")) == pytest.approx(card.mean)
    assert json.loads(said.pop("std")) == pytest.approx(card.std)
    assert said == {
        "preprocess_version": card.preprocess.version,
        "architecture": "small_resnet",
        "embedding_size": "32",
        "data": "d" * 64,
        "visionloop": "0.0.0",
        "opset": "20",
        "temperature": "1.0",
    }
    check_agreement(model, card, Path("models/exported"))


def test_export_writes_the_same_whole_file_again_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, card = fresh("cnn")
    expected = fresh_onnx("cnn")
    model.train()
    export_onnx(model, tmp_path / "sub" / "model.onnx", card=card, opset=OPSET)
    assert (tmp_path / "sub" / "model.onnx").read_bytes() == expected
    assert [item.name for item in (tmp_path / "sub").iterdir()] == ["model.onnx"]
    assert not model.training
    assert capfd.readouterr() == ("", "")


def test_an_operation_without_an_onnx_form_is_refused_in_one_sentence() -> None:
    _, card = fresh("cnn")
    with pytest.raises(
        ArtifactError, match=r"^small_resnet cannot be exported at opset 20 \(.+\); try another `export\.opset`"
    ) as error:
        onnx_bytes(_NoOnnxForm(), card=card, opset=OPSET)
    assert "\n" not in str(error.value)


def test_torch_answers_are_float32_arrays_of_the_evaluation_mode() -> None:
    model, card = fresh("vit")
    model.train()
    logits, embedding = torch_answers(model, IMAGES)
    assert (logits.dtype.name, logits.shape) == ("float32", (9, 10))
    assert (embedding.dtype.name, embedding.shape) == ("float32", (9, card.embedding_size))
    assert not model.training


class _NoOnnxForm(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.to(torch.float32).flatten(1)
        values: Tensor = torch.linalg.eigvals(flat.T @ flat).real
        return values[None], values[None]
