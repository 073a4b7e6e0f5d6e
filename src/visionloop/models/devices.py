"""Which device a computation runs on."""

from __future__ import annotations

from typing import Literal

import torch

from visionloop.errors import TrainingError


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one.

    Raises:
        TrainingError: CUDA is asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainingError(
            "train.device is 'cuda', but torch finds no CUDA device here; set it to 'auto' or 'cpu', or install a driver."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")
