"""Cross-validation: as many trainings as folds, each judged on the fold that it never saw.

The folds are those of the stage `split`: whole groups, the images of train and val, never of test. Mean and standard
deviation of the pixels are those of the train side for all folds, six numbers that know a little of the held-out fold.

Does not cover: choosing hyperparameters, after which the accuracy here is too good; `visionloop tune` looks at val alone.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visionloop.config import TrainParams
from visionloop.data.out_of_fold import OutOfFold
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.data.views import take
from visionloop.errors import ConfigError, DataError
from visionloop.evaluation.metrics import calibration_error, log_loss, per_class, wilson
from visionloop.evaluation.predictions import SplitPredictions, predict
from visionloop.files import write_bytes
from visionloop.models import Family
from visionloop.models.devices import choose_device
from visionloop.training import EpochRecord, clear_resume, train
from visionloop.training.loop import fingerprint

CONFIDENCE = 0.95  # the usual one; the intervals of a fold and of the mean have the same


@dataclass(frozen=True)
class CrossValidated:
    """The answers to every image that has a fold, and how many images the models learnt from."""

    answers: OutOfFold
    train_images: tuple[int, ...]  # originals that the model of each fold learnt from
    notes: tuple[str, ...]  # what was decided on the way, in sentences


def cross_validate(
    family: Family,
    sides: Sequence[PackedSplit],
    folds: Mapping[str, int],
    meta: PackedMeta,
    params: TrainParams,
    *,
    folder: Path,
    on_epoch: Callable[[int, EpochRecord], None] = lambda fold, record: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> CrossValidated:
    """Train once per fold on the images of the others and let each model answer the images of its fold.

    Nothing may be chosen by the held-out fold. So each model is that of its last epoch, whatever `train.keep` says; where
    the recipe cannot do without a validation side (early stopping, a plateau schedule), the next fold is that side and is
    not learnt from.

    A fold that was finished, and the checkpoint of the one that was not, lie in `folder`: an interrupted run goes on there.
    The caller clears it with `clear` once it has stored the result.

    Args:
        family: "cnn" or "vit".
        sides: the packed train and val sides.
        folds: fold of each image by id, from 0.
        meta: of the packed arrays.
        params: the section `train`.
        folder: for what a resumed run needs.
        on_epoch: called with the fold, from 0, and each epoch.
        say: called with sentences.

    Raises:
        ConfigError: there are no folds, training images are not packed, or the family learns from a teacher, who has seen
            the held-out images.
        DataError: an image has no fold, or a fold has no image.
    """
    settings, own = params.family(family), params.of(family)
    if settings.teacher != "none":
        raise ConfigError(
            f"train.{family}.teacher is '{settings.teacher}', who has seen the images that a fold holds out; set it to none "
            "to cross-validate."
        )
    if meta.store == "stream":
        raise ConfigError("augment.store is stream, and folds are taken from packed arrays; set it to packed.")
    ids = np.array([name.partition("+")[0] for side in sides for name in side.ids])
    variant = np.array(["+" in name for side in sides for name in side.ids], dtype=bool)
    fold_of = _folds(ids, folds)
    labels = np.concatenate([side.labels for side in sides])
    count = int(fold_of.max()) + 1
    by_val = own.early_stopping_epochs > 0 or own.schedule == "plateau"
    if by_val and count < 3:
        raise ConfigError(
            "split.folds is 2, and early stopping or a plateau schedule needs a fold of its own; set it to 3 or more."
        )
    note = (
        "The next fold says when a model stops or slows down; it is not learnt from."
        if by_val
        else "Each model is that of its last epoch, since nothing may be chosen by the fold that judges it."
    )
    say(note)
    if not by_val:
        own = own.model_copy(update={"keep": "last"})

    probabilities = np.zeros((len(ids), len(meta.labels)), dtype=np.float32)
    train_images = []
    for fold in range(count):
        watched = (fold + 1) % count if by_val else fold
        rows, watched_rows, held = fold_rows(fold_of, variant, fold, watched)
        data, val, held_out = take(sides, rows), take(sides, watched_rows), take(sides, held)
        train_images.append(data.originals)
        about = meta.model_copy(
            update={
                "data_id": hashlib.sha256(f"{meta.data_id}\0{fold}\0{watched}\0{fold_of.tolist()}".encode()).hexdigest(),
                "counts": {"train": len(rows), "val": len(val.ids), "test": 0},
                "variants": data.variants,
            }
        )
        place = folder / f"fold-{fold}"
        name = fingerprint(family, about, own)
        answers = finished_answers(place.with_suffix(".npz"), name, (len(held), len(meta.labels)))
        if answers is None:
            say(f"Fold {fold + 1} of {count}: {len(rows):,} images to learn from, {len(held):,} to judge by.")
            place.mkdir(parents=True, exist_ok=True)
            result = train(family, data, val, about, own, resume=place, on_epoch=partial(on_epoch, fold), say=say)
            device = choose_device(own.device)
            answers = predict(result.classifier, held_out.images, device, f"{family} fold {fold + 1}").astype(np.float32)
            store_answers(place.with_suffix(".npz"), name, answers)
            clear_resume(place)
        else:
            say(f"Fold {fold + 1} of {count} was finished by an earlier, interrupted run.")
        probabilities[held] = answers
        right = float((answers.argmax(1) == labels[held]).mean())
        say(f"Fold {fold + 1} of {count}: {right:.2%} of {len(held):,} images are answered rightly.")

    originals = np.flatnonzero(~variant)
    order = originals[np.argsort(ids[originals])]
    found = OutOfFold(
        classes=meta.labels,
        ids=tuple(ids[order].tolist()),
        labels=labels[order],
        folds=fold_of[order],
        probabilities=probabilities[order],
        family=family,
        data_id=meta.data_id,
    )
    return CrossValidated(found, tuple(train_images), (note,))


def fold_rows(
    fold_of: npt.NDArray[np.int64], variant: npt.NDArray[np.bool_], fold: int, watched: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to learn from, stored variants last, to watch while learning, and to judge by.

    A stored variant is learnt from where its image is, and nothing is watched or judged by one.

    >>> fold_rows(np.array([0, 1, 2, 0, 2]), np.array([False, False, False, True, True]), 0, 0)
    (array([1, 2, 4]), array([0]), array([0]))
    """
    learnt = (fold_of != fold) & (fold_of != watched)
    rows = np.concatenate([np.flatnonzero(learnt & ~variant), np.flatnonzero(learnt & variant)])
    return rows, np.flatnonzero((fold_of == watched) & ~variant), np.flatnonzero((fold_of == fold) & ~variant)


def clear(folder: Path, pattern: str = "fold-*") -> None:
    """Remove what an interrupted run would have needed."""
    for place in sorted(folder.glob(pattern)):
        if place.is_dir():
            clear_resume(place)
            place.rmdir()
        else:
            place.unlink()


def summarize(result: CrossValidated) -> dict[str, float]:
    """The flat numbers for `dvc metrics show`: the mean over the folds and their spread, a standard deviation, per measure.

    `accuracy_low` and `accuracy_high` are `interval`. All of it is about models that learnt from fewer images than the one
    that is served, where folds are fewer than about 5, and is then a little too low.
    """
    folds = [predictions(result, fold) for fold in range(len(result.train_images))]
    rows = [per_class(part, result.answers.classes) for part in folds]
    measures = {
        "accuracy": [float(part.correct.mean()) for part in folds],
        "balanced_accuracy": [float(np.mean([row.recall for row in part if row.recall is not None])) for part in rows],
        "macro_f1": [float(np.mean([row.f1 or 0.0 for row in part if row.support])) for part in rows],
        "log_loss": [log_loss(part) for part in folds],
    }
    low, high = interval(result, CONFIDENCE)
    values: dict[str, float] = {"folds": len(folds), "images": len(result.answers.ids)}
    for name, found in measures.items():
        values[name] = float(np.mean(found))
        values[f"{name}_spread"] = float(np.std(found, ddof=1))
    values |= {"accuracy_low": low, "accuracy_high": high, "calibration_error": calibration_error(predictions(result))}
    values |= {f"fold_{fold + 1}_accuracy": accuracy for fold, accuracy in enumerate(measures["accuracy"])}
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}


def interval(result: CrossValidated, confidence: float) -> tuple[float, float]:
    """An interval of the accuracy that takes in two uncertain things, and the wider of the two on each side.

    That the models differ by what they learnt from: Nadeau and Bengio's corrected t interval ("Inference for the
    Generalization Error", Machine Learning 2003), with the variance of the folds times (1/k + images judged / images learnt
    from). Folds share most of their training images, so the plain s / sqrt(k) is too small, and no unbiased estimate of the
    variance exists (Bengio and Grandvalet, JMLR 2004); the correction is made for random splits and is an approximation for
    folds. That the images are a sample: Wilson's interval of all answers, which stays open where all folds agree.
    """
    accuracies, ratios = [], []
    for fold, learnt in enumerate(result.train_images):
        part = predictions(result, fold)
        accuracies.append(float(part.correct.mean()))
        ratios.append(len(part.ids) / learnt)
    low, high = corrected_t(accuracies, float(np.mean(ratios)), confidence)
    every = predictions(result)
    share_low, share_high = wilson(int(every.correct.sum()), len(every.ids), confidence)
    return max(0.0, min(low, share_low)), min(1.0, max(high, share_high))


def corrected_t(values: Sequence[float], test_to_train: float, confidence: float) -> tuple[float, float]:
    """Nadeau and Bengio's interval of the mean of `values`, one per fold; `test_to_train` is of the number of images.

    >>> corrected_t([0.90, 0.92, 0.94], 0.5, 0.95)
    (0.8389..., 1.0010...)
    """
    from scipy.stats import t

    count = len(values)
    half = t.ppf(0.5 + confidence / 2, count - 1) * math.sqrt((1 / count + test_to_train) * np.var(values, ddof=1))
    mean = float(np.mean(values))
    return mean - half, mean + half


def predictions(result: CrossValidated, fold: int | None = None) -> SplitPredictions:
    """The answers to one fold's images, or to all."""
    answers = result.answers
    mine = slice(None) if fold is None else np.flatnonzero(answers.folds == fold)
    ids = np.array(answers.ids, dtype=object)[mine]
    return SplitPredictions(tuple(ids.tolist()), answers.labels[mine], answers.probabilities[mine].astype(np.float64))


def _folds(ids: npt.NDArray[np.str_], folds: Mapping[str, int]) -> npt.NDArray[np.int64]:
    missing = [name for name in ids.tolist() if name not in folds]
    if missing:
        raise DataError(
            f"{len(missing)} packed images are not in data/split.parquet (first: {missing[0][:12]}…); run "
            "`dvc repro augment`."
        )
    found = np.array([folds[name] for name in ids.tolist()], dtype=np.int64)
    if (found < 0).all():
        raise ConfigError("split.folds is 0, so no image has a fold; set it to 5, say, and run `dvc repro augment`.")
    if (found < 0).any():
        raise DataError("Some images of train and val have no fold; run `dvc repro split augment`.")
    empty = sorted(set(range(int(found.max()) + 1)) - set(found.tolist()))
    if empty or found.max() == 0:
        raise DataError(
            "A fold has no image, since groups of images stay together; set split.folds lower and run `dvc repro augment`."
        )
    return found


def finished_answers(path: Path, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """The answers [N, K] that `store_answers` kept, if they are of the training `name`; a damaged file is none."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if str(file["name"]) == name and file["probabilities"].shape == shape:
                return np.asarray(file["probabilities"], dtype=np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return None


def store_answers(path: Path, name: str, probabilities: npt.NDArray[np.float32]) -> None:
    """Keep the answers of the finished training `name`, in case the run is interrupted."""
    buffer = io.BytesIO()
    np.savez(buffer, name=np.array(name), probabilities=probabilities)
    write_bytes(path, buffer.getvalue())
