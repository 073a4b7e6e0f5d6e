"""Where the work on single images runs: a process pool here, another `concurrent.futures` executor on a cluster.

Results come in the order of the inputs, and only a few batches are in flight, so memory does not grow with the data set.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from visionloop.config import ComputeParams
from visionloop.errors import DataError

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

IMAGES_PER_PROCESS = 1000
IN_FLIGHT = 16  # batches handed out and not yet taken back; enough to keep 8 processes busy


def make_executor(params: ComputeParams, images: int) -> Executor:
    """A pool of up to `params.workers` processes for so many images; 0 means one per core that this process may use.

    Processes are spawned, not forked: Arrow and torch hold threads, which a fork would leave locked. One costs about a
    second to start, so for few images the work stays in this process.
    """
    count = min(params.workers or len(os.sched_getaffinity(0)), images // IMAGES_PER_PROCESS)
    if count <= 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def map_batches(
    executor: Executor, function: Callable[[Batch], Result], batches: Iterable[Batch], in_flight: int = IN_FLIGHT
) -> Iterator[Result]:
    """Yield `function(batch)` for each batch, in order; `function` is a top-level one, so that it can be sent.

    Raises:
        DataError: a worker process died.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            waiting.append(executor.submit(function, batch))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died, most often for lack of memory; set `clean.workers: 1` in params.yaml, or run on a "
            "machine with more memory."
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def in_batches(
    items: Iterable[Item], most_items: int, most_size: int = 0, size: Callable[[Item], int] | None = None
) -> Iterator[list[Item]]:
    """Group items into lists of at most `most_items`, closed early once their sizes reach `most_size`.

    >>> list(in_batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item) if size else 0
        if len(batch) >= most_items or (size and total >= most_size):
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
