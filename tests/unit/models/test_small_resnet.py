"""The small residual network trains on the narrow maps that torch's own strided shortcut cannot take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from visionloop.models import build

STEPS = """
import torch
from visionloop.models import build
torch.set_num_threads(2)
model = build("small_resnet", num_classes=3, image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3,
              options={"width": WIDTH}).train()
for _ in range(20):
    model(torch.randint(0, 256, (63, 16, 16, 3), dtype=torch.uint8))[0].square().mean().backward()
print("done")
"""


@pytest.mark.parametrize("width", [8, 12])
def test_narrow_networks_train_on_several_threads(width: int) -> None:
    """torch 2.15's strided 1x1 convolution ends such a process with a damaged heap."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS.replace("WIDTH", str(width))],
        capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_shortcut_is_the_same_in_training_and_in_use() -> None:
    torch.manual_seed(0)
    model = build("small_resnet", num_classes=3, image_size=(15, 15), mean=(0.5,) * 3, std=(0.25,) * 3, options={"width": 8})
    stages = model.network.get_submodule("stages")
    block = stages.get_submodule("1")
    maps = torch.randn(3, 8, 15, 15)
    block.train()
    for name in ("norm1", "norm2"):
        block.get_submodule(name).eval()
    torch.testing.assert_close(block(maps), block.eval()(maps))
