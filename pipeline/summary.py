"""What the stages measured, read from their reports, as tables for people: the terminal, Prefect's UI, README.md.

Does not cover: the live endpoint; `run.py` adds what it answered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionloop.errors import ArtifactError
from visionloop.paths import DEPLOY_REPORT, PARITY_REPORT, QUANTIZE_REPORT, SELECT_REPORT, evaluate_report

FAMILIES = {"cnn": "CNN", "vit": "ViT"}


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads, rows of text, and sentences that belong below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table as GitHub's Markdown, its notes below."""
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(self.columns)} |",
            f"|{'|'.join(['---'] * len(self.columns))}|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
            "",
            *(f"{note}\n" for note in self.notes),
        ]
        return "\n".join(lines).rstrip() + "\n"


def tables(root: Path = Path()) -> list[Table]:
    """The models against each other, the forms of the selected one, and the deployed endpoint.

    Raises:
        ArtifactError: a report is missing or damaged; the stages did not run.
    """
    return [_models(root), _forms(root), _endpoint(root)]


def _models(root: Path) -> Table:
    select = _read(root / SELECT_REPORT)
    rows = []
    images = 0
    for family, words in FAMILIES.items():
        metrics = _read(root / evaluate_report(family) / "metrics.json")
        images = int(metrics["images"])
        rows.append(
            (
                words,
                _percent(metrics["accuracy"]),
                f"{_percent(metrics['accuracy_low'])} to {_percent(metrics['accuracy_high'])}",
                f"{metrics['macro_f1']:.3f}",
                f"{select[f'{family}_megabytes']:.2f}",
                f"{select[f'{family}_latency_ms']:.2f}",
                "selected" if select["selected"] == family else "",
            )
        )
    heads = ("model", "test accuracy", "95 % interval", "macro F1", "MB", "ms per image", "")
    return Table(f"CNN against ViT, {images} test images", heads, tuple(rows), tuple(select["reason"]))


def _forms(root: Path) -> Table:
    report = _read(root / QUANTIZE_REPORT)
    # The row of FP32 is that of ONNX Runtime, whatever runs what is shipped.
    elsewhere = "openvino" in report.get("runtime", ())
    rows = [
        (
            form.upper(),
            _percent(report[f"{form}_test_accuracy"]),
            f"{report[f'{form}_megabytes']:.2f}",
            f"{report[f'{form}_latency_ms_batch_1']:.3f}",
            f"{report[f'{form}_images_per_second_batch_32']:,.0f}",
            "shipped" if report["shipped"] == form and not (elsewhere and form == "fp32") else "",
        )
        for form in ("fp32", "int8")
        if f"{form}_megabytes" in report
    ]
    heads = ("form", "test accuracy", "MB", "ms per image", "images/s by 32", "")
    title = "FP32 against INT8, ONNX Runtime with one thread"
    if elsewhere and report["shipped"] == "int8":
        title = "FP32 in ONNX Runtime against INT8 in OpenVINO, with one thread"
    return Table(title, heads, tuple(rows), tuple(report["reason"]))


def _endpoint(root: Path) -> Table:
    deploy, parity = _read(root / DEPLOY_REPORT), _read(root / PARITY_REPORT)
    pairs = parity["pairs"]
    rows = tuple(
        (
            words,
            f"{parity[f'{protocol}_p50_ms']:.1f}",
            *(f"{pairs[f'{protocol}_{sent}']['max_logit_distance']:.1e}" for sent in ("tensor", "bytes")),
        )
        for protocol, words in (("http", "HTTP"), ("grpc", "gRPC"))
    )
    note = (
        f"Version {deploy['version']:.0f}, proved before it was published on {parity['held_out_images']:.0f} held-out "
        f"images and {parity['odd_files']:.0f} odd files, from torch (logits within "
        f"{pairs['torch_onnx']['max_logit_distance']:.1e}) to the server."
    )
    heads = ("protocol", "ms per image", "largest distance of a logit to offline, by tensor", "by file")
    return Table("Triton endpoint", heads, rows, (note, *parity["decoder_sentence"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run `dvc repro` to write it.") from error
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
