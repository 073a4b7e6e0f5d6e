"""A training that is killed with SIGKILL and started again ends with the same weights as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {folder!r})
import worlds
from visionloop.training import train

def run(resume):
    def on_epoch(record):
        print("epoch", record.epoch, int(record.restored), flush=True)

    return train(
        "cnn", worlds.split(96, 0), worlds.split(48, 1), worlds.meta(), worlds.params(epochs=12), resume=Path(resume),
        on_epoch=on_epoch, say=lambda sentence: print(sentence, flush=True),
    ).classifier.state_dict()

one = run({resume!r})
"""
COMPARE = """
print("left alone", flush=True)
two = run({other!r})
print("same", one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one))
"""


def start(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("after", [1, 5, 11])
def test_sigkill_and_resume_end_with_the_same_bits(after: int, tmp_path: Path) -> None:
    resume = tmp_path / "killed"
    code = TRAIN.format(folder=str(Path(__file__).parent), resume=str(resume))
    with start(code) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"epoch {after} "):
                break
        deadline = time.monotonic() + 60
        while not (resume / "checkpoint.bin").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    with start(code + COMPARE.format(other=str(tmp_path / "alone"))) as process:
        text, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    assert text.startswith("Training goes on after epoch ")
    resumed, alone = text.split("left alone\n")
    epochs = [line.split() for line in resumed.splitlines() if line.startswith("epoch ")]
    assert [int(number) for _, number, _ in epochs] == list(range(1, 13))
    assert epochs[0][2] == "1", "the first epoch was trained again"
    assert alone.startswith("epoch 1 0\n")
    assert alone.endswith("same True\n")
