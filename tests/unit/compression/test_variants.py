"""visionloop.compression.variants and memory: a row per form and batch size, megabytes that follow the model's size."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from tests.onnx_models import digits, linear_model
from tests.torch_models import fresh
from visionloop.compression.memory import Memory, measure_memory
from visionloop.compression.variants import COLUMNS, TorchForm, Variant, flat, machine, one_thread, variants_csv
from visionloop.errors import ArtifactError
from visionloop.paths import MODEL_TORCH
from visionloop.runtime import Latency

FORMS = [
    Variant("torch", False, 0.5, Memory(20.0, 600.0), [Latency(1, 1.0, 2.0, 3.0, 200), Latency(8, 4.0, 5.0, 6.0, 100)]),
    Variant("int8", True, 0.1, Memory(15.0, 80.0), [Latency(1, 0.25, 0.5, 0.75, 200)]),
]


def test_the_table_has_a_row_per_form_and_batch_size() -> None:
    rows = list(csv.DictReader(io.StringIO(variants_csv(FORMS))))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["form"], row["batch_size"], row["shipped"]) for row in rows] == [
        ("torch", "1", "0"), ("torch", "8", "0"), ("int8", "1", "1")
    ]  # fmt: skip
    assert rows[1]["images_per_second"] == "2000.0"
    assert (rows[2]["p99_ms"], rows[2]["memory_mb"], rows[2]["process_mb"]) == ("0.7500", "15.00", "80.00")


def test_flat_names_carry_form_figure_and_batch_size() -> None:
    numbers = flat(FORMS)
    assert numbers["torch_latency_p99_ms_batch_8"] == 6
    assert numbers["int8_images_per_second_batch_1"] == 4000
    assert (numbers["int8_megabytes"], numbers["torch_memory_mb"]) == (0.1, 20)
    assert len(numbers) == 3 * 2 + 4 * 3


def test_the_torch_form_answers_like_the_network_and_gives_the_threads_back() -> None:
    model, _ = fresh("cnn")
    images = digits().images[:4]
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
        logits, embedding = TorchForm(model).run(images)
    assert torch.get_num_threads() == before
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))
    np.testing.assert_array_equal(logits, expected[0].numpy())
    np.testing.assert_array_equal(embedding, expected[1].numpy())


def test_memory_grows_with_the_weights_by_at_least_their_size(tmp_path: Path) -> None:
    """40 MB of weights more must be seen; twice and more is held while ONNX Runtime packs and copies them."""
    proto = linear_model(side=16)
    (tmp_path / "small.onnx").write_bytes(proto.SerializeToString())
    weights = np.random.default_rng(0).random((3, 10_000_000 // 3), np.float32)  # 40 MB
    proto.graph.initializer.append(numpy_helper.from_array(weights, "large"))
    proto.graph.node.append(helper.make_node("MatMul", ["embedding", "large"], ["wide"], "large"))
    proto.graph.output.append(helper.make_tensor_value_info("wide", 1, ["batch", weights.shape[1]]))
    (tmp_path / "large.onnx").write_bytes(proto.SerializeToString())
    small, large = (measure_memory("onnxruntime", tmp_path / f"{name}.onnx", 1) for name in ("small", "large"))
    assert 0 < small.growth_mb < 30
    assert 40 <= large.growth_mb - small.growth_mb < 250
    assert large.process_mb > large.growth_mb


def test_a_form_that_cannot_be_loaded_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"^The memory of .*bad\.onnx cannot be measured \(.*\); rebuild it") as error:
        measure_memory("onnxruntime", tmp_path / "bad.onnx", 1)
    assert "\n" not in str(error.value)
    assert MODEL_TORCH not in str(error.value)


def test_the_machine_is_named_with_its_load() -> None:
    assert re.search(r", \d+ cores, load \d+\.\d, one thread, torch 2\.\S+, ONNX Runtime 1\.\S+, OpenVINO \d\S+$", machine())
