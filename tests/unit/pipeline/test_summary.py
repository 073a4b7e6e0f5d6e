"""pipeline.summary: the forms of the model stand beside the runtime that their figures are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import summary
from visionloop.errors import ArtifactError
from visionloop.files import write_json
from visionloop.paths import DEPLOY_REPORT, PARITY_REPORT, QUANTIZE_REPORT, SELECT_REPORT, evaluate_report

FORM = {"test_accuracy": 0.98, "megabytes": 0.3, "latency_ms_batch_1": 0.05, "images_per_second_batch_32": 25000.0}
METRICS = {"images": 50, "accuracy": 0.94, "accuracy_low": 0.84, "accuracy_high": 0.98, "macro_f1": 0.9}


def write(root: Path, shipped: str, runtime: str) -> None:
    pair = {"max_logit_distance": 3e-6}
    sizes = {f"{family}_{name}": 0.3 for family in ("cnn", "vit") for name in ("megabytes", "latency_ms")}
    write_json(root / SELECT_REPORT, {"selected": "cnn", "reason": ["It is better."], **sizes})
    for family in ("cnn", "vit"):
        write_json(root / evaluate_report(family) / "metrics.json", METRICS)
    figures = {f"{form}_{name}": value for form in ("fp32", "int8") for name, value in FORM.items()}
    write_json(root / QUANTIZE_REPORT, {"shipped": shipped, "runtime": [runtime], "reason": ["It is fast."], **figures})
    write_json(root / DEPLOY_REPORT, {"version": 2})
    names = ("torch_onnx", "http_tensor", "http_bytes", "grpc_tensor", "grpc_bytes")
    times = {"http_p50_ms": 1.5, "grpc_p50_ms": 1.4, "held_out_images": 32, "odd_files": 60, "decoder_sentence": []}
    write_json(root / PARITY_REPORT, {"pairs": dict.fromkeys(names, pair), **times})


@pytest.mark.parametrize(
    ("shipped", "runtime", "title", "marks"),
    [
        ("int8", "onnxruntime", "FP32 against INT8, ONNX Runtime with one thread", ["", "shipped"]),
        ("int8", "openvino", "FP32 in ONNX Runtime against INT8 in OpenVINO, with one thread", ["", "shipped"]),
        ("fp32", "onnxruntime", "FP32 against INT8, ONNX Runtime with one thread", ["shipped", ""]),
        # FP32 in OpenVINO is neither row; the sentence below says what is shipped.
        ("fp32", "openvino", "FP32 against INT8, ONNX Runtime with one thread", ["", ""]),
    ],
)
def test_the_forms_stand_beside_their_runtime(
    tmp_path: Path, shipped: str, runtime: str, title: str, marks: list[str]
) -> None:
    write(tmp_path, shipped, runtime)
    _, forms, _ = summary.tables(tmp_path)
    assert forms.title == title
    assert [row[-1] for row in forms.rows] == marks
    assert forms.rows[1][:5] == ("INT8", "98.00 %", "0.30", "0.050", "25,000")
    assert forms.notes == ("It is fast.",)


def test_a_stage_that_did_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"reports/select\.json cannot be read .*run `dvc repro` to write it"):
        summary.tables(tmp_path)
