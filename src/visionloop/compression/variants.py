"""Every form of the selected model side by side: torch, ONNX FP32 and the INT8 forms, by speed, size and memory.

Does not cover: accuracy and the choice between them (`visionloop.compression.choice`), and GPUs.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from visionloop.compression.memory import Memory
from visionloop.runtime import Floats, Images, Latency, is_installed

TORCH = "torch"
COLUMNS = (
    "form", "shipped", "batch_size", "p50_ms", "p95_ms", "p99_ms", "images_per_second", "megabytes", "memory_mb",
    "process_mb", "calls",
)  # fmt: skip


class TorchForm:
    """A torch classifier as it was trained, eager, on the CPU, behind the call that ONNX models have."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model.eval()

    def run(self, images: Images) -> tuple[Floats, Floats]:
        """Logits [N, K] and embedding [N, D] of uint8 images [N, H, W, 3]."""
        with torch.inference_mode():
            logits, embedding = self._model(torch.from_numpy(images))
        return logits.numpy(), embedding.numpy()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, as the other forms have; the number of before comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Variant:
    """One form of the model."""

    name: str  # "torch", "fp32", "int8", or what else is shipped
    shipped: bool
    megabytes: float  # of its file
    memory: Memory
    latencies: Sequence[Latency]


def flat(variants: Sequence[Variant]) -> dict[str, float]:
    """As flat numbers, for `dvc metrics`: "torch_latency_p99_ms_batch_8", "int8_memory_mb", ..."""
    numbers: dict[str, float] = {}
    for one in variants:
        numbers[f"{one.name}_megabytes"] = one.megabytes
        numbers[f"{one.name}_memory_mb"] = one.memory.growth_mb
        numbers[f"{one.name}_process_mb"] = one.memory.process_mb
        for latency in one.latencies:
            batch = f"batch_{latency.batch_size}"
            numbers[f"{one.name}_latency_ms_{batch}"] = latency.p50_ms
            numbers[f"{one.name}_latency_p95_ms_{batch}"] = latency.p95_ms
            numbers[f"{one.name}_latency_p99_ms_{batch}"] = latency.p99_ms
            numbers[f"{one.name}_images_per_second_{batch}"] = latency.images_per_second
    return numbers


def variants_csv(variants: Sequence[Variant]) -> str:
    """A row per form and batch size, with the columns `COLUMNS`; times in milliseconds, sizes in 10^6 bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in variants:
        for latency in one.latencies:
            times = (f"{value:.4f}" for value in (latency.p50_ms, latency.p95_ms, latency.p99_ms))
            size = (f"{one.megabytes:.4f}", f"{one.memory.growth_mb:.2f}", f"{one.memory.process_mb:.2f}")
            rate = f"{latency.images_per_second:.1f}"
            writer.writerow([one.name, int(one.shipped), latency.batch_size, *times, rate, *size, latency.calls])
    return text.getvalue()


def machine() -> str:
    """The machine, its load and the libraries that the figures are of, in words."""
    load = os.getloadavg()[0]
    libraries = f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    if is_installed("openvino"):
        libraries += f", OpenVINO {importlib.metadata.version('openvino')}"
    return f"{_processor()}, {os.cpu_count()} cores, load {load:.1f}, one thread, {libraries}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "an unnamed processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unnamed processor"
