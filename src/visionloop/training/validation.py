"""Scores of a model on the validation images, from one confusion table that processes can add up.

Does not cover intervals, curves or single classes; `visionloop.evaluation` measures the finished model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.training.batches import Batch

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]


@dataclass(frozen=True, slots=True)
class Scores:
    """How well a model does on some images; shares are 0 to 1."""

    loss: float  # mean cross-entropy, without smoothing; infinite where it overflows
    accuracy: float
    balanced_accuracy: float  # mean recall of the classes that occur
    macro_f1: float  # mean F1 of the classes that occur or are answered

    def value(self, metric: Metric) -> float:
        """The score of that name."""
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.loss,
        }[metric]


def tally(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]], batches: Iterable[Batch], classes: int, device: torch.device
) -> Tensor:
    """What `scores` needs of these images, float64 [K * K + 1]: the confusion table (row actual, column answered), the loss.

    `forward` gives the logits [N, K] of a model in eval mode first. A sum over parts of the images is the tally of all.
    """
    table = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for batch in batches:
            logits = forward(batch.images)[0].float()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").double()
            places = batch.labels * classes + logits.argmax(1)
            table += torch.bincount(places, minlength=classes * classes)
    return torch.cat([table.double(), loss])


def scores(tallied: Tensor) -> Scores:
    """The scores of a tally, see `tally`."""
    classes = math.isqrt(len(tallied) - 1)
    table = tallied[:-1].reshape(classes, classes).cpu()
    total = float(table.sum())
    right, actual, answered = table.diagonal(), table.sum(1), table.sum(0)
    occurs = actual > 0
    either = (actual + answered) > 0
    loss = float(tallied[-1]) / total
    return Scores(
        # A loss that overflows on one image must not make every comparison with the best false.
        loss=loss if math.isfinite(loss) else math.inf,
        accuracy=float(right.sum()) / total,
        balanced_accuracy=float((right[occurs] / actual[occurs]).mean()),
        macro_f1=float((2 * right[either] / (actual + answered)[either]).mean()),
    )
