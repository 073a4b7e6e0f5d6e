"""Processes that work together end together, and the launcher says which one ended first and how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LAUNCH = """
import sys
from pipeline.launch import launch
from visionloop.errors import PipelineError
try:
    launch("tests.unit.pipeline.together", sys.argv[1:], 2)
except PipelineError as error:
    print(error)
    raise SystemExit(1)
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "WORLD_SIZE")}
    environment["PYTHONPATH"] = f"{root / 'src'}:{root}"
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(folder), how],
        env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (
            "killed", 1,
            "Process 2 of the 2 that work together was killed by SIGKILL, most often for lack of memory. The others were "
            "stopped; run again to go on from the last checkpoint.\n",
        ),
        (
            "refused", 1,
            "Process 2 of the 2 that work together ended with exit code 1; what it said stands above. The others were "
            "stopped; run again to go on from the last checkpoint.\n",
        ),
    ],
)  # fmt: skip
def test_all_end_and_the_first_to_end_is_named(how: str, code: int, said: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    with start(tmp_path, how) as process:
        text, _ = process.communicate(timeout=400)
    assert (process.returncode, text) == (code, said)
    assert time.monotonic() - begin < 400, "the other process slept for its eight minutes"
    ids = [int((tmp_path / f"{rank}.pid").read_text().split()[0]) for rank in range(2)]
    assert not any(psutil.pid_exists(number) for number in ids)
    threads = (tmp_path / "0.pid").read_text().split()[1]
    assert threads == str(max(1, len(os.sched_getaffinity(0)) // 2))


def test_a_launcher_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    with start(tmp_path, "waits") as process:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)
        children = [psutil.Process(int(path.read_text().split()[0])) for path in tmp_path.glob("*.pid")]
        assert len(children) == 2
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
