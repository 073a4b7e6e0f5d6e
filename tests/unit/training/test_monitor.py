"""Waiting is told from working, images are counted, memory is this process's."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import pytest
import torch

from visionloop.training.batches import Batch
from visionloop.training.monitor import Monitor


def slow(count: int, seconds: float) -> Iterator[Batch]:
    for _ in range(count):
        time.sleep(seconds)
        yield Batch(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))


def test_the_share_of_waiting_and_the_images_a_second() -> None:
    monitor = Monitor(torch.device("cpu"))
    for waiting, working, share in ((0.03, 0.01, 0.75), (0.0, 0.02, 0.0)):
        for _ in monitor.batches(slow(5, waiting)):
            time.sleep(working)
        use = monitor.use()
        # Sleeps take longer where others have the cores, so the share is known by a tenth or two and the rate from above.
        assert use.waiting_share == pytest.approx(share, abs=0.2)
        assert 0 < use.images_per_second <= 20 / (5 * (waiting + working))


def test_memory_grows_by_what_is_held() -> None:
    monitor = Monitor(torch.device("cpu"))
    before = monitor.use()
    # Pages of the system's own: an allocator may have room left from tests before.
    with mmap.mmap(-1, 50_000_000) as held:
        held.write(bytes([1]) * 50_000_000)
        after = monitor.use()
    assert after.memory_mb - before.memory_mb > 40
    assert after.memory_peak_mb >= after.memory_mb * 0.99


def test_without_a_gpu_its_figures_are_left_out() -> None:
    values = Monitor(torch.device("cpu")).use().values()
    assert set(values) == {"images_per_second", "waiting_share", "memory_mb", "memory_peak_mb"}


def test_an_error_of_the_source_passes_through() -> None:
    def broken() -> Iterator[Batch]:
        yield from slow(1, 0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(Monitor(torch.device("cpu")).batches(broken()))
