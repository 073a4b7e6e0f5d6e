"""Whether bfloat16 autocast pays on this machine for this network, measured on a few real steps.

On two CPU cores bf16 nearly doubles a ResNet's steps and halves a MobileNet's or a small ViT's, so no rule replaces the
measurement. Does not cover float16, which needs loss scaling and gains nothing over bf16 on any device of the last years.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.models import Classifier

Precision = Literal["fp32", "bf16"]
_WARM_UP = 2
_STEPS = 5
# bf16 rounds to 8 bits; it must be this many times as fast to be worth it.
LEAST_SPEEDUP = 1.1


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which forward passes run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def measure_precision(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Precision, str]:
    """The faster precision for this model and batch, and a sentence with the times. The model is left as it was."""
    seconds = {}
    for precision in ("fp32", "bf16"):
        seconds[precision] = _step_seconds(_step(copy.deepcopy(model), images, labels, precision), images.device)
    speedup = seconds["fp32"] / seconds["bf16"]
    chosen: Precision = "bf16" if speedup >= LEAST_SPEEDUP else "fp32"
    return chosen, (
        f"Precision {chosen}: a step takes {seconds['fp32'] * 1000:.1f} ms in fp32 and {seconds['bf16'] * 1000:.1f} ms in "
        f"bf16, and bf16 must be {LEAST_SPEEDUP:g} times as fast."
    )


def _step(model: Classifier, images: Tensor, labels: Tensor, precision: Precision) -> Callable[[], None]:
    def step() -> None:
        with autocast(images.device, precision):
            logits, _ = model(images)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return step


def _step_seconds(step: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(_WARM_UP + _STEPS):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[_WARM_UP:])  # what another program takes of the cores only ever adds time
