"""Progress of a long loop: a bar with rate and time left on a terminal, else a line every few seconds.

Written to standard error, so that a command's own output can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


def track(
    items: Iterable[Item], description: str, total: int | None = None, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Yield from `items` and show how far it is. `total` is asked of `items` where it has a length.

    An item counts as `size(item)`: for blocks of images, `size=len` and `total` the number of images show images.

    >>> for row in track(rows, "measure"):
    ...     ...
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    return _bar(items, description, total, console, size) if console.is_terminal else _lines(items, description, total, size)


def _bar(
    items: Iterable[Item], description: str, total: int | None, console: Console, size: Callable[[Item], int]
) -> Iterator[Item]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, size(item))


def _lines(items: Iterable[Item], description: str, total: int | None, size: Callable[[Item], int]) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(line(description, done, total, now - start), file=sys.stderr, flush=True)  # noqa: T201 - the line is the product
    print(line(description, done, total, time.monotonic() - start), file=sys.stderr, flush=True)  # noqa: T201


def line(description: str, done: int, total: int | None, seconds: float) -> str:
    """One line of progress, as "measure 512/1797, 1,024/s, 1 s left"."""
    rate = done / seconds if seconds > 0 else 0.0
    if total is None or done >= total or rate == 0:
        return f"{description} {done}{f'/{total}' if total else ''}, {rate:,.0f}/s, {seconds:.1f} s"
    return f"{description} {done}/{total}, {rate:,.0f}/s, {(total - done) / rate:.0f} s left"


def note(text: str) -> None:
    """A line of its own, for steps whose number is not known before."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
