"""The training loop: epochs of steps, a validation after each, the best weights kept, a checkpoint to go on from.

The CUDA path (pinned copies ahead of the steps, no waiting for the device but to check the loss) has not run on a GPU yet.
Does not cover: several devices or machines.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop import __version__
from visionloop.config import FamilyParams, TrainParams
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.errors import ConfigError, DataError, TrainingError
from visionloop.files import sha256_file
from visionloop.models import Classifier, Family, build
from visionloop.models.devices import choose_device
from visionloop.training.batches import Batch, count, plain_batches, seed_of, to_device, train_batches
from visionloop.training.checkpoint import Checkpoints
from visionloop.training.freezing import apply_freeze
from visionloop.training.optimizers import Optimizer
from visionloop.training.precision import Precision, autocast, measure_precision
from visionloop.training.schedules import Schedule

# Steps between two looks at the losses; on a GPU each look waits for the steps before it.
_LOSS_CHECK_STEPS = 32


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int  # from 1
    epochs: int
    learning_rate: float  # of the last step
    train_loss: float  # mean over the epoch's images, augmented, mixed, with label smoothing: never 0 where labels are soft
    val_loss: float  # mean cross-entropy over the validation images, without smoothing
    val_accuracy: float
    images_per_second: float = 0.0  # of the training steps; not part of the history
    seconds_left: float = 0.0  # if every epoch is still to come
    restored: bool = False  # told again from the checkpoint


@dataclass(frozen=True)
class TrainResult:
    """The trained model, with the weights of its best epoch, on the CPU and in eval mode."""

    classifier: Classifier
    best: EpochRecord
    history: tuple[EpochRecord, ...]
    precision: Precision
    resumed_after: int  # epochs that an earlier, interrupted run had done
    notes: tuple[str, ...]  # what was chosen on the way, in sentences


def train(
    family: Family,
    train_data: PackedSplit,
    val_data: PackedSplit,
    meta: PackedMeta,
    params: TrainParams,
    *,
    resume: Path,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> TrainResult:
    """Train the architecture of `params` for `family` and keep the weights of the best epoch.

    Best is the highest validation accuracy, among equals the lowest validation loss, among these the first. The state
    after an epoch is saved in `resume`; a run that finds it there goes on from it, and on the CPU ends with the same bits as
    one that was never interrupted. `on_epoch` is called for every epoch, restored ones first. The caller clears `resume`
    with `clear_resume` once it has stored the result.

    Raises:
        ConfigError: see `visionloop.models.build`; or the architecture is of the other family.
        DataError: a side has no image.
        TrainingError: the loss is not finite; or the device is not there.
    """
    _check_data(train_data, val_data)
    device = choose_device(params.device)
    settings, params = params.family(family), params.of(family)
    # Seeding torch's global generator is how initial weights and dropout are drawn; the caller's is put back afterwards.
    with torch.random.fork_rng(devices=[0] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(params.seed, 0, 2))
        classifier = build(
            settings.architecture,
            num_classes=len(meta.labels),
            image_size=(meta.preprocess.height, meta.preprocess.width),
            mean=meta.mean,
            std=meta.std,
            options=settings.options,
            weights=settings.weights,
            weights_sha256=settings.weights_sha256,
        )
        apply_freeze(classifier, settings)
        if classifier.family != family:
            raise ConfigError(
                f"train.{family}.architecture is '{settings.architecture}', which is of the family '{classifier.family}'; "
                f"name it under train.{classifier.family}."
            )
        for note in classifier.weight_notes:
            say(note[0].upper() + note[1:] + ".")
        run = _Run(
            family=family,
            model=classifier.to(device).to(memory_format=torch.channels_last),
            train_data=train_data,
            val_data=val_data,
            meta=meta,
            params=params,
            device=device,
        )
        return run.until_done(Checkpoints(resume, fingerprint(family, meta, params)), on_epoch, say)


def training_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of logits [N, K] against the batch's labels, which for mixed images are two with shares."""
    if batch.partners is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    return batch.loss(lambda labels: F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none"))


def clear_resume(resume: Path) -> None:
    """Remove the checkpoint of a training whose result is stored; the folder stays."""
    Checkpoints(resume, "").clear()


def fingerprint(family: Family, meta: PackedMeta, params: TrainParams) -> str:
    """The name of a training: a hash of the data version, every parameter that matters, and the versions."""
    settings, params = params.family(family), params.of(family)
    weights = Path(settings.weights) if settings.weights else None
    value = {
        "meta": meta.model_dump(mode="json"),
        "family": settings.model_dump(mode="json"),
        "params": params.model_dump(mode="json", exclude={"cnn", "vit"}),
        "weights": sha256_file(weights) if weights and weights.is_file() else "",
        "versions": [__version__, torch.__version__],
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Run:
    """One training from its first or its restored epoch to its last."""

    def __init__(
        self,
        *,
        family: Family,
        model: Classifier,
        train_data: PackedSplit,
        val_data: PackedSplit,
        meta: PackedMeta,
        params: TrainParams,
        device: torch.device,
    ) -> None:
        self.settings: FamilyParams = params.family(family)
        self.model = model
        self.train_data, self.val_data, self.meta, self.params, self.device = train_data, val_data, meta, params, device
        self.optimizer = Optimizer(model, params, self.settings, steps_images=params.batch_size)
        self.steps = count(len(train_data.labels), params.batch_size)
        self.schedule = Schedule(params, self.steps)
        self.precision: Precision = "fp32" if params.precision == "auto" else params.precision
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.notes: list[str] = [note + "." for note in model.weight_notes]

    def until_done(
        self, checkpoints: Checkpoints, on_epoch: Callable[[EpochRecord], None], say: Callable[[str], None]
    ) -> TrainResult:
        state, sentence = checkpoints.restore()
        if sentence:
            say(sentence)
        if state is not None:
            self._restore(state)
            for record in self.history:
                on_epoch(record)
        elif self.params.precision == "auto":
            self.precision, note = self._measure()
            self.notes.append(note)
            say(note)
        resumed_after = len(self.history)
        while len(self.history) < self.params.epochs and not self._stops_early():
            record = self._epoch(len(self.history) + 1)
            if checkpoints.due():
                checkpoints.save(record.epoch, self._state())
            on_epoch(record)
        if len(self.history) < self.params.epochs:
            say(
                f"Stopped after epoch {len(self.history)}: none of the last {self.params.early_stopping_epochs} epochs was "
                "better than the best."
            )
        assert self.best is not None
        self.model.load_state_dict(self.best_weights)
        classifier = self.model.to("cpu").to(memory_format=torch.contiguous_format).eval()
        return TrainResult(classifier, self.best, tuple(self.history), self.precision, resumed_after, tuple(self.notes))

    def _epoch(self, epoch: int) -> EpochRecord:
        params = self.params
        # Dropout draws from the global generators: seeded by epoch, it draws the same after a resume.
        torch.manual_seed(seed_of(params.seed, epoch, 3))
        self.model.train()
        batches = train_batches(
            self.train_data, self.meta.policy, batch_size=params.batch_size, seed=params.seed, epoch=epoch
        )
        start = time.perf_counter()
        losses: list[Tensor] = []
        sizes: list[int] = []
        learning_rate = 0.0
        for step, batch in enumerate(to_device(batches, self.device)):
            learning_rate = self._learning_rate(epoch, step)
            losses.append(self._step(batch, learning_rate))
            sizes.append(len(batch.labels))
            if len(losses) % _LOSS_CHECK_STEPS == 0:
                _check_finite(losses, epoch, self.steps)
        _check_finite(losses, epoch, self.steps)
        train_loss = float((torch.stack(losses).double().cpu() * torch.tensor(sizes)).sum() / sum(sizes))
        train_seconds = time.perf_counter() - start
        val_loss, val_accuracy = self._validate()
        record = EpochRecord(epoch, params.epochs, learning_rate, train_loss, val_loss, val_accuracy)
        self.history.append(record)
        self.schedule.epoch_end(val_accuracy, higher_is_better=True)
        if self.best is None or (val_accuracy, -val_loss) > (self.best.val_accuracy, -self.best.val_loss):
            self.best = record
            self.best_weights = {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
        seconds = time.perf_counter() - start
        return replace(
            record,
            images_per_second=len(self.train_data.labels) / train_seconds,
            seconds_left=seconds * (params.epochs - epoch),
        )

    def _step(self, batch: Batch, learning_rate: float) -> Tensor:
        with autocast(self.device, self.precision):
            logits, _ = self.model(batch.images)
        loss = training_loss(logits, batch, self.params.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.params.gradient_clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.gradient_clip_norm)
        self.optimizer.step(learning_rate)
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    def _learning_rate(self, epoch: int, step: int) -> float:
        return self.optimizer.peak * self.schedule.factor((epoch - 1) * self.steps + step)

    def _validate(self) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on the validation images."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.inference_mode(), autocast(self.device, self.precision):
            for batch in to_device(plain_batches(self.val_data, max(64, self.params.batch_size)), self.device):
                logits, _ = self.model(batch.images)
                loss += F.cross_entropy(logits, batch.labels, reduction="sum").double()
                right += (logits.argmax(1) == batch.labels).sum()
        total = len(self.val_data.labels)
        mean = float(loss) / total
        # A loss that overflows on one image must not make every comparison with the best false.
        return (mean if math.isfinite(mean) else math.inf), int(right) / total

    def _stops_early(self) -> bool:
        patience = self.params.early_stopping_epochs
        return bool(patience) and self.best is not None and len(self.history) - self.best.epoch >= patience

    def _measure(self) -> tuple[Precision, str]:
        batch = next(train_batches(self.train_data, self.meta.policy, batch_size=self.params.batch_size, seed=0, epoch=0))
        batch = batch.each(lambda part: part.to(self.device))
        return measure_precision(self.model.train(), batch.images, batch.labels)

    def _state(self) -> dict[str, Any]:
        assert self.best is not None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best_weights": self.best_weights,
            "best_epoch": self.best.epoch,
            "history": [asdict(record) for record in self.history],
            "precision": self.precision,
            "notes": self.notes,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [EpochRecord(**{**row, "restored": True}) for row in state["history"]]
        self.best = self.history[state["best_epoch"] - 1]
        self.best_weights = dict(state["best_weights"])
        self.precision = state["precision"]
        self.notes = list(state["notes"])


def _check_data(train_data: PackedSplit, val_data: PackedSplit) -> None:
    for name, data, least in (("train", train_data, 2), ("val", val_data, 1)):
        if len(data.labels) < least:
            raise DataError(
                f"The {name} side has {len(data.labels)} images and needs at least {least}; "
                "add images, or change the shares in the section split of params.yaml."
            )


def _check_finite(losses: list[Tensor], epoch: int, steps: int) -> None:
    finite = torch.isfinite(torch.stack(losses)).cpu()
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0])
        raise TrainingError(
            f"The loss is {float(losses[step])} at step {step + 1} of {steps} in epoch {epoch}; lower the learning rate, or "
            "set train.gradient_clip_norm (1.0 is usual). The checkpoint of the epoch before is kept."
        )
