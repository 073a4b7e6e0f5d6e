"""A training that is killed with SIGKILL and started again ends with the same weights as one that was left alone."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.forked import Forked, say
from tests.unit.training import worlds
from visionloop.training import EpochRecord, train

EPOCHS = 12


def run(resume: Path, weights: Path) -> None:
    """Train, or go on; say each epoch and whether it was restored, and keep the weights."""

    def on_epoch(record: EpochRecord) -> None:
        say(f"epoch {record.epoch} {int(record.restored)}")

    result = train(
        "cnn", worlds.split(96, 0), worlds.split(48, 1), worlds.meta(), worlds.params(epochs=EPOCHS), resume=resume,
        on_epoch=on_epoch, say=say,
    )  # fmt: skip
    torch.save(result.classifier.state_dict(), weights)


def left_alone(resume: Path, weights: Path) -> tuple[str, dict[str, Tensor]]:
    """What a process that is left alone says, and its weights."""
    with Forked(run, resume, weights) as process:
        text, _ = process.communicate(timeout=180)
    assert process.returncode == 0, text
    found: dict[str, Tensor] = torch.load(weights, weights_only=True)
    return text, found


@pytest.mark.parametrize("after", [1, 5, 11])
def test_sigkill_and_resume_end_with_the_same_bits(after: int, tmp_path: Path) -> None:
    resume = tmp_path / "killed"
    with Forked(run, resume, tmp_path / "killed.pt") as process:
        for line in process.stdout:
            if line.startswith(f"epoch {after} "):
                break
        deadline = time.monotonic() + 60
        while not (resume / "checkpoint.bin").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.pt").exists()

    text, resumed = left_alone(resume, tmp_path / "resumed.pt")
    assert text.startswith("Training goes on after epoch ")
    epochs = [line.split() for line in text.splitlines() if line.startswith("epoch ")]
    assert [int(number) for _, number, _ in epochs] == list(range(1, EPOCHS + 1))
    assert epochs[0][2] == "1", "the first epoch was trained again"
    text, alone = left_alone(tmp_path / "alone", tmp_path / "alone.pt")
    assert text.startswith("epoch 1 0\n")
    assert resumed.keys() == alone.keys() and all(torch.equal(value, alone[name]) for name, value in resumed.items())
