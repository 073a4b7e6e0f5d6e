"""A small closed-loop load test: each client sends its next request when the last one is answered.

For the shape of the curve on this machine. The clients are threads of one Python process and take processor time from the
server, so for a large machine use Triton's `perf_analyzer` from another one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.client import Client
from visionloop.errors import VisionloopError
from visionloop.preprocess import PixelArray


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a run measured; times are of answered requests."""

    clients: int
    batch_size: int
    seconds: float
    requests: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def images_per_second(self) -> float:
        """Of answered requests, over all clients."""
        return (self.requests - self.errors) * self.batch_size / self.seconds


def run(
    url: str,
    inputs: Sequence[bytes] | PixelArray,
    *,
    protocol: Literal["http", "grpc"] = "grpc",
    clients: int = 1,
    batch_size: int = 1,
    seconds: float = 5.0,
) -> LoadResult:
    """Send `inputs` round and round, encoded images to `classify` or uint8 tensors [M, H, W, 3] to `classifier`.

    >>> run("127.0.0.1:8001", images, clients=16).p99_ms
    """
    tensors = isinstance(inputs, np.ndarray)
    times: list[list[float]] = [[] for _ in range(clients)]
    errors = [0] * clients
    warm, stop = threading.Barrier(clients + 1), threading.Event()

    def work(index: int) -> None:
        batches = [
            [(index + start + row) % len(inputs) for row in range(batch_size)] for start in range(0, len(inputs), batch_size)
        ]
        with Client(url, protocol) as client:
            send: Callable[[list[int]], object] = (
                (lambda rows: client.predict_tensors(inputs[rows]))  # type: ignore[call-overload]
                if tensors
                else (lambda rows: client.predict_images([bytes(inputs[row]) for row in rows]))
            )
            send(batches[0])
            warm.wait()
            turn = 0
            while not stop.is_set():
                start = time.perf_counter()
                try:
                    send(batches[turn % len(batches)])
                    times[index].append((time.perf_counter() - start) * 1000)
                except VisionloopError:
                    errors[index] += 1
                turn += 1

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(clients)]
    for thread in threads:
        thread.start()
    warm.wait(timeout=120)
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - begin
    together = np.array([value for one in times for value in one] or [float("nan")])
    p50, p95, p99 = (float(value) for value in np.percentile(together, (50, 95, 99)))
    failed = sum(errors)
    return LoadResult(clients, batch_size, taken, sum(map(len, times)) + failed, failed, p50, p95, p99)
