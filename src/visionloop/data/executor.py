"""Where the work on single images runs: in processes here, or on a Dask cluster by its address; the same calls for both.

Results come in the order of the inputs, and only a few batches are in flight, so memory does not grow with the data set.
A worker that dies costs the time of its batch: the batch runs again, and the result is the same.

Does not cover: work on the set as a whole, which its callers do in this process on arrays.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from visionloop.config import ComputeParams
from visionloop.errors import DataError
from visionloop.memory import keep_freed_memory

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

IMAGES_PER_PROCESS = 1000
IN_FLIGHT = 16  # batches handed out and not yet taken back; enough to keep 8 processes busy


class Workers(Executor):
    """An executor that knows how many batches keep it busy, and what to do when a worker dies."""

    in_flight: int = IN_FLIGHT

    def result(self, future: Future[Result]) -> Result:
        """Wait for one result; `BrokenExecutor` says that the batch has to run again on renewed workers."""
        return future.result()

    def renew(self) -> None:
        """Start workers anew after a `BrokenExecutor`."""
        raise NotImplementedError


class ProcessPool(Workers):
    """Processes on this machine; after one has died, `renew` starts a pool of new ones.

    Processes are spawned, not forked: Arrow and torch hold threads, which a fork would leave locked.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.in_flight = max(IN_FLIGHT, 2 * count)
        self._pool = self._started()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """As in `concurrent.futures`; on a pool that has lost a process the future says so, and not the call."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor as error:
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def renew(self) -> None:
        self._pool.shutdown(wait=True)
        self._pool = self._started()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        # Whoever leaves the `with` block early wants none of what is left.
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)


def make_executor(params: ComputeParams, images: int) -> Executor:
    """Where to work on so many images; use it in a `with` block, which ends the workers or the connection.

    With `params.dask` the workers are those of that cluster. Else they are up to `params.workers` processes, 0 meaning one
    per core that this process may use; one costs about a second to start, so for few images the work stays in this process.

    >>> with make_executor(load_section(ComputeParams), len(rows)) as executor:
    ...     for result in map_batches(executor, function, batches):
    ...         ...

    Raises:
        ConfigError: no cluster answers at that address, it has no workers, or they run other versions than this process.
    """
    if params.dask is not None:
        from visionloop.data.cluster import Cluster

        return Cluster(params.dask)
    count = min(params.workers or len(os.sched_getaffinity(0)), images // IMAGES_PER_PROCESS)
    return ProcessPool(count) if count > 1 else ThreadPoolExecutor(1)


def _prepare_worker() -> None:
    """Hold numerical libraries in a worker to one thread, and let it keep the memory that it frees.

    The workers fill the cores, and more threads only wait. A batch's megabytes would be given back to the system after each
    one and come again page by page, which costs a tenth of measuring a small image.
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    keep_freed_memory(64 << 20, 16 << 20)  # pixels of large photos still go back at once


@dataclass(slots=True)
class _Job(Generic[Batch, Result]):
    number: int
    batch: Batch  # kept until the result is here, so that it can run again
    future: Future[Result]


def map_batches(
    executor: Executor, function: Callable[[Batch], Result], batches: Iterable[Batch], in_flight: int | None = None
) -> Iterator[Result]:
    """Yield `function(batch)` for each batch, in order.

    `function` is a top-level one or an instance of a top-level class, so that it can be sent; its module should import
    little, since each worker imports it. At most `in_flight` batches are drawn ahead, by default as many as keep the workers
    busy.

    Raises:
        DataError: a batch has cost two workers their life.
    """
    most = in_flight or (executor.in_flight if isinstance(executor, Workers) else IN_FLIGHT)
    jobs: deque[_Job[Batch, Result]] = deque()
    try:
        for number, batch in enumerate(batches):
            jobs.append(_Job(number, batch, executor.submit(function, batch)))
            if len(jobs) >= most:
                yield _taken(executor, function, jobs)
        while jobs:
            yield _taken(executor, function, jobs)
    finally:
        for job in jobs:
            job.future.cancel()


def _taken(executor: Executor, function: Callable[[Batch], Result], jobs: deque[_Job[Batch, Result]]) -> Result:
    """The result of the first job, which is then no longer waiting."""
    if not isinstance(executor, Workers):
        return jobs.popleft().future.result()
    try:
        result = executor.result(jobs[0].future)
    except BrokenExecutor:
        _run_again(executor, function, jobs)
        result = executor.result(jobs[0].future)
    jobs.popleft()
    return result


def _run_again(executor: Workers, function: Callable[[Batch], Result], jobs: Iterable[_Job[Batch, Result]]) -> None:
    """Repeat every job that a dead worker took with it, one by one: so the one that kills is known, and has all memory."""
    lost = [job for job in jobs if not job.future.done() or job.future.cancelled() or job.future.exception() is not None]
    print(  # noqa: T201 - who watches the bar wants to know why it stands still
        f"a worker process died; its work runs again ({len(lost)} batches)", file=sys.stderr, flush=True
    )
    executor.renew()
    for job in lost:
        job.future = executor.submit(function, job.batch)
        wait([job.future])
        if isinstance(job.future.exception(), BrokenExecutor):
            raise DataError(died_twice(f"batch {job.number + 1} ({contents(job.batch)})")) from job.future.exception()


def died_twice(what: str) -> str:
    """The sentence about work that no worker survives."""
    return (
        f"A worker process died at {what}, and died again when that ran alone, most often for lack of memory; use a machine "
        "with more memory, set `clean.max_megapixels` lower, or take these images out of the data set."
    )


def contents(batch: object) -> str:
    """What a batch holds, as "64 items, from 'cat/1.png' to 'cat/64.png'", as far as its items name themselves."""
    if not isinstance(batch, list | tuple) or not batch:
        return type(batch).__name__
    first, last = (_name(item) for item in (batch[0], batch[-1]))
    count = f"{len(batch)} item{'' if len(batch) == 1 else 's'}"
    return f"{count}, from {first} to {last}" if first and last else count


def _name(item: object) -> str:
    parts = item if isinstance(item, list | tuple) else (item,)
    for part in parts:
        named = getattr(part, "path", part)
        if isinstance(named, str | int):
            return repr(named)[:80]
    return ""


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
