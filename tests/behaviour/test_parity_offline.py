"""One model as torch, ONNX and INT8, from tensors and from files: the same answers, each tolerance with a reason."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from pipeline.stages import export as export_stage
from pipeline.stages import quantize as quantize_stage
from tests.onnx_models import TEST, TRAIN, VAL, digits
from tests.torch_models import OPSET, Family, badly_ranged, trained
from visionloop.card import Calibration, Smaller, load_card
from visionloop.compression import choice
from visionloop.compression.choice import Budgets, Form, HeldOut, choose
from visionloop.compression.export import onnx_bytes, torch_answers
from visionloop.compression.graph import prepare
from visionloop.compression.parity import PROCESSOR, Golden, accuracy, prove_parity
from visionloop.compression.quantize import Quantizer, Recipe, chained
from visionloop.compression.targets import processor
from visionloop.config import load_params
from visionloop.data.packing import PackedMeta
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ArtifactError
from visionloop.evaluation.budgets import OVER_BUDGET
from visionloop.features import EmbeddingPCA
from visionloop.files import sha256_bytes, write_json
from visionloop.models.pruning import multiply_adds, pruned
from visionloop.paths import (
    CALIBRATION,
    EMBEDDING_PCA,
    EXPORTED,
    GOLDEN,
    INTEGER,
    MODEL_ONNX,
    MODEL_TORCH,
    PACKED,
    ROBUSTNESS_REPORT,
    SELECTED,
    SHIPPED,
    family_folder,
)
from visionloop.preprocess import PixelArray, PreprocessSpec, encode_png, preprocess
from visionloop.runtime import Answers, Images, Latency, OnnxModel, compare_latency, load

Timed = Mapping[str, Sequence[Latency]]
ROOT = Path(__file__).parents[2]
DATA = digits()
HELD_OUT = HeldOut(DATA.images[VAL], DATA.labels[VAL], DATA.images[TEST], DATA.labels[TEST])
RANGES = DATA.images[TRAIN][:128]
PARAMS = load_params(ROOT / "params.yaml")
LABELS = tuple("0123456789")
BUDGETS = Budgets(PARAMS.quantize.max_accuracy_drop, PARAMS.quantize.max_class_drop, min_speedup=0)


@pytest.fixture(scope="module", params=["cnn", "vit"])
def family(request: pytest.FixtureRequest) -> Family:
    return "cnn" if request.param == "cnn" else "vit"


@pytest.fixture(scope="module")
def fp32(family: Family) -> bytes:
    model, card = trained(family)
    return onnx_bytes(model, card=card, opset=OPSET)


@pytest.fixture(scope="module")
def int8(fp32: bytes) -> bytes:
    quantizer = Quantizer(prepare(fp32), RANGES)
    # Weights of 7 bits, with which no sum saturates: the answer is then that of any processor.
    return quantizer.static(Recipe(chained(quantizer.graph.graph), seven_bits=True))


def test_torch_and_onnx_say_the_same_of_every_test_image(family: Family, fp32: bytes) -> None:
    model, _ = trained(family)
    images = DATA.images[TEST]
    golden = Golden(images, tuple(str(index) for index in range(len(images))), *torch_answers(model, images))
    parity = prove_parity(OnnxModel(fp32), golden, tolerance=PARAMS.export.max_logit_difference)
    # Logits reach about 15; float32 has 7 digits and a few hundred sums, so 1e-4 is generous and 1e-3 is another model.
    assert parity.max_logit_difference < 1e-4
    assert parity.top1_agreement == 1


def test_int8_keeps_the_budget_on_val_and_on_test(fp32: bytes, int8: bytes) -> None:
    found = choose([Form("fp32", fp32), Form("int8", int8, "int8")], HELD_OUT, LABELS, BUDGETS, seconds=0.02)
    before, after = (one for one, _ in found.forms)
    assert before.test_accuracy > 0.9, "the model is too weak to say anything"
    assert before.val_accuracy - after.val_accuracy <= PARAMS.quantize.max_accuracy_drop + 0.003
    # The test side has 180 images: one image is 0.56 points, so two may turn.
    assert before.test_accuracy - after.test_accuracy <= 2 / 180 + 1e-9
    assert after.agreement >= 0.98
    assert after.megabytes < 0.6 * before.megabytes


def test_int8_with_one_wrong_scale_is_refused(fp32: bytes, int8: bytes) -> None:
    """One scale of one weight with its sign turned, as a bug in an exporter would: the file loads and answers."""
    proto = onnx.load_from_string(int8)
    tensors = {item.name: item for item in proto.graph.initializer}
    weighted = [node for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    largest = max(weighted, key=lambda node: int(np.prod(tensors[node.input[0]].dims)))
    scale = tensors[largest.input[1]]
    scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    forms = [Form("fp32", fp32), Form("int8", proto.SerializeToString(), "int8")]
    found = choose(forms, HELD_OUT, LABELS, BUDGETS, seconds=0.02)
    assert found.shipped.form.name == "fp32"
    assert found.reason.startswith(
        "FP32 is shipped: of 1 other forms none keeps the budgets; the nearest is INT8: it loses "
    )
    assert "of accuracy on val, more than the 0.5 allowed" in found.reason


def test_a_file_and_its_tensor_get_the_same_answer(fp32: bytes) -> None:
    """PNG keeps pixels, so the answer is the same to the bit; JPEG does not, and a digit stays what it is."""
    from sklearn.datasets import load_digits

    model = OnnxModel(fp32, threads=1)
    order = np.random.default_rng(0).permutation(1797)[TEST][:60]
    small = [np.round(image * 255 / 16).astype(np.uint8) for image in load_digits().images[order]]
    spec = PreprocessSpec(16, 16)
    tensors = DATA.images[TEST][:60]
    from_png = np.stack([preprocess(encode_png(image), spec) for image in small])
    np.testing.assert_array_equal(from_png, tensors)
    np.testing.assert_array_equal(model.run(from_png)[0], model.run(tensors)[0])
    from_jpeg = np.stack([preprocess(jpeg(image), spec) for image in small])
    assert int(np.abs(from_jpeg.astype(int) - tensors).max()) > 0
    same = model.run(from_jpeg)[0].argmax(axis=1) == model.run(tensors)[0].argmax(axis=1)
    assert same.mean() >= 0.95


def test_the_stages_ship_the_trained_model_and_repeat_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export` and `quantize` on real arrays and a real network; a second run writes the same bytes."""
    monkeypatch.chdir(tmp_path)
    write_inputs("cnn", min_speedup=0)
    export_stage.main()
    quantize_stage.main()

    exported, exported_card = load(EXPORTED)
    golden = Golden.from_bytes(exported_card.read_file(EXPORTED, GOLDEN))
    model, _ = trained("cnn")
    np.testing.assert_allclose(golden.logits, torch_answers(model, DATA.images[TEST][:32])[0], atol=1e-6)
    prove_parity(exported, golden, tolerance=PARAMS.export.max_logit_difference)

    shipped, card = load(SHIPPED)
    card.verify(SHIPPED)
    assert sorted(card.files) == ["embedding_pca.npz", "golden.npz", "model.onnx"]
    assert card.precision == "int8" and not card.quantization_aware
    assert card.notes[-1].startswith("INT8 is shipped, for ONNX Runtime: it loses ")
    assert card.runtime == shipped.runtime == "onnxruntime"
    assert card.lineage[PROCESSOR] == processor()
    prove_parity(shipped, Golden.from_bytes(card.read_file(SHIPPED, GOLDEN)), tolerance=1e-4, name="the shipped model")
    assert card.metrics["test_accuracy"] == accuracy(shipped.run_all(DATA.images[TEST])[0], DATA.labels[TEST])
    assert card.metrics["val_accuracy"] == card.metrics["int8_val_accuracy"]
    assert not [name for name in card.metrics if "latency" in name or "speedup" in name]
    pca = EmbeddingPCA.from_bytes(card.read_file(SHIPPED, EMBEDDING_PCA))
    embedding = shipped.run_all(DATA.images[VAL])[1]
    assert pca.components.shape == (8, card.embedding_size)
    np.testing.assert_allclose(pca.project(embedding).mean(axis=0), 0, atol=1e-4)
    report = json.loads(Path("reports/quantize.json").read_text())
    assert report["shipped"] == "int8"
    assert report["speedup_batch_1"] > 0
    told = json.loads(Path("reports/compression.json").read_text())
    assert [form["form"] for form in told["forms"] if form["shipped"]] == [told["shipped"]]
    assert told["forms"][0]["form"] == "fp32" and told["search_ended_early"]
    training = next(trial for trial in told["trials"] if trial["name"] == "quantization-aware training")
    assert not training["taken"] and re.fullmatch(r"not needed: int8( as is)? keeps the budgets", training["reason"])
    table = Path("reports/compression.csv").read_text().splitlines()
    assert len(table) == 1 + len(told["forms"])
    page = Path("reports/compression.html").read_text()
    assert told["reason"] in page and "<script" not in page and "http" not in page.replace("http-equiv", "")

    before = {path: sha256_bytes(path.read_bytes()) for path in (*EXPORTED.iterdir(), *SHIPPED.iterdir())}
    export_stage.main()
    quantize_stage.main()
    assert {path: sha256_bytes(path.read_bytes()) for path in before} == before


def test_fp32_is_shipped_with_the_reason_where_int8_is_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs("cnn", min_speedup=100)
    export_as_before("digits")
    quantize_stage.main()
    card = load_card(SHIPPED)
    assert card.precision == "fp32"
    exported = Golden.from_bytes(load_card(EXPORTED).read_file(EXPORTED, GOLDEN))
    prove_parity(load(SHIPPED)[0], exported, tolerance=1e-4, name="the optimised graph")
    assert "ran here at less than 100 x the speed of FP32" in card.notes[-1]
    assert json.loads(Path("reports/quantize.json").read_text())["shipped"] == "fp32"


def test_where_int8_loses_too_much_the_network_is_trained_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of very different size: INT8 loses 2.8 points on val, and after two epochs with its rounding nothing."""
    monkeypatch.chdir(tmp_path)
    write_inputs("cnn", min_speedup=0, is_badly_ranged=True, temperature=1.25, more={"target: auto ": "target: cpu "})
    export_as_before("badly ranged")
    quantize_stage.main()
    told = json.loads(Path("reports/compression.json").read_text())
    names = [form["form"] for form in told["forms"]]
    assert names[:2] == ["fp32", "int8 as is"] and set(names[names.index("qat int8 as is") :]) <= {
        "qat int8 as is",
        "qat int8",
    }
    assert [form["form"] for form in told["forms"] if form["passes"]] == ["fp32", "qat int8"]
    lost = [form for form in told["forms"] if form["form"].startswith("int8")]
    training = next(trial for trial in told["trials"] if trial["name"] == "quantization-aware training")
    assert training["taken"]
    assert re.match(
        r"9\d\.\d\d% of val after epoch \d of 2, [89]\d\.\d\d% before, both with rounding sim", training["reason"]
    )

    shipped, card = load(SHIPPED)
    assert (card.precision, card.runtime) == ("int8", "onnxruntime")
    assert card.quantization_aware
    assert card.notes[-1].startswith(
        "INT8 after quantization-aware training is shipped, for ONNX Runtime: it loses no accuracy"
    )
    assert card.metrics["val_accuracy"] > max(form["val_accuracy"] for form in lost)
    assert told["reason"] in Path("reports/compression.html").read_text()
    assert shipped.metadata["temperature"] == "1.25" == str(card.calibration.temperature if card.calibration else None)


def test_without_epochs_nothing_is_trained_and_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"target: auto ": "target: cpu ", "qat_epochs: 2 ": "qat_epochs: 0 "}
    write_inputs("cnn", min_speedup=0, is_badly_ranged=True, temperature=1.25, more=changes)
    export_as_before("badly ranged")
    quantize_stage.main()
    told = json.loads(Path("reports/compression.json").read_text())
    assert told["shipped"] == "fp32"
    assert not [form for form in told["forms"] if form["form"].startswith("qat")]
    training = next(trial for trial in told["trials"] if trial["name"] == "quantization-aware training")
    assert not training["taken"] and training["reason"].startswith("quantize.qat_epochs is 0, of int8")


def test_what_is_faster_in_openvino_is_shipped_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is real but the clock, which says of OpenVINO what it says of it on larger networks."""
    monkeypatch.chdir(tmp_path)
    runtimes = "runtimes: [onnxruntime, openvino]"
    write_inputs("cnn", min_speedup=1.2, more={runtimes: runtimes})

    def clock(forms: Mapping[str, Answers], images: Images, sizes: Sequence[int], repeats: int) -> Timed:
        def told(name: str, one: Latency) -> Latency:
            faster = (3 if name.startswith("int8") else 2) if name.endswith("openvino") else 1
            return replace(one, p50_ms=one.batch_size / faster)

        timed = compare_latency(forms, images, sizes, repeats)
        return {name: tuple(told(name, one) for one in found) for name, found in timed.items()}

    monkeypatch.setattr(choice, "compare_latency", clock)
    export_as_before("digits")
    quantize_stage.main()
    shipped, card = load(SHIPPED)
    assert card.runtime == shipped.runtime == "openvino"
    assert (card.precision, card.compute) == ("int8", "fp32")
    assert card.notes[-1].startswith("INT8 is shipped, for OpenVINO: it loses ")
    assert accuracy(shipped.run_all(DATA.images[TEST])[0], DATA.labels[TEST]) == card.metrics["test_accuracy"]
    prove_parity(shipped, Golden.from_bytes(card.read_file(SHIPPED, GOLDEN)), tolerance=1e-4, name="the shipped model")
    told = json.loads(Path("reports/compression.json").read_text())
    integers = [form for form in told["forms"] if form["form"].startswith("int8") and form["form"].endswith("openvino")]
    assert integers and all(form["agreement"] > 0.97 for form in integers)
    assert (load_card(INTEGER).runtime, load_card(INTEGER).files[MODEL_ONNX]) == ("openvino", card.files[MODEL_ONNX])


def test_a_pruned_network_is_quantized_and_compared_with_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs("cnn", min_speedup=0)
    first, card = trained("cnn")
    smaller = pruned(first, 0.4, (16, 16)).eval()
    before, after = (multiply_adds(model, (16, 16)) for model in (first, smaller))
    assert after < 0.6 * before
    of = Smaller(
        by="pruning", architecture=card.architecture, architecture_options=card.architecture_options,
        parameters=card.parameters, multiply_adds=before, multiply_adds_after=after, val_accuracy=0.9,
    )  # fmt: skip
    parameters = sum(item.numel() for item in smaller.parameters())
    folder = family_folder("cnn")
    torch.save(smaller.state_dict(), folder / MODEL_TORCH)
    card = card.model_copy(update={"smaller": of, "parameters": parameters, "embedding_size": smaller.embedding_size})
    card = card.with_files(folder, (MODEL_TORCH,))
    card.write(folder)
    with pytest.raises(
        ArtifactError, match=r"calibration\.json was fitted to another model than .*`dvc repro calibrate@cnn`"
    ):
        export_stage.main()
    assert not EXPORTED.exists()
    fitted = json.loads((folder / CALIBRATION).read_text())
    write_json(folder / CALIBRATION, {**fitted, "weights": card.files[MODEL_TORCH]})
    export_stage.main()
    quantize_stage.main()
    shipped, shipped_card = load(SHIPPED)
    assert (shipped_card.precision, shipped_card.smaller, shipped_card.parameters) == ("int8", of, parameters)
    exact = torch_answers(smaller, DATA.images[TEST])[0]
    assert (shipped.run_all(DATA.images[TEST])[0].argmax(1) == exact.argmax(1)).mean() > 0.95
    report = json.loads(Path("reports/quantize.json").read_text())
    assert report["speedup_over_first_network_batch_1"] > 0
    said = f"By pruning, this network has {after / before:.0%} of the multiply-adds of the small_resnet that it learnt from."
    assert said in capsys.readouterr().out and said in Path("reports/compression.html").read_text()
    # Weights of 7 or 8 bits in place of 32, and around them a graph and a card that are as large as before.
    assert (SHIPPED / MODEL_ONNX).stat().st_size < 0.7 * (EXPORTED / MODEL_ONNX).stat().st_size


def test_a_damaged_export_stops_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs("cnn", min_speedup=0)
    export_as_before("digits")
    data = bytearray((EXPORTED / MODEL_ONNX).read_bytes())
    data[len(data) // 2] ^= 16
    (EXPORTED / MODEL_ONNX).write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged or was exchanged"):
        quantize_stage.main()
    assert not SHIPPED.exists()


def export_as_before(network: str, found: dict[str, dict[Path, bytes]] = {}) -> None:  # noqa: B006, it is the memory
    """`export`, which writes the same bytes each time and takes seconds, so it runs once for a network."""
    if network not in found:
        export_stage.main()
        found[network] = {path: path.read_bytes() for path in EXPORTED.iterdir()}
    EXPORTED.mkdir(parents=True, exist_ok=True)
    for path, data in found[network].items():
        path.write_bytes(data)


def jpeg(gray: PixelArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_inputs(
    family: Family,
    *,
    min_speedup: float,
    is_badly_ranged: bool = False,
    temperature: float = 1,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """What the stages before `export` and `robustness` would have written, in the present folder.

    `more` are changes of the text of params.yaml. A temperature other than 1 shows in every answer that is compared with the
    plain network's.
    """
    text = (ROOT / "params.yaml").read_text()
    changes = {
        "min_speedup: 1.0": f"min_speedup: {min_speedup}",
        "search_seconds: 20 ": "search_seconds: 0 ",
        "measure_seconds: 2.0 ": "measure_seconds: 0.05 ",
        "runtimes: [onnxruntime, openvino]": "runtimes: [onnxruntime]",  # both are asked in the units' tests
        **more,
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)
    assert load_params().quantize.min_speedup == min_speedup
    PACKED.mkdir(parents=True)
    sides = {"train": TRAIN, "val": VAL, "test": TEST}
    for split, part in sides.items():
        np.save(PACKED / f"{split}.images.npy", DATA.images[part])
        np.save(PACKED / f"{split}.labels.npy", DATA.labels[part])
        (PACKED / f"{split}.ids.txt").write_text("".join(f"{index:064x}\n" for index in range(1797)[part]))
    meta = PackedMeta(
        labels=tuple("0123456789"),
        preprocess=PreprocessSpec(16, 16),
        mean=DATA.mean,
        std=DATA.std,
        counts={"train": 1257, "val": 360, "test": 180},
        policy=AugmentPolicy(),
        data_id="d" * 64,
    )
    write_json(PACKED / "meta.json", meta.model_dump(mode="json"))
    model, card = badly_ranged() if is_badly_ranged else trained(family)
    folder = family_folder(family)
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / MODEL_TORCH)
    card = card.with_files(folder, (MODEL_TORCH,))
    card.write(folder)
    calibration = Calibration(
        temperature=temperature, precision_thresholds={}, unknown=None, review_below=0, review_share=0,
        weights=card.files[MODEL_TORCH],
    )  # fmt: skip
    write_json(folder / CALIBRATION, calibration.model_dump(mode="json"))
    write_json(ROBUSTNESS_REPORT, {OVER_BUDGET: []})
    write_json(SELECTED, {"family": family, "reason": "written by a test"})
