"""The training loop: epochs of steps, a validation after each, the best weights kept, a checkpoint to go on from.

An update is one change of the weights; it takes `accumulate` batches, and with free adversarial training a batch is used
for several updates. The CUDA path (pinned copies ahead of the steps, no waiting for the device but to check the loss) has
not run on a GPU yet.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from visionloop import __version__
from visionloop.card import Smaller
from visionloop.config import FamilyParams, TrainParams
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.errors import ConfigError, DataError
from visionloop.files import sha256_file
from visionloop.memory import keep_freed_memory
from visionloop.models import Classifier, Family
from visionloop.models.devices import choose_device
from visionloop.progress import SECONDS_BETWEEN_LINES, line
from visionloop.training.adversarial import Adversary
from visionloop.training.bad_batch import LossGuard
from visionloop.training.batches import Batch, batch_sizes, look, plain_batches, seed_of, to_device, train_batches
from visionloop.training.building import classifier_for, with_weights
from visionloop.training.checkpoint import SMALLER, Checkpoints
from visionloop.training.distillation import Teacher, load_teacher, teacher_id
from visionloop.training.distributed import Ranks
from visionloop.training.ema import Ema
from visionloop.training.execution import Execution, measure_execution
from visionloop.training.freezing import apply_freeze
from visionloop.training.losses import Loss
from visionloop.training.monitor import Monitor, Use
from visionloop.training.optimizers import Optimizer
from visionloop.training.resizing import check_sizes, resized, sizes
from visionloop.training.schedules import Schedule
from visionloop.training.smaller import smaller_step
from visionloop.training.streaming import StreamedSplit
from visionloop.training.validation import Scores, scores, tally

# Training images that a network may look at before its first update (`Network.prepare`).
_PREPARE_IMAGES = 5000


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int  # from 1
    epochs: int
    learning_rate: float  # of the last update
    train_loss: float  # mean over the epoch's images, augmented, mixed, with label smoothing: never 0 where labels are soft
    val_loss: float  # mean cross-entropy over the validation images, without smoothing
    val_accuracy: float
    val_balanced_accuracy: float
    val_macro_f1: float
    # What follows differs from run to run and is not part of the history.
    seconds_left: float = 0.0  # if every epoch is still to come
    use: Use | None = None  # of this process; None where `restored`
    restored: bool = False  # told again from the checkpoint

    def val(self, metric: str) -> float:
        """The validation score that `train.metric` names."""
        return float(getattr(self, f"val_{metric}"))


_HISTORY = tuple(item.name for item in fields(EpochRecord) if item.name not in ("seconds_left", "use", "restored"))


@dataclass(frozen=True)
class TrainResult:
    """The trained model, on the CPU and in eval mode."""

    classifier: Classifier
    best: EpochRecord  # the epoch whose weights these are; with `train.keep: last` the last one
    history: tuple[EpochRecord, ...]
    execution: Execution
    resumed_after: int  # epochs that an earlier, interrupted run had done
    notes: tuple[str, ...]  # what was chosen on the way, in sentences
    settings: FamilyParams  # of the network that this is: a student has an architecture and options of its own
    smaller: Smaller | None = None  # where a pruned network or a student took the place of the one trained first
    first: Classifier | None = None  # that one
    smaller_epochs: int = 0  # the last ones of the history, of the smaller network whether it took that place or not


def train(
    family: Family,
    train_data: PackedSplit | StreamedSplit,
    val_data: PackedSplit,
    meta: PackedMeta,
    params: TrainParams,
    *,
    resume: Path,
    ranks: Ranks | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> TrainResult:
    """Train the architecture of `params` for `family` and keep the weights of its best or its last epoch.

    Best is the best `train.metric` on the validation images, among equals the lowest validation loss, among these the
    first. Where `smaller` asks for it, a pruned network or a student then learns from it and takes its place, unless it
    loses too much; its epochs are counted on. The state after an epoch is saved in `resume`; a run that finds it there goes
    on from it, and on the CPU ends with the same bits as one that was never interrupted. `on_epoch` is called for every
    epoch, restored ones first. The caller clears `resume` with `clear_resume` once it has stored the result.

    With `ranks`, each of several processes calls this with the same arguments; all get the same result, and only the first
    saves, and calls `on_epoch` and `say`.

    Raises:
        ConfigError: see `visionloop.models.build`; or the architecture is of the other family.
        DataError: a side has no image, or fewer than a batch needs.
        TrainingError: the loss is not finite; or the device is not there.
    """
    name = fingerprint(family, meta, params)
    settings, params = params.family(family), params.of(family)
    _check_data(train_data, val_data)
    ranks = ranks or Ranks.single(choose_device(params.device))
    if not ranks.main:
        say, on_epoch = (lambda sentence: None), (lambda record: None)
    device = ranks.device
    if device.type == "cpu":
        # Every step takes the same gigabyte of activations: given back, it came again in 20,000 to 66,000 faults of a page.
        keep_freed_memory(1 << 31, 1 << 30)
    # Seeding torch's global generator is how initial weights and dropout are drawn; the caller's is put back afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(params.seed, 0, 2))
        classifier = classifier_for(settings, meta)
        if classifier.family != family:
            raise ConfigError(
                f"train.{family}.architecture is '{settings.architecture}', which is of the family '{classifier.family}'; "
                f"name it under train.{classifier.family}."
            )
        for note in classifier.weight_notes:
            say(note[0].upper() + note[1:] + ".")
        apply_freeze(classifier, settings)
        place = _Place(family, train_data, val_data, meta, ranks, resume, say)
        checkpoints = Checkpoints(resume, name)
        teacher = load_teacher(settings, meta)
        run = _Run(place, classifier.to(device), settings, params, teacher, fresh=settings.weights is None)
        resumed_after = run.until_done(checkpoints, on_epoch)
        best, weights = run.result()
        classifier = with_weights(settings, meta, weights)
        first = TrainResult(
            classifier.eval(), best, tuple(run.history), run.execution, resumed_after, tuple(run.notes), settings
        )
        if settings.smaller.by == "none":
            return first
        if ranks.main:  # or a run that ends during the second training would do the last epochs of the first once more
            checkpoints.save(len(run.history), run.state())
        return _smaller(place, first, params, name, on_epoch)


def _smaller(
    place: _Place, first: TrainResult, params: TrainParams, name: str, on_epoch: Callable[[EpochRecord], None]
) -> TrainResult:
    """Train a smaller network on the answers of the first; the first again, with a sentence, where it loses too much."""
    torch.manual_seed(seed_of(params.seed, 0, 5))  # a student's weights are the same after a resume
    step = smaller_step(
        first.classifier, first.settings, params, place.meta, val_accuracy=first.best.val_accuracy, say=place.say
    )
    done = len(first.history)

    def counted(record: EpochRecord) -> EpochRecord:
        return replace(record, epoch=done + record.epoch, epochs=done + record.epochs)

    teacher = Teacher(copy.deepcopy(first.classifier), step.image_size) if step.taught else None
    model = step.classifier.to(place.ranks.device)
    run = _Run(place, model, step.settings, step.params, teacher, fresh=step.smaller.by == "student")
    run.until_done(Checkpoints(place.resume, name, SMALLER), lambda record: on_epoch(counted(record)))
    best, weights = run.result()
    note, is_kept = step.verdict(best.val_accuracy)
    place.say(note)
    result = replace(
        first,
        history=(*first.history, *map(counted, run.history)),
        notes=(*first.notes, *run.notes, note),
        smaller_epochs=len(run.history),
    )
    if not is_kept:
        return result
    return replace(
        result,
        classifier=with_weights(step.settings, place.meta, weights).eval(),
        best=counted(best),
        execution=run.execution,
        settings=step.settings,
        smaller=step.smaller,
        first=first.classifier,
    )


def clear_resume(resume: Path) -> None:
    """Remove the checkpoint of a training whose result is stored; the folder stays."""
    Checkpoints(resume, "").clear()


def fingerprint(family: Family, meta: PackedMeta, params: TrainParams) -> str:
    """The name of a training: a hash of the data version, every parameter that matters, and the versions."""
    settings, params = params.family(family), params.of(family)
    weights = Path(settings.weights) if settings.weights else None
    value = {
        "meta": meta.model_dump(mode="json"),
        "family": {"name": family, **settings.model_dump(mode="json", exclude={"override"})},
        "params": params.model_dump(mode="json", exclude={"cnn", "vit"}),
        "weights": sha256_file(weights) if weights and weights.is_file() else "",
        "teacher": teacher_id(settings),
        "versions": [__version__, torch.__version__],
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    """What the trainings of one call share."""

    family: Family
    train_data: PackedSplit | StreamedSplit
    val_data: PackedSplit
    meta: PackedMeta
    ranks: Ranks
    resume: Path
    say: Callable[[str], None]


class _Run:
    """One training from its first or its restored epoch to its last."""

    def __init__(
        self,
        place: _Place,
        model: Classifier,
        settings: FamilyParams,
        params: TrainParams,
        teacher: Teacher | None,
        *,
        fresh: bool,
    ) -> None:
        self.family, self.settings, self.params, self.meta = place.family, settings, params, place.meta
        self.train_data, self.val_data = place.train_data, place.val_data
        self.ranks, self.device, self.say = place.ranks, place.ranks.device, place.say
        self.model = model
        self.fresh = fresh  # its weights are as they were drawn
        self.notes: list[str] = [note + "." for note in model.weight_notes]
        self.teacher = teacher.to(self.device) if teacher else None
        classes = np.bincount(self.train_data.labels, minlength=len(self.meta.labels))
        self.loss = Loss(params, torch.from_numpy(classes), self.device)
        self.adversary = Adversary(params) if params.adversarial != "none" else None
        self.full = (self.meta.preprocess.height, self.meta.preprocess.width)
        check_sizes(model, self.full, params)
        self.image_sizes = sizes(self.full, model.network.side_multiple, params)
        self.sizes = batch_sizes(len(self.train_data.labels), params.batch_size)
        replays = self.adversary.replays if self.adversary else 1
        self.updates = -(-len(self.sizes) // params.accumulate) * replays  # of an epoch
        self.steps = len(self.sizes) * replays  # passes of an epoch, forward and back
        self.guard = LossGuard(model, place.resume, self.device)
        self.monitor = Monitor(self.device)
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.kept: dict[str, Tensor] = {}

    def until_done(self, checkpoints: Checkpoints, on_epoch: Callable[[EpochRecord], None]) -> int:
        """Train to the end; how many epochs an earlier run had done."""
        state = None
        if self.ranks.main:
            state, sentence = checkpoints.restore()
            if sentence:
                self.say(sentence)
        state = self.ranks.broadcast(state)
        if state is None:
            if self.fresh:
                self._prepare()
            self._set_up(self._choose_execution())
        else:
            self._set_up(Execution.from_state(state["execution"]))
            self._restore(state)
            for record in self.history:
                on_epoch(record)
        resumed_after = len(self.history)
        while len(self.history) < self.params.epochs and not self._stops_early():
            record = self._epoch(len(self.history) + 1)
            if self.ranks.main and checkpoints.due():
                checkpoints.save(record.epoch, self.state())
            on_epoch(record)
        if len(self.history) < self.params.epochs:
            self.say(
                f"Stopped after epoch {len(self.history)}: none of the last {self.params.early_stopping_epochs} epochs was "
                "better than the best."
            )
        return resumed_after

    def result(self) -> tuple[EpochRecord, dict[str, Tensor]]:
        """The epoch that `train.keep` names, and its weights on the CPU."""
        if self.params.keep == "best":
            assert self.best is not None
            return self.best, self.kept
        with self._averaged():
            return self.history[-1], self._weights()

    def _prepare(self) -> None:
        """Let the network look at training images before its first update, the same ones for a seed."""
        generator = np.random.default_rng(seed_of(self.params.seed, 0, 4))
        chosen = np.sort(generator.permutation(len(self.train_data.labels))[:_PREPARE_IMAGES])
        with torch.no_grad():
            pixels = self.model.normalise(look(self.train_data, chosen).to(self.device))
            self.model.network.prepare(pixels)
        self.ranks.broadcast_model(self.model)

    def _choose_execution(self) -> Execution:
        chosen: dict[str, Any] | None = None
        if self.ranks.main:
            batch = next(self._batches(1, self.full)).each(lambda part: part.to(self.device))
            # Attacked images are floats, and so have a graph of their own.
            images = batch.images if self.adversary is None else batch.images.float()
            execution, note = measure_execution(
                self.model.train(), images, batch.labels, self.params, steps=self.params.epochs * self.steps
            )
            chosen = {"execution": execution.state_dict(), "note": note}
        chosen = self.ranks.broadcast(chosen)
        assert chosen is not None
        if chosen["note"]:
            self.notes.append(chosen["note"])
            self.say(chosen["note"])
        return Execution.from_state(chosen["execution"])

    def _set_up(self, execution: Execution) -> None:
        """All that holds the model's parameters, once it is laid out for its steps."""
        self.ranks.synchronize_norms(self.model)
        self.execution = execution
        self.forward = execution.prepare(self.model)
        images = min(self.params.batch_size * self.params.accumulate, len(self.train_data.labels))
        self.optimizer = Optimizer(self.model, self.params, self.settings, steps_images=images)
        self.schedule = Schedule(self.params, self.updates)
        if self.schedule.note:
            self.say(self.schedule.note)
        self.ema = Ema(self.model, self.params.ema_decay) if self.params.ema_decay else None

    def _batches(self, epoch: int, size: tuple[int, int]) -> Iterator[Batch]:
        batches = train_batches(
            self.train_data,
            self.meta.policy,
            batch_size=self.params.batch_size,
            seed=self.params.seed,
            epoch=epoch,
            ranks=self.ranks,
        )
        for batch in batches:
            full = None if self.teacher is None or size == self.full else batch.images
            yield batch._replace(images=resized(batch.images, size), full=full)

    def _epoch(self, epoch: int) -> EpochRecord:
        params = self.params
        # Dropout draws from the global generators: seeded by epoch, it draws the same after a resume.
        torch.manual_seed(self.ranks.own_seed(seed_of(params.seed, epoch, 3)))
        self.model.train()
        self.guard.begin(epoch=epoch, steps=self.steps)
        losses = torch.zeros((), dtype=torch.float64, device=self.device)  # summed over the images of this process
        rate, updates, done, total = 0.0, 0, 0, sum(self.sizes)
        start = said = time.monotonic()
        group: list[Batch] = []
        size = self.image_sizes[epoch - 1]
        for number, batch in enumerate(self.monitor.batches(to_device(self._batches(epoch, size), self.device)), start=1):
            group.append(batch)
            if len(group) < params.accumulate and number < len(self.sizes):
                continue
            images = sum(self.sizes[number - len(group) : number])
            for shown in self._versions(group, seed_of(params.seed, epoch, 1000 + number)):
                rate = self.optimizer.peak * self.schedule.factor((epoch - 1) * self.updates + updates)
                losses += self._update(group, shown, images, rate)
                updates += 1
            group = []
            done += images
            now = time.monotonic()
            if now - said >= SECONDS_BETWEEN_LINES and done < total:
                said = now
                self.say(line(f"{self.family} epoch {epoch}/{params.epochs}", done, total, now - start))
        self.guard.end()
        replays = self.adversary.replays if self.adversary else 1
        train_loss = float(self.ranks.sum(losses)) / (total * replays)
        with self._averaged():
            val = self._validate()
            record = EpochRecord(
                epoch=epoch,
                epochs=params.epochs,
                learning_rate=rate,
                train_loss=train_loss,
                val_loss=val.loss,
                val_accuracy=val.accuracy,
                val_balanced_accuracy=val.balanced_accuracy,
                val_macro_f1=val.macro_f1,
            )
            if self._is_better(record):
                self.best = record
                self.kept = self._weights() if params.keep == "best" else {}
        self.history.append(record)
        self.schedule.epoch_end(record.val(params.metric), higher_is_better=params.metric != "loss")
        seconds = time.monotonic() - start
        # An epoch on smaller images takes so much less time.
        pixels = [height * width for height, width in self.image_sizes]
        left = seconds * sum(pixels[epoch:]) / pixels[epoch - 1]
        return replace(record, seconds_left=left, use=self.monitor.use())

    def _versions(self, group: list[Batch], seed: int) -> Iterator[Sequence[Tensor]]:
        """The images of each batch of a group, once for each update that they are good for: as they are, or attacked."""
        if self.adversary is None:
            yield [batch.images for batch in group]
            return
        generator = torch.Generator().manual_seed(self.ranks.own_seed(seed))
        if self.params.adversarial == "free":
            yield from zip(*(self.adversary.free_steps(batch.images, generator) for batch in group), strict=False)
            return
        attacked = []
        for batch in group:

            def objective(logits: Tensor, batch: Batch = batch) -> Tensor:
                return self.loss(logits, batch)

            with self.execution.autocast(self.device):
                attacked.append(self.adversary.attack(self.model, batch.images, objective, generator))
        yield attacked

    def _update(self, group: list[Batch], shown: Sequence[Tensor], images: int, rate: float) -> Tensor:
        """One change of the weights by batches, seen as `shown`, that hold `images` over all processes.

        Returns the loss, summed over the images of this process.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, seen in zip(group, shown, strict=True):
            logits, _ = self.forward(seen)
            # A teacher sees the images before any attack, and in full size.
            taught = batch.images if batch.full is None else batch.full
            with self.execution.autocast(self.device):
                answers = None if self.teacher is None else self.teacher(taught).float()
            loss = self.loss(logits, batch, answers)
            self.guard.loss(batch._replace(images=seen.detach()), loss)
            (loss * (len(batch.labels) / images)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double() * len(batch.labels)
        self.ranks.sum_gradients(self.model.parameters())
        if self.params.gradient_clip_norm:
            self.guard.gradient(clip_grad_norm_(self.model.parameters(), self.params.gradient_clip_norm))
        self.optimizer.step(rate)
        self.model.network.after_step()
        self.model.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return total

    def _validate(self) -> Scores:
        self.model.eval()
        batches = plain_batches(self.val_data, max(64, self.params.batch_size), ranks=self.ranks)
        tallied = tally(self.forward, to_device(batches, self.device), self.model.num_classes, self.device)
        return scores(self.ranks.sum(tallied))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average of the weights in the model's place, where there is one."""
        if self.ema is None:
            yield
            return
        own = self._weights()
        self.model.load_state_dict(self.ema.weights())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _weights(self) -> dict[str, Tensor]:
        return {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}

    def _is_better(self, record: EpochRecord) -> bool:
        def worth(other: EpochRecord) -> tuple[float, float]:
            value = other.val(self.params.metric)
            return (-value if self.params.metric == "loss" else value), -other.val_loss

        return self.best is None or worth(record) > worth(self.best)

    def _stops_early(self) -> bool:
        patience = self.params.early_stopping_epochs
        grown = sum(size != self.full for size in self.image_sizes)  # epochs on smaller images: val may stand still
        return bool(patience) and self.best is not None and len(self.history) - max(self.best.epoch, grown) >= patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        assert self.best is not None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "kept": self.kept,
            "best_epoch": self.best.epoch,
            "history": [{name: getattr(record, name) for name in _HISTORY} for record in self.history],
            "execution": self.execution.state_dict(),
            "notes": self.notes,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.history = [EpochRecord(**row, restored=True) for row in state["history"]]
        self.best = self.history[state["best_epoch"] - 1]
        self.kept = dict(state["kept"])
        self.notes = list(state["notes"])


def _check_data(train_data: PackedSplit | StreamedSplit, val_data: PackedSplit) -> None:
    for name, data, least in (("train", train_data, 2), ("val", val_data, 1)):
        if len(data.labels) < least:
            raise DataError(
                f"The {name} side has {len(data.labels)} images and needs at least {least}; "
                "add images, or change the shares in the section split of params.yaml."
            )
