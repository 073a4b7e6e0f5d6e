"""What cross-validated models say of images that they never saw: the file that carries it to the stage `clean`.

Torch-free, since `clean` reads it. Does not cover: making the answers, which `visionloop.crossvalidation` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visionloop.errors import ArtifactError
from visionloop.files import atomic_path

_PREFIX = "p:"  # of the probability columns: no class name can hide another column
# Fewer than this share of the answers being about images of the data is a file of another data set.
_LEAST_KNOWN = 0.5
# More labels than this being others now, and the models were taught something else than the data say. Labels that people
# corrected after the last look are well below.
_MOST_RELABELLED = 0.1


@dataclass(frozen=True)
class OutOfFold:
    """The answer to each image by the model of its fold, which saw neither the image nor its group."""

    classes: tuple[str, ...]  # sorted, the columns of `probabilities`
    ids: tuple[str, ...]  # [N] sha256 of the encoded image, sorted
    labels: npt.NDArray[np.int64]  # [N], positions in `classes`; what the models were taught of the other images
    folds: npt.NDArray[np.int64]  # [N], from 0
    probabilities: npt.NDArray[np.float32]  # [N, K]; rows sum to 1
    family: str
    data_id: str  # of the packed data, see `packing.data_id`


@dataclass(frozen=True)
class Answers:
    """What cross-validated networks said of some of the images."""

    places: npt.NDArray[np.int64]  # [m], positions among the images
    probabilities: npt.NDArray[np.float32]  # [m, classes]; rows sum to 1


def write_out_of_fold(path: Path, answers: OutOfFold) -> None:
    """Write one row per image, whole or not at all: id, label, fold, and `p:<label>` for each class."""
    names = np.array(answers.classes, dtype=object)
    columns: dict[str, pa.Array] = {
        "id": pa.array(answers.ids, pa.string()),
        "label": pa.array(names[answers.labels], pa.string()),
        "fold": pa.array(answers.folds, pa.int64()),
    }
    for index, name in enumerate(answers.classes):
        columns[_PREFIX + name] = pa.array(answers.probabilities[:, index], pa.float32())
    table = pa.table(columns).replace_schema_metadata({"family": answers.family, "data_id": answers.data_id})
    with atomic_path(path) as tmp:
        pq.write_table(table, tmp, compression="zstd")


def read_out_of_fold(path: Path) -> OutOfFold | None:
    """Read what `write_out_of_fold` wrote; None where there is no file.

    Raises:
        ArtifactError: it is damaged, or no such table.
    """
    try:
        table = pq.read_table(path)
        notes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        classes = tuple(name.removeprefix(_PREFIX) for name in table.column_names if name.startswith(_PREFIX))
        number = {name: index for index, name in enumerate(classes)}
        probabilities = np.column_stack([table.column(_PREFIX + name).to_numpy() for name in classes]).astype(np.float32)
        answers = OutOfFold(
            classes=classes,
            ids=tuple(table.column("id").to_pylist()),
            labels=np.array([number[name] for name in table.column("label").to_pylist()], dtype=np.int64),
            folds=table.column("fold").to_numpy().astype(np.int64),
            probabilities=probabilities,
            family=notes["family"],
            data_id=notes["data_id"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} is no table of out-of-fold answers ({str(error).splitlines()[0][:100]}); write it anew with "
            "`visionloop crossvalidate --accept`, or remove it."
        ) from error
    if not (np.isfinite(probabilities).all() and np.abs(probabilities.sum(axis=1) - 1).max(initial=0) < 1e-3):
        raise ArtifactError(
            f"{path} has answers that are no probabilities; write it anew with `visionloop crossvalidate --accept`, or "
            "remove it."
        )
    return answers


def match(
    answers: OutOfFold, ids: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], path: Path
) -> tuple[Answers | None, str]:
    """The answers to the images that they are about, and a sentence about how many or why none is used.

    An answer stays right when its image got another label since, because it did not depend on it. None is used where they
    are foreign or stale: other classes, mostly other images, or many labels that are others now.

    Args:
        answers: see `read_out_of_fold`.
        ids: [N], the images of the data set.
        labels: [N], their labels of today, positions in `classes`.
        classes: the classes of the data set.
        path: stands in the sentence.
    """
    again = "make them anew with `visionloop crossvalidate --accept`, or remove the file."
    if set(answers.classes) != set(classes):
        odd = sorted(set(answers.classes) ^ set(classes))
        return None, (
            f"{path} is not used: its answers know {len(answers.classes)} classes and the data have {len(classes)} "
            f"({odd[0]!r} is in one of them alone); {again}"
        )
    place = {image: index for index, image in enumerate(answers.ids)}
    found = [(here, place[image]) for here, image in enumerate(ids) if image in place]
    known = len({there for _, there in found})
    if known < _LEAST_KNOWN * len(answers.ids):
        return None, f"{path} is not used: {known:,} of its {len(answers.ids):,} images are in the data; {again}"
    here, there = np.array(found, dtype=np.int64).reshape(-1, 2).T
    number = {name: index for index, name in enumerate(answers.classes)}
    theirs = np.array([number[name] for name in classes], dtype=np.int64)
    changed = int((answers.labels[there] != theirs[labels[here]]).sum())
    if changed > _MOST_RELABELLED * len(here):
        return None, (
            f"{path} is not used: {changed:,} of the {len(here):,} images that it is about have another label now, and its "
            f"models learnt the old ones; {again}"
        )
    said = f"Labels of {len(here):,} images are judged by the {answers.family}'s out-of-fold answers in {path}."
    return Answers(here, answers.probabilities[there][:, theirs]), said
