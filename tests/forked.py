"""Processes for tests that begin with torch loaded, which takes longer than what most of them do.

Each is a child of a server (`multiprocessing`'s forkserver) that has imported and computed nothing, so it shares no state
with the test. It is used as `subprocess.Popen` is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "optuna", "visionloop.training", "visionloop.tuning.study"])


def _run(output: Connection, environment: Mapping[str, str], function: Callable[..., object], *arguments: Any) -> None:
    os.dup2(output.fileno(), sys.stdout.fileno())
    os.dup2(output.fileno(), sys.stderr.fileno())
    output.close()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    raise SystemExit(function(*arguments))


def say(sentence: object) -> None:
    """A line of such a process."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


class Forked:
    """A process that runs `function(*arguments)`, a function of a module, and ends with what it returns, None for 0."""

    def __init__(
        self, function: Callable[..., int | None], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        reader, writer = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(writer, dict(environment or {}), function, *arguments))
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._said: str | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it wrote to standard output and error and was not read yet, once it has ended; a pipe holds 64 KiB of it."""
        self.wait(timeout)
        if self._said is None:
            with self.stdout:
                self._said = self.stdout.read()
        return self._said, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.wait()
        self.stdout.close()
