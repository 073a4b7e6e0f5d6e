"""Keeps one Triton server from outliving whoever started it. Run as a script, with the standard library only.

    python -I guard.py <launcher's pid> <exit timeout, seconds> <shared-memory prefix> <log file> <command...>

The server is this process's child and leads its own process group. When the launcher goes (even by `kill -9`), when the
server or one of its Python stubs goes, or on SIGTERM, the group is ended: SIGTERM, the exit timeout, SIGKILL; then the
shared-memory regions with the prefix are removed. Should this process itself be killed, the kernel kills the server, and
the next start sweeps up what is left. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel puts POSIX shared memory
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_COUNTS = 2.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(launcher: int, exit_timeout: float, prefix: str, log: str, command: list[str]) -> int:
    """Run the server until it ends or has to; the server's exit code."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    # Stubs that outlive the server become this process's children, and are buried here where no init does it (in a
    # container).
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with Path(log).open("ab") as file:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    dead: set[int] = set()
    next_count = time.monotonic() + SECONDS_BETWEEN_COUNTS
    while server.poll() is None and not stopping and os.getppid() == launcher:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if time.monotonic() >= next_count:
            next_count = time.monotonic() + SECONDS_BETWEEN_COUNTS
            before, dead = dead, _dead_children(server.pid)
            if before & dead:
                with Path(log).open("ab") as file:
                    file.write(b"A Python model's process died, and Triton does not heal from that; the server is ended.\n")
                break
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(exit_timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # the server where it hangs, and stubs that it left
    code = server.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def _dead_children(parent: int) -> set[int]:
    """Children of `parent` that ended and were not waited for. Triton waits for a stub that it ends itself."""
    dead = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            # pid (name) state ppid ...; a name may hold blanks and brackets
            state, ppid = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            if state == "Z" and int(ppid) == parent:
                dead.add(int(path.parent.name))
    return dead


def _die_with_parent() -> None:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
