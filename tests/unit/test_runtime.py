"""visionloop.runtime: right numbers, and a sentence for every model file that is not right."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from tests.onnx_models import (
    LABELS,
    SIDE,
    WEIGHTS,
    linear_answer,
    linear_model,
    write_linear,
)
from visionloop.card import Runtime
from visionloop.errors import ArtifactError, ImageError
from visionloop.paths import MODEL_ONNX
from visionloop.preprocess import RULES, PreprocessSpec
from visionloop.runtime import Latency, OnnxModel, compare_latency, load, measure_latency

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
GOOD = linear_model().SerializeToString()


def test_run_answers_what_the_graph_says() -> None:
    logits, embedding = OnnxModel(GOOD, threads=1).run(IMAGES)
    expected = linear_answer(IMAGES)
    assert {logits.dtype.name, embedding.dtype.name} == {"float32"}
    # Means of 16 pixels up to 255 in float32: 3e-5 is twice the rounding of the sum.
    np.testing.assert_allclose(logits, expected[0], atol=1e-4)
    np.testing.assert_allclose(embedding, expected[1], atol=3e-5)


def test_openvino_answers_what_onnx_runtime_does_from_several_threads_at_once() -> None:
    model = OnnxModel(GOOD, threads=1, runtime="openvino")
    assert (model.height, model.width, model.num_classes, model.embedding_size) == (4, 4, 3, 3)
    assert model.metadata["labels"] == '["ant", "bee", "cat"]'
    batches = [np.roll(IMAGES, index, axis=0)[: 1 + index % 5] for index in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(model.run, batches))
    for batch, (logits, embedding) in zip(batches, answers, strict=True):
        expected = linear_answer(batch)
        np.testing.assert_allclose(logits, expected[0], atol=1e-4)
        np.testing.assert_allclose(embedding, expected[1], atol=3e-5)


def test_a_card_of_before_runtimes_is_run_by_onnx_runtime_and_a_new_one_by_what_it_names(tmp_path: Path) -> None:
    write_linear(tmp_path)
    old = json.loads((tmp_path / "card.json").read_text())
    del old["runtime"], old["compute"]
    (tmp_path / "card.json").write_text(json.dumps(old))
    model, card = load(tmp_path)
    assert model.runtime == card.runtime == "onnxruntime" and card.compute == "fp32"
    write_linear(tmp_path, runtime="openvino")
    assert load(tmp_path)[0].runtime == "openvino"


def test_a_runtime_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.runtime.is_installed", lambda _: False)
    with pytest.raises(
        ArtifactError, match="chosen for OpenVINO, which is not installed here; install the package openvino"
    ):
        OnnxModel(GOOD, runtime="openvino")


def test_run_all_is_run_in_batches_and_takes_no_image_too() -> None:
    model = OnnxModel(GOOD, threads=1)
    for whole, parts in zip(model.run(IMAGES), model.run_all(IMAGES, batch_size=2), strict=True):
        np.testing.assert_array_equal(whole, parts)
    logits, embedding = model.run_all(IMAGES[:0])
    assert (logits.shape, embedding.shape) == ((0, 3), (0, 3))


def test_sizes_are_read_from_the_graph() -> None:
    model = OnnxModel(GOOD)
    assert (model.height, model.width, model.num_classes, model.embedding_size) == (4, 4, 3, 3)
    assert model.metadata["labels"] == '["ant", "bee", "cat"]'


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES.astype(np.float32), "float32 [5, 4, 4, 3]"),
        (IMAGES[0], "uint8 [4, 4, 3]"),
        (IMAGES.transpose(0, 3, 1, 2), "uint8 [5, 3, 4, 4]"),
        (IMAGES[:0], "uint8 [0, 4, 4, 3]"),
    ],
)
def test_wrong_input_is_refused_with_both_shapes(images: Any, got: str) -> None:
    with pytest.raises(ImageError) as error:
        OnnxModel(GOOD).run(images)
    assert error.value.reason == "wrong_input"
    assert str(error.value) == (
        f"The model takes uint8 [N, 4, 4, 3] with N at least 1, not {got}; make it with visionloop.preprocess."
    )


def test_weights_that_are_not_finite_are_refused_at_the_first_answer() -> None:
    weights = WEIGHTS.copy()
    weights[0, 0] = np.inf  # NaN is seen in the file, infinity may be meant: an attention mask
    model = OnnxModel(linear_model(weights=weights).SerializeToString())
    with pytest.raises(ArtifactError, match="answers with NaN or infinity"):
        model.run(IMAGES)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (linear_model(input_type=TensorProto.FLOAT).SerializeToString(), r"takes .*float.*as uint8 \[batch, H, W, 3\]"),
        (linear_model(batch=1).SerializeToString(), "of any batch"),
        (linear_model(embedding_name="features").SerializeToString(), "gives 'logits' and 'embedding'"),
    ],
    ids=["float input", "fixed batch", "no embedding"],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_no_classifier_is_refused(data: bytes, sentence: str, runtime: Runtime) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        OnnxModel(data, runtime=runtime)


def test_an_opset_that_onnx_runtime_does_not_know_is_refused() -> None:
    """OpenVINO reads such a file by the operators that it finds; these are as they were."""
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        OnnxModel(linear_model(opset=99).SerializeToString())


def test_weights_outside_the_file_are_refused_because_no_hash_covers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = linear_model()
    weights = next(item for item in proto.graph.initializer if item.name == "weights")
    (tmp_path / "weights.bin").write_bytes(weights.raw_data)
    set_external_data(weights, "weights.bin")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="keeps the weights 'weights' in another file"):
        OnnxModel(proto.SerializeToString())


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"has no TensorrtExecutionProvider, only .*CPUExecutionProvider"):
        OnnxModel(GOOD, providers=["TensorrtExecutionProvider"])


def test_load_gives_model_and_card(tmp_path: Path) -> None:
    card = write_linear(tmp_path)
    model, loaded = load(tmp_path)
    assert loaded == card
    assert model.run(IMAGES)[0].shape == (5, len(LABELS))


@pytest.mark.parametrize("position", [40, len(GOOD) // 2, len(GOOD) - 1])
def test_one_flipped_bit_is_refused_before_load(tmp_path: Path, position: int) -> None:
    write_linear(tmp_path)
    data = bytearray(GOOD)
    data[position] ^= 1
    (tmp_path / MODEL_ONNX).write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged or was exchanged: its card says sha256"):
        load(tmp_path)


def test_a_missing_model_file_says_how_to_bring_it_back(tmp_path: Path) -> None:
    write_linear(tmp_path)
    (tmp_path / MODEL_ONNX).unlink()
    with pytest.raises(ArtifactError, match=r"cannot be read .*run `dvc repro` or `dvc pull`"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": ("bee", "ant", "cat")}, r"classes \('bee', 'ant', 'cat'\)"),
        ({"labels": ("ant", "bee")}, "number of classes 2"),
        ({"embedding_size": 9}, "embedding size 9"),
        ({"preprocess": PreprocessSpec(8, 8)}, r"input size \(8, 8\)"),
    ],
)
def test_a_card_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_linear(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=f"the card says {what}"):
        load(tmp_path)


def test_a_card_of_another_preprocessing_is_refused(tmp_path: Path) -> None:
    """The same size, and another filter: nothing else of the two files would differ."""
    proto = linear_model()
    proto.metadata_props.add(key="preprocess", value=json.dumps({**asdict(PreprocessSpec(SIDE, SIDE)), **RULES}))
    write_linear(tmp_path, proto)
    load(tmp_path)
    write_linear(tmp_path, proto, preprocess=PreprocessSpec(SIDE, SIDE, filter="lanczos"))
    with pytest.raises(ArtifactError, match=r"the card says preprocessing .*'lanczos'.*, model\.onnx has .*'bilinear'"):
        load(tmp_path)
    proto.metadata_props[-1].value = "no JSON"
    write_linear(tmp_path, proto)
    with pytest.raises(ArtifactError, match=r"model\.onnx has None; they are of two models"):
        load(tmp_path)
    proto.metadata_props[-1].value = json.dumps(asdict(PreprocessSpec(SIDE, SIDE)))  # as before there were rules
    write_linear(tmp_path, proto)
    load(tmp_path)


def test_a_model_without_labels_of_its_own_is_refused(tmp_path: Path) -> None:
    proto = linear_model()
    del proto.metadata_props[:]
    write_linear(tmp_path, proto)
    with pytest.raises(ArtifactError, match="the card says classes"):
        load(tmp_path)


def test_latency_is_asked_per_batch_size_and_gives_a_rate() -> None:
    found = measure_latency(OnnxModel(GOOD, threads=1), IMAGES, (1, 8), repeats=5)
    assert [item.batch_size for item in found] == [1, 8]
    assert all(0 < item.p50_ms <= item.p95_ms <= item.p99_ms and item.calls == 5 for item in found)
    assert Latency(batch_size=8, p50_ms=4.0, p95_ms=5.0, p99_ms=6.0, calls=5).images_per_second == 2000


class Recorder:
    """Answers nothing and writes down who was called when."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def run(self, images: npt.NDArray[np.uint8]) -> None:
        assert images.shape == (8, SIDE, SIDE, 3) and images.flags.c_contiguous
        self.calls.append(self.name)


def test_models_are_called_in_every_order_each_once_untimed_before() -> None:
    calls: list[str] = []
    compare_latency({name: Recorder(name, calls) for name in "ab"}, IMAGES, (8,), repeats=3)
    assert "".join(calls) == "aaabbb" + "aabb" + "bbaa" + "aabb"


def test_a_model_with_useless_work_is_measured_as_slower() -> None:
    fast, slow = (OnnxModel(linear_model(side=32, useless_work=n).SerializeToString(), threads=1) for n in (1, 60))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    found = compare_latency({"fast": fast, "slow": slow}, images, (16,), repeats=15)
    assert found["slow"][0].p50_ms > 3 * found["fast"][0].p50_ms


def test_the_triton_interpreter_gives_the_same_answer_bit_for_bit(tmp_path: Path) -> None:
    """The server's own environment has numpy 1.26 and no torch, onnx or pyarrow."""
    python = Path(os.environ.get("VISIONLOOP_TRITON_VENV", ROOT / ".venv-triton")) / "bin" / "python"
    if not python.exists():
        pytest.skip("the Triton environment is not installed; `make setup` does it")
    write_linear(tmp_path)
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from visionloop.runtime import load\n"
        "import visionloop.observe\n"
        "model, card = load(Path('.'))\n"
        "np.savez('answer.npz', *model.run(np.load('images.npy')))\n"
        "print(np.__version__.split('.')[0], [m for m in ('torch', 'onnx', 'pyarrow', 'pandas') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1 []\n"), done.stderr
    with np.load(tmp_path / "answer.npz") as answer:
        for here, there in zip(OnnxModel(GOOD).run(IMAGES), answer.values(), strict=True):
            np.testing.assert_array_equal(here, there)
