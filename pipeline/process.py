"""Child processes that do not outlive their purpose.

A child is started in a session of its own, dies with its parent (Linux's parent-death signal), and carries a mark in its
environment that its own children inherit. `reap` finds what a mark names, however deep, and ends it: this covers what a
parent-death signal cannot, the grandchildren of a process that was killed with SIGKILL.

Does not cover: processes of other users, and programs that clear their environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

# Runs between fork and exec of the real program, with the parent's id and the command as arguments: asks Linux for SIGTERM
# when the parent dies, and stops at once if the parent is gone already. An interpreter without site-packages needs about
# 10 ms; `preexec_fn` is unsafe beside threads.
DIE_WITH_PARENT = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,15,0,0,0)\n"
    "if os.getppid()!=int(sys.argv[1]): sys.exit(1)\n"
    "os.execvp(sys.argv[2],sys.argv[2:])\n"
)


def quiet_environment(**more: str) -> dict[str, str]:
    """This process's environment with the project's Python first on PATH, unbuffered output and telemetry off."""
    folder = str(Path(sys.executable).parent)
    parts = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part != folder]
    return {
        **os.environ,
        "PATH": os.pathsep.join([folder, *parts]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        **more,
    }


def spawn(
    command: Sequence[str], *, env: Mapping[str, str], stdout: int | IO[bytes], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, standard error joined to `stdout`; it gets SIGTERM when this process dies."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def marked(mark: str, value: str) -> list[psutil.Process]:
    """The living processes that carry `mark=value` in their environment, this one and its ancestors left out."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(mark) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or is another user's
    return found


def reap(mark: str, value: str, grace_seconds: float = 3) -> int:
    """End every process that `marked` finds: SIGTERM, then SIGKILL after the grace time. Returns how many there were."""
    processes = marked(mark, value)
    for process in processes:
        _send(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(processes, timeout=grace_seconds)
    # A process may have started another one between the search and its end.
    for process in {*stubborn, *marked(mark, value)}:
        _send(process, signal.SIGKILL)
        stubborn.append(process)
    psutil.wait_procs(stubborn, timeout=2)
    return len(processes)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself
