"""Small runs for the report: the files that stages would have written, with evil names of classes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from visionloop.config import ReportParams
from visionloop.report.files import RunFiles
from visionloop.report.release_sections import Origin

EVIL = '<script>alert("x")</script>|`\'&</td>'
LONG = "Donaudampfschifffahrtsgesellschaftskapitaen" * 3
LABELS = (EVIL, LONG, "bee")
OWNER = ReportParams(
    model_name=f"Insects {EVIL}",
    licence="apache-2.0",
    contact=None,
    intended_use="Counting bees & <b>ants</b>.",
    out_of_scope=None,
    ethical_considerations=None,
    limits=None,
)
VERSIONS = {"torch": "2.0"}


def png(width: int = 900, height: int = 300) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 255, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _value(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": min(value + 0.1, 1)}


def _detail() -> dict[str, Any]:
    return {
        "confidence_level": 0.9,
        "images": 50,
        "labels": LABELS,
        "notes": [f"One class has no test image ({EVIL})."],
        "metrics": [{"name": "macro_f1", "value": 0.9, "low": 0.85, "high": 0.95}],
        "per_class": [
            {"label": label, "support": support, "predicted": 20, "precision": _value(0.9), "recall": _value(0.8),
             "f1": _value(0.85), "roc_auc": None, "average_precision": _value(0.9)}
            for label, support in zip(LABELS, (0, 25, 40), strict=True)
        ],
        "pairs": [{"actual": EVIL, "predicted": "bee", "images": 2, "of": 20, "share": 0.1, "low": 0.03, "high": 0.3}],
        "slices": [
            {"kind": "brightness", "name": "61 to 72", "images": 25, "mistakes": 3, "accuracy": 0.88, "low": 0.7,
             "high": 0.96, "rest_accuracy": 0.98, "p_value": 0.01, "verdict": "worse",
             "sentence": "brightness 61 to 72 is worse."}
        ],
    }  # fmt: skip


METRICS = {
    "images": 50, "mistakes": 3, "accuracy": 0.94, "accuracy_low": 0.84, "accuracy_high": 0.98, "macro_f1": 0.9,
    "calibration_error": 0.0321, "reviewed": 0.05, "rest_accuracy": 0.97, "rest_accuracy_low": 0.9,
    "rest_accuracy_high": 0.99,
}  # fmt: skip
CARD = {
    "family": "cnn", "architecture": "small_resnet", "parameters": 77850, "precision": "int8", "labels": LABELS,
    "preprocess": {"height": 16, "width": 16}, "files": {"model.onnx": "a" * 64},
    "lineage": {"data": "b" * 64, "torch": "2.0"},
}  # fmt: skip
FORMS = ("form,shipped,batch_size,p50_ms,p95_ms,p99_ms,images_per_second,megabytes,memory_mb,process_mb,calls\n"
         "torch,0,1,0.4,0.5,0.9,2500,0.33,22.1,600,700\nint8,1,1,0.05,0.06,0.07,20000,0.10,15.2,80.3,700\n")  # fmt: skip
JSONS: dict[str, Any] = {
    "reports/collect.json": {"images": 300, "classes": 3, "bytes": 9e5, "skipped": 0, "images_by_source": {"folder": 300}},
    "reports/cleaning.json": {"images": 300, "kept": 290, "rejected": 10, "finding_blank": 10, "reason_blank": 9},
    "reports/split.json": {
        "images": 290, "train": 200, "val": 40, "test": 50, "groups": 280, "leaks": 0, "kept_in_test": 4,
        "by_class": [{"label": label, "train": 67, "val": 13, "test": 16} for label in LABELS],
        "by_measure": [{"measure": "brightness", "side": "val", "distance": 0.04, "by_chance": 0.1, "train_mean": 70.0,
                        "mean": 71.0}],
    },
    "reports/augmentation.json": {
        "out_of_range": 0.2, "originals_out_of_range": 0.02, "operations_out_of_range": {"scale": 0.2},
    },
    "reports/train/cnn/metrics.json": {"val_accuracy": 0.95, "best_epoch": 3, "step": 4},
    "reports/train/vit/metrics.json": {"val_accuracy": 0.91, "best_epoch": 4, "step": 4},
    "reports/calibrate/cnn.json": {
        "temperature": 0.5, "temperature_low": 0.3, "temperature_high": 0.7, "notes": ["It was modest."],
    },
    "reports/calibrate/vit.json": {"temperature": 0.6, "notes": []},
    "reports/evaluate/cnn/metrics.json": METRICS,
    "reports/evaluate/vit/metrics.json": {**METRICS, "accuracy": 0.9},
    "reports/evaluate/cnn/detail.json": _detail(),
    "reports/evaluate/vit/detail.json": _detail(),
    "reports/evaluate/cnn/explanation.json": {"pointing": 0.97},
    "reports/evaluate/vit/explanation.json": {"pointing": 0.9},
    "reports/evaluate/cnn/explanation_detail.json": {
        "reason": "Maps are made by Grad-CAM.", "proof": "It finds 94% of the corners.",
        "pictures": {"explanation.png": "Red words are wrong answers."},
    },
    "reports/select.json": {"selected": "cnn", "reason": ["The CNN is better."]},
    "reports/export.json": {"golden_images": 32, "max_logit_difference": 3e-6, "max_embedding_difference": 1e-6},
    "reports/robustness.json": {"corruption_accuracy": 0.8, "worst_class": EVIL, "passed": 1, "over_budget": []},
    "reports/quantize.json": {
        "shipped": "int8", "reason": ["INT8 is shipped: it loses nothing."], "machine": ["a test machine, one thread"],
        "test_accuracy": 0.93, "int8_megabytes": 0.1, "int8_latency_ms_batch_1": 0.05, "int8_agreement": 0.99,
        "int8_test_accuracy": 0.93, "int8_val_accuracy": 0.95, "fp32_test_accuracy": 0.94, "fp32_val_accuracy": 0.95,
    },
    "reports/gate.json": {
        "passed": 1, "forced": 0, "champion_version": 1, "verdict": ["Not worse by more than 1 point."],
        "rules": [{"rule": "frozen", "passed": True, "reason": "fine"}, {"rule": "newest", "passed": None, "reason": "few"}],
    },
    "reports/deploy.json": {"version": 2, "new_version": 1},
    "reports/parity.json": {
        "held_out_images": 32, "odd_files": 60, "http_p50_ms": 1.5, "grpc_p50_ms": 1.4, "server_start_seconds": 0.9,
        "pairs": {"http_bytes": {"agreement": 1.0, "max_logit_distance": 3e-8, "mean_logit_distance": 1e-9}},
        "forms": [{"http_bytes": ["offline", f"served {EVIL}"]}], "decoder": [{"pillow": "13.0.0"}],
        "served_decoder": [{"pillow": "11.3.0"}], "decoder_sentence": [f"They read alike {EVIL}."], "passed": 1,
        "over_budget": [],
    },
    "reports/reference.json": {"rows": 90, "accuracy": 0.95, "mean_confidence": 0.9},
    "models/shipped/card.json": CARD,
}  # fmt: skip
PICTURES = [
    "reports/augmentation.png", "reports/augmentation_operations.png",
    *(f"reports/robustness/{name}.png" for name in ("corruptions", "sheet", "attacks", "invariance")),
    *(f"reports/calibrate/{family}/{name}.png" for family in ("cnn", "vit") for name in ("reliability", "unknowns")),
    *(f"reports/evaluate/{family}/{name}.png" for family in ("cnn", "vit") for name in (
        "confusion", "reliability", "risk_coverage", "pr_curves", "roc_curves", "classes", "slices", "pairs", "explanation",
        "explanation_mistakes", "explanation_pixels", "explanation_pointing", "explanation_proof", "mistakes")),
]  # fmt: skip


def write_run(root: Path) -> None:
    """A whole run below `root`."""
    for name, value in JSONS.items():
        _write(root / name, json.dumps(value).encode())
    for name in PICTURES:
        _write(root / name, png())
    _write(root / "reports/variants.csv", FORMS.encode())
    for family, step in (("cnn", 0.1), ("vit", 0.08)):
        for metric in ("val_accuracy", "train_loss"):
            lines = "".join(f"{epoch}\t{0.5 + step * epoch}\n" for epoch in range(1, 5))
            _write(root / f"reports/train/{family}/plots/metrics/{metric}.tsv", f"step\t{metric}\n{lines}".encode())
    stages = {
        "split": {
            "params": {"params.yaml": {"split": {"seed": 7}}},
            "outs": [{"path": "data/split.parquet", "md5": "c" * 32}],
        }
    }
    _write(root / "dvc.lock", yaml.safe_dump({"stages": stages}).encode())


def origin(files: RunFiles) -> Origin:
    return Origin(files.yaml(Path("dvc.lock")), "0123abc", True, VERSIONS)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
