"""Every image is answered by a model that never saw it, the interval is honest, and an interrupted run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import worlds
from visionloop import crossvalidation
from visionloop.crossvalidation import CrossValidated, corrected_t, cross_validate, fold_rows, interval, summarize
from visionloop.data.out_of_fold import OutOfFold
from visionloop.data.packing import PackedSplit
from visionloop.errors import ConfigError, DataError
from visionloop.training import EpochRecord


def sides() -> list[PackedSplit]:
    return [worlds.split(96, 0), worlds.split(48, 1)]


def folds(count: int = 3) -> dict[str, int]:
    return {name: index % count for index, name in enumerate(name for side in sides() for name in side.ids)}


def run(folder: Path, data: list[PackedSplit] | None = None, count: int = 3, **changes: object) -> CrossValidated:
    return cross_validate(
        "cnn", data or sides(), folds(count), worlds.meta(), worlds.params(**{"epochs": 6, **changes}), folder=folder
    )


def test_every_image_is_answered_and_most_rightly(tmp_path: Path) -> None:
    result = run(tmp_path)
    answers = result.answers
    assert list(answers.ids) == sorted(folds())
    assert answers.folds.tolist() == [folds()[name] for name in answers.ids]
    truth = {name: label for side in sides() for name, label in zip(side.ids, side.labels.tolist(), strict=True)}
    assert answers.labels.tolist() == [truth[name] for name in answers.ids]
    assert result.train_images == (96, 96, 96)
    numbers = summarize(result)
    assert numbers["folds"] == 3 and numbers["images"] == 144
    assert numbers["accuracy"] >= 0.9
    assert numbers["accuracy"] == pytest.approx(np.mean([numbers[f"fold_{fold}_accuracy"] for fold in (1, 2, 3)]), abs=1e-4)
    assert numbers["accuracy_low"] < numbers["accuracy"] < numbers["accuracy_high"] or numbers["accuracy_spread"] == 0
    crossvalidation.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_labels_without_meaning_cannot_be_answered(tmp_path: Path) -> None:
    """A network learns random labels by heart; where a held-out image leaked into training it would answer them."""
    rng = np.random.default_rng(5)
    data = [replace(side, labels=rng.integers(0, 3, len(side.labels))) for side in sides()]
    assert summarize(run(tmp_path, data, epochs=8))["accuracy"] < 0.45


def test_rows_of_a_fold_and_the_variants_with_their_images() -> None:
    fold_of = np.array([0, 1, 2, 3, 0, 1, 2, 3, 1])
    variant = np.array([False] * 6 + [True] * 3)
    learnt, watched, held = fold_rows(fold_of, variant, 1, 1)
    assert (learnt.tolist(), watched.tolist(), held.tolist()) == ([0, 2, 3, 4, 6, 7], [1, 5], [1, 5])
    learnt, watched, held = fold_rows(fold_of, variant, 1, 2)
    assert (learnt.tolist(), watched.tolist(), held.tolist()) == ([0, 3, 4, 7], [2], [1, 5])


def test_stored_variants_are_learnt_from_and_not_judged(tmp_path: Path) -> None:
    train, val = sides()
    bigger = PackedSplit(
        np.concatenate([train.images, train.images[:9]]),
        np.concatenate([train.labels, train.labels[:9]]),
        [*train.ids, *(f"{name}+1" for name in train.ids[:9])],
        variants=9,
    )
    said: list[str] = []
    result = cross_validate(
        "cnn", [bigger, val], folds(), worlds.meta(), worlds.params(epochs=1), folder=tmp_path, say=said.append
    )
    assert result.train_images == (96, 96, 96)
    assert "Fold 1 of 3: 102 images to learn from, 48 to judge by." in said
    assert list(result.answers.ids) == sorted(folds())


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    class StoppedError(Exception):
        """The run ends here, as an interrupted one does."""

    def stop(fold: int, record: EpochRecord) -> None:
        if (fold, record.epoch) == (1, 3):
            raise StoppedError

    params = worlds.params(epochs=6)
    with pytest.raises(StoppedError):
        cross_validate("cnn", sides(), folds(), worlds.meta(), params, folder=tmp_path / "cut", on_epoch=stop)
    said: list[str] = []
    seen: list[tuple[int, int, bool]] = []
    again = cross_validate(
        "cnn", sides(), folds(), worlds.meta(), params, folder=tmp_path / "cut", say=said.append,
        on_epoch=lambda fold, record: seen.append((fold, record.epoch, record.restored)),
    )  # fmt: skip
    assert again.answers.probabilities.tobytes() == whole.answers.probabilities.tobytes()
    assert "Fold 1 of 3 was finished by an earlier, interrupted run." in said
    assert not [fold for fold, _, _ in seen if fold == 0]
    assert any(restored for fold, _, restored in seen if fold == 1)

    other = cross_validate("cnn", sides(), folds(), worlds.meta(), worlds.params(epochs=1), folder=tmp_path / "cut")
    assert other.answers.probabilities.tobytes() != whole.answers.probabilities.tobytes()  # of other params: not used


def test_a_damaged_fold_is_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path, epochs=1)
    for file in tmp_path.glob("*.npz"):
        file.write_bytes(file.read_bytes()[:-200])
    assert run(tmp_path, epochs=1).answers.probabilities.tobytes() == first.answers.probabilities.tobytes()


def test_what_stops_by_val_gets_a_fold_of_its_own(tmp_path: Path) -> None:
    result = run(tmp_path, count=4, epochs=2, early_stopping_epochs=5)
    assert result.train_images == (72, 72, 72, 72)
    assert "is not learnt from" in result.notes[0]
    with pytest.raises(ConfigError, match=r"split\.folds is 2, and early stopping or a plateau"):
        run(tmp_path, count=2, schedule="plateau", step_epochs=2)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has seen the images that a fold holds out"):
        run(tmp_path, teacher="older")
    none = dict.fromkeys(folds(), -1)
    with pytest.raises(ConfigError, match=r"split\.folds is 0"):
        cross_validate("cnn", sides(), none, worlds.meta(), worlds.params(), folder=tmp_path)
    with pytest.raises(DataError, match="A fold has no image"):
        cross_validate("cnn", sides(), dict.fromkeys(folds(), 1), worlds.meta(), worlds.params(), folder=tmp_path)
    with pytest.raises(DataError, match=r"1 packed images are not in data/split\.parquet"):
        short = dict(list(folds().items())[1:])
        cross_validate("cnn", sides(), short, worlds.meta(), worlds.params(), folder=tmp_path)


def test_the_corrected_interval_by_hand() -> None:
    """Mean 0.92, variance 0.0004, (1/3 + 1/2) of it is 0.000333; t of 2 degrees of freedom at 97.5 % is 4.302653."""
    low, high = corrected_t([0.90, 0.92, 0.94], 0.5, 0.95)
    half = 4.302653 * 0.000333333**0.5
    assert (low, high) == pytest.approx((0.92 - half, 0.92 + half), abs=1e-6)


def test_folds_that_agree_leave_the_interval_of_the_images(tmp_path: Path) -> None:
    """All 30 answers right in each of 3 folds: their spread is 0, and Wilson's interval of 30 of 30 begins at 0.8865."""
    labels = np.arange(30) % 3
    answers = OutOfFold(
        worlds.LABELS, tuple(f"{n:02}" for n in range(30)), labels, np.arange(30) % 3, np.eye(3, dtype=np.float32)[labels],
        "cnn", "",
    )  # fmt: skip
    assert interval(CrossValidated(answers, (20, 20, 20), ()), 0.95) == pytest.approx((0.8865, 1.0), abs=1e-4)


def test_the_interval_covers_the_accuracy_of_new_images_where_the_plain_one_does_not() -> None:
    """Nearest centroids on two Gaussians, 5 folds of 60 images, 400 data sets: how often is the true accuracy inside?"""
    rng = np.random.default_rng(0)
    dimensions, count, k = 30, 60, 5

    def sample(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(size) % 2
        return rng.normal(0, 1, (size, dimensions)) + labels[:, None] * 0.35, labels

    def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
        return np.asarray(((points[:, None] - centres) ** 2).sum(2).argmin(1))

    new, new_labels = sample(2000)
    ours = plain = 0
    for _ in range(400):
        data, labels = sample(count)
        fold = np.arange(count) // 2 % k
        right, truth = np.zeros(count), []
        for one in range(k):
            centres = np.stack([data[(fold != one) & (labels == label)].mean(0) for label in (0, 1)])
            right[fold == one] = nearest(data[fold == one], centres) == labels[fold == one]
            truth.append((nearest(new, centres) == new_labels).mean())
        answers = OutOfFold(
            ("0", "1"), tuple(map(str, range(count))), labels, fold,
            np.eye(2, dtype=np.float32)[np.where(right == 1, labels, 1 - labels)], "cnn", "",
        )  # fmt: skip
        low, high = interval(CrossValidated(answers, (count * 4 // 5,) * k, ()), 0.95)
        ours += low <= np.mean(truth) <= high
        accuracies = [right[fold == one].mean() for one in range(k)]
        half = 1.96 * np.std(accuracies, ddof=1) / k**0.5
        plain += abs(np.mean(accuracies) - np.mean(truth)) <= half
    assert ours / 400 >= 0.95
    assert plain / 400 < 0.9
