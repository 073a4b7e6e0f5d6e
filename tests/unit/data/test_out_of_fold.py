"""Answers of cross-validation come back as they were written, and stale or foreign ones are not used, with a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from visionloop.data.out_of_fold import OutOfFold, match, read_out_of_fold, write_out_of_fold
from visionloop.errors import ArtifactError

FILE = Path("data/out_of_fold/answers.parquet")
IDS = tuple(f"{number:064x}" for number in range(20))
CLASSES = ("ant", "bee")


def answers(ids: tuple[str, ...] = IDS) -> OutOfFold:
    first = np.linspace(0.05, 0.95, len(ids), dtype=np.float32)
    labels = np.arange(len(ids)) % 2
    return OutOfFold(CLASSES, ids, labels, labels, np.stack([first, 1 - first], axis=1), "cnn", "d" * 64)


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_out_of_fold(tmp_path / "a.parquet", answers())
    write_out_of_fold(tmp_path / "b.parquet", answers())
    found = read_out_of_fold(tmp_path / "a.parquet")
    assert found is not None
    assert (found.classes, found.ids, found.family, found.data_id) == (CLASSES, IDS, "cnn", "d" * 64)
    assert np.array_equal(found.probabilities, answers().probabilities) and np.array_equal(found.labels, answers().labels)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read_out_of_fold(tmp_path / "none.parquet") is None


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_out_of_fold(path, answers())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"is no table of out-of-fold answers .* or remove it"):
        read_out_of_fold(path)
    write_out_of_fold(path, replace(answers(), probabilities=np.ones((20, 2), dtype=np.float32)))
    with pytest.raises(ArtifactError, match="are no probabilities"):
        read_out_of_fold(path)
    write_out_of_fold(path, answers())
    pq.write_table(pq.read_table(path).drop_columns(["fold"]), path)
    with pytest.raises(ArtifactError, match="is no table of out-of-fold answers"):
        read_out_of_fold(path)


def test_answers_are_found_by_id_and_classes_by_name() -> None:
    """The data set has two new images, has lost one, and lists its classes in another order."""
    ids = ["f" * 64, *IDS[5:], *IDS[:4], "e" * 64]
    labels = np.array([0, *(1 - answers().labels[5:]), *(1 - answers().labels[:4]), 1])
    found, said = match(answers(), ids, labels, ("bee", "ant"), FILE)
    assert found is not None
    assert found.places.tolist() == list(range(1, 20))
    assert found.probabilities[0].tolist() == answers().probabilities[5, ::-1].tolist()
    assert said == f"Labels of 19 images are judged by the cnn's out-of-fold answers in {FILE}."


@pytest.mark.parametrize(
    ("ids", "changed", "classes", "sentence"),
    [
        (IDS, 0, ("ant", "bee", "cat"), "its answers know 2 classes and the data have 3 ('cat' is in one of them alone)"),
        (IDS, 0, ("ant", "wasp"), "('bee' is in one of them alone)"),
        (IDS[:9], 0, CLASSES, "9 of its 20 images are in the data"),
        (tuple("a" * 63 + digit for digit in "0123"), 0, CLASSES, "0 of its 20 images are in the data"),
        (IDS, 3, CLASSES, "3 of the 20 images that it is about have another label now"),
    ],
)
def test_stale_and_foreign_answers_are_not_used(
    ids: tuple[str, ...], changed: int, classes: tuple[str, ...], sentence: str
) -> None:
    labels = np.arange(len(ids)) % 2
    labels[:changed] = 1 - labels[:changed]
    found, said = match(answers(), ids, labels, classes, FILE)
    assert found is None
    assert said.startswith(f"{FILE} is not used: ") and sentence in said
    assert "`visionloop crossvalidate --accept`, or remove the file." in said


def test_a_few_corrected_labels_leave_the_answers_as_they_are() -> None:
    labels = np.arange(20) % 2
    labels[:2] = 1 - labels[:2]
    assert match(answers(), IDS, labels, CLASSES, FILE)[0] is not None
