"""What a classifier says of the held-out images, as arrays and as a Parquet file with one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from visionloop.errors import ArtifactError, DataError
from visionloop.features import softmax
from visionloop.files import atomic_path
from visionloop.models import Classifier
from visionloop.progress import track
from visionloop.records import Split
from visionloop.unknown import Doubt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_PREFIX = "p:"  # of the probability columns: no class name can hide another column
_LOGIT_PREFIX = "logit:"
_BATCH_PIXELS = 1 << 22  # bounds memory: 256 images of 128 x 128, 83 of 224 x 224


@dataclass(frozen=True)
class SplitPredictions:
    """The answers for one side of the data set.

    Raises:
        DataError: a score is NaN or infinite, a target is no class, or the three do not belong together.
    """

    ids: tuple[str, ...]  # [N]
    targets: Numbers  # [N], positions in the labels
    probabilities: Floats  # [N, K]; rows sum to 1

    def __post_init__(self) -> None:
        count, classes = self.probabilities.shape
        if not len(self.ids) == len(self.targets) == count:
            raise DataError(
                f"{len(self.ids)} ids, {len(self.targets)} targets and {count} rows of scores do not belong together; run "
                "`dvc repro augment evaluate`."
            )
        broken = np.flatnonzero(~np.isfinite(self.probabilities).all(1))
        if len(broken):
            raise DataError(
                f"The scores of {len(broken)} of {count} images are NaN or infinite (first: {self.ids[broken[0]][:12]}); a "
                "model that says so has weights that are not finite: train it again with a lower learning rate."
            )
        strange = np.flatnonzero((self.targets < 0) | (self.targets >= classes))
        if len(strange):
            raise DataError(
                f"Image {self.ids[strange[0]][:12]} is of class number {self.targets[strange[0]]}, and the model knows "
                f"{classes} classes, from 0; train it again on this data version."
            )

    @property
    def predicted(self) -> Numbers:
        """[N], the class with the highest probability; among equals the first."""
        classes: Numbers = self.probabilities.argmax(1)
        return classes

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[N], whether the prediction is the target."""
        right: npt.NDArray[np.bool_] = self.predicted == self.targets
        return right


@dataclass(frozen=True)
class Answers:
    """What a model says of N images, before any calibration."""

    logits: npt.NDArray[np.float32]  # [N, K]
    embedding: npt.NDArray[np.float32]  # [N, D]


def answer(model: Classifier, images: npt.NDArray[np.uint8], device: torch.device, description: str) -> Answers:
    """Logits and embedding of uint8 images [N, H, W, 3], in batches, with progress under `description`.

    Raises:
        ArtifactError: the model answers with NaN or infinity.
    """
    model = model.to(device).eval()
    batch_size = max(1, min(1024, _BATCH_PIXELS // max(1, images.shape[1] * images.shape[2])))
    logits = np.empty((len(images), model.num_classes), np.float32)
    embedding = np.empty((len(images), model.embedding_size), np.float32)
    with torch.inference_mode():
        for start in track(range(0, len(images), batch_size), description):
            part = slice(start, start + batch_size)
            found = model(torch.from_numpy(np.array(images[part])).to(device))
            logits[part], embedding[part] = (tensor.float().cpu().numpy() for tensor in found)
    if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
        raise ArtifactError(
            "The model answers with NaN or infinity, so its weights are not finite; train again with a lower learning rate."
        )
    return Answers(logits, embedding)


def predict(model: Classifier, images: npt.NDArray[np.uint8], device: torch.device, description: str) -> Floats:
    """Probabilities [N, K] of uint8 images [N, H, W, 3], as they come, see `answer`."""
    return softmax(answer(model, images, device, description).logits)


def write_predictions(
    path: Path,
    labels: tuple[str, ...],
    splits: Mapping[Split, SplitPredictions],
    answers: Mapping[Split, Answers] | None = None,
    doubts: Mapping[Split, Doubt] | None = None,
) -> None:
    """Write one row per image: id, split, label, predicted, correct, and `p:<label>` for each class.

    With `answers` there is `logit:<label>`, before any calibration; with `doubts` there are unknown_score, unknown and
    review, the first two null where the calibration sets no rule.
    """
    names = np.array(labels, dtype=object)
    columns: dict[str, pa.Array] = {
        "id": pa.array([name for part in splits.values() for name in part.ids], pa.string()),
        "split": pa.array([split for split, part in splits.items() for _ in part.ids], pa.string()),
        "label": pa.array([name for part in splits.values() for name in names[part.targets]], pa.string()),
        "predicted": pa.array([name for part in splits.values() for name in names[part.predicted]], pa.string()),
        "correct": pa.array(np.concatenate([part.correct for part in splits.values()]), pa.bool_()),
    }
    if doubts is not None:
        parts = [doubts[split] for split in splits]
        columns["unknown_score"] = pa.array(_joined([one.score for one in parts], parts), pa.float64())
        columns["unknown"] = pa.array(_joined([one.unknown for one in parts], parts), pa.bool_())
        columns["review"] = pa.array(_joined([one.review for one in parts], parts), pa.bool_())
    probabilities = np.concatenate([part.probabilities for part in splits.values()])
    for index, label in enumerate(labels):
        columns[_PREFIX + label] = pa.array(probabilities[:, index], pa.float64())
    if answers is not None:
        logits = np.concatenate([answers[split].logits for split in splits])
        for index, label in enumerate(labels):
            columns[_LOGIT_PREFIX + label] = pa.array(logits[:, index], pa.float32())
    with atomic_path(path) as tmp:
        pq.write_table(pa.table(columns), tmp, compression="zstd")


def _joined(values: Sequence[npt.NDArray[Any] | None], parts: Sequence[Doubt]) -> list[Any]:
    return [x for one, part in zip(values, parts, strict=True) for x in ([None] * len(part.review) if one is None else one)]


def read_correct(path: Path, split: Split) -> dict[str, bool]:
    """Which images of one side were answered rightly: id -> correct.

    Raises:
        ArtifactError: the file is missing, damaged, or no such table.
    """
    try:
        table = pq.read_table(path, columns=["id", "split", "correct"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} cannot be read ({str(error).splitlines()[0][:100]}); run `dvc repro evaluate`."
        ) from error
    rows = zip(*(table.column(name).to_pylist() for name in ("id", "split", "correct")), strict=True)
    return {str(name): bool(correct) for name, side, correct in rows if side == split}


def spread(predictions: SplitPredictions, count: int) -> Numbers:
    """Positions of `count` images spread over the classes: one of each class in turn, in the order of the images."""
    turn = np.zeros(len(predictions.targets), dtype=np.int64)
    for number in np.unique(predictions.targets):
        mine = predictions.targets == number
        turn[mine] = np.arange(mine.sum())
    order: Numbers = np.lexsort((predictions.targets, turn))
    return order[:count]


def worst_mistakes(predictions: SplitPredictions, count: int) -> Numbers:
    """Positions of at most `count` wrong answers, the most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    confidence = predictions.probabilities[wrong].max(1)
    worst: Numbers = wrong[np.argsort(-confidence, kind="stable")][:count]
    return worst
