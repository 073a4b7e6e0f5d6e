"""Order is kept, memory is bounded, and a process that dies is a sentence."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from visionloop.data.executor import in_batches, make_executor, map_batches
from visionloop.errors import DataError


def slow_when_even(number: int) -> int:
    time.sleep(0.01 if number % 2 == 0 else 0)
    return number * number


def die(_: int) -> int:
    os._exit(1)


def test_results_come_in_the_order_of_the_batches() -> None:
    with ThreadPoolExecutor(4) as executor:
        assert list(map_batches(executor, slow_when_even, range(20), in_flight=4)) == [n * n for n in range(20)]


def test_only_a_few_batches_are_drawn_ahead() -> None:
    drawn = []

    def batches() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with ThreadPoolExecutor(2) as executor:
        results = map_batches(executor, slow_when_even, batches(), in_flight=5)
        next(results)
        assert len(drawn) <= 5


def test_batches_close_by_count_and_by_size() -> None:
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([b"aaaa", b"b", b"cc", b"d"], 10, 4, size=len)) == [[b"aaaa"], [b"b", b"cc", b"d"]]
    assert list(in_batches([], 2)) == []


def test_a_process_that_dies_is_a_sentence() -> None:
    with (
        make_executor(2, 10_000) as executor,
        pytest.raises(DataError, match=r"A worker process died, .* `clean.workers: 1`"),
    ):
        list(map_batches(executor, die, range(4)))


def test_few_images_stay_in_this_process() -> None:
    with make_executor(8, 500) as executor:
        assert executor.submit(os.getpid).result() == os.getpid()
