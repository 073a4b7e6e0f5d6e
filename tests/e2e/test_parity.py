"""From torch to a real Triton server: equal forms are published, and any that answers otherwise stops the release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.stages import deploy, parity
from tests.onnx_models import TRAIN, VAL, digits
from tests.torch_models import fresh, fresh_onnx
from visionloop import paths
from visionloop.card import Precision, load_card
from visionloop.compression.graph import prepare
from visionloop.compression.quantize import Quantizer, Recipe, chained
from visionloop.config import load_params
from visionloop.data.shards import append, read_images
from visionloop.data.sources import open_source
from visionloop.data.splitting import Ledger, write_split
from visionloop.errors import BlockedError
from visionloop.features import EmbeddingPCA
from visionloop.files import write_bytes, write_json
from visionloop.preprocess import decoder_versions, encode_png
from visionloop.records import SplitRow
from visionloop.runtime import OnnxModel, load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose road was walked up to the gate: twelve digits, half of them test, and a model in each form."""
    for index, image in enumerate(digits().images[VAL][:12]):
        write_bytes(
            tmp_path / "raw" / str(index % 3) / f"{index}.png", encode_png(np.kron(image, np.ones((2, 2, 1), np.uint8)))
        )
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  odd_pictures: 2 ", "  odd_pictures: 1 "))
    params = load_params(tmp_path / "params.yaml")
    assert params.parity.odd_pictures == 1
    source = open_source(params.collect.model_copy(update={"source": "folder", "path": str(tmp_path / "raw")}))
    monkeypatch.chdir(tmp_path)
    append([source], paths.SHARDS, paths.IMAGES, 100)
    rows = [
        SplitRow(row.id, row.label, "test" if index % 2 else "train", row.id)
        for index, row in enumerate(read_images(paths.IMAGES))
    ]
    write_split(paths.SPLIT, rows, params.split, Ledger())
    model, card = fresh("cnn")
    folder = paths.family_folder("cnn")
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / paths.MODEL_TORCH)
    card.with_files(folder, (paths.MODEL_TORCH,)).write(folder)
    write_bytes(paths.EXPORTED / paths.MODEL_ONNX, fresh_onnx("cnn"))
    card.with_files(paths.EXPORTED, (paths.MODEL_ONNX,)).write(paths.EXPORTED)
    ship(fresh_onnx("cnn"))
    return tmp_path


def ship(data: bytes, precision: Precision = "fp32") -> None:
    """Put a model into models/shipped, and let the gate pass it."""
    write_bytes(paths.SHIPPED / paths.MODEL_ONNX, data)
    embedding = OnnxModel(data).run_all(digits().images[VAL])[1]
    write_bytes(paths.SHIPPED / paths.EMBEDDING_PCA, EmbeddingPCA.fit(embedding, 8).to_bytes())
    card = fresh("cnn")[1].model_copy(update={"precision": precision})
    card = card.with_files(paths.SHIPPED, (paths.MODEL_ONNX, paths.EMBEDDING_PCA))
    card.write(paths.SHIPPED)
    write_json(
        paths.GATE_REPORT,
        {"passed": 1, "forced": 0, "challenger": [card.files[paths.MODEL_ONNX]], "champion": [], "champion_version": 0,
         "verdict": ["The first model."]},
    )  # fmt: skip


def integers() -> bytes:
    """The same network in INT8, of 7 bits, whose sums saturate on no processor."""
    quantizer = Quantizer(prepare(fresh_onnx("cnn")), digits().images[TRAIN][:128])
    return quantizer.static(Recipe(chained(quantizer.graph.graph), seven_bits=True))


def with_a_flipped_scale() -> bytes:
    """`integers` with the sign of one convolution's scales turned, as a bug of a quantizer would: it loads and answers."""
    proto = onnx.load_from_string(integers())
    tensors = {item.name: item for item in proto.graph.initializer}
    weighted = [node for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    scale = tensors[max(weighted, key=lambda node: int(np.prod(tensors[node.input[0]].dims))).input[1]]
    scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    return bytes(proto.SerializeToString())


def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.PARITY_REPORT.read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_forms_are_proved_and_published_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An INT8 form that `quantize` has refused, as it should: it is told, and stops nothing.
    write_bytes(paths.INTEGER / paths.MODEL_ONNX, with_a_flipped_scale())
    refused = fresh("cnn")[1].model_copy(update={"precision": "int8"})
    refused.with_files(paths.INTEGER, (paths.MODEL_ONNX,)).write(paths.INTEGER)
    parity.main()
    found = report()
    told = found["pairs"].pop("onnx_int8")
    assert told["max_logit_distance"] > 0.01 and told["agreement"] < 1
    assert (found["held_out_images"], found["odd_files"], found["refused_files"]) == (6, 60, 6)
    assert (found["passed"], found["over_budget"], found["same_pixels"]) == (1, [], 1.0)
    assert list(found["pairs"]) == ["torch_onnx", "onnx_shipped", "http_tensor", "http_bytes", "grpc_tensor", "grpc_bytes"]
    for pair in found["pairs"].values():
        # Three layers of float32 on logits of the order of 1; the same file in the same ONNX Runtime is nearer still.
        assert pair["agreement"] == 1
        assert pair["max_logit_distance"] < 1e-4
    assert found["pairs"]["onnx_shipped"]["max_logit_distance"] == 0
    assert found["decoder"] == [decoder_versions()]
    assert set(found["served_decoder"][0]) == {"pillow", "libjpeg_turbo", "webp", "zlib"}
    assert 0 < found["http_p50_ms"] < 1000
    page = paths.PARITY_PAGE.read_text()
    assert "JPEG, EXIF orientation 6" in page and "INT8, which is not shipped" in page and "beyond" not in page
    assert found["disagreeing_images"] >= round((1 - told["agreement"]) * 6)  # its answers are among those that are shown
    assert "They read all 66 files to the same pixels." in capsys.readouterr().out
    assert not (project / "var").exists()  # the live store saw nothing of the trial
    assert not paths.MODEL_REPOSITORY.exists()

    deploy.main()
    assert json.loads(paths.DEPLOY_REPORT.read_text()) == {"version": 1, "new_version": 1}
    published = load_card(paths.MODEL_REPOSITORY / "classifier" / "1").lineage
    assert published["pillow"] == decoder_versions()["pillow"]
    assert published["served_libjpeg_turbo"] == found["served_decoder"][0]["libjpeg_turbo"]
    before = contents(paths.MODEL_REPOSITORY)
    deploy.main()
    assert "version 1 is this model already, nothing new is published" in capsys.readouterr().out
    assert contents(paths.MODEL_REPOSITORY) == before


def test_a_shipped_model_with_a_flipped_scale_is_not_published(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits().images[VAL]
    exact, rounded = (OnnxModel(data).run_all(images)[0].argmax(1) for data in (fresh_onnx("cnn"), integers()))
    assert (exact == rounded).mean() > 0.98  # so it is the scale that is refused, not the rounding
    ship(with_a_flipped_scale(), "int8")
    with pytest.raises(BlockedError, match=r"ONNX FP32 and the shipped INT8 agree on .*parity\.html") as error:
        parity.main()
    assert error.value.exit_code == 2
    found = report()
    assert found["passed"] == 0
    assert {sentence.partition(" agree")[0].partition(" differ")[0] for sentence in found["over_budget"]} == {
        "ONNX FP32 and the shipped INT8"
    }
    page = paths.PARITY_PAGE.read_text()
    assert page.count('class="bad">beyond') == 1
    assert page.count("data:image/png") == min(24, found["disagreeing_images"]) > 3
    with pytest.raises(BlockedError, match=r"reports/parity\.json is over its budget: ONNX FP32 and the shipped INT8"):
        deploy.main()
    assert not paths.MODEL_REPOSITORY.exists()

    # A server that answers otherwise than the shipped model does here: other weights than those of the file.
    shutil.copytree(paths.EXPORTED, "offline")
    card = load_card(paths.SHIPPED)
    monkeypatch.setattr(
        parity, "load", lambda folder: (load(Path("offline"))[0], card) if folder == paths.SHIPPED else load(folder)
    )
    with pytest.raises(BlockedError, match="the shipped form offline and served by tensor over HTTP"):
        parity.main()
    over = {sentence.partition(" agree")[0].partition(" differ")[0] for sentence in report()["over_budget"]}
    assert over == {
        f"the shipped form offline and served by {what} over {protocol}"
        for what in ("tensor", "file")
        for protocol in ("HTTP", "gRPC")
    }


def test_a_model_that_was_not_the_one_proved_is_not_published(project: Path) -> None:
    ship(fresh_onnx("cnn"))
    proved = load_card(paths.SHIPPED)
    write_json(
        paths.PARITY_REPORT,
        {"model": [proved.files[paths.MODEL_ONNX]], "card": ["0" * 64], "decoder": [{}], "served_decoder": [{}],
         "over_budget": []},
    )  # fmt: skip
    with pytest.raises(BlockedError, match=r"The parity of the model .* that is to be published is not proved"):
        deploy.main()
    assert not paths.MODEL_REPOSITORY.exists()
