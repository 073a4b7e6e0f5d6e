"""The batch whose loss or gradient is not a finite number: found as early as the device allows, and kept to be looked at.

Four files in the folder of the checkpoint: bad-batch.npz (pixels and labels), .png (the pixels as a picture), .json (where
it was, the norm of every parameter), .pt (the weights that met it). Does not cover: the batch after weights have grown
without bound over many steps, which is as innocent as any other; the norms tell that case.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visionloop.data.contact_sheet import Row, draw_sheet
from visionloop.errors import ArtifactError, TrainingError
from visionloop.files import write_bytes, write_json
from visionloop.training.batches import Batch

NAME = "bad-batch"
# Each look at a loss waits for a GPU's steps before it; so many batches are kept meanwhile.
_GPU_STEPS = 8
_SHOWN = 64  # images on the picture
_COLUMNS = 8


class LossGuard:
    """Stops a training whose loss is not finite, and saves the batch that did it.

    On a CPU each loss is looked at before its step, so the weights that are saved give that loss again. On a GPU every few
    steps; by then the weights are spoilt, and the checkpoint of the epoch before is the way back.

    >>> guard = LossGuard(model, resume, device)
    >>> guard.begin(epoch=1, steps=100)
    >>> guard.loss(batch, loss)  # before loss.backward()
    >>> guard.gradient(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    >>> guard.end()
    """

    def __init__(self, model: nn.Module, folder: Path, device: torch.device) -> None:
        self._model, self._folder = model, folder
        self._every = 1 if device.type == "cpu" else _GPU_STEPS
        self._waiting: list[tuple[int, Batch, Tensor]] = []
        self._before: tuple[int, Batch] | None = None
        self._epoch = self._steps = self._step = 0

    def begin(self, *, epoch: int, steps: int) -> None:
        """An epoch of so many batches begins."""
        self._epoch, self._steps, self._step = epoch, steps, 0
        self._waiting, self._before = [], None

    def loss(self, batch: Batch, loss: Tensor) -> None:
        """The loss of the next batch, a scalar.

        Raises:
            TrainingError: it is not finite, or one of the last few is not.
        """
        self._step += 1
        self._waiting.append((self._step, batch, loss.detach()))
        if len(self._waiting) >= self._every:
            self._look()

    def gradient(self, norm: Tensor) -> None:
        """The norm of the gradient of the last batch, a scalar; without a call only losses are watched.

        Raises:
            TrainingError: on a CPU, and it is not finite: the step that it stops would have spoilt the weights.
        """
        if self._every == 1 and self._before is not None and not math.isfinite(float(norm)):
            self._stop(*self._before, f"norm of the gradient is {float(norm)}")

    def end(self) -> None:
        """The epoch's batches are through.

        Raises:
            TrainingError: one of the last losses is not finite.
        """
        self._look()

    def _look(self) -> None:
        if not self._waiting:
            return
        losses = torch.stack([loss for _, _, loss in self._waiting]).tolist()
        for (step, batch, _), loss in zip(self._waiting, losses, strict=True):
            if not math.isfinite(loss):
                # Weights that the step before spoilt make every loss NaN; then that step's batch is the one to look at.
                spoilt = self._every == 1 and self._before is not None and not _finite(self._model)
                self._stop(*(self._before if spoilt and self._before else (step, batch)), f"loss is {loss}", step)
            self._before = (step, batch)
        self._waiting = []

    def _stop(self, step: int, batch: Batch, what: str, seen: int | None = None) -> None:
        seen = seen or step
        save_bad_batch(self._folder, batch, self._model, epoch=self._epoch, step=step, what=what)
        culprit = "the batch that did it" if seen == step else f"the batch of step {step}, which spoilt the weights,"
        raise TrainingError(
            f"The {what} at step {seen} of {self._steps} in epoch {self._epoch}; lower the learning rate, or set "
            f"train.gradient_clip_norm (1.0 is usual). Look at {culprit} in {self._folder / NAME}.png, .json and .npz. "
            "The last checkpoint, if an epoch was finished, stays beside it; with another setting training begins anew."
        )


@dataclass(frozen=True)
class BadBatch:
    """What `save_bad_batch` wrote."""

    batch: Batch
    weights: dict[str, Tensor]  # of the model, by name
    facts: dict[str, Any]  # epoch, step, what, norms


def save_bad_batch(folder: Path, batch: Batch, model: nn.Module, *, epoch: int, step: int, what: str) -> None:
    """Write `batch`, the model's weights as they are, and where it was, into `folder`, over what an earlier one left.

    `batch` is as the model got it: images uint8, or float32 of 0 to 255 where they were attacked.
    """
    host = batch.each(lambda part: part.detach().cpu())
    buffer = io.BytesIO()
    arrays = {name: part.numpy() for name, part in host._asdict().items() if part is not None}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(folder / f"{NAME}.npz", buffer.getvalue())
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in model.state_dict().items()}, buffer)
    write_bytes(folder / f"{NAME}.pt", buffer.getvalue())
    buffer = io.BytesIO()
    _picture(host).save(buffer, format="PNG")
    write_bytes(folder / f"{NAME}.png", buffer.getvalue())
    norms = {name: float(value.detach().double().norm()) for name, value in model.named_parameters()}
    write_json(
        folder / f"{NAME}.json",
        {
            "epoch": epoch, "step": step, "what": what, "images": len(host.labels),
            "not_finite": [name for name, norm in norms.items() if not math.isfinite(norm)],
            # JSON knows no NaN.
            "parameter_norms": {name: norm if math.isfinite(norm) else str(norm) for name, norm in norms.items()},
            "gradient_norms": {
                name: norm if math.isfinite(norm) else str(norm)
                for name, value in model.named_parameters() if value.grad is not None
                for norm in [float(value.grad.double().norm())]
            },
        },
    )  # fmt: skip


def load_bad_batch(folder: Path) -> BadBatch:
    """Read what `save_bad_batch` wrote into `folder`.

    Raises:
        ArtifactError: a file is not there or cannot be read.

    >>> found = load_bad_batch(Path("models/cnn/resume"))
    >>> model.load_state_dict(found.weights)
    >>> model.train()(found.batch.images)
    """
    try:
        with np.load(folder / f"{NAME}.npz", allow_pickle=False) as arrays:
            batch = Batch(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
        weights = torch.load(folder / f"{NAME}.pt", map_location="cpu", weights_only=True)
        facts = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(
            f"The files {folder / NAME}.npz, .pt and .json cannot be read ({error}); a training that stopped at a loss that "
            "is not finite writes them, and the next one that ends well removes them."
        ) from error
    return BadBatch(batch, weights, facts)


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in model.parameters())


def _picture(batch: Batch) -> Image.Image:
    """The first images as tiles with their classes' numbers below, and those of partners with their shares."""
    shown = batch.images[:_SHOWN].to(torch.float32).nan_to_num(0.0).round().clamp(0, 255).to(torch.uint8).numpy()
    words = [str(label) for label in batch.labels[:_SHOWN].tolist()]
    if batch.partners is not None and batch.shares is not None:
        mixed = zip(words, batch.partners.tolist(), batch.shares.tolist(), strict=False)
        words = [f"{own} {share:.2f}\n{other} {1 - share:.2f}" for own, other, share in mixed]
    rows = [
        Row(f"{start + 1} to {min(start + _COLUMNS, len(shown))}", list(shown[start : start + _COLUMNS]),
            words[start : start + _COLUMNS])
        for start in range(0, len(shown), _COLUMNS)
    ]  # fmt: skip
    return draw_sheet(rows, f"{len(shown)} of the {len(batch.labels)} images of the batch", ("class", ""))
