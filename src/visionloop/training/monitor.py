"""What a training uses: images a second, the share of time that it waits for data, memory, and the GPU where there is one.

Does not cover: what it learns; the epoch records hold that.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

from visionloop.training.batches import Batch

_SAMPLE_SECONDS = 1.0
_MEGABYTE = 1_000_000
# `ru_maxrss` counts kilobytes, on a Mac bytes.
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Use:
    """Of one epoch's steps."""

    images_per_second: float
    waiting_share: float  # of the steps' time in which no step ran, since the next batch was not there
    memory_mb: float  # megabytes of this process in memory at the end; maps of packed arrays count while they are cached
    memory_peak_mb: float  # most since the process began
    gpu_share: float | None  # mean share of time in which the GPU was at work, sampled each second; None without one
    gpu_memory_mb: float | None  # most that tensors took of the GPU's memory in this epoch; None without one

    def values(self) -> dict[str, float]:
        """By name, without what is not there."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: float(value) for name, value in named.items() if value is not None}


class Monitor:
    """Watches the batches of each epoch as they pass.

    On a CPU the next batch is made while no step runs, so `waiting_share` is what feeding costs. On a GPU steps run on while
    this process waits, so it is the most that feeding can cost.

    >>> for batch in monitor.batches(train_batches(...)):
    ...     step(batch)
    >>> monitor.use().waiting_share
    0.013
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._seconds = self._waited = 0.0
        self._images = 0
        self._gpu: list[float] = []
        self._sampled_at = 0.0

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; what was counted before is forgotten."""
        self._waited, self._images, self._gpu = 0.0, 0, []
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        start = self._sampled_at = time.perf_counter()
        asked = start
        for batch in batches:
            self._waited += time.perf_counter() - asked
            self._images += len(batch.labels)
            yield batch
            self._sample()
            asked = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the last steps still run
        self._seconds = time.perf_counter() - start

    def use(self) -> Use:
        """Of the batches that passed; asked for once an epoch's are through."""
        cuda = self._device.type == "cuda"
        return Use(
            images_per_second=self._images / max(self._seconds, 1e-9),
            waiting_share=min(1.0, self._waited / max(self._seconds, 1e-9)),
            memory_mb=self._process.memory_info().rss / _MEGABYTE,
            memory_peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT / _MEGABYTE,
            gpu_share=sum(self._gpu) / len(self._gpu) if self._gpu else None,
            gpu_memory_mb=torch.cuda.max_memory_allocated(self._device) / _MEGABYTE if cuda else None,
        )

    def _sample(self) -> None:
        if self._device.type != "cuda" or time.perf_counter() - self._sampled_at < _SAMPLE_SECONDS:
            return
        self._sampled_at = time.perf_counter()
        try:
            self._gpu.append(torch.cuda.utilization(self._device) / 100)
        except (ModuleNotFoundError, RuntimeError):  # without NVIDIA's management library the share stays unknown
            self._sampled_at = float("inf")
